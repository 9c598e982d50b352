import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lmfuse.errors import RecipeError
from lmfuse.yaml_strict import dump_yaml, load_yaml


def test_scalars_mean_what_they_look_like():
    text = "a: 1e-5\nb: no\nc: 12:30:45\nd: 2024-01-01\ne: true\nf: null\ng: .5\nh: '1'\ni: 0x10\nj: -3\n"
    assert load_yaml(text, "r") == {
        "a": 1e-5, "b": "no", "c": "12:30:45", "d": "2024-01-01", "e": True, "f": None, "g": 0.5, "h": "1", "i": "0x10", "j": -3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: &x 1\nb: *x\n", 1, "anchors and aliases"),
        ("a: 1\nb: !!python/object:os.system 1\n", 2, "tags are not accepted"),
        ("a: 1\na: 2\n", 2, "stands twice"),
        ("1: 2\n", 1, "a key must be text"),
        ("a: [1\n", 2, "expected ',' or ']'"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_line(text, line, what):
    with pytest.raises(RecipeError, match=f"r, line {line}: .*{what}"):
        load_yaml(text, "r")


def test_deep_nesting_is_an_error_not_a_crash():
    with pytest.raises(RecipeError, match="nested too deeply"):
        load_yaml("[" * 5000, "r")


PRINTABLE = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(PRINTABLE, max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz_", min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
def test_what_is_written_is_read_back(value):
    assert load_yaml(dump_yaml({"value": value}), "r") == {"value": value}


@given(st.sampled_from(["no", "on", "1e-5", "12:30:45", "2024-01-01", "0x1F", "null", "~", "", "1_000", "1.", "true"]))
def test_text_survives_other_readers_too(text):
    assert yaml.safe_load(dump_yaml({"value": text})) == {"value": text}
