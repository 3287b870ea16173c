"""Batches of callers: taken, worked off under a lease, resumed by whoever is alive, delivered.

A batch is a record and a job of the queue `batches`. Whoever holds the job's lease works on it; a keeper that is killed
loses the lease within `LEASE` seconds, and the next one goes on where it was (`app.lane`, ADR 19).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from msgspec.structs import replace

from noria.app.batch_run import Run, Upstream
from noria.app.files import Files, owned, place
from noria.app.lane import Calls
from noria.contracts.batch import OPEN, Batch, BatchCounts, BatchError, Line, Owner
from noria.contracts.error import Conflict, NoriaError, NotFound, RequestError, StoreError, boundary
from noria.contracts.port import Job, Queue, RecordStore, Write
from noria.dialects.openai_batch import Asked, read_lines, seconds_of_window
from noria.kit.ids import uuid7
from noria.settings.files import BatchSettings

log = logging.getLogger("noria.batches")

BATCH, QUEUE = "batch", "batches"
LEASE_NS = 6 * 1_000_000_000
RENEW = 2.0
LOOK = 1.0
"""Seconds between looks for batches whose keeper is gone, or whose next try is due; a new one is seen at once."""
AT_ONCE = 32
"""Batches that one keeper works on at a time."""
_SECOND_NS = 1_000_000_000
PAUSE_NS = 5 * _SECOND_NS
"""Until the next try of a batch that cannot be worked on now."""
PATIENCE_NS = 3600 * _SECOND_NS
"""After its window, until it is given up."""


class Batches:
    """What `/v1/batches` does."""

    def __init__(
        self, records: RecordStore, queue: Queue, files: Files, *, calls: Calls, settings: BatchSettings, upstream: Upstream
    ) -> None:
        self._records = records
        self._queue = queue
        self._files = files
        self._calls = calls
        self._settings = settings
        self._upstream = upstream
        self._places = asyncio.Semaphore(settings.in_flight)
        self._ending: set[str] = set()
        """Batches that were cancelled."""
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._put = asyncio.Event()

    # -- what callers ask ---------------------------------------------------------------------------

    async def create(self, owner: Owner, asked: Asked) -> Batch:
        """Take a batch. Raises `NotFound` for a file of somebody else, `RequestError` for one of another purpose."""
        file = await self._files.get(owner, asked.input_file_id)
        if file.purpose != "batch":
            raise RequestError(
                f"The file {file.id} has the purpose {file.purpose!r}, not 'batch'.",
                code="invalid_value",
                param="input_file_id",
            )
        if file.bytes > self._settings.max_input:
            raise RequestError(
                f"The input file has {file.bytes:,} bytes; a batch may have {self._settings.max_input:,}.",
                code="file_too_large", param="input_file_id", status=413,
                hint="Make several batches of it, or raise `batches.max_input` in noria.yaml.",
            )  # fmt: skip
        still = [b for b in await self.list(owner) if b.status in OPEN]
        if len(still) >= self._settings.most_open:
            raise RequestError(
                f"{len(still)} batches of this key (or its team) are open; there may be {self._settings.most_open}.",
                code="too_many_batches", status=429, hint="Wait for one, or raise `batches.most_open` in noria.yaml.",
            )  # fmt: skip
        now = time.time_ns()
        batch = Batch(
            id="batch_" + uuid7(now).replace("-", ""),
            tenant=owner.tenant,
            owner=owner.scope,
            key=owner.key,
            endpoint=asked.endpoint,
            input_file=file.id,
            window=asked.completion_window,
            created_ns=now,
            expires_ns=now + seconds_of_window(asked.completion_window) * _SECOND_NS,
            metadata=asked.metadata,
            keep_seconds=asked.output_expires_after.seconds if asked.output_expires_after else 0,
        )
        name = place(owner.scope, batch.id)
        fresh = Write(BATCH, name, msgspec.msgpack.encode(batch), expect=0)
        await self._records.commit(owner.tenant, [fresh], quiet=True)
        await self._queue.put(owner.tenant, QUEUE, batch.id, name.encode(), now_ns=now)
        self._put.set()
        return batch

    async def get(self, owner: Owner, id: str) -> Batch:
        """A batch. Raises `NotFound`, also for another's."""
        record = await self._records.get(owner.tenant, BATCH, place(owner.scope, id))
        if record is None:
            raise NotFound(f"No batch found with id '{id[:100]}'.", code="batch_not_found", param="batch_id")
        return msgspec.msgpack.decode(record.value, type=Batch)

    async def every(self, tenant: str) -> list[Batch]:
        """The batches of all owners, newest first."""
        found = [b async for _, b in owned(self._records, tenant, BATCH, None, Batch)]
        return sorted(found, key=lambda b: b.created_ns, reverse=True)

    async def list(self, owner: Owner) -> list[Batch]:
        """The batches of an owner, oldest first."""
        return [b async for _, b in owned(self._records, owner.tenant, BATCH, owner.scope, Batch)]

    async def cancel_any(self, tenant: str, id: str) -> Batch:
        """As `cancel`, whoever it belongs to. Raises `NotFound`."""
        for batch in await self.every(tenant):
            if batch.id == id:
                return await self.cancel(Owner(tenant, batch.owner, batch.key), id)
        raise NotFound(f"No batch found with id '{id[:100]}'.", code="batch_not_found", param="batch_id")

    async def cancel(self, owner: Owner, id: str) -> Batch:
        """Begin to end a batch: lines that were begun are finished. Raises `RequestError` where it is over already."""
        await self.get(owner, id)

        def end(batch: Batch) -> Batch:
            if batch.status in ("cancelling", "cancelled"):
                return batch
            if batch.status not in OPEN:
                raise RequestError(f"Cannot cancel a batch with status '{batch.status}'.", code="invalid_request", status=409)
            return replace(batch, status="cancelling", cancelling_ns=time.time_ns())

        batch = await self.change(owner.tenant, place(owner.scope, id), end)
        self._ending.add(batch.id)
        return batch

    async def change(self, tenant: str, name: str, edit: Callable[[Batch], Batch]) -> Batch:
        """Change a batch's record; whoever changes it meanwhile is respected."""
        while True:
            record = await self._records.get(tenant, BATCH, name)
            if record is None:
                raise NotFound("The batch is gone.", code="batch_not_found")
            old = msgspec.msgpack.decode(record.value, type=Batch)
            new = edit(old)
            if new == old:
                return old
            try:
                value = msgspec.msgpack.encode(new)
                await self._records.commit(tenant, [Write(BATCH, name, value, expect=record.version)], quiet=True)
            except Conflict:
                continue
            if new.status == "cancelling":
                self._ending.add(new.id)
            return new

    # -- the work -----------------------------------------------------------------------------------

    async def run(self, tenant: str) -> None:
        """Work off what is there, until cancelled."""
        try:
            await self._requeue(tenant)
            while True:
                try:
                    await self._lease(tenant)
                except StoreError as e:
                    log.warning("batches wait: %s", e)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._put.wait(), LOOK)
                self._put.clear()
        finally:
            for task in list(self._runs.values()):
                task.cancel()
            await asyncio.gather(*self._runs.values(), return_exceptions=True)
            await self._calls.close()

    async def _requeue(self, tenant: str) -> None:
        """Every open batch has a job: one may have been recorded by a keeper that was killed before it queued it."""
        async for name, batch in owned(self._records, tenant, BATCH, None, Batch):
            if batch.status in OPEN:
                await self._queue.put(tenant, QUEUE, batch.id, name.encode(), now_ns=time.time_ns())

    async def _lease(self, tenant: str) -> None:
        if len(self._runs) >= AT_ONCE or not self._calls.ready:
            return
        for job in await self._queue.lease(tenant, QUEUE, now_ns=time.time_ns(), lease_ns=LEASE_NS):
            self._runs[job.id] = asyncio.create_task(self._hold(tenant, job))

    async def _hold(self, tenant: str, job: Job) -> None:
        """Work on a job for as long as its lease is ours."""
        working = asyncio.create_task(self._work(tenant, job.body.decode()))
        try:
            while not working.done():
                await asyncio.wait((working,), timeout=RENEW)
                if not working.done():
                    job = await self._queue.extend(tenant, job, now_ns=time.time_ns(), lease_ns=LEASE_NS)
            working.result()
            await self._queue.done(tenant, job)
            self._ending.discard(job.id)
        except asyncio.CancelledError:
            with suppress(StoreError):  # whoever comes next need not wait for the lease to end
                await self._queue.retry(tenant, job, ready_ns=time.time_ns())
            raise
        except Conflict:
            log.warning("the batch %s is another keeper's now", job.id)
        except NoriaError as e:
            log.warning("the batch %s waits: %s", job.id, e.text)
            with suppress(StoreError):
                if await self._given_up(tenant, job, e):
                    await self._queue.done(tenant, job)
                else:
                    await self._queue.retry(tenant, job, ready_ns=time.time_ns() + PAUSE_NS)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            self._runs.pop(job.id, None)

    async def _given_up(self, tenant: str, job: Job, error: NoriaError) -> bool:
        """Whether a batch that cannot be worked on has had its time; then it is failed, and says why."""

        def end(batch: Batch) -> Batch:
            if time.time_ns() < batch.expires_ns + PATIENCE_NS or batch.status not in OPEN:
                return batch
            why = BatchError("internal_error", error.text[:1000])
            return replace(batch, status="failed", failed_ns=time.time_ns(), errors=(why,))

        return (await self.change(tenant, job.body.decode(), end)).status not in OPEN

    async def _work(self, tenant: str, name: str) -> None:
        with boundary(StoreError, "working on a batch"):
            await self._steps(tenant, name)

    async def _steps(self, tenant: str, name: str) -> None:
        batch = await self.change(tenant, name, lambda b: b)
        if batch.status not in OPEN:
            return
        if batch.status == "cancelling":
            self._ending.add(batch.id)
        owner = Owner(tenant, batch.owner, batch.key)
        fresh = batch.status == "validating"
        lines: list[Line] = []
        errors = [BatchError("file_not_found", "The input file was deleted.", "input_file_id")]
        with suppress(NotFound):
            data = await self._files.content(owner, batch.input_file)
            lines, errors = await asyncio.to_thread(read_lines, data, batch.endpoint)
        if errors:
            failed: dict[str, Any] = {"status": "failed", "failed_ns": time.time_ns(), "errors": tuple(errors)}
            await self.change(tenant, name, lambda b: replace(b, **failed))
            return
        if fresh:
            lane = await self._upstream.lane(batch, lines)
            begun: dict[str, Any] = {"counts": BatchCounts(len(lines)), "in_progress_ns": time.time_ns(), "lane": lane}
            batch = await self.change(
                tenant, name, lambda b: replace(b, **begun, status="in_progress" if b.status == "validating" else b.status)
            )

        async def change(edit: Callable[[Batch], Batch]) -> Batch:
            return await self.change(tenant, name, edit)

        run = Run(
            batch, lines, owner, files=self._files, calls=self._calls, change=change,
            places=self._places, most=self._settings.in_flight, upstream=self._upstream,
            ended=lambda: batch.id in self._ending, resumed=not fresh,
        )  # fmt: skip
        await run.whole()
