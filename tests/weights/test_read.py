"""Reading pieces: types, rows that move or are missing, bytes that are not aligned, values that are not finite."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lmfuse.errors import ModelError
from lmfuse.merge.linear import Linear
from lmfuse.merge.piece import cuts
from lmfuse.weights.plan import MergePlan, OpenedModel, OutputTensor, TensorRef
from lmfuse.weights.read import OpenFiles, Reader, in_file_order, place_of, refuse_non_finite
from tests.model_folders import edit_weights, shard
from tests.weights.plans import family, opened

NAME = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"))


def output(shape: tuple[int, ...], *refs: TensorRef, base: TensorRef | None = None) -> OutputTensor:
    return OutputTensor(NAME, shape, "F32", Linear(), refs, base)


def test_pieces_are_the_rows_of_all_models(folders):
    models = opened(folders)
    tables = [load_file(folder / "model.safetensors")[NAME] for folder in folders]
    opened_tensor = OpenFiles(models).tensor(
        output(tuple(tables[0].shape), TensorRef(1, NAME), TensorRef(2, NAME), base=TensorRef(0, NAME))
    )
    piece = Reader().piece(opened_tensor, 64, 160)
    assert torch.equal(piece.sources, torch.stack([table.view(-1)[64:160] for table in tables[1:]]))
    assert piece.base is not None
    assert torch.equal(piece.base, tables[0].view(-1)[64:160])
    assert (piece.name, piece.start, piece.shape) == (NAME, 64, tuple(tables[0].shape))


def test_missing_rows_by_hand(tmp_path):
    """Row 0 is everyone's; 1 lacks in one source: the base's; 2 lacks in the base: the mean of the others, everywhere; 3 nobody has: zeros."""
    folders = family(tmp_path)
    for number, folder in enumerate(folders):
        edit_weights(folder, lambda tensors, number=number: tensors.update({NAME: torch.arange(8.0).view(4, 2) + 100 * number}))
    maps = [(0, 1, -1, -1), (3, -1, 0, -1), (1, 2, 2, -1)]
    refs = [TensorRef(index, NAME, rows) for index, rows in enumerate(maps)]
    tensor = OpenFiles(opened(folders)).tensor(output((4, 2), *refs[1:], base=refs[0]))
    piece = Reader().piece(tensor, 0, 8)
    assert tensor.rows_without_base == 1
    assert piece.base is not None
    assert piece.base.tolist() == [0, 1, 2, 3, (100 + 204) / 2, (101 + 205) / 2, 0, 0]
    assert piece.sources.tolist() == [[106, 107, 2, 3, 152, 153, 0, 0], [202, 203, 204, 205, 152, 153, 0, 0]]
    without = OpenFiles(opened(folders)).tensor(output((4, 2), *refs))
    assert Reader().piece(without, 2, 6).sources.tolist() == [[2, 3, 152, 153], [103, 104, 100, 101], [204, 205, 204, 205]]


@pytest.mark.parametrize("change", ["written", "replaced"])
def test_a_file_that_changed_since_it_was_checked_is_not_read(tmp_path, change):
    """Another size or time, or another file of the same size and time."""
    folders = family(tmp_path, 1)
    models, path = opened(folders), folders[0] / "model.safetensors"
    if change == "written":
        edit_weights(folders[0], lambda tensors: tensors[NAME].mul_(2))
    else:
        state = path.stat()
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes())
        os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
        other.rename(path)
    with pytest.raises(ModelError, match=r"model\.safetensors was changed after it was checked"):
        OpenFiles(models).data(0, NAME)


def test_rows_of_a_vector_are_its_elements(tmp_path):
    folders = family(tmp_path, 1)
    edit_weights(folders[0], lambda tensors: tensors.update({"lm_head.bias": torch.arange(3.0)}))
    tensor = OpenFiles(opened(folders)).tensor(
        OutputTensor("lm_head.bias", (4,), "F32", Linear(), (TensorRef(0, "lm_head.bias", (2, -1, 0, 1)),))
    )
    assert Reader().piece(tensor, 0, 4).sources.tolist() == [[2, 0, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_types_and_bytes_that_are_not_aligned(tmp_path, dtype, shift):
    """A header may have any length, so tensors may begin at any byte."""
    folders = family(tmp_path, 1)
    values = torch.randn(6, 5).to(dtype)
    path = folders[0] / "model.safetensors"
    save_file({NAME: values}, path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header, data = path.read_bytes()[8 : 8 + length].rstrip(), path.read_bytes()[8 + length :]
    header += b" " * (-len(header) % 8 + shift)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    tensor = OpenFiles(opened(folders)).tensor(output((6, 5), TensorRef(0, NAME)))
    assert tensor.sources[0].aligned == (shift % dtype.itemsize == 0)
    reader = Reader()
    assert torch.equal(reader.piece(tensor, 5, 20).sources[0], values.float().view(-1)[5:20])
    assert torch.equal(reader.piece(tensor, 0, 30).sources[0], values.float().view(-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_values_that_are_not_finite_are_named(tmp_path, value, where):
    folders = family(tmp_path)
    edit_weights(folders[where], lambda tensors: tensors[NAME].view(-1)[40].fill_(value))
    models = opened(folders)
    tensor = OpenFiles(models).tensor(output((409, 32), TensorRef(0, NAME), TensorRef(1, NAME), base=TensorRef(2, NAME)))
    with pytest.raises(ModelError, match=rf"^{models[where].label}: tensor {NAME} holds {value} at element \[1, 8\]$"):
        refuse_non_finite(Reader().piece(tensor, 32, 96), tensor.columns)
    refuse_non_finite(Reader().piece(tensor, 64, 96), tensor.columns)


def test_finite_values_whose_sum_overflows_are_let_through(tmp_path):
    folders = family(tmp_path, 1)
    edit_weights(folders[0], lambda tensors: tensors[NAME].fill_(3e38))
    tensor = OpenFiles(opened(folders)).tensor(output((409, 32), TensorRef(0, NAME)))
    piece = Reader().piece(tensor, 0, 320)
    assert not bool(torch.isfinite(piece.sources.sum()))
    refuse_non_finite(piece, tensor.columns)


def test_places_are_written_as_people_index():
    assert place_of(0, ()) == "[]"
    assert place_of(7, (10,)) == "[7]"
    for index, place in enumerate(np.ndindex(2, 3, 4)):
        assert place_of(index, (2, 3, 4)) == str(list(place))


def test_tensors_come_as_they_lie_in_the_first_models_files(tmp_path):
    folders = family(tmp_path, 2)
    weight_map = shard(folders[0], 3)
    models = opened(folders)
    names = sorted(weight_map, reverse=True)
    tensors = tuple(OutputTensor(name, models[0].entry(name).shape, "F32", Linear(), (TensorRef(0, name),)) for name in names)
    ordered = [each.name for each in in_file_order(MergePlan(models, tensors, {}))]
    assert [weight_map[name] for name in ordered] == sorted(weight_map.values())
    starts = [models[0].tensors[name][1].start for name in ordered if weight_map[name] == min(weight_map.values())]
    assert starts == sorted(starts)


def test_every_element_is_in_one_piece(folders):
    models: tuple[OpenedModel, ...] = opened(folders)
    files = OpenFiles(models)
    for name, (_, entry) in models[1].tensors.items():
        tensor = files.tensor(OutputTensor(name, entry.shape, "F32", Linear(), (TensorRef(1, name),)))
        read = torch.cat([Reader().piece(tensor, *cut).sources[0].clone() for cut in cuts(entry.shape)])
        assert torch.equal(read.view(entry.shape), load_file(folders[1] / "model.safetensors")[name])
