"""Pairs of tokenizers in the cache: every map by name, what a corpus is needed for, and where control tokens go."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from lmfuse.align.dtw import Dtw
from lmfuse.align.join import Join, MapName
from lmfuse.artefacts import read_manifest
from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import InputError
from lmfuse.pairs import COUNTED_MAPS, MAPS, load_pair, map_wanted
from lmfuse.pipeline import Pipeline
from lmfuse.types import Document, Vocabulary, VocabularyMap
from tests import runs
from tests.align.test_pair import random_rows
from tests.chat_templates import load, talk
from tests.fakes import TEXT, byte_bpe, metaspace_bpe, unigram

CORPUS = [Document.plain(line) for line in TEXT] + [Document.plain("".join(TEXT))]
PARITY = {"min_ed_strings", "co_occurrence_released"}  # as published: text may end up on a control token
CONTROL = {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>", "start": "<start>", "end_of_turn": "<end_of_turn>"}


class Named(ByteTokenizer):
    """A real tokenizer with one more token for each class of control tokens, and text that spells them."""

    def __init__(self, tokenizer: Tokenizer, names: list[str]) -> None:
        super().__init__(tokenizer, {}, "none")
        own = self.vocabulary
        added = [CONTROL[name].encode() for name in names]  # text that spells a control token stays text
        tokens = [own.bytes_of(n) for n in range(own.size)] + added + [b""] * len(names)
        strings = [*own.strings, *(f"text {text.decode()}" for text in added), *(CONTROL[name] for name in names)]
        control = {name: own.size + len(names) + n for n, name in enumerate(names)}
        self.vocabulary = Vocabulary.from_tokens(tokens, strings=strings, control=control)


def tokenizers() -> tuple[ByteTokenizer, ByteTokenizer]:
    return ByteTokenizer.from_tokenizer(metaspace_bpe()), ByteTokenizer.from_tokenizer(byte_bpe())


def tokens_of(pair) -> VocabularyMap:
    assert pair.tokens is not None
    return pair.tokens


def method_of(name: str) -> object:
    return Dtw() if name == "min_ed_strings" else Join(map=name)


@pytest.mark.parametrize("name", [*MAPS, *COUNTED_MAPS])
def test_every_map_is_built_once_and_read_back(name, tmp_path, monkeypatch):
    source, target = tokenizers()
    assert map_wanted(method_of(name)) == name
    first = tokens_of(load_pair(source, target, tmp_path, method_of(name), CORPUS))
    assert first.method == name
    assert first.coverage > (0.1 if name == "co_occurrence_released" else 0.5)  # no token for the unknown here
    monkeypatch.setattr("lmfuse.pairs._counted_map", None)
    monkeypatch.setattr("lmfuse.pairs.MAPS", dict.fromkeys(MAPS))
    again = tokens_of(load_pair(source, target, tmp_path, method_of(name), CORPUS))
    for array in ("indptr", "target_ids", "weights"):
        np.testing.assert_array_equal(getattr(first, array), getattr(again, array))


def test_every_name_a_join_may_take_has_a_maker():
    assert set(MapName.__args__) - {"none"} == {*MAPS, *COUNTED_MAPS} - {"min_ed_strings"}
    assert map_wanted(Join(map="none")) is None
    assert map_wanted(Dtw(accept="suffix", one_hot="next")) in COUNTED_MAPS
    assert map_wanted(Dtw(accept="equal")) is None


@pytest.mark.parametrize("name", [*MAPS, *COUNTED_MAPS])
def test_control_tokens_go_to_their_own_class_and_text_to_text(name, tmp_path):
    every = list(CONTROL)
    source, target = Named(metaspace_bpe(), every), Named(byte_bpe(), every)
    ours, theirs = target.vocabulary, source.vocabulary
    onto = tokens_of(load_pair(source, target, tmp_path, method_of(name), CORPUS))
    if name == "min_ed_strings":
        return  # strings are strings there: published, and said in its docstring
    single = onto.single()
    assert {control: int(single[theirs.control[control]]) for control in every} == dict(ours.control)
    from_control = theirs.lengths[np.repeat(np.arange(theirs.size), np.diff(onto.indptr))] == 0
    to_control = ours.lengths[onto.target_ids] == 0
    if name in PARITY:
        assert set(onto.target_ids[to_control & ~from_control]) <= {ours.control["unk"]}
    else:
        np.testing.assert_array_equal(from_control, to_control)


@pytest.mark.parametrize("name", sorted({*MAPS, *COUNTED_MAPS} - PARITY))
def test_a_class_that_the_target_lacks_is_unmapped(name, tmp_path):
    source, target = Named(metaspace_bpe(), list(CONTROL)), Named(byte_bpe(), ["eos", "unk"])
    single = tokens_of(load_pair(source, target, tmp_path, method_of(name), CORPUS)).single()
    found = {control: int(single[token_id]) for control, token_id in source.vocabulary.control.items()}
    assert found == {control: target.vocabulary.control.get(control, -1) for control in CONTROL}


def test_text_with_a_second_job_stays_text(tmp_path):
    """ "!" as padding token is text: it does not go to the target's padding token, nor does that go to text."""
    source, target = Named(metaspace_bpe(), ["pad"]), Named(byte_bpe(), ["pad"])
    comma = {t: next(n for n in range(t.vocabulary.size) if t.vocabulary.bytes_of(n) == b",") for t in (source, target)}
    for changed in (source, target):
        kept = changed.vocabulary
        changed.vocabulary = replace(kept, control={"pad": comma[changed]}, key=kept.key + "!")
        for name in ("exact", "pieces", "min_ed", "co_occurrence"):
            single = tokens_of(load_pair(source, target, tmp_path / str(changed is source), method_of(name), CORPUS)).single()
            assert single[comma[source]] == comma[target]
            if changed is target:
                assert single[source.vocabulary.control["pad"]] == -1
        changed.vocabulary = kept


TALKS = [talk(question.strip(), answer.strip()) for question, answer in zip(TEXT, reversed(TEXT), strict=True)]


@pytest.mark.parametrize(
    "families", [("mistral", "chatml"), ("chatml", "mistral"), ("llama2", "chatml"), ("chatml", "llama2")], ids="-".join
)
@pytest.mark.parametrize("name", [*MAPS, *COUNTED_MAPS])
def test_the_end_of_a_turn_goes_to_the_end_of_a_turn_and_nothing_else_does(name, families, tmp_path):
    """Its strings (`</s>`, `<|im_end|>`) have nothing in common, and llama2's template writes no single token there."""
    parts = zip(families, (metaspace_bpe(), byte_bpe()), strict=True)
    source, target = (load(tmp_path / family, tokenizer, family) for family, tokenizer in parts)
    onto = tokens_of(load_pair(source, target, tmp_path, method_of(name), TALKS))
    theirs, ours = (t.vocabulary.control["end_of_turn"] if f != "llama2" else -1 for t, f in zip((source, target), families, strict=True))
    from_ids = np.repeat(np.arange(source.vocabulary.size), np.diff(onto.indptr))
    assert set(from_ids[onto.target_ids == ours].tolist()) == ({theirs} if ours >= 0 and theirs >= 0 else set())
    if theirs >= 0:
        assert onto.single()[theirs] == ours


@pytest.mark.parametrize("corpus", [None, []])
@pytest.mark.parametrize("align", [*(Join(map=name) for name in COUNTED_MAPS), Dtw(accept="suffix", one_hot="next")])
def test_a_counted_map_without_a_corpus_is_refused(corpus, align, tmp_path):
    with pytest.raises(InputError, match="is counted over a corpus, got") as error:
        load_pair(*tokenizers(), tmp_path, align, corpus)
    assert "use a map that needs none: exact, first_piece" in error.value.hint


def test_the_corpus_is_part_of_the_key_and_its_order_is_not(tmp_path):
    source, target = tokenizers()
    folder = tmp_path / "maps"
    for corpus in (CORPUS, CORPUS[::-1]):
        load_pair(source, target, tmp_path, Join(map="co_occurrence"), corpus)
        assert len(list(folder.iterdir())) == 2  # the pair's tables and the map
    load_pair(source, target, tmp_path, Join(map="co_occurrence"), CORPUS[:3])
    assert len(list(folder.iterdir())) == 3
    for corpus in (CORPUS, None):
        load_pair(source, target, tmp_path, Join(map="pieces"), corpus)
        assert len(list(folder.iterdir())) == 4


def test_what_was_counted_and_what_fell_back_stands_in_the_manifest(tmp_path):
    source, target = tokenizers()
    load_pair(source, target, tmp_path, Join(map="co_occurrence"), CORPUS)
    manifests = [read_manifest(folder) for folder in (tmp_path / "maps").iterdir()]
    (counted,) = (m for m in manifests if m.provenance["what"] == "co_occurrence")
    ids = {name: n for name, n in counted.counters.items() if name.startswith("ids_")}
    assert sum(ids.values()) == source.vocabulary.size
    assert min(ids["ids_counted"], ids["ids_first_piece"]) > 0
    assert counted.counters["documents"] == len(CORPUS)
    assert counted.counters["pairs"] > sum(len(target.encode(document).ids) for document in CORPUS) / 2


def test_fusechats_alignment_of_a_document(tmp_path):
    """Strings, statistics and rows together: what is taught is taught by a source row or by the token itself."""
    source, target = ByteTokenizer.from_tokenizer(unigram()), ByteTokenizer.from_tokenizer(byte_bpe())
    method = Dtw(accept="suffix", one_hot="next")
    pair = load_pair(source, target, tmp_path, method, CORPUS)
    assert tokens_of(pair).method == "co_occurrence_released"
    rows = random_rows(np.random.default_rng(0), source.vocabulary, source.encode(CORPUS[0]))
    encoding = target.encode(CORPUS[0])
    alignment = method(rows, encoding, pair)
    assert (alignment.source_row >= 0).sum() > 2
    fallback = np.flatnonzero(alignment.one_hot)
    np.testing.assert_array_equal(alignment.topk.ids[fallback, 0], encoding.ids[fallback])


@pytest.mark.parametrize("name", ["co_occurrence", "co_occurrence_share", "pieces"])
def test_a_recipe_counts_over_its_training_documents(name, tmp_path):
    path = runs.lay_out(tmp_path, align={"name": "join", "map": name})
    with Pipeline.open(path, tmp_path / "out", tmp_path / "cache") as pipeline:
        stages = pipeline.stages
        job = replace(pipeline.job(pipeline.arms["clm"], 0), arm=pipeline.arms["fused"], teachers=("a",), held_out={}, to_beat={})
        found, _ = stages.survey(job)
        documents = stages.corpus.splits["train"]
    assert found["a"]["coverage"] > 0.3
    manifests = [json.loads(file.read_text()) for file in (tmp_path / "cache" / "maps").glob("*/manifest.json")]
    (made,) = (m for m in manifests if m["provenance"]["what"] == name)
    assert made["counters"].get("documents", len(documents)) == len(documents)
