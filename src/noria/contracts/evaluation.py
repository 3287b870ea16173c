"""Evaluating a release: items asked through the gateway, scores with intervals, comparisons with a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from noria.contracts.stage import Sample

EVALUATOR = "evaluation"
"""Id of the key that an evaluation's requests have: `key:evaluation` limits and budgets them."""
TAGS = {"noria": "eval"}
"""What they are tagged with, besides `evaluation=<id>`. Whoever looks at what callers do (drift, feedback, canaries) leaves them out."""


class Pass(msgspec.Struct, frozen=True):
    """What lets an evaluation ask one release of one app, whatever its weight, until it expires; signed (`gateway.ticket`)."""

    evaluation: str
    app: str
    release: str
    """Its id."""
    expires_ns: int


@runtime_checkable
class Pooled(Protocol):
    """A check whose figure for a whole suite is no mean of its scores (`bleu`): counts of answers add up, their sums have a figure."""

    def counts(self, sample: Sample, /) -> tuple[float, ...]:
        """Of one answer; always equally many."""
        ...

    def pooled(self, totals: Sequence[float], /) -> float:
        """The figure of the sums, in [0, 1]."""
        ...


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float
    n: int
    method: str
    """`wilson`, `bootstrap`, …"""
    confidence: float = 0.95


class Suite(msgspec.Struct, frozen=True):
    """What is asked and how it is judged."""

    name: str
    dataset: str
    """Version id: a suite never moves under its name."""
    split: str = "test"
    metrics: tuple[str, ...] = ("exact",)
    """Ids of checks that score (`noria.checks`): `exact`, `label`, `f1`, `bleu`, `rouge`, …"""
    options: dict[str, dict[str, Any]] = {}
    """Of the metrics."""
    params: dict[str, Any] = {}
    """Request parameters (`max_tokens`, `temperature`: 0 unless said)."""
    limit: int = 0
    """At most so many items, the same ones every time; 0 = all."""


class Scored(msgspec.Struct, frozen=True):
    """One item asked of one release."""

    row: str
    exchange: str
    answer: str
    expected: str
    label: str
    scores: dict[str, float]
    """By metric, each in [0, 1] unless the metric says otherwise."""
    latency_ms: float
    cost_nanousd: int | None = None
    served_model: str = ""
    error: str = ""
    """A failed request scores 0 everywhere: a release that does not answer is not better for it."""
    said: str = ""
    """The class that the answer named, where a metric looks for one."""
    counts: dict[str, tuple[float, ...]] = {}
    """By metric that is pooled (`Pooled`)."""


class Report(msgspec.Struct, frozen=True):
    """A suite run against a release."""

    id: str
    suite: Suite
    release: str
    app: str
    made_ns: int
    seconds: float
    estimates: dict[str, Estimate]
    """By metric; also `latency_p50_ms`, `latency_p95_ms`, `cost_usd`, `errors`."""
    by_label: dict[str, dict[str, float]] = {}
    """Per class: precision, recall, f1, support."""
    items: tuple[Scored, ...] = ()
    hash: str = ""
    """Of the suite (`evaluate.suite`): reports of one hash were asked and judged alike."""
    release_name: str = ""
    cached: int = 0
    """Items whose answer was known from an earlier run of this suite and release."""


Outcome = Literal["better", "worse", "not_worse", "no_difference", "need_more"]


class Comparison(msgspec.Struct, frozen=True):
    """Two releases on the same items. `difference` is second minus first."""

    metric: str
    first: str
    second: str
    difference: Estimate
    p: float
    test: str
    """`mcnemar`, `paired_bootstrap`."""
    verdict: Outcome
    margin: float = 0.0
    """Of non-inferiority."""
    more: int = 0
    """How many more items it would take to tell, where `verdict` is `need_more`."""
    p_adjusted: float = 1.0
    """`p` after Benjamini and Hochberg, over all metrics compared together; where there is one, the same."""
    n: int = 0
    """Items that both have."""
