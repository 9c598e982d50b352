"""Whether the statistics that a merge recipe names are those that its method asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmfuse.merge.informed import Informed

if TYPE_CHECKING:  # it needs this module
    from lmfuse.merge_recipe import MergeRecipe as MergeRecipe
else:
    from typing import Any as MergeRecipe


def check_statistics(recipe: MergeRecipe) -> None:
    """Raise ValueError where they are not: too many, too few, or where they cannot be used."""
    if not isinstance(recipe.method, Informed):
        raise ValueError(f"statistics: {recipe.method.name} asks for none; leave them out")
    if recipe.slices or recipe.tokenizer == "union":
        what = "slices" if recipe.slices else "tokenizer: union"
        raise ValueError(f"statistics: they are of whole models; leave {what} out")
    if len(recipe.statistics) != len(recipe.sources_of()):
        raise ValueError(f"statistics: {len(recipe.statistics)} folders for {len(recipe.sources_of())} sources, expected one for each")
