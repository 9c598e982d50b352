"""What all losses have in common, and the two kinds of them: what a loss has to say decides how it is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:  # settings load without torch
    from lmfuse.losses.aids import Aids
    from lmfuse.losses.teacher import TeacherRows

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Loss:
    """The share of the ground truth beside the teacher, and what a loss must be given besides hidden states and rows.

    ``row_ids`` says whose token ids the teacher's rows may hold.
    """

    row_ids: ClassVar[Literal["target", "source", "any"]] = "target"
    clm_weight: Share = 0.9
    clm_weight_end: Share | None = None

    @property
    def wants(self) -> tuple[str, ...]:
        """Return the fields of ``Aids`` that the loss cannot do without."""
        return ()

    def clm_weight_at(self, progress: float) -> float:
        """Return the ground truth's weight lambda when this share of the training is done.

        Raises:
            ValueError: ``progress`` is not between 0 and 1.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"clm_weight_at: progress is {progress}, expected a share between 0 and 1")
        end = self.clm_weight if self.clm_weight_end is None else self.clm_weight_end
        return self.clm_weight + (end - self.clm_weight) * progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SparseLoss(Loss):
    """A loss against teacher rows that keep K candidates and a tail; members differ by a constant, never in their gradient.

    The gradient is known in closed form and computed with the loss (``fused_linear``).
    """

    tail: Literal["bucket", "renormalise"] = "bucket"

    def value(self, cross_entropy_nats: Float[Any, N], entropy_nats: Float[Any, N]) -> Float[Any, N]:
        """Return the loss of each position (numpy or torch), given the student's cross-entropy on the teacher and the teacher's entropy."""
        raise NotImplementedError


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SeenLoss(Loss):
    """A loss that looks at the student's logits a few positions at a time, keeps some numbers of each, and judges all of them together.

    The logits are computed again in the backward pass instead of being kept (``recomputed``). So a loss may be over spans of
    positions although no two chunks of logits exist at the same time.
    """

    def check(self, rows: TeacherRows, aids: Aids) -> None:
        """Raise ValueError where rows and aids do not fit together; called once for a batch."""

    def see(self, logits: Float[Any, "N V"], rows: TeacherRows, aids: Aids) -> Float[Any, "N F"]:
        """Return what the loss has to know of some positions; differentiable in the logits."""
        raise NotImplementedError

    def judge(
        self, surprise_nats: Float[Any, "N"], seen: Float[Any, "N F"], rows: TeacherRows, aids: Aids
    ) -> tuple[Float[Any, "N"], Bool[Any, "N"]]:
        """Return each position's loss and whether it is taught, given what was seen and the student's surprise at the true tokens."""
        raise NotImplementedError
