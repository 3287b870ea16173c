"""A bounded cache in one SQLite file that several processes share. It may lose anything and never waits for the disk.

WAL without a sync at each commit: a killed process loses nothing that was committed, a power cut at most the latest
commits, never the order of the file. A file that is damaged all the same, or that somebody has taken away, is replaced by
an empty one; a file that is no such cache is left alone. Reads and writes have a thread and a connection each, so that a lookup does not stand behind a batch of writes.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from noria.contracts.error import StoreError, boundary
from noria.contracts.port import CacheEntry, CachePurge, CachePurges, CacheTotal
from noria.kit.priority import yield_to_others

T = TypeVar("T")

OVERHEAD = 700
"""Bytes that an entry takes besides its data: row, indexes, what of a page stays empty (measured: 290 to 680 by size, and
1,650 where four just do not fit a page; 670 over sizes as answers have them).
"""
BUSY_S = 1.0
"""How long one process waits for another's write."""
EXPIRED_AT_ONCE = 500
"""Expired entries that one `put` drops, so that a batch stays short."""
PAGE = 16_384
"""Bytes of a page: on the usual 4 kB, entries of 2 kB waste half."""
REMEMBERED_NS = 3600 * 1_000_000_000
"""How long a purge is remembered."""
VERSION = 1
APPLICATION = 0x4E4F5243
"""`application_id` of the file ("NORC"): nothing that does not have it is ever written to or removed."""
_SCHEMA = """
CREATE TABLE entry(
  n INTEGER PRIMARY KEY, tenant TEXT NOT NULL, key BLOB NOT NULL, app TEXT NOT NULL, subject TEXT NOT NULL,
  stored_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, size INTEGER NOT NULL, data BLOB NOT NULL);
CREATE UNIQUE INDEX entry_key ON entry(tenant, key);
CREATE INDEX entry_app ON entry(tenant, app, n);
CREATE INDEX entry_expires ON entry(expires_ns);
CREATE INDEX entry_subject ON entry(tenant, subject) WHERE subject <> '';
CREATE TABLE held(tenant TEXT NOT NULL, app TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY(tenant, app)) WITHOUT ROWID;
CREATE TABLE purge(
  tenant TEXT NOT NULL, app TEXT NOT NULL, subject TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(tenant, app, subject)
) WITHOUT ROWID;
CREATE TABLE sequence(tenant TEXT PRIMARY KEY, seq INTEGER NOT NULL, floor INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER entry_in AFTER INSERT ON entry BEGIN
  INSERT INTO held VALUES (new.tenant, new.app, new.size)
  ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER entry_out AFTER DELETE ON entry BEGIN
  UPDATE held SET bytes = bytes - old.size WHERE tenant = old.tenant AND app = old.app;
END;
"""
_LOCK = ".lock"


class SqliteCacheFile:
    """`contracts.port.CacheStore` in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = _Thread(path, "noria-cache-read")
        self._write = _Thread(path, "noria-cache-write", initializer=yield_to_others)

    async def get(self, tenant: str, key: bytes, *, now_ns: int) -> CacheEntry | None:
        """As `CacheStore.get`."""

        def look(db: sqlite3.Connection) -> CacheEntry | None:
            found = db.execute(
                "SELECT app, subject, stored_ns, expires_ns, data FROM entry WHERE tenant = ? AND key = ? AND expires_ns > ?",
                (tenant, key, now_ns),
            ).fetchone()
            return None if found is None else CacheEntry(key, *found)

        return await self._read.call("get", look)

    async def put(self, tenant: str, entries: Sequence[CacheEntry], *, room: Mapping[str, int], now_ns: int) -> int:
        """As `CacheStore.put`."""

        def write(db: sqlite3.Connection) -> int:
            with _transaction(db):
                purges = _since(db, tenant, min((e.seen for e in entries), default=0)).purges
                n = sum(_insert(db, tenant, e, room) for e in entries if not _gone(e, purges))
                _expire(db, now_ns, EXPIRED_AT_ONCE)
                for app, most in room.items():
                    _shrink(db, tenant, app, most)
                return n

        return await self._write.call("put", write)

    async def purge(self, tenant: str, *, app: str = "", subject: str = "", now_ns: int) -> tuple[int, int]:
        """As `CacheStore.purge`."""

        def drop(db: sqlite3.Connection) -> tuple[int, int]:
            where, given = "tenant = ?", [tenant]
            for column, value in (("app", app), ("subject", subject)):
                if value:
                    where, given = f"{where} AND {column} = ?", [*given, value]
            db.execute(f"PRAGMA secure_delete = {'ON' if subject else 'OFF'}")
            with _transaction(db):
                seq = max(_sequence(db, tenant)[0] + 1, now_ns)
                db.execute("INSERT INTO sequence VALUES (?, ?, 0) ON CONFLICT DO UPDATE SET seq = excluded.seq", (tenant, seq))
                db.execute("INSERT OR REPLACE INTO purge VALUES (?, ?, ?, ?)", (tenant, app, subject, seq))
                n = db.execute(f"DELETE FROM entry WHERE {where}", given).rowcount  # noqa: S608  column names of two constants
            _give_back(db)
            if subject:  # the log holds the pages as they were
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return seq, n

        return await self._write.call("purge", drop)

    async def purges(self, tenant: str, after: int) -> CachePurges:
        """As `CacheStore.purges`."""
        return await self._read.call("purges", lambda db: _since(db, tenant, after))

    async def totals(self, tenant: str, *, now_ns: int) -> list[CacheTotal]:
        """As `CacheStore.totals`."""
        query = (
            "SELECT app, count(*), sum(size), min(stored_ns), max(stored_ns) FROM entry WHERE tenant = ? AND expires_ns > ? "
            "GROUP BY app ORDER BY app"
        )
        return await self._read.call("totals", lambda db: [CacheTotal(*row) for row in db.execute(query, (tenant, now_ns))])

    async def expire(self, *, now_ns: int) -> int:
        """As `CacheStore.expire`."""

        def drop(db: sqlite3.Connection) -> int:
            with _transaction(db):
                n = _expire(db, now_ns, -1)
                old = now_ns - REMEMBERED_NS
                db.execute("UPDATE sequence SET floor = coalesce((SELECT max(p.seq) FROM purge p WHERE p.tenant = "
                           "sequence.tenant AND p.seq < ?), floor)", (old,))  # fmt: skip
                db.execute("DELETE FROM purge WHERE seq < ?", (old,))
            _give_back(db)
            return n

        return await self._write.call("expire", drop)

    async def close(self) -> None:
        """As `CacheStore.close`."""
        await self._write.close()
        await self._read.close()


class _Thread:
    """One connection in one thread, opened on first use and anew where the file is another one than it was."""

    def __init__(self, path: Path, name: str, *, initializer: Callable[[], None] | None = None) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(1, name, initializer=initializer)
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self._closed = False

    async def call(self, what: str, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreError(f"sqlite: {what}: {self._path} is closed.")
        with boundary(StoreError, f"sqlite: {what}: {self._path}"):
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, work)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._pool, self._let_go)
            self._pool.shutdown(wait=False)

    # --- in the thread ---

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return work(self._open())
        except sqlite3.DatabaseError as e:
            if e.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            self._let_go()
            if not _take_away(self._path, self._inode):
                raise
        return work(self._open())

    def _open(self) -> sqlite3.Connection:
        if self._db is not None:
            with suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    return self._db
            self._let_go()
        with _alone(self._path):
            with suppress(FileExistsError):  # only ever a new one: see `engines.sqlite` on descriptors and locks
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self._inode = self._path.stat().st_ino
            self._db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            self._prepare(self._db)
        return self._db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """The settings of a connection, and the tables of a file that has none or those of an earlier version."""
        if _number(db, "page_count") == 0:
            db.execute(f"PRAGMA page_size = {PAGE}")
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute(f"PRAGMA application_id = {APPLICATION}")  # before WAL: it stands in the file itself at once
        if _number(db, "application_id") != APPLICATION:
            raise StoreError(f"{self._path} is not a cache of Noria's.", hint="Name a file of its own: stores.cache.")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        version = _number(db, "user_version")
        if version > VERSION:
            raise StoreError(f"{self._path} is a cache of a newer Noria.", hint="It is not shared with this one meanwhile.")
        if version < VERSION:
            old = "".join(f"DROP TABLE IF EXISTS {name};" for name in ("entry", "held", "purge", "sequence"))
            db.executescript(f"BEGIN IMMEDIATE; {old} {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")

    def _let_go(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else opens or replaces the file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path.with_name(path.name + _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])


_STRANGERS: dict[int, int] = {}
"""Inode → descriptor of files that are not ours. Closing one would drop the locks that this process may have on that file."""


def _take_away(path: Path, inode: int) -> bool:
    """Remove the damaged file, unless somebody else has done it; False where its head does not say that it is ours."""
    with _alone(path), suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            fd = _STRANGERS.get(inode) or os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if os.pread(fd, 4, 68) != APPLICATION.to_bytes(4, "big"):  # https://www.sqlite.org/fileformat2.html, 1.3
                _STRANGERS[inode] = fd
                return False
            for ending in ("-wal", "-shm", ""):
                path.with_name(path.name + ending).unlink(missing_ok=True)
            os.close(fd)
    return True


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    with db:  # commits, or rolls back on an error
        db.execute("BEGIN IMMEDIATE")
        yield


def _insert(db: sqlite3.Connection, tenant: str, e: CacheEntry, room: Mapping[str, int]) -> bool:
    size = len(e.data) + OVERHEAD
    if size > room.get(e.app, size):
        return False
    db.execute("DELETE FROM entry WHERE tenant = ? AND key = ?", (tenant, e.key))  # REPLACE would not fire the trigger
    db.execute(
        "INSERT INTO entry(tenant, key, app, subject, stored_ns, expires_ns, size, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (tenant, e.key, e.app, e.subject, e.stored_ns, e.expires_ns, size, e.data),
    )
    return True


def _gone(e: CacheEntry, purges: Sequence[CachePurge]) -> bool:
    return any(p.seq > e.seen and p.covers(e.app, e.subject) for p in purges)


def _sequence(db: sqlite3.Connection, tenant: str) -> tuple[int, int]:
    """(newest purge, newest one that is forgotten)."""
    found = db.execute("SELECT seq, floor FROM sequence WHERE tenant = ?", (tenant,)).fetchone()
    return (0, 0) if found is None else (int(found[0]), int(found[1]))


def _since(db: sqlite3.Connection, tenant: str, after: int) -> CachePurges:
    seq, floor = _sequence(db, tenant)
    rows = db.execute("SELECT seq, app, subject FROM purge WHERE tenant = ? AND seq > ? ORDER BY seq", (tenant, after))
    # a file that was replaced knows less than its readers: `after` is above its newest
    return CachePurges(seq, tuple(CachePurge(*row) for row in rows), complete=floor <= after <= seq)


def _expire(db: sqlite3.Connection, now_ns: int, most: int) -> int:
    old = "SELECT n FROM entry WHERE expires_ns <= ? ORDER BY expires_ns LIMIT ?"
    return db.execute(f"DELETE FROM entry WHERE n IN ({old})", (now_ns, most)).rowcount  # noqa: S608  a constant


def _shrink(db: sqlite3.Connection, tenant: str, app: str, most: int) -> None:
    """Let the oldest go until the app's entries fit."""
    held = db.execute("SELECT bytes FROM held WHERE tenant = ? AND app = ?", (tenant, app)).fetchone()
    over = (held[0] if held else 0) - most
    last = None
    for n, size in db.execute("SELECT n, size FROM entry WHERE tenant = ? AND app = ? ORDER BY n", (tenant, app)):
        if over <= 0:
            break
        last, over = n, over - size
    if last is not None:
        db.execute("DELETE FROM entry WHERE tenant = ? AND app = ? AND n <= ?", (tenant, app, last))


def _give_back(db: sqlite3.Connection) -> None:
    """Hand free pages back to the file system."""
    db.executescript("PRAGMA incremental_vacuum")  # `execute` would take its first step, of one page, for the whole
