import math

import numpy as np
import pytest

from lmfuse.errors import InputError
from lmfuse.evaluate.paired import bits_per_byte_by_domain, by_unit, macro_bits_per_byte, paired_bootstrap
from lmfuse.types import DocumentScore

LN2 = math.log(2)


def score(document: str, bits: float, num_bytes: int, domain: str = "code") -> DocumentScore:
    return DocumentScore(document, domain, bits * LN2, num_bytes)


def test_by_hand():
    a = [score("x", 10, 10), score("y", 60, 20)]  # 70 bits / 30 bytes
    b = [score("x", 20, 10), score("y", 60, 20)]  # 80 bits / 30 bytes
    found = paired_bootstrap(a, b)
    assert found.mean == pytest.approx(-10 / 30)
    assert found.n == 2
    # Draws: xx -1, xy and yx -1/3, yy 0; each end has a quarter of the mass, so the interval reaches both.
    assert found.low == pytest.approx(-1)
    assert found.high == pytest.approx(0)
    assert not found.excludes_zero


def test_macro_weighs_domains_alike_however_large_they_are():
    a = [score(f"c{i}", 4, 4) for i in range(9)] + [score("m", 9, 3, "maths")]
    b = [score(f"c{i}", 8, 4) for i in range(9)] + [score("m", 6, 3, "maths")]
    assert bits_per_byte_by_domain(a) == pytest.approx({"code": 1, "maths": 3})
    assert macro_bits_per_byte(a) == pytest.approx(2)
    found = paired_bootstrap(a, b)  # code -1, maths +1, and no spread inside either
    assert (found.mean, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert paired_bootstrap(a, b, domain="code").mean == pytest.approx(-1)
    assert paired_bootstrap(a, b, domain="maths").n == 1


def random_scores(rng: np.random.Generator, num_documents: int, gap: float, domain: str = "code") -> tuple[list, list]:
    sizes = rng.integers(50, 500, num_documents)
    level = rng.normal(1.0, 0.3, num_documents)
    difference = rng.normal(gap, 0.05, num_documents)
    a = [score(str(i), (level[i] + difference[i]) * sizes[i], int(sizes[i]), domain) for i in range(num_documents)]
    b = [score(str(i), level[i] * sizes[i], int(sizes[i]), domain) for i in range(num_documents)]
    return a, b


def test_agrees_with_a_loop_over_resamples():
    """Oracle: the same quantiles by a plain loop with another generator, up to Monte Carlo error."""
    a, b = random_scores(np.random.default_rng(0), 40, 0.02)
    c, d = random_scores(np.random.default_rng(1), 7, -0.1, "maths")
    found = paired_bootstrap(a + c, b + d, samples=4000)
    rng, draws = np.random.default_rng(99), []
    for _ in range(4000):
        value = 0.0
        for first, second in ((a, b), (c, d)):
            drawn = rng.integers(0, len(first), len(first))
            num_bytes = sum(first[i].num_bytes for i in drawn)
            value += sum(first[i].nll_nats - second[i].nll_nats for i in drawn) / LN2 / num_bytes / 2
        draws.append(value)
    assert found.low == pytest.approx(np.quantile(draws, 0.025), abs=0.002)
    assert found.high == pytest.approx(np.quantile(draws, 0.975), abs=0.002)
    assert found.low < found.mean < found.high


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        a, b = random_scores(rng, 60, 0.03)
        found = paired_bootstrap(a, b, samples=400)
        covered += found.low <= 0.03 <= found.high
    assert 0.90 <= covered / 300 <= 0.99


def test_swapping_the_models_mirrors_the_interval():
    a, b = random_scores(np.random.default_rng(5), 30, 0.01)
    forth, back = paired_bootstrap(a, b, seed=4), paired_bootstrap(b, a, seed=4)
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert paired_bootstrap(a, a) == paired_bootstrap(b, b)
    assert paired_bootstrap(a, a).mean == 0


def test_order_of_documents_does_not_matter_and_seed_does():
    a, b = random_scores(np.random.default_rng(6), 30, 0.01)
    assert paired_bootstrap(a[::-1], b) == paired_bootstrap(a, b)
    assert paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b)


def test_each_model_is_divided_by_its_own_bytes_and_unreadable_documents_are_counted():
    a = [score("x", 8, 4), score("y", 0, 0), score("z", 4, 4)]
    b = [score("x", 8, 8), score("y", 7, 7), score("z", 4, 4)]
    found = paired_bootstrap(a, b)
    assert found.mean == pytest.approx(12 / 8 - 12 / 12)
    assert (found.n, found.dropped) == (2, 1)


def test_equal_documents_are_paired_one_to_one():
    twice = [score("x", 4, 4), score("x", 4, 4)]
    assert paired_bootstrap(twice, twice).n == 2
    with pytest.raises(InputError, match="2 and 1"):
        paired_bootstrap(twice, twice[:1])


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        ([score("x", 1, 1)], [score("y", 1, 1)], {}, "same documents: 1 and 1, 2 only once"),
        ([score("x", 1, 1)], [score("x", 1, 1)], {"domain": "cod"}, "domain 'cod': no document"),
        ([score("x", 1, 0)], [score("x", 1, 1)], {}, "domain 'code': no document"),
        ([score("x", math.nan, 1)], [score("x", 1, 1)], {}, "document x .code.: its score is not finite"),
        ([], [], {}, "no document"),
        ([score("x", 1, 1)], [score("x", 1, 1)], {"samples": 0}, "samples: expected at least 1, got 0"),
    ],
)
def test_wrong_input(a, b, options, message):
    with pytest.raises(InputError, match=message):
        paired_bootstrap(a, b, **options)


def test_nothing_scored():
    with pytest.raises(InputError, match="no document was scored"):
        macro_bits_per_byte([])
    with pytest.raises(InputError, match="can represent no byte"):
        macro_bits_per_byte([score("x", 0, 0)])


def test_windows_of_one_document_are_drawn_together():
    windows = [DocumentScore(f"w{i}", "code", float(i // 4), 1) for i in range(160)]
    unit_of = {f"w{i}": f"file{i // 4}" for i in range(160)}
    whole = by_unit(windows, unit_of)
    assert whole[1] == DocumentScore("file1", "code", 4.0, 4)
    baseline = [DocumentScore(w.document, w.domain, 0.0, 1) for w in windows]
    alone, together = paired_bootstrap(windows, baseline), paired_bootstrap(whole, by_unit(baseline, unit_of))
    assert together.mean == pytest.approx(alone.mean)
    assert (alone.n, together.n) == (160, 40)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)  # four equal windows are one observation


def test_a_domain_of_few_documents_is_drawn_by_window():
    windows = [DocumentScore(f"w{i}", "prose", float(i), 1) for i in range(50)]
    assert by_unit(windows, {f"w{i}": "book.txt" for i in range(50)}) == windows
    baseline = [DocumentScore(w.document, w.domain, 0.0, 1) for w in windows]
    found = paired_bootstrap(by_unit(windows, {f"w{i}": "book.txt" for i in range(50)}), baseline)
    assert found.n == 50
    assert found.high > found.low
