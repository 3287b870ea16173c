"""A worker's line to the keeper: snapshots, conversations, leases, over the keeper's unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import msgspec

from noria.contracts.error import StoreError
from noria.contracts.message import Message
from noria.contracts.release import Snapshot
from noria.gateway.health import Standing
from noria.gateway.lease import Grant, Holding, Want
from noria.gateway.probed import Probed
from noria.ground.responses import Kept
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.ids import uuid7

SOCKET = "keeper.sock"
OPERATION = "operation.json"
"""In `run/`: how the latest reload or upgrade stands."""
APPLIED = "applied"
"""In `run/`: there once the service has applied its configuration at its start."""
DRAINING = "draining.json"
"""In `run/`: there while an operator has asked the service to drain (`/drainz`)."""
BEAT_WITHIN = 3.0
"""Seconds after which a keeper that does not answer a heartbeat counts as away: it may be stopped, or stuck."""
LEASE_WITHIN = 1.0
CONVERSATION_WITHIN = 10.0
RESTART_WITHIN = 5.0
"""Seconds for which calls that may be repeated wait for a keeper that is being started again."""


class Delivery(msgspec.Struct, frozen=True):
    """What the keeper hands to a worker. The key of subjects travels apart: it is never on disk in the clear."""

    snapshot: Snapshot
    subject_key: bytes
    cache: str = ""
    """URL of what workers share; may hold a password."""


class Heartbeat(msgspec.Struct, frozen=True):
    """What a worker tells the keeper of itself each second."""

    worker: str
    pid: int
    spool_dropped: int = 0
    spool_pending: int = 0
    spool_alarm: str | None = None
    config: str = ""
    """Hash of the configuration in force."""
    trouble: str = ""
    """Why a newer one is not."""
    in_flight: int = 0
    draining: bool = False
    leaving: bool = False
    """Good-bye: the worker ends now."""
    lines: tuple[str, ...] = ()
    """Lines of batches in work: `batch_…/7`."""
    endpoints: tuple[Standing, ...] = ()
    """How the models' endpoints stand, as this worker has it from their answers."""


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
        self._lost_at = 0.0
        self.holder = ""
        """See `gateway.lease.Leases`."""

    async def beat(self, heartbeat: Heartbeat) -> tuple[Probed, ...]:
        """Tell the keeper that this worker lives; learn whether the keeper does (`lost`), and which endpoints probes hold out."""
        try:
            told = await self._ask("POST", "/internal/heartbeat", msgspec.msgpack.encode(heartbeat), within=BEAT_WITHIN)
        except StoreError:
            if not self.lost.is_set():
                self._lost_at = monotonic()
            self.lost.set()
            raise
        self.lost.clear()
        return msgspec.msgpack.decode(told, type=tuple[Probed, ...]) if told else ()

    async def _prompt(self, method: str, path: str, body: bytes = b"", *, within: float) -> bytes:
        """A call that a request waits for: not made at all while the keeper is away."""
        if self.lost.is_set():
            raise StoreError("The keeper is away.", code="keeper_away")
        return await self._ask(method, path, body, within=within)

    async def _patient(self, method: str, path: str, body: bytes = b"") -> bytes:
        """As `_prompt`, for calls that do no harm when made twice: a keeper that is just being started again is waited for."""
        first = monotonic()
        while True:
            began = self._lost_at if self.lost.is_set() else first
            try:
                if self.lost.is_set() and monotonic() - began >= RESTART_WITHIN:
                    raise StoreError("The keeper is away.", code="keeper_away")
                return await self._ask(method, path, body, within=CONVERSATION_WITHIN)
            except StoreError as e:
                if e.code != "keeper_away" or monotonic() - min(began, first) >= RESTART_WITHIN:
                    raise
            await asyncio.sleep(0.1)

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

    async def snapshot(self, after: str, wait: float, worker: str) -> Delivery | None:
        """The snapshot in force where its hash is not `after`, which this `worker` serves; waits up to `wait` seconds for one."""
        answer = await self._ask("GET", "/internal/snapshot?" + urlencode({"after": after, "wait": wait, "worker": worker}))
        return msgspec.msgpack.decode(answer, type=Delivery) if answer else None

    async def load(self, tenant: str, key_id: str, conversation: str) -> tuple[Message, ...]:
        """See `ground.memory.Sessions`."""
        path = "/internal/conversation?" + _conversation(tenant, key_id, conversation)
        answer = await self._patient("GET", path)
        return msgspec.msgpack.decode(answer, type=tuple[Message, ...])

    async def append(self, tenant: str, key_id: str, conversation: str, new: tuple[Message, ...]) -> None:
        """See `ground.memory.Sessions`."""
        path = "/internal/conversation?" + _conversation(tenant, key_id, conversation) + "&once=" + uuid7()
        await self._patient("POST", path, msgspec.msgpack.encode(new))

    async def recall(self, tenant: str, key_id: str, ids: tuple[str, ...], *, chain: bool = False) -> tuple[Kept, ...]:
        """See `ground.responses.ResponseStore`."""
        answer = await self._responses("recall", (tenant, key_id, ids, chain))
        return msgspec.msgpack.decode(answer, type=tuple[Kept, ...])

    async def retain(self, tenant: str, kept: Kept) -> bool:
        """See `ground.responses.ResponseStore`."""
        return msgspec.msgpack.decode(await self._responses("retain", (tenant, kept)), type=bool)

    async def forget(self, tenant: str, key_id: str, id: str) -> bool:
        """Delete a stored Response; whether this key had it."""
        return msgspec.msgpack.decode(await self._responses("forget", (tenant, key_id, id)), type=bool)

    async def cache_key(self, tenant: str, subject: str) -> bytes:
        """What seals cached answers of a subject, or of the tenant where that is empty."""
        path = "/internal/cache-key?" + urlencode({"tenant": tenant, "subject": subject})
        return msgspec.msgpack.decode(await self._prompt("GET", path, within=LEASE_WITHIN), type=bytes)

    async def _responses(self, what: str, given: tuple[Any, ...]) -> bytes:
        body, path = msgspec.msgpack.encode(given), f"/internal/responses/{what}"
        if what == "forget":  # the second time it would say that there was nothing
            return await self._prompt("POST", path, body, within=CONVERSATION_WITHIN)
        return await self._patient("POST", path, body)

    async def take(self, want: Want) -> Grant:
        """See `gateway.lease.Leases`."""
        answer = await self._prompt("POST", "/internal/take", msgspec.msgpack.encode(want), within=LEASE_WITHIN)
        return msgspec.msgpack.decode(answer, type=Grant)

    async def hold(self, tenant: str, holdings: list[Holding], *, full: bool) -> bool:
        """See `gateway.lease.Leases`."""
        body = msgspec.msgpack.encode((tenant, self.holder, holdings, full))
        return msgspec.msgpack.decode(await self._prompt("POST", "/internal/hold", body, within=LEASE_WITHIN), type=bool)


def _conversation(tenant: str, key: str, conversation: str) -> str:
    return urlencode({"tenant": tenant, "key": key, "conversation": conversation})


def _packed(tenant: str, key: str, what: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode({"tenant": tenant, "key": key, **what})
