"""A worker's line to the keeper: snapshots, conversations, leases, over the keeper's unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from noria.contracts.error import StoreError
from noria.contracts.message import Message
from noria.contracts.release import Snapshot
from noria.kit.http_client import HttpCallError, HttpClient

SOCKET = "keeper.sock"
BEAT_WITHIN = 3.0
"""Seconds after which a keeper that does not answer a heartbeat counts as away: it may be stopped, or stuck."""
LEASE_WITHIN = 1.0
CONVERSATION_WITHIN = 10.0


class Delivery(msgspec.Struct, frozen=True):
    """What the keeper hands to a worker. The key of subjects travels apart: it is never on disk in the clear."""

    snapshot: Snapshot
    subject_key: bytes


class Heartbeat(msgspec.Struct, frozen=True):
    """What a worker tells the keeper of itself each second."""

    worker: str
    pid: int
    spool_dropped: int = 0
    spool_pending: int = 0
    spool_alarm: str | None = None


class Link:
    """Calls to the keeper. Every failure is a `StoreError`, so that callers can say what its absence means.

    `lost` is set while the last heartbeat failed: calls that somebody waits for then fail at once.
    """

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
        self.lost = asyncio.Event()

    async def beat(self, heartbeat: Heartbeat) -> None:
        """Tell the keeper that this worker lives, and learn whether the keeper does (`lost`)."""
        try:
            await self._ask("POST", "/internal/heartbeat", msgspec.msgpack.encode(heartbeat), within=BEAT_WITHIN)
        except StoreError:
            self.lost.set()
            raise
        self.lost.clear()

    async def _prompt(self, method: str, path: str, body: bytes = b"", *, within: float) -> bytes:
        """A call that a request waits for: not made at all while the keeper is away."""
        if self.lost.is_set():
            raise StoreError("The keeper is away.", code="keeper_away")
        return await self._ask(method, path, body, within=within)

    async def _ask(self, method: str, path: str, body: bytes = b"", *, within: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(within):
                status, _, answer = await self.client.send(method, path, [("content-type", "application/msgpack")], body)
        except HttpCallError as e:
            raise StoreError(f"The keeper cannot be reached: {e}", code="keeper_away") from e
        except TimeoutError as e:
            raise StoreError(f"The keeper did not answer within {within:g} s.", code="keeper_away") from e
        if status >= 400:
            raise StoreError(f"The keeper answered {status} to {method} {path.partition('?')[0]}.", code="keeper_error")
        return answer

    async def snapshot(self, after: str, wait: float) -> Delivery | None:
        """The snapshot in force where its hash is not `after`; waits up to `wait` seconds for one."""
        answer = await self._ask("GET", "/internal/snapshot?" + urlencode({"after": after, "wait": wait}))
        return msgspec.msgpack.decode(answer, type=Delivery) if answer else None

    async def load(self, tenant: str, key_id: str, conversation: str) -> tuple[Message, ...]:
        """See `ground.memory.Sessions`."""
        path = "/internal/conversation?" + _conversation(tenant, key_id, conversation)
        answer = await self._prompt("GET", path, within=CONVERSATION_WITHIN)
        return msgspec.msgpack.decode(answer, type=tuple[Message, ...])

    async def append(self, tenant: str, key_id: str, conversation: str, new: tuple[Message, ...]) -> None:
        """See `ground.memory.Sessions`."""
        path = "/internal/conversation?" + _conversation(tenant, key_id, conversation)
        await self._prompt("POST", path, msgspec.msgpack.encode(new), within=CONVERSATION_WITHIN)

    async def take(self, tenant: str, key: str, **what: int) -> int:
        """See `gateway.limits.Leases`."""
        answer = await self._prompt("POST", "/internal/take", _packed(tenant, key, what), within=LEASE_WITHIN)
        granted: int = msgspec.msgpack.decode(answer, type=int)
        return granted

    async def give(self, tenant: str, key: str, amount: int) -> None:
        """See `gateway.limits.Leases`."""
        await self._prompt("POST", "/internal/give", _packed(tenant, key, {"amount": amount}), within=LEASE_WITHIN)


def _conversation(tenant: str, key: str, conversation: str) -> str:
    return urlencode({"tenant": tenant, "key": key, "conversation": conversation})


def _packed(tenant: str, key: str, what: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode({"tenant": tenant, "key": key, **what})
