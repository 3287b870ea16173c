"""The answers that all workers share, behind each worker's own memory.

Looked up only where memory has no answer to a request that may be answered from the cache, for `WITHIN` at most; written
behind the caller's back. What lies there is sealed under the key of its subject, else its tenant's, and bound to its key,
owner and times: a torn, moved or foreign entry does not open, and is a miss. Purges are followed every `LOOK` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from noria.contracts.error import NoriaError, StoreError
from noria.contracts.port import CacheEntry, CacheStore
from noria.gateway.shelf import Kept

log = logging.getLogger("noria.cache")

WITHIN = 0.1
"""Seconds that a request waits for a lookup; after them the model is asked. A lookup takes 0.1 ms; where cores or disks are busy,
or a subject's key is not known yet, more."""
MOST_LOOKING = 256
"""Lookups under way at once, for one worker."""
LATE_IN_A_ROW, REST_NS = 3, 1_000_000_000
"""After so many lookups that were late nobody waits for a second: the disk does not answer."""
LOOK = 0.4
"""Seconds between looks for purges: one is in force everywhere within a second."""
MOST_WAITING = 16 * 1024 * 1024
"""Bytes of answers that wait to be written; what comes then is not shared."""
BATCH = 4 * 1024 * 1024
FLUSH_WITHIN = 2.0
"""Seconds in which a worker that leaves writes what still waits."""
KEYS = 10_000
"""Subjects whose keys are held in memory."""
INLINE = 32 * 1024
"""Bytes up to which an answer is opened at once: in 0.1 ms, less than a thread's turn costs."""


class Vault(Protocol):
    """One subject's key, ready to seal and open (`observe.vault.Vault`)."""

    def seal(self, tenant: str, id: str, content: bytes) -> bytes:
        """The ciphertext, bound to tenant and id."""
        ...

    def open(self, tenant: str, id: str, data: bytes) -> bytes:
        """The content; raises `StoreError` where it is not what was sealed."""
        ...


Vaults = Callable[[str, str], Awaitable[Vault]]
"""`await vault(tenant, subject)`. Raises `StoreError` while the keeper is away."""
Forget = Callable[[str, str, str], Awaitable[None]]
"""`await forget(tenant, app, subject)`: drop from memory what a purge covers; empty = every."""


class _Content(msgspec.Struct, frozen=True, array_like=True):
    body: bytes
    stream: bool
    cost_nanousd: int | None
    upstream_id: str


class Written(msgspec.Struct, frozen=True):
    """An answer on its way into the tier."""

    key: bytes
    app: str
    kept: Kept
    room: int
    """Bytes that the app may have there."""
    since: int
    """What `Tier.seen` said when the exchange began."""


class Tier:
    """One worker's way to the shared answers. `counts` get the events `shared`, `shared_late`, `shared_failed`, `shared_unwritten`."""

    def __init__(
        self,
        store: CacheStore,
        vault: Vaults,
        forget: Forget,
        counts: dict[str, int],
        *,
        now: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.waited_ns = 0
        """Time that requests have waited for lookups."""
        self._store = store
        self._vault_of = vault
        self._forget = forget
        self._counts = counts
        self._now = now
        self._wall = wall
        self._looking = 0
        self._late = 0
        self._rests_until = 0
        self._vaults: dict[tuple[str, str], Vault] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[Vault]] = {}
        self._waiting: list[Written] = []
        self._waiting_bytes = 0
        self._written = asyncio.Event()
        self._seen: dict[str, int] = {}
        self._purged: dict[tuple[str, str, str], int] = {}
        self._new_tenant = asyncio.Event()
        self._trouble = ""

    # -- a request's way ----------------------------------------------------------------------------

    def seen(self, tenant: str) -> int:
        """The newest purge of the tenant's that has been followed."""
        if tenant not in self._seen:
            self._seen[tenant] = 0
            self._new_tenant.set()
        return self._seen[tenant]

    def covered(self, tenant: str, app: str, subject: str, since: int) -> bool:
        """Whether a purge after `since` dropped such answers."""
        if since >= self._seen.get(tenant, 0):
            return False
        scopes = ((a, s) for a in ("", app) for s in ("", subject))
        return any(self._purged.get((tenant, *scope), 0) > since for scope in scopes)

    async def find(self, tenant: str, key: bytes) -> Kept | None:
        """The answer that a worker has put there, in this worker's time; None where there is none, or none in time."""
        began = self._now()
        if self._looking >= MOST_LOOKING or began < self._rests_until:
            self._counts["shared_late"] += 1
            return None
        self._looking += 1
        try:
            async with asyncio.timeout(WITHIN):
                kept = await self._find(tenant, key)
        except TimeoutError:
            self._counts["shared_late"] += 1
            self._late += 1
            if self._late >= LATE_IN_A_ROW:
                self._rests_until = self._now() + REST_NS
            return None
        except (NoriaError, msgspec.MsgspecError) as e:
            self._counts["shared_failed"] += 1
            self._tell(str(e))
            return None
        finally:
            self._looking -= 1
            self.waited_ns += self._now() - began
        self._late = 0
        self._counts["shared"] += kept is not None
        return kept

    def keep(self, written: Written) -> None:
        """Write an answer soon."""
        if self._waiting_bytes + len(written.kept.body) > MOST_WAITING:
            self._counts["shared_unwritten"] += 1
            return
        self._waiting.append(written)
        self._waiting_bytes += len(written.kept.body)
        self._written.set()

    async def _find(self, tenant: str, key: bytes) -> Kept | None:
        since, wall = self.seen(tenant), self._wall()
        entry = await self._store.get(tenant, key, now_ns=wall)
        if entry is None or entry.stored_ns > wall:  # a clock that was set back leaves ages unknown
            return None
        vault = await self._vault(tenant, entry.subject)
        name = _name(entry)
        if len(entry.data) <= INLINE:
            data = vault.open(tenant, name, entry.data)
        else:
            data = await asyncio.to_thread(vault.open, tenant, name, entry.data)
        if self.covered(tenant, entry.app, entry.subject, since):
            return None
        content = msgspec.msgpack.decode(data, type=_Content)
        now = self._now()
        return Kept(
            content.body,
            content.stream,
            now - (wall - entry.stored_ns),
            now + (entry.expires_ns - wall),
            content.cost_nanousd,
            content.upstream_id,
            tenant=tenant,
            subject=entry.subject,
        )

    async def _vault(self, tenant: str, subject: str) -> Vault:
        """The key; who asks for it may leave, the next one finds it."""
        found = self._vaults.get((tenant, subject))
        if found is not None:
            return found
        task = self._asking.get((tenant, subject))
        if task is None:
            task = self._asking[tenant, subject] = asyncio.ensure_future(self._fetch(tenant, subject))
            task.add_done_callback(lambda t: t.cancelled() or t.exception())  # told to those who still wait
        return await asyncio.shield(task)

    async def _fetch(self, tenant: str, subject: str) -> Vault:
        since = self.seen(tenant)
        try:
            vault = await self._vault_of(tenant, subject)
        finally:
            del self._asking[tenant, subject]
        if len(self._vaults) >= KEYS:
            self._vaults.clear()
        if not self.covered(tenant, "", subject, since):
            self._vaults[tenant, subject] = vault
        return vault

    async def warm(self, tenant: str) -> None:
        """Open the store and ask for the tenant's key, so that the first request need not wait for either."""
        self.seen(tenant)
        try:
            await self._store.get(tenant, b"", now_ns=self._wall())
            await self._vault(tenant, "")
        except NoriaError as e:
            self._tell(str(e))

    # -- behind the requests ------------------------------------------------------------------------

    async def run(self) -> None:
        """Write, and follow purges, until cancelled; then write what waits, and let go of the store."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write())
                group.create_task(self._follow())
        finally:
            with contextlib.suppress(TimeoutError, StoreError):
                async with asyncio.timeout(FLUSH_WITHIN):
                    while self._waiting:
                        await self._flush()
            await self._store.close()

    async def _write(self) -> None:
        while True:
            await self._written.wait()
            self._written.clear()
            while self._waiting:
                await self._flush()

    async def _flush(self) -> None:
        """Write one batch: answers of one tenant."""
        tenant, batch, size = self._waiting[0].kept.tenant, list[Written](), 0
        for written in self._waiting:
            if written.kept.tenant != tenant or size > BATCH:
                break
            batch.append(written)
            size += len(written.kept.body)
        del self._waiting[: len(batch)]
        self._waiting_bytes -= size
        wall, now = self._wall(), self._now()
        try:
            vaults = [await self._vault(tenant, w.kept.subject) for w in batch]
            entries = await asyncio.to_thread(lambda: [_sealed(w, v, wall - now) for w, v in zip(batch, vaults, strict=True)])
            await self._store.put(tenant, entries, room={w.app: w.room for w in batch}, now_ns=wall)
        except asyncio.CancelledError:  # the worker leaves: `run` writes them in its last turn
            self._waiting[:0] = batch
            self._waiting_bytes += size
            raise
        except StoreError as e:
            self._counts["shared_unwritten"] += len(batch)
            self._tell(str(e))
        else:
            self._trouble = ""

    async def _follow(self) -> None:
        while True:
            for tenant in list(self._seen):
                try:
                    await self._look(tenant)
                except StoreError as e:
                    self._tell(str(e))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._new_tenant.wait()
            self._new_tenant.clear()

    async def _look(self, tenant: str) -> None:
        found = await self._store.purges(tenant, self._seen[tenant])
        scopes = [(p.app, p.subject) for p in found.purges] if found.complete else [("", "")]
        if len(self._purged) > KEYS:
            self._purged.clear()
            scopes = [("", "")]
        for app, subject in scopes:
            self._purged[tenant, app, subject] = found.seq
        self._seen[tenant] = found.seq  # from here on nothing that began before is kept
        for app, subject in scopes:
            if subject or not app:
                self._vaults = {k: v for k, v in self._vaults.items() if k[0] != tenant or subject not in ("", k[1])}
            await self._forget(tenant, app, subject)

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("the shared cache: %s", trouble)


def _sealed(written: Written, vault: Vault, to_wall: int) -> CacheEntry:
    """`to_wall` turns times of the worker's clock into wall-clock times."""
    kept = written.kept
    entry = CacheEntry(
        written.key, written.app, kept.subject, kept.stored_ns + to_wall, kept.expires_ns + to_wall, b"", written.since
    )
    content = msgspec.msgpack.encode(_Content(kept.body, kept.stream, kept.cost_nanousd, kept.upstream_id))
    return msgspec.structs.replace(entry, data=vault.seal(kept.tenant, _name(entry), content))


def _name(entry: CacheEntry) -> str:
    """What an entry's ciphertext is bound to, besides its tenant."""
    return f"{entry.key.hex()}/{entry.stored_ns}/{entry.expires_ns}/{entry.subject}/{entry.app}"
