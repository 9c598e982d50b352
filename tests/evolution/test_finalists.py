import numpy as np
import torch
from safetensors.torch import save_file

from lmfuse.evolution.finalists import finalists, fingerprint
from lmfuse.evolve.family import Member
from lmfuse.evolve.genome import Numbers, Parent, mixed

A, B, C = Parent(0), Parent(1), Parent(2)
HALF, ALSO_HALF = mixed([(0.5, A), (0.5, B)]), Numbers((0.5, 0.5, 0.0))
MARKS = {A: "a", B: "b", C: "c", HALF: "ab", ALSO_HALF: "ab", Numbers((1.0, 0.0, 0.0)): "a", Numbers((0.0, 1.0, 0.0)): "b"}
PARENTS = [Member(A, 3.0), Member(B, 2.0), Member(C, 1.0)]


def chosen(pool, count=3, parents=PARENTS):
    return [(member.genome, member.score) for member in finalists(pool, parents, count, MARKS.__getitem__)]


def test_by_hand():
    assert chosen([Member(HALF, 4.0), *PARENTS]) == [(A, 3.0), (HALF, 4.0), (B, 2.0)]
    assert chosen([Member(HALF, 4.0), *PARENTS], count=1) == [(A, 3.0), (HALF, 4.0)]  # the best parent comes on top
    assert chosen([Member(HALF, 4.0)], parents=[]) == [(HALF, 4.0)]


def test_coefficients_of_one_parent_are_that_parent():
    pool = [Member(Numbers((1.0, 0.0, 0.0)), 3.1), Member(Numbers((0.0, 1.0, 0.0)), 2.0), Member(HALF, 2.5)]
    assert chosen(pool) == [(A, 3.0), (HALF, 2.5), (B, 2.0)]


def test_equal_weights_are_one_finalist():
    assert chosen([Member(HALF, 4.0), Member(ALSO_HALF, 3.5), Member(B, 2.0)]) == [(A, 3.0), (HALF, 4.0), (B, 2.0)]


def test_a_fingerprint_is_that_of_the_numbers(tmp_path):
    rng = np.random.default_rng(0)
    model = {"b.w": torch.tensor(rng.normal(size=(3, 4))).bfloat16(), "a": torch.tensor(0.5), "ids": torch.arange(3)}
    assert fingerprint(model) == fingerprint(dict(reversed(model.items())))
    for changed in (
        {"a": torch.tensor(0.25)},
        {"a": torch.tensor([0.5])},
        {"a": torch.tensor(0.5, dtype=torch.float64)},
        {"c": model["a"]},
    ):
        assert fingerprint({**model, **changed}) != fingerprint(model)
    save_file(model, tmp_path / "model.safetensors")
    assert fingerprint(tmp_path) == fingerprint(model)
