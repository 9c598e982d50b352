"""One writes, the others check."""

import pytest

from lmfuse import generate
from lmfuse.decode.cool import Cool
from lmfuse.decode.safe import Safe
from lmfuse.generate import FusedWriter, checked, segments
from lmfuse.writing import Finish, WritingSettings
from tests.generate.build import WatchedCrew, run, small_model
from tests.generate.table_models import START, table_model

KINDS = ("byte_bpe", "metaspace_bpe", "unigram")


def test_fused_only_where_they_differ():
    # the writer goes " a b c"; the checker shares " a", but wants " x" in place of " b"
    writes = table_model({START: {" a": 0.9}, " a": {" b": 0.5, " x": 0.4}, " b": {" c": 1.0}, " x": {" c": 1.0}, " c": {}})
    checks = table_model({START: {" a": 0.8}, " a": {" b": 0.1, " x": 0.9}, " b": {" c": 1.0}, " x": {" c": 1.0}, " c": {}})
    text, passages, finish = run(FusedWriter([writes, checks], ("W", "C"), Safe()), "")
    assert (text, finish.reason) == (" a x c", "stop")
    assert [(each.text, each.author, bool(each.scores)) for each in passages] == [(" a", "W", False), (" x", "C", True), (" c", "W", False)]
    assert passages[1].scores == pytest.approx({"W": (2 + 10) / 2, "C": (1 / 0.4 + 1 / 0.9) / 2}, rel=1e-4)
    assert run(FusedWriter([writes, checks], ("W", "C"), Safe(threshold=0.05)), "")[0] == " a b c"


def test_a_word_that_the_checker_would_write_itself_is_not_doubted():
    # the checker gives " b" no more than 0.3, but nothing more than that
    writes = table_model({START: {" b": 0.9}, " b": {" c": 0.9}, " c": {}})
    checks = table_model({START: {" b": 0.3, " x": 0.29, " y": 0.28}, " b": {" c": 0.9}, " c": {}, " x": {}, " y": {}})
    _, passages, _ = run(FusedWriter([writes, checks], ("W", "C"), Safe(threshold=0.9)), "")
    assert [(each.text, each.author, dict(each.candidates)) for each in passages] == [(" b c", "W", {})]


def test_a_checker_without_weight_doubts_nothing():
    writes = table_model({START: {" a": 0.9}, " a": {" b": 0.9}, " b": {}, " x": {}})
    doubts = table_model({START: {" x": 0.9, " a": 0.1}, " a": {" b": 0.9}, " b": {}, " x": {}})
    assert run(FusedWriter([writes, doubts], method=Safe(weights=(1, 0))), "")[0] == " a b"
    assert len(run(FusedWriter([writes, doubts], method=Safe(weights=(1, 0))), "")[1]) == 1


@pytest.mark.parametrize("threshold", [0.0, 0.02, 1.0])
def test_three_tokenizers_share_one_text(threshold, monkeypatch):
    commit = segments.commit
    monkeypatch.setattr(generate, "Crew", WatchedCrew)
    for module in (segments, checked):
        monkeypatch.setattr(module, "commit", lambda crew, text: (commit(crew, text), crew.check()))
    models = [small_model(kind, seed, ends=False) for seed, kind in enumerate(KINDS)]
    text, passages, _ = run(FusedWriter(models, KINDS, Safe(threshold=threshold, words=3)), "The quick", max_bytes=80)
    assert len(text.encode()) > 70
    if threshold == 1.0:  # everything is doubted: that is Cool
        assert text == run(FusedWriter(models, KINDS, Cool()), "The quick", max_bytes=80)[0]
    assert {each.author for each in passages if not each.scores and not each.candidates} <= {"byte_bpe"}


def test_who_is_never_doubted_writes_what_it_writes_alone():
    models = [small_model("byte_bpe", ends=False), small_model("byte_bpe", 1, ends=False)]
    alone = run(FusedWriter(models[:1]), "The quick", max_tokens=30)[0]
    text, passages, _ = run(FusedWriter(models, ("w", "c"), Safe(threshold=0.0)), "The quick", max_tokens=30)
    assert text == alone
    assert {each.author for each in passages} == {"w"}


def test_one_model_and_limits():
    model = small_model()
    assert (
        run(FusedWriter([model], method=Safe()), "The quick", max_tokens=20)[0] == run(FusedWriter([model]), "The quick", max_tokens=20)[0]
    )
    words = {START: {" one": 1.0}, " one": {" two": 1.0}, " two": {" one": 1.0}}
    writer = FusedWriter([table_model(words)] * 2, method=Safe(words=3))
    text, _, finish = run(writer, "", max_tokens=5)
    assert (text, finish.reason) == (" one two one two one", "length")
    assert run(writer, "", stop=("wo o",))[0] == " one t"
    assert run(writer, "")[2].reason == "length"
    asked = []
    assert not any(isinstance(each, Finish) for each in writer.write("", WritingSettings(), lambda: asked.append(0) or len(asked) > 5))
