"""Vocabularies of the models of a merge: equal, or united where they differ only by padding and added tokens.

A merge adds row 17 of one embedding to row 17 of another, so row 17 must mean the same token everywhere. Where it does not, rows are
moved: what a token's row is called in each model is known from its tokenizer. Anything else is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from lmfuse.bytes_files import FLAGS, SLOW_FILES, library_errors, read_folder
from lmfuse.errors import ModelError, TokenizerError
from lmfuse.folder_files import read_object
from lmfuse.model_facts import EMBEDDING
from lmfuse.weights.plan import AddedToken, OpenedModel, RowMap, UnitedVocabulary

UNITE = "unite the vocabularies (tokenizer: union), or merge models of one tokenizer"


@dataclass(frozen=True)
class Tokens:
    """A model's tokens.

    Attributes:
        label: of the model.
        ids: by token.
        added: the tokens that are no part of the vocabulary proper, with what ``tokenizer.json`` says of them.
        num_rows: of the model's embedding.
    """

    label: str
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    num_rows: int


def unite_vocabularies(models: Sequence[OpenedModel], ground: int = 0, *, union: bool = True) -> UnitedVocabulary:
    """Return one vocabulary for several models: the ground's, with the added tokens that others have at its end.

    A row that a model lacks is the base's; a row that the base lacks is the mean of those sources that have it.

    Args:
        models: opened.
        ground: index of the model whose tokenizer the result has.
        union: whether tokens may be added; without, all models must have the same tokens, and may differ in padding only.

    Raises:
        ModelError: the embedding's number of rows is unknown.
        TokenizerError: the vocabularies differ by more; names model, token and ids.
    """
    tokens = _all_tokens(models, ground)
    if tokens is None:
        return _without_tokenizers(models, ground)
    first = tokens[ground]
    for each in tokens:
        if each is not first:
            _compare(each, first, union)
    added = _added(tokens, first)
    by_id = {token_id: token for token, token_id in first.ids.items()} | {each.id: each.token for each in added}
    num_rows = max(first.num_rows, *(token_id + 1 for token_id in by_id))
    row_maps = tuple(_row_map(each, by_id, num_rows) for each in tokens)
    united = UnitedVocabulary(ground, added, num_rows, row_maps, _report(tokens, first, added, row_maps, num_rows))
    if added:
        united_tokenizer(models[ground], united)  # fails now or never
    return united


def _all_tokens(models: Sequence[OpenedModel], ground: int) -> list[Tokens] | None:
    """Return every model's tokens, None where no model has a ``tokenizer.json``.

    A model without tokenizer files is taken to have the ground's tokens if it has as many rows.

    Raises:
        TokenizerError: it has more or fewer; or a tokenizer cannot be read.
    """
    if not any((model.folder.path / "tokenizer.json").is_file() for model in models):
        return None
    first = _tokens(models[ground])
    found = []
    for index, model in enumerate(models):
        silent = not any((model.folder.path / name).is_file() for name in ("tokenizer.json", *SLOW_FILES))
        if index == ground:
            found.append(first)
        elif silent:
            if _num_rows(model) != first.num_rows:
                raise TokenizerError(
                    f"{model.label}: embedding of {_num_rows(model)} rows, {first.label} has {first.num_rows}, and no tokenizer says why",
                    f"copy the tokenizer files of {model.label} into its folder",
                )
            found.append(Tokens(model.label, first.ids, first.added, _num_rows(model)))
        else:
            found.append(_tokens(model))
    return found


def _tokens(model: OpenedModel) -> Tokens:
    tokenizer = read_folder(model.folder.path).tokenizer
    added = {
        token.content: {"id": token_id, "content": token.content} | {flag: getattr(token, flag) for flag in FLAGS}
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return Tokens(model.label, tokenizer.get_vocab(with_added_tokens=True), added, _num_rows(model))


def _num_rows(model: OpenedModel) -> int:
    """Return how many rows a model's embedding has.

    Raises:
        ModelError: it has no tensor that is called as embeddings are, or several that differ.
    """
    found = {entry.shape[0] for name, (_, entry) in model.tensors.items() if EMBEDDING.search(name) and len(entry.shape) == 2}
    if len(found) != 1:
        raise ModelError(f"{model.label}: {len(found)} embeddings of tokens found, expected one", "please report the model's name")
    return found.pop()


def _without_tokenizers(models: Sequence[OpenedModel], ground: int) -> UnitedVocabulary:
    """Return the ground's rows where no tokenizer can be read: the files must be the same bytes, the embeddings of the same size."""
    first = models[ground]
    for model in models:
        for name in SLOW_FILES:
            mine, yours = (_digest(each, name) for each in (model, first))
            if mine and yours and mine != yours:
                raise TokenizerError(
                    f"{model.label}: {name} is not that of {first.label}",
                    "convert both to tokenizer.json, or merge models of one tokenizer",
                )
        if _num_rows(model) != _num_rows(first):
            raise TokenizerError(
                f"{model.label}: embedding of {_num_rows(model)} rows, {first.label} has {_num_rows(first)}, and no tokenizer.json says why",
                "give both a tokenizer.json",
            )
    report = "No model has a tokenizer.json: that their tokens are the same was judged by the number of rows alone."
    return UnitedVocabulary(ground, (), _num_rows(first), (None,) * len(models), (report,))


def _digest(model: OpenedModel, name: str) -> str:
    path = model.folder.path / name
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _compare(mine: Tokens, first: Tokens, union: bool) -> None:
    """Refuse vocabularies whose common tokens have different ids, or that differ by tokens that were not added.

    Raises:
        TokenizerError: names the first such token.
    """
    moved = sorted((token_id, token) for token, token_id in mine.ids.items() if first.ids.get(token, token_id) != token_id)
    for token_id, token in moved:
        if not union or not (token in mine.added or token in first.added):
            raise TokenizerError(
                f"{mine.label}: token {token[:80]!r} has id {token_id}, in {first.label} it has {first.ids[token]}",
                UNITE if token in mine.added or token in first.added else "merge models of one tokenizer",
            )
    for one, other in ((mine, first), (first, mine)):
        for token, token_id in sorted(one.ids.items(), key=lambda item: item[1]):
            if token not in other.ids and not (union and token in one.added):
                raise TokenizerError(
                    f"{other.label}: token {token[:80]!r} is missing, {one.label} has it (id {token_id})",
                    UNITE if token in one.added else "merge models of one tokenizer",
                )


def _added(tokens: Sequence[Tokens], first: Tokens) -> tuple[AddedToken, ...]:
    """Return the tokens that the ground lacks, in the order of models and ids, under the ids after its last."""
    entries: dict[str, Mapping[str, Any]] = {}
    for each in tokens:
        for token in sorted(each.ids, key=lambda token: each.ids[token]):
            if token not in first.ids:
                entries.setdefault(token, each.added[token])
    start = max(first.ids.values(), default=-1) + 1
    return tuple(
        AddedToken(token, start + n, tuple(each.label for each in tokens if token in each.ids), {**entry, "id": start + n})
        for n, (token, entry) in enumerate(entries.items())
    )


def _row_map(tokens: Tokens, by_id: Mapping[int, str], num_rows: int) -> RowMap | None:
    """Return which of a model's rows each row of the result is; rows of no token are padding and stay where they are."""
    taken = set(tokens.ids.values())
    rows = []
    for token_id in range(num_rows):
        token = by_id.get(token_id)
        row = tokens.ids.get(token, -1) if token is not None else -1 if token_id in taken else token_id
        rows.append(row if row < tokens.num_rows else -1)
    return None if num_rows == tokens.num_rows and rows == list(range(num_rows)) else tuple(rows)


def _report(
    tokens: Sequence[Tokens], first: Tokens, added: Sequence[AddedToken], row_maps: Sequence[RowMap | None], num_rows: int
) -> tuple[str, ...]:
    lines = []
    if any(row_maps) or added:
        lines.append(f"The vocabulary is that of {first.label}, {num_rows} rows, {len(added)} added tokens at its end.")
    lines += [f"Token {each.token!r} got id {each.id}; from {', '.join(each.models)}." for each in added]
    for each, row_map in zip(tokens, row_maps, strict=True):
        if row_map is None:
            continue
        filled = sum(row < 0 for row in row_map)
        moved = sum(row not in (-1, place) for place, row in enumerate(row_map))
        cut = each.num_rows - len({row for row in row_map if row >= 0})
        lines.append(
            f"{each.label}: {each.num_rows} rows; {moved} moved, {cut} left out, {filled} filled in "
            "(from the base; a row that the base lacks is the mean of the sources that have it)."
        )
    return tuple(lines)


def united_tokenizer(ground: OpenedModel, united: UnitedVocabulary) -> dict[str, bytes]:
    """Return the tokenizer files of a vocabulary with added tokens: those of the ground model, with the tokens in them.

    Raises:
        TokenizerError: the ground's tokenizer would give the tokens other ids.
    """
    folder = ground.folder.path
    state = read_object(folder, "tokenizer.json", TokenizerError) or {}
    state["added_tokens"] = [*(state.get("added_tokens") or []), *(dict(each.entry) for each in united.added)]
    text = json.dumps(state, ensure_ascii=False, indent=2)
    with library_errors(f"{folder / 'tokenizer.json'} with {len(united.added)} added tokens", UNITE):
        tokenizer = Tokenizer.from_str(text)
    for each in united.added:
        if tokenizer.token_to_id(each.token) != each.id:
            raise TokenizerError(
                f"{ground.label}: its tokenizer gives token {each.token[:80]!r} id {tokenizer.token_to_id(each.token)}, expected {each.id}",
                "its ids have gaps: take another model's tokenizer as the ground",
            )
    config = read_object(folder, "tokenizer_config.json", TokenizerError)
    files = {"tokenizer.json": text.encode()}
    if config is not None:
        if isinstance(listed := config.get("added_tokens_decoder"), dict):
            listed |= {str(each.id): {key: value for key, value in each.entry.items() if key != "id"} for each in united.added}
        files["tokenizer_config.json"] = (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode()
    return files
