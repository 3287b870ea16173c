"""The numbers of `/metrics` under the names of the OpenTelemetry conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from noria.dialects.otlp_metrics import Metric
from noria.kit.shared_metrics import Counts, totals
from noria.observe.export import Starts, metrics, resource
from noria.observe.metrics import FAMILIES

WHO = ("openai", "gpt-5-mini", "support", "main", "gpt")
NOW, SINCE = 2_000, 1_000


@pytest.fixture
def counts() -> Counts:
    made = Counts(FAMILIES)
    for operation, took in (("chat", 500_000_000), ("embeddings", 20_000_000)):
        made.observe("gen_ai_server_request_duration_seconds", took, operation, *WHO, "")
        made.observe("gen_ai_client_token_usage", 70, operation, *WHO, "input")
    made.observe("gen_ai_client_token_usage", 9, "chat", *WHO, "output")
    made.observe("gen_ai_server_time_to_first_token_seconds", 50_000_000, "chat", *WHO)
    made.add("noria_exchanges", 2, "support", "chat", "ok", "200")
    made.set("noria_in_flight", 3)
    return made


def shown(counts: Counts, names: Any, starts: Starts | None = None) -> dict[str, Metric]:
    numbers = totals(Path(), counts)
    return {m.name: m for m in metrics(FAMILIES, numbers, starts or Starts(SINCE), now_ns=NOW, names=names)}


SERVER = {"gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"}
EARLIER = {"gen_ai.client.token.usage", "gen_ai.client.operation.duration"}
CURRENT = {
    "gen_ai.client.inference.duration",
    "gen_ai.client.inference.operation.input_tokens", "gen_ai.client.inference.operation.output_tokens",
    "gen_ai.client.inference.usage.input_tokens", "gen_ai.client.inference.usage.output_tokens",
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [("earlier", EARLIER), ("current", CURRENT | {"gen_ai.client.operation.duration"}), ("both", CURRENT | EARLIER)],
)
def test_names_are_chosen(counts: Counts, names: str, expected: set[str]) -> None:
    assert {n for n in shown(counts, names) if n.startswith("gen_ai")} == SERVER | expected


def test_embeddings_are_operations_but_no_inference(counts: Counts) -> None:
    of = {
        n: {p.attributes["gen_ai.operation.name"] for p in m.points} for n, m in shown(counts, "current").items() if "gen" in n
    }
    assert of["gen_ai.client.inference.duration"] == {"chat"}
    assert of["gen_ai.client.operation.duration"] == {"embeddings"}
    assert of["gen_ai.client.inference.usage.input_tokens"] == {"chat"}


def test_a_histogram_has_its_unit_bounds_and_attributes(counts: Counts) -> None:
    metric = shown(counts, "both")["gen_ai.client.operation.duration"]
    assert (metric.kind, metric.unit) == ("histogram", "s")
    chat = next(p for p in metric.points if p.attributes["gen_ai.operation.name"] == "chat")
    assert chat.attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5-mini",
        "noria.app": "support", "noria.release": "main", "noria.endpoint": "gpt",
    }  # fmt: skip
    assert (chat.value, sum(chat.buckets), len(chat.buckets)) == (0.5, 1, len(chat.bounds) + 1)
    assert chat.buckets[chat.bounds.index(0.64)] == 1
    assert (chat.start_ns, chat.time_ns) == (SINCE, NOW)


def test_tokens_are_told_apart_by_type_and_by_name(counts: Counts) -> None:
    made = shown(counts, "both")
    by_type = {p.attributes["gen_ai.token.type"]: p.value for p in made["gen_ai.client.token.usage"].points
               if p.attributes["gen_ai.operation.name"] == "chat"}  # fmt: skip
    assert by_type == {"input": 70, "output": 9}
    (used,) = made["gen_ai.client.inference.usage.output_tokens"].points
    assert (used.value, used.attributes["gen_ai.token.modality"]) == (9, "unknown")
    assert "gen_ai.token.type" not in used.attributes
    assert made["gen_ai.client.inference.usage.output_tokens"].kind == "sum"
    assert made["gen_ai.client.token.usage"].unit == "{token}"


def test_gauges_have_no_start_and_counters_keep_whole_numbers(counts: Counts) -> None:
    made = shown(counts, "both")
    assert (made["noria.in_flight"].kind, made["noria.in_flight"].points[0].start_ns) == ("gauge", 0)
    assert (made["noria.exchanges"].kind, made["noria.exchanges"].points[0].value) == ("sum", 2)
    assert isinstance(made["noria.exchanges"].points[0].value, int)


def test_a_series_that_falls_has_begun_anew() -> None:
    starts = Starts(10)
    starts.take({("a",): [5, 1], ("b",): [1]}, 20)
    starts.take({("a",): [6, 0], ("b",): [2]}, 30)
    assert (starts.of(("a",)), starts.of(("b",)), starts.of(("new",))) == (20, 10, 10)


def test_an_instance_is_one_home_of_one_machine(tmp_path: Path) -> None:
    one, again, other = (resource(tmp_path, h, "1", {}) for h in ("a", "a", "b"))
    assert one == again
    assert one["service.instance.id"] != other["service.instance.id"]
    assert resource(tmp_path, "a", "1", {"service.name": "mine", "x": "y"}) | one != one
    assert resource(tmp_path, "a", "1", {"service.name": "mine"})["service.name"] == "mine"
