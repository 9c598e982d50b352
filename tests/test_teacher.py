import numpy as np
import pytest

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.pair import build_pair
from lmfuse.fuse.avg_ce import AvgCE
from lmfuse.fuse.min_ce import MinCE
from lmfuse.teacher import RowTeacher, SourceRows, domains_where_better, survey
from lmfuse.types import Document, Encoding, Rows, TopK, Vocabulary

WORDS = Vocabulary.from_tokens([b"ab", b"cd", b"ef"])


class Tokenizer:
    """Two bytes a token."""

    def encode(self, document: Document) -> Encoding:
        ids = [[b"ab", b"cd", b"ef"].index(document.trained_bytes[i : i + 2]) for i in range(0, len(document.trained_bytes), 2)]
        starts = np.arange(len(ids)) * 2
        return Encoding(np.array(ids), starts, starts + 2)


def rows(document: Document, probability: float) -> Rows:
    """Return a source that gives each true token the same probability and the rest to the tail."""
    encoding = Tokenizer().encode(document)
    n = len(encoding.ids)
    topk = TopK(encoding.ids[:, None], np.full((n, 1), np.log(probability), np.float32), np.full(n, np.log1p(-probability), np.float32), 3)
    return Rows(encoding.starts, encoding.ends, encoding.ids, np.full(n, -np.log(probability), np.float32), topk)


def teacher(fuse, to_beat=None):
    """Return a teacher of two sources: the first is better on the text, the second on held-out text of its domain."""
    store = [{document.id: rows(document, p) for document in DOCUMENTS} for p in (0.9, 0.5)]
    pair = build_pair(WORDS, WORDS, lambda pieces: np.full(len(pieces), -1))
    held_out = [{"code": 0.4, "prose": 0.6}, {"code": 0.5, "prose": 0.3}]
    sources = tuple(SourceRows(name, s, pair, h) for name, s, h in zip("ab", store, held_out, strict=True))
    return RowTeacher(sources, ByteLaw(), fuse, to_beat or {})


DOCUMENTS = [Document.plain("abcd", "code"), Document.plain("efabcd", "prose"), Document.plain("abab", "prose")]


@pytest.mark.parametrize(("judge", "winners"), [("training_text", [0, 0, 0]), ("held_out", [0, 1, 1])])
def test_the_judge_decides_who_teaches(judge, winners):
    fusion = teacher(MinCE(judge=judge))
    found = [int(fusion(document, Tokenizer().encode(document)).winner[0]) for document in DOCUMENTS]
    assert found == winners


def test_nobody_teaches_where_plain_training_is_better():
    fusion = teacher(MinCE(), {"code": 0.1, "prose": 0.35})
    assert [bool(fusion(document, Tokenizer().encode(document)).taught.any()) for document in DOCUMENTS] == [False, True, True]


def test_the_published_unit_is_the_token():
    document = DOCUMENTS[0]
    assert teacher(MinCE(judge="training_text", unit="token")).scores(document) == pytest.approx([-np.log(0.9), -np.log(0.5)])
    assert teacher(MinCE(judge="training_text", unit="byte")).scores(document) == pytest.approx([-np.log(0.9) / 2, -np.log(0.5) / 2])


def test_a_blend_needs_no_score_to_beat():
    fused = teacher(AvgCE(), {"code": 0.1, "prose": 0.1})(DOCUMENTS[1], Tokenizer().encode(DOCUMENTS[1]))
    assert (fused.winner == -2).all()


def test_the_survey_counts_every_token_once():
    found, counters = survey(teacher(MinCE()), DOCUMENTS, Tokenizer())
    assert counters == {"tokens": 7, "tokens_untaught": 0}
    assert (found["a"].coverage, found["a"].win_rate) == (1.0, pytest.approx(2 / 7))
    assert (found["b"].one_hot, found["b"].win_rate) == (0.0, pytest.approx(5 / 7))


def test_an_unknown_domain_is_beaten_nowhere():
    assert domains_where_better({"code": 0.5}, {}) == []
