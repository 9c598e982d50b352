"""mergekit's merge methods and their parameters by name, as of mergekit 0.1.5, and what each is called here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REQUIRED: Any = ...  # the default of a parameter that has none


@dataclass(frozen=True)
class Parameter:
    """One parameter of a mergekit method.

    Attributes:
        theirs: mergekit's name.
        ours: the method's field; ``""`` for one that has only one value here, or changes nothing.
        kind: type of its value.
        per_source: whether each source has its own.
        default: mergekit's, in our words.
        only: whether the default is all that is supported.
        words: what we call its values.
    """

    theirs: str
    ours: str
    kind: type = float
    per_source: bool = False
    default: Any = REQUIRED
    only: bool = False
    words: Mapping[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Translation:
    """One mergekit method, and the method and settings of ours that are the same.

    Attributes:
        theirs, ours: the names.
        parameters: that mergekit's method reads.
        fixed: other settings that make ours the same.
        needs_base: whether a base model must be named.
        base_apart: whether a base, where there is one, is no source.
        note: what is not exactly the same.
    """

    theirs: str
    ours: str
    parameters: tuple[Parameter, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needs_base: bool = True
    base_apart: bool = True
    note: str = ""


IGNORED = {"int8_mask": Parameter("int8_mask", "", bool, default=False)}  # how mergekit stores a mask; no value depends on it
_WEIGHT = Parameter("weight", "weights", per_source=True)
_DENSITY = Parameter("density", "density", per_source=True, default=1.0)
_LAMBDA = Parameter("lambda", "scale", default=1.0)
_RESCALE = Parameter("rescale", "rescale", bool, default="l1", words={True: "l1", False: "none"})
_EPSILON = Parameter("epsilon", "epsilon", per_source=True, default=0.15)


def _normalise(default: bool, theirs: str = "normalize") -> Parameter:
    return Parameter(theirs, "normalise", bool, default=default)


def _only(theirs: str, default: Any) -> Parameter:
    return Parameter(theirs, "", type(default), default=default, only=True)


_SLERP_NOTE = (
    "slerp: ours follows the great circle at any angle; mergekit's takes the straight line where |cos| > 0.9995 (up to 1.3e-4 off)"
)
_KARCHER_NOTE = (
    "karcher: ours goes on until the mean stands still, unless max_iter and tol say otherwise; mergekit stops at tol 1e-5 or after 10 steps"
)
_DRAWN = "which changes are dropped is drawn from our own seed, so single numbers are not those of mergekit"

_ALL = (
    Translation("linear", "linear", (_WEIGHT, _normalise(True)), needs_base=False, base_apart=False),
    Translation("slerp", "slerp", (Parameter("t", "t"),), base_apart=False, note=_SLERP_NOTE),
    Translation("multislerp", "multislerp", (_WEIGHT, _normalise(True, "normalize_weights"), _only("eps", 1e-8)), needs_base=False),
    Translation(
        "karcher",
        "karcher",
        (Parameter("max_iter", "max_iterations", int, default=100), Parameter("tol", "tolerance", default=1e-9)),
        {"weights": 1.0},
        needs_base=False,
        base_apart=False,
        note=_KARCHER_NOTE,
    ),
    Translation(
        "passthrough", "passthrough", (Parameter("scale", "scale", per_source=True, default=1.0),), needs_base=False, base_apart=False
    ),
    Translation("model_stock", "model_stock", (_only("filter_wise", False),), {"granularity": "tensor"}),
    Translation("sce", "sce", (Parameter("select_topk", "tau", default=1.0),), {"variant": "mergekit"}),
    Translation("task_arithmetic", "task_arithmetic", (_WEIGHT, _normalise(False), _LAMBDA)),
    Translation("ties", "ties", (_WEIGHT, _DENSITY, _normalise(True), _LAMBDA, _only("rescale", False)), {"granularity": "tensor"}),
    Translation("dare_linear", "dare", (_WEIGHT, _DENSITY, _normalise(False), _LAMBDA, _RESCALE), {"then": "linear"}, note=_DRAWN),
    Translation("dare_ties", "dare", (_WEIGHT, _DENSITY, _normalise(False), _LAMBDA, _RESCALE), {"then": "ties"}, note=_DRAWN),
    Translation("della", "della", (_WEIGHT, _DENSITY, _EPSILON, _normalise(True), _LAMBDA, _RESCALE), {"then": "ties"}, note=_DRAWN),
    Translation(
        "della_linear", "della", (_WEIGHT, _DENSITY, _EPSILON, _normalise(False), _LAMBDA, _RESCALE), {"then": "linear"}, note=_DRAWN
    ),
)
TRANSLATIONS: Mapping[str, Translation] = {each.theirs: each for each in _ALL}
UNTRANSLATED: Mapping[str, str] = {
    **dict.fromkeys(
        ("nuslerp", "nearswap", "ram", "ramplus_tl", "arcee_fusion", "breadcrumbs", "breadcrumbs_ties"), "lmfuse has no such method"
    ),
}
