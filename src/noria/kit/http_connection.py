"""The client's side of one HTTP/1.1 connection, with the errors that a call can end in."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable
from typing import Protocol, cast

import httptools
import msgspec

from noria.contracts.error import NoriaError
from noria.contracts.stage import Sink
from noria.kit.http_head import Headers, header_name

OnHead = Callable[[int, Headers], Sink | None]
Answer = tuple[int, Headers, bytes]


class HttpCallError(Exception):
    """Base of everything a call can end in besides an answer."""


class ConnectFailed(HttpCallError):
    """No connection: refused, no such host, TLS failed, or the client is closed. Nothing was sent."""


class ConnectTimeout(ConnectFailed):
    """No connection within `connect_timeout`. Nothing was sent."""


class PoolExhausted(ConnectFailed):
    """All connections stayed busy, or too many callers were waiting already. Nothing was sent."""


class FirstByteTimeout(HttpCallError):
    """The request is sent and not one byte of an answer came."""


class IdleTimeout(HttpCallError):
    """An answer has begun and then nothing more came."""


class TotalTimeout(HttpCallError):
    """The call as a whole took too long."""


class ConnectionLost(HttpCallError):
    """The connection broke. `received`: some byte of an answer had come, so the call was being served."""

    def __init__(self, message: str, *, received: bool) -> None:
        super().__init__(message)
        self.received = received


class BadResponse(HttpCallError):
    """Not HTTP/1.1, too large, or in a content coding that was not asked for."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes that bound every call of one client."""

    connect: float
    first: float
    idle: float
    total: float
    max_head: int
    max_body: int


class Flow:
    """Lets the owner of a sink stop and go on with the reading of its answer.

    Up to one read (256 kB) may still arrive after `pause`. While paused, only the total timeout runs.
    """

    __slots__ = ("_connection", "paused")

    def __init__(self) -> None:
        self._connection: ClientConnection | None = None
        self.paused = False

    def pause(self) -> None:
        """Stop reading from the upstream."""
        self.paused = True
        if self._connection is not None:
            self._connection.hold()

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        if self._connection is not None:
            self._connection.go_on()

    def bind(self, connection: ClientConnection | None) -> None:
        """Attach to the connection of the call that begins, or let go of it."""
        self._connection = connection
        if self.paused and connection is not None:
            connection.hold()


class Pool(Protocol):
    """Where a connection belongs."""

    timing: Timing

    def release(self, connection: ClientConnection) -> None:
        """The connection can carry another call."""
        ...

    def gone(self, connection: ClientConnection) -> None:
        """The connection has closed."""
        ...


class ClientConnection(asyncio.Protocol):
    """Carries one call at a time. `deadline` and `total` are loop times which the pool's sweep compares."""

    __slots__ = (
        "_body",
        "_complete",
        "_eof",
        "_fed",
        "_flow",
        "_future",
        "_head_only",
        "_headed",
        "_headers",
        "_idle",
        "_on_head",
        "_parser",
        "_parts",
        "_pool",
        "_reusable",
        "_sink",
        "_size",
        "_status",
        "_time",
        "deadline",
        "on_body",
        "received",
        "total",
        "transport",
        "used",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._time = loop.time
        self._idle = pool.timing.idle
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        """Called by httptools: a server may frame each token of a stream, so that pieces of one read are only gathered."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._future: asyncio.Future[Answer] | None = None
        self._on_head: OnHead | None = None
        self._flow: Flow | None = None
        self._head_only = False
        self._eof = False
        self._fed = 0
        self.deadline = math.inf
        self.total = math.inf
        self.used = False
        """Whether a call has been carried before: an immediate loss may then be a stale connection."""
        self._begin()

    def _begin(self) -> None:
        self._status = 0
        self._headers: Headers = []
        self._headed = False
        self._size = 0
        self._fed = 0
        self._body: bytes | bytearray = b""
        self._sink: Sink | None = None
        self._parts.clear()
        self._complete = False
        self._reusable = False
        self.received = False

    def call(
        self,
        data: tuple[bytes, bytes],
        future: asyncio.Future[Answer],
        *,
        head_only: bool,
        on_head: OnHead | None,
        flow: Flow | None,
        total: float,
    ) -> None:
        """Send head and body; `future` gets the answer or the error. `total` is a loop time."""
        self._begin()
        self._future = future
        self._head_only = head_only
        self._on_head = on_head
        self._flow = flow
        self.total = total
        self.deadline = self._time() + self._pool.timing.first
        head, body = data
        if len(body) < 65536:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        if flow is not None:
            flow.bind(self)

    @property
    def usable(self) -> bool:
        """Whether a call may start."""
        return self._parser is not None and not self.transport.is_closing()

    def rest(self, seconds: float) -> None:
        """Wait for a call, so long at most."""
        self.deadline = self._time() + seconds

    def hold(self) -> None:
        """Stop reading, and the idle clock."""
        self.deadline = math.inf
        self.transport.pause_reading()

    def go_on(self) -> None:
        """Read on."""
        self.deadline = self._time() + self._idle
        self.transport.resume_reading()

    def expire(self, now: float) -> None:
        """A deadline has passed."""
        if self._future is None:
            self.abort()
        elif now >= self.total:
            self.fail(TotalTimeout("the call took longer than its total timeout"))
        elif not self.received:
            self.fail(FirstByteTimeout(f"no byte of an answer within {self._pool.timing.first:g} s"))
        else:
            self.fail(IdleTimeout(f"the answer stalled for {self._pool.timing.idle:g} s"))

    def abort(self) -> None:
        """Close at once; the call in flight is given up without a word to its future."""
        self._future = None
        self._unbind()
        self.deadline = self.total = math.inf
        self.transport.abort()

    def give_up(self, future: asyncio.Future[Answer]) -> None:
        """Close at once if the call of `future` is still being carried; the connection may be another's by now."""
        if self._future is future:
            self.abort()

    def fail(self, error: BaseException) -> None:
        """End the call with an error, and the connection with it."""
        future = self._future
        self.abort()
        if future is not None and not future.done():
            future.set_exception(error)

    # ── called by the event loop ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Both event loops set TCP_NODELAY on their TCP transports themselves; a test holds them to it."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Complete an answer that the end of the connection delimits; any other call is lost."""
        parser, self._parser = self._parser, None
        self._pool.gone(self)
        if self._future is None or parser is None:
            return
        if exc is None and self._eof and self._delimited_by_close():
            self._finish()
        else:
            reason = f": {exc}" if exc else ""
            where = "in the middle of the answer" if self.received else "before any byte of an answer"
            self.fail(ConnectionLost(f"the connection was lost {where}{reason}", received=self.received))

    def eof_received(self) -> None:
        """An orderly end. TLS calls this for close_notify only, so that a truncated stream does not pass for a whole one."""
        self._eof = True

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer, split anywhere."""
        parser = self._parser
        if self._future is None or parser is None:
            self.abort()  # nobody asked: the next answer would be taken for the wrong call's
            return
        self.received = True
        if self._flow is None or not self._flow.paused:
            self.deadline = self._time() + self._idle
        broken: BaseException | None = None
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            broken = BadResponse("the server changed the protocol without being asked")
        except httptools.HttpParserError as e:
            if not self._complete:
                cause = e.__context__ if isinstance(e, httptools.HttpParserCallbackError) else None
                broken = cause or BadResponse(f"the answer is not valid HTTP/1.1: {e}")
            self._reusable = False
        if self._parts:
            broken = self._deliver() or broken
        if broken is not None:
            self.fail(broken)
        elif self._complete:
            self._finish()
        elif not self._headed:
            self._fed += len(data)
            if self._fed > self._pool.timing.max_head:
                self.fail(self._head_too_large())

    # ── called by httptools ──

    def on_message_begin(self) -> None:
        """An answer begins; one that follows the whole answer of this call belongs to no call."""
        if self._complete:
            self._reusable = False
            raise BadResponse("a second answer followed the first")

    def on_header(self, raw: bytes, value: bytes) -> None:
        """One header; trailers are dropped."""
        if self._headed:
            return
        self._size += len(raw) + len(value) + 4
        if self._size > self._pool.timing.max_head:
            raise self._head_too_large()
        self._headers.append((header_name(raw), value.decode("latin-1").strip(" \t")))

    def on_headers_complete(self) -> None:
        """The head is whole: interim answers are passed over, others are announced."""
        parser = self._parser
        assert parser is not None
        status = self._status = parser.get_status_code()
        version = parser.get_http_version()
        if version != "1.1" and version != "1.0":  # llhttp would let 0.9 and 2.0 pass
            raise BadResponse(f"the server answered in HTTP/{version}")
        if status < 200:
            return
        self._headed = True
        self._size = 0
        if self._head_only:
            self._complete = True
        if self._on_head is not None and self._future is not None and not self._future.done():
            self._sink = self._on_head(status, self._headers)
            if self._sink is not None and self._coding():
                raise BadResponse(f"the server sent content-encoding {self._coding()!r}, which a relay cannot pass on")

    def on_message_complete(self) -> None:
        """The answer is whole, or it was an interim one."""
        if self._headed:
            parser = self._parser
            assert parser is not None
            self._complete = True
            self._reusable = not self._head_only and parser.should_keep_alive()
        else:
            self._headers = []
            self._size = self._fed = 0

    # ── within ──

    def _deliver(self) -> Exception | None:
        """Hand over what one read brought, in one piece: each piece of its own would cost the caller a system call."""
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._future is None:
            return None
        if self._sink is None:
            return self._gather(data)
        try:
            self._sink(data)
        except NoriaError as e:
            return e
        return None

    def _gather(self, data: bytes) -> BadResponse | None:
        """The next bytes of a body that is wanted whole; one piece stays as it is, several are joined in one growing buffer."""
        self._size += len(data)
        if self._size > self._pool.timing.max_body:
            return self._body_too_large()
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytearray):
            self._body += data
        else:
            self._body = bytearray(self._body)
            self._body += data
        return None

    def _finish(self) -> None:
        future, self._future = self._future, None
        self._unbind()
        self.deadline = self.total = math.inf
        try:
            body = self._decoded()
        except (BadResponse, zlib.error) as e:
            self.transport.abort()
            if future is not None and not future.done():
                future.set_exception(e if isinstance(e, BadResponse) else BadResponse(f"broken content-encoding: {e}"))
            return
        if future is not None and not future.done():
            future.set_result((self._status, self._headers, body))
        self.used = True
        self._on_head = self._sink = None
        self._body = b""
        if self._reusable and self.usable and not self.transport.get_write_buffer_size():
            self._pool.release(self)
        else:
            self.transport.abort()

    def _decoded(self) -> bytes:
        coding = self._coding()
        body = self._body if isinstance(self._body, bytes) else bytes(self._body)
        if not coding or not body:
            return body
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise BadResponse(f"the server sent content-encoding {coding!r}; only identity was asked for")
        unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        plain = unzip.decompress(body, self._pool.timing.max_body)
        if unzip.unconsumed_tail:
            raise self._body_too_large()
        if not unzip.eof or unzip.unused_data:
            raise BadResponse("the compressed body is truncated, or followed by something else")
        return plain

    def _coding(self) -> str:
        for name, value in self._headers:
            if name == "content-encoding":
                coding = value.lower()
                return "" if coding == "identity" else coding
        return ""

    def _delimited_by_close(self) -> bool:
        return self._headed and not any(k in ("content-length", "transfer-encoding") for k, _ in self._headers)

    def _unbind(self) -> None:
        flow, self._flow = self._flow, None
        if flow is not None:
            flow.bind(None)
            if flow.paused:
                self.transport.resume_reading()

    def _head_too_large(self) -> BadResponse:
        return BadResponse(f"the head of the answer exceeds {self._pool.timing.max_head} bytes")

    def _body_too_large(self) -> BadResponse:
        return BadResponse(f"the body of the answer exceeds {self._pool.timing.max_body} bytes")
