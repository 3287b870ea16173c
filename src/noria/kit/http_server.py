"""An HTTP/1.1 server for uvloop: callbacks only, no task a request, strict about framing, everything bounded.

The handler is called with each whole request and answers through `request.response`, at once or later.
Requests of one connection are answered strictly one after the other; bytes that a client sends ahead are
kept up to `Limits.max_ahead`, then reading stops. Reading goes on during an answer because EOF is the only
sign of a client that has left.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import cast

import msgspec

from noria.kit.http_head import Headers, header_lines, status_line
from noria.kit.http_request import Buffered, Divert, Limits, Refusal, Request, RequestReader
from noria.kit.http_response import Response
from noria.kit.http_sweep import Sweep

__all__ = ["HttpProtocol", "HttpServer", "Limits", "Request", "Response"]

Handler = Callable[[Request], None]
Give = Callable[[int], bool]
"""Passes the descriptor of an idle connection to another process; whether it was taken."""
PATIENCE = 30.0
"""Seconds that a successor has to take over idle connections."""
LOOK = 0.02
"""Seconds between looks for idle connections while draining."""
ErrorAnswer = Callable[[int, str, str], tuple[Headers, bytes]]
"""(status, code, message) → more headers and the JSON body of an answer that the handler never sees the request of."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TIMEOUT = Refusal(408, "request_timeout", "The request did not arrive in time.")
_LEAVING = Refusal(503, "draining", "The server is going away. Try again.")
_FULL = Refusal(503, "too_many_connections", "The server has no connection to spare. Try again later.")


def error_answer(status: int, code: str, message: str) -> tuple[Headers, bytes]:
    """The default `ErrorAnswer`."""
    return [], msgspec.json.encode({"error": {"status": status, "code": code, "message": message}})


class HttpProtocol(asyncio.Protocol):
    """One connection. `deadline` is a loop time that the server's sweep compares; infinity while a handler works."""

    __slots__ = (
        "_ahead",
        "_asked",
        "_busy",
        "_closing",
        "_current",
        "_handler",
        "_limits",
        "_path",
        "_reader",
        "_reading",
        "_server",
        "_timed",
        "deadline",
        "loop",
        "paused",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self.loop = loop
        self._handler = server.handler
        self._limits = server.limits
        self._reader = RequestReader(server.limits, server.buffered, server.divert)
        self._current: Response | None = None
        self._path = ""
        self._ahead = 0
        self._asked = False
        self._busy = False
        self._closing = False
        self._reading = True
        self._timed = False
        self.deadline = math.inf
        self.paused = False

    # ── called by the event loop ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register; connections beyond the limit get a 503, far beyond it nothing."""
        self.transport = cast("asyncio.Transport", transport)
        server = self._server
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = transport.get_extra_info("peername")
            self._reader.peer = peer[0] if peer else ""
        self._timed = True
        self.deadline = self.loop.time() + self._limits.header_timeout
        open_now = server.admit(self)
        if open_now > self._limits.max_connections:
            server.refused += 1
            if open_now > 2 * self._limits.max_connections:
                self.transport.abort()
            else:
                self._refuse(_FULL)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the event loop's signature
        """The end; whoever was writing an answer hears of it."""
        self._closing = True
        self._server.forget(self)
        self._reader.close()
        self._lose()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests, split anywhere."""
        self._server.bytes_in += len(data)
        if self._closing:
            return
        self._reader.feed(data)
        if self._current is None:
            self._advance()
        else:
            self._ahead += len(data)
            if self._ahead > self._limits.max_ahead and self._reading:
                self._reading = False
                self.transport.pause_reading()

    def eof_received(self) -> None:
        """A client that sends EOF, even a half-close, has gone: there is no telling the two apart in time to save money."""
        if self._current is not None:
            self._closing = True
            self.transport.abort()
            self._lose()

    def pause_writing(self) -> None:
        """The send buffer is full."""
        self.paused = True
        if self._current is not None:
            self.deadline = self.loop.time() + self._limits.write_timeout
            if self._current.on_pause is not None:
                self._current.on_pause()

    def resume_writing(self) -> None:
        """The send buffer has drained."""
        self.paused = False
        if self._current is not None:
            self.deadline = math.inf
            if self._current.on_resume is not None:
                self._current.on_resume()

    # ── called by the response ──

    @property
    def date(self) -> str:
        """The `date` header line."""
        return self._server.date

    @property
    def draining(self) -> bool:
        """Whether the server is going away."""
        return self._server.draining

    def later(self, flush: Callable[[], None]) -> None:
        """See `HttpServer.later`."""
        self._server.later(flush)

    def finished(self, response: Response) -> None:
        """The answer is complete: close, or take the next request."""
        self._server.bytes_out += response.sent
        self._current = None
        self._ahead = 0
        if response.last:
            self._close()
            return
        # Not closed for a drain's sake: its client was not told (`connection: close`) and may send again already.
        self._timed = False
        if not self._busy:
            self._advance()

    def cut(self, *, reset: bool) -> None:
        """End the connection; an orderly close still flushes, a reset does not."""
        if reset:
            self._closing = True
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # struct linger: on, 0 s
            self.transport.abort()
        else:
            self._close()
        if self._current is not None:
            self._server.bytes_out += self._current.sent
            self._current = None

    # ── called by the server ──

    @property
    def idle(self) -> bool:
        """Whether the connection could be closed without cutting anything."""
        return self._current is None and not self._closing and self._reader.between

    @property
    def route(self) -> str:
        """The path of the request that is being answered; empty between two."""
        return self._path if self._current is not None else ""

    def wait_idle(self) -> None:
        """Taken over from another process between two requests: the idle clock runs, not that of a new connection."""
        self._timed = False
        self.deadline = self.loop.time() + self._limits.idle_timeout

    def hand_over(self, give: Give) -> bool:
        """Give the connection away with whatever its client may be sending now; whether it was taken.

        Reading stops first: bytes that arrive meanwhile stay in the kernel for the next owner.
        """
        sock = self.transport.get_extra_info("socket")
        if sock is None or self.transport.get_write_buffer_size():
            return False
        self.transport.pause_reading()
        if not give(sock.fileno()):
            self.transport.resume_reading()
            return False
        self._closing = True
        self.transport.abort()  # closes our descriptor; the connection lives on with the other one
        return True

    def expire(self) -> None:
        """The deadline has passed."""
        if self._closing:
            self.transport.abort()
        elif self._current is not None:
            current = self._current
            self.cut(reset=True)
            current.lost()
        elif self._reader.between:
            self._close()
        else:
            self._refuse(_TIMEOUT)

    def shut(self) -> bool:
        """The server is going: close, and cut the answer in flight short; whether there was one."""
        current = self._current
        if current is None:
            self._close()
            return False
        if current.started:
            self.cut(reset=current.until_close)
        else:
            self._current = None
            self._refuse(_LEAVING)
        current.lost()
        return True

    # ── within ──

    def _advance(self) -> None:
        """Hand over what is complete, until an answer is pending; then see what the connection waits for."""
        reader = self._reader
        self._busy = True
        while self._current is None and reader.complete and not self._closing:
            self._dispatch(reader.complete.popleft())
        self._busy = False
        if self._current is not None or self._closing:
            return
        if reader.refusal is not None:
            self._refuse(reader.refusal)
            return
        self._await_more(reader)

    def _dispatch(self, request: Request) -> None:
        response = Response(self, head_only=request.method == "HEAD", http10=request.http10, last=not request.keep_alive)
        request.response = response
        self._current = response
        self._path = request.path
        self._asked = False
        self.deadline = self.loop.time() + self._limits.write_timeout if self.paused else math.inf
        self._server.requests += 1
        self._handler(request)

    def _await_more(self, reader: RequestReader) -> None:
        limits = self._limits
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()
        if reader.in_body:
            if reader.expects and not self._asked:
                self._asked = True
                self.transport.write(_CONTINUE)
            self.deadline = self.loop.time() + limits.body_timeout
        elif self._timed or not reader.between:
            if not self._timed or self.deadline == math.inf:
                self._timed = True
                self.deadline = self.loop.time() + limits.header_timeout
        else:
            self.deadline = self.loop.time() + limits.idle_timeout

    def _lose(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            self._server.bytes_out += current.sent
            current.lost()

    def _close(self) -> None:
        self._closing = True
        self.deadline = self.loop.time() + self._limits.write_timeout
        self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and close, but listen on for a while: closing with unread bytes would reset the answer away."""
        self._closing = True
        headers, body = self._server.error(refusal.status, refusal.code, refusal.message)
        head = header_lines([("content-type", "application/json"), *headers])
        framing = f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        data = f"{status_line(refusal.status)}{head}{self.date}{framing}".encode("latin-1") + body
        self._server.bytes_out += len(data)
        self.transport.write(data)
        self.transport.write_eof()
        self.deadline = self.loop.time() + self._limits.linger


class HttpServer:
    """Serves on one inherited socket or unix path; counters are plain integers."""

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits | None = None,
        error: ErrorAnswer = error_answer,
        divert: Divert | None = None,
    ) -> None:
        self.handler = handler
        self.divert = divert
        self.limits = limits = limits or Limits()
        self.error = error
        self.buffered = Buffered()
        self.draining = False
        self.accepted = 0
        self.refused = 0
        self.requests = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.date = ""
        self._deadline = math.inf
        self._connections: set[HttpProtocol] = set()
        self._empty = asyncio.Event()
        self._listener: asyncio.AbstractServer | None = None
        timeouts = (limits.header_timeout, limits.body_timeout, limits.idle_timeout, limits.write_timeout, limits.linger)
        self._sweep = Sweep(min(timeouts) / 4, self._check)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._later: list[Callable[[], None]] = []

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._connections)

    async def start(self, where: socket.socket | str | Path) -> None:
        """Listen on a bound TCP socket, or on a unix path (made 0600; a stale socket there is replaced)."""
        self._loop = loop = asyncio.get_running_loop()
        self._renew_date()
        if isinstance(where, socket.socket):
            self._listener = await loop.create_server(self._connect, sock=where, backlog=1024)
        else:
            self._listener = await loop.create_unix_server(self._connect, path=str(where), backlog=1024)
            _restrict(Path(where))

    async def adopt(self, sock: socket.socket) -> None:
        """Serve a connection that another process handed over between two requests."""
        assert self._loop is not None
        _, connection = await self._loop.connect_accepted_socket(self._connect, sock)
        if not connection.transport.is_closing():
            connection.wait_idle()

    def in_flight(self) -> Counter[str]:
        """Requests being answered now, by path."""
        return Counter(filter(None, (c.route for c in self._connections)))

    def hurry(self, grace: float) -> None:
        """Shorten a drain that is under way to `grace` seconds from now."""
        self._deadline = min(self._deadline, time.monotonic() + grace)

    async def drain(self, grace: float, give: Give | None = None) -> int:
        """Stop accepting, let requests in flight finish within `grace` seconds, close; the number cut short.

        Every answer that begins now says `connection: close`. A connection between two requests cannot be closed
        without a race: its client may be sending already (RFC 9112 §9.3.1). It is handed to a successor by `give`;
        where there is none it lives on for a moment (1 s, or a quarter of `grace`), so that a request that is on its
        way is answered with `connection: close`.
        """
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        began = time.monotonic()
        self._deadline = began + grace
        patience = began + (min(1.0, grace / 4) if give is None else min(PATIENCE, grace))
        while self._connections and (now := time.monotonic()) < self._deadline:
            for connection in [c for c in self._connections if c.idle]:
                if (give is None or not connection.hand_over(give)) and now >= patience:
                    connection.shut()
            await self._wait_empty(min(LOOK, max(0.0, self._deadline - now)))
        cut = sum([connection.shut() for connection in list(self._connections)])
        await self._wait_empty(1.0)
        for connection in list(self._connections):
            connection.transport.abort()
        self._sweep.stop()
        return cut

    def admit(self, connection: HttpProtocol) -> int:
        """Register a connection; how many are open with it."""
        assert self._loop is not None
        self._connections.add(connection)
        self._empty.clear()
        self.accepted += 1
        if len(self._connections) == 1:
            self._renew_date()
            self._sweep.start(self._loop)
        return len(self._connections)

    def later(self, flush: Callable[[], None]) -> None:
        """Call `flush` once everything that is ready now has run: an answer whose last bytes came with its end, and whose task
        is woken by it, then leaves by one system call.
        """
        assert self._loop is not None
        self._later.append(flush)
        if len(self._later) == 1:
            self._loop.call_soon(self._loop.call_soon, self._flush)

    def _flush(self) -> None:
        waiting, self._later = self._later, []
        done = 0
        try:
            for flush in waiting:
                done += 1
                flush()
        finally:
            if done < len(waiting):  # one failed: the answers behind it do not wait for anything but this
                assert self._loop is not None
                self._later += waiting[done:]
                self._loop.call_soon(self._flush)

    def forget(self, connection: HttpProtocol) -> None:
        """A connection has closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _connect(self) -> HttpProtocol:
        assert self._loop is not None
        return HttpProtocol(self, self._loop)

    async def _wait_empty(self, seconds: float) -> None:
        if self._connections:
            try:
                await asyncio.wait_for(self._empty.wait(), seconds)
            except TimeoutError:
                return

    def _check(self, now: float) -> bool:
        self._renew_date()
        for connection in [c for c in self._connections if c.deadline < now]:
            connection.expire()
        return bool(self._connections)

    def _renew_date(self) -> None:
        self.date = f"date: {formatdate(usegmt=True)}\r\n"


def _restrict(path: Path) -> None:
    path.chmod(0o600)
