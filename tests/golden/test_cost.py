"""Cost error of at most 0.1 % on golden fixtures, shown end to end (issue 3): see `fixtures`, `expected` and `run`.

Where its usage has come, an exchange costs exactly what a plain table says. A caller that leaves before pays an estimate that is
never less than what the endpoint had produced by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from tests.golden import expected
from tests.golden.fixtures import CASES, DOORS, SHAPES, Case
from tests.golden.run import LIMIT, Ledger, budget_of, cells, config, run
from tests.golden.upstream import Providers
from tests.loopback import listening

ERROR = Decimal("0.001")


@pytest.fixture(scope="module")
def providers() -> Iterator[Providers]:
    made = Providers()
    with listening(made.serve) as made.port:
        yield made


@pytest.fixture(scope="module")
def ledger(serve_once: Any, caller: Any, providers: Providers, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    settings = config(providers.port, tmp_path_factory.mktemp("prices") / "prices.json")
    return run(caller(serve_once(json.dumps(settings), "--workers", "1")))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_an_exchange_costs_what_its_provider_bills(ledger: Ledger, name: str, shape: str) -> None:
    case = CASES[name]
    if shape not in case.shapes:
        return
    for door in case.doors:
        row = ledger.rows[name, door, shape]
        assert row.cost_nanousd is not None, (door, row)
        if shape == "left before":
            _estimated(case, row, door)
        else:
            _exact(case, row, door)
        assert row.outcome == ("cancelled" if shape.startswith("left") else "ok")
        assert row.stream == (shape != "whole")


def _exact(case: Case, row: Any, door: str) -> None:
    bill = expected.nano(expected.usd(case, case.tokens))
    assert row.cost_status == case.status, door
    assert abs(row.cost_nanousd - bill) <= bill * ERROR
    assert row.cost_nanousd == bill, (door, row.usage)
    told = {name: getattr(row.usage, name) for name in expected.usage(case)}
    assert told == expected.usage(case) | case.usage, door
    unpriced = case.searches > 0 and "search" not in expected.PRICES[case.model]
    assert (row.usage.apart > 0) == (case.status == "estimated" and not unpriced), "why it is an estimate"


def _estimated(case: Case, row: Any, door: str) -> None:
    produced = expected.so_far(case)
    assert row.cost_status == "estimated", door
    assert row.cost_nanousd >= expected.nano(produced), (door, row.usage)
    most = expected.usd(case, case.tokens) + expected.usd(case, {"input": 2 * case.sent, "output": LIMIT})
    if not case.of("audio_input"):  # whose bytes count as if they were text
        assert row.cost_nanousd <= expected.nano(most), (door, row.usage)


def test_no_cell_is_missing_and_none_is_booked_twice(ledger: Ledger) -> None:
    assert set(ledger.rows) == set(cells())
    assert {door for _, door, _ in cells()} == set(DOORS)


def test_each_budget_has_settled_what_its_exchanges_cost(ledger: Ledger) -> None:
    for name, budget in ledger.budgets.items():
        if name.startswith("key:"):
            continue
        mine = {cell: row for cell, row in ledger.rows.items() if budget_of(cell) == name}
        assert mine, name
        booked = sum(row.cost_nanousd or 0 for row in mine.values())
        assert round(budget["used_usd"] * 1e9) == booked, name
        assert budget["reserved_usd"] == 0
        if name.endswith("-left"):
            continue
        bills = sum((expected.usd(CASES[c], CASES[c].tokens) for c, _, _ in mine), Decimal(0))
        assert abs(booked - expected.nano(bills)) <= len(mine), f"{name}: a nano-dollar of rounding an exchange at most"


def test_what_workers_took_out_of_a_keys_budget_is_what_the_ledger_says(ledger: Ledger) -> None:
    """The counter that the worker's reservations went through, put back and paid: not the ledger's own sum."""
    booked = sum(row.cost_nanousd or 0 for row in ledger.rows.values())
    assert round(ledger.key["leased_usd"] * 1e9) == booked


def test_an_invoice_agrees_where_usage_has_come_and_says_estimated_where_it_has_not(ledger: Ledger) -> None:
    """`noria cost reconcile` on a made-up invoice of every cell."""
    code, differences = ledger.invoices["with our estimates"]
    assert {d["model"] for d in differences} == {c.model.rpartition("/")[2] for c in CASES.values()}
    assert (code, [d for d in differences if d["causes"]]) == (0, [])
    assert all(abs(d["difference_usd"]) <= 1e-9 * d["exchanges"] for d in differences), "a nano-dollar of rounding each"
    code, differences = ledger.invoices["as billed"]
    assert code == 1
    for d in differences:
        assert d["difference_usd"] >= -1e-9 * d["exchanges"], "never less than what was billed"
        assert not d["causes"] or any("estimated" in cause for cause in d["causes"]), d


def test_every_native_wire_was_spoken_and_every_translation(ledger: Ledger, providers: Providers) -> None:
    paths = {p.partition("/models/")[0] if "/models/" in p else p for p in providers.paths}
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1beta"} <= paths
    native = {(cell[1], row.endpoint.partition("-")[0]) for cell, row in ledger.rows.items() if row.native}
    assert native == {("responses", "responses"), ("messages", "anthropic"), ("gemini", "gemini")}
