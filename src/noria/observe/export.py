"""The numbers of `/metrics` as OpenTelemetry metrics: dotted names, GenAI conventions, cumulative from a known start.

GenAI conventions have renamed what they call these numbers after v1.41 (open-telemetry/semantic-conventions-genai,
`docs/gen-ai/non-normative/migration.md`); `names` chooses. Durations are of whole exchanges, as Noria's callers see them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from noria.dialects.otlp_metrics import Metric, Point
from noria.kit.shared_metrics import Family, Totals

Names = Literal["both", "current", "earlier"]
Series = tuple[tuple[str, ...], list[int]]
INFERENCE = frozenset({"chat", "text_completion"})
"""Operations that the conventions of today call inference; embeddings are none."""
_DOTTED = {
    "gen_ai_operation_name": "gen_ai.operation.name",
    "gen_ai_provider_name": "gen_ai.provider.name",
    "gen_ai_request_model": "gen_ai.request.model",
    "gen_ai_token_type": "gen_ai.token.type",
    "error_type": "error.type",
}
_TOKENS, _DURATION = "gen_ai_client_token_usage", "gen_ai_server_request_duration_seconds"
_SERVER = {
    _DURATION: "gen_ai.server.request.duration",
    "gen_ai_server_time_to_first_token_seconds": "gen_ai.server.time_to_first_token",
    "gen_ai_server_time_per_output_token_seconds": "gen_ai.server.time_per_output_token",
}


class Starts:
    """Since when each series counts: since `since_ns`, or since it was last seen to fall (its files were begun anew)."""

    def __init__(self, since_ns: int) -> None:
        self._since = since_ns
        self._seen: dict[tuple[str, ...], list[int]] = {}
        self._start: dict[tuple[str, ...], int] = {}
        self._last = since_ns

    def take(self, numbers: Totals, now_ns: int) -> None:
        """The next numbers: from here on `of` answers for them."""
        for key, values in numbers.items():
            before = self._seen.get(key)
            if before is not None and any(new < old for new, old in zip(values, before, strict=False)):
                self._start[key] = self._last
        self._seen = dict(numbers)
        self._last = now_ns

    def of(self, key: tuple[str, ...]) -> int:
        """When a series began, int64 ns UTC."""
        return self._start.get(key, self._since)


def resource(home: Path, host: str, version: str, more: Mapping[str, str]) -> dict[str, str]:
    """Who counts: the same service everywhere, an instance for each NORIA_HOME of each machine."""
    own = {
        "service.name": "noria",
        "service.version": version,
        "service.instance.id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"noria://{host}{home.absolute()}")),
        "host.name": host,
        "telemetry.sdk.name": "noria",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": version,
    }
    return own | dict(more)


def metrics(families: Sequence[Family], numbers: Totals, starts: Starts, *, now_ns: int, names: Names) -> Iterator[Metric]:
    """Every metric that has a series."""
    by_family: dict[str, list[Series]] = {}
    for key, values in sorted(numbers.items()):
        by_family.setdefault(key[0], []).append((key, values))
    for family in families:
        made = _Made(family, by_family.get(family.name, []), starts, now_ns)
        if made.series:
            yield from made.tokens(names) if family.name == _TOKENS else made.timed(names)


class _Made:
    """The metrics that come of one family."""

    def __init__(self, family: Family, series: list[Series], starts: Starts, now_ns: int) -> None:
        self.series = series
        self._family = family
        self._starts = starts
        self._now = now_ns

    def timed(self, names: Names) -> Iterator[Metric]:
        """A family under its own name; the duration under the names that clients know as well."""
        family = self._family
        name = _SERVER.get(family.name)
        if name is None:
            plain = family.name.removesuffix("_seconds").removesuffix("_bytes").replace("_", ".", 1)
            yield self._metric(plain, self.series)
            return
        yield self._metric(name, self.series)
        if family.name != _DURATION:
            return
        inference = [s for s in self.series if self._operation(s) in INFERENCE]
        if names != "earlier" and inference:
            yield self._metric("gen_ai.client.inference.duration", inference)
        others = self.series if names != "current" else [s for s in self.series if s not in inference]
        if others:
            yield self._metric("gen_ai.client.operation.duration", others)

    def tokens(self, names: Names) -> Iterator[Metric]:
        """Tokens by type: one histogram by its earlier name, one and a sum for each type by those of today."""
        if names != "current":
            yield self._metric("gen_ai.client.token.usage", self.series, unit="{token}")
        if names == "earlier":
            return
        for kind in ("input", "output"):
            chosen = [s for s in self.series if s[0][-1] == kind and self._operation(s) in INFERENCE]
            if not chosen:
                continue
            told = f"Tokens of an exchange, {kind}."
            without = frozenset({"gen_ai.token.type"})
            yield Metric(
                f"gen_ai.client.inference.operation.{kind}_tokens", "histogram", "{token}", told,
                [self._point(s, without) for s in chosen],
            )  # fmt: skip
            yield Metric(
                f"gen_ai.client.inference.usage.{kind}_tokens", "sum", "{token}", f"Tokens, {kind}.",
                [self._sum(s, without) for s in chosen],
            )  # fmt: skip

    def _operation(self, series: Series) -> str:
        return series[0][1]

    def _metric(self, name: str, series: list[Series], unit: str = "") -> Metric:
        family = self._family
        kind: Literal["sum", "gauge", "histogram"] = "sum" if family.kind == "counter" else family.kind
        unit = unit or ("s" if family.name.endswith("_seconds") else "By" if family.name.endswith("_bytes") else "1")
        return Metric(name, kind, unit, family.help, [self._point(s) for s in series])

    def _point(self, series: Series, without: frozenset[str] = frozenset()) -> Point:
        family, (key, values) = self._family, series
        start = 0 if family.kind == "gauge" else self._starts.of(key)
        named = self._attributes(key, without)
        if family.kind == "histogram":
            return Point(named, start, self._now, values[-1] / family.per, values[:-1], family.bounds)
        return Point(named, start, self._now, values[0] if family.per == 1 else values[0] / family.per)

    def _sum(self, series: Series, without: frozenset[str]) -> Point:
        key, values = series
        named = self._attributes(key, without) | {"gen_ai.token.modality": "unknown"}
        return Point(named, self._starts.of(key), self._now, values[-1])

    def _attributes(self, key: tuple[str, ...], without: frozenset[str]) -> dict[str, str]:
        """What is empty is absent, as the conventions have it of `error.type`."""
        named = {_DOTTED.get(k, f"noria.{k}"): v for k, v in zip(self._family.labels, key[1:], strict=False) if v}
        return {k: v for k, v in named.items() if k not in without}
