import math

import numpy as np
import pytest

from lmfuse.artefacts import publish
from lmfuse.doctor.rows import figures, measure, sample, text_of
from lmfuse.errors import InputError, VerificationError
from lmfuse.store import SHARD_NAME, RowStore, pack_shard
from lmfuse.types import Alignment, Document, Encoding, Rows, TopK
from tests.doctor.build import documents, tokenizer
from tests.fakes import TEXT


def rows_of(document: Document, kind: str, nll: float = 1.0) -> Rows:
    """Rows of a source that gives exp(-nll) to what followed, and the rest to the token before it in the vocabulary."""
    made = tokenizer(kind)
    encoding = made.encode(document)
    text = encoding.starts >= 0
    ids = encoding.ids[text]
    other = np.where(ids > 300, ids - 1, ids + 1)
    log_probs = np.tile(np.log([math.exp(-nll), 0.5]).astype(np.float32), (len(ids), 1))
    tail = np.full(len(ids), math.log(0.5 - math.exp(-nll)), np.float32)
    topk = TopK(np.stack([ids, other], axis=1), log_probs, tail, made.vocabulary.size)
    return Rows(encoding.starts[text], encoding.ends[text], ids, np.full(len(ids), nll, np.float32), topk)


def store(folder, texts, kind="metaspace_bpe", names=None):
    found = [rows_of(document, kind) for document in texts]
    joined = Rows(
        *(np.concatenate([getattr(part, name) for part in found]) for name in ("starts", "ends", "next_ids", "nll_nats")),
        TopK.concatenate([part.topk for part in found]),
    )
    ids = names or [document.id for document in texts]
    with publish(folder, kind="rows") as publication:
        (publication.path / SHARD_NAME.format(0)).write_bytes(pack_shard(ids, np.array([len(part) for part in found]), joined, "float32"))
    return folder


TEXTS = documents(*(text for text in TEXT if text.isascii()))


@pytest.mark.parametrize("kind", ["byte_bpe", "metaspace_bpe", "unigram"])
def test_rows_tell_their_text(kind):
    for document in TEXTS:
        assert text_of(rows_of(document, kind), tokenizer(kind).vocabulary) == document.segments[0].text


def test_rows_with_a_gap_tell_nothing():
    rows = rows_of(TEXTS[0], "byte_bpe")
    gap = Rows(rows.starts + (rows.starts > 5), rows.ends + (rows.starts > 5), rows.next_ids, rows.nll_nats, rows.topk)
    assert text_of(gap, tokenizer("byte_bpe").vocabulary) is None
    assert (
        text_of(
            Rows(*(part[:0] for part in (rows.starts, rows.ends, rows.next_ids, rows.nll_nats)), rows.topk[:0]),
            tokenizer("byte_bpe").vocabulary,
        )
        is None
    )


def test_documents_that_are_not_what_their_name_says_are_passed_over(tmp_path):
    names = [document.id for document in TEXTS]
    folder = store(tmp_path / "rows", TEXTS, names=["0" * 32, *names[1:]])
    found = sample(RowStore.open(folder), tokenizer("metaspace_bpe").vocabulary)
    assert (len(found.documents), found.passed_over) == (len(TEXTS) - 1, 1)


def test_a_source_with_the_targets_tokenizer_loses_nothing(tmp_path):
    """Invariant: under the same vocabulary every map is the identity, and what is projected is what was said."""
    found = measure(store(tmp_path / "rows", TEXTS), tokenizer("metaspace_bpe"), tokenizer("metaspace_bpe"))
    num_bytes = sum(len(document.trained_bytes) for document in TEXTS)
    num_tokens = sum(len(rows_of(document, "metaspace_bpe")) for document in TEXTS)
    assert (found["documents"], found["bytes"], found["passed_over"]) == (len(TEXTS), num_bytes, 0)
    for method in found["methods"]:
        assert method["coverage"] == 1.0, method
        assert method["lost_mass"] == pytest.approx(0, abs=1e-6)
        assert method["own_bits_per_byte"] == pytest.approx(num_tokens / math.log(2) / num_bytes, rel=1e-4)
        assert method["bits_per_byte"] == pytest.approx(method["own_bits_per_byte"], rel=0.01), "but for the tail's share"


def test_between_families_the_law_covers_more_and_the_exact_map_loses_most(tmp_path):
    found = {m["name"]: m for m in measure(store(tmp_path / "rows", TEXTS), tokenizer("byte_bpe"), tokenizer("metaspace_bpe"))["methods"]}
    assert list(found) == ["byte_law", "exact", "first_piece", "pieces", "min_ed"]
    assert found["byte_law"]["coverage"] > found["exact"]["coverage"] == found["first_piece"]["coverage"]
    assert found["exact"]["lost_mass"] > found["first_piece"]["lost_mass"]
    assert found["byte_law"]["bits_per_byte"] <= found["byte_law"]["own_bits_per_byte"] + 1e-6


def test_figures_by_hand():
    """Two tokens of two bytes: one taught with 1/2, one taught by the tail alone (1/4 over the 3 ids not kept)."""
    topk = TopK(np.array([[1], [0]]), np.log(np.array([[0.5], [0.75]])), np.log(np.array([0.5, 0.25])), 4)
    said = Alignment(
        np.array([0, 1]), topk, np.full(2, np.nan, np.float32), np.array([0.1, 0.3], np.float32), np.zeros(2, bool), np.zeros(2, bool)
    )
    law = Alignment(said.source_row, topk, np.log(np.array([2.0, 8.0], np.float32)), said.lost_mass, said.one_hot, said.boundary)
    found = figures("exact", [said], [law], [Encoding(np.array([1, 3]), np.array([0, 2]), np.array([2, 4]))])
    assert found["lost_mass"] == pytest.approx(0.2)
    assert found["own_bits_per_byte"] == pytest.approx((1 + 3) / 4)
    assert found["bits_per_byte"] == pytest.approx((-math.log2(0.5) + math.log2(12)) / 4)


@pytest.mark.parametrize("wrong", ["byte_bpe", "wordpiece"])
def test_rows_of_another_tokenizer_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="not of the source's tokenizer"):
        measure(store(tmp_path / "rows", TEXTS), tokenizer("byte_bpe"), tokenizer(wrong))


def test_a_folder_without_rows_is_refused(tmp_path):
    (tmp_path / "rows").mkdir()
    with pytest.raises(VerificationError):
        measure(tmp_path / "rows", tokenizer("byte_bpe"), tokenizer("byte_bpe"))
