"""Records, queues and counters in Postgres 12+: several machines share them. URL `postgres://user@host:port/database`,
with any parameter libpq knows, and `schema=name` for the schema to use (default `noria`; made on first use).

Each instance has a small pool of connections. Watchers are woken by LISTEN/NOTIFY and look by themselves as well,
so a lost listener costs time, never a change. Queries and migrations are those of `noria.kit.sql`.
"""

from __future__ import annotations

import asyncio
import re
import select
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from noria.contracts.error import ConfigError, StoreError, Unavailable, boundary
from noria.contracts.port import Counter, DatasetStore, Engine, Queue, RecordStore
from noria.kit.sql import (
    MIGRATIONS,
    NEWEST,
    Call,
    Dialect,
    Query,
    Rows,
    SqlCounter,
    SqlQueue,
    SqlRecords,
    Transaction,
    migrate,
    render,
)
from noria.kit.sql_datasets import SqlDatasets

T = TypeVar("T")

DIALECT = Dialect(blob="BYTEA", bytewise='"C"', mark="%s", skip_locked="FOR UPDATE SKIP LOCKED")

POOL = 8
"""Connections of one instance at most, the listener apart."""

WAIT_S = 10.0
"""How long a call waits for a free connection before it fails as `Unavailable`."""

CHANNEL = "noria"
"""All schemas of a database share one channel; the payload tells whose commit it was."""

SET_UP = Query(
    "connect",
    "SELECT set_config('search_path', ?, false), set_config('statement_timeout', '30s', false),"
    " set_config('idle_in_transaction_session_timeout', '60s', false)",
)
LOCK = Query("migrate", "SELECT pg_advisory_xact_lock(?)")
HAS_TABLE = Query("migrate", "SELECT to_regclass(?) IS NOT NULL")
HAS_SCHEMA = Query("migrate", "SELECT to_regnamespace(?) IS NOT NULL")
NOTIFY = Query("commit", "SELECT pg_notify(?, ?)")


def split_url(url: str) -> tuple[str, str]:
    """The URL as libpq takes it, and the schema; raises `ConfigError`, which never repeats the URL: it holds a password."""
    server, _, query = url.partition("?")
    params = parse_qsl(query, keep_blank_values=True)
    schema = next((value for key, value in params if key == "schema"), "noria")
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
        raise ConfigError(f"{schema!r} cannot be a schema.", hint="Use a-z, 0-9 and _, at most 63, not starting with a digit.")
    rest = urlencode([(key, value) for key, value in params if key != "schema"], quote_via=quote)
    conninfo = f"{server}?{rest}" if rest else server
    if not server.startswith(("postgres://", "postgresql://")):
        raise ConfigError("This is no Postgres URL.", hint="Write postgres://user:password@host:5432/database.")
    try:
        conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        raise ConfigError(
            "The Postgres URL cannot be read.",
            hint="Write postgres://user:password@host:5432/database, special letters as %XX.",
        ) from None
    return conninfo, schema


def _digest(*words: str) -> bytes:
    return blake2b("\0".join(words).encode(), digest_size=16).digest()


class PostgresDatabase:
    """A pool of connections, opened as they are needed, and one listener, started by the first watcher."""

    def __init__(self, url: str) -> None:
        self._conninfo, self._schema = split_url(url)
        self._slots = asyncio.Semaphore(POOL)
        self._idle: list[AsyncConnection] = []
        self._opening = asyncio.Lock()
        self._migrated = False
        self._closed = False
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None

    async def query(self, query: Query, *params: Any) -> Rows:
        """As `Database.query`."""
        async with self._connection(query.name) as connection:
            return await _execute(connection, query, params)

    async def transact(self, name: str, work: Callable[[], Transaction[T]]) -> T:
        """As `Database.transact`, at READ COMMITTED: transactions lock the row they decide by before they read on."""
        async with self._connection(name) as connection, connection.transaction():
            return await _drive(connection, work())

    def announce(self, tenant: str, /) -> Sequence[Call]:
        """A notification, sent when the commit ends."""
        return ((NOTIFY, (CHANNEL, self._topic(tenant))),)

    @contextmanager
    def watch(self, tenant: str, /) -> Iterator[asyncio.Event]:
        """As `Database.watch`."""
        if not self._closed and (self._listener is None or self._listener.done()):
            self._listener = asyncio.create_task(self._listen(), name="noria-postgres-listener")
        topic, event = self._topic(tenant), asyncio.Event()
        self._watchers[topic].add(event)
        try:
            yield event
        finally:
            self._watchers[topic].discard(event)
            if not self._watchers[topic]:
                del self._watchers[topic]

    async def close(self) -> None:
        """Close what is idle now and the rest as it comes back. Idempotent."""
        self._closed = True
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        while self._idle:
            await self._idle.pop().close()

    def _topic(self, tenant: str) -> str:
        # A digest: payloads are limited to 8000 bytes, and everybody on the database can listen.
        return _digest(self._schema, tenant).hex()

    async def _listen(self) -> None:
        while True:
            with suppress(psycopg.Error, OSError, Unavailable):
                async with await self._connect() as connection:
                    await connection.execute(f"LISTEN {CHANNEL}".encode())
                    async for note in connection.notifies():
                        for event in self._watchers.get(note.payload, ()):
                            event.set()
            await asyncio.sleep(1)  # the server is away; watchers still look by themselves

    @asynccontextmanager
    async def _connection(self, what: str) -> AsyncIterator[AsyncConnection]:
        with boundary(StoreError, f"postgres: {what}"):
            async with self._slot():
                connection = await self._take()
                try:
                    yield connection
                finally:
                    await self._put_back(connection)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(WAIT_S):
                await self._slots.acquire()
        except TimeoutError:
            raise Unavailable(f"postgres: all {POOL} connections are busy for {WAIT_S:.0f} s.") from None
        try:
            yield
        finally:
            self._slots.release()

    async def _take(self) -> AsyncConnection:
        if self._closed:
            raise StoreError("postgres: this store is closed.")
        while self._idle:
            connection = self._idle.pop()
            if not _stale(connection):
                return connection
            await connection.close()
        connection = await self._connect()
        async with _closed_on_failure(connection), self._opening:
            if not self._migrated:
                await self._migrate(connection)
                self._migrated = True
        return connection

    async def _put_back(self, connection: AsyncConnection) -> None:
        # A connection cut short (a cancelled caller, a lost server) is in no state to be used again.
        if self._closed or connection.info.transaction_status != TransactionStatus.IDLE:
            await connection.close()
        else:
            self._idle.append(connection)

    async def _connect(self) -> AsyncConnection:
        given = conninfo_to_dict(self._conninfo)
        defaults = {"connect_timeout": 5, "application_name": "noria", "keepalives_idle": 30}
        options: dict[str, Any] = {k: v for k, v in defaults.items() if k not in given}
        try:
            connection = await AsyncConnection.connect(self._conninfo, autocommit=True, **options)
        except psycopg.OperationalError as e:
            raise Unavailable(f"postgres: cannot connect: {e}") from e
        async with _closed_on_failure(connection):
            await _execute(connection, SET_UP, (f'"{self._schema}"',))
        return connection

    async def _migrate(self, connection: AsyncConnection) -> None:
        table = f'"{self._schema}".schema'
        # Looking first: an account that may only read and write rows can use what another account has made.
        if (await _execute(connection, HAS_TABLE, (table,)))[0][0]:
            newest = (await _execute(connection, NEWEST, ()))[0][0]
            if newest in {len(MIGRATIONS), len(MIGRATIONS) + 1}:
                return
        async with connection.transaction():
            key = int.from_bytes(_digest(self._schema, "migrate")[:8], signed=True)
            await _execute(connection, LOCK, (key,))
            if not (await _execute(connection, HAS_SCHEMA, (self._schema,)))[0][0]:
                await connection.execute(f'CREATE SCHEMA "{self._schema}"'.encode())
            await _drive(connection, migrate())


@asynccontextmanager
async def _closed_on_failure(connection: AsyncConnection) -> AsyncIterator[None]:
    """Close a connection that is nobody's yet, where the block fails or is cancelled."""
    async with AsyncExitStack() as undo:
        undo.push_async_callback(connection.close)
        yield
        undo.pop_all()


def _stale(connection: AsyncConnection) -> bool:
    """Whether an idle connection was closed by the server: it says nothing while idle, unless it is leaving."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def _execute(connection: AsyncConnection, query: Query, params: tuple[Any, ...]) -> Rows:
    # As bytes: psycopg takes text only as a literal, and ours is a literal that was rendered.
    cursor = await connection.execute(render(query, DIALECT).encode(), params)
    return await cursor.fetchall() if cursor.description else ()


async def _drive(connection: AsyncConnection, work: Transaction[T]) -> T:
    """As `noria.kit.sql.drive`, over a connection that is waited for."""
    try:
        query, params = next(work)
        while True:
            query, params = work.send(await _execute(connection, query, params))
    except StopIteration as end:
        value: T = end.value
        return value


class PostgresRecords(SqlRecords):
    """`RecordStore` in Postgres."""

    def __init__(self, url: str) -> None:
        super().__init__(PostgresDatabase(url))


class PostgresQueue(SqlQueue):
    """`Queue` in Postgres."""

    def __init__(self, url: str) -> None:
        super().__init__(PostgresDatabase(url))


class PostgresCounter(SqlCounter):
    """`Counter` in Postgres."""

    def __init__(self, url: str) -> None:
        super().__init__(PostgresDatabase(url))


class PostgresDatasets(SqlDatasets):
    """`DatasetStore` in Postgres."""

    def __init__(self, url: str) -> None:
        super().__init__(PostgresDatabase(url))


ENGINE = Engine(
    serves={
        RecordStore: PostgresRecords,
        Queue: PostgresQueue,
        Counter: PostgresCounter,
        DatasetStore: PostgresDatasets,
    }
)
