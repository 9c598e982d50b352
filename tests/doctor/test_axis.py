import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.chunks import Chunks
from lmfuse.align.pair import build_pair
from lmfuse.align.spans import join_on_bytes
from lmfuse.doctor.axis import KINDS, Axis
from lmfuse.doctor.samples import certain_rows
from tests.doctor.build import ODD, axis, documents, tokenizer, tokens
from tests.fakes import KINDS as TOKENIZERS
from tests.fakes import TEXT

PAIRS = [(target, source) for target in TOKENIZERS for source in TOKENIZERS]


def kinds(found):
    return [KINDS[kind] for kind in found.kind]


def test_spans_by_hand():
    """hel|lo| world over hello| wor|ld."""
    found = axis(b"hello world", tokens((0, 3), (3, 5), (5, 11)), tokens((0, 5), (5, 9), (9, 11)))
    assert (found.spans.start.tolist(), found.spans.end.tolist(), kinds(found.spans)) == ([0, 5], [5, 11], ["n:1", "1:n"])
    assert (found.joined.tolist(), found.same.tolist(), found.lawful.tolist()) == ([True, False, True], [False] * 3, [True] * 3)
    assert found.spans.by_kind()[2] == {"kind": "n:1", "spans": 1, "target_tokens": 2, "source_tokens": 1, "bytes": 5}


def test_tokens_that_cross_are_one_span():
    found = axis(b"abcd", tokens((0, 3), (3, 4)), tokens((0, 1), (1, 4)))
    assert kinds(found.spans) == ["n:m"]


def test_text_that_one_side_cannot_represent_is_masked_with_what_it_cuts():
    """The target loses bytes 2 to 4; the source's token from 1 to 5 is cut by that, so all of it is masked."""
    found = axis(b"abcdef", tokens((0, 1), (1, 2), (4, 5), (5, 6), masked=2), tokens((0, 1), (1, 5), (5, 6)))
    assert (found.spans.start.tolist(), kinds(found.spans)) == ([0, 1, 5], ["1:1", "masked", "1:1"])
    assert (found.spans.num_target.tolist(), found.lost_bytes) == ([1, 2, 1], 2)


def test_documents_do_not_share_spans():
    sides = tokenizer("byte_bpe"), tokenizer("metaspace_bpe")
    whole = Axis.of(documents("the quick", "brown fox"), *sides)
    each = [Axis.of(documents(text), *sides).spans for text in ("the quick", "brown fox")]
    for name in ("num_target", "num_source", "masked"):
        np.testing.assert_array_equal(getattr(whole.spans, name), np.concatenate([getattr(part, name) for part in each]))


@pytest.mark.parametrize(("target", "source"), PAIRS)
def test_coverage_is_what_the_methods_teach(target, source):
    """Oracle: the byte law and the join themselves, document by document."""
    ours, theirs = tokenizer(target), tokenizer(source)
    texts = documents(TEXT[0], *TEXT[-2:], *ODD[:2])
    found = Axis.of(texts, ours, theirs)
    pair = build_pair(theirs.vocabulary, ours.vocabulary, ours.first_pieces)
    lawful, joined, chunks = [], [], 0
    for document in texts:
        encoding = ours.encode(document)
        rows = certain_rows(theirs.encode(document), theirs.vocabulary.size)
        text = encoding.starts >= 0
        lawful.append((ByteLaw()(rows, encoding, pair).source_row >= 0)[text])
        joined.append((join_on_bytes(rows, encoding) >= 0)[text])
        chunks += len(Chunks.of(rows, encoding))
    np.testing.assert_array_equal(found.lawful, np.concatenate(lawful))
    np.testing.assert_array_equal(found.joined, np.concatenate(joined))
    assert int((~found.spans.masked).sum()) == chunks


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PAIRS), st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4))
def test_spans_cover_every_byte_once_and_are_symmetric(names, texts):
    ours, theirs = (tokenizer(name) for name in names)
    found, turned = Axis.of(documents(*texts), ours, theirs), Axis.of(documents(*texts), theirs, ours)
    spans = found.spans
    assert int((spans.end - spans.start).sum()) == found.num_bytes == sum(len(text.encode()) for text in texts)
    assert (spans.start[1:] >= spans.end[:-1]).all()
    assert (spans.num_target.sum(), spans.num_source.sum()) == (len(found.target.ids), len(found.source.ids))
    for one, other in (("start", "start"), ("end", "end"), ("num_target", "num_source"), ("masked", "masked")):
        np.testing.assert_array_equal(getattr(spans, one), getattr(turned.spans, other))
    assert found.lost_bytes == turned.lost_bytes
    assert found.lawful.sum() >= (found.joined & found.same).sum()


def test_the_same_tokenizer_is_one_to_one():
    found = Axis.of(documents(*ODD), tokenizer("byte_bpe"), tokenizer("byte_bpe"))
    assert set(kinds(found.spans)) == {"1:1"}
    assert found.same.all()


def test_tokens_that_overlap_are_refused():
    with pytest.raises(ValueError, match="overlap"):
        _ = axis(b"abc", tokens((0, 2), (1, 3)), tokens((0, 3))).spans
