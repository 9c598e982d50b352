"""Folders of tiny models, with chat templates and without, and requests as lm_eval makes them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from tokenizers import AddedToken, Tokenizer

from lmfuse.evaluate.harness_models import Ensemble, make_method
from lmfuse.models import ModelSpec
from tests.chat_templates import FAMILIES, write_folder
from tests.fakes import KINDS, save_model

FAMILY = {"byte_bpe": "chatml", "metaspace_bpe": "zephyr", "unigram": "gemma"}


@cache
def _place() -> TemporaryDirectory:
    """Return a folder that is there until the tests end."""
    return TemporaryDirectory(prefix="lmfuse-harness-")


@cache
def folder(kind: str, *, chat: bool = False, context: int = 256) -> str:
    """Return the folder of a random model; with ``chat`` it has the template of ``FAMILY``."""
    path, tokenizer = Path(_place().name) / f"{kind}-{chat}-{context}" / kind, KINDS[kind]()
    if chat:
        family = FAMILIES[FAMILY[kind]]
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.add_special_tokens([AddedToken(text, special=True) for text in family.tokens if tokenizer.token_to_id(text) is None])
    if path.exists():
        return str(path)
    path.parent.mkdir()
    save_model(path, tokenizer, seed=list(KINDS).index(kind), context=context)
    return str(write_folder(path, tokenizer, family) if chat else path)


@cache
def ensemble(*kinds: str, method: str = "cool", weights: tuple[float, ...] = (), chat: bool = False, context: int = 256) -> Ensemble:
    """Return models that answer together."""
    specs = [ModelSpec(folder(kind, chat=chat, context=context), dtype="float32", chat_template="own") for kind in kinds]
    return Ensemble(specs, ["cpu"], make_method(method, {"weights": weights} if weights else {}, ()))


def request(*arguments: object) -> SimpleNamespace:
    """Return what the class reads of lm_eval's ``Instance``."""
    return SimpleNamespace(args=arguments)
