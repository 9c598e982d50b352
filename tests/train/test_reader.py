import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import InputError
from lmfuse.losses.kl import KL
from lmfuse.train.loop import train
from lmfuse.train.reader import Reader, Strand, check_strands
from lmfuse.types import Document
from tests import fakes
from tests.train.setups import quick, texts, tiny, weights_of
from tests.train.test_loop import random_teacher


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def reader(strands, **settings) -> Reader:
    tokenizer = ByteTokenizer.from_tokenizer(fakes.byte_bpe(), eos="<|endoftext|>")
    return Reader(strands, tokenizer, quick(**settings), lambda step: 0.5, None, 256)


def test_all_texts_of_a_sample_are_read_in_the_same_step_each_in_batches_of_its_strand():
    people, models = texts(6, seed=1), [None, *texts(5, seed=2)]
    partner = {one.id: other and other.id for one, other in zip(people, models, strict=True)}
    for step in reader([Strand(people), Strand(models)], batch_documents=2, accumulation=2).steps():
        read = [{name for batch in step.batches if batch.strand == place for name in batch.documents} for place in (0, 1)]
        assert read[1] == {partner[name] for name in read[0]} - {None}
        assert step.num_positions == tuple(sum(len(b.labels) for b in step.batches if b.strand == place) for place in (0, 1))


def test_a_strand_that_weighs_nothing_is_not_read():
    def never(document, encoding):
        raise AssertionError("asked for nothing")

    strands = [Strand(texts(4, seed=1), never, weight=((0.0, 0.0), (0.5, 0.0), (0.5, 1.0))), Strand(texts(4, seed=2))]
    steps = reader(strands, epochs=2).steps()
    first = [next(steps) for _ in range(2)]
    assert {batch.strand for step in first for batch in step.batches} == {1}
    assert first[0].weights == (0.0, 1.0)
    with pytest.raises(AssertionError, match="asked for nothing"):
        list(steps)


def test_the_loss_is_the_weighted_sum_of_the_strands_means(tmp_path):
    """Oracle: the gradient of each strand alone, in one step of a whole strand."""
    people, models = texts(3, seed=1), texts(3, seed=2)

    def gradient(name, strands):
        model = tiny(tmp_path / "model")
        sums = {name: torch.zeros_like(parameter) for name, parameter in model.module.named_parameters()}
        for name_of, parameter in model.module.named_parameters():
            parameter.register_hook(lambda grad, name_of=name_of: sums[name_of].add_(grad) * 0)
        train(model, strands, KL(), quick(batch_documents=3, gradient_floor=0.0), tmp_path / name)
        return sums

    one, other = gradient("one", [Strand(people)]), gradient("other", [Strand(models, random_teacher)])
    both = gradient("both", [Strand(people, weight=((0.0, 0.1),)), Strand(models, random_teacher)])
    for name in both:
        assert_close(both[name], 0.1 * one[name] + other[name], rtol=1e-4, atol=1e-7)


def test_two_strands_of_the_same_texts_train_as_one_with_the_sum_of_their_weights(tmp_path):
    documents = texts(6)
    once, twice = tiny(tmp_path / "model"), tiny(tmp_path / "model")
    train(once, [Strand(documents, random_teacher)], KL(), quick(epsilon=1e-30), tmp_path / "a")
    half = Strand(documents, random_teacher, weight=((0.0, 0.5),))
    train(twice, [half, half], KL(), quick(epsilon=1e-30), tmp_path / "b")
    for name, found in weights_of(twice).items():
        assert_close(found, weights_of(once)[name], rtol=1e-4, atol=1e-6)


def test_a_run_of_two_strands_goes_on_where_it_was(tmp_path):
    strands = [Strand(texts(8, seed=1), random_teacher, weight=((0.0, 1.0), (1.0, 0.1))), Strand([None, *texts(7, seed=2)])]
    whole = tiny(tmp_path / "model")
    expected = train(whole, strands, KL(), quick(checkpoint_steps=2), tmp_path / "whole")

    class StopError(Exception):
        pass

    def stops(event):
        if event["kind"] == "checkpoint" and event["step"] == 2:
            raise StopError

    with pytest.raises(StopError):
        train(tiny(tmp_path / "model"), strands, KL(), quick(checkpoint_steps=2), tmp_path / "parts", on_event=stops)
    again = tiny(tmp_path / "model")
    assert train(again, strands, KL(), quick(checkpoint_steps=2), tmp_path / "parts") == expected
    assert all(torch.equal(found, weights_of(whole)[name]) for name, found in weights_of(again).items())
    assert json.loads((tmp_path / "parts" / "training.json").read_text())["positions"] == expected.positions
    other = [Strand(strands[0].documents, random_teacher), strands[1]]
    with pytest.raises(InputError, match="another run"):
        train(tiny(tmp_path / "model"), other, KL(), quick(checkpoint_steps=2), tmp_path / "parts")


@pytest.mark.parametrize(
    ("strands", "message"),
    [
        ([], "no documents to train on"),
        ([Strand([]), Strand([])], "no documents to train on"),
        ([Strand(texts(2)), Strand(texts(3))], r"strands of \[2, 3\] samples"),
        ([Strand([None, Document.plain("a")]), Strand([None, None])], "sample 0 has no text in any strand"),
    ],
)
def test_strands_that_do_not_fit_are_refused(strands, message):
    with pytest.raises(InputError, match=message):
        check_strands(strands)


def test_weights_are_linear_between_their_knots():
    ramp = Strand([], weight=((0.0, 1.0), (0.25, 1.0), (0.75, 0.1)))
    assert [ramp.weight_at(share) for share in np.linspace(0, 1, 5)] == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])


def test_a_step_without_any_text_that_weighs_something_is_counted_and_moves_no_weight(tmp_path):
    people = texts(4, seed=1)
    model = tiny(tmp_path / "model")
    before = weights_of(model)
    log = train(model, [Strand(people, weight=((0.0, 0.0),)), Strand([None] * 4)], KL(), quick(batch_documents=2), tmp_path / "run")
    assert (log.steps, log.skipped_steps, log.positions) == (2, 2, 0)
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())


def test_samples_that_were_read_before_are_part_of_what_a_run_is(tmp_path):
    for first in (0, 2):
        train(tiny(tmp_path / "model"), [Strand(texts(6))], KL(), quick(epochs=0.5), tmp_path / str(first), first=first)
    with pytest.raises(InputError):
        train(tiny(tmp_path / "model"), [Strand(texts(6))], KL(), quick(epochs=0.5), tmp_path / "0", first=2)
