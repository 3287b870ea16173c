"""OpenAI's Responses API as callers speak it: in as chat, out as a Response or its events."""

from __future__ import annotations

import re
import time

import msgspec

from noria.contracts.exchange import Dialect, Exchange
from noria.contracts.stage import Outlet
from noria.dialects.responses import Shape, write_response
from noria.dialects.responses_request import Raws, read_response_request
from noria.dialects.responses_stream import ResponseStream
from noria.dialects.sse import data_of


class ResponsesIngress:
    """`POST /v1/responses`; see `contracts.stage.Ingress`."""

    dialect: Dialect = "responses"

    def read(self, fields: Raws) -> tuple[Raws, tuple[str, ...]]:
        """See `contracts.stage.Ingress`."""
        return read_response_request(fields)

    def outlet(self, x: Exchange, out: Outlet) -> Outlet:
        """See `contracts.stage.Ingress`."""
        return ResponsesOutlet(x, out)

    def error(self, status: int, body: bytes) -> bytes:  # noqa: ARG002  the protocol has OpenAI's own errors
        """See `contracts.stage.Ingress`."""
        return body


_SEQUENCE = re.compile(rb'"sequence_number":\s*(\d+)')


class Verbatim:
    """Where events go that are a Response's already."""

    def __init__(self, out: Outlet) -> None:
        self._out = out
        self.last = b""
        """What came last: empty where nothing has."""

    def data(self, data: bytes) -> None:
        """The next bytes, as they are."""
        if not data.startswith(b":"):  # a comment may come before it is known whose events will
            self.last = data
        self._out.data(data)

    def fail(self, frame: bytes) -> None:
        """An error (chat's frame) after the bytes of another's stream: its `error` event, numbered on."""
        said = (msgspec.json.decode(data_of(frame) or b"{}").get("error")) or {}
        numbers = _SEQUENCE.findall(self.last)
        event = {
            "type": "error",
            "code": said.get("code"),
            "message": str(said.get("message") or ""),
            "param": said.get("param"),
        }
        event["sequence_number"] = int(numbers[-1]) + 1 if numbers else 0
        self._out.data(b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n")


class ResponsesOutlet:
    """Takes an answer in chat form and writes it as a Response. Errors before it are OpenAI's already. `verbatim` takes an
    answer that is a Response, or the events of one.
    """

    def __init__(self, x: Exchange, out: Outlet) -> None:
        self._out = out
        self.verbatim = Verbatim(out)
        self._shape = Shape(x.native, x.id, x.started_ns // 1_000_000_000)
        self._stream: ResponseStream | None = None
        self._whole: list[bytes] | None = None

    @property
    def backlog(self) -> int:
        """See `contracts.stage.Outlet`."""
        return self._out.backlog

    def kept(self, *, stored: bool) -> None:
        """Whether the Response can be asked for later; see `contracts.stage.Keeping`."""
        self._shape.stored = stored

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        """See `contracts.stage.Outlet`."""
        if stream:
            self._stream = ResponseStream(self._shape)
        elif status == 200:
            self._whole = []
        self._out.head(status, headers, stream=stream)

    def data(self, data: bytes) -> None:
        """See `contracts.stage.Outlet`."""
        if self._whole is not None:
            self._whole.append(data)
            return
        if self.verbatim.last:
            self.verbatim.fail(data)
            return
        out = data if self._stream is None else self._stream.feed(data)
        if out:
            self._out.data(out)

    def end(self) -> None:
        """See `contracts.stage.Outlet`."""
        now = int(time.time())
        if self.verbatim.last:
            pass
        elif self._stream is not None:
            self._out.data(self._stream.end(now))
        elif self._whole is not None:
            chat = msgspec.json.decode(b"".join(self._whole))
            self._out.data(msgspec.json.encode(write_response(chat, self._shape, now)))
        self._out.end()
