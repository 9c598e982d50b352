"""What a recipe names, looked at once: models' facts, tokenizers and text, for the plan and for the stages."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from lmfuse.bytes import ByteTokenizer
from lmfuse.corpus import Corpus, prepare_corpus
from lmfuse.model_files import pinned
from lmfuse.models import ModelFacts, inspect_with_tokenizer
from lmfuse.recipe import Recipe, model_specs


class Inputs:
    """A recipe's models by label, the target first, and its windows. No weights are read; everything is computed on first use and kept.

    ``specs`` of hub models get the commit that they stand at when their facts are asked for.
    """

    def __init__(self, recipe: Recipe, base: Path, cache: Path) -> None:
        self.recipe, self.base, self.cache = recipe, base, cache
        self.specs = model_specs(recipe, base)
        self._facts: dict[str, ModelFacts] = {}
        self._tokenizers: dict[str, ByteTokenizer] = {}

    def facts(self, label: str) -> ModelFacts:
        """Return what is known of a model without reading its weights."""
        if label not in self._facts:
            self.specs[label] = pinned(self.specs[label])
            self._facts[label], self._tokenizers[label] = inspect_with_tokenizer(self.specs[label], self.cache)
        return self._facts[label]

    def tokenizer(self, label: str) -> ByteTokenizer:
        """Return a model's tokenizer."""
        self.facts(label)
        return self._tokenizers[label]

    @cached_property
    def corpus(self) -> Corpus:
        """Return the windows of all splits."""
        tokenizers, contexts = [self.tokenizer(label) for label in self.specs], [self.facts(label).context for label in self.specs]
        return prepare_corpus(self.recipe.text, self.base, tokenizers, contexts)
