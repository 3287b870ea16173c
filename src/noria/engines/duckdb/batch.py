"""One batch into the hot tables: what is there already is skipped, bodies go with the days that name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
from blake3 import blake3

from noria.contracts.port import Body
from noria.contracts.trace import ExchangeRow, SpoolPosition
from noria.engines.duckdb.arrow import Insert
from noria.engines.duckdb.file import Connection, one, transaction
from noria.engines.duckdb.table import BODIES, EXCHANGES, columns_of, day_of

Files = Callable[[str, str, str], list[str]]
"""(`exchanges` or `bodies`, first day, last day) → paths of sealed files, newest first."""

SLICE = 1024 * 1024
"""Bytes of bodies in one statement: what DuckDB holds several copies of for a moment."""

BodyRow = tuple[str, str, str, int, str, bytes, str, list[int]]
"""Tenant, day, id, hash, subject, data, ids, hashes: the columns of the bodies."""

encode = msgspec.json.Encoder().encode

NO_DAY = "1970-01-01"
"""The day of a body that came without any row."""

TOGETHER = "+"
"""Begins the name of a row that holds several bodies; no id of a body begins so."""


Batch = tuple[str, Sequence[tuple[ExchangeRow, str, str]], Sequence[Body], SpoolPosition | None]


class Appender:
    """Appends batches over one connection."""

    def __init__(self, c: Connection) -> None:
        self._c = c
        self._exchanges = Insert(c, EXCHANGES)
        self._bodies = Insert(c, BODIES)

    def append(self, files: Files, batch: Batch) -> int:
        """Append a batch (tenant, rows with their body ids, bodies, position) in one transaction; how many rows were new."""
        tenant, rows, bodies, position = batch
        unique = {row.id: (row, request, answer) for row, request, answer in reversed(rows)}
        c = self._c
        with transaction(c):
            known = _known(c, files, tenant, [row for row, _, _ in unique.values()])
            fresh = [r for name, r in unique.items() if name not in known][::-1]
            if fresh:
                self._exchanges(columns_of(fresh))
            for new in _slices(_new_bodies(c, tenant, _days_of_bodies(rows, fresh, bodies))):
                self._bodies(list(zip(*new, strict=True)))
            if position is not None:
                _advance(c, position)
        return len(fresh)


def _advance(c: Connection, position: SpoolPosition) -> None:
    """An update in place costs half of what a replacement does, which the index sees as two."""
    sql = "UPDATE spool_positions SET segment = $2, byte_offset = $3 WHERE spool = $1"
    params = [position.spool, position.segment, position.offset]
    if not one(c, sql, params):
        c.execute("INSERT INTO spool_positions VALUES ($1, $2, $3)", params)


def _known(c: Connection, files: Files, tenant: str, rows: Sequence[ExchangeRow]) -> set[str]:
    """Which of these rows are there already."""
    if not rows:
        return set()
    ids = [row.id for row in rows]
    days = [day_of(row.started_ns) for row in rows]
    wanted = "id IN (SELECT unnest(from_json($ids, '[\"VARCHAR\"]')))"
    params = {"ids": encode(ids).decode(), "tenant": tenant}
    between = "id BETWEEN $low AND $high"  # what lets DuckDB skip all row groups but the newest
    sql = f"SELECT id FROM exchanges WHERE tenant = $tenant AND {between} AND {wanted}"  # noqa: S608  values are bound
    found = c.execute(sql, {**params, "low": min(ids), "high": max(ids)}).fetchall()
    if sealed := files("exchanges", min(days), max(days)):
        sql = f"SELECT id FROM read_parquet($files) WHERE tenant = $tenant AND {wanted}"  # noqa: S608  values are bound
        found += c.execute(sql, {**params, "files": sealed}).fetchall()
    return {name for (name,) in found}


def _days_of_bodies(
    rows: Sequence[tuple[ExchangeRow, str, str]], fresh: Sequence[tuple[ExchangeRow, str, str]], bodies: Sequence[Body]
) -> Iterator[tuple[str, Body]]:
    """Each body with each day that names it, or one beside it: those of new rows, and those that no row of the batch names."""
    if not bodies:
        return
    newest = max((day_of(row.started_ns) for row, _, _ in rows), default=NO_DAY)
    named = {body for _, request, answer in rows for body in (request, answer)}
    days: dict[str, dict[str, None]] = {}
    for row, request, answer in fresh:
        day = day_of(row.started_ns)
        for name in (request, answer):
            days.setdefault(name, {})[day] = None
    for body in {b.id: b for b in bodies}.values():
        ids = (body.id, *body.beside)
        lone = not named.issuperset(ids)
        for day in {d: None for i in ids for d in days.get(i, ())} or ((newest,) if lone else ()):
            yield day, body


def _new_bodies(c: Connection, tenant: str, bodies: Iterator[tuple[str, Body]]) -> list[BodyRow]:
    """Bodies as rows, without those alone that their day has already."""
    rows = {r[1:3]: r for r in (_body_row(tenant, day, b) for day, b in bodies)}
    if alone := [r for r in rows.values() if not r[6]]:
        # Comparing 8-byte hashes first keeps this to one small column, however many bodies the day has.
        sql = """SELECT day, id FROM bodies WHERE tenant = $1 AND day >= $2
                 AND h IN (SELECT unnest(from_json($3, '["BIGINT"]')))"""
        hashes = encode([r[3] for r in alone]).decode()
        for there in c.execute(sql, [tenant, min(r[1] for r in alone), hashes]).fetchall():
            rows.pop(there, None)
    return list(rows.values())


def _body_row(tenant: str, day: str, body: Body) -> BodyRow:
    if not body.beside:
        return tenant, day, body.id, body_hash(body.id), body.subject, body.data, "", []
    ids = (body.id, *body.beside)
    name = TOGETHER + body.id
    return tenant, day, name, body_hash(name), body.subject, body.data, "\n".join(ids), [hash_beside(i) for i in ids]


def _slices(rows: Sequence[BodyRow]) -> Iterator[list[BodyRow]]:
    """Pieces whose data is not much over `SLICE` each."""
    piece: list[BodyRow] = []
    size = 0
    for row in rows:
        piece.append(row)
        size += len(row[5])
        if size >= SLICE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def body_hash(id: str) -> int:
    """64 bits of a body id, as the tables keep them beside it."""
    return int.from_bytes(blake3(id.encode()).digest(length=8), "big", signed=True)


def hash_beside(id: str) -> int:
    """Of a body among others: 32 bits of a keyed id, which is text of hex digits, at a tenth of the cost of `body_hash`."""
    return int.from_bytes(id.encode()[:8], "big", signed=True)
