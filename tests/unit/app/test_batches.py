"""Batches in the keeper, where things go wrong that a running service seldom meets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from noria.app import batches as module
from noria.app.batches import Batches
from noria.app.files import Files
from noria.contracts.batch import Batch, Line, LineResult, Owner
from noria.contracts.error import NotFound, RequestError
from noria.dialects.openai_batch import Asked
from noria.engines.files import FileBlobs
from noria.engines.memory import MemoryQueue, MemoryRecords
from noria.gateway.batch import Reply
from noria.settings.files import BatchSettings, FileSettings

ANN = Owner("local", "key:ann", "ann")
CHAT = "/v1/chat/completions"


async def secret(tenant: str, name: str) -> bytes:
    return b"s" * 32


class FakeCalls:
    """Answers every line; `fail` makes it raise."""

    ready = True

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.fail: Exception | None = None
        self.known: dict[int, LineResult] = {}

    def callers(self) -> int:
        return 0

    async def ask(self, batch: Batch, line: Line, **_: Any) -> Reply:
        if self.fail is not None:
            raise self.fail
        self.asked.append(line.number)
        await asyncio.sleep(0)
        return Reply(LineResult(line.number, 200, "r", b"{}"))

    async def settled(self, batch: str, lines: list[int]) -> dict[int, LineResult]:
        return {n: r for n, r in self.known.items() if n in lines}

    async def forget(self, batch: str) -> None: ...

    async def close(self) -> None: ...


class Own:
    async def lane(self, batch: Batch, lines: Any) -> str:
        return "own"

    async def run(self, *args: Any, **more: Any) -> None:
        raise AssertionError


class Keeper:
    """One keeper's batches over stores that outlive it."""

    def __init__(self, folder: Path) -> None:
        self.records, self.queue = MemoryRecords("memory://"), MemoryQueue("memory://")
        self.files = Files(self.records, FileBlobs(f"files://{folder}/blobs"), secret, FileSettings())
        self.calls = FakeCalls()
        self.batches = self.again()

    def again(self, **settings: Any) -> Batches:
        return Batches(
            self.records,
            self.queue,
            self.files,
            calls=self.calls,
            settings=BatchSettings(**settings),
            upstream=Own(),  # type: ignore[arg-type]
        )

    async def begin(self, many: int, window: str = "24h") -> Batch:
        lines = [{"custom_id": f"c{i}", "method": "POST", "url": CHAT, "body": {"model": "m"}} for i in range(1, many + 1)]
        file = await self.files.add(ANN, "\n".join(map(json.dumps, lines)).encode(), filename="f", purpose="batch")
        return await self.batches.create(ANN, Asked(file.id, CHAT, window))

    async def until(self, batch: Batch, *statuses: str) -> Batch:
        async with asyncio.timeout(10):
            while (batch := await self.batches.get(ANN, batch.id)).status not in statuses:
                await asyncio.sleep(0.02)
        return batch


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(module, "PAUSE_NS", 10_000_000)
    return Keeper(tmp_path)


async def test_a_batch_that_lost_its_job_is_found_again(keeper: Keeper) -> None:
    batch = await keeper.begin(3)
    keeper.queue = MemoryQueue("memory://")
    keeper.batches = keeper.again()
    running = asyncio.create_task(keeper.batches.run("local"))
    assert (await keeper.until(batch, "completed")).counts.completed == 3
    running.cancel()


async def test_what_a_worker_has_in_its_journal_is_not_asked_again(keeper: Keeper) -> None:
    batch = await keeper.begin(5)
    name = module.place(ANN.scope, batch.id)
    await keeper.batches.change("local", name, lambda b: module.replace(b, status="in_progress", lane="own"))
    keeper.calls.known = {2: LineResult(2, 200, "kept", b"{}"), 4: LineResult(4, 400, "kept", b"{}")}
    running = asyncio.create_task(keeper.batches.run("local"))
    done = await keeper.until(batch, "completed")
    assert sorted(keeper.calls.asked) == [1, 3, 5]
    assert (done.counts.completed, done.counts.failed) == (4, 1)
    running.cancel()


@pytest.mark.parametrize("failure", [ValueError("a mistake of ours"), module.StoreError("the disk is full")])
async def test_a_failure_lets_a_batch_wait_and_go_on(keeper: Keeper, failure: Exception) -> None:
    keeper.calls.fail = failure
    batch = await keeper.begin(3)
    running = asyncio.create_task(keeper.batches.run("local"))
    await keeper.until(batch, "in_progress")
    await asyncio.sleep(0.1)
    keeper.calls.fail = None
    assert (await keeper.until(batch, "completed")).counts.completed == 3
    assert not running.done()
    running.cancel()


async def test_a_batch_that_can_never_be_worked_on_fails_in_words(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_NS", -25 * 3600 * 10**9)
    keeper.calls.fail = ValueError("a mistake of ours")
    batch = await keeper.begin(3)
    running = asyncio.create_task(keeper.batches.run("local"))
    failed = await keeper.until(batch, "failed")
    assert "a mistake of ours" in failed.errors[0].message
    running.cancel()


async def test_open_batches_are_bounded_and_only_batch_files_are_taken(keeper: Keeper) -> None:
    keeper.batches = keeper.again(most_open=1)
    await keeper.begin(1)
    with pytest.raises(RequestError, match="may be 1") as e:
        await keeper.begin(1)
    assert e.value.status == 429
    other = await keeper.files.add(ANN, b"x", filename="f", purpose="user_data")
    with pytest.raises(RequestError, match="purpose"):
        await keeper.batches.create(ANN, Asked(other.id, CHAT, "24h"))


async def test_an_input_file_that_was_deleted_fails_the_batch(keeper: Keeper) -> None:
    batch = await keeper.begin(1)
    await keeper.files.delete(ANN, batch.input_file)
    running = asyncio.create_task(keeper.batches.run("local"))
    assert (await keeper.until(batch, "failed")).errors[0].code == "file_not_found"
    running.cancel()


async def test_an_operator_sees_and_ends_the_batches_of_all(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    bob = Owner("local", "team:search", "bob")
    made = []
    for owner in (ANN, bob):
        file = await keeper.files.add(owner, b"{}", filename="in.jsonl", purpose="batch")
        made.append((await keeper.batches.create(owner, Asked(file.id, CHAT, "24h"))).id)
    assert [f.owner for f in await keeper.files.every("local")] == ["team:search", "key:ann"]
    assert [b.id for b in await keeper.batches.every("local")] == made[::-1], "newest first"
    assert (await keeper.batches.cancel_any("local", made[1])).status == "cancelling"
    assert (await keeper.batches.get(bob, made[1])).status == "cancelling"
    with pytest.raises(NotFound):
        await keeper.batches.cancel_any("local", "batch_none")
    assert await keeper.batches.every("elsewhere") == []
