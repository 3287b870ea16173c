"""What `/metrics` says: OpenTelemetry's names, bounded labels, every policy counted, a few microseconds an exchange."""

from __future__ import annotations

import shutil
import subprocess
import time

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from noria.contracts.exchange import Usage
from noria.contracts.trace import Attempt, ExchangeRow, StageTime
from noria.contracts.verdict import Ruling, Verdict
from noria.observe.metrics import Metrics, by_app, policy_totals

STAGES = tuple(StageTime(n, 0, 20_000) for n in ("admit", "limits", "guard.in", "route", "model", "guard.out", "record"))
ROW = ExchangeRow(
    tenant="local", id="i", trace="t", span="s", parent_span="", started_ns=0, kind="chat", app="support", release="r1:x",
    release_name="main", config="c1:x", outcome="ok", status=200, stream=True, duration_ns=1_100_000_000, ttft_ns=100_000_000,
    overhead_ns=300_000, endpoint="gpt", provider="openai", served_model="gpt-5", upstream_id="u", finish_reason="stop",
    error_code="", error_message="", key="k", subject="", conversation="", usage=Usage(input=100, output=11), cost_nanousd=7,
    cost_status="exact", stages=STAGES, attempts=(Attempt("gpt", 0, 10, 200),), rulings=(), request=b"", answer=b"",
    answer_is_sse=True, worker="n0-w0",
)  # fmt: skip


def samples(metrics):
    return [s for f in text_string_to_metric_families(metrics.text().decode()) for s in f.samples]


def value(metrics, name, **labels):
    return sum(s.value for s in samples(metrics) if s.name == name and labels.items() <= s.labels.items())


def test_an_exchange_is_counted_under_the_names_of_opentelemetry():
    metrics = Metrics(lambda app: app == "support")
    metrics.count(ROW)
    who = {
        "gen_ai_operation_name": "chat", "gen_ai_provider_name": "openai", "gen_ai_request_model": "gpt-5",
        "app": "support", "release": "main", "endpoint": "gpt",
    }  # fmt: skip
    assert value(metrics, "gen_ai_server_request_duration_seconds_sum", **who, error_type="") == 1.1
    assert value(metrics, "gen_ai_server_time_to_first_token_seconds_sum", **who) == 0.1
    assert value(metrics, "gen_ai_server_time_per_output_token_seconds_sum", **who) == 0.1
    assert value(metrics, "gen_ai_client_token_usage_sum", **who, gen_ai_token_type="input") == 100
    assert value(metrics, "gen_ai_client_token_usage_sum", **who, gen_ai_token_type="output") == 11
    assert value(metrics, "noria_stage_seconds_count", stage="guard.in") == 1
    assert value(metrics, "noria_cost_nanousd_total", app="support") == 7


def test_an_unknown_cost_is_counted_as_unknown_and_a_failure_under_its_code():
    metrics = Metrics(lambda _: True)
    failed = replace(ROW, outcome="error", status=502, error_code="upstream_failed", cost_nanousd=None, usage=Usage())
    metrics.count(failed)
    assert value(metrics, "noria_cost_unknown_total") == 1
    assert value(metrics, "gen_ai_server_request_duration_seconds_count", error_type="upstream_failed") == 1


def test_names_that_callers_make_up_do_not_become_labels():
    metrics = Metrics(lambda app: app == "support")
    for n in range(2000):
        metrics.count(replace(ROW, app=f"made-up-{n}", release_name="", endpoint="", outcome="refused", status=404))
    assert {s.labels["app"] for s in samples(metrics) if s.name == "noria_exchanges_total"} == {"unknown"}
    assert value(metrics, "noria_exchanges_total", app="unknown") == 2000
    for n in range(2000):
        metrics.count(replace(ROW, served_model=f"model-{n}", endpoint=f"e{n}"))
    durations = {tuple(s.labels.items()) for s in samples(metrics) if s.name == "gen_ai_server_request_duration_seconds_count"}
    assert len(durations) <= 501
    assert value(metrics, "gen_ai_server_request_duration_seconds_count") == 4000


def test_every_policy_counts_evaluated_and_acted_and_the_keeper_reads_them(tmp_path):
    metrics = Metrics(lambda _: True, tmp_path)
    passed = Ruling(Verdict("pii", passed=True), "mask", "input")
    metrics.count(replace(ROW, rulings=(passed, replace(passed, verdict=Verdict("pii", passed=False)))))
    metrics.policies({"limit:rpm": (5, 1)})
    metrics.policies({"limit:rpm": (9, 1)})
    assert policy_totals(tmp_path) == {"guard:support/pii": (2, 1), "limit:rpm": (9, 1)}
    assert by_app(tmp_path, "noria_exchanges", outcome="ok") == {"support": 1}
    assert value(metrics, "noria_policy_total", policy="limit:rpm", verb="evaluated") == 9


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
def test_promtool_has_nothing_to_say():
    metrics = Metrics(lambda _: True)
    metrics.count(replace(ROW, app='we"ird\\\n', outcome="error", error_code="x"))
    metrics.keeper(up=True)
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics.text(), capture_output=True, check=False)
    assert (done.returncode, done.stderr + done.stdout) == (0, b"")


def test_counting_an_exchange_costs_a_few_microseconds():
    metrics = Metrics(lambda _: True)
    best = 1.0
    for _ in range(20):
        began = time.process_time()
        for _ in range(500):
            metrics.count(ROW)
        best = min(best, (time.process_time() - began) / 500)
    assert best < 15e-6, f"{best * 1e6:.1f} µs"  # 4 µs on the machine of the proofs; the bound allows for a slower one
