"""Records, queues and counters in one SQLite file: the default of a single machine. URL `sqlite:///relative/path.db`
or `sqlite:////absolute/path.db`.

Each instance has one thread with one connection, so the event loop never waits for the disk; several instances
and processes share the file through WAL. `synchronous=FULL`: a commit is on disk before it returns. Transactions that
come while the thread waits for the disk share the next commit, each in a savepoint of its own: one fsync for all of them.
Queries and migrations are those of `noria.kit.sql`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from noria.contracts.error import ConfigError, NoriaError, StoreError, boundary
from noria.contracts.port import CacheStore, Counter, DatasetStore, Engine, Queue, RecordStore
from noria.kit.sql import Call, Dialect, Query, Rows, SqlCounter, SqlQueue, SqlRecords, Transaction, drive, migrate, render
from noria.kit.sql_datasets import SqlDatasets
from noria.kit.sqlite_cache import SqliteCacheFile

T = TypeVar("T")

DIALECT = Dialect(blob="BLOB", bytewise="BINARY", mark="?", skip_locked="")

BUSY_S = 10.0
"""How long a writer waits for the other writers of the file."""

OLDEST = (3, 35, 0)
"""The first SQLite with RETURNING and MATERIALIZED."""

AT_ONCE = 256
"""Transactions that share one commit at most: the lock on the file is held meanwhile."""

_OPENING = threading.Lock()
"""Instances of one process open their files one after the other, see `_create_private` and `_use_wal`."""


def path_of(url: str) -> Path:
    """The file that a URL names; raises `ConfigError` where it names none."""
    scheme, separator, path = url.partition(":///")
    if scheme != "sqlite" or not separator or path.strip("/") == "" or path == ":memory:":
        raise ConfigError(
            f"{url!r} names no SQLite file.",
            hint="Write sqlite:///relative/path.db or sqlite:////absolute/path.db; memory:// keeps nothing.",
        )
    return Path(path)


class _Waiting:
    """A transaction that waits for the thread, and who waits for it."""

    def __init__(self, name: str, work: Callable[[], Transaction[Any]]) -> None:
        self.name = name
        self.work = work
        self.end: Future[Any] = Future()
        self.value: Any = None
        self.error: NoriaError | None = None


class SqliteDatabase:
    """One connection in one thread, opened on first use. Transactions run in the order in which they were made, and
    so do single statements; a transaction may overtake statements that wait for the thread.
    """

    def __init__(self, url: str) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise ConfigError(
                f"This Python has SQLite {sqlite3.sqlite_version}; 3.35 is needed.", hint="Use a newer Python, or postgres://…"
            )
        self._path = path_of(url)
        self._thread = ThreadPoolExecutor(1, "noria-sqlite")
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._waiting: deque[_Waiting] = deque()

    async def query(self, query: Query, *params: Any) -> Rows:
        """As `Database.query`."""
        return await self._call(query.name, lambda: self._execute(self._open(), query, params))

    async def transact(self, name: str, work: Callable[[], Transaction[T]]) -> T:
        """As `Database.transact`. Where the caller is cancelled meanwhile, it still ends whole: applied or not."""
        waiting = _Waiting(name, work)
        with self._told(name):
            self._waiting.append(waiting)
            self._thread.submit(self._take_waiting)
            value: T = await asyncio.wrap_future(waiting.end)
            return value

    def announce(self, _tenant: str, /) -> Sequence[Call]:
        """Nothing: SQLite wakes nobody."""
        return ()

    @contextmanager
    def watch(self, _tenant: str, /) -> Iterator[asyncio.Event]:
        """An event that is never set: watchers look by themselves."""
        yield asyncio.Event()

    async def close(self) -> None:
        """Close the file after the calls already made. Idempotent."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown(wait=False)

    async def _call(self, what: str, work: Callable[[], T]) -> T:
        with self._told(what):
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Errors that name the file and what was asked of it."""
        if self._closed:
            raise StoreError(f"sqlite: {what}: {self._path} is closed.")
        with boundary(StoreError, f"sqlite: {what}: {self._path}"):
            yield

    # --- in the thread ---

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            with _OPENING:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _create_private(self._path)
                connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
                try:
                    _use_wal(connection)
                    connection.execute("PRAGMA synchronous=FULL")
                    self._transact(connection, migrate)
                except (sqlite3.Error, StoreError):
                    connection.close()
                    raise
                self._connection = connection
        return self._connection

    def _execute(self, connection: sqlite3.Connection, query: Query, params: tuple[Any, ...]) -> Rows:
        if any(isinstance(p, str) and "\0" in p for p in params):
            raise ValueError("text must not contain NUL")  # Postgres cannot store it: refused here too
        return connection.execute(render(query, DIALECT), params).fetchall()

    def _transact(self, connection: sqlite3.Connection, work: Callable[[], Transaction[T]]) -> T:
        with connection:  # commits, or rolls back on an error
            # IMMEDIATE: a transaction that reads before it writes would fail, not wait, when another writer is quicker.
            connection.execute("BEGIN IMMEDIATE")
            return drive(work(), lambda query, params: self._execute(connection, query, params))

    def _take_waiting(self) -> None:
        """Run what waits, committed together. Called once for each that waits, so that it mostly finds nothing any more."""
        group: list[_Waiting] = []
        while self._waiting and len(group) < AT_ONCE:
            waiting = self._waiting.popleft()
            if waiting.end.set_running_or_notify_cancel():
                group.append(waiting)
        if not group:
            return
        try:
            with boundary(StoreError, f"sqlite: {group[0].name}: {self._path}"):
                self._transact_all(self._open(), group)
        except NoriaError as e:
            for waiting in group:
                waiting.end.set_exception(e)
            return
        for waiting in group:  # only now: nobody is told before all of it is on disk
            if waiting.error is not None:
                waiting.end.set_exception(waiting.error)
            else:
                waiting.end.set_result(waiting.value)

    def _transact_all(self, connection: sqlite3.Connection, group: Sequence[_Waiting]) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            for waiting in group:
                self._attempt(connection, waiting)

    def _attempt(self, connection: sqlite3.Connection, waiting: _Waiting) -> None:
        """One of a group: what it raises rolls back its own writes only."""
        connection.execute("SAVEPOINT one")
        try:
            with boundary(StoreError, f"sqlite: {waiting.name}: {self._path}"):
                waiting.value = drive(waiting.work(), lambda query, params: self._execute(connection, query, params))
        except NoriaError as e:
            if not connection.in_transaction:  # SQLite gave all of it up (the disk is full, say): nobody's writes stand
                raise
            waiting.error = e
            connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _create_private(path: Path) -> None:
    """Create the file with mode 0600, which its -wal and -shm take over: it will hold keys.

    Only ever a new one (O_EXCL): closing a descriptor of a file that SQLite has open drops SQLite's POSIX locks on it
    (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL. Where another process is doing the same, SQLite fails instead of waiting: so we wait."""
    give_up = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return


class SqliteRecords(SqlRecords):
    """`RecordStore` in a SQLite file."""

    def __init__(self, url: str) -> None:
        super().__init__(SqliteDatabase(url))


class SqliteQueue(SqlQueue):
    """`Queue` in a SQLite file."""

    def __init__(self, url: str) -> None:
        super().__init__(SqliteDatabase(url))


class SqliteCounter(SqlCounter):
    """`Counter` in a SQLite file."""

    def __init__(self, url: str) -> None:
        super().__init__(SqliteDatabase(url))


class SqliteDatasets(SqlDatasets):
    """`DatasetStore` in a SQLite file."""

    def __init__(self, url: str) -> None:
        super().__init__(SqliteDatabase(url))


class SqliteCache(SqliteCacheFile):
    """`CacheStore` in a SQLite file of its own: it is deleted where it is damaged."""

    def __init__(self, url: str) -> None:
        super().__init__(path_of(url))


ENGINE = Engine(
    serves={
        RecordStore: SqliteRecords,
        Queue: SqliteQueue,
        Counter: SqliteCounter,
        DatasetStore: SqliteDatasets,
        CacheStore: SqliteCache,
    }
)
