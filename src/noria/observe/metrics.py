"""Metrics of the data plane: bounded labels, one exposition for all workers of a node, a few microseconds an exchange.

OpenTelemetry's GenAI names are the canonical ones (semantic conventions for generative AI metrics, v1.37), in the form
that Prometheus gives them; what only a gateway has is called `noria_…`. Workers count into shared files
(`kit.shared_metrics`), so any worker answers for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from noria.contracts.trace import ExchangeRow
from noria.kit.shared_metrics import Counts, Family, Totals, exposition, put, read_folder, totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NS = 10**9
OPERATION = {"chat": "chat", "completion": "text_completion", "embedding": "embeddings"}
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
_STAGE = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1, 1.0)
_WHO = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "app", "release", "endpoint")

FAMILIES = (
    Family("gen_ai_client_token_usage", "histogram", "Tokens of an exchange, by type.", (*_WHO, "gen_ai_token_type"), _TOKENS),
    Family(
        "gen_ai_server_request_duration_seconds", "histogram", "Whole exchange; error_type is empty where it went well.",
        (*_WHO, "error_type"), _DURATION, NS,
    ),
    Family("gen_ai_server_time_to_first_token_seconds", "histogram", "Streams: first content byte.", _WHO, _FIRST, NS),
    Family("gen_ai_server_time_per_output_token_seconds", "histogram", "Streams: each token after the first.", _WHO, _EACH, NS),
    Family("noria_exchanges", "counter", "Exchanges by how they ended.", ("app", "kind", "outcome", "code")),
    Family("noria_overhead_seconds", "histogram", "Exchange minus waiting for models.", ("app",), _OVERHEAD, NS),
    Family("noria_stage_seconds", "histogram", "Time within one stage of the journey, per exchange.", ("stage",), _STAGE, NS),
    Family("noria_tokens", "counter", "Tokens by direction.", ("app", "direction")),
    Family("noria_cost_nanousd", "counter", "Known cost.", ("app",)),
    Family("noria_cost_unknown", "counter", "Exchanges whose price or usage is not known.", ("app",)),
    Family("noria_fallbacks", "counter", "Attempts that failed and were followed by another.", ("app",)),
    Family("noria_guard_evaluated", "counter", "Texts judged, by check.", ("app", "check")),
    Family("noria_guard_acted", "counter", "Findings by check and action.", ("app", "check", "action")),
    Family("noria_policy", "counter", "How often each configured policy was evaluated, and acted.", ("policy", "verb")),
    Family("noria_limits", "counter", "Limits evaluated and acted.", ("event",)),
    Family("noria_routing", "counter", "What the router did, by event.", ("event",)),
    Family("noria_endpoint_attempts", "counter", "Attempts by endpoint and result.", ("endpoint", "result")),
    Family(
        "noria_endpoint_state", "gauge", "0 well, 1 on trial, 2 cooling, 3 ejected, 4 key refused: the worst of all workers.",
        ("endpoint",), merge="max",
    ),
    Family("noria_probes", "counter", "Probes of endpoints, by what came of them.", ("endpoint", "result")),
    Family("noria_probe_out", "gauge", "1 while an endpoint is out by its probes.", ("endpoint",), merge="max"),
    Family("noria_cache", "counter", "What the answer cache did, by event.", ("event",)),
    Family("noria_cache_saved_nanousd", "counter", "What answers from the cache had cost when they were made."),
    Family("noria_cache_bytes", "gauge", "Memory of cached answers."),
    Family("noria_cache_shared_wait_microseconds", "counter", "Time that requests waited for lookups in the shared cache."),
    Family("noria_in_flight", "gauge", "Requests being answered."),
    Family("noria_queue_depth", "gauge", "Requests that wait for a limit."),
    Family("noria_spool_pending", "gauge", "Records that wait in memory for the disk."),
    Family("noria_spool_dropped", "gauge", "Records lost because the spool could not be written."),
    Family("noria_spool_alarm", "gauge", "1 while the spool cannot be written.", merge="max"),
    Family("noria_keeper_up", "gauge", "1 while the keeper answers this node's workers.", merge="min"),
)  # fmt: skip
"""Everything that `/metrics` shows."""
STATES = ("ok", "trial", "cooling", "ejected", "dead")
"""States of an endpoint, by rising gravity."""


class _Slots(NamedTuple):
    """Where the numbers of one kind of exchange are kept."""

    exchanges: int
    duration: int
    overhead: int
    first: int
    each: int
    used_input: int
    used_output: int
    tokens_input: int
    tokens_output: int
    cost: int
    unknown: int


class Metrics:
    """What is counted. `count(row)` is called once an exchange, at its end; all else once a second."""

    def __init__(self, known_app: Callable[[str], bool], folder: Path | None = None, slot: str = "0") -> None:
        self._known_app = known_app
        self._folder = folder
        self._counts = counts = Counts(FAMILIES, None if folder is None else folder / f"{slot}.counts")
        self._values = counts.values
        self._slots: dict[tuple[str, ...], _Slots] = {}
        self._stages: dict[str, int] = {}
        self._seen: dict[tuple[str, ...], int] = {}
        self._duration = counts.bounds("gen_ai_server_request_duration_seconds")
        self._first = counts.bounds("gen_ai_server_time_to_first_token_seconds")
        self._each = counts.bounds("gen_ai_server_time_per_output_token_seconds")
        self._overhead = counts.bounds("noria_overhead_seconds")
        self._stage = counts.bounds("noria_stage_seconds")
        self._used = counts.bounds("gen_ai_client_token_usage")

    @property
    def shared(self) -> bool:
        """Whether there was room for a file that the other workers read."""
        return self._counts.shared

    def count(self, row: ExchangeRow) -> None:
        """Take one exchange into the numbers."""
        values = self._values
        key = (row.app, row.release_name, row.endpoint, row.kind, row.outcome, str(row.status), row.error_code)
        at = self._slots.get(key) or self._find(key, row)
        values[at.exchanges] += 1
        put(values, at.duration, self._duration, row.duration_ns)
        put(values, at.overhead, self._overhead, row.overhead_ns)
        usage, first = row.usage, row.ttft_ns
        if first is not None:
            put(values, at.first, self._first, first)
            if usage.output and usage.output > 1 and row.duration_ns > first:
                put(values, at.each, self._each, (row.duration_ns - first) // (usage.output - 1))
        if usage.input:
            put(values, at.used_input, self._used, usage.input)
            values[at.tokens_input] += usage.input
        if usage.output:
            put(values, at.used_output, self._used, usage.output)
            values[at.tokens_output] += usage.output
        if row.cost_nanousd is None:
            values[at.unknown] += 1
        else:
            values[at.cost] += row.cost_nanousd
        stages = self._stages
        for stage in row.stages:
            slot = stages.get(stage.name)
            if slot is None:
                slot = stages[stage.name] = self._counts.slot("noria_stage_seconds", stage.name)
            put(values, slot, self._stage, stage.took_ns)
        if len(row.attempts) > 1:
            self._counts.add("noria_fallbacks", len(row.attempts) - 1, self._app(row.app))
        if row.rulings:
            self._rulings(row)

    def _rulings(self, row: ExchangeRow) -> None:
        counts, app = self._counts, self._app(row.app)
        for ruling in row.rulings:
            check = ruling.verdict.check
            counts.add("noria_guard_evaluated", 1, app, check)
            counts.add("noria_policy", 1, f"guard:{app}/{check}", "evaluated")
            if not ruling.verdict.passed:
                counts.add("noria_guard_acted", 1, app, check, ruling.action)
                counts.add("noria_policy", 1, f"guard:{app}/{check}", "acted")

    def _app(self, app: str) -> str:
        return app if self._known_app(app) else "unknown"

    def _find(self, key: tuple[str, ...], row: ExchangeRow) -> _Slots:
        slot, app = self._counts.slot, self._app(row.app)
        model = row.served_model if row.endpoint else ""
        release, endpoint = (row.release_name, row.endpoint) if app != "unknown" else ("", "")
        who = (OPERATION.get(row.kind, row.kind), row.provider, model, app, release, endpoint)
        made = _Slots(
            exchanges=slot("noria_exchanges", app, row.kind, row.outcome, str(row.status)),
            duration=slot("gen_ai_server_request_duration_seconds", *who, "" if row.outcome == "ok" else row.error_code),
            overhead=slot("noria_overhead_seconds", app),
            first=slot("gen_ai_server_time_to_first_token_seconds", *who),
            each=slot("gen_ai_server_time_per_output_token_seconds", *who),
            used_input=slot("gen_ai_client_token_usage", *who, "input"),
            used_output=slot("gen_ai_client_token_usage", *who, "output"),
            tokens_input=slot("noria_tokens", app, "input"),
            tokens_output=slot("noria_tokens", app, "output"),
            cost=slot("noria_cost_nanousd", app),
            unknown=slot("noria_cost_unknown", app),
        )
        if app != "unknown" and len(self._slots) < 4096:  # names that callers make up must not fill the memory
            self._slots[key] = made
        return made

    # -- once a second -------------------------------------------------------------------------------

    def limits(self, counts: Mapping[str, int]) -> None:
        """Add to the limits' counters (`evaluated`, `acted`, `unchecked`)."""
        for event, n in counts.items():
            if n:
                self._counts.add("noria_limits", n, event)

    def policies(self, now: Mapping[str, tuple[int, int]]) -> None:
        """(evaluated, acted) of each policy by name, since the worker's start."""
        for policy, numbers in now.items():
            for verb, total in zip(("evaluated", "acted"), numbers, strict=True):
                self._total("noria_policy", total, policy, verb)

    def cache(self, totals: Mapping[str, int], saved_nanousd: int, held: int, waited_ns: int = 0) -> None:
        """How the answer cache stands: numbers since the worker's start, by event, its memory in bytes, time waited for lookups."""
        for event, total in totals.items():
            self._total("noria_cache", total, event)
        self._total("noria_cache_saved_nanousd", saved_nanousd)
        self._total("noria_cache_shared_wait_microseconds", waited_ns // 1000)
        self._counts.set("noria_cache_bytes", held)

    def routing(self, totals: Mapping[str, int], attempts: Mapping[tuple[str, str], int], states: Mapping[str, str]) -> None:
        """How routing stands: events and attempts by (endpoint, result) since the worker's start, the state of each endpoint."""
        for event, total in totals.items():
            self._total("noria_routing", total, event)
        for (endpoint, result), total in attempts.items():
            self._total("noria_endpoint_attempts", total, endpoint, result)
        for endpoint, state in states.items():
            self._counts.set("noria_endpoint_state", STATES.index(state), endpoint)

    def load(self, in_flight: int, queued: int = 0) -> None:
        """What is going on now."""
        self._counts.set("noria_in_flight", in_flight)
        self._counts.set("noria_queue_depth", queued)

    def spool(self, dropped: int, alarm: str | None, pending: int = 0) -> None:
        """How the spool stands."""
        self._counts.set("noria_spool_dropped", dropped)
        self._counts.set("noria_spool_alarm", 1 if alarm else 0)
        self._counts.set("noria_spool_pending", pending)

    def keeper(self, *, up: bool) -> None:
        """Whether the keeper answers."""
        self._counts.set("noria_keeper_up", 1 if up else 0)

    def text(self) -> bytes:
        """The exposition, of all workers where they share files."""
        return exposition(FAMILIES, totals(self._folder or Path(), self._counts))

    def _total(self, family: str, total: int, *labels: str) -> None:
        key = (family, *labels)
        more = total - self._seen.get(key, 0)
        self._seen[key] = total
        if more > 0:
            self._counts.add(family, more, *labels)


def policy_totals(folder: Path) -> dict[str, tuple[int, int]]:
    """(evaluated, acted) of each policy over all workers of this node, for the keeper."""
    numbers: Totals = read_folder(folder, FAMILIES)
    found: dict[str, tuple[int, int]] = {}
    for key, values in numbers.items():
        if key[0] == "noria_policy":
            evaluated, acted = found.get(key[1], (0, 0))
            found[key[1]] = (evaluated + values[0], acted) if key[2] == "evaluated" else (evaluated, acted + values[0])
    return found


def by_app(folder: Path, family: str, **labels: str) -> dict[str, int]:
    """A counter by its label `app`, over all workers of this node and all its series that have these labels."""
    names = next(f.labels for f in FAMILIES if f.name == family)
    found: dict[str, int] = {}
    for key, values in read_folder(folder, FAMILIES).items():
        series = dict(zip(names, key[1:], strict=False))
        if key[0] == family and labels.items() <= series.items():
            found[series["app"]] = found.get(series["app"], 0) + values[0]
    return found
