"""From the spool to the trace store: rows decoded, bodies sealed and stored once (DESIGN §3a.6, §3a.7)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from typing import NamedTuple, TypeVar

import msgspec

from noria.contracts.error import NoriaError, StoreError, boundary
from noria.contracts.port import Body, TraceStore
from noria.contracts.trace import ExchangeRow, SpoolPosition
from noria.kit.spool import SpoolReader, SpoolRecord
from noria.observe.poison import PoisonBox
from noria.observe.vault import Named, Packing, Remembered, Vault

log = logging.getLogger("noria.recorder")

KeySource = Callable[[str, str], Awaitable[bytes | None]]
"""`await key(tenant, subject)`: 32 bytes; subject "" = the tenant's own key. None = the key was destroyed."""

Told = Callable[[list[ExchangeRow]], None]
"""Is given rows as they are stored, bodies in the clear: what live views are fed from."""

T = TypeVar("T")

BATCH_BYTES = 16 * 1024 * 1024
"""Payload bytes that one batch takes from the spool (one larger record is a batch of its own)."""
PIECE_BYTES = 1024 * 1024
"""Payload bytes that are read at once: they are held twice until they are decoded."""
LOOK_S = 0.25
"""Seconds between looks at a spool where nothing happens: each costs two system calls."""
LINGER = 3
"""How much longer to wait after a batch that emptied the spool: an append has a fixed cost of milliseconds, but what was
recorded is to be seen within a second.
"""
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 5.0
TRIES = 6
"""Refusals of one batch after which it is looked whether the store refuses it for the sake of single rows."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ExchangeRow)


def encode(row: ExchangeRow) -> bytes:
    """A row as a spool payload (msgpack array)."""
    return _encoder.encode(row)


def decode(payload: bytes) -> ExchangeRow:
    """The row of a spool payload; fields of a newer version are ignored. Raises `msgspec.DecodeError`."""
    return _decoder.decode(payload)


def cursor(row: ExchangeRow) -> str:
    """What `TraceQuery.before` takes to go on after `row`."""
    return f"{row.started_ns}.{row.id}"


class Lag(NamedTuple):
    """How far the store is behind its spool: bytes and seconds exactly, records by the mean size seen so far."""

    records: int
    bytes: int
    seconds: float


class _Batch(NamedTuple):
    rows: dict[str, list[ExchangeRow]]
    """By tenant."""
    position: SpoolPosition
    records: int
    bytes: int


class Desk:
    """What recorders of one store share: the names of bodies it has, and the thread that decodes and seals."""

    def __init__(self, thread: Executor | None = None) -> None:
        self.stored = Remembered()
        self._thread = thread

    async def work(self, what: Callable[[], T]) -> T:
        """Run something that keeps a processor busy, or waits for the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    async def sealed(self, key: KeySource, tenant: str, rows: list[ExchangeRow]) -> tuple[list[Named], list[Body], Packing]:
        """Rows and bodies as `TraceStore.append` takes them, and what `stored` is to be told once they are."""
        secrets = {s: await key(tenant, s) for s in {r.subject for r in rows if r.request or r.answer}}
        packing = Packing(tenant, {s: Vault(secret) if secret else None for s, secret in secrets.items()}, self.stored)
        named, bodies = await self.work(lambda: (packing.take(rows), packing.close()))
        return named, bodies, packing


class Recorder:
    """Moves one spool into a trace store. Loses no position: it advances only in the transaction that stores the rows.

    `undecodable` counts payloads that are no row, `poisoned` rows that the store refuses while it takes others: both are
    put aside whole (`observe.poison`) and passed over. `stored`, `failures` speak for themselves.
    `desk` is shared by the recorders of one store.
    """

    def __init__(
        self,
        reader: SpoolReader,
        spool: str,
        store: TraceStore,
        key: KeySource,
        *,
        told: Told | None = None,
        desk: Desk | None = None,
    ) -> None:
        self._told = told
        self._desk = desk or Desk()
        self._hurried = asyncio.Event()
        self.undecodable = 0
        self.poisoned = 0
        self.stored = 0
        self.failures = 0
        self.looks = 0
        """How often there was nothing more to read."""
        self.alarm: str | None = None
        self._reader = reader
        self._aside = PoisonBox(reader.folder)
        self._refusals = 0
        self._spool = spool
        self._store = store
        self._key = key
        self._position: SpoolPosition | None = None
        self._batch: _Batch | None = None
        self._seen = (0, 0)
        self._level_since = time.monotonic()
        self._behind = 0

    @property
    def lag(self) -> Lag:
        """As of the last step."""
        records, size = self._seen
        mean = size / records if records else 0
        waiting = self._batch.bytes if self._batch else 0
        behind = self._behind + waiting
        count = (self._batch.records if self._batch else 0) + (round(self._behind / mean) if mean else int(self._behind > 0))
        return Lag(count, behind, time.monotonic() - self._level_since if behind else 0.0)

    def passed(self, tail: SpoolPosition) -> bool:
        """Whether everything before `tail` is stored."""
        at = self._position
        return at is not None and (at.segment, at.offset) >= (tail.segment, tail.offset)

    def hurry(self) -> None:
        """Look now, not at the next turn."""
        self._hurried.set()

    async def run(self, poll: float = LOOK_S) -> None:
        """Move records until cancelled. A store that fails is asked again, ever more slowly; nothing is lost meanwhile."""
        pause = FIRST_RETRY_S
        while True:
            try:
                records = await self.step()
            except NoriaError as e:
                self.failures += 1
                self.alarm = f"Traces of {self._spool} wait in the spool: {e.text}"
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_RETRY_S)
                continue
            pause = FIRST_RETRY_S
            if self._behind == 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._hurried.wait(), poll * LINGER if records else poll)
                self._hurried.clear()

    async def step(self) -> int:
        """Move one batch; how many records it had. After a failure the next step tries the same batch again.

        Raises `NoriaError`, nothing else.
        """
        with boundary(StoreError, f"recording {self._spool}"):
            if self._position is None:
                there = {p.spool: p for p in await self._store.positions()}
                self._position = there.get(self._spool, SpoolPosition(self._spool, 0, 0))
            if self._batch is None:
                if self._reader.behind(self._position) == 0:  # an idle spool costs two system calls, not a thread
                    self._level_since = time.monotonic()
                    self.looks += 1
                    return 0
                at = self._position
                self._batch = await self._desk.work(lambda: self._read(at))
            if (batch := self._batch).position != self._position:
                await (self._put(batch) if self._refusals < TRIES else self._isolate(batch))
            self._advance(batch)
            self.looks += not batch.records
            return batch.records

    def _read(self, position: SpoolPosition) -> _Batch:
        rows: dict[str, list[ExchangeRow]] = {}
        count = size = 0
        while (room := self._store.max_batch - count) > 0 and size < BATCH_BYTES:
            records, position = self._reader.read(position, max_records=room, max_bytes=PIECE_BYTES)
            for record in records:
                if (row := self._decode(record)) is not None:
                    rows.setdefault(row.tenant, []).append(row)
                else:
                    self._aside.put(self._spool, record.payload)
                    self.undecodable += 1
            count += len(records)
            size += sum(len(r.payload) for r in records)
            if not records:
                break
        self._behind = self._reader.behind(position)
        return _Batch(rows, position, count, size)

    def _decode(self, record: SpoolRecord) -> ExchangeRow | None:
        try:
            return decode(record.payload)
        except msgspec.DecodeError:
            return None

    async def _put(self, batch: _Batch) -> None:
        """Each tenant's rows in one transaction; the last one carries the position, so that a crash replays them all."""
        tenants = list(batch.rows) or [""]
        for tenant in tenants:
            rows = batch.rows.get(tenant, [])
            named, bodies, packing = await self._desk.sealed(self._key, tenant, rows)
            position = batch.position if tenant == tenants[-1] else None
            again = self._refusals > 0
            self._refusals += 1
            new = await self._store.append(tenant, named, bodies, position)
            self._refusals -= 1
            self._note(rows, new, packing, again=again)

    def _note(self, rows: list[ExchangeRow], new: int, packing: Packing, *, again: bool) -> None:
        """Rows were stored; where the batch was tried before, they are news only if some are new."""
        self.stored += new
        if new == len(rows):  # a row that was there already brings no bodies with it
            self._desk.stored.add(packing.names)
        if self._told is not None and rows and (new or not again):
            self._told(rows)

    async def _isolate(self, batch: _Batch) -> None:
        """Store what can be stored of a batch that the store keeps refusing, in ever smaller parts; the rest is put aside.

        A row counts as the culprit only where the store takes something else right after it. Raises `NoriaError`, with
        nothing put aside, where it does not: then the store is away, and the batch waits.
        """
        await self._probe()
        for tenant, rows in batch.rows.items():
            parts = [rows]
            while parts:
                part = parts.pop()
                named, bodies, packing = await self._desk.sealed(self._key, tenant, part)
                try:
                    with boundary(StoreError, f"recording {self._spool}"):
                        new = await self._store.append(tenant, named, bodies, None)
                except NoriaError as e:
                    await self._probe()
                    half = len(part) // 2
                    if half:
                        parts += [part[half:], part[:half]]
                    else:
                        await self._put_aside(part[0], e)
                else:
                    self._note(part, new, packing, again=True)
        await self._store.append("", [], [], batch.position)

    async def _probe(self) -> None:
        """Raises what the store raises where it takes nothing at all."""
        await self._store.append("", [], [], self._position)

    async def _put_aside(self, row: ExchangeRow, error: NoriaError) -> None:
        payload = await self._desk.work(lambda: self._payload(row))
        name = await self._desk.work(lambda: self._aside.put(self._spool, payload))
        self.poisoned += 1
        log.error(
            "the trace store refuses the exchange %s; it is put aside in %s: %s", row.id, self._aside.folder / name, error.text
        )

    def _payload(self, row: ExchangeRow) -> bytes:
        """A row of the batch as it lies in the spool, with what a newer version may have written into it."""
        assert self._position is not None  # the batch was read from it
        assert self._batch is not None
        records, _ = self._reader.read(self._position, max_records=self._batch.records, max_bytes=self._batch.bytes)
        return next((r.payload for r in records if self._decode(r) == row), encode(row))

    def _advance(self, batch: _Batch) -> None:
        trimmed = self._position is not None and batch.position.segment != self._position.segment
        self._position, self._batch, self.alarm, self._refusals = batch.position, None, None, 0
        self._seen = (self._seen[0] + batch.records, self._seen[1] + batch.bytes)
        if trimmed:
            self._reader.trim(batch.position)
        if self._behind == 0:
            self._level_since = time.monotonic()


async def store_again(box: PoisonBox, store: TraceStore, key: KeySource) -> int:
    """Try once more what was put aside: a later release may read it, a mended store may take it. How many were stored."""
    count = 0
    for name in await asyncio.to_thread(box.names):
        try:
            with boundary(StoreError, f"recording {name}"):
                row = decode(await asyncio.to_thread(box.take, name))
                named, bodies, _ = await Desk().sealed(key, row.tenant, [row])
                await store.append(row.tenant, named, bodies, None)
                await asyncio.to_thread(box.drop, name)
        except NoriaError as e:
            log.warning("%s stays aside: %s", name, e.text)
        else:
            count += 1
    return count


async def read_bodies(store: TraceStore, key: KeySource, tenant: str, ids: Iterable[str]) -> dict[str, bytes]:
    """Bodies in the clear, in one question; without those that are not there, and those whose key was destroyed.

    Raises `StoreError` for a damaged one.
    """
    wanted = dict.fromkeys(i for i in ids if i)
    sealed = await store.bodies(tenant, list(wanted))
    secrets = {subject: await key(tenant, subject) for subject in {b.subject for b in sealed}}
    vaults = {subject: Vault(secret) for subject, secret in secrets.items() if secret}
    return {
        name: content
        for b in sealed
        if (vault := vaults.get(b.subject)) is not None
        for names in [(b.id, *b.beside)]
        for name, content in zip(names, vault.open_all(tenant, names, b.data), strict=True)
        if name in wanted
    }
