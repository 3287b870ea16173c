"""How the keeper has a line of a batch answered: through a worker, by ticket, at most once.

A worker that has begun a line finishes it, even where the keeper dies meanwhile, and writes the answer into its journal
before it gives it. So whoever resumes a batch knows: a line in a journal is answered; one that a worker names in its
heartbeat is on its way; any other was never begun, or died with its worker.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from noria.app.link import Heartbeat
from noria.contracts.batch import Batch, Line, LineResult, Ticket, TicketMode
from noria.contracts.error import Unavailable
from noria.gateway.batch import Reply
from noria.gateway.ticket import HEADER, sign
from noria.kit import journal
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.ids import uuid7

FOLDER = "batches"
"""Under NORIA_HOME: the journals, one folder a batch."""
TICKET_NS = 900 * 1_000_000_000
HEARD_WITHIN = 10.0
"""Seconds in which every worker has been heard of after a start of the keeper."""
LOOK = 0.2
LONGEST = 3600.0
"""Seconds that one line may take in all."""

Heard = Callable[[], list[tuple[Heartbeat, float]]]
"""The workers' last heartbeats, each with the monotonic time when it came."""


class Calls:
    """Sends lines to the gateway of this node."""

    def __init__(self, home: Path, secret: Callable[[], Awaitable[bytes]], heard: Heard) -> None:
        self._home = home
        self._secret = secret
        self._heard = heard
        self._client: HttpClient | None = None
        self._url = ""

    @property
    def ready(self) -> bool:
        """Whether there is a gateway to send to."""
        return self._address() is not None

    def callers(self) -> int:
        """Requests of callers that the workers serve now, lines of batches apart."""
        return sum(max(0, beat.in_flight - len(beat.lines)) for beat, _ in self._heard())

    async def ask(self, batch: Batch, line: Line, *, mode: TicketMode = "run", body: bytes | None = None) -> Reply:
        """The answer to one line. A connection that breaks is followed up: the line may have been answered all the same."""
        ticket = Ticket(batch.key, batch.id, line.number, uuid7(), time.time_ns() + TICKET_NS, mode)
        headers = [("content-type", "application/json"), (HEADER, sign(ticket, await self._secret()))]
        try:
            client = self._connected()
            status, got, answer = await client.send("POST", batch.endpoint, headers, bytes(line.body) if body is None else body)
        except (HttpCallError, Unavailable):
            found = (await self.settled(batch.id, [line.number])).get(line.number) if mode == "run" else None
            return Reply(found or LineResult(line.number, 503))
        named = dict(got)
        final = named.get("x-should-retry") == "false" and b'"type":"upstream_error"' not in answer  # a batch has time
        result = LineResult(line.number, status, named.get("x-request-id", ticket.exchange), answer)
        return Reply(result, _seconds(named), final)

    async def settled(self, batch: str, lines: Sequence[int]) -> dict[int, LineResult]:
        """Those of `lines` that were answered, as soon as no worker works on any of them."""
        names = {f"{batch}/{n}" for n in lines}
        since = time.monotonic()
        limit = since + LONGEST
        while time.monotonic() < limit:
            fresh = [beat for beat, at in self._heard() if at > since]
            everybody = len(fresh) >= self._workers() or time.monotonic() - since > HEARD_WITHIN
            if everybody and not any(names.intersection(beat.lines) for beat in fresh):
                break
            await asyncio.sleep(LOOK)
        wanted = set(lines)
        return {n: r for n, r in (await self.journaled(batch)).items() if n in wanted}

    async def journaled(self, batch: str) -> dict[int, LineResult]:
        """What the workers of this node have answered of a batch."""
        return await asyncio.to_thread(lambda: {r.line: r for r in journal.read(self._home / FOLDER, batch, LineResult)})

    async def forget(self, batch: str) -> None:
        """Remove the journals of a batch."""
        await asyncio.to_thread(journal.forget, self._home / FOLDER, batch)

    async def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            await self._client.close()

    def _connected(self) -> HttpClient:
        address = self._address()
        if address is None:
            raise Unavailable("The gateway is not running.", code="gateway_away")
        host, port, _ = address
        url = f"http://{host}:{port}"
        if self._client is None or url != self._url:
            self._url = url
            self._client = HttpClient(
                url, connect_timeout=5.0, first_timeout=LONGEST, idle_timeout=600.0, total_timeout=LONGEST, max_connections=1024
            )
        return self._client

    def _workers(self) -> int:
        address = self._address()
        return address[2] if address else 1

    def _address(self) -> tuple[str, int, int] | None:
        try:
            told = msgspec.json.decode((self._home / "run" / "address.json").read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(told["host"], told["host"])  # noqa: S104  compared, not bound
        return host, told["port"], told["workers"]


def _seconds(headers: dict[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            wait = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(wait) and wait >= 0:
            return wait
    return None
