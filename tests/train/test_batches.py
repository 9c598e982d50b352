import threading
import time

import numpy as np
import pytest
import torch

from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import TextError
from lmfuse.train.batches import collate, example, permutation, planned_steps, prefetch, stream
from lmfuse.train.reader import Reader, Strand
from lmfuse.train.settings import Training
from lmfuse.types import Document, Encoding, Fused, TopK
from tests import fakes
from tests.train.setups import quick, texts


def reader(documents, teacher=None, *, settings=None, clm_weight=lambda step: 0.9, document_weight=None, context=256, **where) -> Reader:
    tokenizer = ByteTokenizer.from_tokenizer(fakes.byte_bpe(), eos="<|endoftext|>")
    return Reader([Strand(documents, teacher)], tokenizer, settings or quick(), clm_weight, document_weight, context, **where)


def marked(document: Document, encoding: Encoding) -> Fused:
    """A teacher whose row for token t holds the id that stands there, so that a row in the wrong place shows."""
    topk = TopK.certain(encoding.ids, k=1 + len(encoding.ids) % 2, vocab_size=fakes.byte_bpe().get_vocab_size())
    size = len(encoding.ids)
    return Fused(topk, encoding.starts >= 0, np.zeros(size, np.int64), np.arange(size) + 0.5, encoding.starts >= 0)


# ----------------------------------------------------------------------------------------------------------------------- order


def test_order_is_pinned():
    """These numbers may never change: they are what makes an old run repeatable."""
    assert permutation(8, seed=42, epoch=0).tolist() == PINNED[0]
    assert permutation(8, seed=42, epoch=1).tolist() == PINNED[1]


PINNED = ([7, 1, 6, 4, 3, 5, 0, 2], [4, 5, 3, 0, 2, 7, 1, 6])


def test_stream_runs_through_epochs():
    whole = stream(5, 3, 0, 15)
    assert [sorted(whole[i : i + 5].tolist()) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert whole[:5].tolist() != whole[5:10].tolist()
    for begin in range(15):
        for end in range(begin + 1, 16):
            assert stream(5, 3, begin, end).tolist() == whole[begin:end].tolist()


@pytest.mark.parametrize("length_block", [1, 3])
@pytest.mark.parametrize("epochs", [1, 2.3])
def test_a_plan_reads_each_document_once_an_epoch_and_can_begin_anywhere(length_block, epochs):
    lengths = np.random.default_rng(0).integers(1, 100, 23)
    settings = Training(batch_documents=2, accumulation=2, length_block=length_block, epochs=epochs)
    whole = [[batch.tolist() for batch in step] for step in planned_steps(lengths, settings)]
    assert len(whole) == settings.num_steps(23)
    documents = [document for step in whole for batch in step for document in batch]
    assert len(documents) == settings.read_documents(23)
    counts = np.bincount(documents, minlength=23)
    assert counts.max() - counts.min() <= 1
    for start in range(len(whole) + 1):
        assert [[batch.tolist() for batch in step] for step in planned_steps(lengths, settings, start)] == whole[start:]


def test_a_training_goes_on_in_the_stream_behind_another_one():
    lengths, one, two = (
        np.arange(1, 8),
        Training(batch_documents=2, accumulation=1, epochs=3 / 7),
        Training(batch_documents=2, accumulation=1),
    )

    def read(settings, first=0):
        return [place for step in planned_steps(lengths, settings, first=first) for batch in step for place in batch.tolist()]

    assert len(read(one)) == 3
    assert sorted(read(one) + read(Training(batch_documents=2, accumulation=1, epochs=4 / 7), first=3)) == list(range(7))
    assert sorted(read(two, first=3)) == sorted(stream(7, two.seed, 3, 10).tolist())


def test_length_blocks_limit_padding_and_their_steps_are_shuffled():
    lengths = np.random.default_rng(1).integers(1, 500, 256)

    def padded(length_block: int) -> int:
        settings = Training(batch_documents=8, accumulation=1, length_block=length_block)
        return sum(len(batch) * int(lengths[batch].max()) for step in planned_steps(lengths, settings) for batch in step)

    assert padded(32) < 1.1 * lengths.sum() < padded(1)
    means = [lengths[step[0]].mean() for step in planned_steps(lengths, Training(batch_documents=8, accumulation=1, length_block=32))]
    assert abs(np.corrcoef(means, np.arange(32))[0, 1]) < 0.5


def test_sorting_inside_a_step_keeps_its_documents():
    lengths = np.random.default_rng(1).integers(1, 500, 32)
    small = [np.concatenate(step) for step in planned_steps(lengths, Training(batch_documents=2, accumulation=4))]
    large = [np.concatenate(step) for step in planned_steps(lengths, Training(batch_documents=8, accumulation=1))]
    assert [s.tolist() for s in small] == [s.tolist() for s in large]
    assert all(np.all(np.diff(lengths[step]) <= 0) for step in small)


# --------------------------------------------------------------------------------------------------------------------- batches


def test_batch_by_hand():
    """Tokens 5 | 6 7 8 and 5 | 9; token 7 carries no text. The hidden state before a token predicts it."""
    first = Encoding(np.array([5, 6, 7, 8]), np.array([-1, 0, -1, 3]), np.array([-1, 2, -1, 4]))
    second = Encoding(np.array([5, 9]), np.array([-1, 0]), np.array([-1, 1]))
    rows = TopK(np.array([[0], [16], [17], [18]]), np.zeros((4, 1), np.float32), np.full(4, -np.inf, np.float32), 20)
    truth, boundary = np.array([np.nan, 0.5, np.nan, 0.25]), np.array([False, False, False, True])
    fused = Fused(rows, np.array([False, True, True, True]), np.zeros(4, np.int64), truth, boundary)
    document = Document.plain("x")
    batch = collate([example(document, first, fused, 0.5), example(document, second, None, 0.9)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.positions.tolist() == [0, 2, 4]  # before 6, before 8, and before 9 in the second row of width 4
    assert batch.labels.tolist() == [6, 8, 9]
    assert batch.teacher is not None
    assert batch.teacher.ids[:2, 0].tolist() == [16, 18]
    assert batch.teacher.taught.tolist() == [True, True, False]
    assert batch.clm_weight.tolist() == pytest.approx([0.5, 0.5, 0.9])
    assert batch.num_tokens == 6
    # token 8 stands behind a gap: where the source's token before it began nobody knows
    assert batch.teacher.truth_nll_nats.tolist() == pytest.approx([0.5, float("nan"), float("nan")], nan_ok=True)
    assert batch.teacher.boundary.tolist() == [False, True, False]
    assert batch.teacher.joined.tolist() == [False, False, False]


def test_by_hand_spans_are_whole_or_unknown():
    """Without a start token the first token is not predicted; what the source's token shares with it is not known, what follows is."""
    encoding = Encoding(np.array([5, 6, 7, 8]), np.array([0, 2, 4, 5]), np.array([2, 4, 5, 9]))
    rows = TopK(np.zeros((4, 1), np.int64), np.zeros((4, 1), np.float32), np.full(4, -np.inf, np.float32), 20)

    def truth(boundary: list[bool]) -> tuple[list[float], list[bool]]:
        fused = Fused(rows, np.ones(4, bool), np.zeros(4, np.int64), np.array([0.5, 1.0, 2.0, 3.0]), np.array(boundary))
        found = collate([example(Document.plain("x"), encoding, fused, 0.5)]).teacher
        assert found is not None
        return found.truth_nll_nats.tolist(), found.joined.tolist()

    assert truth([True, False, True, True]) == ([1.0, 2.0, 3.0], [False, True, True])
    assert truth([False, True, True, True])[0] == pytest.approx([float("nan"), 2.0, 3.0], nan_ok=True)


def test_by_hand_a_later_answer_opens_a_span_where_the_turn_before_it_ended():
    """Two turns 6 | 7 and 8 | 9, the template's 5 before each of them."""
    encoding = Encoding(np.array([5, 6, 7, 5, 8, 9]), np.array([-1, 0, 2, -1, 3, 5]), np.array([-1, 2, 3, -1, 5, 6]))
    rows = TopK(np.zeros((6, 1), np.int64), np.zeros((6, 1), np.float32), np.full(6, -np.inf, np.float32), 20)

    def truth(end_known: bool) -> list[float]:
        boundary = np.array([False, True, end_known, False, True, True])
        fused = Fused(rows, np.ones(6, bool), np.zeros(6, np.int64), np.array([np.nan, 1.0, 2.0, np.nan, 3.0, 4.0]), boundary)
        found = collate([example(Document.plain("x"), encoding, fused, 0.5)]).teacher
        assert found is not None
        assert found.joined.tolist() == [False, True, False, True]
        return found.truth_nll_nats.tolist()

    assert truth(True) == [1.0, 2.0, 3.0, 4.0]
    assert truth(False) == pytest.approx([1.0, 2.0, float("nan"), 4.0], nan_ok=True)


def test_two_documents_are_never_joined():
    for step in reader(texts(12), marked, settings=quick(batch_documents=4)).steps():
        for batch in step.batches:
            assert batch.teacher is not None
            first = torch.tensor([True, *(batch.positions.diff() > 1).tolist()])
            assert torch.equal(batch.teacher.joined, ~first)
            assert not batch.teacher.truth_nll_nats.isnan().any()


def test_every_row_stands_at_the_token_it_teaches():
    documents = texts(12)
    for step in reader(documents, marked).steps():
        for batch in step.batches:
            flat = batch.input_ids.flatten()
            assert torch.equal(flat[batch.positions + 1], batch.labels)
            assert batch.teacher is not None
            assert torch.equal(batch.teacher.ids[:, 0], batch.labels)
            assert batch.teacher.taught.all()
            assert batch.attention_mask.flatten()[batch.positions + 1].all()


def test_predicted_tokens_cover_the_text():
    documents = texts(12)
    tokenizer = ByteTokenizer.from_tokenizer(fakes.byte_bpe(), eos="<|endoftext|>")
    by_id = {document.id: document for document in documents}
    for step in reader(documents, settings=quick(batch_documents=1)).steps():
        for batch in step.batches:
            written = b"".join(tokenizer.vocabulary.bytes_of(int(label)) for label in batch.labels)
            assert written == by_id[batch.documents[0]].trained_bytes


def test_without_a_start_token_nothing_predicts_the_first_one():
    tokenizer = ByteTokenizer.from_tokenizer(fakes.byte_bpe(), document_start="none")
    document = Document.plain("The dog")
    encoding = tokenizer.encode(document)
    assert collate([example(document, encoding, None, 1.0)]).labels.tolist() == encoding.ids[1:].tolist()
    empty = collate([example(document, tokenizer.encode(Document.plain("")), None, 1.0)])
    assert (len(empty.labels), empty.teacher) == (0, None)


def test_no_teacher_at_all_makes_no_rows():
    assert all(batch.teacher is None for step in reader(texts(4)).steps() for batch in step.batches)
    assert all(batch.teacher is None for step in reader(texts(4), lambda d, e: None).steps() for batch in step.batches)


def test_a_documents_weight_goes_before_the_steps():
    documents = texts(6)
    heavy = documents[2].id
    weights = reader(
        documents,
        settings=quick(batch_documents=1),
        clm_weight=lambda step: step / 10,
        document_weight=lambda d: 1.0 if d.id == heavy else 0.25,
    )
    for step in weights.steps():
        assert set(step.batches[0].clm_weight.tolist()) == {1.0 if step.batches[0].documents == (heavy,) else 0.25}
    for step in reader(documents, settings=quick(batch_documents=1), clm_weight=lambda step: step / 10).steps():
        assert step.batches[0].clm_weight.tolist() == pytest.approx([step.index / 10] * len(step.batches[0].labels))


def test_processes_share_a_step_without_overlap():
    documents = texts(11)
    settings = quick(batch_documents=2, accumulation=4)
    alone = [step.batches for step in reader(documents, settings=settings).steps()]
    shares = [list(reader(documents, settings=settings, process=p, num_processes=2).steps()) for p in range(2)]
    for index, batches in enumerate(alone):
        for p in range(2):
            mine = [batch.documents for batch in shares[p][index].batches if len(batch.labels)]
            assert mine == [batch.documents for batch in batches[p::2]]
    assert [len(share) for share in shares] == [len(alone)] * 2
    idle = list(reader(documents[:1], settings=settings, process=1, num_processes=2).steps())
    assert [len(batch.labels) for batch in idle[0].batches] == [0]


def test_a_document_longer_than_the_model_reads_is_refused():
    with pytest.raises(TextError, match=r"document \w+ \(text\): \d+ tokens, the model reads 10") as caught:
        list(reader(texts(3), context=10).steps())
    assert "windows" in caught.value.hint


# -------------------------------------------------------------------------------------------------------------------- prefetch


def test_prefetch_keeps_the_order_and_runs_ahead():
    produced = []

    def source():
        for item in range(20):
            produced.append(item)
            yield item

    ahead = prefetch(source(), depth=3)
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(produced) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 5 <= len(produced) <= 6  # taken, three waiting, one in hand, and perhaps the next
    assert list(ahead) == list(range(1, 20))


def test_an_exception_comes_where_its_item_would_have():
    def source():
        yield 1
        yield 2
        raise KeyError("teacher")

    taken = []
    with pytest.raises(KeyError, match="teacher"):
        taken.extend(prefetch(source()))
    assert taken == [1, 2]


def test_closing_ends_the_thread():
    before = threading.active_count()
    ahead = prefetch(iter(range(1000)))
    assert next(ahead) == 0
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before
