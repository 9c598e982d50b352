"""Any models on the same windows of any text: ``lmfuse evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lmfuse.errors import InputError
from lmfuse.evaluate.bits_per_byte import score_documents
from lmfuse.evaluate.paired import Comparison, bits_per_byte_by_domain, by_unit, macro_bits_per_byte, paired_bootstrap
from lmfuse.models import ModelSpec, inspect_model, load_model, load_tokenizer
from lmfuse.text import TextSpec, read_documents, reads_conversations
from lmfuse.types import DocumentScore
from lmfuse.windows import fit_windows, origin_of


@dataclass(frozen=True)
class Table:
    """Scores by model in the order given, and each later model against the first."""

    scores: Mapping[str, Sequence[DocumentScore]]
    against_first: Mapping[str, Comparison]


def compare(
    models: Sequence[str], files: Sequence[Path], field: str, limit: int | None, window_tokens: int, chat_template: str = "own"
) -> Table:
    """Measure every model on the same windows, which fit every model's context; on conversations through its chat template.

    Raises:
        InputError: a model or a file cannot be used, or is given twice.
    """
    if len(set(models)) < len(models):
        raise InputError("the same model is given twice", hint="each model once")
    try:
        texts = [TextSpec(domain=file.stem, path=str(file.absolute()), text=field, limit=limit) for file in files]
    except ValidationError as error:
        first_error = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first_error['loc']))}: {first_error['msg']}", hint="see `lmfuse evaluate --help`") from None
    talks = any(reads_conversations(text, Path()) for text in texts)
    specs = [ModelSpec(model=model, chat_template=chat_template if talks else "none") for model in models]
    contexts = [min(window_tokens, inspect_model(spec).context) for spec in specs]
    tokenizers = [load_tokenizer(spec) for spec in specs]
    documents = [document for spec in texts for document in read_documents(spec, Path())]
    windows = fit_windows(documents, tokenizers, contexts).documents
    turn_ends = not talks or all("end_of_turn" in tokenizer.vocabulary.control for tokenizer in tokenizers)
    unit_of = {window.id: origin_of(window) for window in windows}
    scores: dict[str, Sequence[DocumentScore]] = {}
    for spec in specs:
        found = score_documents(load_model(spec), windows, batch_tokens=8192, turn_ends=turn_ends)
        scores[spec.model] = by_unit(found, unit_of)
    first = models[0]
    return Table(scores, {model: paired_bootstrap(scores[model], scores[first], domain=None) for model in models[1:]})


def show(found: Table) -> None:
    """Print bits per byte by model and domain, and the interval of each model against the first."""
    from rich import table as rich_table

    from lmfuse.console import Console

    domains = sorted({score.domain for score in next(iter(found.scores.values()))})
    table = rich_table.Table("model", *domains, "macro", "against the first (95%)", title="bits per byte, lower is better")
    for model, scores in found.scores.items():
        values = bits_per_byte_by_domain(scores)
        paired = found.against_first.get(model)
        interval = f"{paired.mean:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]" if paired else ""
        table.add_row(model, *(f"{values[d]:.4f}" for d in domains), f"{macro_bits_per_byte(scores):.4f}", interval)
    Console().table(table)
