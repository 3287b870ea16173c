"""The tenant's records as typed values, and changes of them: one commit with its event, then in force."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from noria.contracts.event import Event
from noria.contracts.port import RecordStore, Write
from noria.kit.ids import uuid7

T = TypeVar("T")
EVENT = "event"


class Registry:
    """What `app.keyring` and `app.directory` stand on. `refresh` rebuilds the snapshot that workers get."""

    def __init__(self, records: RecordStore, tenant: str, refresh: Callable[[], Awaitable[None]]) -> None:
        self.records = records
        self.tenant = tenant
        self.refresh = refresh

    async def all(self, kind: str, type: type[T]) -> dict[str, tuple[T, int]]:
        """Every record of a kind by id, in the ids' order, with its version."""
        found: dict[str, tuple[T, int]] = {}
        after = ""
        while page := await self.records.scan(self.tenant, kind, after=after, limit=1000):
            found |= {r.id: (msgspec.msgpack.decode(r.value, type=type), r.version) for r in page}
            after = page[-1].id
        return found

    async def get(self, kind: str, id: str, type: type[T]) -> tuple[T, int] | None:
        """One record with its version, or None."""
        record = await self.records.get(self.tenant, kind, id)
        return (msgspec.msgpack.decode(record.value, type=type), record.version) if record else None

    async def change(self, writes: Sequence[Write], *events: tuple[str, str, str, dict[str, Any]]) -> None:
        """Commit the writes and their events (kind, actor, target, detail) together; in force when this returns.

        Raises `Conflict`, and nothing is written, where somebody else was faster.
        """
        await self.records.commit(self.tenant, [*writes, *(event(self.tenant, *e) for e in events)])
        await self.refresh()


def event(tenant: str, kind: str, actor: str, target: str, detail: dict[str, Any]) -> Write:
    """The write that keeps an event; the audit chain of the governance issue reads these. `detail` holds no secret."""
    made = Event(tenant, uuid7(), time.time_ns(), kind, actor, target, detail)
    return Write(EVENT, made.id, msgspec.msgpack.encode(made), expect=0)


def put(kind: str, id: str, value: Any, *, expect: int | None = None) -> Write:
    """The write of a typed value."""
    return Write(kind, id, msgspec.msgpack.encode(value), expect=expect)
