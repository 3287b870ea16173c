"""From the spool to the trace store: rows decoded, bodies keyed, encrypted and stored once (DESIGN §3a.6, §3a.7).

A body's id is BLAKE3 under the key of its subject, or of its tenant where it has none; its ciphertext is AES-256-GCM
(NIST SP 800-38D) with a random nonce under a key derived from the same one, so equal bodies of two people look
unrelated, and destroying the key makes both id and content meaningless.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from noria.contracts.error import NoriaError, StoreError, boundary
from noria.contracts.port import Body, TraceStore
from noria.contracts.trace import ExchangeRow, SpoolPosition
from noria.kit.ids import keyed, random_bytes
from noria.kit.spool import SpoolReader, SpoolRecord
from noria.observe.poison import PoisonBox

log = logging.getLogger("noria.recorder")

KeySource = Callable[[str, str], Awaitable[bytes | None]]
"""`await key(tenant, subject)`: 32 bytes; subject "" = the tenant's own key. None = the key was destroyed."""

Told = Callable[[list[ExchangeRow]], None]
"""Is given rows as they are stored, bodies in the clear: what live views are fed from."""

BATCH_BYTES = 4 * 1024 * 1024
"""Payload bytes that one batch takes from the spool (one larger record is a batch of its own)."""
LINGER = 8
"""After a batch that emptied the spool, pause for so many polls: an append has a fixed cost of milliseconds."""
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 5.0
TRIES = 6
"""Refusals of one batch after which it is looked whether the store refuses it for the sake of single rows."""

_NONCE = 12
_PACK_FROM = 512
"""Shorter bodies are not worth compressing."""
_PLAIN, _ZLIB = b"\0", b"\1"
_CONTEXT = "noria 2026-11-22 trace body encryption"

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


class Vault:
    """One key, ready to name, seal and open bodies."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(blake3(key, derive_key_context=_CONTEXT).digest())

    def name(self, content: bytes) -> str:
        """The keyed id of a body."""
        return keyed(self._key, content)

    def seal(self, tenant: str, id: str, content: bytes) -> bytes:
        """The ciphertext of a body, bound to its tenant and id."""
        packed = _ZLIB + _packed(content) if len(content) >= _PACK_FROM else _PLAIN + content
        nonce = random_bytes(_NONCE)
        return nonce + self._cipher.encrypt(nonce, packed, _bound(tenant, id))

    def open(self, tenant: str, id: str, data: bytes) -> bytes:
        """The body; raises `StoreError` where it is not what was sealed under this key, tenant and id."""
        try:
            packed = self._cipher.decrypt(data[:_NONCE], data[_NONCE:], _bound(tenant, id))
        except (InvalidTag, ValueError) as e:
            raise StoreError(f"The body {id[:12]}… cannot be decrypted: it is damaged, or of another key.") from e
        return zlib.decompress(packed[1:]) if packed[:1] == _ZLIB else packed[1:]


def _packed(content: bytes) -> bytes:
    """Compressed with a small window: setting up the default one costs more than all else (8 against 41 us for 11 KB)."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 12, 4)
    return packer.compress(content) + packer.flush()


def _bound(tenant: str, id: str) -> bytes:
    return f"{tenant}|{id}".encode()


class _Batch(NamedTuple):
    rows: dict[str, list[ExchangeRow]]
    """By tenant."""
    position: SpoolPosition
    records: int
    bytes: int


class Recorder:
    """Moves one spool into a trace store. Loses no position: it advances only in the transaction that stores the rows.

    `undecodable` counts payloads that are no row, `poisoned` rows that the store refuses while it takes others: both are
    put aside whole (`observe.poison`) and passed over. `stored`, `failures` speak for themselves.
    """

    def __init__(self, reader: SpoolReader, spool: str, store: TraceStore, key: KeySource, *, told: Told | None = None) -> None:
        self._told = told
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

    async def run(self, poll: float = 0.05) -> None:
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
                await asyncio.sleep(poll * LINGER if records else poll)

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
                self._batch = await asyncio.to_thread(self._read, self._position)
            if (batch := self._batch).position != self._position:
                await (self._put(batch) if self._refusals < TRIES else self._isolate(batch))
            self._advance(batch)
            self.looks += not batch.records
            return batch.records

    def _read(self, position: SpoolPosition) -> _Batch:
        records, after = self._reader.read(position, max_records=self._store.max_batch, max_bytes=BATCH_BYTES)
        self._behind = self._reader.behind(after)
        rows: dict[str, list[ExchangeRow]] = {}
        for record in records:
            if (row := self._decode(record)) is not None:
                rows.setdefault(row.tenant, []).append(row)
            else:
                self._aside.put(self._spool, record.payload)
                self.undecodable += 1
        return _Batch(rows, after, len(records), sum(len(r.payload) for r in records))

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
            named, bodies = await _sealed(self._key, tenant, rows)
            position = batch.position if tenant == tenants[-1] else None
            again = self._refusals > 0
            self._refusals += 1
            new = await self._store.append(tenant, named, bodies, position)
            self._refusals -= 1
            self._note(rows, new, again=again)

    def _note(self, rows: list[ExchangeRow], new: int, *, again: bool) -> None:
        """Rows were stored; where the batch was tried before, they are news only if some are new."""
        self.stored += new
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
                named, bodies = await _sealed(self._key, tenant, part)
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
                    self._note(part, new, again=True)
        await self._store.append("", [], [], batch.position)

    async def _probe(self) -> None:
        """Raises what the store raises where it takes nothing at all."""
        await self._store.append("", [], [], self._position)

    async def _put_aside(self, row: ExchangeRow, error: NoriaError) -> None:
        payload = await asyncio.to_thread(self._payload, row)
        name = await asyncio.to_thread(self._aside.put, self._spool, payload)
        self.poisoned += 1
        log.error(
            "the trace store refuses the exchange %s; it is put aside in %s: %s", row.id, self._aside.folder / name, error.text
        )

    def _payload(self, row: ExchangeRow) -> bytes:
        """A row of the batch as it lies in the spool, with what a newer version may have written into it."""
        assert self._position is not None  # a batch was read from it
        records, _ = self._reader.read(self._position, max_records=self._store.max_batch, max_bytes=BATCH_BYTES)
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
                named, bodies = await _sealed(key, row.tenant, [row])
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
    sealed = await store.bodies(tenant, list(dict.fromkeys(i for i in ids if i)))
    secrets = {subject: await key(tenant, subject) for subject in {b.subject for b in sealed}}
    vaults = {subject: Vault(secret) for subject, secret in secrets.items() if secret}
    return {b.id: vaults[b.subject].open(tenant, b.id, b.data) for b in sealed if b.subject in vaults}


async def _sealed(
    key: KeySource, tenant: str, rows: list[ExchangeRow]
) -> tuple[list[tuple[ExchangeRow, str, str]], list[Body]]:
    """Rows as `TraceStore.append` takes them."""
    secrets = {s: await key(tenant, s) for s in {r.subject for r in rows if r.request or r.answer}}
    vaults = {s: Vault(secret) if secret else None for s, secret in secrets.items()}
    return await asyncio.to_thread(_bodies, tenant, rows, vaults)


def _bodies(
    tenant: str, rows: list[ExchangeRow], vaults: dict[str, Vault | None]
) -> tuple[list[tuple[ExchangeRow, str, str]], list[Body]]:
    """The rows with the ids of their bodies, and each body once. Without its key a body is not kept."""
    kept: dict[str, Body] = {}

    def keep(subject: str, content: bytes) -> str:
        vault = vaults.get(subject)
        if not content or vault is None:
            return ""
        name = vault.name(content)
        if name not in kept:
            kept[name] = Body(name, subject, vault.seal(tenant, name, content))
        return name

    named = [(row, keep(row.subject, row.request), keep(row.subject, row.answer)) for row in rows]
    return named, list(kept.values())
