"""Chunk likelihood: student and teacher agree on how likely each stretch of text is, whatever tokens either cuts it into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from jaxtyping import Bool, Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.losses.family import SeenLoss

if TYPE_CHECKING:  # settings load without torch
    from lmfuse.losses.aids import Aids
    from lmfuse.losses.teacher import TeacherRows


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ChunkLikelihood(SeenLoss):
    """Approximate likelihood matching (ALM): binary divergence between the likelihoods of the chunks that both tokenizations share.
    arXiv:2503.20083, section 3

    A chunk is the text between two places where a token of the target and one of the source end together, so tokens inside it
    teach too. With p the teacher's probability of its bytes, q the student's of its tokens and t the temperature,

        loss of a chunk = t * ( P log(P / Q) + (1 - P) log((1 - P) / (1 - Q)) ),        P = p^(1/t), Q = q^(1/t)

    which has the gradient of the binary cross-entropy, and is 0 where both agree. The factor t is ours: without it a high
    temperature would leave nothing of the loss beside the ground truth's (the authors balance gradients instead). A chunk counts
    once, as published: its loss is shared out among its tokens, and the step's loss is the mean over all predicted tokens, so it
    does not depend on how a step is cut into batches. Tokens outside of chunks have plain cross-entropy. Only rows whose alignment
    tells the true tokens' probabilities make chunks: by ``byte_law`` nearly all, by ``join`` those of one token.

    - ``temperature``: t; 1 compares the likelihoods as they are, higher ones tell unlikely chunks apart.
    - ``debias``: a target's path that ends at a cut also says that no longer token reaches over it; the source's need not say the
      same. So both likelihoods are multiplied by the probability that the next token begins with white space or is a control token:
      exact for the student; for the teacher the share of such tokens among the candidates of the row behind the chunk, as if its
      tail were like them. At the end of a document, and where no row follows, neither side is corrected.
    - ``threshold``: chunks end only where the teacher's probability of such a token exceeds this; others are joined with the next one
      (with ``debias``). Text without spaces then makes long chunks.

    Teacher 1/4, student 1/2, both at temperature 1: 1/4 log(1/2) + 3/4 log(3/2) = .13081.

    >>> import torch
    >>> round(float(ChunkLikelihood(temperature=1).divergence(torch.tensor([4.0]).log(), torch.tensor([2.0]).log())), 5)
    0.13081
    """

    name: Literal["chunk_likelihood"] = "chunk_likelihood"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100.0
    debias: bool = True
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @property
    def wants(self) -> tuple[str, ...]:
        """Return ``boundary_ids`` where the correction needs it."""
        return ("boundary_ids",) if self.debias else ()

    def divergence(self, teacher_nats: Float[Any, "N"], student_nats: Float[Any, "N"]) -> Float[Any, "N"]:
        """Return the loss of chunks from both sides' negative log-likelihoods; finite for certain and for impossible chunks."""
        import torch

        wide = torch.finfo(student_nats.dtype)
        a = teacher_nats.clamp(0.0, wide.max**0.5) / self.temperature
        b = student_nats.clamp(min=wide.eps) / self.temperature  # a student as certain as its numbers can tell has no gradient left
        teacher, rest = (-a).exp(), -(-a).expm1()
        against = torch.special.xlogy(rest, rest) - rest * log1mexp(b)
        found: Float[Any, "N"] = self.temperature * (teacher * (b - a) + against)
        return found

    def see(self, logits: Float[Any, "N V"], rows: TeacherRows, aids: Aids) -> Float[Any, "N F"]:
        """Return the log-probability that a boundary token stands here, where ``debias`` asks for it."""
        if not self.debias:
            return logits[:, :0]
        inside = logits.index_select(1, aids.boundary_list).logsumexp(1)  # masking costs more: exp is slow where it underflows
        return (inside - logits.logsumexp(1))[:, None]

    def judge(
        self, surprise_nats: Float[Any, "N"], seen: Float[Any, "N F"], rows: TeacherRows, aids: Aids
    ) -> tuple[Float[Any, "N"], Bool[Any, "N"]]:
        """Return each token's part of its chunk's loss, and which tokens are in a chunk."""
        from lmfuse.losses.chunks import Chunks, next_break

        teacher, student, boundary = rows.truth_nll_nats.to(surprise_nats.dtype), surprise_nats, rows.boundary
        if self.debias:
            assert aids.boundary_ids is not None
            follows, breaks = next_break(rows, aids.boundary_ids)
            boundary = boundary & (~follows | (breaks.exp() > self.threshold))
            ends = boundary & follows
            teacher = teacher - breaks.to(teacher.dtype).where(ends, 0.0)
            student = student - seen[:, 0].roll(-1).where(ends, 0.0)
        chunks = Chunks.of(teacher, boundary, rows.joined)
        loss = self.divergence(chunks.total(teacher.nan_to_num()), chunks.total(student))
        return (loss / chunks.size)[chunks.number], chunks.whole[chunks.number]


def log1mexp(nats: Float[Any, "N"]) -> Float[Any, "N"]:
    """Return ``log(1 - exp(-nats))`` for positive numbers, accurate for small and for large ones."""
    import torch

    small = nats < 0.6931
    near_zero = torch.where(small, nats, 1.0)
    far = torch.where(small, 1.0, nats)
    return torch.where(small, (-(-near_zero).expm1()).log(), (-(-far).exp()).log1p())
