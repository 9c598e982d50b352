"""Weight files while they are written: places, types, hashes, and that the journal never speaks before the disk."""

import hashlib
import os
import time

import pytest
import torch
from safetensors.torch import load_file

import lmfuse.weights.write
from lmfuse.errors import InputError
from lmfuse.merge.linear import Linear
from lmfuse.weights.layout import lay_out
from lmfuse.weights.plan import OutputTensor
from lmfuse.weights.read import OpenTensor
from lmfuse.weights.write import Output

TENSORS = [OutputTensor(f"t{n}", (3, 4), dtype, Linear(), ()) for n, dtype in enumerate(("F32", "BF16", "F16", "F32", "F32"))]
SHARDS = lay_out(TENSORS, 100)
VALUES = {tensor.name: torch.randn(12) for tensor in TENSORS}


def write(output: Output, tensor: OutputTensor) -> None:
    for start in (4, 0, 8):  # in any order
        output.write(OpenTensor(tensor, (), None), start, VALUES[tensor.name][start : start + 4])
    output.finish({"tensor": tensor.name})


def test_what_is_written_is_what_is_read(tmp_path):
    journal: list[str] = []
    with Output(tmp_path, SHARDS, [], lambda records: journal.extend(record["tensor"] for record in records)) as output:
        for tensor in reversed(TENSORS):
            write(output, tensor)
        entries = output.complete()
    assert sorted(journal) == sorted(tensor.name for tensor in TENSORS)
    assert list(entries) == [shard.name for shard in SHARDS]
    for shard in SHARDS:
        data = (tmp_path / shard.part).read_bytes()
        assert (entries[shard.name].size, entries[shard.name].sha256) == (len(data), hashlib.sha256(data).hexdigest())
        (tmp_path / shard.part).rename(tmp_path / shard.name)
        for name, found in load_file(tmp_path / shard.name).items():
            assert torch.equal(found, VALUES[name].to(found.dtype).view(3, 4))


def test_files_have_their_full_size_from_the_start_and_names_that_nothing_loads(tmp_path):
    with Output(tmp_path, SHARDS, [], lambda records: None):
        assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {shard.part: shard.num_bytes for shard in SHARDS}
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_journal_speaks_after_the_disk(tmp_path, monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(lmfuse.weights.write, "FLUSH_SECONDS", 0.001)
    monkeypatch.setattr(lmfuse.weights.write, "_flush_data", lambda handle: events.append("flush"))
    with Output(tmp_path, SHARDS, [], lambda records: events.extend(record["tensor"] for record in records)) as output:
        for tensor in TENSORS:
            events.append(f"{tensor.name} written")
            write(output, tensor)
            time.sleep(0.01)
        output.complete()
    for tensor in TENSORS:
        written, told = events.index(f"{tensor.name} written"), events.index(tensor.name)
        assert "flush" in events[written:told]


def test_a_second_writer_goes_on(tmp_path):
    """What the first finished counts, its bytes stay, and the hash is that of the whole file."""
    with Output(tmp_path, SHARDS, [], lambda records: None) as output:
        for tensor in TENSORS[:3]:
            write(output, tensor)
    records = [{"tensor": tensor.name} for tensor in TENSORS[:3]]
    with Output(tmp_path, SHARDS, records, lambda records: None) as output:
        for tensor in TENSORS[3:]:
            write(output, tensor)
        entries = output.complete()
    for shard in SHARDS:
        assert entries[shard.name].sha256 == hashlib.sha256((tmp_path / shard.part).read_bytes()).hexdigest()


def test_what_goes_wrong_behind_the_writers_is_raised(tmp_path):
    def journal(records) -> None:
        raise OSError(28, "No space left on device")

    def merge(complete: bool) -> None:
        with Output(tmp_path, SHARDS, [], journal) as output:
            write(output, TENSORS[0])
            if complete:
                output.complete()

    for complete in (True, False):
        with pytest.raises(OSError, match="No space left"):
            merge(complete)


def test_handles_are_closed(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("needs /proc")
    with Output(tmp_path, SHARDS, [], lambda records: None) as output:
        for tensor in TENSORS:
            write(output, tensor)
        output.complete()
    with pytest.raises(ZeroDivisionError), Output(tmp_path, SHARDS, [], lambda records: None):
        raise ZeroDivisionError
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("F16", 65504.0, True),
        ("F16", 65520.0, False),
        ("BF16", 1e30, True),
        ("BF16", 3.4e38, False),
        ("F32", 3.4e38, True),
        ("F32", float("nan"), False),
    ],
)
def test_values_that_do_not_fit_are_named(tmp_path, dtype, value, fits):
    tensor = OutputTensor("t", (2, 3), dtype, Linear(), ())
    values = torch.full((6,), 3.3e38 if dtype != "F16" else 6e4)  # finite, though their sum is not
    values[4] = value
    with Output(tmp_path, lay_out([tensor], 100), [], lambda records: None) as output:
        if fits:
            output.write(OpenTensor(tensor, (), None), 0, values)
        else:
            with pytest.raises(InputError, match=rf"^t: the merged value (nan|\d\.?\d*e?\+?\d*) at element \[1, 1\] is none of {dtype}$"):
                output.write(OpenTensor(tensor, (), None), 0, values)


def test_a_link_in_the_place_of_a_part_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"mine")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / SHARDS[0].part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Output(tmp_path / "work", SHARDS, [], lambda records: None)
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
