"""Every cell of the cost fixtures through one running Noria: front door, journey, spool, keeper, and then its own ledger."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.golden import expected
from tests.golden.fixtures import CASES, PRICES, Case
from tests.golden.upstream import prompt

from noria.contracts.trace import ExchangeRow, TraceQuery
from noria.engines.duckdb import DuckdbTraces

Cell = tuple[str, str, str]
"""Case, door, shape."""
LIMIT = 1000
"""Output tokens that every caller allows: more than any case bills, but for images and long thoughts."""
WITHIN = 20.0
PATHS = {
    "chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages",
    "gemini": "/v1beta/models/{app}:{action}",
}  # fmt: skip


def app(case: Case) -> str:
    """The app that answers a case: one a kind and model."""
    return f"{case.kind}-{case.model.rpartition('/')[2]}"


def cells() -> Iterator[Cell]:
    """All cells."""
    for case in CASES.values():
        yield from ((case.id, door, shape) for door in case.doors for shape in case.shapes)


def budget_of(cell: Cell) -> str:
    """Callers who stay and callers who leave are booked under budgets of their own, a kind each."""
    return CASES[cell[0]].kind + ("-left" if cell[2].startswith("left") else "")


def config(port: int, price_file: Path) -> dict[str, Any]:
    """A configuration for all cases; prices come from a file, as an operator would give them."""
    models, prices = {}, {}
    for case in CASES.values():
        provider = "openai" if case.kind == "responses" else case.kind
        root = f"http://127.0.0.1:{port}" + ("" if case.kind in ("anthropic", "gemini") else "/v1")
        options = {"options": {"responses": False}} if case.kind == "openai" else {}
        models[app(case)] = {"provider": provider, "url": root, "model": case.model} | options
        prices[f"{provider}/{case.model}"] = PRICES[case.model]
    price_file.write_text(json.dumps(prices))
    names = {budget_of(cell) for cell in cells()}
    return {
        "models": models,
        "apps": {name: {"model": name, "single_flight": False} for name in models},
        "price_file": str(price_file),
        "budgets": {name: {"scope": f"tag:b={name}", "usd": 1000, "alerts": []} for name in names},
    }


def request(case: Case, door: str, shape: str) -> tuple[str, dict[str, Any]]:
    """Path and body of a caller's request."""
    text, stream = prompt(case.id, shape, case.sent), shape != "whole"
    tool = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    path = PATHS[door].format(app=app(case), action="streamGenerateContent?alt=sse" if stream else "generateContent")
    if door == "gemini":
        body: dict[str, Any] = {
            "contents": [{"role": "user", "parts": [{"text": text}]}],
            "generationConfig": {"maxOutputTokens": LIMIT},
        }
        if "reasoning_effort" in case.ask:
            body["generationConfig"]["thinkingConfig"] = {"thinkingBudget": 512}
        return path, body | ({"tools": [{"functionDeclarations": [tool]}]} if case.tools else {})
    body = {"model": app(case), "stream": stream}
    if door == "chat":
        body |= {"messages": [{"role": "user", "content": text}], "max_completion_tokens": LIMIT, **case.ask}
        if case.of("audio_input"):
            sound = {"type": "input_audio", "input_audio": {"data": "A" * 40_000, "format": "mp3"}}
            body["messages"] = [{"role": "user", "content": [{"type": "text", "text": text}, sound]}]
        tools = [{"type": "function", "function": tool}]
    elif door == "messages":
        body |= {"messages": [{"role": "user", "content": text}], "max_tokens": LIMIT}
        body |= {"thinking": {"type": "enabled", "budget_tokens": 512}} if "reasoning_effort" in case.ask else {}
        tools = [{"name": "weather", "description": "d", "input_schema": schema}]
    else:
        body |= {"input": text, "store": False, "max_output_tokens": LIMIT} | {
            k: v for k, v in case.ask.items() if k == "service_tier"
        }
        body |= {"reasoning": {"effort": case.ask["reasoning_effort"]}} if "reasoning_effort" in case.ask else {}
        tools = [{"type": "function", "strict": False, **tool}]
    return path, body | ({"tools": tools} if case.tools else {})


@dataclass
class Ledger:
    """What came of a run: the row of each cell, and how budgets and the key stand once all is settled."""

    rows: dict[Cell, ExchangeRow] = field(default_factory=dict)
    budgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    key: dict[str, Any] = field(default_factory=dict)
    invoices: dict[str, tuple[int, list[dict[str, Any]]]] = field(default_factory=dict)
    """What `noria cost reconcile` made of two invoices: its exit code and differences."""


def send(caller: Any, cell: Cell, connection: http.client.HTTPConnection, **headers: str) -> str:
    """Ask for a cell; the exchange's id. Whoever is to leave hangs up at the answer's head."""
    name, door, shape = cell
    path, body = request(CASES[name], door, shape)
    bearer = {"authorization": f"Bearer {caller.key}", "content-type": "application/json"}
    connection.request("POST", path, json.dumps(body).encode(), bearer | headers)
    try:
        answer = connection.getresponse()
    except TimeoutError as e:
        raise AssertionError(f"{cell}: no answer") from e
    id_ = answer.getheader("x-request-id") or ""
    assert answer.status == 200, (cell, answer.read()[:500])
    if shape.startswith("left"):
        answer.close()
        connection.close()
    else:
        assert answer.read()
    return id_


def run(caller: Any) -> Ledger:
    """Ask for every cell, wait until all is booked, end the service and read its ledger."""
    caller.key = caller.new_key(name="golden", budget_usd=1000.0)
    (key,) = (k["id"] for k in caller.api("GET", "/api/keys").json)
    place = urlsplit(caller.service.url).netloc
    ids: dict[str, Cell] = {}
    kept = http.client.HTTPConnection(place, timeout=20)
    for cell in cells():
        leaving = cell[2].startswith("left")
        connection = http.client.HTTPConnection(place, timeout=5) if leaving else kept
        ids[send(caller, cell, connection, **{"x-noria-tags": f"b={budget_of(cell)}"})] = cell
    kept.close()
    ledger = Ledger()
    _settled(caller, ledger, key, len(ids))
    shown = {r["id"]: r for r in caller.api("GET", "/api/traces?limit=1000&previews=false").json["rows"]}
    for name, ours in (("as billed", False), ("with our estimates", True)):
        ledger.invoices[name] = _reconciled(caller, {shown[i]["id"]: c for i, c in ids.items()}, shown, ours=ours)
    caller.service.stop()
    ledger.rows = {ids[row.id]: row for row in asyncio.run(_rows(caller.service.home))}
    return ledger


def _settled(caller: Any, ledger: Ledger, key: str, many: int) -> None:
    """Wait until every row is stored, nothing is reserved any more, and what workers hold of the key's budget is paid or back."""
    end = time.monotonic() + WITHIN
    while True:
        stored = caller.api("GET", "/api/traces?limit=1&previews=false").json["total"]
        booked = caller.api("GET", "/api/cost").json["total"]["cost_usd"]
        ledger.budgets = {b["id"]: b for b in caller.api("GET", "/api/budgets").json}
        ledger.key = next(k for k in caller.api("GET", "/api/keys").json if k["id"] == key)
        idle = stored == many and not any(b["reserved_usd"] for b in ledger.budgets.values())
        if idle and round(ledger.key["leased_usd"] * 1e9) == round(booked * 1e9):
            return
        if time.monotonic() >= end:
            assert idle, (stored, many, booked, [b for b in ledger.budgets.values() if b["reserved_usd"]])
            return  # a test of its own says that the key's counter is not what was booked
        time.sleep(0.1)


def _reconciled(
    caller: Any, ids: dict[str, Cell], shown: dict[str, dict[str, Any]], *, ours: bool
) -> tuple[int, list[dict[str, Any]]]:
    """An invoice of every cell, as its provider bills it: callers who left early for what was made by then, or (`ours`) as we
    estimated them.
    """
    lines = ["date,model,cost_usd"]
    for id_, (name, _, shape) in ids.items():
        case, row = CASES[name], shown[id_]
        usd = expected.so_far(case) if shape == "left before" else expected.usd(case, case.tokens)
        if ours and shape == "left before":
            usd = Decimal(str(row["cost_usd"]))
        day = dt.datetime.fromtimestamp(int(row["time_ns"]) // 10**9, dt.UTC).date()
        lines.append(f"{day},{case.model},{usd:.9f}")
    file = caller.service.home.parent / "invoice.csv"
    file.write_text("\n".join(lines) + "\n")
    done = caller.service.cli("cost", "reconcile", str(file), "--json", check=False)
    return done.returncode, json.loads(done.stdout)["differences"]


async def _rows(home: Path) -> list[ExchangeRow]:
    traces = DuckdbTraces(f"duckdb:///{home}/traces")
    try:
        return [row for row, _, _ in await traces.list("local", TraceQuery(limit=1000))]
    finally:
        await traces.close()
