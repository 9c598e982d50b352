"""Several readers in one forward pass: each reads what it would read alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from lmfuse.generate import stacked
from lmfuse.generate.cache import Branch, Reader, Seat, Wanted, read_alone
from lmfuse.generate.rooms import Rooms
from lmfuse.generate.stacked import MOST_TOKENS, PASS_TOKENS, divided, read_many, reads_together
from tests.generate.table_models import START, table_model
from tests.generate.test_cache import close, expected, make

TEXTS = ((5, 9, 200, 31, 77), (8,), (300, 4, 17), (12, 13, 14, 15, 16, 17, 18, 19))
BRANCHES = ([Branch(5, (8, 8, 120)), Branch(3, (300, 4))], [Branch(1, (7,))], [Branch(2, (3, 3)), Branch(3, (9,))], [Branch(8, (1, 2))])


@pytest.fixture(params=["llama", "gpt2", "sliding"])
def model(request):
    with torch.inference_mode(False):
        return make(request.param)


def readers_of(model, rows=4):
    rooms = Rooms(rows)
    return [Reader(model, Seat(rooms, row, read_alone)) for row in range(rows)]


def read_branches(readers, branches):
    """Read branches of all readers, each in a thread that stops where it wants a pass; the passes are run as one."""
    wanted, answers, all_want, all_have = {}, {}, Barrier(len(readers) + 1), Barrier(len(readers) + 1)

    def work(row):
        def forward(want):
            wanted[row] = want
            all_want.wait(20)
            all_have.wait(20)
            return answers[row]

        reader = readers[row]
        reader.seat = Seat(reader.seat.rooms, row, forward)
        with torch.inference_mode():
            return reader.read_branches(branches[row])

    with ThreadPoolExecutor(len(readers)) as pool:
        found = [pool.submit(work, row) for row in range(len(readers))]
        all_want.wait(20)
        answers.update(enumerate(read_many([wanted[row] for row in range(len(readers))])))
        all_have.wait(20)
        return [each.result() for each in found]


@torch.inference_mode()
def test_texts_of_any_length_are_read_together_as_alone(model, monkeypatch):
    assert reads_together(model)
    monkeypatch.setattr(stacked, "read_alone", None)  # nothing is read one by one
    readers = readers_of(model)
    found = read_many([Wanted(reader, ids) for reader, ids in zip(readers, TEXTS, strict=True)])
    for log_probs, ids in zip(found, TEXTS, strict=True):
        close(log_probs, expected(model, *ids))
    assert [reader.length for reader in readers] == [5, 1, 3, 8]
    some = [readers[place] for place in (2, 0, 3)]  # another order, and not all of them
    found = read_many([Wanted(reader, ids, last_only=place == 1) for place, (reader, ids) in enumerate(zip(some, TEXTS, strict=False))])
    close(found[0], expected(model, *TEXTS[2], *TEXTS[0])[3:])
    close(found[1], expected(model, *TEXTS[0], *TEXTS[1])[-1:])
    close(found[2], expected(model, *TEXTS[3], *TEXTS[2])[8:])
    assert [reader.length for reader in readers] == [6, 1, 8, 11]


@torch.inference_mode()
def test_trees_and_single_branches_are_read_together_and_any_can_be_taken(model):
    for taken in range(2):
        readers = readers_of(model)
        read_many([Wanted(reader, ids) for reader, ids in zip(readers, TEXTS, strict=True)])
        reads = read_branches(readers, BRANCHES)
        for reader, text, branches, read in zip(readers, TEXTS, BRANCHES, reads, strict=True):
            for branch, one in zip(branches, read, strict=True):
                close(one.log_probs, expected(model, *text[: branch.keep], *branch.ids)[branch.keep :])
            reader.take(read[taken % len(read)])
        ends = read_many([Wanted(reader, (50, 60)) for reader in readers])
        for text, branches, end in zip(TEXTS, BRANCHES, ends, strict=True):
            branch = branches[taken % len(branches)]
            close(end, expected(model, *text[: branch.keep], *branch.ids, 50, 60)[-2:])


@torch.inference_mode()
def test_what_one_text_cut_is_not_seen_by_it_nor_by_others(model):
    readers = readers_of(model, 3)
    read_many([Wanted(reader, ids) for reader, ids in zip(readers, TEXTS, strict=False)])
    readers[0].cut(2)
    found = read_many([Wanted(reader, (40,)) for reader in readers])
    for log_probs, ids in zip(found, (TEXTS[0][:2], TEXTS[1], TEXTS[2]), strict=True):
        close(log_probs, expected(model, *ids, 40)[-1:])


@torch.inference_mode()
def test_long_texts_make_room_for_all():
    model = make("llama")
    readers, ids = readers_of(model, 2), [place % 400 for place in range(300)]
    read_many([Wanted(readers[0], ids[:100]), Wanted(readers[1], ids[:5])])
    read_many([Wanted(readers[0], ids[100:]), Wanted(readers[1], ids[5:10])])
    found = read_many([Wanted(reader, (3,)) for reader in readers])
    close(found[0], expected(model, *ids, 3)[-1:])
    close(found[1], expected(model, *ids[:10], 3)[-1:])


@torch.inference_mode()
@pytest.mark.parametrize("most", [1, 2 * 409, 5 * 409])
def test_logits_are_made_a_few_lines_at_a_time(most, monkeypatch):
    model, sizes = make("llama"), []
    logits = type(model.head).logits
    monkeypatch.setattr(type(model.head), "logits", lambda self, hidden: sizes.append(len(hidden)) or logits(self, hidden))
    assert reads_together(model)
    del sizes[:]
    monkeypatch.setattr(stacked, "MOST_LOGITS", most)
    found = read_many([Wanted(reader, ids) for reader, ids in zip(readers_of(model), TEXTS, strict=True)])
    assert max(sizes) == max(1, most // model.tokenizer.vocabulary.size)
    assert sum(sizes) == sum(map(len, TEXTS))  # no padding
    for log_probs, ids in zip(found, TEXTS, strict=True):
        close(log_probs, expected(model, *ids))
    assert len({log_probs.untyped_storage().data_ptr() for log_probs in found}) == len(TEXTS)


@torch.inference_mode()
def test_a_model_that_mixes_up_its_texts_reads_them_one_by_one():
    model = make("llama")
    body = model.body.forward

    def mixes(*args, **more):
        found = body(*args, **more)
        found.last_hidden_state = found.last_hidden_state + 0.1 * found.last_hidden_state.roll(1, 0) * (len(found.last_hidden_state) > 1)
        return found

    model.body.forward = mixes
    assert not reads_together(model)
    found = read_many([Wanted(reader, ids) for reader, ids in zip(readers_of(model), TEXTS, strict=True)])
    model.body.forward = body
    for log_probs, ids in zip(found, TEXTS, strict=True):
        close(log_probs, expected(model, *ids))


def test_a_model_that_reads_no_trees_is_not_asked_again(monkeypatch):
    model = table_model({START: {" a": 1.0}})
    assert reads_together(model)  # its next token depends on the last one alone
    other = table_model({START: {" a": 1.0}})
    monkeypatch.setattr(stacked, "reads_trees", lambda _: False)
    assert not reads_together(other)


def cost(passes, lengths):
    return sum(PASS_TOKENS + len(places) * max(lengths[place] for place in places) for places in passes)


def partitions(items):
    if not items:
        yield []
        return
    first, *rest = items
    for others in partitions(rest):
        yield [[first], *others]
        for place in range(len(others)):
            yield [*others[:place], [first, *others[place]], *others[place + 1 :]]


@pytest.mark.parametrize("lengths", [(1, 1, 1), (1, 40, 1, 2), (200, 190, 3, 30, 35), (5, 60, 61, 1, 1, 90), (7,)])
def test_passes_cost_least_of_all_ways_to_divide_them(lengths):
    found = divided(lengths)
    assert sorted(place for places in found for place in places) == list(range(len(lengths)))
    assert cost(found, lengths) == min(cost(passes, lengths) for passes in partitions(list(range(len(lengths)))))


def test_a_pass_reads_no_more_than_its_limit():
    lengths = [MOST_TOKENS // 3] * 5 + [2 * MOST_TOKENS]
    passes = divided(lengths)
    assert sorted(map(len, passes)) == [1, 2, 3]
    assert [5] in passes
