"""What may be said of models and methods on lm_eval's command line, and how their tokenizers are seen."""

import pytest

from lmfuse.decode.cool import Cool
from lmfuse.errors import InputError
from lmfuse.evaluate.harness_models import Ensemble, device_names, make_method, names, starts_texts
from lmfuse.models import ModelSpec
from tests.evaluate.harness_build import ensemble, folder


def test_a_method_is_made_of_what_the_command_line_gives():
    assert make_method("cool", {"length": 8, "weights": "2+1"}, ()) == Cool(length=8, weights=(2.0, 1.0))
    assert make_method("pack_llm", {"temperature": 0}, ()).temperature == 0


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("coool", {}, "method: unknown 'coool'; did you mean 'cool'"),
        ("cool", {"lenght": 3}, "--model_args: unknown 'lenght'; did you mean 'length'"),
        ("cool", {"pretrained": "x"}, "unknown 'pretrained'"),
        ("cool", {"length": 0}, "length"),
        ("cool", {"weights": "a+b"}, "expected numbers"),
    ],
)
def test_methods_that_are_none_are_refused(name, parameters, message):
    with pytest.raises(InputError, match=message):
        make_method(name, parameters, ("models", "dtype"))


def test_devices_fall_back_as_the_harness_does(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_names((), "cuda:0") == ("cpu",)
    assert device_names((), None) == ("auto",)
    assert device_names("cuda:0+cuda:1", "cpu") == ("cuda:0", "cuda:1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device_names((), "cuda:0") == ("cuda:0",)


def test_models_are_named_once_and_have_a_device_each():
    spec = ModelSpec(folder("byte_bpe"))
    for specs, devices, message in (
        ([], ["cpu"], "none"),
        ([spec, spec], ["cpu"], "each once|byte_bpe"),
        ([spec], ["cpu", "cpu"], "2 for 1"),
    ):
        with pytest.raises(InputError, match=message):
            Ensemble(specs, devices, Cool())
    assert names(["a+b"]) == ("a+b",)


def test_a_text_begins_as_the_tokenizer_begins_it():
    """A start token that the tokenizer does not add by itself stands only where nothing else does."""
    assert [starts_texts(ModelSpec(folder(kind))) for kind in ("byte_bpe", "metaspace_bpe", "unigram")] == [False, True, False]
    plain, empty = (ensemble("byte_bpe").models(view)[0].tokenizer for view in ("plain", "empty"))
    assert (plain.start_ids, len(empty.start_ids)) == ((), 1)
    assert len(ensemble("metaspace_bpe").models("plain")[0].tokenizer.start_ids) == 1
    assert ensemble("byte_bpe").models("plain")[0].module is ensemble("byte_bpe").models("empty")[0].module


def test_a_template_without_a_place_for_a_system_message_is_found():
    assert ensemble("byte_bpe", "metaspace_bpe", chat=True).takes_system
    assert not ensemble("byte_bpe", "unigram", chat=True).takes_system


def test_a_model_without_a_chat_template_is_named():
    with pytest.raises(InputError, match="byte_bpe"):
        ensemble("byte_bpe").use_template("own")
