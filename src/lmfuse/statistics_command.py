"""``lmfuse statistics``: what some merge methods ask of a model, collected on text."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from lmfuse.console import Console
from lmfuse.errors import InputError, did_you_mean
from lmfuse.merge.informed import Kind
from lmfuse.models import ModelSpec, inspect_with_tokenizer, load_model, pick_device
from lmfuse.statistics import collect_statistics
from lmfuse.text import TextSpec, read_documents, split_held_out
from lmfuse.weights.plan import open_model
from lmfuse.windows import fit_windows


def collect(model: str, out: Path, text: Path, *, kind: str, field: str, limit: int, window_tokens: int, dtype: str, device: str) -> None:
    """Do what the command line asks for.

    Raises:
        InputError: an unknown kind, a place that is taken, a model or text that cannot be used.
        ResourceError: memory or disk do not suffice.
    """
    if kind not in get_args(Kind):
        raise InputError(f"--kind: {did_you_mean(kind, get_args(Kind))}", "fisher for fisher, gram for reg_mean")
    if out.exists():
        raise InputError(f"{out} exists", "choose another place, or remove it")
    try:
        spec = TypeAdapter(ModelSpec).validate_python({"model": model, "dtype": dtype})
        texts = TextSpec(domain="text", path=str(text.absolute()), text=field)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "see `lmfuse statistics --help`") from None
    facts, tokenizer = inspect_with_tokenizer(spec)
    windows = fit_windows(list(read_documents(texts, Path())), [tokenizer], [min(window_tokens, facts.context)]).documents
    chosen = split_held_out(windows, limit)[1] if limit < len({window.id for window in windows}) else windows
    key = open_model(spec).key
    console = Console()
    with console.task(f"{kind} statistics of {spec.label}", len(chosen), "windows") as advance:
        collect_statistics(load_model(spec, pick_device(device)), chosen, kind, out, key=key, progress=advance)  # type: ignore[arg-type]
    console.say(f"statistics: {out}")
