"""The ports: what Noria needs from whatever stores, queues, counts and runs for it.

Every method takes the tenant first and never shows one tenant another's data; the guarantee of each
method stands in its docstring and is proven by one contract suite a port (`tests/contracts`) over every
engine. Engines have no clocks of their own: `now_ns` comes from the caller's `Clock` (DESIGN §3a.14).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import msgspec

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


class TraceStore(Protocol):
    """The record of what was served: wide rows apart from their bodies, one transaction a batch."""

    max_batch: ClassVar[int]
    """Rows that one `append` takes at most."""

    async def append(
        self, tenant: str, rows: Sequence[tuple[ExchangeRow, str, str]], bodies: Sequence[Body], position: SpoolPosition | None
    ) -> int:
        """Store rows (each with the ids of its request and answer body; "" = none), new bodies and the spool
        position, all or nothing. Idempotent: a row whose exchange id is there already is skipped, a body
        is kept once. Returns how many rows were new.
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
        """One encrypted body."""
        ...

    async def bodies(self, tenant: str, ids: Sequence[str]) -> Sequence[Body]:
        """Those of these encrypted bodies that are there, each once, in any order; at the cost of about one `body`."""
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


PORTS: dict[str, type] = {p.__name__: p for p in (RecordStore, Queue, Counter, TraceStore, BlobStore, JobRunner)}
"""Every port by name: what an engine may serve."""


class Engine:
    """What a module under `noria.engines` exports as `ENGINE`: the ports it serves, by port, and what it needs.

    Each maker is called with the engine URL (and, for local files, is allowed to create them).
    """

    def __init__(self, serves: dict[type, object], requires: tuple[str, ...] = ()) -> None:
        self.serves = serves
        self.requires = requires
