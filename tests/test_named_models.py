import pytest

from lmfuse.errors import InputError
from lmfuse.named_models import NamedModels
from lmfuse.pico import model_folder


def test_labels_tell_models_apart():
    assert NamedModels(("x/a", "y/a", "b/")).labels == ("x/a", "y/a", "b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": ()}, "--models: none"),
        ({"models": ("a", "a")}, "--models: a, a"),
        ({"models": ("a",), "dtype": "float23"}, "--dtype: .*float32"),
        ({"models": ("a", "b"), "devices": ("cpu", "cpu", "cpu")}, "2 models on 3 devices"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_anything_is(given, message):
    with pytest.raises(InputError, match=message):
        NamedModels(**given)


def test_models_are_loaded_in_their_order_and_type():
    folders = tuple(str(model_folder(name)) for name in ("prose", "math"))
    loaded = NamedModels(folders, dtype="float32", devices=("cpu",)).load()
    assert [str(model.dtype) for model in loaded] == ["torch.float32"] * 2
    assert loaded[0].key != loaded[1].key
