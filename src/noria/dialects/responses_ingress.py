"""OpenAI's Responses API as callers speak it: in as chat, out as a Response or its events."""

from __future__ import annotations

import time

import msgspec

from noria.contracts.exchange import Dialect, Exchange
from noria.contracts.stage import Outlet
from noria.dialects.responses import Shape, write_response
from noria.dialects.responses_request import Raws, read_response_request
from noria.dialects.responses_stream import ResponseStream


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


class ResponsesOutlet:
    """Takes an answer in chat form and writes it as a Response. Errors before it are OpenAI's already."""

    def __init__(self, x: Exchange, out: Outlet) -> None:
        self._out = out
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
        out = data if self._stream is None else self._stream.feed(data)
        if out:
            self._out.data(out)

    def end(self) -> None:
        """See `contracts.stage.Outlet`."""
        now = int(time.time())
        if self._stream is not None:
            self._out.data(self._stream.end(now))
        elif self._whole is not None:
            chat = msgspec.json.decode(b"".join(self._whole))
            self._out.data(msgspec.json.encode(write_response(chat, self._shape, now)))
        self._out.end()
