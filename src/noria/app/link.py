"""A worker's line to the keeper: snapshots, conversations, leases, over the keeper's unix socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from noria.contracts.error import StoreError
from noria.contracts.message import Message
from noria.contracts.release import Snapshot
from noria.kit.http_client import HttpCallError, HttpClient

SOCKET = "keeper.sock"


class Delivery(msgspec.Struct, frozen=True):
    """What the keeper hands to a worker. The key of subjects travels apart: it is never on disk in the clear."""

    snapshot: Snapshot
    subject_key: bytes


class Link:
    """Calls to the keeper. Every failure is a `StoreError`, so that callers can say what its absence means."""

    def __init__(self, home: Path) -> None:
        self.client = HttpClient(
            "http://keeper",
            uds=str(home / "run" / SOCKET),
            connect_timeout=1.0,
            first_timeout=90.0,
            idle_timeout=90.0,
            total_timeout=3600.0,
            max_connections=64,
        )

    async def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        try:
            status, _, answer = await self.client.send(method, path, [("content-type", "application/msgpack")], body)
        except HttpCallError as e:
            raise StoreError(f"The keeper cannot be reached: {e}", code="keeper_away") from e
        if status >= 400:
            raise StoreError(f"The keeper answered {status} to {method} {path.partition('?')[0]}.", code="keeper_error")
        return answer

    async def snapshot(self, after: str, wait: float) -> Delivery | None:
        """The snapshot in force where its hash is not `after`; waits up to `wait` seconds for one."""
        answer = await self._ask("GET", "/internal/snapshot?" + urlencode({"after": after, "wait": wait}))
        return msgspec.msgpack.decode(answer, type=Delivery) if answer else None

    async def load(self, tenant: str, key_id: str, conversation: str) -> tuple[Message, ...]:
        """See `ground.memory.Sessions`."""
        answer = await self._ask("GET", "/internal/conversation?" + _conversation(tenant, key_id, conversation))
        return msgspec.msgpack.decode(answer, type=tuple[Message, ...])

    async def append(self, tenant: str, key_id: str, conversation: str, new: tuple[Message, ...]) -> None:
        """See `ground.memory.Sessions`."""
        path = "/internal/conversation?" + _conversation(tenant, key_id, conversation)
        await self._ask("POST", path, msgspec.msgpack.encode(new))

    async def take(self, tenant: str, key: str, **what: int) -> int:
        """See `gateway.limits.Leases`."""
        answer = await self._ask("POST", "/internal/take", _packed(tenant, key, what))
        granted: int = msgspec.msgpack.decode(answer, type=int)
        return granted

    async def give(self, tenant: str, key: str, amount: int) -> None:
        """See `gateway.limits.Leases`."""
        await self._ask("POST", "/internal/give", _packed(tenant, key, {"amount": amount}))


def _conversation(tenant: str, key: str, conversation: str) -> str:
    return urlencode({"tenant": tenant, "key": key, "conversation": conversation})


def _packed(tenant: str, key: str, what: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode({"tenant": tenant, "key": key, **what})
