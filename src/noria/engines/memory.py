"""Everything in this process, gone with it: for tests, trials and counters of a single worker. URL `memory://`.

Each instance keeps its own data; there is nothing to share and nothing to open. No method waits between reading
and writing, so on one event loop every method is atomic by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from noria.contracts.dataset import Member, Rejection, StoredRow, Version
from noria.contracts.error import Conflict, NotFound
from noria.contracts.port import BlobStore, Counter, DatasetStore, DeadJob, Engine, Job, Queue, Record, RecordStore, Write
from noria.kit.sql_datasets import id_bytes, pack


class MemoryRecords:
    """`RecordStore` in a dict."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._records: dict[tuple[str, str, str], Record] = {}
        self._revisions: defaultdict[str, int] = defaultdict(int)
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def get(self, tenant: str, kind: str, id: str) -> Record | None:
        """As `RecordStore.get`."""
        return self._records.get((tenant, kind, id))

    async def scan(self, tenant: str, kind: str, *, after: str = "", limit: int = 1000) -> list[Record]:
        """As `RecordStore.scan`; text compares by code point, which is the order of its UTF-8 bytes."""
        found = [r for (owner, _, _), r in self._records.items() if owner == tenant and r.kind == kind and r.id > after]
        return sorted(found, key=lambda r: r.id)[: max(0, limit)]

    async def commit(self, tenant: str, writes: Sequence[Write], *, quiet: bool = False) -> int:
        """As `RecordStore.commit`."""
        changed: dict[tuple[str, str, str], Record | None] = {}
        for write in writes:
            key = (tenant, write.kind, write.id)
            there = changed[key] if key in changed else self._records.get(key)
            version = there.version if there else 0
            if write.expect not in {None, version}:
                raise Conflict(
                    f"{write.kind} {write.id!r} is at version {version}, not {write.expect}.",
                    code="conflict",
                    hint="Read it again and repeat the change.",
                )
            changed[key] = None if write.value is None else Record(write.kind, write.id, version + 1, write.value)
        for key, record in changed.items():
            if record is None:
                self._records.pop(key, None)
            else:
                self._records[key] = record
        if quiet:
            return self._revisions.get(tenant, 0)
        self._revisions[tenant] += 1
        for event in self._watchers.get(tenant, ()):
            event.set()
        return self._revisions[tenant]

    async def revision(self, tenant: str) -> int:
        """As `RecordStore.revision`."""
        return self._revisions.get(tenant, 0)

    async def changed(self, tenant: str, revision: int, within: float) -> int:
        """As `RecordStore.changed`."""
        event = asyncio.Event()
        self._watchers[tenant].add(event)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    while self._revisions.get(tenant, 0) <= revision:
                        event.clear()
                        await event.wait()
        finally:
            self._watchers[tenant].discard(event)
            if not self._watchers[tenant]:
                del self._watchers[tenant]
        return self._revisions.get(tenant, 0)

    async def close(self) -> None:
        """Nothing to release."""


@dataclass(slots=True)
class _Entry:
    """A job as it is kept: `token` is None while nobody holds it."""

    job: Job
    put_ns: int
    ready_ns: int
    token: str | None = None
    dead: bool = False


class MemoryQueue:
    """`Queue` in a dict. Age is the `now_ns` of `put`; a job given back keeps its age."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._entries: dict[tuple[str, str], dict[str, _Entry]] = {}

    async def put(self, tenant: str, queue: str, id: str, body: bytes, *, now_ns: int, ready_ns: int = 0) -> bool:
        """As `Queue.put`."""
        entries = self._entries.setdefault((tenant, queue), {})
        if id in entries:
            return False
        entries[id] = _Entry(Job(queue, id, body, 0, "", 0), now_ns, ready_ns)
        return True

    async def lease(self, tenant: str, queue: str, *, now_ns: int, lease_ns: int, limit: int = 1) -> list[Job]:
        """As `Queue.lease`."""
        entries = self._entries.get((tenant, queue), {}).values()
        ripe = [e for e in entries if not e.dead and e.ready_ns <= now_ns and e.job.lease_until_ns <= now_ns]
        ripe.sort(key=lambda e: (e.put_ns, e.job.id))
        token = secrets.token_hex(16)
        for e in ripe[: max(0, limit)]:
            e.token = token
            e.job = Job(queue, e.job.id, e.job.body, e.job.attempt + 1, token, now_ns + lease_ns)
        return [e.job for e in ripe[: max(0, limit)]]

    async def extend(self, tenant: str, job: Job, *, now_ns: int, lease_ns: int) -> Job:
        """As `Queue.extend`; a lease that has run out is lost, even where nobody has taken the job yet."""
        entry = self._held(tenant, job)
        if entry.job.lease_until_ns <= now_ns:
            raise _lost(job)
        until_ns = max(entry.job.lease_until_ns, now_ns + lease_ns)
        entry.job = msgspec.structs.replace(entry.job, lease_until_ns=until_ns)
        return entry.job

    async def done(self, tenant: str, job: Job) -> None:
        """As `Queue.done`."""
        self._held(tenant, job)
        del self._entries[tenant, job.queue][job.id]

    async def retry(self, tenant: str, job: Job, *, ready_ns: int, dead: bool = False) -> None:
        """As `Queue.retry`."""
        entry = self._held(tenant, job)
        entry.token, entry.dead, entry.ready_ns = None, dead, ready_ns
        entry.job = msgspec.structs.replace(entry.job, token="", lease_until_ns=0)

    async def depth(self, tenant: str, queue: str) -> tuple[int, int, int]:
        """As `Queue.depth`; jobs that are not ready yet are waiting."""
        entries = self._entries.get((tenant, queue), {}).values()
        dead = sum(e.dead for e in entries)
        leased = sum(e.token is not None for e in entries)
        return len(entries) - dead - leased, leased, dead

    async def dead(self, tenant: str, *, limit: int = 1000) -> list[DeadJob]:
        """As `Queue.dead`."""
        entries = [e for (t, _), found in self._entries.items() if t == tenant for e in found.values() if e.dead]
        entries.sort(key=lambda e: (e.put_ns, e.job.queue, e.job.id))
        return [DeadJob(e.job.queue, e.job.id, e.job.body, e.job.attempt, e.put_ns) for e in entries[: max(0, limit)]]

    async def revive(self, tenant: str, queue: str, id: str, *, now_ns: int) -> bool:
        """As `Queue.revive`."""
        entry = self._entries.get((tenant, queue), {}).get(id)
        if entry is None or not entry.dead:
            return False
        entry.dead, entry.ready_ns = False, now_ns
        return True

    def _held(self, tenant: str, job: Job) -> _Entry:
        entry = self._entries.get((tenant, job.queue), {}).get(job.id)
        if entry is None or entry.token is None or entry.token != job.token:
            raise _lost(job)
        return entry

    async def close(self) -> None:
        """Nothing to release."""


def _lost(job: Job) -> Conflict:
    return Conflict(
        f"The lease of job {job.id!r} in {job.queue!r} was lost.",
        code="lease_lost",
        hint="Another worker has it, or it is finished: drop this attempt's result.",
    )


class MemoryCounter:
    """`Counter` in a dict. The take that finds no live counter sets its expiry; later ones leave it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}
        self._sweep_at = 1024

    async def take(self, tenant: str, key: str, *, want: int, least: int, ceiling: int, expires_ns: int, now_ns: int) -> int:
        """As `Counter.take`."""
        amount, until_ns = self._live(tenant, key, now_ns) or (0, expires_ns)
        room = ceiling - amount
        grant = max(0, min(want, room)) if room >= least else 0
        self._counts[tenant, key] = (amount + grant, until_ns)
        if len(self._counts) > self._sweep_at:
            self._sweep(now_ns)
        return grant

    async def give(self, tenant: str, key: str, amount: int, *, now_ns: int) -> None:
        """As `Counter.give`."""
        if live := self._live(tenant, key, now_ns):
            self._counts[tenant, key] = (max(0, live[0] - amount), live[1])

    async def read(self, tenant: str, key: str, *, now_ns: int) -> int:
        """As `Counter.read`."""
        live = self._live(tenant, key, now_ns)
        return live[0] if live else 0

    def _live(self, tenant: str, key: str, now_ns: int) -> tuple[int, int] | None:
        count = self._counts.get((tenant, key))
        return count if count and (count[1] == 0 or count[1] > now_ns) else None

    def _sweep(self, now_ns: int) -> None:
        """Forget what has expired; the next sweep comes when the rest has doubled, so its cost a take stays constant."""
        self._counts = {k: c for k, c in self._counts.items() if c[1] == 0 or c[1] > now_ns}
        self._sweep_at = max(1024, 2 * len(self._counts))

    async def close(self) -> None:
        """Nothing to release."""


class MemoryBlobs:
    """`BlobStore` in a dict."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._blobs: dict[tuple[str, str], bytes] = {}

    async def put(self, tenant: str, name: str, data: bytes) -> None:
        """As `BlobStore.put`."""
        if self._blobs.setdefault((tenant, name), data) != data:
            raise Conflict(
                f"The blob {name!r} exists with other content.", code="conflict", hint="Blobs never change: use a new name."
            )

    async def get(self, tenant: str, name: str) -> bytes | None:
        """As `BlobStore.get`."""
        return self._blobs.get((tenant, name))

    async def list(self, tenant: str, prefix: str = "") -> list[str]:
        """As `BlobStore.list`."""
        return sorted(name for owner, name in self._blobs if owner == tenant and name.startswith(prefix))

    async def delete(self, tenant: str, name: str) -> bool:
        """As `BlobStore.delete`."""
        return self._blobs.pop((tenant, name), None) is not None


class MemoryDatasets:
    """`DatasetStore` in dicts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._rows: dict[tuple[str, str], StoredRow] = {}
        self._versions: dict[tuple[str, str, str], tuple[Version, int]] = {}
        """With the time at which it was the latest."""
        self._members: dict[tuple[str, str], list[Member]] = {}
        self._rejections: dict[tuple[str, str, str], list[Rejection]] = {}

    async def add(self, tenant: str, rows: Sequence[StoredRow]) -> int:
        """As `DatasetStore.add`."""
        before = len(self._rows)
        for row in rows:
            id_bytes(row.id)
        for row in rows:
            self._rows.setdefault((tenant, row.id), row)
        return len(self._rows) - before

    async def rows(self, tenant: str, ids: Sequence[str]) -> list[StoredRow]:
        """As `DatasetStore.rows`."""
        return [self._rows[tenant, i] for i in dict.fromkeys(ids) if id_bytes(i) and (tenant, i) in self._rows]

    async def put(
        self, tenant: str, version: Version, members: Iterable[Member], rejections: Iterable[Rejection], *, now_ns: int
    ) -> bool:
        """As `DatasetStore.put`."""
        listed = list(members)
        list(pack(listed))  # what is wrong with the members is refused as elsewhere
        key = (tenant, version.name, version.id)
        if key in self._versions:
            self._versions[key] = (self._versions[key][0], now_ns)
            return False
        if missing := sum((tenant, m.row) not in self._rows for m in listed):
            raise NotFound(f"{missing} rows of this version are not stored.", code="rows_missing", hint="Add the rows first.")
        self._versions[key] = (version, now_ns)
        self._members.setdefault((tenant, version.id), listed)
        self._rejections[key] = list(rejections)
        return True

    async def version(self, tenant: str, name: str, id: str) -> Version | None:
        """As `DatasetStore.version`."""
        found = self._versions.get((tenant, name, id))
        return found[0] if found else None

    async def versions(
        self, tenant: str, *, name: str = "", prefix: str = "", limit: int = 1000, offset: int = 0
    ) -> list[Version]:
        """As `DatasetStore.versions`."""
        found = [
            (-latest, version.name, version.id, version)
            for (owner, named, digits), (version, latest) in self._versions.items()
            if owner == tenant and name in ("", named) and digits.startswith(prefix)
        ]
        return [v for *_, v in sorted(found, key=lambda f: f[:3])][max(0, offset) :][: max(0, limit)]

    async def members(self, tenant: str, version: str, *, after: str = "", split: str = "", limit: int = 1000) -> list[Member]:
        """As `DatasetStore.members`."""
        listed = self._members.get((tenant, version), [])
        return [m for m in listed if m.row > after and split in ("", m.split)][: max(0, limit)]

    async def rejections(self, tenant: str, name: str, version: str, *, offset: int = 0, limit: int = 1000) -> list[Rejection]:
        """As `DatasetStore.rejections`."""
        return self._rejections.get((tenant, name, version), [])[offset:][: max(0, limit)]

    async def holding(self, tenant: str, subject: str) -> list[Version]:
        """As `DatasetStore.holding`."""
        mine = {row.id for (owner, _), row in self._rows.items() if owner == tenant and subject and row.subject == subject}
        holds = {
            version
            for (owner, version), listed in self._members.items()
            if owner == tenant and any(m.row in mine for m in listed)
        }
        return [v for v in await self.versions(tenant, limit=len(self._versions)) if v.id in holds]

    async def erase(self, tenant: str, subject: str) -> int:
        """As `DatasetStore.erase`."""
        mine = [key for key, row in self._rows.items() if key[0] == tenant and subject and row.subject == subject]
        for key in mine:
            self._rows[key] = msgspec.structs.replace(self._rows[key], data=b"")
        return len(mine)

    async def close(self) -> None:
        """Nothing to release."""


ENGINE = Engine(
    serves={
        RecordStore: MemoryRecords,
        Queue: MemoryQueue,
        Counter: MemoryCounter,
        BlobStore: MemoryBlobs,
        DatasetStore: MemoryDatasets,
    }
)
