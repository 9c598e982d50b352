import dataclasses
import subprocess
import sys
from typing import get_args

import pytest
from pydantic import TypeAdapter

from lmfuse.catalogue import MergeMethod
from lmfuse.merge.family import check_weights, normalised, per_source, unit_name
from lmfuse.merge.sce import Sce
from lmfuse.merge.slerp import Slerp

METHODS = get_args(get_args(MergeMethod)[0])


def test_all_methods_are_there():
    names = "linear slerp multislerp karcher task_arithmetic ties dare della model_stock varm sce fisher reg_mean passthrough"
    assert [method().name for method in METHODS] == names.split()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_method_is_its_own_configuration(method):
    adapter = TypeAdapter(MergeMethod)
    plain = adapter.dump_python(method(), mode="json")
    assert adapter.validate_python(plain) == method()
    assert adapter.validate_python({"name": plain["name"]}) == method()
    assert dataclasses.replace(method()) == method()


def test_per_source_numbers_come_from_lists():
    found = TypeAdapter(MergeMethod).validate_python({"name": "ties", "weights": [1, 0.5], "density": 0.3})
    assert (found.weights, found.density) == ((1.0, 0.5), 0.3)


def test_settings_load_without_torch():
    code = "import sys, lmfuse.catalogue; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_units():
    name = "model.layers.11.mlp.experts.3.up_proj.weight"
    assert [unit_name(name, granularity) for granularity in ("tensor", "layer", "model")] == [name, "model.layers.11", ""]
    assert unit_name("h.0.attn.weight", "layer") == "h.0"
    assert unit_name("transformer.wte.weight", "layer") == "transformer.wte.weight"
    assert unit_name("layer10x.weight", "layer") == "layer10x.weight"


def test_numbers_of_sources_are_checked_before_anything_is_read():
    Sce().check(2, has_base=True)
    with pytest.raises(ValueError, match="sce: no base model, expected one"):
        Sce().check(2, has_base=False)
    with pytest.raises(ValueError, match="sce: 1 source, expected 2 or more"):
        Sce().check(1, has_base=True)
    with pytest.raises(ValueError, match=r"slerp: 3 sources, expected 2$"):
        Slerp().check(3, has_base=False)


def test_weights():
    assert per_source(2.0, 3, "x") == (2.0, 2.0, 2.0)
    assert normalised((1.0, -0.5), "x") == (2.0, -1.0)
    with pytest.raises(ValueError, match="density: 2 numbers for 3 sources"):
        per_source((1.0, 2.0), 3, "density")
    with pytest.raises(ValueError, match=r"weights: 0.1, 0.2, -0.3 sum to 0, expected a sum to divide by"):
        normalised((0.1, 0.2, -0.3), "weights")  # 0.1 + 0.2 - 0.3 is 5.6e-17
    check_weights((0.0, 0.0), may_be_zero=True)
    check_weights((1.0, -1.0), normalise=False)
    with pytest.raises(ValueError, match="weights: all are 0"):
        check_weights(0.0)
