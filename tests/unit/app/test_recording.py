"""Spools of several workers into one store, and live word of what arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from noria.app import recording
from noria.app.recording import WAITING, Recording
from noria.contracts.error import StoreError
from noria.contracts.exchange import Usage
from noria.contracts.trace import ExchangeRow, TraceQuery
from noria.engines.duckdb import DuckdbTraces
from noria.kit.spool import SpoolWriter
from noria.observe.trace import encode


def row(id: str, **changes: Any) -> ExchangeRow:
    empty: dict[str, Any] = dict.fromkeys(ExchangeRow.__struct_fields__[: -len(ExchangeRow.__struct_defaults__)], "")
    empty |= {"tenant": "local", "id": id, "kind": "chat", "outcome": "ok", "cost_status": "unknown", "usage": Usage()}
    empty |= {"started_ns": 7, "status": 200, "duration_ns": 1, "overhead_ns": 1, "ttft_ns": None, "cost_nanousd": None}
    empty |= {
        "stages": (),
        "attempts": (),
        "rulings": (),
        "request": b"",
        "answer": b"",
        "stream": False,
        "answer_is_sse": False,
    }
    return ExchangeRow(**(empty | {"cut_tokens": 0} | changes))


class Store:
    """A TraceStore that remembers ids, and refuses on demand."""

    max_batch = 100

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.places: dict[str, Any] = {}
        self.refuse = False

    async def append(self, tenant: str, rows: Any, bodies: Any, position: Any) -> int:
        if self.refuse:
            raise StoreError("disk full")
        new = [r.id for r, _, _ in rows if r.id not in self.ids]
        self.ids += new
        self.places[position.spool] = position
        return len(new)

    async def positions(self) -> list[Any]:
        return list(self.places.values())


async def key(tenant: str, subject: str) -> bytes:
    return b"k" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def writer(folder: Path) -> Iterator[Any]:
    made: dict[str, SpoolWriter] = {}

    def write(name: str, *ids: str) -> None:
        spool = made.setdefault(name, SpoolWriter(folder, name))
        for one in ids:
            spool.append(encode(row(one)))
        spool.sync()

    yield write
    for spool in made.values():
        spool.close()


async def until(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_every_spool_is_recorded_also_one_that_appears_later(
    folder: Path, writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LOOK", 0.01)
    store = Store()
    writer("n0-w0", "a")
    task = asyncio.create_task(Recording(folder, store, key).run())
    await until(lambda: store.ids == ["a"])
    writer("n0-w1", "b")
    writer("n0-w0", "c")
    await until(lambda: sorted(store.ids) == ["a", "b", "c"])
    await ended(task)


async def test_what_the_spools_still_hold_is_taken_in_at_the_end(folder: Path, writer: Any) -> None:
    store = Store()
    writer("n0-w0", "a", "b")
    writer("n0-w1", "c")
    made = Recording(folder, store, key)
    await made.catch_up()
    assert sorted(store.ids) == ["a", "b", "c"]
    await made.catch_up()
    assert len(store.ids) == 3
    assert made.state()["stored"] == 3


async def test_a_new_recording_goes_on_where_the_last_one_stopped(folder: Path, writer: Any) -> None:
    store = Store()
    writer("n0-w0", "a")
    await Recording(folder, store, key).catch_up()
    writer("n0-w0", "b")
    again = Recording(folder, store, key)
    await again.catch_up()
    assert store.ids == ["a", "b"]
    assert again.state()["stored"] == 1


async def test_live_readers_hear_of_rows_from_now_on(folder: Path, writer: Any) -> None:
    store = Store()
    made = Recording(folder, store, key)
    writer("n0-w0", "before")
    await made.catch_up()
    live = made.follow()
    heard = asyncio.create_task(anext(live))
    await asyncio.sleep(0)
    writer("n0-w0", "after")
    await made.catch_up()
    found = await heard
    assert found is not None
    assert found.id == "after"
    await live.aclose()
    assert not made._readers


async def test_a_slow_reader_loses_the_oldest_rows_and_holds_nobody_up(folder: Path) -> None:
    made = Recording(folder, Store(), key)
    live = made.follow()
    first = asyncio.create_task(anext(live))
    await asyncio.sleep(0)
    made._tell([row("first")])
    await first
    made._tell([row(str(i)) for i in range(WAITING + 10)])
    found = await anext(live)
    assert found is not None
    assert found.id == "10"
    await live.aclose()


async def test_quiet_is_told_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "QUIET", 0.01)
    live = Recording(folder, Store(), key).follow()
    assert await anext(live) is None
    await live.aclose()


async def test_live_readers_can_be_sent_home(folder: Path) -> None:
    made = Recording(folder, Store(), key)
    rest = asyncio.create_task(_all(made.follow()))
    await asyncio.sleep(0)
    made.end_live()
    async with asyncio.timeout(5):
        await rest
        await _all(made.follow())


async def _all(live: Any) -> list[Any]:
    return [r async for r in live]


async def test_a_store_that_refuses_is_an_alarm_with_its_lag(
    folder: Path, writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LOOK", 0.01)
    store = Store()
    store.refuse = True
    writer("n0-w0", "a")
    made = Recording(folder, store, key)
    assert made.state()["alarm"] is None
    task = asyncio.create_task(made.run())
    await until(lambda: made.state()["failures"] > 0)
    state = made.state()
    assert "disk full" in state["alarm"]
    assert state["lag_bytes"] > 0
    store.refuse = False
    await until(lambda: store.ids == ["a"])
    await until(lambda: made.state()["alarm"] is None)
    await ended(task)


async def test_a_row_that_duckdb_cannot_hold_is_named_and_the_rest_of_its_spool_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noria.observe.trace.FIRST_RETRY_S", 0.001)
    store = DuckdbTraces(f"duckdb:///{tmp_path}/traces")
    spool = SpoolWriter(folder, "w0")
    too_large = encode(row("bad", usage=Usage(2**63 + 1, 1)))
    for i in range(40):
        spool.append(too_large if i == 23 else encode(row(f"e{i:02}", request=b"asked", answer=b"said")))
    made = recording.Recording(folder, store, key)
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(30):
        while await store.count("local", TraceQuery()) < 39:
            await asyncio.sleep(0.01)
        await made.level()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    state = made.state()
    assert [(folder / "poison" / name).read_bytes() for name in state["aside"]] == [too_large]
    assert state["alarm"] is None
    assert [r.id for r, asked, said in await store.list("local", TraceQuery()) if not (asked and said)] == []
    assert made._reader.spools() == ["w0"], "what was put aside is no spool"

    whole = encode(row("bad", usage=Usage(1, 1)))
    (folder / "poison" / state["aside"][0]).write_bytes(whole)  # as a release that can read it would
    again = recording.Recording(folder, store, key)
    running = asyncio.create_task(again.run())
    async with asyncio.timeout(30):
        while again.state()["aside"]:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await store.count("local", TraceQuery()) == 40
    await store.close()
    spool.close()
