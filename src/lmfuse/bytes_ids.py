"""The ids that a tokenizer.json gives out, judged before anything is built of them: each token one id, each id one row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lmfuse.bytes_spelling import Node
from lmfuse.errors import TokenizerError

LONGEST_TOKEN = 4096  # characters; real ones have a hundred. Tables over a token's cuts grow with the square of it
MOST_UNUSED = 1 << 20  # ids without a token; a table over all ids must not cost more than the tokens themselves
HINT = "fetch the file again; if it is as published, use another model"


class IdError(ValueError):
    """What is wrong with the ids, and at which key of tokenizer.json."""


def check_ids(state: Node, path: Path) -> None:
    """Refuse a parsed tokenizer.json whose tokens and ids do not fit together.

    Raises:
        TokenizerError: no ``model.vocab`` or an empty one; an id that is negative, no whole number, or beyond ``MOST_UNUSED`` unused ones; two
            tokens of one id or two ids of one token, in ``model.vocab``, in ``added_tokens`` or between the two; only control tokens.
    """
    try:
        own = _own_ids(state.get("model"))
        added = _added_ids(state.get("added_tokens", []), own)
        _refuse_gaps(own, added)
        special = {token["content"] for token in state.get("added_tokens", []) if token.get("special") is True}
        if special.issuperset(own) and special.issuperset(added):
            raise IdError(f"added_tokens: each of the {len(own | added)} tokens is a control token (special), none writes text")
    except IdError as error:
        raise TokenizerError(f"{path}: {error}", HINT) from error


def _own_ids(model: object) -> dict[str, int]:
    """Return the ids of the model's own tokens: of a dictionary its values, of a Unigram list the places."""
    if not isinstance(model, dict):
        raise IdError(f"not a tokenizer.json: model is {_kind(model)}, expected an object")
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        return _placed_ids(vocab)
    if not isinstance(vocab, dict):
        raise IdError(f"not a tokenizer.json: model.vocab is {_kind(vocab)}, expected an object or, for Unigram, a list")
    if not vocab:
        raise IdError("model.vocab is empty")
    _check_whole("model.vocab", vocab)
    if len(set(vocab.values())) < len(vocab):
        first: dict[int, str] = {}
        for text, token_id in vocab.items():
            if first.setdefault(token_id, text) != text:
                raise IdError(f"model.vocab: {_quoted(first[token_id])} and {_quoted(text)} have the same id {token_id}")
    return vocab


def _placed_ids(vocab: list[object]) -> dict[str, int]:
    if not vocab:
        raise IdError("model.vocab is empty")
    own: dict[str, int] = {}
    for place, entry in enumerate(vocab):
        match entry:
            case [str(text), int() | float()]:
                if text in own:
                    raise IdError(f"model.vocab: {_quoted(text)} has two ids, {own[text]} and {place}")
                own[text] = place
            case _:
                raise IdError(f"model.vocab[{place}]: got {repr(entry)[:80]}, expected a token and its score")
    return own


def _added_ids(tokens: object, own: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(tokens, list):
        raise IdError(f"not a tokenizer.json: added_tokens is {_kind(tokens)}, expected a list")
    added: dict[str, int] = {}
    for place, token in enumerate(tokens):
        match token:
            case {"content": str(text), "id": token_id}:
                if text in added:
                    raise IdError(f"added_tokens[{place}]: {_quoted(text)} stands there twice")
                added[text] = token_id
            case _:
                raise IdError(f"added_tokens[{place}]: got {repr(token)[:80]}, expected an object with id and content")
    _check_whole("added_tokens", added)
    if added.items() <= own.items() and len(set(added.values())) == len(added):
        return added
    owner = {token_id: text for text, token_id in own.items()}
    for text, token_id in added.items():
        if own.get(text, token_id) != token_id:
            raise IdError(f"added_tokens: {_quoted(text)} has id {token_id}, but {own[text]} in model.vocab")
        if (other := owner.setdefault(token_id, text)) != text:
            where = " of model.vocab" if other in own else ""
            raise IdError(f"added_tokens: {_quoted(text)} has id {token_id}, which is that of {_quoted(other)}{where}")
    return added


def _check_whole(where: str, ids: Mapping[str, object]) -> None:
    for text, token_id in ids.items():
        if len(text) > LONGEST_TOKEN:
            raise IdError(f"{where}: {_quoted(text)} has {len(text):,} characters, expected at most {LONGEST_TOKEN:,}")
        if type(token_id) is not int or token_id < 0:
            shown = str(token_id) if type(token_id) is int else repr(token_id)
            raise IdError(f"{where}: {_quoted(text)} has id {shown[:40]}, expected a whole number of 0 or more")


def _refuse_gaps(own: Mapping[str, int], added: Mapping[str, int]) -> None:
    ids = {**own, **added}
    largest = max(ids, key=ids.__getitem__)
    if ids[largest] >= len(ids) + MOST_UNUSED:
        where = "model.vocab" if largest in own else "added_tokens"
        raise IdError(f"{where}: {_quoted(largest)} has id {str(ids[largest])[:40]}, but there are only {len(ids)} tokens")


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
