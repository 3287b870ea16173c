"""Traces in DuckDB: today in one hot file, older days in sealed Parquet, a file pair a tenant and day (DESIGN §3a.12).
URL `duckdb:///relative/folder` or `duckdb:////absolute/folder`:

    hot.duckdb                                  tables exchanges, bodies, sealed, spool_positions
    sealed/<tenant>/<day>/exchanges.parquet     zstd, sorted by time and id
    sealed/<tenant>/<day>/bodies.parquet        sorted by id; ciphertext, so not compressed
    sealed/<tenant>/<day>/beside.parquet        which of them holds a body that was sealed together with others, sorted by hash
    sealed/<tenant>/<day>.2/…                   rows that came after the day had been sealed

Columns that can be asked for are typed (`COLUMNS`); every other field of `ExchangeRow` lies in `detail`, a JSON
object, so that a field added to the row needs no migration. A body is kept once for each tenant and day that names
it: retention of one day then never takes the body of another.

Batches go in as Arrow arrays (`arrow`): without pandas, DuckDB 1.5.5 tries `import pandas` twice for each Python value
it converts, so lists as parameters cost 3,300 us a row, `executemany` 4,600, a registered dict of numpy arrays 8,700;
the batch as a CSV file 36, as one JSON parameter 28. An append has a fixed cost of some ms CPU, so callers batch.

There is no primary key: its index would cost 4 us a row and memory for every row ever held. An id is looked up among
the rows of the same id range instead, which UUIDv7 keeps to the newest row group.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar
from urllib.parse import quote, unquote

import duckdb

from noria.contracts.error import RequestError, StoreError
from noria.contracts.port import Body, Engine, TraceStore
from noria.contracts.trace import Clause, ExchangeRow, SpoolPosition, Total, TraceQuery
from noria.engines.duckdb.batch import Appender, Files, body_hash, hash_beside
from noria.engines.duckdb.file import Connection, closing_on_error, connect, cursor_of, one, path_of, quoted, transaction
from noria.engines.duckdb.table import COLUMNS_SQL, SCHEMA, Values, condition_of, day_of, relation, row_of
from noria.engines.duckdb.totals import totals
from noria.kit.atomic import STAGING, staged
from noria.kit.clause import Condition
from noria.kit.priority import yield_to_others

Rows = list[Values]
T = TypeVar("T")

LIMIT = 10_000
"""Most rows that one `list` gives."""


class DuckdbTraces:
    """`TraceStore` in a folder. One thread writes, one reads, each with its own connection; both open on first use.

    One process a folder: DuckDB's own lock refuses a second.
    """

    max_batch: ClassVar[int] = 4000

    def __init__(self, url: str) -> None:
        self._place = path_of(url)
        self._sealed = self._place / "sealed"
        self._writer = ThreadPoolExecutor(1, "noria-traces-write", initializer=yield_to_others)
        self._reader = ThreadPoolExecutor(1, "noria-traces-read")
        self._lock = threading.Lock()
        self._broken = False
        self._closed = False
        self._write_to: Connection | None = None
        self._appender: Appender | None = None
        self._read_from: Connection | None = None

    async def append(
        self, tenant: str, rows: Sequence[tuple[ExchangeRow, str, str]], bodies: Sequence[Body], position: SpoolPosition | None
    ) -> int:
        """As `TraceStore.append`."""
        if len(rows) > self.max_batch:
            raise StoreError(f"duckdb: {len(rows)} rows in one append; {self.max_batch} is the most.")
        if any(row.tenant != tenant for row, _, _ in rows):
            raise StoreError(f"duckdb: a row of another tenant in an append for {tenant!r}.")

        def work(c: Connection) -> int:
            assert self._appender is not None  # made with the connection
            return self._appender.append(self._files(c, tenant), (tenant, rows, bodies, position))

        return await self._write("append", work)

    async def positions(self) -> list[SpoolPosition]:
        """As `TraceStore.positions`."""
        sql = "SELECT spool, segment, byte_offset FROM spool_positions ORDER BY spool"
        found: Rows = await self._read("positions", lambda c: c.execute(sql).fetchall())
        return [SpoolPosition(*r) for r in found]

    async def list(self, tenant: str, query: TraceQuery) -> list[tuple[ExchangeRow, str, str]]:
        """As `TraceStore.list`; `COLUMNS` says what can be asked. Raises `RequestError`."""
        if not 1 <= query.limit <= LIMIT:
            raise RequestError(f"A page has 1 to {LIMIT} rows, not {query.limit}.", code="bad_limit", param="limit")
        condition = condition_of(query)
        found = await self._read("list", lambda c: self._page(c, tenant, condition, query.limit))
        return [row_of(r) for r in found]

    async def count(self, tenant: str, query: TraceQuery) -> int:
        """As `TraceStore.count`."""
        condition = condition_of(query, paged=False)
        return await self._read("count", lambda c: self._count(c, tenant, condition))

    async def totals(
        self, tenant: str, clauses: Sequence[Clause], by: Sequence[str] = (), *, quality: bool = True
    ) -> Sequence[Total]:
        """As `TraceStore.totals`."""
        condition = condition_of(TraceQuery(tuple(clauses)), paged=False)

        def work(c: Connection) -> Sequence[Total]:
            span = (day_of(condition.first_ns), day_of(condition.last_ns))
            source, params = relation(self._files(c, tenant)("exchanges", *span), tenant, span)
            return totals(c, source, params, condition, by, quality=quality)

        return await self._read("totals", work)

    async def get(self, tenant: str, id: str) -> tuple[ExchangeRow, str, str] | None:
        """As `TraceStore.get`."""
        found = await self._read("get", lambda c: self._get(c, tenant, id))
        return row_of(found) if found else None

    async def body(self, tenant: str, id: str) -> Body | None:
        """As `TraceStore.body`."""
        found = await self._read("body", lambda c: self._bodies(c, tenant, [id]))
        return found[0] if found else None

    async def bodies(self, tenant: str, ids: Sequence[str]) -> Sequence[Body]:
        """As `TraceStore.bodies`."""
        wanted = sorted({i for i in ids if i})
        return await self._read("bodies", lambda c: self._bodies(c, tenant, wanted)) if wanted else []

    async def seal(self, tenant: str, before_day: str) -> int:
        """As `TraceStore.seal`. Appends wait while one day is written, not for all of them."""
        _check_day(before_day)
        days = await self._write("seal", lambda c: _hot_days(c, tenant, before_day))
        moved = 0
        for day in days:
            moved += await self._write("seal", partial(self._seal_day, tenant=tenant, day=day))
        return moved

    async def drop(self, tenant: str, before_day: str) -> int:
        """As `TraceStore.drop`."""
        _check_day(before_day)
        return await self._write("drop", lambda c: self._drop(c, tenant, before_day))

    async def close(self) -> None:
        """As `TraceStore.close`."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._writer, self._disconnect)
            self._writer.shutdown()
            self._reader.shutdown()

    # --- connections

    async def _write(self, what: str, work: Callable[[Connection], T]) -> T:
        return await self._run(self._writer, what, lambda: work(self._connect()))

    async def _read(self, what: str, work: Callable[[Connection], T]) -> T:
        if self._read_from is None or self._broken:
            await self._write("open", lambda _: None)

        def attempt() -> T:
            with self._lock:
                cursor = self._read_from
            if cursor is None:
                raise StoreError("duckdb: the store is being reopened; ask again.")
            # One snapshot for the list of sealed files and the hot rows: a day is seen in one place only.
            with transaction(cursor):
                return work(cursor)

        return await self._run(self._reader, what, attempt)

    async def _run(self, thread: ThreadPoolExecutor, what: str, work: Callable[[], T]) -> T:
        if self._closed:
            raise StoreError(f"duckdb: {what}: the store is closed.")

        def guarded() -> T:
            try:
                return work()
            except (duckdb.Error, OSError) as e:
                # After a fatal error (a failed checkpoint, say) DuckDB refuses everything until it is opened anew.
                if isinstance(e, duckdb.FatalException) or "database has been invalidated" in str(e):
                    self._broken = True
                raise StoreError(f"duckdb: {what}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e

        return await asyncio.get_running_loop().run_in_executor(thread, guarded)

    def _connect(self) -> Connection:
        """The writer's connection, opened or reopened. Called in the writer's thread only."""
        if self._write_to is not None and not self._broken:
            return self._write_to
        self._disconnect()
        self._sealed.mkdir(parents=True, exist_ok=True)
        connection = connect(self._place)
        with closing_on_error(connection):
            for statement in SCHEMA:
                connection.execute(statement)
            self._recover(connection)
        with self._lock:
            self._write_to, self._read_from, self._broken = connection, cursor_of(connection), False
        self._appender = Appender(connection)
        return connection

    def _disconnect(self) -> None:
        with self._lock:
            reader, self._read_from = self._read_from, None
            writer, self._write_to = self._write_to, None
        if reader is not None:
            # In its own thread, after the query that it may be in.
            self._reader.submit(reader.close).result()
        if writer is not None:
            writer.close()

    # --- sealed days

    def _folder(self, tenant: str, day: str, part: int) -> Path:
        return self._sealed / quote(tenant, safe="").replace(".", "%2E") / (day if part == 1 else f"{day}.{part}")

    def _files(self, c: Connection, tenant: str) -> Files:
        """`files(name, first, last)`: the sealed files of a tenant in a range of days, newest first."""
        sql = "SELECT day, part FROM sealed WHERE tenant = $1 AND NOT dropped ORDER BY day DESC, part DESC"
        parts = c.execute(sql, [tenant]).fetchall()
        return lambda name, first, last: [
            str(path)
            for day, part in parts
            if first <= day <= last and (path := self._folder(tenant, day, part) / f"{name}.parquet").exists()
        ]

    def _seal_day(self, c: Connection, *, tenant: str, day: str) -> int:
        sql = "SELECT coalesce(max(part), 0) + 1 FROM sealed WHERE tenant = $1 AND day = $2"
        part = one(c, sql, [tenant, day])
        with staged(self._folder(tenant, day, part)) as folder:
            for name, columns, order, options in (
                ("exchanges", "* FROM exchanges", "started_ns, id", "COMPRESSION zstd, ROW_GROUP_SIZE 20480"),
                ("bodies", "* FROM bodies", "id", "COMPRESSION uncompressed, ROW_GROUP_SIZE 256"),
                ("beside", "unnest(hs) AS h, id FROM bodies", "h", "COMPRESSION zstd, ROW_GROUP_SIZE 20480"),
            ):
                path = folder / f"{name}.parquet"
                chosen = f"SELECT {columns} WHERE tenant = $1 AND day = $2 ORDER BY {order}"
                c.execute(f"COPY ({chosen}) TO {quoted(path)} (FORMAT parquet, {options})", [tenant, day])
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        return self._adopt(c, tenant, day, part)

    def _adopt(self, c: Connection, tenant: str, day: str, part: int) -> int:
        """Let a complete sealed part take the place of the hot rows that it holds; how many rows it has. Idempotent."""
        file = str(self._folder(tenant, day, part) / "exchanges.parquet")
        with transaction(c):
            ids = "SELECT id FROM read_parquet($3)"
            c.execute(f"DELETE FROM exchanges WHERE tenant = $1 AND day = $2 AND id IN ({ids})", [tenant, day, file])  # noqa: S608  constant
            file_of_bodies = str(self._folder(tenant, day, part) / "bodies.parquet")
            c.execute(f"DELETE FROM bodies WHERE tenant = $1 AND day = $2 AND id IN ({ids})", [tenant, day, file_of_bodies])  # noqa: S608  constant
            c.execute("INSERT INTO sealed VALUES ($1, $2, $3, false)", [tenant, day, part])
            return int(one(c, "SELECT count(*) FROM read_parquet($1)", [file]))

    def _drop(self, c: Connection, tenant: str, before_day: str) -> int:
        where = "tenant = $1 AND day < $2 AND NOT dropped"
        days = int(one(c, f"SELECT count(DISTINCT day) FROM sealed WHERE {where}", [tenant, before_day]))  # noqa: S608  constant
        if days:
            # Forgotten first, unlinked after: a crash in between is finished at the next start.
            c.execute(f"UPDATE sealed SET dropped = true WHERE {where}", [tenant, before_day])  # noqa: S608  constant
            self._unlink_dropped(c)
        return days

    def _unlink_dropped(self, c: Connection) -> None:
        for tenant, day, part in c.execute("SELECT tenant, day, part FROM sealed WHERE dropped").fetchall():
            shutil.rmtree(self._folder(tenant, day, part), ignore_errors=True)
            c.execute("DELETE FROM sealed WHERE tenant = $1 AND day = $2 AND part = $3", [tenant, day, part])

    def _recover(self, c: Connection) -> None:
        """Finish what a crash cut short: half-written parts go, complete ones are adopted, dropped ones unlinked."""
        self._unlink_dropped(c)
        known = set(c.execute("SELECT tenant, day, part FROM sealed").fetchall())
        for folder in sorted(self._sealed.glob("*/*")):
            if folder.name.startswith(STAGING):
                shutil.rmtree(folder)
                continue
            day, _, part = folder.name.partition(".")
            name = (unquote(folder.parent.name), day, int(part or 1))
            if name not in known:
                self._adopt(c, *name)

    # --- questions

    def _page(self, c: Connection, tenant: str, condition: Condition, limit: int) -> Rows:
        """Newest days first, ever more of them at once, until the page is full."""
        files = self._files(c, tenant)
        days = sorted(self._days(c, tenant, condition), reverse=True)
        found: Rows = []
        width = 1
        while days and len(found) < limit:
            chunk, days, width = days[:width], days[width:], width * 2
            source, params = relation(files("exchanges", chunk[-1], chunk[0]), tenant, (chunk[-1], chunk[0]))
            sql = f"SELECT {COLUMNS_SQL} FROM {source} WHERE {condition.sql} ORDER BY started_ns DESC, id DESC LIMIT $n"  # noqa: S608  values are bound
            found += c.execute(sql, {**params, **condition.params, "n": limit - len(found)}).fetchall()
        return found

    def _days(self, c: Connection, tenant: str, condition: Condition) -> set[str]:
        sql = """SELECT DISTINCT day FROM exchanges WHERE tenant = $1 AND day BETWEEN $2 AND $3
                 UNION SELECT day FROM sealed WHERE tenant = $1 AND day BETWEEN $2 AND $3 AND NOT dropped"""
        return {d for (d,) in c.execute(sql, [tenant, day_of(condition.first_ns), day_of(condition.last_ns)]).fetchall()}

    def _count(self, c: Connection, tenant: str, condition: Condition) -> int:
        span = (day_of(condition.first_ns), day_of(condition.last_ns))
        source, params = relation(self._files(c, tenant)("exchanges", *span), tenant, span)
        return int(one(c, f"SELECT count(*) FROM {source} WHERE {condition.sql}", {**params, **condition.params}))  # noqa: S608  values are bound

    def _get(self, c: Connection, tenant: str, id: str) -> Values | None:
        span = ("", "9")
        hot, sealed = relation([], tenant, span), relation(self._files(c, tenant)("exchanges", *span), tenant, span)
        for column, (source, params) in (("id", hot), ("id", sealed), ("trace", sealed)):
            sql = f"SELECT {COLUMNS_SQL} FROM {source} WHERE {column} = $id LIMIT 2"  # noqa: S608  values are bound
            found = c.execute(sql, {**params, "id": id}).fetchall()
            if found:
                return tuple(found[0]) if len(found) == 1 else None
        return None

    def _bodies(self, c: Connection, tenant: str, ids: Sequence[str]) -> Sequence[Body]:
        """Each once, though every day that names it has it: hot ones first, then sealed ones, the newest files first."""
        found = _hot_bodies(c, tenant, ids)
        held = {i for b in found for i in (b.id, *b.beside)}
        left = [i for i in ids if i not in held]
        files = self._files(c, tenant) if left else None
        if files is not None and (stored := files("bodies", "", "9")):
            found += _sealed_bodies(c, tenant, left, (stored, files("beside", "", "9")))
        return _each_once(found, ids)


_BODY = "SELECT id, subject, data, coalesce(ids, '') FROM"


def _hot_bodies(c: Connection, tenant: str, ids: Sequence[str]) -> list[Body]:
    sql = f"""SELECT DISTINCT id FROM (SELECT id, unnest(hs) AS h FROM bodies WHERE tenant = ${len(ids) + 1})
              WHERE h IN ({_marks(ids)})"""  # noqa: S608  values are bound
    names = [*ids, *(n for (n,) in c.execute(sql, [*map(hash_beside, ids), tenant]).fetchall())]
    sql = f"""{_BODY} bodies
              WHERE h IN ({_marks(names)}) AND id IN ({_marks(names, len(names))}) AND tenant = ${2 * len(names) + 1}"""
    return [_body(*r) for r in c.execute(sql, [*map(body_hash, names), *names, tenant]).fetchall()]


def _sealed_bodies(c: Connection, tenant: str, ids: Sequence[str], files: tuple[Sequence[str], Sequence[str]]) -> list[Body]:
    """`files`: those of bodies, and those that say which of them hold a body among others. None of either is another tenant's."""
    names = list(ids)
    if files[1]:
        sql = f"SELECT DISTINCT id FROM read_parquet(${len(ids) + 1}) WHERE h IN ({_marks(ids)})"  # noqa: S608  values are bound
        names += [n for (n,) in c.execute(sql, [*map(hash_beside, ids), list(files[1])]).fetchall()]
    # a release that knows of bodies alone wrote files without `ids`
    source = "(SELECT * FROM bodies WHERE false UNION ALL BY NAME SELECT * FROM read_parquet($files, union_by_name = true))"
    marks = ", ".join(f"$n{i}" for i in range(len(names)))
    params = {f"n{i}": n for i, n in enumerate(names)}
    sql = f"{_BODY} {source} WHERE id IN ({marks}) AND tenant = $tenant"
    return [_body(*r) for r in c.execute(sql, {**params, "tenant": tenant, "files": list(files[0])}).fetchall()]


def _body(id: str, subject: str, data: bytes, ids: str) -> Body:
    first, *beside = ids.split("\n") if ids else [id]
    return Body(first, subject, data, tuple(beside))


def _each_once(found: Sequence[Body], ids: Sequence[str]) -> list[Body]:
    """What is needed of what was found to have each of the bodies asked for: the first that holds it."""
    holders: dict[str, Body] = {}
    for body in found:
        for name in (body.id, *body.beside):
            holders.setdefault(name, body)
    return list({id(b): b for i in ids if (b := holders.get(i)) is not None}.values())


def _hot_days(c: Connection, tenant: str, before_day: str) -> list[str]:
    sql = """SELECT DISTINCT day FROM exchanges WHERE tenant = $1 AND day < $2
             UNION SELECT DISTINCT day FROM bodies WHERE tenant = $1 AND day < $2 ORDER BY 1"""
    return [day for (day,) in c.execute(sql, [tenant, before_day]).fetchall()]


def _marks(values: Sequence[object], after: int = 0) -> str:
    return ", ".join(f"${after + n}" for n in range(1, len(values) + 1))


def _check_day(day: str) -> None:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", day):
        raise RequestError(f"{day!r} is not a day.", code="bad_day", hint="Write YYYY-MM-DD.")


ENGINE = Engine(serves={TraceStore: DuckdbTraces}, requires=("duckdb>=1.5.5",))
