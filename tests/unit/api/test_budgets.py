"""Budgets that operators change while the service runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.unit.app.test_keeper import NoTraces

from noria.api.manage import build
from noria.app.definition import Definition
from noria.app.keeper import Keeper, Stores
from noria.app.registry import EVENT
from noria.contracts.release import Budget
from noria.engines.memory import MemoryCounter, MemoryRecords
from noria.govern.access import Sessions

FILE = Budget("house", "tenant", 10**9, "month")


class Unspent(NoTraces):
    async def totals(self, *_: Any, **__: Any) -> list[Any]:
        return []


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[Keeper]:
    made = Keeper(tmp_path, Stores(MemoryRecords("memory://"), Unspent(), MemoryCounter("memory://")), Sessions("na-token"))
    await made.start(Definition("s", {}, budgets=(FILE,)))
    yield made
    await made.stop()


@pytest.fixture
async def client(keeper: Keeper) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build(keeper)), base_url="http://keeper") as made:
        yield made


async def test_a_budget_keeps_what_a_change_does_not_name(keeper: Keeper, client: httpx.AsyncClient) -> None:
    body = {"scope": "team:search", "usd": 5, "window": "week", "zone": "Europe/Berlin", "alerts": [0.5]}
    name = (await client.post("/api/budgets", json=body)).json()["id"]
    changed = (await client.patch(f"/api/budgets/{name}", json={"usd": 7.5, "alerts": [1.0, 0.25]})).json()
    assert (changed["id"], changed["usd"], changed["alerts"]) == (name, 7.5, [0.25, 1.0])
    assert (changed["scope"], changed["window"], changed["zone"], changed["hard"]) == (
        "team:search",
        "week",
        "Europe/Berlin",
        True,
    )
    assert (await client.patch(f"/api/budgets/{name}", json={"hard": False})).json()["usd"] == 7.5
    stands = (await client.get(f"/api/budgets/{name}")).json()
    assert (stands["usd"], stands["hard"]) == (7.5, False)
    kinds = [msgspec.msgpack.decode(r.value)["kind"] for r in await keeper.records.scan("local", EVENT)]
    assert kinds.count("budget.changed") == 2


@pytest.mark.parametrize(
    ("id", "body", "status", "code"),
    [
        ("house", {"usd": 2}, 400, "defined_in_file"),
        ("hous", {"usd": 2}, 404, "budget_not_found"),
        ("house", {"scope": "app:x"}, 400, "unknown_parameter"),
        ("house", {"usd": -1}, 400, "invalid_value"),
    ],
)
async def test_what_cannot_be_changed_says_why(
    client: httpx.AsyncClient, id: str, body: dict[str, Any], status: int, code: str
) -> None:
    answer = await client.patch(f"/api/budgets/{id}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    assert (await client.get("/api/budgets/house")).json()["usd"] == 1
