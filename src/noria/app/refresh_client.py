"""How the process of a refresh reaches the service: the keeper's socket, tried again while the keeper is being replaced.

Whatever it calls may have been carried out when the answer was lost, so that it calls nothing which may not be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from noria.app.supervisor import ask
from noria.contracts.error import Conflict, NoriaError, Unavailable
from noria.contracts.refresh import Refresh, Told
from noria.dialects.openai_error import error_said
from noria.kit.http_client import HttpCallError

PATIENCE_S = 120.0
"""How long a keeper that does not answer is waited for."""
MISTAKES = 3
"""How often a call is repeated that a store of the keeper failed."""


class Refused(NoriaError):
    """What the service answered, in its own words."""


class Client:
    """One turn's line to its keeper."""

    def __init__(self, home: Path, id: str, attempt: int) -> None:
        self.id = id
        self.attempt = attempt
        self._home = home
        self._loop = asyncio.get_running_loop()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded answer. Raises `Refused` with the service's own words, `Conflict` (409), `Unavailable`."""
        data = b"" if body is None else msgspec.json.encode(body)
        answer = await self.send(method, path, data)
        return msgspec.json.decode(answer) if answer else None

    async def send(self, method: str, path: str, body: bytes = b"") -> bytes:
        """As `call`, without looking into the bodies."""
        end = self._loop.time() + PATIENCE_S
        pause, mistakes = 0.05, 0
        while True:
            try:
                status, _, answer = await ask(self._home, method, path, body)
            except HttpCallError as e:
                status, answer = (
                    503,
                    msgspec.json.encode({"error": {"message": f"The keeper does not answer: {e}", "code": ""}}),
                )
            if status < 400:
                return answer
            mistakes += status >= 500 and status != 503  # a store that is busy, say
            if status < 500 or mistakes > MISTAKES or self._loop.time() > end:
                raise refusal(status, answer)
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 1.5)

    def ask(self, method: str, path: str, body: bytes) -> bytes:
        """For `DatasetClient`, from a thread of its own: as `send`."""
        return asyncio.run_coroutine_threadsafe(self.send(method, path, body), self._loop).result()

    async def read(self) -> Refresh:
        """The turn as it is kept."""
        return msgspec.json.decode(await self.send("GET", f"/internal/refreshes/{self.id}"), type=Refresh)

    async def tell(self, told: Told) -> None:
        """Say a word of it. Raises `Conflict` where another process has taken the turn up, or it is over."""
        await self.send("POST", f"/internal/refreshes/{self.id}", msgspec.json.encode(told))

    async def progress(self, **facts: Any) -> None:
        """How far it is; of no consequence where it is lost. Raises `Conflict` where another process has taken the turn up."""
        path = f"/internal/refreshes/{self.id}/progress?{urlencode({'attempt': self.attempt})}"
        with contextlib.suppress(HttpCallError):
            status, _, answer = await ask(self._home, "POST", path, msgspec.json.encode(facts))
            if status == 409:
                raise refusal(status, answer)


def refusal(status: int, answer: bytes) -> NoriaError:
    """An answer of 4xx or 5xx as an error."""
    error = error_said(answer) or {}
    message, code = answer[:500].decode(errors="replace"), ""
    if "message" in error:
        message, code = str(error["message"]), str(error.get("code") or "")
    if status == 503:
        return Unavailable(message, code=code or "unavailable")
    if status == 409:
        return Conflict(message, code=code)
    return Refused(message, code=code)
