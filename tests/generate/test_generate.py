"""Several models write one text: what must hold whoever they are."""

import numpy as np
import pytest

from lmfuse import generate
from lmfuse.decode.cool import Cool
from lmfuse.decode.cool_rerank import CoolRerank
from lmfuse.decode.rerank import Rerank
from lmfuse.decode.safe import Safe
from lmfuse.decode.unite import Unite
from lmfuse.errors import InputError
from lmfuse.generate import FusedWriter, segments
from lmfuse.writing import Finish, Passage, Writer, WritingSettings
from tests.generate.build import WatchedCrew, greedy_ids, run, small_model
from tests.generate.table_models import START, table_model

KINDS = ("byte_bpe", "metaspace_bpe", "unigram")
PROMPTS = ("The quick brown fox", "Anna has 12 apples", "naïve café – 東京 🙂", "def add(a, b):\n    return", "")


def ids_of(text_ids, model):
    ends = set(model.tokenizer.vocabulary.control.values())
    return [token_id for token_id in text_ids if token_id not in ends]


@pytest.fixture
def watched(monkeypatch):
    """Every crew is kept, and checked after every commit."""
    commit = segments.commit

    def checked(crew, text):
        commit(crew, text)
        crew.check()

    monkeypatch.setattr(generate, "Crew", WatchedCrew)
    monkeypatch.setattr(segments, "commit", checked)
    return WatchedCrew


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_one_model_writes_what_its_own_generate_writes(kind, prompt, watched):
    model = small_model(kind)
    writer = FusedWriter([model])
    expected = ids_of(greedy_ids(model, prompt, 40), model)
    run(writer, prompt, max_tokens=40)
    session = watched.last.sessions[0]
    found = session.ids[session.num_prompt :]
    assert found[:40] == expected[: len(found)]  # a character that the limit cuts is left out, or read to its end and not shown
    assert len(found) >= len(expected) - 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [Cool(), Cool(length=4), Rerank(), CoolRerank(), Safe()])
def test_identical_models_write_what_one_writes(kind, method, watched):
    model = small_model(kind)
    alone, _, end = run(FusedWriter([model]), PROMPTS[0], max_tokens=40)
    text, passages, finish = run(FusedWriter([model] * 3, method=method), PROMPTS[0], max_tokens=40)
    assert (text, finish.reason) == (alone, end.reason)
    assert {passage.author for passage in passages} <= {"model-1", "fused"}
    assert all(not passage.scores for passage in passages)  # nothing was judged


@pytest.mark.parametrize(
    "method", [Cool(), Cool(aligned=False), Cool(length=5, score="nats_per_byte"), Cool(segment="sentence", score="rank")]
)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_three_tokenizers_share_one_text(method, prompt, watched):
    writer = FusedWriter([small_model(kind, seed) for seed, kind in enumerate(KINDS)], KINDS, method)
    text, passages, finish = run(writer, prompt, max_bytes=120)
    assert len(text.encode()) <= 120
    assert finish.usage.prompt_bytes == len(prompt.encode())
    assert all(
        passage.author == min(passage.scores, key=passage.scores.get) for passage in passages if len(set(passage.scores.values())) > 2
    )
    assert set(finish.usage.tokens) == set(KINDS)


@pytest.mark.parametrize("method", [Rerank(), CoolRerank()])
def test_whole_answers_are_judged_by_all(method, watched):
    models = [small_model(kind, seed) for seed, kind in enumerate(KINDS)]
    text, passages, _ = run(FusedWriter(models, KINDS, method), PROMPTS[0], max_bytes=60)
    alone = [run(FusedWriter([model]), PROMPTS[0], max_bytes=60)[0] for model in models]
    fused = run(FusedWriter(models, KINDS, Cool()), PROMPTS[0], max_bytes=60)[0]
    candidates = {**dict(zip(alone, KINDS, strict=True)), **({fused: "fused"} if isinstance(method, CoolRerank) else {})}
    assert text in candidates
    if candidates[text] != "fused":
        assert {passage.author for passage in passages} == {candidates[text]}
        assert passages[0].scores[candidates[text]] == min(passages[0].scores.values())


def test_sampled_text_depends_on_the_seed_alone(watched):
    models = [small_model(kind, seed) for seed, kind in enumerate(KINDS)]
    texts = [run(FusedWriter(models), PROMPTS[0], max_bytes=80, temperature=1.0, seed=seed)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_scores_by_hand():
    # both continue " a"; A wants " b" (1/2), B wants " c" (3/4)
    a = table_model({START: {" a": 1.0}, " a": {" b": 0.5, " c": 0.25}, " b": {}, " c": {}})
    b = table_model({START: {" a": 1.0}, " a": {" b": 0.125, " c": 0.75}, " b": {}, " c": {}})
    text, passages, finish = run(FusedWriter([a, b], ("A", "B")), "")
    assert (text, finish.reason) == (" a c", "stop")
    assert passages[0] == Passage(" a", "A", {}, {"A": " a", "B": " a"})
    assert passages[1].author == "B"
    assert passages[1].candidates == {"A": " b", "B": " c"}
    assert passages[1].scores == pytest.approx({"A": (2 + 8) / 2, "B": (4 + 4 / 3) / 2}, rel=1e-5)
    assert dict(finish.usage.tokens) == {"A": 2, "B": 2}
    text, passages, _ = run(FusedWriter([a, b], ("A", "B"), Cool(weights=(3, 1))), "")
    assert passages[1].scores == pytest.approx({"A": (3 * 2 + 8) / 4, "B": (3 * 4 + 4 / 3) / 4}, rel=1e-5)


def test_the_end_is_a_candidate_of_its_own():
    ends = table_model({START: {" a": 1.0}, " a": {" b": 0.1}, " b": {}})  # the end: 0.9
    goes_on = table_model({START: {" a": 1.0}, " a": {" b": 0.5}, " b": {}})  # a tie: " b" comes first
    text, passages, finish = run(FusedWriter([goes_on, ends], ("G", "E")), "")
    assert (text, finish.reason) == (" a", "stop")  # (2 + 10/9) / 2 against (2 + 10) / 2
    sure = table_model({START: {" a": 1.0}, " a": {" b": 0.95}, " b": {}})
    text, passages, _ = run(FusedWriter([sure, ends], ("S", "E"), Cool(weights=(9, 1))), "")
    assert text == " a b"  # (9 * 1.05 + 10) / 10 against (9 * 20 + 1.1) / 10
    assert passages[1].scores == pytest.approx({"S": (9 / 0.95 + 10) / 10, "E": (9 / 0.05 + 1 / 0.9) / 10}, rel=1e-4)
    assert passages[1].candidates == {"S": " b", "E": ""}


def test_judges_count_their_own_tokens():
    # B writes " tea" as " te" + "a": sqrt of 1/4 * 1/4 in its own tokens
    a = table_model({START: {" tea": 0.5, " gin": 0.25}})
    b = table_model({START: {" te": 0.25, " gin": 0.75}, " te": {"a": 0.25}, " gin": {}})
    _, passages, _ = run(FusedWriter([a, b], ("A", "B")), "")
    assert passages[0].scores == pytest.approx({"A": (2 + 4) / 2, "B": (4 + 4 / 3) / 2}, rel=1e-5)
    _, passages, _ = run(FusedWriter([a, b], ("A", "B"), Cool(score="nats_per_byte")), "")
    assert passages[0].scores == pytest.approx({"A": np.log(2 * 16) / 8, "B": np.log(4 * 4 / 3) / 8}, rel=1e-5)


def test_ties_stay_with_the_last_author():
    a = table_model({START: {" a": 0.6, " b": 0.4}, " a": {}, " b": {" c": 0.5, " d": 0.4}, " c": {}, " d": {}})
    b = table_model({START: {" a": 0.1, " b": 0.9}, " a": {}, " b": {" c": 0.4, " d": 0.5}, " c": {}, " d": {}})
    text, passages, _ = run(FusedWriter([a, b], ("A", "B")), "")
    assert [passage.author for passage in passages[:2]] == ["B", "B"]
    assert text.startswith(" b d")


def test_rerank_by_hand():
    # whole answers: A writes " a b" (1/2 * 1/2), B writes " c" (3/4), each then ends
    a = table_model({START: {" a": 0.5, " c": 0.3}, " a": {" b": 0.5, " c": 0.1}, " b": {}, " c": {}})
    b = table_model({START: {" a": 0.125, " c": 0.75}, " a": {" b": 0.125}, " b": {}, " c": {}})
    text, passages, finish = run(FusedWriter([a, b], ("A", "B"), Rerank()), "")
    assert (text, finish.reason, len(passages)) == (" c", "stop", 1)
    assert passages[0].scores == pytest.approx({"A": (2 + 8) / 2, "B": (1 / 0.3 + 4 / 3) / 2}, rel=1e-5)
    assert passages[0].candidates == {"A": " a b", "B": " c"}


def test_cool_rerank_prefers_what_they_wrote_together_where_it_is_better():
    # alone A writes " a x", B writes " b y"; together " a" (A sure), then " y" (B sure)
    a = table_model({START: {" a": 0.9, " b": 0.05}, " a": {" x": 0.4, " y": 0.35}, " b": {" x": 0.5, " y": 0.4}, " x": {}, " y": {}})
    b = table_model({START: {" a": 0.45, " b": 0.55}, " a": {" y": 0.95, " x": 0.01}, " b": {" y": 0.9}, " x": {}, " y": {}})
    text, passages, finish = run(FusedWriter([a, b], ("A", "B"), CoolRerank()), "")
    assert (text, finish.reason) == (" a y", "stop")
    assert [(passage.text, passage.author) for passage in passages] == [(" a", "A"), (" y", "B")]


@pytest.mark.parametrize("method", [Cool(), Rerank(), CoolRerank()])
def test_limits_and_stop_strings(method):
    words = {START: {" one": 1.0}, " one": {" two": 1.0}, " two": {" three": 1.0}, " three": {" one": 1.0}}
    writer = FusedWriter([table_model(words), table_model(words, more=(" tw",))], method=method)
    text, _, finish = run(writer, "", max_bytes=12)
    assert (text, finish.reason) == (" one two thr", "length")
    text, _, finish = run(writer, "", stop=("ee o", "zzz"))
    assert (text, finish.reason) == (" one two thr", "stop")
    text, _, finish = run(writer, "", max_tokens=5)
    assert (text, finish.reason, finish.usage.tokens["model-1"]) == (" one two three one two", "length", 5)
    text, _, finish = run(writer, "")  # up to the context of 64 tokens
    assert finish.reason == "length"
    assert 55 <= finish.usage.tokens["model-1"] <= 63


LONG = [Cool(segment="sentence"), Cool(segment="paragraph"), Cool(segment="answer")]


@pytest.mark.parametrize("method", LONG, ids=lambda method: method.segment)
def test_long_segments_end_where_the_text_has_to(method, watched):
    models = [small_model(kind, seed, ends=False) for seed, kind in enumerate(KINDS)]
    writer = FusedWriter(models, KINDS, method)
    text, _, finish = run(writer, PROMPTS[1], max_bytes=20)
    assert (18 <= len(text.encode()) <= 20, finish.reason) == (True, "length")
    assert sum(session.reader.tokens_read for session in watched.last.sessions) < 300
    stop = next(character for character in text[5:] if character not in text[:5])
    text, _, finish = run(writer, PROMPTS[1], max_bytes=100, stop=(stop,))  # proposals that end earlier may have another winner
    assert stop not in text
    assert finish.reason == "stop" or len(text.encode()) >= 97
    alone = FusedWriter(models[:1], list(KINDS)[:1], method)
    whole = run(alone, PROMPTS[1], max_bytes=100)[0]
    stop = next(character for character in whole[5:] if character not in whole[:5])
    text, _, finish = run(alone, PROMPTS[1], max_bytes=100, stop=(stop,))
    assert (text, finish.reason) == (whole[: whole.index(stop)], "stop")
    assert sum(session.reader.tokens_read for session in watched.last.sessions) < 900
    text, _, finish = run(writer, PROMPTS[1], max_tokens=9)
    assert (finish.usage.tokens["byte_bpe"] in (8, 9), finish.reason) == (True, "length")


def test_a_stop_string_that_begins_in_the_segment_before_ends_the_next():
    words = {START: {" one": 1.0}, " one": {" two": 1.0}, " two": {" one": 1.0}}
    writer = FusedWriter([table_model(words)] * 2, method=Cool(segment="paragraph", max_segment_tokens=1))
    text, _, finish = run(writer, "", stop=("e two o",))
    assert (text, finish.reason) == (" on", "stop")


@pytest.mark.parametrize("method", [*LONG, Rerank(), CoolRerank(segment="answer")])
def test_models_with_different_contexts_write_up_to_the_smallest(method, watched):
    models = [small_model(kind, seed, 512 if seed == 0 else 40, ends=False) for seed, kind in enumerate(KINDS)]
    text, _, finish = run(FusedWriter(models, KINDS, method), PROMPTS[1])
    assert finish.reason == "length"
    assert all(len(session.ids) <= session.model.context for session in watched.last.sessions)
    assert len(text.encode()) >= 15
    fullest = max(len(session.ids) / session.model.context for session in watched.last.sessions)
    assert fullest > 0.5


@pytest.mark.parametrize("method", [Rerank(), CoolRerank(), Cool(segment="answer")])
def test_an_answer_that_another_cannot_hold_is_cut_and_not_dropped(method):
    # A is sure of a long answer, B's context holds four tokens of it; B's own answer is bad
    a = table_model({START: {" a": 0.97, " x": 0.01}, " a": {" a": 1.0}, " x": {}})
    b = table_model({START: {" x": 0.5, " a": 0.45}, " a": {" a": 1.0}, " x": {}}, context=5)
    text, passages, finish = run(FusedWriter([a, b], ("A", "B"), method), "")
    assert (text, finish.reason) == (" a a a a", "length")
    if isinstance(method, Rerank):
        assert passages[0].candidates == {"A": " a a a a", "B": " x"}


@pytest.mark.parametrize("method", [Rerank(), CoolRerank(), Safe(), Cool(), *LONG])
def test_the_reference_models_tokens_are_counted_exactly(method):
    models = [small_model(kind, seed) for seed, kind in enumerate(KINDS)]
    for seed in range(3):
        for most in (1, 2, 3, 5, 8):
            settings = {"max_tokens": most, "max_bytes": 300, "temperature": 1.0, "seed": seed}
            _, _, finish = run(FusedWriter(models, KINDS, method), "Anna has 12", **settings)
            assert finish.usage.tokens["byte_bpe"] <= most


@pytest.mark.parametrize("method", [Rerank(), CoolRerank()])
def test_an_empty_answer_is_left_out_unless_all_are(method):
    # A ends at once (0.6), which both find likelier than anything that B says
    a = table_model({START: {" one": 0.4}, " one": {" two": 0.5}, " two": {" one": 0.1}})
    b = table_model({START: {" one": 0.55}, " one": {" two": 0.6}, " two": {" one": 0.1}})
    text, passages, finish = run(FusedWriter([a, b], ("A", "B"), method), "")
    assert (text, finish.reason) == (" one two", "stop")
    assert {passage.author for passage in passages} == {"B"}
    text, _, finish = run(FusedWriter([a, a], method=method), "")
    assert (text, finish.reason) == ("", "stop")
    newline = table_model({START: {"\n": 0.9}, "\n": {" one": 0.5}, " one": {" two": 0.9}, " two": {}})
    text, passages, _ = run(FusedWriter([newline, b], ("A", "B"), method), "", stop=("\n",))  # empty by a stop string
    assert text == " one two"


def test_the_fused_answer_has_the_scores_of_answers():
    a = table_model({START: {" a": 0.9, " b": 0.05}, " a": {" x": 0.4, " y": 0.35}, " b": {" x": 0.5, " y": 0.4}, " x": {}, " y": {}})
    b = table_model({START: {" a": 0.45, " b": 0.55}, " a": {" y": 0.95, " x": 0.01}, " b": {" y": 0.9}, " x": {}, " y": {}})
    _, passages, _ = run(FusedWriter([a, b], ("A", "B"), CoolRerank()), "")
    assert passages[0].candidates == {"A": " a x", "B": " b y", "fused": " a y"}
    together = ((0.9 * 0.35) ** -0.5 + (0.45 * 0.95) ** -0.5) / 2
    alone = ((0.9 * 0.4) ** -0.5 + (0.45 * 0.01) ** -0.5) / 2
    other = ((0.05 * 0.4) ** -0.5 + (0.55 * 0.9) ** -0.5) / 2
    assert passages[0].scores == pytest.approx({"A": alone, "B": other, "fused": together}, rel=1e-4)
    assert not passages[1].scores
    assert not passages[1].candidates


@pytest.mark.parametrize("method", [Cool(), Rerank(), CoolRerank(), Safe(threshold=1.0), Unite()])
def test_scores_and_candidates_belong_together(method):
    models = [small_model(kind, seed) for seed, kind in enumerate(KINDS)]
    _, passages, _ = run(FusedWriter(models, KINDS, method), PROMPTS[0], max_bytes=60)
    scored = [passage for passage in passages if passage.scores]
    assert scored
    for passage in scored:
        assert set(passage.scores) == set(passage.candidates)
        if not isinstance(method, CoolRerank):
            assert len({(passage.candidates[label], score) for label, score in passage.scores.items()}) == len(
                set(passage.candidates.values())
            )


def test_a_writer_that_nobody_waits_for_stops():
    words = {START: {" one": 1.0}, " one": {" one": 1.0}}
    for method in (Cool(), Rerank(), CoolRerank()):
        asked = []
        writer = FusedWriter([table_model(words)] * 2, method=method)
        found = list(writer.write("", WritingSettings(), lambda asked=asked: asked.append(0) or len(asked) > 9))
        assert not any(isinstance(each, Finish) for each in found)
        assert len(found) <= 9
        assert len(asked) <= 12
    assert list(writer.write("", WritingSettings(), lambda: True)) == []


def test_writers_are_writers():
    writer = FusedWriter([small_model()], ["solo"], name="one")
    assert isinstance(writer, Writer)
    assert (writer.name, writer.models) == ("one", ("solo",))


def test_wrong_input():
    model = small_model()
    with pytest.raises(InputError, match="0 models"):
        FusedWriter([])
    with pytest.raises(InputError, match="2 models with labels a, a"):
        FusedWriter([model, model], ["a", "a"])
    with pytest.raises(InputError, match="weights: 3 numbers for 2 models"):
        FusedWriter([model, model], method=Cool(weights=(1, 1, 1)))
    long = "word " * 600
    with pytest.raises(InputError, match=r"the prompt has [\d,]+ tokens, model-1 reads at most 512"):
        list(FusedWriter([model]).write(long, WritingSettings(), lambda: False))
