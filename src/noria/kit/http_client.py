"""A pooled HTTP/1.1 client for one upstream, fulfilling `contracts.stage.Relay`.

Idle connections are taken last in, first out, so that the pool shrinks to what is needed. Streams are
pushed into a sink from the read callback: relaying costs no task switch a chunk.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from urllib.parse import urlsplit

from noria.kit.http_connection import (
    Answer,
    BadResponse,
    ClientConnection,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    FirstByteTimeout,
    Flow,
    HttpCallError,
    IdleTimeout,
    OnHead,
    PoolExhausted,
    Timing,
    TotalTimeout,
)
from noria.kit.http_head import Headers, header_lines
from noria.kit.http_sweep import Sweep

__all__ = [
    "BadResponse",
    "ConnectFailed",
    "ConnectTimeout",
    "ConnectionLost",
    "FirstByteTimeout",
    "Flow",
    "HttpCallError",
    "HttpClient",
    "IdleTimeout",
    "PoolExhausted",
    "TotalTimeout",
]

_METHOD = re.compile(r"[A-Z]+").fullmatch
_PATH = re.compile(r"/[!-~]*").fullmatch
_LINES = 256
"""Request lines remembered; an upstream has a handful."""


class HttpClient:
    """Calls one origin. All times are seconds; a call raises a subclass of `HttpCallError`.

    `connect_timeout` bounds waiting for a free connection plus opening one; `first_timeout` the wait for
    the first byte; `idle_timeout` each silence after it; `total_timeout` the whole. A call on a connection
    that was used before and breaks before any byte of an answer is sent once more on a fresh connection: it
    had been closed while idle. `https` uses the system's certificate authorities unless `ssl_context` is given.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout: float = 5.0,
        first_timeout: float = 60.0,
        idle_timeout: float = 60.0,
        total_timeout: float = 600.0,
        max_connections: int = 256,
        max_waiting: int = 1024,
        keep_idle: float = 30.0,
        max_head: int = 64 * 1024,
        max_body: int = 64 * 1024 * 1024,
        ssl_context: ssl.SSLContext | None = None,
        uds: str | None = None,
    ) -> None:
        self.timing = Timing(
            connect=connect_timeout,
            first=first_timeout,
            idle=idle_timeout,
            total=total_timeout,
            max_head=max_head,
            max_body=max_body,
        )
        self._origin(base_url, ssl_context)
        self._uds = uds
        self._max = max_connections
        self._max_waiting = max_waiting
        self._keep_idle = keep_idle
        self._lines: dict[tuple[str, str], str] = {}
        self._all: set[ClientConnection] = set()
        self._idle: list[ClientConnection] = []
        self._waiting: deque[asyncio.Future[ClientConnection | None]] = deque()
        self._open = 0
        self._closed = False
        self._sweep = Sweep(min(first_timeout, idle_timeout, total_timeout, keep_idle) / 8, self._check)

    def _origin(self, base_url: str, ssl_context: ssl.SSLContext | None) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username is not None or url.query or url.fragment:
            raise ValueError(
                f"{base_url!r} is not an http(s)://host[:port][/prefix] URL without credentials, query and fragment"
            )
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._prefix = url.path.rstrip("/")
        self._authority = url.netloc
        header_lines([("x-authority", self._authority)])
        self._ssl: ssl.SSLContext | None = None
        if url.scheme == "https":
            self._ssl = ssl_context or ssl.create_default_context()

    @property
    def open(self) -> int:
        """Connections open or being opened."""
        return self._open

    @property
    def idle(self) -> int:
        """Connections waiting for a call."""
        return len(self._idle)

    async def send(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        *,
        on_head: OnHead | None = None,
        flow: Flow | None = None,
    ) -> Answer:
        """Status, headers (lower-case names) and body; `path` follows the prefix of the base URL.

        Where `on_head(status, headers)` gives a sink, the body goes there piece by piece, and b"" is returned.
        What `on_head` or the sink raises, `send` raises. Cancelling closes the connection at once.
        """
        head = self._head(method, path, headers, body)
        loop = asyncio.get_running_loop()
        total = loop.time() + self.timing.total
        connection = self._pop_idle() or await self._acquire(loop, total)
        reused = connection.used
        while True:
            future: asyncio.Future[Answer] = loop.create_future()
            connection.call((head, body), future, head_only=method == "HEAD", on_head=on_head, flow=flow, total=total)
            try:
                return await future
            except asyncio.CancelledError:
                connection.give_up(future)
                raise
            except ConnectionLost as e:
                if e.received or not reused:
                    raise
            connection = await self._acquire(loop, total, fresh=True)
            reused = False

    async def close(self) -> None:
        """Close idle connections and take no more calls; calls in flight end as they will."""
        self._closed = True
        for connection in list(self._idle):
            connection.abort()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(ConnectFailed("the client is closed"))

    # ── called by connections ──

    def release(self, connection: ClientConnection) -> None:
        """Give the connection to whoever waits longest, or keep it for a while."""
        if self._closed:
            connection.abort()
            return
        if not self._hand_over(connection):
            connection.rest(self._keep_idle)
            self._idle.append(connection)

    def gone(self, connection: ClientConnection) -> None:
        """A connection has closed; its place goes to whoever waits longest."""
        if connection in self._all:
            self._all.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._free_place()

    # ── within ──

    def _head(self, method: str, path: str, headers: Headers, body: bytes) -> bytes:
        line = self._lines.get((method, path)) or self._line(method, path)
        text = line + header_lines(headers)
        if body or method in ("POST", "PUT", "PATCH"):
            text += f"content-length: {len(body)}\r\n"
        return f"{text}\r\n".encode("latin-1")

    def _line(self, method: str, path: str) -> str:
        target = self._prefix + path
        if _METHOD(method) is None or _PATH(target) is None or "#" in target:
            raise ValueError(f"{method!r} {target!r} is not a request line: upper-case method, percent-encoded path from '/'")
        line = f"{method} {target} HTTP/1.1\r\nhost: {self._authority}\r\naccept-encoding: identity\r\n"
        if len(self._lines) < _LINES:
            self._lines[method, path] = line
        return line

    def _pop_idle(self) -> ClientConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _acquire(self, loop: asyncio.AbstractEventLoop, total: float, *, fresh: bool = False) -> ClientConnection:
        """A connection to call on: idle (unless `fresh`), new, or somebody else's as soon as it is free."""
        if self._closed:
            raise ConnectFailed("the client is closed")
        limit = min(loop.time() + self.timing.connect, total)
        if fresh and self._open >= self._max and self._idle:
            self._idle.pop(0).abort()
        while self._open >= self._max:
            handed = await self._wait(limit)
            if handed is None:
                break
            if handed.usable:
                return handed
        else:
            self._open += 1
        connection = None
        try:
            connection = await self._connect(loop, limit)
        finally:
            if connection is None:
                self._free_place()
        return connection

    async def _wait(self, limit: float) -> ClientConnection | None:
        """Wait in line for a connection, or for the place to open one (None); the place is then ours."""
        if len(self._waiting) >= self._max_waiting:
            raise PoolExhausted(f"{self._max_waiting} calls wait for one of {self._max} connections already")
        waiter: asyncio.Future[ClientConnection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout_at(limit):
                return await waiter
        except TimeoutError:
            self._withdraw(waiter)
            raise PoolExhausted(f"all {self._max} connections stayed busy for {self.timing.connect:g} s") from None
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise

    def _withdraw(self, waiter: asyncio.Future[ClientConnection | None]) -> None:
        """Leave the line; what was handed over in the same turn goes to the next."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            connection = waiter.result()
            if connection is None:
                self._free_place()
            else:
                self.release(connection)

    async def _connect(self, loop: asyncio.AbstractEventLoop, limit: float) -> ClientConnection:
        try:
            async with asyncio.timeout_at(limit):
                connection = await self._open_transport(loop)
        except TimeoutError as e:
            raise ConnectTimeout(f"no connection to {self._authority} within {self.timing.connect:g} s") from e
        except (OSError, ValueError) as e:
            raise ConnectFailed(f"no connection to {self._authority}: {e}") from e
        self._all.add(connection)
        self._sweep.start(loop)
        if not connection.usable:
            self._all.discard(connection)
            raise ConnectFailed(f"{self._authority} closed the connection at once")
        return connection

    async def _open_transport(self, loop: asyncio.AbstractEventLoop) -> ClientConnection:
        name = self._host if self._ssl is not None else None
        connection = ClientConnection(self, loop)
        if self._uds is not None:
            await loop.create_unix_connection(lambda: connection, self._uds, ssl=self._ssl, server_hostname=name)
        else:
            await loop.create_connection(lambda: connection, self._host, self._port, ssl=self._ssl, server_hostname=name)
        return connection

    def _hand_over(self, connection: ClientConnection | None) -> bool:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def _free_place(self) -> None:
        if not self._hand_over(None):
            self._open -= 1

    def _check(self, now: float) -> bool:
        for connection in [c for c in self._all if c.deadline < now or c.total < now]:
            connection.expire(now)
        return bool(self._all)
