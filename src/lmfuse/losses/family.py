"""What the losses against a sparse teacher have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SparseLoss:
    """A loss against teacher rows that keep K candidates and a tail; members differ by a constant, never in their gradient."""

    clm_weight: Share = 0.9
    clm_weight_end: Share | None = None
    tail: Literal["bucket", "renormalise"] = "bucket"

    def clm_weight_at(self, progress: float) -> float:
        """Return the ground truth's weight lambda when this share of the training is done.

        Raises:
            ValueError: ``progress`` is not between 0 and 1.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"clm_weight_at: progress is {progress}, expected a share between 0 and 1")
        end = self.clm_weight if self.clm_weight_end is None else self.clm_weight_end
        return self.clm_weight + (end - self.clm_weight) * progress

    def value(self, cross_entropy_nats: Float[Any, N], entropy_nats: Float[Any, N]) -> Float[Any, N]:
        """Return the loss of each position (numpy or torch), given the student's cross-entropy on the teacher and the teacher's entropy."""
        raise NotImplementedError
