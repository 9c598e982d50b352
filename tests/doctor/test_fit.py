import pytest

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.dtw import Dtw
from lmfuse.align.join import Join
from lmfuse.catalogue import FAMILIES
from lmfuse.doctor.axis import Axis
from lmfuse.doctor.fit import COVERAGE, fit, spread
from lmfuse.types import Document
from tests.doctor.build import ODD, documents, tokenizer
from tests.fakes import TEXT


def test_every_alignment_has_a_coverage():
    members = next(family.members for family in FAMILIES if family.key == "align")
    assert set(COVERAGE) == set(members), "say in doctor/fit.py what a plan can tell of a new method's coverage"


def test_a_method_is_judged_by_what_it_teaches():
    sides = tokenizer("byte_bpe"), tokenizer("metaspace_bpe")
    texts = documents(*TEXT)
    axis = Axis.of(texts, *sides)
    law, join, dtw = (fit("a", method, texts, *sides).coverage for method in (ByteLaw(), Join(), Dtw()))
    assert (law, join) == (axis.lawful.mean(), axis.joined.mean())
    assert law > join
    assert 0 < dtw < 1


def test_masked_bytes_count_both_sides():
    found = fit("a", ByteLaw(), documents("The Cat"), tokenizer("byte_bpe"), tokenizer("wordpiece"))
    turned = fit("a", ByteLaw(), documents("The Cat"), tokenizer("wordpiece"), tokenizer("byte_bpe"))
    assert found.masked == turned.masked > 0
    assert "windows" in found.sentence


def test_the_same_tokenizer_fits():
    found = fit("a", ByteLaw(), documents(*ODD), tokenizer("byte_bpe"), tokenizer("byte_bpe"))
    assert (found.coverage, found.masked, found.shared_vocabulary, found.documents) == (1.0, 0.0, 1.0, len(ODD))


@pytest.mark.parametrize(("count", "num_bytes"), [(3, 10**6), (100, 25), (1, 1), (1000, 10**6)])
def test_a_sample_is_bounded_and_spread(count, num_bytes):
    texts = [Document.plain(f"{n:010d}") for n in range(100)]
    found = spread(texts, count, num_bytes)
    assert 1 <= len(found) <= count
    assert len(found) == 1 or sum(len(document.trained_bytes) for document in found) <= num_bytes
    if len(found) > 1 and count < 100:
        assert found[-1] is not texts[len(found) - 1], "not the first documents"
