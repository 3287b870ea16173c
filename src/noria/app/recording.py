"""All spools of a node into the trace store, and live word of what arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from noria.contracts.error import StoreError
from noria.contracts.port import TraceStore
from noria.contracts.trace import ExchangeRow
from noria.kit.priority import yield_to_others
from noria.kit.spool import SpoolReader
from noria.observe.poison import PoisonBox
from noria.observe.trace import Desk, KeySource, Recorder, store_again

Seen = Callable[[Sequence[ExchangeRow]], None]
"""Is told of every row that was stored; must be quick."""
LOOK = 0.5
"""Seconds between looks for spools of new workers."""
WAITING = 256
"""Rows that a slow live reader may have waiting; older ones are passed over."""
QUIET = 15.0
"""Seconds after which a live reader is told that nothing happened."""


class Recording:
    """One Recorder a spool, started as spools appear."""

    def __init__(self, folder: Path, store: TraceStore, key: KeySource, *, seen: Seen | None = None) -> None:
        self._seen = seen
        self._reader = SpoolReader(folder)
        self._aside = PoisonBox(folder)
        self._store = store
        self._key = key
        self._recorders: dict[str, Recorder] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._readers: set[asyncio.Queue[ExchangeRow | None]] = set()
        self._ended = False
        self._desk = Desk(ThreadPoolExecutor(1, "noria-recorder", initializer=yield_to_others))

    async def run(self) -> None:
        """Record until cancelled."""
        await store_again(self._aside, self._store, self._key)
        try:
            while True:
                for spool in self._reader.spools():  # a folder of a few names: no work for a thread
                    if spool not in self._tasks:
                        self._tasks[spool] = asyncio.create_task(self._recorder(spool).run())
                await asyncio.sleep(LOOK)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self._tasks.clear()

    async def catch_up(self) -> None:
        """Store what the spools hold now; for an orderly end, after `run` was cancelled."""
        for spool in self._reader.spools():
            recorder = self._recorder(spool)
            while await recorder.step():
                continue

    async def level(self, within: float = 10.0) -> None:
        """Returns when everything that the spools held at the call is stored. Raises `StoreError` after `within` seconds."""
        waiting = [(r := self._recorder(s), self._reader.tail(s), r.looks) for s in self._reader.spools()]
        end = asyncio.get_running_loop().time() + within
        # two empty looks since: what is left (a record torn by a crash) is nothing that can be read
        while waiting := [(r, tail, looks) for r, tail, looks in waiting if not r.passed(tail) and r.looks < looks + 2]:
            if asyncio.get_running_loop().time() > end:
                raise StoreError(f"The recorder is more than {within:g} s behind.", code="recorder_behind")
            for recorder, _, _ in waiting:
                recorder.hurry()
            await asyncio.sleep(0.02)

    def _recorder(self, spool: str) -> Recorder:
        found = self._recorders.get(spool)
        if found is None:
            found = self._recorders[spool] = Recorder(
                self._reader, spool, self._store, self._key, told=self._stored, desk=self._desk
            )
        return found

    def _stored(self, rows: Sequence[ExchangeRow]) -> None:
        if self._seen is not None:
            self._seen(rows)
        self._tell(rows)

    def _tell(self, rows: Iterable[ExchangeRow | None]) -> None:
        for queue in self._readers:
            for row in rows:
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(row)

    async def add(self, row: ExchangeRow) -> None:
        """Store an exchange of the keeper's own. Raises `StoreError`."""
        await self._store.append(row.tenant, [(row, "", "")], [], None)
        self._stored([row])

    def end_live(self) -> None:
        """End every live reader, and each that comes later, at once."""
        self._ended = True
        self._tell([None])

    async def follow(self) -> AsyncIterator[ExchangeRow | None]:
        """Rows as they are stored; None after a quiet while. Ends when the keeper stops."""
        queue: asyncio.Queue[ExchangeRow | None] = asyncio.Queue(WAITING)
        self._readers.add(queue)
        try:
            while not self._ended:
                try:
                    row = await asyncio.wait_for(queue.get(), QUIET)
                except TimeoutError:
                    yield None
                    continue
                if row is None:
                    return
                yield row
        finally:
            self._readers.discard(queue)

    def state(self) -> dict[str, Any]:
        """How far behind, and what is wrong."""
        lags = [r.lag for r in self._recorders.values()]
        alarms = [r.alarm for r in self._recorders.values() if r.alarm]
        return {
            "lag_records": sum(lag.records for lag in lags),
            "lag_bytes": sum(lag.bytes for lag in lags),
            "lag_seconds": round(max((lag.seconds for lag in lags), default=0.0), 3),
            "stored": sum(r.stored for r in self._recorders.values()),
            "undecodable": sum(r.undecodable for r in self._recorders.values()),
            "failures": sum(r.failures for r in self._recorders.values()),
            "aside": self._aside.names(),
            "alarm": "; ".join(alarms) or None,
        }
