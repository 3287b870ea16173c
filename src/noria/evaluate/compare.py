"""Two releases on the same items: what differs, how surely, and how many more items it would take to tell.

Yes/no scores: McNemar's mid-p and Newcombe's paired interval. Other means: sign flips and BCa. Figures that are no means (macro F1,
corpus BLEU): pairs swapped at random (Yeh 2000) and BCa. Several metrics together: Benjamini and Hochberg.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from msgspec.structs import replace

from noria.contracts.error import RequestError
from noria.contracts.evaluation import Comparison, Estimate, Outcome, Pooled, Report, Scored
from noria.evaluate.estimate import CONFIDENCE, Statistic, classes_of, coded, macro_f1, pooled, widened, yes_no
from noria.kit import stats

WORTH = 0.02
"""A difference that is smaller than this does not matter to anybody who names no margin."""
LEAST = 0.005
"""Distance from a margin below which more items are not promised to help."""
MOST = 1_000_000
SWAPS = 1000

Pair = tuple[Scored, Scored]


class _Found(NamedTuple):
    difference: Estimate
    p: float
    test: str
    spread: float
    """Standard deviation of one item's difference."""


def pairs(first: Report, second: Report) -> list[Pair]:
    """The items that both have. Raises `RequestError` where the reports were not asked and judged alike, or share none."""
    if first.hash != second.hash or (first.suite.dataset, first.suite.split) != (second.suite.dataset, second.suite.split):
        raise RequestError(
            "These evaluations are not of the same suite: dataset version, split, metrics or parameters differ.",
            code="not_comparable", hint="Run one suite against both releases.",
        )  # fmt: skip
    other = {s.row: s for s in second.items}
    found = [(s, other[s.row]) for s in first.items if s.row in other]
    if not found:
        raise RequestError("These evaluations share no item.", code="not_comparable")
    return found


def compare(
    first: Report,
    second: Report,
    *,
    checks: Mapping[str, object] | None = None,
    margins: Mapping[str, float] | None = None,
    confidence: float = CONFIDENCE,
) -> list[Comparison]:
    """One comparison a metric, `second` against `first`, in the suite's order. `margins`: by metric, how much worse `second` may be.

    `checks` are the metrics by id, for those whose figure is pooled; without them these are left out.
    """
    same, margins = pairs(first, second), margins or {}
    found = {name: _of_metric(name, same, confidence) for name in first.suite.metrics}
    found |= _of_sums(same, checks or {}, first.suite.metrics, confidence)
    unknown = sorted(set(margins) - set(found))
    if unknown:
        raise RequestError(
            f"The suite has no metric {unknown[0]!r}.", code="unknown_metric", hint=f"It has: {', '.join(found)}."
        )
    adjusted = stats.benjamini_hochberg([f.p for f in found.values()])
    told = []
    for (name, f), p in zip(found.items(), adjusted, strict=True):
        plain = Comparison(name, first.id, second.id, f.difference, f.p, f.test, "need_more", p_adjusted=p, n=len(same))
        told.append(judged(replace(plain, margin=margins.get(name, 0.0)), f.spread))
    return told


def judged(c: Comparison, spread: float) -> Comparison:
    """`c` with its verdict.

    Without a margin: `better` and `worse` need an interval without 0 and an adjusted p that agrees, `no_difference` an interval within
    ±`WORTH`. With one: `not_worse` needs an interval above -margin, `worse` one below it. All else needs more items.
    """
    d, alpha = c.difference, 1 - c.difference.confidence
    shown = c.p_adjusted <= alpha
    verdict: Outcome = "need_more"
    if d.low > 0 and shown:
        verdict = "better"
    elif c.margin > 0:
        if d.low > -c.margin:
            verdict = "not_worse"
        elif d.high < -c.margin:
            verdict = "worse"
    elif d.high < 0 and shown:
        verdict = "worse"
    elif d.low > -WORTH and d.high < WORTH:
        verdict = "no_difference"
    if verdict != "need_more":
        return replace(c, verdict=verdict)
    distance = max(abs(d.value + c.margin), LEAST) if c.margin > 0 else max(abs(d.value), WORTH)
    needed = stats.items_needed(spread, distance, alpha=alpha)
    return replace(c, verdict=verdict, more=min(MOST, max(1, needed - c.n)))


def _of_metric(name: str, same: Sequence[Pair], confidence: float) -> _Found:
    one, two = ([pair[side].scores.get(name, 0.0) for pair in same] for side in (0, 1))
    differences = [b - a for a, b in zip(one, two, strict=True)]
    spread = _spread(differences)
    if yes_no(one) and yes_no(two):
        both = sum(a == b == 1 for a, b in zip(one, two, strict=True))
        first, second = (sum(d == side for d in differences) for side in (-1, 1))
        bounds = stats.newcombe_paired(both, first, second, len(same) - both - first - second, confidence)
        return _Found(Estimate(*bounds, len(same), "newcombe", confidence), stats.mcnemar(first, second), "mcnemar", spread)
    difference = widened(stats.bootstrap(differences, confidence=confidence), len(same), -1.0, confidence)
    return _Found(difference, stats.paired_p(differences), "sign_flip", spread)


def _of_sums(
    same: Sequence[Pair], checks: Mapping[str, object], metrics: Sequence[str], confidence: float
) -> dict[str, _Found]:
    """Figures of a whole suite that are no means."""
    found = {}
    for name in metrics:
        check = checks.get(name)
        if isinstance(check, Pooled):
            rows = [[*a.counts[name], *b.counts[name]] for a, b in same]
            found[f"{name}_corpus"] = _swapped(rows, pooled(check), confidence)
    everybody = [s for pair in same for s in pair]
    classes = classes_of(everybody) if "label" in metrics else []
    if classes:
        rows = [
            [*x, *y] for x, y in zip(coded([a for a, _ in same], classes), coded([b for _, b in same], classes), strict=True)
        ]
        found["macro_f1"] = _swapped(rows, macro_f1(len(classes)), confidence)
    return found


def _swapped(rows: Sequence[Sequence[float]], of: Statistic, confidence: float) -> _Found:
    """The difference of a figure between the halves of each row, with a p from swapping halves at random."""
    import numpy as np

    each = np.asarray(rows, dtype=float)
    n, width = each.shape[0], each.shape[1] // 2

    def difference(sample: Any) -> Any:
        return of(sample[:, :, width:]) - of(sample[:, :, :width])

    bounds = stats.bootstrap(each, difference, confidence=confidence)
    seen, at, rng = abs(bounds.value), 0, np.random.default_rng(0)
    other = np.concatenate([each[:, width:], each[:, :width]], axis=1)
    for _ in range(0, SWAPS, 50):
        swap = rng.integers(0, 2, (50, n, 1)).astype(bool)
        at += int(np.count_nonzero(np.abs(difference(np.where(swap, other, each))) >= seen - 1e-12))
    # the interval's half width gives back the spread of one item that a mean with such an interval would have
    found = widened(bounds, n, -1.0, confidence)
    half = (found.high - found.low) / 2 / NormalDist().inv_cdf((1 + confidence) / 2)
    return _Found(found, (at + 1) / (SWAPS + 1), "swap", half * math.sqrt(n))


def _spread(differences: Sequence[float]) -> float:
    n = len(differences)
    middle = sum(differences) / n
    return math.sqrt(sum((d - middle) ** 2 for d in differences) / max(1, n - 1))
