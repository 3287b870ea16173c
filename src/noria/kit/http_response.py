"""The answer side of one server exchange: head once, body in pieces, back-pressure, and word when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from noria.kit.http_head import Headers, header_lines, status_line

_NEW, _CHUNKED, _COUNTED, _UNTIL_CLOSE, _SILENT, _ENDED = range(6)
_COPY = 32768
"""From this size on, bytes are not kept until the end of the turn."""


class Wire(Protocol):
    """What a response needs of the connection under it."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    paused: bool

    @property
    def date(self) -> str:
        """The `date` header line, renewed once a second."""
        ...

    @property
    def draining(self) -> bool:
        """Whether this connection takes no further request."""
        ...

    def later(self, flush: Callable[[], None]) -> None:
        """Call `flush` once everything that is ready now has run."""
        ...

    def finished(self, response: Response) -> None:
        """`response` is complete: go on, or close."""
        ...

    def cut(self, *, reset: bool) -> None:
        """End the connection in the middle of a response."""
        ...


class Response:
    """Written by the handler of one request, in this order: `start`, `write`…, `end`; or `send` alone.

    Once the client has gone, `closed` is true, `on_close` has been called, and all writing is ignored:
    a sink never raises because of its reader. Misuse (writing before `start` or after `end`, more or less
    than the announced length, CR or LF in a header) raises.
    """

    __slots__ = (
        "_bodiless",
        "_left",
        "_loop",
        "_mode",
        "_old",
        "_pending",
        "_wire",
        "closed",
        "last",
        "on_close",
        "on_pause",
        "on_resume",
        "promised",
        "sent",
        "status",
    )

    def __init__(self, wire: Wire, *, head_only: bool, http10: bool, last: bool) -> None:
        self._wire = wire
        self._mode = _NEW
        self._bodiless = head_only
        self._old = http10
        self._left = 0
        self._pending: list[bytes] = []
        self.last = last
        """Whether the connection ends after this response."""
        self.status = 0
        self.sent = 0
        """Bytes of head and body handed to the transport."""
        self.closed = False
        self.promised = False
        """Whether a whole answer is about to leave."""
        self.on_close: Callable[[], None] | None = None
        """Called once when the client goes away (reset, or EOF of any kind) before the end."""
        self.on_pause: Callable[[], None] | None = None
        """Called when the client reads slower than we write: stop the source."""
        self.on_resume: Callable[[], None] | None = None
        """Called when the client has caught up."""

    @property
    def started(self) -> bool:
        """Whether a head has been written: a different answer is no longer possible."""
        return self._mode != _NEW

    @property
    def ended(self) -> bool:
        """Whether the answer is complete."""
        return self._mode == _ENDED

    @property
    def until_close(self) -> bool:
        """Whether only the end of the connection will tell the client that the body is complete."""
        return self._mode == _UNTIL_CLOSE

    @property
    def writable(self) -> bool:
        """False while the client reads slower than we write, and once it has gone."""
        return not (self.closed or self._wire.paused)

    def start(self, status: int, headers: Headers, *, length: int | None) -> None:
        """Write the head. `length` None: chunked, or until close for HTTP/1.0 clients."""
        head = self._head(status, headers, length)
        if self.closed:
            self._mode = _SILENT
            return
        self._put(head, len(head))

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer at once."""
        head = self._head(status, headers, len(body))
        if not self.closed:
            data = head if self._mode == _SILENT else head + body
            self.sent += len(data)
            self._wire.transport.write(data)
        self._end()

    def promise(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer that leaves at the end of this turn of the event loop, behind what was scheduled before."""
        self.promised = True
        self._wire.loop.call_soon(self.send, status, headers, body)

    def write(self, data: bytes) -> None:
        """The next bytes of the body; they leave at the end of this turn of the event loop."""
        mode = self._mode
        if mode == _CHUNKED:
            size = len(data)
            if size:  # an empty chunk would be the last
                self._put(b"%x\r\n%b\r\n" % (size, data), size + 8)
        elif mode in (_COUNTED, _UNTIL_CLOSE):
            if mode == _COUNTED:
                self._left -= len(data)
                if self._left < 0:
                    raise ValueError("the body is longer than its announced length")
            self._put(data, len(data))
        elif mode != _SILENT:
            raise RuntimeError("write before start, or after end")

    def end(self) -> None:
        """The body is complete. A body shorter than announced cuts the connection and raises `ValueError`."""
        mode = self._mode
        if mode == _CHUNKED:
            self._put(b"0\r\n\r\n", 5)
        elif mode == _COUNTED and self._left:
            self.abort()
            raise ValueError(f"the body is {self._left} bytes shorter than its announced length")
        elif mode in (_NEW, _ENDED):
            raise RuntimeError("end before start, or twice")
        self._end()

    def abort(self) -> None:
        """End the connection so that the client sees a truncated answer; what was written still goes out.

        Only an answer delimited by close is reset instead, because its reader would take an orderly end for
        a whole answer. Does nothing after `end`.
        """
        if self.closed or self._mode == _ENDED:
            return
        reset = self.until_close
        self._flush()
        self.closed = True
        self._mode = _SILENT
        self._wire.cut(reset=reset)

    def lost(self) -> None:
        """The connection's word that the client has gone."""
        if self.closed or self._mode == _ENDED:
            return
        self.closed = True
        if self._mode != _NEW:
            self._mode = _SILENT
        if self.on_close is not None:
            self.on_close()

    def _head(self, status: int, headers: Headers, length: int | None) -> bytes:
        if self._mode != _NEW:
            raise RuntimeError("the response has been started already")
        text = status_line(status) + header_lines(headers) + self._wire.date
        if status == 204 or status == 304:
            mode = _SILENT
        elif length is not None:
            text += f"content-length: {length}\r\n"
            mode = _COUNTED
            self._left = length
        elif self._old:
            self.last = True
            mode = _UNTIL_CLOSE
        else:
            text += "transfer-encoding: chunked\r\n"
            mode = _CHUNKED
        if self.last or self._wire.draining:
            self.last = True
            text += "connection: close\r\n"
        head = f"{text}\r\n".encode("latin-1")
        self.status = status
        self._mode = _SILENT if self._bodiless else mode
        return head

    def _put(self, data: bytes, size: int) -> None:
        # uvloop's transport makes one system call a write; a turn of the loop often brings several frames, or the end as well.
        pending = self._pending
        self.sent += size
        if not pending:
            self._wire.later(self._flush)
        pending.append(data)
        if size >= _COPY:
            self._flush()

    def _flush(self) -> None:
        pending = self._pending
        if pending and not self.closed:
            self._pending = []
            self._wire.transport.write(pending[0] if len(pending) == 1 else b"".join(pending))

    def _end(self) -> None:
        self._flush()
        self._mode = _ENDED
        self.on_close = self.on_pause = self.on_resume = None  # they refer back to us: each answer would wait for the collector
        if not self.closed:
            self._wire.finished(self)
