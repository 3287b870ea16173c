"""Datasets in the keeper: it holds the keys, so it names, seals and opens rows, and it stores versions. It decides nothing: what
belongs to a version is worked out by whoever asks (`app.dataset_steps`; ADR 23).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from noria.contracts.dataset import Member, Rejection, Row, StoredRow, Version
from noria.contracts.error import NotFound, RequestError, StoreError
from noria.contracts.port import DatasetStore
from noria.data.row import Erased, Sealer, version_id

KeySource = Callable[[str, str], Awaitable[bytes]]
"""(tenant, subject) → the key of its bodies and rows; subject "" = the tenant's own."""

State = Literal["ok", "erased", "damaged", "missing"]

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
SPLIT = re.compile(r"[^/\s\x00-\x1f][^/\x00-\x1f]{0,127}")
ROW_ID = re.compile(r"[0-9a-f]{64}")
SUBJECT = re.compile(r"[0-9A-Za-z._:-]{0,128}")
VERSION = re.compile(r"(d1:)?[0-9a-f]{0,64}")
MOST_NOTE = 2000
"""Characters."""


class Shown(msgspec.Struct, frozen=True):
    """A row of a version as it is given out; `row` is there where `state` is ok, and content was asked for."""

    id: str
    split: str
    state: State
    row: Row | None = None
    detail: str = ""


class Draft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is said of a version by who makes it."""

    recipe: dict[str, Any] = {}
    parents: tuple[str, ...] = ()
    note: str = ""


class Datasets:
    """Rows and versions of a tenant in the clear, over a store that only ever sees them sealed."""

    def __init__(self, store: DatasetStore, key: KeySource) -> None:
        self.store = store
        self._key = key

    async def add(self, tenant: str, rows: Sequence[Row]) -> tuple[list[str], int]:
        """Store rows; their ids in the order given, and how many were new."""
        for odd in (r.subject for r in rows if SUBJECT.fullmatch(r.subject) is None):
            hint = "`POST /api/rows/subjects` gives the keyed hash of a user."
            raise RequestError(f"{odd[:80]!r} is no subject.", code="invalid_subject", param="subject", hint=hint)
        sealers = await self._sealers(tenant, {r.subject for r in rows})
        sealed = await asyncio.to_thread(lambda: [sealers[r.subject].seal(tenant, r) for r in rows])
        new = await self.store.add(tenant, sealed)
        return [s.id for s in sealed], new

    async def read(self, tenant: str, ids: Sequence[str], *, content: bool = True) -> list[Shown]:
        """These rows, each once, opened; where they are not in a version, their split is empty."""
        stored = {s.id: s for s in await self.store.rows(tenant, ids)}
        sealers = await self._sealers(tenant, {s.subject for s in stored.values()})

        def opened() -> list[Shown]:
            return [_shown(tenant, i, stored.get(i), sealers, content=content) for i in dict.fromkeys(ids)]

        return await asyncio.to_thread(opened)

    async def page(
        self, tenant: str, version: str, *, after: str, limit: int, split: str = "", content: bool = True
    ) -> list[Shown]:
        """Rows of a version by row id. Each is opened, and its id computed anew, whether or not its content is asked for."""
        members = await self.store.members(tenant, version, after=after, split=split, limit=limit)
        rows = await self.read(tenant, [m.row for m in members], content=content)
        return [msgspec.structs.replace(r, split=m.split) for r, m in zip(rows, members, strict=True)]

    async def put(
        self, tenant: str, name: str, members: Sequence[Member], rejections: Sequence[Rejection], draft: Draft
    ) -> tuple[Version, bool]:
        """Store a version of these members, which rise by row id; with whether it is new. Raises `RequestError`, `NotFound`."""
        _check(name, members, draft)
        splits: dict[str, int] = {}
        for m in members:
            splits[m.split] = splits.get(m.split, 0) + 1
        root = await asyncio.to_thread(version_id, members)
        now = time.time_ns()
        version = Version(
            root, name, now, dict(sorted(splits.items())), len(rejections), draft.parents, draft.recipe, draft.note
        )  # fmt: skip
        if not await self.store.put(tenant, version, members, rejections, now_ns=now):
            return await self.store.version(tenant, name, root) or version, False
        return version, True

    async def find(self, tenant: str, name: str, id: str = "") -> Version:
        """A version by its id, by the beginning of it, or, without one, the latest of a dataset. Raises `NotFound`."""
        if VERSION.fullmatch(id) is None or (name and NAME.fullmatch(name) is None):
            raise NotFound(
                f"There is no {f'version {id[:80]!r}' if id else f'dataset {name[:80]!r}'}.", code="dataset_not_found"
            )
        if not id:
            found = await self.store.versions(tenant, name=name, limit=1)
        else:
            whole = await self.store.version(tenant, name, id) if name else None
            prefix = id if id.startswith("d1:") else f"d1:{id}"
            found = [whole] if whole else await self.store.versions(tenant, name=name, prefix=prefix, limit=2)
        if len({v.id for v in found}) == 1:
            return found[0]
        if found:
            raise RequestError(f"Several versions begin with {id!r}.", code="ambiguous", hint="Give more digits.")
        if id:
            raise NotFound(f"There is no version {id!r}{f' of {name!r}' if name else ''}.", code="version_not_found")
        raise NotFound.nearest("dataset", name, await self.names(tenant), code="dataset_not_found")

    async def latest(self, tenant: str) -> list[Version]:
        """The latest version of each dataset, by name."""
        found: dict[str, Version] = {}
        offset = 0
        while page := await self.store.versions(tenant, offset=offset):
            for v in page:
                found.setdefault(v.name, v)
            offset += len(page)
        return [found[name] for name in sorted(found)]

    async def names(self, tenant: str) -> list[str]:
        """Every dataset."""
        return [v.name for v in await self.latest(tenant)]

    async def close(self) -> None:
        """Release the store."""
        await self.store.close()

    async def _sealers(self, tenant: str, subjects: Iterable[str]) -> dict[str, Sealer]:
        return {s: Sealer(await self._key(tenant, s)) for s in subjects}


def _shown(tenant: str, id: str, stored: StoredRow | None, sealers: dict[str, Sealer], *, content: bool) -> Shown:
    if stored is None:
        return Shown(id, "", "missing", detail="The row is not stored.")
    if not stored.data:
        return Shown(id, "", "erased")
    try:
        row = sealers[stored.subject].open(tenant, stored)
    except Erased:
        return Shown(id, "", "erased")
    except StoreError as e:
        return Shown(id, "", "damaged", detail=e.message)
    return Shown(id, "", "ok", row if content else None)


def _check(name: str, members: Sequence[Member], draft: Draft) -> None:
    if NAME.fullmatch(name) is None:
        what = f"{name[:80]!r} cannot be a dataset's name."
        raise RequestError(what, code="invalid_name", hint="Use a-z, 0-9, _, - and ., at most 64.")
    if not members:
        raise RequestError("A version has at least one row.", code="no_rows")
    if wrong := next((m.row for m in members if ROW_ID.fullmatch(m.row) is None), None):
        raise RequestError(f"{wrong[:80]!r} is no row id.", code="invalid_row_id", hint="A row id is 64 hex digits.")
    for split in {m.split for m in members}:
        if SPLIT.fullmatch(split) is None:
            raise RequestError(f"{split[:80]!r} cannot be a split's name.", code="invalid_split")
    if len(draft.note) > MOST_NOTE:
        raise RequestError(f"A note has at most {MOST_NOTE} characters.", code="note_too_long", param="note")
