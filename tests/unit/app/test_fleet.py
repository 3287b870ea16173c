"""How endpoints stand when several workers have their own view of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.app.test_keeper import GIVEN, NoTraces

from noria.app.fleet import fleet
from noria.app.keeper import Keeper, Stores
from noria.app.link import Heartbeat
from noria.engines.memory import MemoryCounter, MemoryRecords
from noria.gateway.health import Standing
from noria.govern.access import Sessions


@pytest.fixture
async def keeper(tmp_path: Path) -> Any:
    made = Keeper(tmp_path, Stores(MemoryRecords("memory://"), NoTraces(), MemoryCounter("memory://")), Sessions("na-token"))
    await made.start(GIVEN)
    yield made
    await made.stop()


async def test_the_worst_view_counts_and_the_latest_error_is_told(keeper: Keeper) -> None:
    older = Standing("gpt", "cooling", 4.0, 1, 2, 100.0, last_error="busy", last_error_ago=9.0)
    newer = Standing("gpt", "ok", 0.0, 2, 0, 300.0, last_error="late", last_error_ago=3.0)
    keeper.heard(Heartbeat("n0-w0", 1, endpoints=(older,)))
    keeper.heard(Heartbeat("n0-w1", 2, endpoints=(newer,)))
    found = {e["name"]: e for e in fleet(keeper)}
    assert set(found) == {"small", "gpt", "nano"}
    gpt = found["gpt"]
    assert (gpt["provider"], gpt["apps"], gpt["server"]["state"]) == ("openai", ["support"], "ready")
    assert (gpt["state"], gpt["seconds_left"], gpt["workers"], gpt["workers_out"]) == ("cooling", 4.0, 2, 1)
    assert (gpt["in_flight"], gpt["failures_in_a_row"], gpt["recent_latency_ms"]) == (3, 2, 200.0)
    assert gpt["last_error"] == {"text": "late", "seconds_ago": 3.0}
    assert gpt["attempts"] == {}


async def test_what_nobody_has_asked_says_so(keeper: Keeper) -> None:
    small = next(e for e in fleet(keeper) if e["name"] == "small")
    assert (small["state"], small["workers"], small["last_error"]) == ("unused", 0, None)
    assert small["took_ms"] == {"p50": None, "p95": None}
    assert small["server"]["state"] == "absent"
