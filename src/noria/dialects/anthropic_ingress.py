"""Anthropic's Messages API as a protocol of callers: `POST /v1/messages` over the chat journey."""

from __future__ import annotations

import msgspec

from noria.contracts.exchange import Dialect, Exchange
from noria.contracts.stage import Outlet
from noria.dialects.anthropic_answer import MessagesWriter, error_status, write_error, write_message
from noria.dialects.anthropic_request import Raws, read_messages_request
from noria.dialects.openai_error import error_body
from noria.dialects.sse import FrameSplitter


class Messages:
    """`contracts.stage.Ingress` of the dialect."""

    dialect: Dialect = "anthropic"

    def read(self, fields: Raws) -> tuple[Raws, tuple[str, ...]]:
        """See `contracts.stage.Ingress`. Nothing is lost here: what is, an endpoint of another dialect loses later."""
        return read_messages_request(fields), ()

    def outlet(self, x: Exchange, out: Outlet) -> Outlet:
        """See `contracts.stage.Ingress`."""
        return MessagesOutlet(x, out)

    def error(self, status: int, body: bytes) -> bytes:
        """See `contracts.stage.Ingress`."""
        return write_error(status, body, "")


class MessagesOutlet:
    """Chat answers in, Messages answers out. `verbatim` is what an answer that is one already goes into."""

    def __init__(self, x: Exchange, out: Outlet) -> None:
        self.verbatim = out
        self._id = x.id
        self._status = 200
        self._headers: list[tuple[str, str]] = []
        self._stream = False
        self._body: list[bytes] = []
        self._splitter = FrameSplitter()
        self._writer = MessagesWriter(x.id)
        self._wrote = False

    @property
    def backlog(self) -> int:
        """See `contracts.stage.Outlet`."""
        return self.verbatim.backlog

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        """See `contracts.stage.Outlet`; `request-id` is where Anthropic's clients look for the id."""
        self._status, self._headers, self._stream = status, [*headers, ("request-id", self._id)], stream
        self._body = []
        if stream or status < 400:
            self.verbatim.head(status, self._headers, stream=stream)

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
            self._whole(b"".join(self._body))
        self.verbatim.end()

    def _whole(self, body: bytes) -> None:
        if self._status >= 400:
            status = error_status(self._status, body)
            self.verbatim.head(status, self._headers, stream=False)
            self.verbatim.data(write_error(status, body, self._id))
            return
        try:
            answer = write_message(body)
        except ValueError as e:
            said = error_body(
                f"The endpoint's answer cannot be said in this protocol: {e}", "api_error", None, "bad_upstream_response"
            )
            self.verbatim.head(502, self._headers, stream=False)
            answer = write_error(502, said, self._id)
        self.verbatim.data(answer)


MESSAGES = Messages()
"""Serves `/v1/messages`."""


def write_models(models: list[tuple[str, str]]) -> bytes:
    """`GET /v1/models` as Anthropic's clients read it, from (id, RFC 3339 time of creation) pairs, all on one page."""
    data = [_model(*model) for model in models]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return msgspec.json.encode({"data": data, "has_more": False, **ends})


def write_model(id: str, created: str) -> bytes:
    """One model as `GET /v1/models/{id}` gives it to them."""
    return msgspec.json.encode(_model(id, created))


def _model(id: str, created: str) -> dict[str, str]:
    return {"type": "model", "id": id, "display_name": id, "created_at": created, "lifecycle": "active"}
