"""What a recipe names, looked at once: models' facts, tokenizers and text, for the plan and for the stages."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from lmfuse.bytes import ByteTokenizer
from lmfuse.chat_template import CHOICES
from lmfuse.corpus import Corpus, prepare_corpus
from lmfuse.errors import LmfuseError
from lmfuse.model_files import ModelSpec, pinned
from lmfuse.models import ModelFacts, inspect_with_tokenizer
from lmfuse.recipe import Recipe, Text, model_specs
from lmfuse.text import reads_conversations


class Inputs:
    """A recipe's models by label, the target first, and its windows. No weights are read; everything is computed on first use and kept.

    ``specs`` of hub models get the commit that they stand at when their facts are asked for.
    """

    def __init__(self, recipe: Recipe, base: Path, cache: Path) -> None:
        self.recipe, self.base, self.cache = recipe, base, cache
        self.specs = _with_templates(model_specs(recipe, base), recipe.text, base)
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

    @property
    def turn_ends(self) -> bool:
        """Return whether every model can say that a turn ends: else that is left out of what models are measured on, for all of them."""
        tokenizers = [self.tokenizer(label) for label in self.specs]
        return all(tokenizer.chat is None or "end_of_turn" in tokenizer.vocabulary.control for tokenizer in tokenizers)


def _with_templates(specs: dict[str, ModelSpec], text: Text, base: Path) -> dict[str, ModelSpec]:
    """Return the models with the chat template that they read conversations with, where the text has any."""
    talks = False
    with suppress(LmfuseError):  # a file that is missing is reported with the rest of the text
        talks = any(reads_conversations(spec, base) for spec in (*text.train, *text.evaluation))

    def template_of(spec: ModelSpec) -> str:
        choice = spec.chat_template if spec.chat_template != "none" or not talks else text.chat_template
        return str(base / choice) if choice not in CHOICES else choice

    return {label: replace(spec, chat_template=template_of(spec)) for label, spec in specs.items()}
