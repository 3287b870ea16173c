"""The ports: what Noria needs from whatever stores, queues, counts and runs for it.

Every method takes the tenant first and never shows one tenant another's data; the guarantee of each
method stands in its docstring and is proven by one contract suite a port (`tests/contracts`) over every
engine. Engines have no clocks of their own: `now_ns` comes from the caller's `Clock` (DESIGN §3a.14).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Protocol

import msgspec

from noria.contracts.dataset import Member, Rejection, StoredRow, Version
from noria.contracts.trace import Clause, ExchangeRow, SpoolPosition, Total, TraceQuery


class Clock(Protocol):
    """Time, so that tests own it."""

    def now_ns(self) -> int:
        """Wall clock, int64 ns UTC."""
        ...


class Record(msgspec.Struct, frozen=True):
    """One stored record. `version` starts at 1 and rises with every write of this record."""

    kind: str
    id: str
    version: int
    value: bytes


class Write(msgspec.Struct, frozen=True):
    """One write of a commit. `value` None deletes. `expect` is the version that must be there:
    None = any, 0 = the record must not exist.
    """

    kind: str
    id: str
    value: bytes | None
    expect: int | None = None


class RecordStore(Protocol):
    """Small records that must not be lost: keys, releases, live state, sessions, subject keys."""

    async def get(self, tenant: str, kind: str, id: str) -> Record | None:
        """The record as of some commit that had ended when the call began, or None."""
        ...

    async def scan(self, tenant: str, kind: str, *, after: str = "", limit: int = 1000) -> list[Record]:
        """Records of a kind with id > `after`, ordered by id (byte order), at most `limit`."""
        ...

    async def commit(self, tenant: str, writes: Sequence[Write], *, quiet: bool = False) -> int:
        """Apply all writes or none, durably; the tenant's new revision, which rises by one a commit.

        Raises `Conflict` (nothing written) when an `expect` does not hold.

        `quiet` is for records that are no configuration (a conversation's turn, a batch's progress): the revision stays as
        it is and nobody who waits in `changed` wakes. All else holds as without it: whole or not at all, durable, versions
        that rise, `expect`.
        """
        ...

    async def revision(self, tenant: str) -> int:
        """How many commits this tenant has had, quiet ones apart; 0 for one never seen."""
        ...

    async def changed(self, tenant: str, revision: int, within: float) -> int:
        """Wait until the tenant's revision is above `revision`, at most `within` seconds; the revision then.

        A change made by another process is noticed within 500 ms.
        """
        ...

    async def close(self) -> None:
        """Release files and connections. Idempotent."""
        ...


class Job(msgspec.Struct, frozen=True):
    """A leased piece of work. `token` fences it: after the lease is lost, `done` and `retry` raise `Conflict`."""

    queue: str
    id: str
    body: bytes
    attempt: int
    token: str
    lease_until_ns: int


class DeadJob(msgspec.Struct, frozen=True):
    """A buried job: it is leased to nobody until it is revived. `put_ns` is its age, int64 ns UTC."""

    queue: str
    id: str
    body: bytes
    attempt: int
    put_ns: int


class Queue(Protocol):
    """At-least-once work. A leased job is invisible to others until its lease ends."""

    async def put(self, tenant: str, queue: str, id: str, body: bytes, *, now_ns: int, ready_ns: int = 0) -> bool:
        """Add a job, durably; False (and nothing changed) where the id is already queued, leased or dead."""
        ...

    async def lease(self, tenant: str, queue: str, *, now_ns: int, lease_ns: int, limit: int = 1) -> list[Job]:
        """Take up to `limit` jobs that are ready and not leased at `now_ns`, oldest first. Two callers never
        hold one job at the same time, as long as their clocks differ by less than `lease_ns`.
        """
        ...

    async def extend(self, tenant: str, job: Job, *, now_ns: int, lease_ns: int) -> Job:
        """Prolong a lease still held; raises `Conflict` when it was lost."""
        ...

    async def done(self, tenant: str, job: Job) -> None:
        """Remove a finished job; raises `Conflict` when the lease was lost."""
        ...

    async def retry(self, tenant: str, job: Job, *, ready_ns: int, dead: bool = False) -> None:
        """Give a job back to be ready at `ready_ns`, or bury it; raises `Conflict` when the lease was lost."""
        ...

    async def depth(self, tenant: str, queue: str) -> tuple[int, int, int]:
        """(waiting, leased or expired, dead)."""
        ...

    async def dead(self, tenant: str, *, limit: int = 1000) -> list[DeadJob]:
        """The buried jobs of all queues, oldest first, at most `limit`."""
        ...

    async def revive(self, tenant: str, queue: str, id: str, *, now_ns: int) -> bool:
        """Make a buried job ready again, at `now_ns`, its attempts counted on; False (and nothing changed) where there is no
        such job, or it is not dead. Atomic: of two callers one gets True.
        """
        ...

    async def close(self) -> None:
        """Release files and connections. Idempotent."""
        ...


class Counter(Protocol):
    """Shared amounts with a ceiling: what rate limits and budgets take slices of."""

    async def take(self, tenant: str, key: str, *, want: int, least: int, ceiling: int, expires_ns: int, now_ns: int) -> int:
        """Add up to `want` to the counter without passing `ceiling`; the amount granted, 0 where less than
        `least` is left. Atomic. A counter past its `expires_ns` counts from 0 (0 = never expires).
        """
        ...

    async def give(self, tenant: str, key: str, amount: int, *, now_ns: int) -> None:
        """Give back part of what was taken; never below 0."""
        ...

    async def read(self, tenant: str, key: str, *, now_ns: int) -> int:
        """The amount now."""
        ...

    async def close(self) -> None:
        """Release files and connections. Idempotent."""
        ...


class Body(msgspec.Struct, frozen=True):
    """An encrypted body. `id` is keyed (DESIGN §3a.6): equal ids mean equal content of one subject only."""

    id: str
    subject: str
    data: bytes
    beside: tuple[str, ...] = ()
    """Further bodies of the same subject, and other than `id`, that `data` holds: small ones are sealed together."""


class TraceStore(Protocol):
    """The record of what was served: wide rows apart from their bodies, one transaction a batch."""

    max_batch: ClassVar[int]
    """Rows that one `append` takes at most."""

    async def append(
        self, tenant: str, rows: Sequence[tuple[ExchangeRow, str, str]], bodies: Sequence[Body], position: SpoolPosition | None
    ) -> int:
        """Store rows (each with the ids of its request and answer body; "" = none), new bodies and the spool
        position, all or nothing. Idempotent: a row whose exchange id is there already is skipped, and so are bodies that
        only such rows name; one that came alone is kept once a day. Returns how many rows were new.
        """
        ...

    async def positions(self) -> list[SpoolPosition]:
        """How far each spool has been consumed, as of the last append."""
        ...

    async def list(self, tenant: str, query: TraceQuery) -> list[tuple[ExchangeRow, str, str]]:
        """Matching rows, newest first, bodies left empty, each with its body ids ("" = none)."""
        ...

    async def count(self, tenant: str, query: TraceQuery) -> int:
        """How many rows match, paging aside."""
        ...

    async def totals(
        self, tenant: str, clauses: Sequence[Clause], by: Sequence[str] = (), *, quality: bool = True
    ) -> Sequence[Total]:
        """Sums over the rows that match, a group of `by` (names of `GROUPS`) each, dearest first; groups without rows are left
        out. As `count`, sealed days included. `quality` False leaves `estimated` at 0, and is cheaper.
        """
        ...

    async def get(self, tenant: str, id: str) -> tuple[ExchangeRow, str, str] | None:
        """One row by exchange id, or by trace id where it is unique, with its body ids."""
        ...

    async def body(self, tenant: str, id: str) -> Body | None:
        """One encrypted body, with what it was sealed together with."""
        ...

    async def bodies(self, tenant: str, ids: Sequence[str]) -> Sequence[Body]:
        """What holds those of these bodies that are there, in any order, each once; at the cost of about one `body`."""
        ...

    async def seal(self, tenant: str, before_day: str) -> int:
        """Move whole days before `before_day` (YYYY-MM-DD, UTC) out of the hot table into sealed files; how many
        rows moved. Queries give the same answers before, during and after.
        """
        ...

    async def drop(self, tenant: str, before_day: str) -> int:
        """Retention: forget sealed days before `before_day`; how many days."""
        ...

    async def close(self) -> None:
        """Flush and release. Idempotent."""
        ...


class BlobStore(Protocol):
    """Large immutable values under a name: artifacts, exports, model files."""

    async def put(self, tenant: str, name: str, data: bytes) -> None:
        """Store whole or not at all (write, fsync, rename); overwriting with other content raises `Conflict`."""
        ...

    async def get(self, tenant: str, name: str) -> bytes | None:
        """The value, or None."""
        ...

    async def list(self, tenant: str, prefix: str = "") -> list[str]:
        """Names with this prefix, in byte order."""
        ...

    async def delete(self, tenant: str, name: str) -> bool:
        """Whether there was one."""
        ...


class JobState(msgspec.Struct, frozen=True):
    """Where a job stands: `waiting`, `running`, `done`, `failed` or `lost`."""

    id: str
    state: str
    exit_code: int | None = None
    detail: str = ""


class JobRunner(Protocol):
    """Runs heavy work outside of the service, by a file contract: `job.json` in, `result.json` + artifacts out."""

    async def start(self, tenant: str, id: str, argv: Sequence[str], folder: str) -> None:
        """Start `argv` with `folder` as its working directory; a second start of the same id is `Conflict`."""
        ...

    async def state(self, tenant: str, id: str) -> JobState | None:
        """How it stands; None for an unknown id. Survives a restart of the caller."""
        ...

    async def stop(self, tenant: str, id: str) -> None:
        """End it (SIGTERM, then SIGKILL after 5 s). Idempotent."""
        ...


class CacheEntry(msgspec.Struct, frozen=True):
    """One answer as the shared cache has it: sealed, so that the store sees whose it is, its times and its size."""

    key: bytes
    app: str
    subject: str
    stored_ns: int
    """Wall clock, int64 ns UTC, as `expires_ns`."""
    expires_ns: int
    data: bytes
    seen: int = 0
    """The newest purge that its maker knew of when it began; not stored."""


class CachePurge(msgspec.Struct, frozen=True):
    """Everything of an app, of a subject, or (both empty) of the tenant was dropped."""

    seq: int
    app: str = ""
    subject: str = ""

    def covers(self, app: str, subject: str) -> bool:
        """Whether an answer of this app and subject is among what was dropped."""
        return self.app in ("", app) and self.subject in ("", subject)


class CachePurges(msgspec.Struct, frozen=True):
    """`seq` is the newest purge. Where not `complete`, more were made than are remembered: nothing older may be given out."""

    seq: int
    purges: tuple[CachePurge, ...] = ()
    complete: bool = True


class CacheTotal(msgspec.Struct, frozen=True):
    """What the shared cache holds for an app."""

    app: str
    answers: int
    bytes: int
    oldest_ns: int
    newest_ns: int


class CacheStore(Protocol):
    """Answers that all workers share. A cache: anything may be gone at any time, and a crash or a damaged file costs misses;
    what is given out is what was put in, for the caller opens it with a key that authenticates it.
    """

    async def get(self, tenant: str, key: bytes, *, now_ns: int) -> CacheEntry | None:
        """The entry under `key` unless it has expired."""
        ...

    async def put(self, tenant: str, entries: Sequence[CacheEntry], *, room: Mapping[str, int], now_ns: int) -> int:
        """Keep entries (a later one replaces an earlier one of its key); how many were kept. Afterwards each app in `room` holds
        at most so many bytes: what expired leaves first, then the oldest. An entry that a purge newer than its `seen` covers,
        and one that is larger than its app's room, is left out.
        """
        ...

    async def purge(self, tenant: str, *, app: str = "", subject: str = "", now_ns: int) -> tuple[int, int]:
        """Drop the entries of an app, of a subject, or all; (sequence number of the purge, entries dropped). Sequence numbers of
        a tenant rise. What was dropped for a subject is overwritten on disk where the store has one.
        """
        ...

    async def purges(self, tenant: str, after: int) -> CachePurges:
        """Purges later than `after`; they are remembered for an hour at least."""
        ...

    async def totals(self, tenant: str, *, now_ns: int) -> list[CacheTotal]:
        """What is held and has not expired, by app."""
        ...

    async def expire(self, *, now_ns: int) -> int:
        """Drop what has expired, of all tenants, and give the room back; how many entries."""
        ...

    async def close(self) -> None:
        """Release files and connections. Idempotent."""
        ...


class DatasetStore(Protocol):
    """Rows that are sealed before they come here, and versions: immutable lists of them (ADR 23). Row ids are 64 hex digits."""

    async def add(self, tenant: str, rows: Sequence[StoredRow]) -> int:
        """Store rows, all or nothing, durably; how many were new. Idempotent: a row whose id is there already stays as it is."""
        ...

    async def rows(self, tenant: str, ids: Sequence[str]) -> list[StoredRow]:
        """Those of these rows that are there, in the order of `ids`. An erased one is there with empty `data`."""
        ...

    async def put(
        self, tenant: str, version: Version, members: Iterable[Member], rejections: Iterable[Rejection], *, now_ns: int
    ) -> bool:
        """Store a version, whole or not at all, durably; False where this dataset has it already, which then becomes its latest
        again and is otherwise unchanged. `members` rise by row id, each once (else `StoreError`).

        Raises `NotFound`, and nothing is written, where a member's row is not stored.
        """
        ...

    async def version(self, tenant: str, name: str, id: str) -> Version | None:
        """One version of a dataset, by its whole id."""
        ...

    async def versions(
        self, tenant: str, *, name: str = "", prefix: str = "", limit: int = 1000, offset: int = 0
    ) -> list[Version]:
        """Versions, the latest first: of one dataset or of all, and of those whose id begins with `prefix`."""
        ...

    async def members(self, tenant: str, version: str, *, after: str = "", split: str = "", limit: int = 1000) -> list[Member]:
        """Members of a version with a row id > `after`, by row id, at most `limit`; of one split where it is named."""
        ...

    async def rejections(self, tenant: str, name: str, version: str, *, offset: int = 0, limit: int = 1000) -> list[Rejection]:
        """What was left out of a version, in the order in which it was given."""
        ...

    async def holding(self, tenant: str, subject: str) -> list[Version]:
        """Versions that have, or had before it was erased, a row of this subject, the latest first."""
        ...

    async def erase(self, tenant: str, subject: str) -> int:
        """Forget the content of every row of a subject; how many. Ids stay, so that the versions' roots stay valid. The
        empty subject is nobody's: nothing is erased.
        """
        ...

    async def close(self) -> None:
        """Release files and connections. Idempotent."""
        ...


PORTS: dict[str, type] = {
    p.__name__: p for p in (RecordStore, Queue, Counter, TraceStore, BlobStore, CacheStore, JobRunner, DatasetStore)
}
"""Every port by name: what an engine may serve."""


class Engine:
    """What a module under `noria.engines` exports as `ENGINE`: the ports it serves, by port, and what it needs.

    Each maker is called with the engine URL (and, for local files, is allowed to create them).
    """

    def __init__(self, serves: dict[type, object], requires: tuple[str, ...] = ()) -> None:
        self.serves = serves
        self.requires = requires
