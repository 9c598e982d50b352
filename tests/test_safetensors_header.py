"""Headers of safetensors files: read as the library reads them, refused where they lie."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from lmfuse.errors import ModelError, VerificationError
from lmfuse.safetensors_header import read_header


def write(path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_by_hand(tmp_path):
    write(tmp_path / "a", {"__metadata__": {"who": "me"}, "x": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}, bytes(12))
    header = read_header(tmp_path / "a")
    entry = header.tensors["x"]
    assert (entry.dtype, entry.shape, entry.size, entry.stop - entry.start) == ("F16", (2, 3), 6, 12)
    assert (header.metadata, header.num_bytes) == ({"who": "me"}, entry.stop)


def test_what_the_library_writes_lies_where_the_header_says(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.uint16).reshape(2, 3), "b": np.ones((), np.float64), "c": np.zeros((0, 4), np.float32)}
    save_file(arrays, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    for name, entry in read_header(tmp_path / "a.safetensors").tensors.items():
        found = np.frombuffer(data[entry.start : entry.stop], arrays[name].dtype).reshape(entry.shape)
        np.testing.assert_array_equal(found, arrays[name])


@given(st.data())
def test_any_damage_to_the_header_is_refused_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("h") / "a"
    whole = bytearray(save({"weight": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}))
    place = data.draw(st.integers(0, len(whole) - 25))
    whole[place] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with suppress(ModelError):
        header = read_header(path)
        assert all(entry.stop <= header.num_bytes for entry in header.tensors.values())


ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "broken safetensors header"),
        (b"\xff\xfe", "broken safetensors header"),
        (b"[" * 100_000, "broken safetensors header"),
        ([1], "broken safetensors header"),
        ({"x": 1}, "broken safetensors header"),
        ({"x": {"dtype": "U8", "shape": [4]}}, "broken safetensors header"),
        ({"x": ENTRY | {"dtype": "Q9"}}, "unknown type Q9"),
        ({"x": ENTRY | {"shape": [-4]}}, "unknown type U8 or shape"),
        ({"x": ENTRY | {"shape": [5]}}, "do not fill 4 bytes"),
        ({"x": ENTRY | {"data_offsets": [1, 5]}}, "a tensor starts at byte"),
        ({"x": ENTRY, "y": ENTRY}, "a tensor starts at byte"),
        ({"x": ENTRY, "y": ENTRY | {"data_offsets": [4, 8]}}, "is truncated"),
        ({}, "but its header says"),
    ],
)
def test_lies_are_refused(tmp_path, header, message):
    write(tmp_path / "a", header, bytes(4))
    with pytest.raises(VerificationError, match=message):
        read_header(tmp_path / "a", VerificationError)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            read_header(path)
