"""What two vocabularies mean to each other, computed once for any two tokenizers and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from lmfuse.align.dtw import Dtw
from lmfuse.align.exact import exact_map
from lmfuse.align.first_piece import first_piece_map
from lmfuse.align.join import Join
from lmfuse.align.min_ed import min_ed_map
from lmfuse.align.pair import Pair, build_pair
from lmfuse.artefacts import content_key, is_complete, publish
from lmfuse.bytes import ByteTokenizer
from lmfuse.types import VocabularyMap

PAIR_VERSION = 1

MapMaker = Callable[[ByteTokenizer, ByteTokenizer], VocabularyMap]
MAPS: dict[str, MapMaker] = {
    "exact": lambda source, target: exact_map(source.vocabulary, target.vocabulary),
    "first_piece": lambda source, target: first_piece_map(source.vocabulary, target.vocabulary, target.first_pieces),
    "min_ed": lambda source, target: min_ed_map(source.vocabulary, target.vocabulary, on="bytes"),
    "min_ed_strings": lambda source, target: min_ed_map(source.vocabulary, target.vocabulary, on="strings"),
}


def map_wanted(align: object) -> str | None:
    """Return the name of the map of whole tokens that an alignment method needs, or None."""
    if isinstance(align, Join):
        return align.map
    return "min_ed_strings" if isinstance(align, Dtw) and align.accept == "min_ed" else None


def load_pair(source: ByteTokenizer, target: ByteTokenizer, cache: Path, align: object) -> Pair:
    """Return the pair of two tokenizers as an alignment method needs it, from ``cache/maps`` where it has been built before."""
    folder = _artefact(
        cache, source, target, "pair", lambda: build_pair(source.vocabulary, target.vocabulary, target.first_pieces).to_arrays()
    )
    name = map_wanted(align)
    tokens = None if name is None else _load_map(source, target, cache, name)
    return Pair.from_arrays(source.vocabulary, target.vocabulary, load_file(folder / "arrays.safetensors"), tokens)


def _load_map(source: ByteTokenizer, target: ByteTokenizer, cache: Path, name: str) -> VocabularyMap:
    def build() -> dict[str, np.ndarray]:
        found = MAPS[name](source, target)
        return {"indptr": found.indptr, "target_ids": found.target_ids, "weights": found.weights}

    arrays = load_file(_artefact(cache, source, target, name, build) / "arrays.safetensors")
    return VocabularyMap(arrays["indptr"], arrays["target_ids"], arrays["weights"], target.vocabulary.size, name)


def _artefact(cache: Path, source: ByteTokenizer, target: ByteTokenizer, what: str, build: Callable[[], dict[str, np.ndarray]]) -> Path:
    folder = cache / "maps" / content_key({"source": source.key, "target": target.key, "what": what, "version": PAIR_VERSION})
    if not is_complete(folder):
        with publish(folder, kind="map") as publication:
            save_file({name: np.ascontiguousarray(array) for name, array in build().items()}, publication.path / "arrays.safetensors")
            publication.provenance |= {"source": source.key, "target": target.key, "what": what}
    return folder
