"""Intervals and tests for one look at the data; for many looks see `kit.sequential`. Every formula names its source.

Intervals are two-sided. Coverage and error rates are proven by simulation (`tests/unit/kit/test_stats.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

_NORMAL = NormalDist()
RESAMPLES = 2000


class Bounds(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: int, confidence: float = 0.95) -> Bounds:
    """Score interval of a proportion (Wilson 1927; Brown, Cai, DasGupta 2001 recommend it for n of 40 and less too).

    >>> wilson(0, 0)
    Bounds(value=0.0, low=0.0, high=1.0)
    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.8, 0.4902, 0.9433]
    """
    if n == 0:
        return Bounds(0.0, 0.0, 1.0)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    z, p = _z(confidence), successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Bounds(p, max(0.0, middle - half), min(1.0, middle + half))


def newcombe_paired(both: int, first: int, second: int, neither: int, confidence: float = 0.95) -> Bounds:
    """Interval of p(second) - p(first) for paired yes/no outcomes (Newcombe 1998b, method 10).

    `both`, `first`, `second`, `neither`: how many items were a success of both, of the first or second alone, of none.
    """
    n = both + first + second + neither
    if n == 0:
        return Bounds(0.0, -1.0, 1.0)
    one, two = wilson(both + first, n, confidence), wilson(both + second, n, confidence)
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = 0.0
    if product:
        cross = both * neither - first * second
        corrected = max(cross - n / 2, 0.0) if cross > 0 else cross
        phi = corrected / math.sqrt(product)
    d = two.value - one.value
    down = _hypot(two.value - two.low, one.high - one.value, phi)
    up = _hypot(two.high - two.value, one.value - one.low, phi)
    return Bounds(d, max(-1.0, d - down), min(1.0, d + up))


def _hypot(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def mcnemar(first: int, second: int) -> float:
    """Two-sided mid-p of "both succeed equally often", from the items that one alone got right (Fagerland et al. 2013).

    >>> round(mcnemar(10, 2), 4), mcnemar(0, 0)
    (0.0225, 1.0)
    """
    n, k = first + second, min(first, second)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k)) + math.comb(n, k) / 2
    return min(1.0, 2.0 * tail / float(2**n))


def bootstrap(
    values: Sequence[float] | Any,
    statistic: Callable[[Any], Any] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bounds:
    """BCa interval (Efron 1987) of a statistic of rows; the mean when none is given.

    `values` has n rows (n, ) or (n, k). `statistic` takes resampled rows of shape (m, n) or (m, n, k) and gives m figures.
    A single row, or rows that are all the same, give an interval of no width, which says nothing about the next row.
    """
    import numpy as np

    rows = np.asarray(values, dtype=float)
    n = len(rows)
    if n == 0:
        return Bounds(0.0, -math.inf, math.inf)
    of = statistic or (lambda sample: sample.mean(axis=1))
    value = float(of(rows[None])[0])
    rng = np.random.default_rng(seed)
    found = np.concatenate([of(rows[rng.integers(0, n, (min(100, resamples - at), n))]) for at in range(0, resamples, 100)])
    if np.ptp(found) == 0:
        return Bounds(value, value, value)
    share = (np.count_nonzero(found < value) + np.count_nonzero(found == value) / 2) / len(found)
    bias = _NORMAL.inv_cdf(min(max(share, 1 / len(found)), 1 - 1 / len(found)))
    without = np.array([float(of(np.delete(rows, i, axis=0)[None])[0]) for i in range(n)]) if n <= 2000 else found
    apart = without.mean() - without
    spread = float((apart**2).sum()) ** 1.5
    skew = float((apart**3).sum()) / (6 * spread) if spread else 0.0
    z = _z(confidence)
    ends = [_NORMAL.cdf(bias + (bias + s) / (1 - skew * (bias + s))) for s in (-z, z)]
    low, high = np.quantile(found, ends)
    return Bounds(value, float(low), float(high))


def paired_p(differences: Sequence[float] | Any, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of "the mean difference is 0", by flipping signs at random (Fisher 1935); never below 1 / (resamples + 1)."""
    import numpy as np

    d = np.asarray(differences, dtype=float)
    if not len(d) or not d.any():
        return 1.0
    rng = np.random.default_rng(seed)
    seen, at = abs(float(d.sum())), 0
    for start in range(0, resamples, 500):
        signs = rng.integers(0, 2, (min(500, resamples - start), len(d))) * 2 - 1
        at += int(np.count_nonzero(np.abs(signs @ d) >= seen - 1e-12))
    return (at + 1) / (resamples + 1)


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """P-values adjusted for being many: those at most q hold with a false discovery rate of q (Benjamini, Hochberg 1995).

    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.5])
    [0.04, 0.05333333333333334, 0.05333333333333334, 0.5]
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i], reverse=True)
    adjusted, least = [0.0] * len(ps), 1.0
    for rank, i in zip(range(len(ps), 0, -1), order, strict=True):
        least = min(least, ps[i] * len(ps) / rank)
        adjusted[i] = least
    return adjusted


def items_needed(spread: float, distance: float, *, alpha: float = 0.05, power: float = 0.9) -> int:
    """Paired items for which an interval of level 1 - `alpha` excludes a point `distance` away with probability `power`.

    `spread` is the standard deviation of the differences (normal approximation; Lachin 1981).
    """
    if distance <= 0:
        return 0
    z = _z(1 - alpha) + _NORMAL.inv_cdf(power)
    return max(1, math.ceil((z * max(spread, 0.05) / distance) ** 2))


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1")
    return _NORMAL.inv_cdf((1 + confidence) / 2)
