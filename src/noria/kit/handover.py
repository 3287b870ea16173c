"""Open connections from one process to its successor, over a unix socket (SCM_RIGHTS, unix(7)).

A server that restarts cannot close an idle keep-alive connection without a race: the client may be sending its next
request already. A descriptor that is passed on instead takes everything with it that the kernel has received.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

AT_ONCE = 64
"""Descriptors taken in one turn of the event loop."""


class Giver:
    """Calls it to pass a descriptor to whoever listens at `path` now. Never blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self.given = 0

    def __call__(self, descriptor: int) -> bool:
        """Whether the descriptor was taken; it stays open here."""
        try:
            if self._socket is None:
                self._socket = _socket()
                self._socket.connect(str(self._path))
            socket.send_fds(self._socket, [b"\0"], [descriptor])
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        self.given += 1
        return True

    def close(self) -> None:
        """What was given is the taker's."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Taker:
    """Listens at `path` and calls `take` with every connection that a predecessor passes on."""

    def __init__(self, path: Path, take: Callable[[socket.socket], None]) -> None:
        self._path = path
        self._take = take
        self._listener = _socket()
        self._givers: set[socket.socket] = set()
        self._inode = 0
        self.taken = 0

    def start(self) -> None:
        """Replace whoever listened there before: the newest process is the successor of all."""
        aside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        self._listener.bind(str(aside))
        aside.chmod(0o600)
        self._listener.listen(8)
        self._inode = aside.stat().st_ino
        aside.rename(self._path)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Take no more; the path is removed where it is still ours."""
        loop = asyncio.get_running_loop()
        for s in (self._listener, *self._givers):
            loop.remove_reader(s)
            s.close()
        self._givers.clear()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _accept(self) -> None:
        try:
            giver, _ = self._listener.accept()
        except OSError:
            return
        giver.setblocking(False)
        self._givers.add(giver)
        asyncio.get_running_loop().add_reader(giver, self._receive, giver)

    def _receive(self, giver: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                data, descriptors, _, _ = socket.recv_fds(giver, 16, 8)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            for descriptor in descriptors:
                self.taken += 1
                self._take(socket.socket(fileno=descriptor))
            if not data:
                asyncio.get_running_loop().remove_reader(giver)
                self._givers.discard(giver)
                giver.close()
                return


def _socket() -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.setblocking(False)
    return s
