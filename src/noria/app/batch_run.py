"""One batch being worked off: what is done already, what is left, progress kept, results delivered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from noria.app.files import Files
from noria.app.lane import Calls
from noria.contracts.batch import Batch, BatchCounts, Lane, Line, LineResult, Owner
from noria.contracts.error import Conflict
from noria.dialects.openai_batch import result_line
from noria.gateway.batch import Pace, Reply, run
from noria.kit.ids import digest

KEEP = 2.0
"""Seconds between two writes of progress."""
PART = 512
"""Results after which progress is written at once."""
_EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
_CANCELLED = ("batch_cancelled", "This request was not executed because the batch was cancelled.")

Change = Callable[[Callable[[Batch], Batch]], Awaitable[Batch]]
Take = Callable[[LineResult], None]


class Upstream(Protocol):
    """Endpoints with a batch API of their own (`app.upstream_batch`)."""

    async def lane(self, batch: Batch, lines: Sequence[Line]) -> Lane:
        """How the batch is to be served."""
        ...

    async def run(
        self, batch: Batch, lines: Sequence[Line], take: Take, *, change: Change, stopped: Callable[[], bool]
    ) -> None:
        """Have `lines` answered by the endpoint's batch API, or given up where that was `stopped`."""
        ...


class Run:
    """`whole` takes a batch to its end, from wherever it is."""

    def __init__(
        self, batch: Batch, lines: Sequence[Line], owner: Owner, *, files: Files, calls: Calls, change: Change,
        places: asyncio.Semaphore, most: int, upstream: Upstream, ended: Callable[[], bool], resumed: bool,
    ) -> None:  # fmt: skip
        self._batch = batch
        self._lines = lines
        self._owner = owner
        self._files = files
        self._calls = calls
        self._change = change
        self._most = most
        self._upstream = upstream
        self._ended = ended
        self._resumed = resumed
        self._pace = Pace(most, calls.callers, places)
        self._done: dict[int, LineResult] = {}
        self._unkept: list[LineResult] = []
        self._parts = 0
        self._keeping = asyncio.Lock()

    async def whole(self) -> None:
        """Run to the end; cancelling leaves what `whole` will go on with."""
        await self._recall()
        left = [line for line in self._lines if line.number not in self._done]
        keeper = asyncio.create_task(self._keep_up())
        try:
            if self._batch.lane == "upstream":
                await self._upstream.run(self._batch, left, self._take, change=self._change, stopped=self._stopped)
            else:
                await run(left, self._ask, self._take, pace=self._pace, most=self._most, stopped=self._stopped)
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        await self._keep()
        await self._deliver()

    def _stopped(self) -> bool:
        return self._ended() or time.time_ns() >= self._batch.expires_ns

    async def _ask(self, line: Line) -> Reply:
        return await self._calls.ask(self._batch, line)

    def _take(self, result: LineResult) -> None:
        self._done[result.line] = result
        self._unkept.append(result)

    # -- progress -----------------------------------------------------------------------------------

    async def _recall(self) -> None:
        """What was done before: parts that were kept, then what workers of this node answered since."""
        while (data := await self._files.take(self._batch.tenant, self._part(self._parts + 1))) is not None:
            self._parts += 1
            self._done |= {r.line: r for r in msgspec.msgpack.decode(data, type=list[LineResult])}
        if self._resumed:
            missing = [line.number for line in self._lines if line.number not in self._done]
            for result in (await self._calls.settled(self._batch.id, missing)).values():
                self._take(result)

    async def _keep_up(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.2)
            if len(self._unkept) >= PART or (self._unkept and time.monotonic() - last >= KEEP):
                await self._keep()
                last = time.monotonic()

    async def _keep(self) -> None:
        """Write what is new, then the counts; a kill in between costs nothing: parts are looked for, not counted."""
        async with self._keeping:
            fresh, self._unkept = self._unkept, []
            if fresh:
                try:
                    await self._files.put(self._batch.tenant, self._part(self._parts + 1), msgspec.msgpack.encode(fresh))
                except BaseException:
                    self._unkept = fresh + self._unkept
                    raise
                self._parts += 1
            now: dict[str, Any] = {"counts": self._counts(), "parts": self._parts}
            await self._change(lambda b: replace(b, **now))

    def _counts(self) -> BatchCounts:
        good = sum(r.ok for r in self._done.values())
        return BatchCounts(len(self._lines), good, len(self._done) - good)

    def _part(self, number: int) -> str:
        return f"parts/{self._batch.id}/{number:06d}"

    # -- delivery -----------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        left = [line.number for line in self._lines if line.number not in self._done]
        cancelled = self._ended()
        why = _CANCELLED if cancelled else _EXPIRED
        results = {**self._done, **{n: LineResult(n, code=why[0], message=why[1]) for n in left}}
        self._done = results
        status: dict[str, Any]
        if not cancelled:
            await self._change(
                lambda b: b if b.finalizing_ns else replace(b, status="finalizing", finalizing_ns=time.time_ns())
            )
        good, bad = await asyncio.to_thread(self._written, results)
        output = await self._file("output", good)
        errors = await self._file("error", bad)
        now = time.time_ns()
        if cancelled:
            status = {"status": "cancelled", "cancelled_ns": now}
        elif left:
            status = {"status": "expired", "expired_ns": now}
        else:
            status = {"status": "completed", "completed_ns": now}
        status |= {"output_file": output, "error_file": errors, "counts": self._counts()}
        await self._change(lambda b: replace(b, **status))
        for number in range(1, self._parts + 1):
            await self._files.drop(self._batch.tenant, self._part(number))
        await self._calls.forget(self._batch.id)

    def _written(self, results: dict[int, LineResult]) -> tuple[bytes, bytes]:
        good: list[bytes] = []
        bad: list[bytes] = []
        for line in self._lines:
            result = results[line.number]
            (good if result.ok else bad).append(result_line(self._batch.id, line.custom_id, result))
        return b"".join(good), b"".join(bad)

    async def _file(self, what: str, data: bytes) -> str:
        """Store a result file once, whoever comes to it how often; empty ones are none."""
        if not data:
            return ""
        stored = "file-" + digest(f"{self._batch.id}/{what}".encode())[:32]
        name = f"{self._batch.id}_{what}.jsonl"
        try:
            file = await self._files.add(
                self._owner, data, filename=name, purpose="batch_output", keep_seconds=self._batch.keep_seconds, id=stored
            )
        except Conflict:  # two keepers at once, of which one has lost its lease
            file = await self._files.get(self._owner, stored)
        return file.id
