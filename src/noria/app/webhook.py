"""Tell somebody's URL of an event: three tries in the background, none of which anything waits for."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit

import msgspec

from noria.contracts.error import NoriaError
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.ids import uuid7
from noria.settings import resolve_secret

log = logging.getLogger("noria.webhook")

PAUSES = (1.0, 5.0, 0.0)
"""Seconds after each try that failed."""
WITHIN = 10.0


class Webhook:
    """`url` is the address, or a reference to it (`env:NAME`); empty = nobody is told. `source` says which Noria tells it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.source = ""
        self.sent = 0
        self.failed = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, kind: str, detail: dict[str, Any]) -> None:
        """POST `{"id", "kind", "detail"}` as JSON, with the `source` where there is one."""
        if self.url:
            told = {"id": uuid7(), "kind": kind, "detail": detail} | ({"source": self.source} if self.source else {})
            task = asyncio.ensure_future(self._send(msgspec.json.encode(told)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what has not been told."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, body: bytes) -> None:
        why = ""
        for pause in PAUSES:
            try:
                status = await self._try(body)
            except (HttpCallError, NoriaError, TimeoutError) as e:
                why = str(e)
            except ValueError:
                why = "its address is not a URL such as https://host/path, without a user and a password"  # and may be a secret
            else:
                if 200 <= status < 300:
                    self.sent += 1
                    return
                why = f"it answered {status}"
            await asyncio.sleep(pause)
        self.failed += 1
        log.error("the webhook was not told: %s", why)

    async def _try(self, body: bytes) -> int:
        url = resolve_secret(self.url) if self.url.startswith(("env:", "file:")) else self.url
        parts = urlsplit(url)
        client = HttpClient(
            f"{parts.scheme}://{parts.netloc}", connect_timeout=WITHIN, first_timeout=WITHIN, total_timeout=WITHIN
        )
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            status, _, _ = await client.send("POST", path, [("content-type", "application/json")], body)
            return status
        finally:
            await client.close()
