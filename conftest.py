"""Enforce the shapes and types of every signature of the package while any test or doctest runs."""

from jaxtyping import install_import_hook

install_import_hook("lmfuse", "beartype.beartype")
