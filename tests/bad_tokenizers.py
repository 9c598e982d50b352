"""Bad tokenizers, each made from a good one in one named way, and what the error has to say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

State = dict[str, Any]


def spent() -> float:
    """Return the processor seconds of this process and of its children that have ended: on a busy machine a wall clock says nothing."""
    return sum(os.times()[:4])


@dataclass(frozen=True)
class Case:
    """``spoil`` changes a model folder; the error must hold all ``words``. ``kind`` names the fake tokenizer to start from."""

    name: str
    spoil: Callable[[Path], object]
    words: tuple[str, ...]
    kind: str = "byte_bpe"


def edited(change: Callable[[State], object]) -> Callable[[Path], object]:
    """Return the spoiler that changes the parsed tokenizer.json in place."""

    def spoil(folder: Path) -> None:
        path = folder / "tokenizer.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        change(state)
        path.write_text(json.dumps(state), encoding="utf-8")

    return spoil


def configured(**values: object) -> Callable[[Path], object]:
    """Return the spoiler that sets keys of tokenizer_config.json."""

    def spoil(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")

    return spoil


def replaced(text: str | bytes) -> Callable[[Path], object]:
    """Return the spoiler that writes another tokenizer.json."""
    data = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / "tokenizer.json").write_bytes(data)


def token(text: str, token_id: object, **flags: bool) -> State:
    """Return an entry of ``added_tokens``."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, "special": True, **plain, **flags}


def vocab(**ids: object) -> Callable[[Path], object]:
    """Return the spoiler that gives strings of the model's own vocabulary other ids."""
    return edited(lambda state: state["model"]["vocab"].update(ids))


def added(*tokens: State) -> Callable[[Path], object]:
    return edited(lambda state: state["added_tokens"].extend(tokens))


def split(pattern: str) -> Callable[[Path], object]:
    """Return the spoiler that puts a regular expression before everything else that cuts a text."""

    def change(state: State) -> None:
        node = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [node, *filter(None, [state["pre_tokenizer"]])]}

    return edited(change)


def normalized(*nodes: State) -> Callable[[Path], object]:
    return edited(lambda state: state.update(normalizer={"type": "Sequence", "normalizers": list(nodes)}))


def replace(old: State, new: str) -> State:
    return {"type": "Replace", "pattern": old, "content": new}


def decoded(*nodes: State) -> Callable[[Path], object]:
    return edited(lambda state: state.update(decoder={"type": "Sequence", "decoders": list(nodes)}))


def huge(folder: Path) -> None:
    """Make tokenizer.json 500 MB of zero bytes; the file is sparse and costs no disk."""
    os.truncate(folder / "tokenizer.json", 500_000_000)


def pipe(name: str) -> Callable[[Path], object]:
    """Return the spoiler that puts a FIFO, which blocks whoever opens it, in a file's place."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def linked(name: str) -> Callable[[Path], object]:
    """Return the spoiler that moves a file out of the folder and leaves a symbolic link to it."""

    def spoil(folder: Path) -> None:
        outside = folder.parent / f"outside-{folder.name}-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return spoil


def linked_to(name: str, target: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def listed(key: str, **flags: object) -> Callable[[Path], object]:
    """Return the spoiler that lists a token in tokenizer_config.json only."""
    return configured(added_tokens_decoder={key: {"content": "<x>", **flags}})


def all_pieces_control(state: State) -> None:
    state["added_tokens"] = [token(text, i) for i, (text, _) in enumerate(state["model"]["vocab"])]


def repeat_piece(state: State) -> None:
    state["model"]["vocab"].append(state["model"]["vocab"][300])


def all_control(state: State) -> None:
    state["added_tokens"] = [token(text, i) for text, i in state["model"]["vocab"].items()]


def empty(state: State) -> None:
    state["model"] |= {"vocab": {}, "merges": []}
    state["added_tokens"] = []


def template(state: State, token_id: int) -> None:
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [token_id], "tokens": ["<s>"]}},
    }


NEXT = 409  # the first free id of the byte-level tokenizer
BOMB = [replace({"String": "e"}, "ee") for _ in range(48)]

CASES = (
    # ids
    Case("duplicate ids in model.vocab", vocab(a=66), ("model.vocab", "'a'", "66")),
    Case("duplicate ids in added_tokens", added(token("<x>", NEXT), token("<y>", NEXT)), ("added_tokens", "'<x>'", "'<y>'", str(NEXT))),
    Case("an id in model.vocab and in added_tokens", added(token("<x>", 66)), ("added_tokens", "'<x>'", "66", "model.vocab")),
    Case("a string with two ids", added(token("a", NEXT)), ("added_tokens", "'a'", str(NEXT))),
    Case("a string twice in added_tokens", added(token("<x>", NEXT), token("<x>", NEXT + 1)), ("added_tokens", "'<x>'")),
    Case("a piece twice in a Unigram list", edited(repeat_piece), ("model.vocab", "two ids", "300", "343"), "unigram"),
    Case("negative id", vocab(a=-1), ("model.vocab", "'a'", "-1")),
    Case("negative added id", added(token("<x>", -5)), ("added_tokens", "'<x>'", "-5")),
    Case("id of 10**12", vocab(zz=10**12), ("model.vocab", "'zz'", str(10**12))),
    Case("id of 4*10**9", vocab(zz=4 * 10**9), ("model.vocab", "'zz'", str(4 * 10**9))),
    Case("added id of 10**12", added(token("<x>", 10**12)), ("added_tokens", "'<x>'", str(10**12))),
    Case("added id of 4*10**9", added(token("<x>", 4 * 10**9)), ("added_tokens", "'<x>'", str(4 * 10**9))),
    Case("configured id of 4*10**9", listed(str(4 * 10**9)), ("tokenizer_config.json", "'<x>'", str(4 * 10**9))),
    Case("configured id that is no number", listed("one"), ("tokenizer_config.json", "'one'")),
    Case("configured id of ten thousand digits", listed("9" * 10_000), ("tokenizer_config.json", "added_tokens_decoder")),
    Case("configured flag that is no flag", listed(str(NEXT), lstrip="yes"), ("tokenizer_config.json", "'<x>'", "lstrip")),
    Case("an id that is a string", vocab(a="66"), ("model.vocab", "'a'", "'66'")),
    Case("an id that is a fraction", vocab(a=66.5), ("model.vocab", "'a'", "66.5")),
    Case("an id that is true", vocab(a=True), ("model.vocab", "'a'", "True")),
    Case("template with an id that is no token", edited(lambda s: template(s, 99_999)), ("post_processor", "99999")),
    Case("template with an id of 4*10**9", edited(lambda s: template(s, 4 * 10**9)), ("post_processor", str(4 * 10**9))),
    Case("unk_id outside of a Unigram list", edited(lambda s: s["model"].update(unk_id=9999)), ("model.unk_id",), "unigram"),
    Case("negative unk_id", edited(lambda s: s["model"].update(unk_id=-1)), ("tokenizer.json",), "unigram"),
    Case("token beyond the embedding", lambda f: (vocab(zzz=NEXT)(f)), ("409", "'zzz'")),
    # vocabularies
    Case("empty vocabulary", edited(empty), ("model.vocab", "empty")),
    Case("empty Unigram list", edited(lambda s: (s["model"].update(vocab=[], unk_id=None), s.update(added_tokens=[]))), ("model.vocab", "empty"), "unigram"),
    Case("only control tokens", edited(all_control), ("control token",)),
    Case("only control tokens, Unigram", edited(all_pieces_control), ("control token",), "unigram"),
    Case("merges of unknown tokens", edited(lambda s: s["model"]["merges"].append(["q", "zz"])), ("model.merges", "zz")),
    Case("merges of unknown tokens, older form", edited(lambda s: s["model"].update(merges=["q zz"])), ("model.merges", "zz")),
    Case("merges that are no pairs", edited(lambda s: s["model"].update(merges=[["a"]])), ("tokenizer.json",)),
    Case("merges missing", edited(lambda s: s["model"].pop("merges")), ("tokenizer.json",)),
    Case("vocab missing", edited(lambda s: s["model"].pop("vocab")), ("tokenizer.json", "model.vocab")),
    Case("vocab a number", edited(lambda s: s["model"].update(vocab=7)), ("tokenizer.json", "model.vocab")),
    Case("vocab a list of strings", edited(lambda s: s["model"].update(vocab=["a", "b"])), ("tokenizer.json", "model.vocab"), "unigram"),
    Case("Unigram score not a number", edited(lambda s: s["model"]["vocab"].append(["zzz", None])), ("tokenizer.json",), "unigram"),
    Case("Unigram score infinite", edited(lambda s: s["model"]["vocab"].append(["zzz", float("inf")])), ("tokenizer.json",), "unigram"),
    Case("added token of a number", edited(lambda s: s["added_tokens"].append(7)), ("added_tokens",)),
    Case("added_tokens an object", edited(lambda s: s.update(added_tokens={})), ("added_tokens",)),
    Case("model a list", edited(lambda s: s.update(model=[])), ("tokenizer.json", "model")),
    Case("model of an unknown type", edited(lambda s: s["model"].update(type="Mystery")), ("tokenizer.json",)),
    Case("broken precompiled map", normalized({"type": "Precompiled", "precompiled_charsmap": "AAAA"}), ("tokenizer.json",)),
    Case("precompiled map that points nowhere", normalized({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}), ("tokenizer.json",)),
    # patterns
    Case("(a+)+$ in Split", split("(a+)+$"), ("pre_tokenizer", "(a+)+$")),
    Case("(x|x)*y in Split", split("(x|x)*y"), ("pre_tokenizer", "(x|x)*y")),
    Case("lookahead over nested quantifiers in Split", split(r"(?=(\w+\s?)+!)\S"), ("pre_tokenizer", r"(?=(\w+\s?)+!)\S")),
    Case(r"(\p{L}*)*\d in Split", split(r"(\p{L}*)*\d"), ("pre_tokenizer", r"(\p{L}*)*\d")),
    Case("back reference in Split", split(r"(.*)(.*)(.*)\1\2\3#"), ("pre_tokenizer",)),
    Case("cubic pattern in Split", split(r"\s*\s*\s*\s*q"), ("pre_tokenizer", "q")),
    Case("(a+)+$ in a Replace normalizer", normalized(replace({"Regex": "(a+)+$"}, " ")), ("normalizer", "(a+)+$")),
    Case("(0|0)*1 in a Replace normalizer", normalized(replace({"Regex": "(0|0)*1"}, " ")), ("normalizer", "(0|0)*1")),
    Case("(a+)+$ in a Replace decoder", decoded({"type": "ByteLevel"}, replace({"Regex": "(a+)+$"}, " ")), ("decoder",)),
    Case("a Split decoder", decoded({"type": "Split", "pattern": {"Regex": "(a+)+$"}}), ("tokenizer.json",)),
    Case("unbalanced pattern", split("(a"), ("pre_tokenizer", "(a")),
    Case("pattern of a megabyte", split("(a|b)" * 200_000), ("pre_tokenizer", "pattern")),
    Case("pattern nested ten thousand deep", split("(" * 10_000 + "a" + ")" * 10_000), ("pre_tokenizer", "pattern")),
    Case("pattern with large counts", split("((a{1,99999}){1,99999}){1,99999}b"), ("pre_tokenizer", "99999")),
    Case("a normalizer that doubles 48 times", normalized(*BOMB), ("normalizer",)),
    Case("a decoder that doubles 48 times", decoded(*BOMB), ("decoder",)),
    # files
    Case("500 MB", huge, ("tokenizer.json", "500,000,000 bytes")),
    Case("10,000 brackets", replaced("[" * 10_000), ("tokenizer.json",)),
    Case("10,000 balanced brackets", replaced("[" * 10_000 + "]" * 10_000), ("tokenizer.json",)),
    Case("10,000 objects", replaced('{"model":' * 10_000 + "1" + "}" * 10_000), ("tokenizer.json",)),
    Case("not JSON", replaced("model: BPE"), ("tokenizer.json", "JSON")),
    Case("empty file", replaced(""), ("tokenizer.json", "JSON")),
    Case("not UTF-8", replaced(b'{"\xff": 1}'), ("tokenizer.json",)),
    Case("NaN", replaced('{"model": NaN}'), ("tokenizer.json",)),
    Case("JSON of another shape", replaced('{"weights": [1, 2, 3]}'), ("tokenizer.json", "model")),
    Case("a JSON list", replaced("[]"), ("tokenizer.json", "expected an object")),
    Case("a key twice", replaced('{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}'), ("tokenizer.json", "'a'", "twice")),
    Case("a JSON number of 100,000 digits", replaced('{"model": ' + "9" * 100_000 + "}"), ("tokenizer.json",)),
    Case("a lone surrogate", replaced('{"model": {"type": "BPE", "vocab": {"\\ud800": 0}, "merges": []}}'), ("tokenizer.json",)),
    Case("tokenizer.json is a FIFO", pipe("tokenizer.json"), ("tokenizer.json", "no regular file")),
    Case("tokenizer_config.json is a FIFO", pipe("tokenizer_config.json"), ("tokenizer_config.json", "no regular file")),
    Case("special_tokens_map.json is a FIFO", pipe("special_tokens_map.json"), ("special_tokens_map.json", "no regular file")),
    Case("chat_template.jinja is a FIFO", pipe("chat_template.jinja"), ("chat_template.jinja", "no regular file")),
    Case("generation_config.json is a FIFO", pipe("generation_config.json"), ("generation_config.json", "no regular file")),
    Case("tokenizer.json is a device", linked_to("tokenizer.json", "/dev/zero"), ("tokenizer.json",)),
    Case("tokenizer.json is a folder", lambda f: ((f / "tokenizer.json").unlink(), (f / "tokenizer.json").mkdir()), ("tokenizer.json", "no regular file")),
    Case("tokenizer.json is a link out of the folder", linked("tokenizer.json"), ("tokenizer.json", "outside its folder")),
    Case("tokenizer_config.json is a link out of the folder", linked("tokenizer_config.json"), ("tokenizer_config.json", "outside its folder")),
    Case("a link to itself", linked_to("tokenizer.json", "tokenizer.json"), ("tokenizer.json",)),
    Case("a link to nothing", linked_to("tokenizer.json", "nothing.json"), ("tokenizer.json",)),
    Case("tokenizer_config.json of 10,000 brackets", lambda f: (f / "tokenizer_config.json").write_text("[" * 10_000), ("tokenizer_config.json",)),
    Case("added_tokens_decoder a list", configured(added_tokens_decoder=[1]), ("tokenizer_config.json", "added_tokens_decoder")),
)  # fmt: skip
