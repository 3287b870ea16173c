"""Gemini's API as a protocol of callers: `POST /v1beta/models/{model}:generateContent` and its stream, over the chat journey."""

from __future__ import annotations

from noria.contracts.exchange import Dialect, Exchange
from noria.contracts.stage import Outlet
from noria.dialects.gemini import Raws
from noria.dialects.gemini_answer import GenerateWriter, write_error, write_generate
from noria.dialects.gemini_request import read_generate_request
from noria.dialects.openai_error import error_body
from noria.dialects.sse import FrameSplitter, data_of


class Generate:
    """`contracts.stage.Ingress` of one request: the model and whether it streams stand in its path.

    `sse` is `alt=sse`; a stream without it is one JSON array, as Google sends it.
    """

    dialect: Dialect = "gemini"

    def __init__(self, model: str, *, stream: bool, sse: bool) -> None:
        self.model = model
        self._stream = stream
        self._sse = sse

    def read(self, fields: Raws) -> tuple[Raws, tuple[str, ...]]:
        """See `contracts.stage.Ingress`. Nothing is lost here: what is, an endpoint of another dialect loses later."""
        return read_generate_request(fields, self.model, stream=self._stream), ()

    def outlet(self, x: Exchange, out: Outlet) -> Outlet:
        """See `contracts.stage.Ingress`."""
        del x
        return GenerateOutlet(out if self._sse or not self._stream else ArrayOutlet(out))

    def error(self, status: int, body: bytes) -> bytes:
        """See `contracts.stage.Ingress`."""
        return write_error(status, body)


class GenerateOutlet:
    """Chat answers in, Gemini's out. `verbatim` is what an answer that is one already goes into."""

    def __init__(self, out: Outlet) -> None:
        self.verbatim = out
        self._status = 200
        self._headers: list[tuple[str, str]] = []
        self._stream = False
        self._body: list[bytes] = []
        self._splitter = FrameSplitter()
        self._writer = GenerateWriter()
        self._wrote = False

    @property
    def backlog(self) -> int:
        """See `contracts.stage.Outlet`."""
        return self.verbatim.backlog

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        """See `contracts.stage.Outlet`."""
        self._status, self._headers, self._stream = status, headers, stream
        self._body = []
        self.verbatim.head(status, headers, stream=stream)

    def data(self, data: bytes) -> None:
        """See `contracts.stage.Outlet`."""
        if not self._stream:
            self._body.append(data)
            return
        self._wrote = True
        events = b"".join([self._writer.frame(frame) for frame in self._splitter.feed(data)])
        if events:
            self.verbatim.data(events)

    def end(self) -> None:
        """See `contracts.stage.Outlet`."""
        if self._stream:
            if self._wrote and (events := self._writer.end()):
                self.verbatim.data(events)
        elif self._body:
            self.verbatim.data(self._whole(b"".join(self._body)))
        self.verbatim.end()

    def _whole(self, body: bytes) -> bytes:
        if self._status >= 400:
            return write_error(self._status, body)
        try:
            return write_generate(body)
        except ValueError as e:
            said = error_body(
                f"The endpoint's answer cannot be said in this protocol: {e}", "api_error", None, "bad_upstream_response"
            )
            self.verbatim.head(502, self._headers, stream=False)
            return write_error(502, said)


class ArrayOutlet:
    """A stream of events as the elements of one JSON array, each as soon as it is there."""

    def __init__(self, out: Outlet) -> None:
        self._out = out
        self._splitter = FrameSplitter()
        self._stream = False
        self._first = True

    @property
    def backlog(self) -> int:
        """See `contracts.stage.Outlet`."""
        return self._out.backlog

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        """See `contracts.stage.Outlet`."""
        self._stream = stream
        if stream:
            headers = [
                *((k, v) for k, v in headers if k != "content-type"),
                ("content-type", "application/json; charset=UTF-8"),
            ]
        self._out.head(status, headers, stream=stream)

    def data(self, data: bytes) -> None:
        """See `contracts.stage.Outlet`."""
        if not self._stream:
            self._out.data(data)
            return
        for frame in self._splitter.feed(data):
            element = data_of(frame)
            if element is not None:
                self._out.data((b"[" if self._first else b",\r\n") + element)
                self._first = False

    def end(self) -> None:
        """See `contracts.stage.Outlet`."""
        if self._stream:
            self._out.data(b"[]" if self._first else b"]")
        self._out.end()
