"""Keys, their rates and their budgets: never passed, whatever the workers, and not forgotten by a restart."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

USD = {"input": 1000, "output": 1000}
"""A tenth of a cent a token. The mirror says 10 tokens in, 5 out: 0.015 USD an answer."""
COST = 0.015


@pytest.fixture(scope="module")
def config(mirror, upstream):
    model = {"provider": "openai_compatible", "url": mirror.url, "model": "echo"}
    models = {
        "dear": model | {"price": USD},
        "cheap": model | {"price": {"input": 0.1, "output": 0.1}},
        "unpriced": model,
        "down": {"provider": "openai_compatible", "url": upstream.url, "model": "status-500", "price": USD},
    }
    return json.dumps({"models": models, "apps": {n: {"model": n} for n in models}, "serve": {"keys_required": "always"}})


@pytest.fixture(scope="module")
def noria(serve_once, caller, config):
    """Two workers."""
    return caller(serve_once(config, "--workers", "2"))


def with_key(noria, caller, **what):
    return caller(noria.service, noria.new_key(**what))


def test_the_command_line_makes_lists_and_revokes_a_key(noria, caller) -> None:
    made = noria.service.json("keys", "create", "--app", "cheap", "--budget", "2.5", "--rpm", "30", "--name", "ci")
    assert made["key"].startswith("nk-")
    assert (made["apps"], made["budget_usd"], made["rpm"], made["name"]) == (["cheap"], 2.5, 30, "ci")
    client = caller(noria.service, made["key"])
    end = time.monotonic() + 2
    while client.chat("cheap").status != 200:
        assert time.monotonic() < end
    listed = next(k for k in noria.service.json("keys", "list") if k["id"] == made["id"])
    assert "key" not in listed
    assert made["key"] not in json.dumps(listed)
    assert listed["hint"].startswith(made["key"][:6])
    noria.service.cli("keys", "revoke", made["id"])
    end = time.monotonic() + 2
    while any(noria.knows(made["key"]) for _ in range(6)):
        assert time.monotonic() < end
    client.chat("cheap").refuses(401, "invalid_api_key")


def test_a_key_for_an_app_that_is_not_there_is_not_made(noria) -> None:
    done = noria.service.cli("keys", "create", "--app", "chep", "--json", check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Did you mean 'cheap'" in done.stderr
    assert noria.service.cli("keys", "create", "--rpm", "0", check=False).returncode == 2


def test_the_rate_of_a_key_holds_over_all_workers(noria, caller) -> None:
    client = with_key(noria, caller, rpm=12)
    first = time.time() // 60
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.chat("cheap"), range(60)))
    minutes = time.time() // 60 - first + 1
    served = [a for a in answers if a.status == 200]
    assert 1 <= len(served) <= 12 * minutes
    refused = next(a for a in answers if a.status != 200)
    refused.refuses(429, "rate_limit_exceeded", type="rate_limit_error")
    wait, wait_ms = int(refused.headers["retry-after"]), int(refused.headers["retry-after-ms"])
    assert 1 <= wait <= 60
    assert wait_ms <= wait * 1000 <= wait_ms + 1000
    assert "x-should-retry" not in refused.headers, "waiting helps"
    row = noria.row(refused.id)
    assert (row["outcome"], row["status"], row["error_code"], row["attempts"]) == ("refused", 429, "rate_limit_exceeded", [])
    assert {noria.row(a.id)["worker"] for a in answers} == {"n0-w0", "n0-w1"}


def ten_of_fifty(noria, caller):
    """Ten requests of a new key with fifty a minute: its id, the last answer, and what the command line says once it was told."""
    key = noria.api("POST", "/api/keys", {"rpm": 50}).json
    client, end = caller(noria.service, key["key"]), time.monotonic() + 20
    while client.chat("cheap").status != 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    answer = [client.chat("cheap") for _ in range(9)][-1]
    used = 0
    while used != 10 and time.monotonic() < end:  # the workers report once a second; until then all they hold counts as used
        (limit,) = noria.service.json("limits", "show", f"key:{key['id']}")
        used = sum(use["used"] for use in limit["use"])
    return key, answer, limit


def test_what_the_head_says_of_a_rate_is_what_the_command_line_says(noria, caller) -> None:
    for _ in range(3):
        minute = time.time() // 60
        key, answer, limit = ten_of_fifty(noria, caller)
        text = noria.service.cli("limits", "list").stdout
        if time.time() // 60 == minute:
            break  # else a window has ended meanwhile, and what was said of one is compared with the next
    (use,) = limit["use"]
    assert (limit["source"], use["unit"], use["limit"], answer.headers["x-ratelimit-limit-requests"]) == (
        "key", "requests", 50, "50",
    )  # fmt: skip
    assert use["used"] == 10
    assert use["used"] + use["leased"] + use["left"] == 50
    assert sum(x["taken"] - x["free"] for x in use["leases"]) == use["used"]
    assert {x["worker"] for x in use["leases"]} <= {"n0-w0", "n0-w1"}
    left = int(answer.headers["x-ratelimit-remaining-requests"])
    assert left <= 50 - use["used"] + 3
    assert use["left"] <= left + 3
    assert 0 < use["resets_in_s"] <= 60
    assert f"key:{key['id']}" in text
    assert noria.service.cli("limits", "show", "app:nobody", check=False).returncode == 1
    made = noria.service.json("limits", "create", "app:cheap", "--rpm", "90000", "--concurrent", "500")
    assert [u["unit"] for u in made["use"]] == ["requests", "concurrent"]
    noria.service.cli("limits", "delete", made["id"])
    assert noria.service.cli("limits", "create", "app:cheap", check=False).returncode == 2


def test_another_key_is_not_touched_by_a_spent_rate(noria, caller) -> None:
    spent, other = with_key(noria, caller, rpm=1), with_key(noria, caller, rpm=1)
    first = time.time() // 60
    statuses = [spent.chat("cheap").status for _ in range(4)]
    assert 429 in statuses or time.time() // 60 > first
    assert other.chat("cheap").status == 200


def test_a_spent_budget_is_429_and_no_retry_helps(noria, caller) -> None:
    client = with_key(noria, caller, budget_usd=0.3)
    served = []
    for _ in range(40):
        answer = client.chat("dear", max_tokens=5)
        if answer.status != 200:
            break
        served.append(answer)
    error = answer.refuses(429, "insufficient_quota", type="insufficient_quota")
    assert "0.30 USD" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    costs = [noria.row(a.id)["cost_usd"] for a in served]
    assert costs == pytest.approx([COST] * len(served))
    assert 1 <= len(served) <= 0.3 / COST
    assert float(served[0].headers["x-noria-cost"]) == pytest.approx(COST)
    row = noria.row(answer.id)
    assert (row["outcome"], row["error_code"], row["cost_usd"]) == ("refused", "insufficient_quota", 0)


def test_a_budget_holds_when_asked_for_all_at_once(noria, caller) -> None:
    client = with_key(noria, caller, budget_usd=0.4)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: client.chat("dear", stream=bool(i % 2), max_tokens=5), range(40)))
    assert {a.status for a in answers} == {200, 429}
    assert sum(a.status == 200 for a in answers) * COST <= 0.4


def test_a_missing_output_limit_is_injected_under_a_budget_only(noria, caller, mirror) -> None:
    client = with_key(noria, caller, budget_usd=5)
    answer = client.chat("cheap", "bounded")
    assert mirror.last["max_tokens"] == 1024
    assert noria.trace(answer.id)["request"]["max_tokens"] == 1024
    client.chat("cheap", max_completion_tokens=7)
    assert mirror.last["max_completion_tokens"] == 7
    assert mirror.last["max_tokens"] == 7, "a server of unknown make may know only this name"
    with_key(noria, caller).chat("cheap", "unbounded")
    assert "max_tokens" not in mirror.last


def test_an_unknown_price_is_refused_under_a_budget(noria, caller) -> None:
    answer = with_key(noria, caller, budget_usd=5).chat("unpriced")
    error = answer.refuses(429, "price_unknown", type="insufficient_quota")
    assert "noria.yaml" in error["message"]
    assert noria.row(answer.id)["attempts"] == []
    free = with_key(noria, caller).chat("unpriced")
    assert free.status == 200
    assert "x-noria-cost" not in free.headers
    assert (noria.row(free.id)["cost_usd"], noria.row(free.id)["cost_status"]) == (None, "unknown")


def test_a_call_that_the_endpoint_refused_costs_nothing(noria, caller) -> None:
    """A reservation is some 0.09 USD: five failures would use up the budget if they were paid."""
    client = with_key(noria, caller, budget_usd=0.4)
    for _ in range(12):
        client.chat("down", max_tokens=5).refuses(502, "upstream_error", type="upstream_error")
    assert client.chat("dear", max_tokens=5).status == 200


def test_a_budget_survives_a_restart(serve, caller, config) -> None:
    first = serve(config)
    noria = caller(first)
    noria.key = noria.new_key(budget_usd=0.3)
    served = 0
    while noria.chat("dear", max_tokens=5).status == 200:
        served += 1
    first.stop()
    second = serve(config, env={"NORIA_HOME": str(first.home)})
    again = caller(second, noria.key)
    for _ in range(3):
        again.chat("dear", max_tokens=5).refuses(429, "insufficient_quota", type="insufficient_quota")
    key = second.json("keys", "list")[0]
    assert served * COST <= key["leased_usd"] + 1e-9 <= 0.3 + 1e-9
