"""The text of a run: read, kept apart, checked for overlap, cut into windows that every model can read whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lmfuse.artefacts import content_key
from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import TextError
from lmfuse.overlap import refuse_overlap
from lmfuse.recipe import Text
from lmfuse.splits import deduplicate, split_held_out
from lmfuse.text import TextSpec, read_documents
from lmfuse.types import Document, UnfitRule
from lmfuse.windows import fit_windows, origin_of

SPLITS = ("train", "held_out", "evaluation")


def documents_key(documents: Sequence[Document]) -> str:
    """Return the identity of some documents, in order, and the domains they count for."""
    return content_key([[document.id, document.domain] for document in documents])


@dataclass(frozen=True)
class Corpus:
    """Windows by split, and what was dropped on the way: how often, and of conversations by name."""

    splits: Mapping[str, tuple[Document, ...]]
    counters: Mapping[str, int]
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def key(self, split: str) -> str:
        """Return the identity of a split: its windows, in order, and the domains they count for."""
        return documents_key(self.splits[split])

    @cached_property
    def evaluation_units(self) -> dict[str, str]:
        """Return for each evaluation window, by its id, the document that it was cut from."""
        return {window.id: origin_of(window) for window in self.splits["evaluation"]}

    def domains(self, split: str) -> list[str]:
        """Return the domains of a split, sorted."""
        return sorted({document.domain for document in self.splits[split]})


def _read(specs: Sequence[TextSpec], base: Path, counters: Counter[str], unfit: UnfitRule) -> list[Document]:
    documents: list[Document] = []
    for spec in specs:
        counted: dict[str, int] = {}
        documents += read_documents(spec, base, counters=counted, unfit=unfit)
        counters.update(counted)
    return documents


def window_limits(text: Text, contexts: Sequence[int]) -> list[int]:
    """Return the most tokens of each model, the target first, that a window may have."""
    counts = [place == 0 or text.windows_by == "all" for place in range(len(contexts))]
    return [min(text.window_tokens, context) if count else context for context, count in zip(contexts, counts, strict=True)]


def prepare_corpus(text: Text, base: Path, tokenizers: Sequence[ByteTokenizer], contexts: Sequence[int]) -> Corpus:
    """Read all text of a recipe and cut it into windows of at most ``text.window_tokens`` tokens of every tokenizer, or of the first alone.

    Raises:
        TextError: missing or malformed files; overlap between training and evaluation text; nothing left in a split.
        InputError: a chat template cannot express a conversation, unless ``text.unfit_conversations`` leaves such ones out.
        TokenizerError: there are conversations, and a tokenizer has no chat template.
    """
    read: dict[str, Counter[str]] = {"train": Counter(), "evaluation": Counter()}
    unfit = text.unfit_conversations
    train, dropped = deduplicate(_read(text.train, base, read["train"], unfit))
    evaluation = _read(text.evaluation, base, read["evaluation"], unfit)
    refuse_overlap(train, evaluation, max_share=text.max_overlap)
    kept, held_out = split_held_out(train, text.held_out, seed=text.seed)
    limits = window_limits(text, contexts)
    splits: dict[str, tuple[Document, ...]] = {}
    counters = {f"{side}_documents_{name}": count for side, found in read.items() for name, count in found.items()}
    counters["train_documents_duplicate"] = dropped
    left_out: dict[str, tuple[str, ...]] = {}
    for split, documents in zip(SPLITS, (kept, held_out, evaluation), strict=True):
        windows = fit_windows(documents, tokenizers, limits, unfit=unfit)
        left_out |= {split: windows.left_out} if windows.left_out else {}
        unique, twice = deduplicate(windows.documents)
        splits[split] = tuple(unique)
        counters |= {f"{split}_{name}": count for name, count in windows.counters.items()} | {f"{split}_duplicate_windows": twice}
        if not unique:
            raise TextError(f"text.{split}: no text is left after cutting windows", hint="give more text, or a larger text.window_tokens")
    missing = {document.domain for document in splits["evaluation"]} - {document.domain for document in splits["held_out"]}
    if missing:
        raise TextError(
            f"text: no held-out training text in the evaluated domain {sorted(missing)[0]!r}",
            hint="give every evaluated domain training text of at least two documents, or raise text.held_out",
        )
    return Corpus(splits, counters, left_out)
