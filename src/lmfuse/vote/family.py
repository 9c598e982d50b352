"""The ways to vote, as a recipe names them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from lmfuse.vote.first_places import FirstPlaces
from lmfuse.vote.mean_rank import MeanRank
from lmfuse.vote.mean_z import MeanZ
from lmfuse.vote.single import Single

VoteMethod: TypeAlias = Annotated[FirstPlaces | MeanRank | MeanZ | Single, Field(discriminator="name")]
