"""Dataset rows and versions in the SQL that SQLite and Postgres share (`kit/sql.py` has the tables and how it runs).

Members of a version lie packed, `PACK` to a record of 33 bytes each, in the order of their row ids: a version of 100,000 rows is
25 records, is written within a second and read in pages. Row ids are bytes here, hex digits above.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec

from noria.contracts.dataset import Member, Rejection, StoredRow, Version
from noria.contracts.error import NotFound, StoreError
from noria.kit.sql import Database, Query, Rows, Transaction

T = TypeVar("T")

PACK = 4096
"""Members in one record."""
ASKED = 256
"""Rows that one statement asks for."""
MOST_SPLITS = 255
ROW_ID = 32
"""Bytes."""

ADDED = 128
"""Rows that one statement inserts: over a network, each statement costs a round trip."""

ADD = Query(
    "add rows",
    "INSERT INTO dataset_rows (tenant, id, subject, data) VALUES "  # noqa: S608  marks only
    + ", ".join(["(?, ?, ?, ?)"] * ADDED)
    + " ON CONFLICT (tenant, id) DO NOTHING RETURNING subject",
)
_MARKS = ", ".join("?" * ASKED)
ROWS = Query("rows", f"SELECT id, subject, data FROM dataset_rows WHERE tenant = ? AND id IN ({_MARKS})")  # noqa: S608  marks only
THERE = Query("put version", f"SELECT COUNT(*) FROM dataset_rows WHERE tenant = ? AND id IN ({_MARKS})")  # noqa: S608  as above
# Says by what it returns whether the version is new: the manifest of one that is there stays.
PUT = Query(
    "put version",
    "INSERT INTO dataset_versions (tenant, name, id, latest_ns, manifest) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (tenant, name, id) DO NOTHING RETURNING id",
)
TOUCH = Query("put version", "UPDATE dataset_versions SET latest_ns = ? WHERE tenant = ? AND name = ? AND id = ?")
PUT_MEMBERS = Query(
    "put version",
    "INSERT INTO dataset_members (tenant, version, number, first, last, members) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (tenant, version, number) DO NOTHING",
)
PUT_REJECTIONS = Query(
    "put version",
    "INSERT INTO dataset_rejections (tenant, name, version, first, last, rejections) VALUES (?, ?, ?, ?, ?, ?)",
)
VERSION = Query("version", "SELECT manifest FROM dataset_versions WHERE tenant = ? AND name = ? AND id = ?")
VERSIONS = Query(
    "versions",
    "SELECT manifest FROM dataset_versions WHERE tenant = ? AND (name = ? OR ? = '') AND id >= ? AND id < ?"
    " ORDER BY latest_ns DESC, name, id LIMIT ? OFFSET ?",
)
MEMBERS = Query(
    "members",
    "SELECT number, members FROM dataset_members WHERE tenant = ? AND version = ? AND number > ? AND last > ? ORDER BY number LIMIT 1",
)
REJECTIONS = Query(
    "rejections",
    "SELECT first, rejections FROM dataset_rejections WHERE tenant = ? AND name = ? AND version = ? AND last >= ?"
    " ORDER BY first LIMIT 1",
)
OF_SUBJECT = Query("holding", "SELECT id FROM dataset_rows WHERE tenant = ? AND subject = ? AND id > ? ORDER BY id LIMIT 1000")
MIGHT_HOLD = Query(
    "holding",
    "SELECT version, number FROM dataset_members WHERE tenant = ? AND EXISTS (SELECT 1 FROM dataset_rows WHERE"
    " dataset_rows.tenant = dataset_members.tenant AND subject = ? AND id >= first AND id <= last) ORDER BY version, number",
)
PACKED = Query("holding", "SELECT members FROM dataset_members WHERE tenant = ? AND version = ? AND number = ?")
NAMED = Query("holding", "SELECT latest_ns, manifest FROM dataset_versions WHERE tenant = ? AND id = ?")
ERASE = Query("erase", "UPDATE dataset_rows SET data = ? WHERE tenant = ? AND subject = ? RETURNING id")


class Pack(NamedTuple):
    """Consecutive members: their ids one after the other, and for each the place of its split in `splits`."""

    splits: tuple[str, ...]
    ids: bytes
    places: bytes

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.places)

    def id(self, n: int) -> bytes:
        """The id of the n-th."""
        return self.ids[n * ROW_ID : (n + 1) * ROW_ID]

    def has(self, id: bytes) -> bool:
        """Whether this row is among them: they rise, so by halving."""
        low, high = 0, self.size
        while low < high:
            middle = (low + high) // 2
            if self.id(middle) < id:
                low = middle + 1
            else:
                high = middle
        return low < self.size and self.id(low) == id


def id_bytes(id: str) -> bytes:
    """A row id as bytes. Raises `StoreError` for what is none."""
    try:
        found = bytes.fromhex(id)
    except ValueError:
        found = b""
    if len(found) != ROW_ID or len(id) != 2 * ROW_ID:
        raise StoreError(f"{id[:80]!r} is no row id.", code="row_id", hint="A row id is 64 hex digits.")
    return found


def pack(members: Iterable[Member]) -> Iterator[Pack]:
    """Members, packed. Raises `StoreError` where they do not rise."""
    last = b""
    source = iter(members)
    while part := list(islice(source, PACK)):
        ids = [id_bytes(m.row) for m in part]
        for one in ids:
            if one <= last:
                raise StoreError("The members of a version must rise by row id, each once.", code="members_unsorted")
            last = one
        splits = tuple(sorted({m.split for m in part}))
        if len(splits) > MOST_SPLITS:
            raise StoreError("A version has more than 255 splits.", code="too_many_splits")
        place = {split: n for n, split in enumerate(splits)}
        yield Pack(splits, b"".join(ids), bytes(place[m.split] for m in part))


def _decode(data: bytes) -> Pack:
    return Pack(*msgspec.msgpack.decode(data, type=tuple[tuple[str, ...], bytes, bytes]))


def _padded(items: Sequence[T], to: int = ASKED) -> Sequence[T]:
    """One statement for any number: the last item stands again for those that are missing."""
    return [*items, *[items[-1]] * (to - len(items))]


def add(tenant: str, rows: Sequence[tuple[bytes, str, bytes]]) -> Transaction[int]:
    """Insert rows; how many were new."""
    new = 0
    for start in range(0, len(rows), ADDED):
        part = _padded(rows[start : start + ADDED], ADDED)  # repeated rows are passed over, as those that are there
        new += len((yield ADD, tuple(value for row in part for value in (tenant, *row))))
    return new


def put(
    tenant: str, version: Version, packs: Sequence[Pack], rejections: Sequence[tuple[int, int, bytes]], now_ns: int
) -> Transaction[bool]:
    """Insert a version with all that belongs to it; whether it was new."""
    key = (tenant, version.name, version.id)
    if not (yield PUT, (*key, now_ns, msgspec.msgpack.encode(version))):
        yield TOUCH, (now_ns, *key)
        return False
    missing = 0
    for number, p in enumerate(packs):
        for start in range(0, p.size, ASKED):
            ids = [p.id(n) for n in range(start, min(start + ASKED, p.size))]
            missing += len(ids) - (yield THERE, (tenant, *_padded(ids)))[0][0]
        yield PUT_MEMBERS, (tenant, version.id, number, p.id(0), p.id(p.size - 1), msgspec.msgpack.encode(tuple(p)))
    if missing:
        raise NotFound(f"{missing} rows of this version are not stored.", code="rows_missing", hint="Add the rows first.")
    for first, last, data in rejections:
        yield PUT_REJECTIONS, (*key, first, last, data)
    return True


class SqlDatasets:
    """`DatasetStore` over a `Database`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, tenant: str, rows: Sequence[StoredRow]) -> int:
        """As `DatasetStore.add`."""
        plain = [(id_bytes(r.id), r.subject, r.data) for r in rows]
        return await self._db.transact("add rows", lambda: add(tenant, plain)) if plain else 0

    async def rows(self, tenant: str, ids: Sequence[str]) -> list[StoredRow]:
        """As `DatasetStore.rows`."""
        wanted = [id_bytes(i) for i in ids]
        found: dict[bytes, tuple[str, bytes]] = {}
        for start in range(0, len(wanted), ASKED):
            for name, subject, data in await self._db.query(ROWS, tenant, *_padded(wanted[start : start + ASKED])):
                found[bytes(name)] = (subject, bytes(data))
        return [StoredRow(i.hex(), *found[i]) for i in dict.fromkeys(wanted) if i in found]

    async def put(
        self, tenant: str, version: Version, members: Iterable[Member], rejections: Iterable[Rejection], *, now_ns: int
    ) -> bool:
        """As `DatasetStore.put`: packed first, so that what is wrong with the members is known before the transaction."""
        packs = list(pack(members))
        why = list(_pack_rejections(rejections))
        return await self._db.transact("put version", lambda: put(tenant, version, packs, why, now_ns))

    async def version(self, tenant: str, name: str, id: str) -> Version | None:
        """As `DatasetStore.version`."""
        return next(iter(_manifests(await self._db.query(VERSION, tenant, name, id))), None)

    async def versions(
        self, tenant: str, *, name: str = "", prefix: str = "", limit: int = 1000, offset: int = 0
    ) -> list[Version]:
        """As `DatasetStore.versions`."""
        between = (prefix, f"{prefix}\U0010ffff")
        return _manifests(await self._db.query(VERSIONS, tenant, name, name, *between, max(0, limit), max(0, offset)))

    async def members(self, tenant: str, version: str, *, after: str = "", split: str = "", limit: int = 1000) -> list[Member]:
        """As `DatasetStore.members`."""
        found: list[Member] = []
        past, number = id_bytes(after) if after else b"", -1
        while len(found) < limit:
            rows = await self._db.query(MEMBERS, tenant, version, number, past)
            if not rows:
                break
            number, p = rows[0][0], _decode(rows[0][1])
            wanted = (n for n in range(p.size) if p.id(n) > past and split in ("", p.splits[p.places[n]]))
            found += [Member(p.id(n).hex(), p.splits[p.places[n]]) for n in wanted]
        return found[: max(0, limit)]

    async def rejections(self, tenant: str, name: str, version: str, *, offset: int = 0, limit: int = 1000) -> list[Rejection]:
        """As `DatasetStore.rejections`."""
        found: list[Rejection] = []
        at = offset
        while len(found) < limit:
            rows = await self._db.query(REJECTIONS, tenant, name, version, at)
            if not rows:
                break
            part = msgspec.msgpack.decode(rows[0][1], type=list[Rejection])[at - rows[0][0] :]
            found += part
            at += len(part)
        return found[: max(0, limit)]

    async def holding(self, tenant: str, subject: str) -> list[Version]:
        """As `DatasetStore.holding`: only packs whose range an id of the subject falls into are looked at."""
        if not subject or not (mine := await self._of_subject(tenant, subject)):
            return []
        holds: set[str] = set()
        for version, number in await self._db.query(MIGHT_HOLD, tenant, subject):
            if version not in holds:
                p = _decode((await self._db.query(PACKED, tenant, version, number))[0][0])
                if any(map(p.has, mine)):
                    holds.add(version)
        named = [row for version in holds for row in await self._db.query(NAMED, tenant, version)]
        return _manifests([(manifest,) for _, manifest in sorted(named, key=lambda row: -row[0])])

    async def _of_subject(self, tenant: str, subject: str) -> list[bytes]:
        mine: list[bytes] = []
        while page := await self._db.query(OF_SUBJECT, tenant, subject, mine[-1] if mine else b""):
            mine += [bytes(found) for (found,) in page]
        return mine

    async def erase(self, tenant: str, subject: str) -> int:
        """As `DatasetStore.erase`."""
        return len(await self._db.query(ERASE, b"", tenant, subject)) if subject else 0

    async def close(self) -> None:
        """Let go of connections. Idempotent."""
        await self._db.close()


def _pack_rejections(rejections: Iterable[Rejection]) -> Iterator[tuple[int, int, bytes]]:
    source, first = iter(rejections), 0
    while part := list(islice(source, PACK)):
        yield first, first + len(part) - 1, msgspec.msgpack.encode(part)
        first += len(part)


def _manifests(rows: Rows) -> list[Version]:
    return [msgspec.msgpack.decode(row[0], type=Version) for row in rows]
