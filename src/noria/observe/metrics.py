"""Prometheus metrics of the data plane: bounded labels, one registry for all workers of a node.

The workers share memory-mapped files (`prometheus_client`'s multiprocess mode), so any worker answers for
all of them. Import this module only after `kit.shared_metrics.share`; without it, the numbers are those of
this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from noria.contracts.trace import ExchangeRow

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)


class Metrics:
    """What is counted. `count(row)` is called once an exchange, at its end."""

    def __init__(self, known_app: Callable[[str], bool]) -> None:
        self._known_app = known_app
        own = self._registry = CollectorRegistry()
        self._exchanges = Counter(
            "noria_exchanges", "Exchanges by how they ended.", ["app", "kind", "outcome", "code"], registry=own
        )
        self._duration = Histogram("noria_exchange_seconds", "Whole exchange.", ["app"], buckets=_SECONDS, registry=own)
        self._first = Histogram(
            "noria_time_to_first_token_seconds", "Streams: first content byte.", ["app"], buckets=_SECONDS, registry=own
        )
        self._overhead = Histogram(
            "noria_overhead_seconds", "Exchange minus waiting for models.", ["app"], buckets=_OVERHEAD, registry=own
        )
        self._tokens = Counter("noria_tokens", "Tokens by direction.", ["app", "direction"], registry=own)
        self._cost = Counter("noria_cost_nanousd", "Known cost.", ["app"], registry=own)
        self._fallbacks = Counter(
            "noria_fallbacks", "Attempts that failed and were followed by another.", ["app"], registry=own
        )
        self._rulings = Counter("noria_guard_acted", "Findings by check and action.", ["app", "check", "action"], registry=own)
        self._checked = Counter("noria_guard_evaluated", "Texts judged, by check.", ["app", "check"], registry=own)
        self._policies = Counter("noria_limits", "Limits evaluated and acted.", ["event"], registry=own)
        self._dropped = Gauge(
            "noria_spool_dropped", "Records lost because the spool could not be written.", registry=own, multiprocess_mode="sum"
        )
        self._keeper = Gauge(
            "noria_keeper_up", "1 while the keeper answers this node's workers.", registry=own, multiprocess_mode="min"
        )
        self._alarm = Gauge("noria_spool_alarm", "1 while the spool cannot be written.", registry=own, multiprocess_mode="max")

    def count(self, row: ExchangeRow) -> None:
        """Take one exchange into the numbers."""
        app = row.app if self._known_app(row.app) else "unknown"
        self._exchanges.labels(app, row.kind, row.outcome, str(row.status)).inc()
        self._duration.labels(app).observe(row.duration_ns / 1e9)
        self._overhead.labels(app).observe(row.overhead_ns / 1e9)
        if row.ttft_ns is not None:
            self._first.labels(app).observe(row.ttft_ns / 1e9)
        if row.usage.input:
            self._tokens.labels(app, "input").inc(row.usage.input)
        if row.usage.output:
            self._tokens.labels(app, "output").inc(row.usage.output)
        if row.cost_nanousd:
            self._cost.labels(app).inc(row.cost_nanousd)
        if len(row.attempts) > 1:
            self._fallbacks.labels(app).inc(len(row.attempts) - 1)
        for ruling in row.rulings:
            self._checked.labels(app, ruling.verdict.check).inc()
            if not ruling.verdict.passed:
                self._rulings.labels(app, ruling.verdict.check, ruling.action).inc()

    def limits(self, counts: Mapping[str, int]) -> None:
        """Add to the limits' counters (`evaluated`, `acted`, `unchecked`)."""
        for event, n in counts.items():
            if n:
                self._policies.labels(event).inc(n)

    def spool(self, dropped: int, alarm: str | None) -> None:
        """How the spool stands."""
        self._dropped.set(dropped)
        self._alarm.set(1 if alarm else 0)

    def keeper(self, *, up: bool) -> None:
        """Whether the keeper answers."""
        self._keeper.set(1 if up else 0)

    def text(self) -> bytes:
        """The exposition, of all workers where they share files."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        return generate_latest(shared)
