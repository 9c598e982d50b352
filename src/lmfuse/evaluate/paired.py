"""Is one model better than another on the same documents? A paired bootstrap over documents, in bits per byte.

Documents differ far more from each other than two models differ on one of them; pairing takes that out.
Percentile intervals: Efron and Tibshirani, *An Introduction to the Bootstrap*, chapter 13; for pairs of systems: Koehn, EMNLP 2004.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lmfuse.errors import InputError
from lmfuse.types import DocumentScore

FEWEST_UNITS = 20  # documents of a domain from which a bootstrap over documents is worth its name
RESAMPLED_AT_ONCE = 1 << 22  # documents drawn in one array: 32 MiB of indices


@dataclass(frozen=True)
class Comparison:
    """The difference ``a - b`` in bits per byte with its 95% interval; negative: ``a`` is the better model.

    Attributes:
        mean: the difference on the documents as they are (not the mean of the resamples).
        low, high: the 2.5% and 97.5% quantiles over the resamples.
        n: documents that count.
        dropped: documents left out because a model could represent none of their bytes.
    """

    mean: float
    low: float
    high: float
    n: int
    dropped: int = 0

    @property
    def excludes_zero(self) -> bool:
        """Return whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def by_unit(scores: Sequence[DocumentScore], unit_of: Mapping[str, str]) -> list[DocumentScore]:
    """Return one score per unit: what is drawn as one. Windows of one document are alike, and would pass for independent ones.

    A domain of fewer than ``FEWEST_UNITS`` documents keeps its windows: so few draws say nothing of chance (``domains_by_window``).

    Args:
        scores: of windows.
        unit_of: the document that each window, by its id, was cut from.

    >>> windows = [DocumentScore(f"w{i}", "code", 1.0, 4) for i in range(60)]
    >>> by_unit(windows, {f"w{i}": f"file{i // 2}" for i in range(60)})[0]
    DocumentScore(document='file0', domain='code', nll_nats=2.0, num_bytes=8)
    """
    whole = domains_by_window([(score.domain, unit_of[score.document]) for score in scores])
    units: dict[tuple[str, str], list[DocumentScore]] = {}
    for score in scores:
        unit = score.document if score.domain in whole else unit_of[score.document]
        units.setdefault((score.domain, unit), []).append(score)
    return [
        DocumentScore(unit, domain, math.fsum(s.nll_nats for s in same), sum(s.num_bytes for s in same))
        for (domain, unit), same in units.items()
    ]


def domains_by_window(units: Sequence[tuple[str, str]]) -> set[str]:
    """Return the domains with too few documents to draw documents, given the domain and the document of every window.

    >>> sorted(domains_by_window([("code", f"{i}.py") for i in range(30)] + [("prose", "book.txt")] * 30))
    ['prose']
    """
    found: dict[str, set[str]] = {}
    for domain, unit in units:
        found.setdefault(domain, set()).add(unit)
    return {domain for domain, distinct in found.items() if len(distinct) < FEWEST_UNITS}


def bits_per_byte_by_domain(scores: Sequence[DocumentScore]) -> dict[str, float]:
    """Return all bits over all bytes of each domain, domains sorted.

    >>> bits_per_byte_by_domain([DocumentScore("x", "code", math.log(2) * 6, 4), DocumentScore("y", "code", 0.0, 2)])
    {'code': 1.0}

    Raises:
        InputError: no scores, or a domain of which no byte was measured.
    """
    if not scores:
        raise InputError("no document was scored", hint="give an evaluation corpus that is not empty")
    sums: dict[str, tuple[float, int]] = {}
    for score in scores:
        nats, num_bytes = sums.get(score.domain, (0.0, 0))
        sums[score.domain] = (nats + score.nll_nats, num_bytes + score.num_bytes)
    for domain, (_, num_bytes) in sums.items():
        if not num_bytes:
            raise InputError(f"{domain}: the model can represent no byte of this domain", hint="choose another tokenizer or corpus")
    return {domain: nats / math.log(2) / num_bytes for domain, (nats, num_bytes) in sorted(sums.items())}


def macro_bits_per_byte(scores: Sequence[DocumentScore]) -> float:
    """Return the unweighted mean of bits per byte over the domains, so that a large corpus does not drown a small one."""
    by_domain = bits_per_byte_by_domain(scores)
    return math.fsum(by_domain.values()) / len(by_domain)


def paired_bootstrap(
    a: Sequence[DocumentScore], b: Sequence[DocumentScore], *, domain: str | None = None, samples: int = 10_000, seed: int = 0
) -> Comparison:
    """Return ``a - b`` in bits per byte with its 95% percentile interval.

    In a domain the difference is a ratio estimator, sum of bits over sum of bytes for each model (its own bytes, where the two can
    represent different ones); documents are drawn with replacement, the same draw for both models. Without ``domain`` it is the
    unweighted mean over domains, documents drawn within each.

    >>> a, b = ([DocumentScore(d, "code", math.log(2) * bits, 1) for d, bits in (("x", p), ("y", q))] for p, q in ((1, 2), (2, 3)))
    >>> paired_bootstrap(a, b)
    Comparison(mean=-1.0, low=-1.0, high=-1.0, n=2, dropped=0)

    Raises:
        InputError: the two do not cover the same documents, a score is not finite, or nothing is left to compare.
    """
    if samples < 1:
        raise InputError(f"samples: expected at least 1, got {samples}", hint="10000 is usual")
    pairs, dropped = _pairs(a, b, domain)
    draws = [_resampled(table, np.random.default_rng([seed, index]), samples) for index, table in enumerate(pairs)]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    mean = math.fsum(float(_difference(table.sum(0))) for table in pairs) / len(pairs)
    return Comparison(mean, float(low), float(high), sum(map(len, pairs)), dropped)


def _pairs(a: Sequence[DocumentScore], b: Sequence[DocumentScore], domain: str | None) -> tuple[list[Float[np.ndarray, "N 4"]], int]:
    """Return one table per domain, sorted by name, of rows (bits of a, bytes of a, bits of b, bytes of b), and how many were dropped."""
    first, second = ([score for score in scores if domain in (None, score.domain)] for scores in (a, b))
    for scores in (first, second):
        scores.sort(key=lambda score: (score.domain, score.document))
    if [(s.domain, s.document) for s in first] != [(s.domain, s.document) for s in second]:
        odd = {(s.domain, s.document) for s in first} ^ {(s.domain, s.document) for s in second}
        raise InputError(
            f"the two models were not scored on the same documents: {len(first)} and {len(second)}, {len(odd)} only once",
            hint="score both on the same evaluation corpus",
        )
    tables: dict[str, list[tuple[float, int, float, int]]] = {}
    for x, y in zip(first, second, strict=True):
        if not (math.isfinite(x.nll_nats) and math.isfinite(y.nll_nats)):
            raise InputError(
                f"document {x.document} ({x.domain}): its score is not finite", hint="a model with broken weights writes such scores"
            )
        tables.setdefault(x.domain, [])
        if x.num_bytes and y.num_bytes:
            tables[x.domain].append((x.nll_nats / math.log(2), x.num_bytes, y.nll_nats / math.log(2), y.num_bytes))
    for name in [name for name, rows in tables.items() if not rows] or ([] if tables else [domain or "all"]):
        raise InputError(f"domain {name!r}: no document to compare", hint="check its name, and that both models can represent its text")
    return [np.array(rows, np.float64) for rows in tables.values()], len(first) - sum(map(len, tables.values()))


def _difference(sums: Float[np.ndarray, "*N 4"]) -> Float[np.ndarray, "*N"]:
    return np.asarray(sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3])


def _resampled(table: Float[np.ndarray, "B 4"], rng: np.random.Generator, samples: int) -> Float[np.ndarray, "N"]:
    """Return the difference in each of ``samples`` draws of as many documents as there are, with replacement."""

    def differences() -> Iterator[np.ndarray]:
        at_once = max(1, RESAMPLED_AT_ONCE // len(table))
        for begin in range(0, samples, at_once):
            drawn = rng.integers(0, len(table), (min(at_once, samples - begin), len(table)))
            yield _difference(np.stack([column[drawn].sum(1) for column in table.T], axis=-1))

    return np.concatenate(list(differences()))
