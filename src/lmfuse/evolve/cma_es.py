"""CMA-ES: a normal distribution that learns where the good children are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.evolve.family import Breeder, Evolve, Member


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CmaEs(Evolve):
    """Draw coefficients from a normal distribution and adapt its mean, width and covariance to the best of each generation.  arXiv:1604.00772, appendix A

    - ``sigma``: the first width, as a share of the range of a coefficient.
    - ``children``: of a generation; by default ``4 + 3 ln(number of coefficients)``.
    - ``diagonal``: learn variances only, which is cheaper where coefficients are many.

    Run by the package ``cma``. It begins at the mean of the population and works on coefficients only, genes ``tensor`` or ``layer``.

    >>> from lmfuse.evolve.genome import Numbers
    >>> begun = CmaEs(children=6).begin([Member(Numbers((0.2, 0.4)), 0.0), Member(Numbers((0.4, 0.6)), 1.0)], 1, seed=1)
    >>> begun.num_slots, len(begun.child(0).values)
    (6, 2)
    """

    min_members: ClassVar[int] = 1
    needs_numbers: ClassVar[bool] = True
    by_generation: ClassVar[bool] = True
    name: Literal["cma_es"] = "cma_es"
    sigma: Annotated[float, Field(gt=0, le=1)] = 0.2
    children: Annotated[int, Field(ge=3)] | None = None
    diagonal: bool = False

    def begin(self, members: Sequence[Member], num_generations: int, seed: int) -> Breeder:
        """Begin at the mean of a population.

        Raises:
            ValueError: there is only one coefficient, or members are no coefficients.
        """
        from lmfuse.evolve.distribution import Distribution

        return Distribution(self, members, seed)
