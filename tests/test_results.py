import math

import pytest

from lmfuse.errors import VerificationError
from lmfuse.release import comparisons_of_interest
from lmfuse.results import RunResults, mean_over_seeds, nats_per_byte_by_domain, read_scores, write_scores
from lmfuse.types import DocumentScore

SCORES = [DocumentScore("1", "code", 4.0, 8), DocumentScore("2", "code", 2.0, 4), DocumentScore("3", "prose", 3.0, 3)]


def test_scores_survive_the_disk(tmp_path):
    write_scores(tmp_path / "deep" / "scores.json", SCORES)
    assert read_scores(tmp_path / "deep" / "scores.json") == SCORES


@pytest.mark.parametrize("content", ["", "[]", '{"scores": [{"document": "1"}]}'])
def test_a_damaged_file_of_scores_is_refused(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(VerificationError, match="not a file of document scores"):
        read_scores(tmp_path / "scores.json")


def test_domains_are_sums_over_sums():
    assert nats_per_byte_by_domain(SCORES) == {"code": pytest.approx(0.5), "prose": pytest.approx(1.0)}


def test_seeds_are_averaged_document_by_document():
    other = [DocumentScore(s.document, s.domain, s.nll_nats + 2, s.num_bytes) for s in SCORES]
    assert [s.nll_nats for s in mean_over_seeds([SCORES, other])] == [5.0, 3.0, 4.0]


def test_a_report_is_bits_per_byte_and_paired_intervals():
    better = [DocumentScore(s.document, s.domain, s.nll_nats / 2, s.num_bytes) for s in SCORES]
    report = RunResults(scores={"clm": SCORES, "fused": better}).report([("fused", "clm"), ("fused", "absent")], samples=200, seed=0)
    assert report["arms"]["clm"]["macro"] == pytest.approx(0.75 / math.log(2))
    assert [c["domain"] for c in report["comparisons"]] == ["code", "prose", "macro"]
    assert report["comparisons"][-1]["mean"] == pytest.approx(-0.375 / math.log(2))


def test_no_arm_is_compared_with_itself():
    for result in ("fused", "clm", "self", "paper"):
        pairs = comparisons_of_interest(["clm", "self", "fused", "paper"], ["a"], result)
        assert len(set(pairs)) == len(pairs)
        assert all(a != b for a, b in pairs)
