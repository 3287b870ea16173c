"""From scored items to figures with intervals: Wilson for yes/no, BCa bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from noria.contracts.evaluation import Estimate, Pooled, Scored
from noria.kit import stats

CONFIDENCE = 0.95
Statistic = Callable[[Any], Any]
"""Resampled rows (m, n, …) to m figures."""


def estimates(items: Sequence[Scored], metrics: Mapping[str, object], *, confidence: float = CONFIDENCE) -> dict[str, Estimate]:
    """Every figure of a run. `metrics` are its checks by id, for those whose figure is pooled (`bleu_corpus`).

    Latency is that of the requests that were answered, `cost_usd` the mean of one request whose cost is known.
    """
    found: dict[str, Estimate] = {}
    for name, check in metrics.items():
        scores = [s.scores.get(name, 0.0) for s in items]
        found[name] = proportion(scores, confidence) if yes_no(scores) else share(scores, confidence)
        if isinstance(check, Pooled):
            found[f"{name}_corpus"] = over([s.counts[name] for s in items], pooled(check), confidence)
    classes = classes_of(items) if "label" in metrics else []
    if classes:
        rows = coded(items, classes)
        found["macro_f1"] = over(rows, macro_f1(len(classes)), confidence)
        found["micro_f1"] = over(rows, micro_f1(len(classes)), confidence)
    good = [s for s in items if not s.error]
    if good:
        found["latency_p50_ms"] = over([s.latency_ms for s in good], quantile(0.5), confidence)
        found["latency_p95_ms"] = over([s.latency_ms for s in good], quantile(0.95), confidence)
    costs = [s.cost_nanousd / 1e9 for s in good if s.cost_nanousd is not None]
    if costs:
        found["cost_usd"] = mean(costs, confidence)
    found["errors"] = proportion([float(bool(s.error)) for s in items], confidence)
    return found


def yes_no(scores: Sequence[float]) -> bool:
    """Whether every score is 0 or 1."""
    return all(s in (0.0, 1.0) for s in scores)


def proportion(scores: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """A share of yes, with Wilson's interval."""
    return Estimate(*stats.wilson(sum(scores), len(scores), confidence), len(scores), "wilson", confidence)


def share(scores: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """A mean of scores in [0, 1], with a bootstrap interval."""
    return widened(stats.bootstrap(scores, confidence=confidence), len(scores), 0.0, confidence)


def widened(bounds: stats.Bounds, n: int, least: float, confidence: float) -> Estimate:
    """A bootstrap interval of something between `least` and 1. Where all n rows were the same, it has no width, which would be a
    lie for few of them: then by the rule of three (Hanley, Lippman-Hand 1983) at most -ln(1 - confidence) / n of all rows differ.
    """
    if bounds.high > bounds.low or n == 0:
        return Estimate(*bounds, n, "bootstrap", confidence)
    rare = min(1.0, -math.log(1 - confidence) / n)
    low, high = bounds.value - rare * (bounds.value - least), bounds.value + rare * (1 - bounds.value)
    return Estimate(bounds.value, low, high, n, "rule_of_three", confidence)


def mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """A mean, with a bootstrap interval."""
    return Estimate(*stats.bootstrap(values, confidence=confidence), len(values), "bootstrap", confidence)


def over(rows: Sequence[Any], statistic: Statistic, confidence: float = CONFIDENCE) -> Estimate:
    """Any figure of the rows, with a bootstrap interval."""
    return Estimate(*stats.bootstrap(rows, statistic, confidence=confidence), len(rows), "bootstrap", confidence)


def quantile(q: float) -> Statistic:
    """A quantile of single values."""
    import numpy as np

    return lambda sample: np.quantile(sample, q, axis=1)


def pooled(check: Pooled) -> Statistic:
    """The figure of summed counts."""
    import numpy as np

    return lambda sample: np.array([check.pooled(tuple(totals)) for totals in sample.sum(axis=1)])


# -- classes ----------------------------------------------------------------------------------------


def classes_of(items: Sequence[Scored]) -> list[str]:
    """Classes that rows have or answers named, sorted."""
    return sorted({s.label for s in items} | {s.said for s in items} - {""}) if any(s.label for s in items) else []


def coded(items: Sequence[Scored], classes: Sequence[str]) -> list[tuple[int, int]]:
    """(class of the row, class that was named) by their places; no class named is the place after the last."""
    at = {name: i for i, name in enumerate(classes)}
    return [(at[s.label], at.get(s.said, len(classes))) for s in items]


def macro_f1(classes: int) -> Statistic:
    """The mean F1 of the classes that the rows have, each as heavy as another."""
    import numpy as np

    def of(sample: Any) -> Any:
        pairs = sample.astype(np.int64)
        found = np.empty(len(pairs))
        for i, pair in enumerate(pairs):
            wanted, said = (np.bincount(pair[:, side], minlength=classes + 1)[:classes] for side in (0, 1))
            right = np.bincount(pair[pair[:, 0] == pair[:, 1], 0], minlength=classes + 1)[:classes]
            f1 = 2 * right / np.maximum(1, wanted + said)
            found[i] = f1[wanted > 0].mean() if (wanted > 0).any() else 0.0
        return found

    return of


def micro_f1(classes: int) -> Statistic:
    """F1 over all rows together: an answer that names no class costs recall, not precision."""

    def of(sample: Any) -> Any:
        right = (sample[:, :, 0] == sample[:, :, 1]).sum(axis=1)
        named = (sample[:, :, 1] < classes).sum(axis=1)
        return 2 * right / (named + sample.shape[1])

    return of


def by_label(items: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of each class."""
    found = {}
    for label in classes_of(items):
        support = sum(s.label == label for s in items)
        said = sum(s.said == label for s in items)
        right = sum(s.label == s.said == label for s in items)
        precision, recall = right / said if said else 0.0, right / support if support else 0.0
        f1 = 2 * right / (said + support)
        found[label] = {"precision": precision, "recall": recall, "f1": f1, "support": float(support)}
    return found


def confusion(items: Sequence[Scored]) -> dict[str, dict[str, int]]:
    """How often rows of a class (outer) were taken for a class (inner; empty = none was named)."""
    found: dict[str, dict[str, int]] = {}
    for s in items:
        row = found.setdefault(s.label, {})
        row[s.said] = row.get(s.said, 0) + 1
    return found
