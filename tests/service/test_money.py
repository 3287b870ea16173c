"""Money in the running service: budgets of scopes, what a killed worker held, cost by group, invoices, alerts."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

USD = {"input": 1000, "output": 1000}
COST = 0.015  # the mirror says 10 tokens in, 5 out


def until(what, within=20.0):
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def noria(serve_once, caller, mirror):
    model = {"provider": "openai_compatible", "url": mirror.url, "model": "echo"}
    config = {
        "models": {"dear": model | {"price": USD}, "free": model | {"price": {"input": 0, "output": 0}}, "unpriced": model},
        "apps": {n: {"model": n} for n in ("dear", "free", "unpriced")} | {"held": {"model": "dear"}},
        "budgets": {
            "told": {"scope": "app:dear", "usd": 0.05, "window": "day", "hard": False, "alerts": [0.2]},
            "small": {"scope": "tag:size=small", "usd": 0.2},
        },
        "limits": {"burst": {"scope": "app:free", "requests_per_minute": 100_000, "concurrent": 64}},
    }
    return caller(serve_once(json.dumps(config), "--workers", "2"))


def budget(noria, id):
    return next(b for b in noria.service.json("budgets", "list") if b["id"] == id)


def test_a_budget_is_made_held_and_taken_away(noria, caller) -> None:
    made = noria.service.cli("budgets", "create", "app:held", "0.1", "--window", "month", "--zone", "Europe/Berlin", "--json")
    name = json.loads(made.stdout)["id"]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: noria.chat("held", max_tokens=5), range(24)))
    assert {a.status for a in answers} <= {200, 429}
    paid = sum(a.status == 200 for a in answers)
    assert paid * COST <= 0.1
    until(lambda: abs(budget(noria, name)["used_usd"] - paid * COST) < 1e-9 and budget(noria, name)["reserved_usd"] == 0)
    refused = next(a for a in answers if a.status == 429)
    error = refused.refuses(429, "insufficient_quota", type="insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["x-noria-error-source"] == "gateway"
    assert error["details"]["budget"] == name
    assert error["details"]["limit_usd"] == 0.1
    assert error["details"]["resets"].endswith("Z")
    noria.service.cli("budgets", "delete", name)
    assert noria.chat("held", max_tokens=5).status == 200
    done = noria.service.cli("budgets", "delete", "small", check=False)
    assert done.returncode == 1
    assert "noria.yaml" in done.stderr
    assert noria.service.cli("budgets", "create", "team", "1", check=False).returncode == 1


def test_a_soft_budget_refuses_nothing_and_is_told_once(noria) -> None:
    assert noria.chat("dear").status == 200
    until(lambda: any("told" in line and "%" in line for line in logs(noria)))
    assert noria.chat("dear").status == 200
    time.sleep(6)
    assert sum("budget told" in line for line in logs(noria)) == 1


def logs(noria):
    return [line for p in (noria.service.home / "logs").glob("*") for line in p.read_text(errors="replace").splitlines()]


def test_limits_are_told_in_the_head(noria) -> None:
    answer = noria.chat("free")
    assert answer.headers["x-ratelimit-limit-requests"] == "100000"
    assert 0 < int(answer.headers["x-ratelimit-remaining-requests"]) < 100_000
    assert answer.headers["x-ratelimit-reset-requests"].endswith("s")


def test_what_was_spent_is_shown_by_group_and_compared_with_the_invoice(noria, tmp_path) -> None:
    noria.chat("dear", max_tokens=5)
    day = time.strftime("%Y-%m-%d", time.gmtime())

    def dear():
        found = noria.service.json("cost", "show", "--by", "app")
        return next((g for g in found["groups"] if g["app"] == "dear"), None)

    until(dear)
    time.sleep(1)
    shown = dear()
    assert shown["cost_usd"] == pytest.approx(shown["tokens_in"] * 1e-3 + shown["tokens_out"] * 1e-3)
    by_model = noria.service.json("cost", "show", "--by", "model")["groups"]
    lines = [f"{day},{g['model']},{g['cost_usd']:.9f},{g['tokens_in']},{g['tokens_out']}" for g in by_model if g["model"]]
    invoice = tmp_path / "invoice.csv"
    invoice.write_text("date,model,cost_usd,input_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    found = noria.service.cli("cost", "reconcile", str(invoice), "--json", check=False)
    differences = json.loads(found.stdout)["differences"]
    assert [d["difference_usd"] for d in differences] == [0.0] * len(lines)
    invoice.write_text(f"date,model,cost_usd\n{day},echo,99\n")
    assert noria.service.cli("cost", "reconcile", str(invoice), check=False).returncode == 1
    invoice.write_text("date,model,cost_usd\nyesterday,echo,99\n")
    wrong = noria.service.cli("cost", "reconcile", str(invoice), check=False)
    assert "line 2" in wrong.stderr


def test_prices_say_where_they_are_stated(noria) -> None:
    (found,) = noria.service.json("cost", "prices", "dear")
    assert (found["price"]["input"], found["price"]["source"]) == (1000, "noria.yaml")
    (found,) = noria.service.json("cost", "prices", "unpriced")
    assert found["price"] is None


def test_a_killed_worker_takes_no_money_with_it(serve, caller, mirror, upstream) -> None:
    slow = {"provider": "openai_compatible", "url": upstream.url, "model": "slow-30", "price": USD}
    config = {
        "models": {"slow": slow},
        "apps": {"slow": {"model": "slow"}},
        "budgets": {"b": {"scope": "app:slow", "usd": 100}},
    }
    noria = caller(serve(json.dumps(config)))
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(lambda: noria.chat("slow", max_tokens=5))
        until(lambda: budget(noria, "b")["reserved_usd"] > 0)
        time.sleep(0.5)
        held = budget(noria, "b")["reserved_usd"]
        (pid,) = [p for n, p in noria.service.pids().items() if n.startswith("worker")]
        os.kill(pid, signal.SIGKILL)
    until(lambda: budget(noria, "b")["reserved_usd"] == 0)
    after = budget(noria, "b")
    assert 0 < after["used_usd"] <= held
    rows = noria.service.json("trace", "list", "error=orphaned")
    rows = rows["rows"] if isinstance(rows, dict) else rows
    assert len(rows) == 2
    assert sum(r["cost_usd"] for r in rows) == pytest.approx(after["used_usd"])
    assert {r["cost_status"] for r in rows} == {"estimated"}
