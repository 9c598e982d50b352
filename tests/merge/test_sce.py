from collections import Counter

import pydantic
import pytest
import torch

from lmfuse.merge.sce import Sce
from lmfuse.merge.whole import merge_tensors
from tests.merge.build import gap, mergekit, models

FIRST = torch.tensor([[0.4, -0.2, 0.0], [0.1, 0.0, 0.3]])
SECOND = torch.tensor([[-0.1, -0.6, 0.0], [0.1, 0.2, -0.5]])
VARIANTS = ("paper", "fuseai", "mergekit")


def oracle(method, sources, base):
    """The description step by step on the whole tensor in float64; of equal variances the first are selected."""
    base = base.double().flatten()
    changes = torch.stack([source.double().flatten() - base for source in sources])
    selected = changes
    if method.tau < 1:
        pairs = [(a - b).square() for i, a in enumerate(sources) for b in sources[:i]]
        variance = sum(pair.double() for pair in pairs).flatten()
        count = int(method.tau * variance.count_nonzero() + 1e-9)
        mask = torch.zeros(len(base), dtype=torch.float64)
        mask[variance.sort(descending=True, stable=True).indices[:count]] = 1
        selected = changes * mask
    eta = selected.square().mean(1)
    least = 1e-6 if method.variant == "mergekit" else 1e-300
    eta = torch.full_like(eta, 1 / len(eta)) if eta.sum() < least else eta / eta.sum()
    changes = changes if method.variant == "fuseai" else selected
    sign = torch.where(changes.sum(0) >= 0, 1.0, -1.0)
    weights = eta[:, None] * (changes.sign() == sign)
    return (base + (weights * changes).sum(0) / weights.sum(0).clamp(min=least)).view(sources[0].shape)


@pytest.mark.parametrize("variant", VARIANTS)
def test_by_hand_the_golden_vectors(variant):
    zero = torch.zeros(2, 3)
    everything = torch.tensor([[0.4, -0.4763, 0.0], [0.1, 0.2, -0.5]])
    half = torch.tensor([[0.4, -0.4039, 0.0], [0.1, 0.2, -0.5]] if variant == "fuseai" else [[0.4, 0.0, 0.0], [0.0, 0.0, -0.5]])
    assert torch.allclose(merge_tensors(Sce(tau=1.0, variant=variant), [FIRST, SECOND], zero), everything, atol=5e-5)
    assert torch.allclose(merge_tensors(Sce(tau=0.5, variant=variant), [FIRST, SECOND], zero), half, atol=5e-5)


def test_by_hand_the_selection_decides_the_weights():
    # variances (.09, .01, 0) * 1/4: of two that are not 0 the first is selected; eta = .16 : .01
    sources = [torch.tensor([0.4, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.1])]
    merged = merge_tensors(Sce(tau=0.5, variant="fuseai"), sources, torch.zeros(3))
    assert merged.tolist() == pytest.approx([(0.16 * 0.4 + 0.01 * 0.1) / 0.17, (0.16 * 0.2 + 0.01 * 0.3) / 0.17, 0.1])
    assert merge_tensors(Sce(tau=0.5), sources, torch.zeros(3)).tolist() == pytest.approx([merged[0].item(), 0, 0])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tau", [1.0, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_oracles_float64_and_mergekit(variant, tau, count):
    base, sources = models(count, shape=(7, 60), spread=[0.5, 1.0, 0.2, 0.7, 0.3][:count])
    method = Sce(tau=tau, variant=variant)
    merged = merge_tensors(method, sources, base)
    assert gap(merged, oracle(method, sources, base)) < 2
    if variant != "fuseai":
        assert gap(merged, mergekit("sce", sources, base, select_topk=tau)) < 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_small_changes_have_weights_except_under_mergekits_guard(variant):
    base, changes = models(2, shape=(300, 400), spread=(1e-4, 3e-4))
    changes = [(change - base).abs() for change in changes]  # all of one sign, so that nothing is erased
    zero, counters = torch.zeros_like(base), Counter()
    merged = merge_tensors(Sce(tau=1.0, variant=variant), changes, zero, counters=counters)
    weight = float(((merged - changes[0]) * (changes[1] - changes[0])).sum() / (changes[1] - changes[0]).square().sum())
    assert weight == pytest.approx(0.5 if variant == "mergekit" else 0.9, abs=0.01)
    assert counters == ({"sce_uniform_weights": 1} if variant == "mergekit" else {})
    if variant == "mergekit":
        assert gap(merged, mergekit("sce", changes, zero, select_topk=1.0)) < 4


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_invariant_order_does_not_matter(tau):
    base, sources = models(3, shape=(30, 70), spread=(0.5, 1.0, 0.2))
    for variant in VARIANTS:
        method = Sce(tau=tau, variant=variant)
        assert gap(merge_tensors(method, sources, base), merge_tensors(method, sources[::-1], base)) < 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_invariant_equal_models_return_themselves(dtype):
    base, (source, _) = models(2, dtype=dtype)
    for method in (Sce(tau=1.0), Sce(tau=1.0, variant="mergekit"), Sce(tau=0.1, variant="fuseai")):
        assert torch.equal(merge_tensors(method, [source] * 3, base), source)


def test_where_all_sources_agree_nothing_is_selected_and_that_is_counted():
    base, (source,) = models(1)
    counters = Counter()
    assert torch.equal(merge_tensors(Sce(), [source] * 2, base, counters=counters), base)
    assert counters == {"sce_nothing_selected": 1, "sce_uniform_weights": 1}


def test_of_equal_variances_the_first_are_selected_in_bfloat16_where_they_are_many():
    base, sources = models(3, shape=(500, 64), spread=0.01, dtype=torch.bfloat16)
    for variant in VARIANTS:
        method = Sce(tau=0.3, variant=variant)
        floats = [source.float() for source in sources]
        assert gap(merge_tensors(method, floats, base.float()), oracle(method, floats, base)) < 2


def test_wrong_input():
    with pytest.raises(ValueError, match="sce: 1 source, expected 2 or more"):
        merge_tensors(Sce(), [FIRST], SECOND)
    with pytest.raises(ValueError, match="sce: no base model"):
        merge_tensors(Sce(), [FIRST, SECOND])
    for bad in ({"tau": 0.0}, {"tau": 1.1}, {"variant": "fork"}, {"select_topk": 0.5}):
        with pytest.raises(pydantic.ValidationError, match=next(iter(bad))):
            Sce(**bad)
