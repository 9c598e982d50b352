"""Where each tensor lies: what other readers of the format say of our headers and indexes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from lmfuse.merge.passthrough import Passthrough
from lmfuse.model_files import check_folder
from lmfuse.safetensors_header import ITEM_BITS, read_header
from lmfuse.weights.layout import index_file, lay_out, num_bytes
from lmfuse.weights.plan import OutputTensor


def output(name: str, shape: tuple[int, ...], dtype: str = "BF16") -> OutputTensor:
    return OutputTensor(name, shape, dtype, Passthrough(), ())


def test_by_hand():
    """Two tensors of 8 and 6 bytes: a header padded to 8, then one after the other."""
    (shard,) = lay_out([output("a", (2, 2)), output("b", (3,))], 100)
    length = int.from_bytes(shard.header[:8], "little")
    assert len(shard.header) == 8 + length
    assert len(shard.header) % 8 == 0
    assert [(span.start - len(shard.header), span.stop - len(shard.header)) for span in shard.spans.values()] == [(0, 8), (8, 14)]
    assert json.loads(shard.header[8:])["__metadata__"] == {"format": "pt"}
    assert (shard.name, shard.part, shard.num_bytes) == ("model.safetensors", "model.part", len(shard.header) + 14)


def test_shards_are_filled_in_order_and_a_large_tensor_stands_alone():
    tensors = [output(name, (size,), "F32") for name, size in (("a", 2), ("b", 2), ("c", 100), ("d", 1), ("e", 3))]
    shards = lay_out(tensors, 16)
    assert [list(shard.spans) for shard in shards] == [["a", "b"], ["c"], ["d", "e"]]
    assert [shard.name for shard in shards] == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    name, content = index_file(shards) or ("", b"")
    assert name == "model.safetensors.index.json"
    assert json.loads(content)["metadata"]["total_size"] == 4 * 108
    assert json.loads(content)["weight_map"]["d"] == shards[2].name
    assert index_file(shards[:1]) is None


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(["F32", "BF16", "F16", "I64", "BOOL"])), max_size=6),
    st.integers(1, 99),
)
def test_the_formats_own_reader_agrees(tmp_path_factory, shapes, limit):
    tensors = [output(f"τ{n}", tuple(shape), dtype) for n, (shape, dtype) in enumerate(shapes)]
    folder = tmp_path_factory.mktemp("layout")
    for shard in lay_out(tensors, limit):
        path = folder / shard.name
        path.write_bytes(shard.header + bytes(shard.num_bytes - len(shard.header)))
        with safe_open(str(path), framework="np") as file:
            assert set(file.keys()) == set(shard.spans)
        for name, entry in read_header(path).tensors.items():
            assert (entry.start, entry.stop) == (shard.spans[name].start, shard.spans[name].stop)
            assert (entry.start - len(shard.header)) % (ITEM_BITS[entry.dtype] // 8) == 0
    assert sum(num_bytes(each) for each in tensors) == sum(
        s.stop - s.start for shard in lay_out(tensors, limit) for s in shard.spans.values()
    )


def test_an_index_that_checks_out(folder):
    """A folder made of our shards passes the checks of any model's folder."""
    tensors = [output(f"t{n}", (4, 4), "F32") for n in range(3)]
    shards = lay_out(tensors, 100)
    (folder / "model.safetensors").unlink()
    for shard in shards:
        (folder / shard.name).write_bytes(shard.header + np.ones((shard.num_bytes - len(shard.header)) // 4, np.float32).tobytes())
    name, content = index_file(shards) or pytest.fail("several shards need an index")
    (folder / name).write_bytes(content)
    assert len(check_folder(folder).headers) == len(shards) == 3
