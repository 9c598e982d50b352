"""What two vocabularies mean to each other, computed once for any two tokenizers (and, for counted maps, a corpus) and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.choices import Choice
from lmfuse.align.co_occurrence import co_occurrence_map
from lmfuse.align.counts import Positions, count_pairs
from lmfuse.align.dtw import Dtw
from lmfuse.align.exact import exact_map
from lmfuse.align.first_piece import first_piece_map
from lmfuse.align.join import Join
from lmfuse.align.longer import longer_map
from lmfuse.align.min_ed import min_ed_map
from lmfuse.align.pair import Pair, build_pair
from lmfuse.align.pieces import pieces_map
from lmfuse.artefacts import Publication, content_key, is_complete, publish
from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import InputError
from lmfuse.types import Document, Encoding, VocabularyMap

PAIR_VERSION = 3  # part of every key that a pair or map goes into: raise it when the same tokenizers would give others
DOCUMENTS = 512  # of a corpus encoded at once
COUNTED: dict[str, int] = {"longer": 20_000, "co_occurrence_released": 2_000}
"""How many documents of a corpus, evenly spread over it, are counted: enough for shares; what warping by a loop over tokens can bear."""

MapMaker = Callable[[ByteTokenizer, ByteTokenizer], VocabularyMap]
MAPS: dict[str, MapMaker] = {
    "exact": lambda source, target: exact_map(source.vocabulary, target.vocabulary),
    "first_piece": lambda source, target: first_piece_map(source.vocabulary, target.vocabulary, target.first_pieces),
    "pieces": lambda source, target: pieces_map(source.vocabulary, target.vocabulary, target.pieces),
    "min_ed": lambda source, target: min_ed_map(source.vocabulary, target.vocabulary, on="bytes"),
    "min_ed_strings": lambda source, target: min_ed_map(source.vocabulary, target.vocabulary, on="strings"),
}
COUNTED_MAPS: dict[str, tuple[Positions, Choice]] = {
    "co_occurrence": ("bytes", "most_frequent"),
    "co_occurrence_share": ("bytes", "share"),
    "co_occurrence_released": ("dtw", "released"),
}
"""Maps that are counted over a corpus: which tokens of it meet, and which of those that met are taken."""


def map_wanted(align: object) -> str | None:
    """Return the name of the map of whole tokens that an alignment method needs, or None."""
    if isinstance(align, Join):
        return None if align.map == "none" else align.map
    return {"min_ed": "min_ed_strings", "suffix": "co_occurrence_released"}.get(align.accept) if isinstance(align, Dtw) else None


def load_pair(source: ByteTokenizer, target: ByteTokenizer, cache: Path, align: object, corpus: Sequence[Document] | None = None) -> Pair:
    """Return the pair of two tokenizers as an alignment method needs it, from ``cache/maps`` where it has been built before.

    Args:
        source: the source's tokenizer.
        target: the target's.
        cache: the folder of all artefacts.
        align: the alignment method.
        corpus: the documents over which a map is counted, for methods whose map is, and for the byte law what longer tokens the target
            writes; other methods do not look at it.

    Raises:
        InputError: the method's map is counted over a corpus and there is none, or an empty one.
    """

    def build(publication: Publication) -> dict[str, np.ndarray]:
        return build_pair(source.vocabulary, target.vocabulary, target.first_pieces).to_arrays()

    arrays = _artefact(cache, source, target, {"what": "pair"}, build)
    name = map_wanted(align)
    tokens = None if name is None else load_map(source, target, cache, name, corpus)
    longer = load_map(source, target, cache, "longer", corpus) if isinstance(align, ByteLaw) and corpus else None
    return Pair.from_arrays(source.vocabulary, target.vocabulary, arrays, tokens, longer, target.first_pieces)


def load_map(
    source: ByteTokenizer, target: ByteTokenizer, cache: Path, name: str, corpus: Sequence[Document] | None = None
) -> VocabularyMap:
    """Return one map of whole tokens, from ``cache/maps`` where it has been built before.

    Raises:
        InputError: the map is counted over a corpus and there is none, or an empty one.
    """
    identity = {"what": name}
    if name in COUNTED_MAPS or name == "longer":
        if not corpus:
            raise InputError(
                f"align: the map {name!r} is counted over a corpus, got {'none' if corpus is None else 'an empty one'}",
                hint=f"give documents, or use a map that needs none: {', '.join(MAPS)}",
            )
        corpus = _spread(corpus, COUNTED.get(name, len(corpus)))
        identity["corpus"] = content_key(sorted(document.id for document in corpus))

    def build(publication: Publication) -> dict[str, np.ndarray]:
        found = MAPS[name](source, target) if name in MAPS else _counted_map(source, target, name, corpus or (), publication)
        return {"indptr": found.indptr, "target_ids": found.target_ids, "weights": found.weights}

    arrays = _artefact(cache, source, target, identity, build)
    return VocabularyMap(arrays["indptr"], arrays["target_ids"], arrays["weights"], target.vocabulary.size, name)


def _counted_map(
    source: ByteTokenizer, target: ByteTokenizer, name: str, corpus: Sequence[Document], publication: Publication
) -> VocabularyMap:
    """Count a corpus and choose; how many ids were counted and how many fell back stands in the artefact's counters."""
    how: tuple[Positions, Choice | None] = COUNTED_MAPS.get(name, ("bytes", None))
    positions, choose = how
    counts = count_pairs(_encoded(source, target, corpus), source.vocabulary, target.vocabulary, positions)
    publication.counters |= {"documents": len(corpus), "pairs": int(counts.counts.sum())}
    if choose is None:
        found = longer_map(counts, source.vocabulary, target.vocabulary)
        publication.counters |= {"ids_short": int((np.diff(found.indptr) > 0).sum())}
        return found
    found, report = co_occurrence_map(counts, source.vocabulary, target.vocabulary, target.first_pieces, choose)
    publication.counters |= {f"ids_{origin}": number for origin, number in asdict(report).items()}
    return found


def _spread(corpus: Sequence[Document], count: int) -> Sequence[Document]:
    """Return so many documents, evenly spread: files of one kind stand together."""
    if len(corpus) <= count:
        return corpus
    return [corpus[place] for place in np.linspace(0, len(corpus) - 1, count).astype(int).tolist()]


def _encoded(source: ByteTokenizer, target: ByteTokenizer, corpus: Sequence[Document]) -> Iterator[tuple[Encoding, Encoding]]:
    for begin in range(0, len(corpus), DOCUMENTS):
        some = corpus[begin : begin + DOCUMENTS]
        yield from zip(source.encode_many(some), target.encode_many(some), strict=True)


def _artefact(
    cache: Path,
    source: ByteTokenizer,
    target: ByteTokenizer,
    identity: dict[str, str],
    build: Callable[[Publication], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Return the arrays that ``identity`` names for two tokenizers, built where the cache does not have them."""
    folder = cache / "maps" / content_key({"source": source.key, "target": target.key, "version": PAIR_VERSION, **identity})
    if not is_complete(folder):
        with publish(folder, kind="map") as publication:
            arrays = build(publication)
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, publication.path / "arrays.safetensors")
            publication.provenance |= {"source": source.key, "target": target.key, **identity}
    return load_file(folder / "arrays.safetensors")
