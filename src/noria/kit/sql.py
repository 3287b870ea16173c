"""Records, queues and counters in the SQL that SQLite and Postgres share: one text, proven on both (DESIGN §3a.14).

An engine brings a `Database`: how one statement and one transaction run there. Everything else is here: the
named queries, the migrations, and the three ports over them. A transaction is a generator that yields
calls and receives rows, so that the same one runs in SQLite's thread and over psycopg's coroutines:

    def transfer() -> Transaction[int]:
        rows = yield READ, ("a",)
        yield WRITE, (rows[0][0] + 1, "a")
        return rows[0][0]

Queries are written with `?` for parameters and `{blob}`, `{bytewise}`, `{skip_locked}` where the two differ.
Times are int64 ns from the caller; the database is never asked what time it is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from noria.contracts.error import Conflict, StoreError
from noria.contracts.port import DeadJob, Job, Record, Write

T = TypeVar("T")

POLL_S = 0.4
"""How often `changed` looks for commits of other processes: inside the 500 ms that the port promises."""

KEPT_NS = 24 * 3600 * 1_000_000_000
"""An expired counter stays a day before it is swept, so that a caller whose clock is ahead harms nobody."""


class Query(NamedTuple):
    """One statement with the name that errors give it."""

    name: str
    text: str


class Dialect(NamedTuple):
    """The words in which the two databases differ."""

    blob: str
    """The type of bytes."""
    bytewise: str
    """The collation that compares UTF-8 bytes."""
    mark: str
    """How a parameter is written."""
    skip_locked: str
    """Makes a subquery lock its rows and pass over those that are locked; empty where writers queue anyway."""


Rows: TypeAlias = Sequence[tuple[Any, ...]]
Call: TypeAlias = tuple[Query, tuple[Any, ...]]
Transaction: TypeAlias = Generator[Call, Rows, T]


# --- queries -----------------------------------------------------------------------------------------------

GET = Query("get", "SELECT version, value FROM records WHERE tenant = ? AND kind = ? AND id = ?")
SCAN = Query(
    "scan",
    "SELECT id, version, value FROM records WHERE tenant = ? AND kind = ? AND id > ? ORDER BY id LIMIT ?",
)
REVISION = Query("revision", "SELECT revision FROM revisions WHERE tenant = ?")
# First in every commit: on Postgres it locks the tenant's row, so that commits of one tenant follow each other.
ADVANCE = Query(
    "commit",
    "INSERT INTO revisions (tenant, revision) VALUES (?, 1)"
    " ON CONFLICT (tenant) DO UPDATE SET revision = revisions.revision + 1 RETURNING revision",
)
# First in a quiet commit of several writes: the same lock, so that two commits never wait for each other's records.
HOLD = Query(
    "commit",
    "INSERT INTO revisions (tenant, revision) VALUES (?, 0)"
    " ON CONFLICT (tenant) DO UPDATE SET revision = revisions.revision RETURNING revision",
)
UPSERT = Query(
    "commit",
    "INSERT INTO records (tenant, kind, id, version, value) VALUES (?, ?, ?, 1, ?)"
    " ON CONFLICT (tenant, kind, id) DO UPDATE SET version = records.version + 1, value = excluded.value RETURNING version",
)
CREATE = Query(
    "commit",
    "INSERT INTO records (tenant, kind, id, version, value) VALUES (?, ?, ?, 1, ?)"
    " ON CONFLICT (tenant, kind, id) DO NOTHING RETURNING version",
)
REPLACE = Query(
    "commit",
    "UPDATE records SET version = version + 1, value = ?"
    " WHERE tenant = ? AND kind = ? AND id = ? AND version = ? RETURNING version",
)
DELETE = Query("commit", "DELETE FROM records WHERE tenant = ? AND kind = ? AND id = ?")
DELETE_EXPECTED = Query(
    "commit", "DELETE FROM records WHERE tenant = ? AND kind = ? AND id = ? AND version = ? RETURNING version"
)

PUT = Query(
    "put",
    "INSERT INTO jobs (tenant, queue, id, body, put_ns, ready_ns, lease_until_ns, attempt, dead)"
    " VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0) ON CONFLICT (tenant, queue, id) DO NOTHING RETURNING id",
)
# MATERIALIZED: inlined, Postgres may run the subquery again for each row and take more than the limit.
LEASE = Query(
    "lease",
    "WITH ripe AS MATERIALIZED ("
    " SELECT id FROM jobs WHERE tenant = ? AND queue = ? AND dead = 0 AND ready_ns <= ? AND lease_until_ns <= ?"
    " ORDER BY put_ns, id LIMIT ? {skip_locked})"
    " UPDATE jobs SET token = ?, lease_until_ns = ?, attempt = attempt + 1"
    " WHERE tenant = ? AND queue = ? AND id IN (SELECT id FROM ripe) AND lease_until_ns <= ?"
    " RETURNING put_ns, id, body, attempt",
)
EXTEND = Query(
    "extend",
    "UPDATE jobs SET lease_until_ns = CASE WHEN lease_until_ns > ? THEN lease_until_ns ELSE ? END"
    " WHERE tenant = ? AND queue = ? AND id = ? AND token = ? AND lease_until_ns > ? RETURNING lease_until_ns",
)
DONE = Query("done", "DELETE FROM jobs WHERE tenant = ? AND queue = ? AND id = ? AND token = ? RETURNING id")
RETRY = Query(
    "retry",
    "UPDATE jobs SET token = NULL, lease_until_ns = 0, ready_ns = ?, dead = ?"
    " WHERE tenant = ? AND queue = ? AND id = ? AND token = ? RETURNING id",
)
DEPTH = Query(
    "depth",
    "SELECT COUNT(CASE WHEN dead = 0 AND token IS NULL THEN 1 END), COUNT(CASE WHEN token IS NOT NULL THEN 1 END),"
    " COUNT(CASE WHEN dead = 1 THEN 1 END) FROM jobs WHERE tenant = ? AND queue = ?",
)

DEAD = Query(
    "dead", "SELECT queue, id, body, attempt, put_ns FROM jobs WHERE tenant = ? AND dead = 1 ORDER BY put_ns, queue, id LIMIT ?"
)
REVIVE = Query(
    "revive", "UPDATE jobs SET dead = 0, ready_ns = ? WHERE tenant = ? AND queue = ? AND id = ? AND dead = 1 RETURNING id"
)

# The upsert holds the row until the transaction ends, so the amount it returns is still true when FILL adds to it.
OPEN_COUNTER = Query(
    "take",
    "INSERT INTO counters (tenant, key, amount, expires_ns) VALUES (?, ?, 0, ?) ON CONFLICT (tenant, key) DO UPDATE SET"
    " amount = CASE WHEN counters.expires_ns <> 0 AND counters.expires_ns <= ? THEN 0 ELSE counters.amount END,"
    " expires_ns = CASE WHEN counters.expires_ns <> 0 AND counters.expires_ns <= ? THEN excluded.expires_ns"
    " ELSE counters.expires_ns END RETURNING amount",
)
FILL = Query("take", "UPDATE counters SET amount = amount + ? WHERE tenant = ? AND key = ?")
SWEEP = Query(
    "take",
    "DELETE FROM counters WHERE tenant = ? AND key IN (SELECT key FROM counters WHERE tenant = ?"
    " AND expires_ns <> 0 AND expires_ns <= ? ORDER BY expires_ns LIMIT 100 {skip_locked})",
)
GIVE = Query(
    "give",
    "UPDATE counters SET amount = CASE WHEN amount > ? THEN amount - ? ELSE 0 END"
    " WHERE tenant = ? AND key = ? AND (expires_ns = 0 OR expires_ns > ?)",
)
AMOUNT = Query("read", "SELECT amount FROM counters WHERE tenant = ? AND key = ? AND (expires_ns = 0 OR expires_ns > ?)")

SCHEMA = Query("migrate", "CREATE TABLE IF NOT EXISTS schema (number BIGINT PRIMARY KEY)")
NEWEST = Query("migrate", "SELECT COALESCE(MAX(number), 0) FROM schema")
MIGRATED = Query("migrate", "INSERT INTO schema (number) VALUES (?)")

MIGRATIONS: tuple[tuple[Query, ...], ...] = (
    (
        Query(
            "migrate 1",
            "CREATE TABLE records (tenant TEXT COLLATE {bytewise} NOT NULL, kind TEXT COLLATE {bytewise} NOT NULL,"
            " id TEXT COLLATE {bytewise} NOT NULL, version BIGINT NOT NULL, value {blob} NOT NULL,"
            " PRIMARY KEY (tenant, kind, id))",
        ),
        Query(
            "migrate 1",
            "CREATE TABLE revisions (tenant TEXT COLLATE {bytewise} NOT NULL PRIMARY KEY, revision BIGINT NOT NULL)",
        ),
        Query(
            "migrate 1",
            "CREATE TABLE jobs (tenant TEXT COLLATE {bytewise} NOT NULL, queue TEXT COLLATE {bytewise} NOT NULL,"
            " id TEXT COLLATE {bytewise} NOT NULL, body {blob} NOT NULL, put_ns BIGINT NOT NULL, ready_ns BIGINT NOT NULL,"
            " lease_until_ns BIGINT NOT NULL, token TEXT, attempt BIGINT NOT NULL, dead BIGINT NOT NULL,"
            " PRIMARY KEY (tenant, queue, id))",
        ),
        Query("migrate 1", "CREATE INDEX jobs_by_age ON jobs (tenant, queue, dead, put_ns, id)"),
        Query(
            "migrate 1",
            "CREATE TABLE counters (tenant TEXT COLLATE {bytewise} NOT NULL, key TEXT COLLATE {bytewise} NOT NULL,"
            " amount BIGINT NOT NULL, expires_ns BIGINT NOT NULL, PRIMARY KEY (tenant, key))",
        ),
        Query("migrate 1", "CREATE INDEX counters_by_expiry ON counters (tenant, expires_ns)"),
    ),
    (
        Query(
            "migrate 2",
            "CREATE TABLE dataset_rows (tenant TEXT COLLATE {bytewise} NOT NULL, id {blob} NOT NULL,"
            " subject TEXT COLLATE {bytewise} NOT NULL, data {blob} NOT NULL, PRIMARY KEY (tenant, id))",
        ),
        Query("migrate 2", "CREATE INDEX dataset_rows_by_subject ON dataset_rows (tenant, subject)"),
        Query(
            "migrate 2",
            "CREATE TABLE dataset_versions (tenant TEXT COLLATE {bytewise} NOT NULL, name TEXT COLLATE {bytewise} NOT NULL,"
            " id TEXT COLLATE {bytewise} NOT NULL, latest_ns BIGINT NOT NULL, manifest {blob} NOT NULL,"
            " PRIMARY KEY (tenant, name, id))",
        ),
        Query("migrate 2", "CREATE INDEX dataset_versions_by_age ON dataset_versions (tenant, latest_ns)"),
        Query(
            "migrate 2",
            "CREATE TABLE dataset_members (tenant TEXT COLLATE {bytewise} NOT NULL, version TEXT COLLATE {bytewise} NOT NULL,"
            " number BIGINT NOT NULL, first {blob} NOT NULL, last {blob} NOT NULL, members {blob} NOT NULL,"
            " PRIMARY KEY (tenant, version, number))",
        ),
        Query(
            "migrate 2",
            "CREATE TABLE dataset_rejections (tenant TEXT COLLATE {bytewise} NOT NULL, name TEXT COLLATE {bytewise} NOT NULL,"
            " version TEXT COLLATE {bytewise} NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL, rejections {blob} NOT NULL,"
            " PRIMARY KEY (tenant, name, version, first))",
        ),
    ),
)
"""Migration n is element n - 1. They only add (tables, columns with defaults, indexes): the release before must run on."""


@cache
def render(query: Query, dialect: Dialect) -> str:
    """The statement as this database wants it."""
    text = query.text.replace("?", dialect.mark).replace("{blob}", dialect.blob)
    return text.replace("{bytewise}", dialect.bytewise).replace("{skip_locked}", dialect.skip_locked)


# --- transactions ------------------------------------------------------------------------------------------


class Database(Protocol):
    """What an engine brings. Errors of the database come out as `StoreError` that name engine and query."""

    async def query(self, query: Query, *params: Any) -> Rows:
        """Run one statement, durable when it returns; its rows."""
        ...

    async def transact(self, name: str, work: Callable[[], Transaction[T]]) -> T:
        """Run a transaction, named in errors, all or nothing, durable when it returns. An error inside rolls it back."""
        ...

    def announce(self, tenant: str, /) -> Sequence[Call]:
        """Calls at the end of a commit that wake the watchers in other processes, where the database can."""
        ...

    def watch(self, tenant: str, /) -> AbstractContextManager[asyncio.Event]:
        """An event that is set soon after a commit of this tenant, where the database can tell; else never."""
        ...

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...


def drive(work: Transaction[T], execute: Callable[[Query, tuple[Any, ...]], Rows]) -> T:
    """Run a transaction's calls one after the other with a function that blocks; what it returns."""
    try:
        call = next(work)
        while True:
            call = work.send(execute(*call))
    except StopIteration as end:
        value: T = end.value
        return value


def migrate(migrations: Sequence[Sequence[Query]] = MIGRATIONS) -> Transaction[int]:
    """Apply what is missing; the number of the newest migration there. One at a time: callers hold a lock.

    A database one migration ahead is the next release's, with which this one may run beside (N-1).
    Raises `StoreError` where it is further ahead.
    """
    yield SCHEMA, ()
    newest: int = (yield NEWEST, ())[0][0]
    if newest > len(migrations) + 1:
        raise StoreError(
            f"The database is at migration {newest}, this Noria knows {len(migrations)}.",
            hint="Run the version of Noria that wrote it, or the one before that.",
        )
    for number, statements in enumerate(migrations[newest:], newest + 1):
        for statement in statements:
            yield statement, ()
        yield MIGRATED, (number,)
    return max(newest, len(migrations))


def commit(tenant: str, writes: Sequence[Write], announce: Sequence[Call]) -> Transaction[int]:
    """Apply writes in order; the new revision. Raises `Conflict` at the first `expect` that does not hold."""
    revision: int = (yield ADVANCE, (tenant,))[0][0]
    yield from _apply(tenant, writes)
    for call in announce:  # noqa: UP028  answers are sent in, which a tuple cannot take
        yield call
    return revision


def commit_quietly(tenant: str, writes: Sequence[Write]) -> Transaction[int]:
    """Apply writes in order, the revision left alone; the revision. Raises `Conflict` as `commit`.

    One write needs no lock of the tenant's: on Postgres, turns of different conversations then share their fsyncs.
    """
    rows = (yield REVISION, (tenant,)) if len(writes) < 2 else (yield HOLD, (tenant,))
    yield from _apply(tenant, writes)
    return rows[0][0] if rows else 0


def _apply(tenant: str, writes: Sequence[Write]) -> Transaction[None]:
    for write in writes:
        call, holds = _call(tenant, write)
        if not holds((yield call)):
            raise Conflict(
                f"{write.kind} {write.id!r} is not at version {write.expect}: it was changed, created or deleted meanwhile.",
                code="conflict",
                hint="Read it again and repeat the change.",
            )


def _call(tenant: str, write: Write) -> tuple[Call, Callable[[Rows], bool]]:
    """The statement of one write, and how its rows tell that `expect` held."""
    key = (tenant, write.kind, write.id)
    match write.value, write.expect:
        case None, None:
            return (DELETE, key), lambda _: True
        case None, 0:
            return (GET, key), lambda rows: not rows
        case None, version:
            return (DELETE_EXPECTED, (*key, version)), bool
        case value, None:
            return (UPSERT, (*key, value)), bool
        case value, 0:
            return (CREATE, (*key, value)), bool
        case value, version:
            return (REPLACE, (value, *key, version)), bool


def take(tenant: str, key: str, bounds: tuple[int, int, int], expires_ns: int, now_ns: int) -> Transaction[int]:
    """Grant from a counter under `bounds` = (want, least, ceiling); the amount granted."""
    want, least, ceiling = bounds
    amount: int = (yield OPEN_COUNTER, (tenant, key, expires_ns, now_ns, now_ns))[0][0]
    if amount == 0 and expires_ns:
        yield SWEEP, (tenant, tenant, now_ns - KEPT_NS)
    room = ceiling - amount
    grant = max(0, min(want, room)) if room >= least else 0
    if grant:
        yield FILL, (grant, tenant, key)
    return grant


# --- the ports ---------------------------------------------------------------------------------------------


class SqlRecords:
    """`RecordStore` over a `Database`."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._watching: set[asyncio.Event] = set()
        """Those who wait in `changed`: a commit of this process needs no look."""

    async def get(self, tenant: str, kind: str, id: str) -> Record | None:
        """As `RecordStore.get`."""
        rows = await self._db.query(GET, tenant, kind, id)
        return Record(kind, id, *rows[0]) if rows else None

    async def scan(self, tenant: str, kind: str, *, after: str = "", limit: int = 1000) -> list[Record]:
        """As `RecordStore.scan`."""
        rows = await self._db.query(SCAN, tenant, kind, after, max(0, limit))
        return [Record(kind, *row) for row in rows]

    async def commit(self, tenant: str, writes: Sequence[Write], *, quiet: bool = False) -> int:
        """As `RecordStore.commit`."""
        if quiet:
            return await self._db.transact("commit", lambda: commit_quietly(tenant, writes))
        revision = await self._db.transact("commit", lambda: commit(tenant, writes, self._db.announce(tenant)))
        for watching in self._watching:
            watching.set()
        return revision

    async def revision(self, tenant: str) -> int:
        """As `RecordStore.revision`."""
        rows = await self._db.query(REVISION, tenant)
        return rows[0][0] if rows else 0

    async def changed(self, tenant: str, revision: int, within: float) -> int:
        """As `RecordStore.changed`: woken by a commit of this process, by the database where it can, by looking every `POLL_S`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        with self._db.watch(tenant) as woken:
            self._watching.add(woken)
            try:
                while True:
                    woken.clear()
                    now = await self.revision(tenant)
                    left = deadline - loop.time()
                    if now > revision or left <= 0:
                        return now
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(left, POLL_S)):
                            await woken.wait()
            finally:
                self._watching.discard(woken)

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        await self._db.close()


class SqlQueue:
    """`Queue` over a `Database`. Age is the `now_ns` of `put`; a job given back keeps its age."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def put(self, tenant: str, queue: str, id: str, body: bytes, *, now_ns: int, ready_ns: int = 0) -> bool:
        """As `Queue.put`."""
        return bool(await self._db.query(PUT, tenant, queue, id, body, now_ns, ready_ns))

    async def lease(self, tenant: str, queue: str, *, now_ns: int, lease_ns: int, limit: int = 1) -> list[Job]:
        """As `Queue.lease`."""
        token, until_ns = secrets.token_hex(16), now_ns + lease_ns
        ripe = (tenant, queue, now_ns, now_ns, max(0, limit))
        rows = await self._db.query(LEASE, *ripe, token, until_ns, tenant, queue, now_ns)
        # RETURNING promises no order.
        return [Job(queue, job, body, attempt, token, until_ns) for _, job, body, attempt in sorted(rows)]

    async def extend(self, tenant: str, job: Job, *, now_ns: int, lease_ns: int) -> Job:
        """As `Queue.extend`; a lease that has run out is lost, even where nobody has taken the job yet."""
        until_ns = now_ns + lease_ns
        held = (tenant, job.queue, job.id, job.token)
        rows = await self._db.query(EXTEND, until_ns, until_ns, *held, now_ns)
        return Job(job.queue, job.id, job.body, job.attempt, job.token, _held(rows, job)[0][0])

    async def done(self, tenant: str, job: Job) -> None:
        """As `Queue.done`."""
        _held(await self._db.query(DONE, tenant, job.queue, job.id, job.token), job)

    async def retry(self, tenant: str, job: Job, *, ready_ns: int, dead: bool = False) -> None:
        """As `Queue.retry`."""
        _held(await self._db.query(RETRY, ready_ns, int(dead), tenant, job.queue, job.id, job.token), job)

    async def depth(self, tenant: str, queue: str) -> tuple[int, int, int]:
        """As `Queue.depth`; jobs that are not ready yet are waiting."""
        waiting, leased, dead = (await self._db.query(DEPTH, tenant, queue))[0]
        return waiting, leased, dead

    async def dead(self, tenant: str, *, limit: int = 1000) -> list[DeadJob]:
        """As `Queue.dead`."""
        return [DeadJob(*row) for row in await self._db.query(DEAD, tenant, max(0, limit))]

    async def revive(self, tenant: str, queue: str, id: str, *, now_ns: int) -> bool:
        """As `Queue.revive`."""
        return bool(await self._db.query(REVIVE, now_ns, tenant, queue, id))

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        await self._db.close()


def _held(rows: Rows, job: Job) -> Rows:
    """The rows of a statement fenced by the job's token; raises `Conflict` where there are none."""
    if not rows:
        raise Conflict(
            f"The lease of job {job.id!r} in {job.queue!r} was lost.",
            code="lease_lost",
            hint="Another worker has it, or it is finished: drop this attempt's result.",
        )
    return rows


class SqlCounter:
    """`Counter` over a `Database`. The take that finds no live counter sets its expiry; later ones leave it."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def take(self, tenant: str, key: str, *, want: int, least: int, ceiling: int, expires_ns: int, now_ns: int) -> int:
        """As `Counter.take`."""
        return await self._db.transact("take", lambda: take(tenant, key, (want, least, ceiling), expires_ns, now_ns))

    async def give(self, tenant: str, key: str, amount: int, *, now_ns: int) -> None:
        """As `Counter.give`."""
        await self._db.query(GIVE, amount, amount, tenant, key, now_ns)

    async def read(self, tenant: str, key: str, *, now_ns: int) -> int:
        """As `Counter.read`."""
        rows = await self._db.query(AMOUNT, tenant, key, now_ns)
        return rows[0][0] if rows else 0

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        await self._db.close()
