"""How a child process tells where it listens: one small file, replaced whole, read cheaply.

The child calls `publish` as it goes from `loading` to `ready` or `failed`; readers keep a `Watch`, which
looks at the file at most every 100 ms and parses it only when it has changed.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any, Literal

import msgspec

from noria.kit.atomic import alive, write_whole

State = Literal["loading", "ready", "failed"]
GLANCE = 0.1
"""Seconds for which a `Watch` trusts what it saw last."""


class Service(msgspec.Struct, frozen=True, omit_defaults=True):
    """One child as it describes itself. It listens on `uds` or on 127.0.0.1:`port` and asks for `secret`."""

    name: str
    state: State
    pid: int
    since_ns: int
    """When this state began, wall clock."""
    uds: str = ""
    port: int = 0
    secret: str = msgspec.field(default="", name="api_key")
    detail: str = ""
    """Why it failed, in words that may be shown."""
    facts: dict[str, Any] = {}
    """What else its readers should know."""


def publish(path: Path, service: Service) -> None:
    """Write the file, readable by this user only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, msgspec.json.encode(service), mode=0o600, durable=False)


class Watch:
    """The latest `Service` of one file. `read` costs one clock reading between glances."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: Service | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._next = 0.0

    def read(self) -> Service | None:
        """What the file says; None where there is none, it cannot be read, or its process is gone."""
        now = monotonic()
        if now >= self._next:
            self._next = now + GLANCE
            self._glance()
        return self._seen

    def forget(self) -> None:
        """Look again at the next `read`: something has shown that the last view is stale."""
        self._next = 0.0

    def _glance(self) -> None:
        try:
            stat = self.path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if stamp != self._stamp:
                self._seen = msgspec.json.decode(self.path.read_bytes(), type=Service)
                self._stamp = stamp
        except (OSError, msgspec.MsgspecError):
            self._seen = self._stamp = None
            return
        if self._seen is not None and self._seen.state != "failed" and not alive(self._seen.pid):
            # killed before it could say so; the stamp goes too, so that the file is parsed again if it comes back
            self._seen = self._stamp = None
