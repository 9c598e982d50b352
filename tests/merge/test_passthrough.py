import pydantic
import pytest
import torch

from lmfuse.merge.passthrough import Passthrough
from lmfuse.merge.whole import merge_tensors
from tests.merge.build import mergekit, models


def test_by_hand():
    source = torch.tensor([8.0, -2.0])
    assert merge_tensors(Passthrough(scale=0.5), [source]).tolist() == [4.0, -1.0]
    assert merge_tensors(Passthrough(scale=0.0), [source]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [1.0, -0.3, 0.0])
def test_oracle_mergekit(scale):
    _, (source,) = models(1)
    assert torch.equal(merge_tensors(Passthrough(scale=scale), [source]), mergekit("passthrough", [source], scale=scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_invariant_the_same_bytes(dtype):
    _, (source,) = models(1, dtype=dtype)
    assert torch.equal(merge_tensors(Passthrough(), [source]), source)


def test_wrong_input():
    with pytest.raises(ValueError, match="passthrough: 2 sources, expected 1"):
        merge_tensors(Passthrough(), models(2)[1])
    with pytest.raises(pydantic.ValidationError, match="scale"):
        Passthrough(scale=float("nan"))
