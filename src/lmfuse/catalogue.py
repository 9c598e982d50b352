"""Every method by name: what it is, its paper, its parameters. Recipes, the command line and the docs page read this table.

Adding a method is one file in its family's folder, one line here, one test file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import Field

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.dtw import Dtw
from lmfuse.align.join import Join
from lmfuse.decode.byte_mixture import ByteMixture
from lmfuse.decode.cool import Cool
from lmfuse.decode.cool_rerank import CoolRerank
from lmfuse.decode.pack_llm import PackLLM
from lmfuse.decode.rerank import Rerank
from lmfuse.decode.safe import Safe
from lmfuse.decode.unite import Unite
from lmfuse.errors import InputError, did_you_mean
from lmfuse.evolve.cma_es import CmaEs
from lmfuse.evolve.de_best_1 import DeBest1
from lmfuse.evolve.de_current_to_best_1 import DeCurrentToBest1
from lmfuse.evolve.de_rand_1 import DeRand1
from lmfuse.evolve.interpolation import Interpolation
from lmfuse.evolve.swarm import Swarm
from lmfuse.fuse.avg_ce import AvgCE
from lmfuse.fuse.min_ce import MinCE
from lmfuse.fuse.posterior import Posterior
from lmfuse.fuse.uniform import Uniform
from lmfuse.judges.settings import JudgeMethod
from lmfuse.losses.chunk_likelihood import ChunkLikelihood
from lmfuse.losses.cross_entropy import CrossEntropy
from lmfuse.losses.family import Loss
from lmfuse.losses.kl import KL
from lmfuse.losses.projected_kl import ProjectedKL
from lmfuse.losses.uld import Uld
from lmfuse.merge.dare import Dare
from lmfuse.merge.della import Della
from lmfuse.merge.fisher import Fisher
from lmfuse.merge.karcher import Karcher
from lmfuse.merge.linear import Linear
from lmfuse.merge.model_stock import ModelStock
from lmfuse.merge.multislerp import MultiSlerp
from lmfuse.merge.passthrough import Passthrough
from lmfuse.merge.reg_mean import RegMean
from lmfuse.merge.sce import Sce
from lmfuse.merge.slerp import Slerp
from lmfuse.merge.task_arithmetic import TaskArithmetic
from lmfuse.merge.ties import Ties
from lmfuse.merge.varm import Varm
from lmfuse.vote.family import VoteMethod

AlignMethod = Annotated[ByteLaw | Join | Dtw, Field(discriminator="name")]
FuseMethod = Annotated[MinCE | AvgCE | Uniform | Posterior, Field(discriminator="name")]
LossMethod = Annotated[KL | CrossEntropy | ChunkLikelihood | Uld | ProjectedKL, Field(discriminator="name")]
MergeMethod = Annotated[
    Linear | Slerp | MultiSlerp | Karcher | TaskArithmetic | Ties | Dare | Della | ModelStock | Varm | Sce | Fisher | RegMean | Passthrough,
    Field(discriminator="name"),
]
DecodeMethod = Annotated[Cool | Rerank | CoolRerank | ByteMixture | Unite | PackLLM | Safe, Field(discriminator="name")]
EvolveMethod = Annotated[Interpolation | DeRand1 | DeBest1 | DeCurrentToBest1 | CmaEs | Swarm, Field(discriminator="name")]


@dataclass(frozen=True)
class Family:
    """Methods that answer the same question, interchangeable in a recipe."""

    key: str
    question: str
    members: tuple[type, ...]


FAMILIES = tuple(
    Family(key, question, get_args(get_args(union)[0]))
    for key, union, question in (
        ("align", AlignMethod, "What does a source say about each of the target's tokens?"),
        ("fuse", FuseMethod, "Which source's distribution teaches a token, or what blend of them?"),
        ("loss", LossMethod, "How far is the student from the fused distribution?"),
        ("merge", MergeMethod, "How do several models of one architecture become one, weight by weight?"),
        ("decode", DecodeMethod, "How do several models write one text, without training?"),
        ("evolve", EvolveMethod, "Which child of several models is bred next?"),
        ("judge", JudgeMethod, "How good is a model's answer?"),
        ("vote", VoteMethod, "Which of several answers do the judges together prefer?"),
    )
)


def misfit(align: object, loss: Loss, num_sources: int, fuse: object = None) -> str | None:
    """Return why an alignment and a loss cannot work together on rows of so many sources, or None."""
    unmapped = isinstance(align, Join) and align.map == "none"
    name = getattr(loss, "name", "")
    if unmapped and loss.row_ids == "target":
        return f"align.map none leaves rows in the source's vocabulary, loss {name} reads the target's; use uld or projected_kl, or a map"
    if not unmapped and loss.row_ids == "source":
        return f"loss {name} reads rows in the source's vocabulary; use align: {{name: join, map: none}}"
    if unmapped and num_sources > 1:
        return f"align.map none with {num_sources} sources, whose vocabularies differ; name one source as the teacher, or use a map"
    if isinstance(loss, ChunkLikelihood) and isinstance(fuse, MinCE) and fuse.per == "token" and num_sources > 1:
        return "loss chunk_likelihood needs one source per chunk, fuse min_ce per token changes it inside; use per: document"
    return None


@dataclass(frozen=True)
class Parameter:
    """One field of a method: its name, the values it takes, and its default."""

    name: str
    kind: str
    default: str


@dataclass(frozen=True)
class Entry:
    """One method as people see it in ``lmfuse methods`` and in docs/methods.md."""

    family: Family
    name: str
    summary: str
    text: str
    papers: tuple[str, ...]
    parameters: tuple[Parameter, ...]


def _kind(annotation: Any) -> str:
    literals = get_args(annotation)
    if literals and all(isinstance(value, str) for value in literals):
        return " | ".join(literals)
    return annotation.__name__ if isinstance(annotation, type) else re.sub(r"\btyping\.", "", str(annotation))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)


def _entry(family: Family, method: type) -> Entry:
    hints = get_type_hints(method)
    fields = [field for field in dataclasses.fields(method) if field.name != "name"]
    text = "\n".join(line.strip() for line in (method.__doc__ or "").strip().splitlines())
    prose = text.split(">>>")[0].strip()
    return Entry(
        family,
        get_args(hints["name"])[0],
        prose.split("\n\n")[0].replace("\n", " "),
        prose,
        tuple(sorted(set(re.findall(r"arXiv:\d{4}\.\d{4,5}", text)))),
        tuple(Parameter(field.name, _kind(hints[field.name]), _default(field)) for field in fields),
    )


def entries() -> Iterator[Entry]:
    """Yield every method, family by family, in the order of the table."""
    for family in FAMILIES:
        for method in family.members:
            yield _entry(family, method)


def find(name: str) -> Entry:
    """Return the method of this name.

    Raises:
        InputError: no method is called so; the message suggests one.
    """
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        raise InputError(f"method: {did_you_mean(name, known)}", hint="`lmfuse methods` lists them")
    return known[name]


def markdown() -> str:
    """Return docs/methods.md."""
    lines = ["# Methods", "", "Generated by `make docs` from the classes themselves. The `name` is what a recipe says.", ""]
    for family in FAMILIES:
        lines += [f"## {family.key}", "", family.question, ""]
        for entry in (entry for entry in entries() if entry.family is family):
            lines += [f"### `{entry.name}`", "", entry.text, ""]
            if entry.papers:
                lines += ["Source: " + ", ".join(f"[{p}](https://arxiv.org/abs/{p.removeprefix('arXiv:')})" for p in entry.papers), ""]
            if entry.parameters:
                lines += ["| parameter | values | default |", "|---|---|---|"]
                lines += [f"| `{p.name}` | {p.kind.replace('|', 'or')} | `{p.default}` |" for p in entry.parameters]
                lines += [""]
    return "\n".join(lines)
