"""What an answer of a model endpoint means: usable, or which `UpstreamError`; and the gate its stream passes.

Shared by every provider that speaks HTTP. Codes: upstream_refused (no connection), upstream_timeout,
upstream_cut (broke off), upstream_overloaded (529), upstream_rate_limited (429), upstream_auth (401, 402, 403), upstream_error (its 5xx, and
4xx that are the caller's), bad_upstream_response (success that cannot be read).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import msgspec

from noria.contracts.error import UpstreamError
from noria.contracts.stage import Sink
from noria.dialects.openai_stream import DONE, StreamReader, error_of
from noria.dialects.sse import FrameSplitter, frame_end, marked
from noria.kit.http_client import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    FirstByteTimeout,
    HttpCallError,
    IdleTimeout,
    PoolExhausted,
    TotalTimeout,
)

Headers = list[tuple[str, str]]
"""Names in lower case."""

BODY_LIMIT = 64 * 1024
"""Bytes kept of an error body."""

_KEPT = ("x-request-id", "request-id", "openai-processing-ms", "openai-version", "apim-request-id", "cf-ray")
_KEPT_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-")
_AUTH = (401, 402, 403)


def kept_headers(headers: Headers) -> tuple[tuple[str, str], ...]:
    """The upstream headers worth keeping: request id, processing time, rate limits. Never cookies."""
    return tuple([(name, value) for name, value in headers if name in _KEPT or name.startswith(_KEPT_PREFIXES)])


def header(headers: Headers, name: str) -> str:
    """The first value of a header, or an empty string."""
    return next((value for key, value in headers if key == name), "")


def retry_after(headers: Headers, now: float) -> float | None:
    """Seconds to wait: `retry-after-ms`, else `retry-after` in seconds or as an HTTP date. `now` is Unix time."""
    milliseconds, seconds = header(headers, "retry-after-ms"), header(headers, "retry-after")
    wait = _number(milliseconds)
    if wait is not None:
        wait /= 1000
    else:
        wait = _number(seconds)
    if wait is None and seconds:
        try:
            at = parsedate_to_datetime(seconds)
        except (ValueError, IndexError):
            return None
        wait = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now
    return wait if wait is not None and 0 < wait < 86_400 else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def refusal(status: int, headers: Headers, body: bytes, *, now: float, who: str) -> UpstreamError:
    """The error that an answer with a status of 400 or more is. `who` names the endpoint in messages."""
    if status == 429:
        code = "upstream_rate_limited"
    elif status in _AUTH:
        code = "upstream_auth"
    elif status in (408, 504):
        code = "upstream_timeout"
    elif status == 529:  # Anthropic's, and of vLLM's front ends: everybody is refused for a moment
        code = "upstream_overloaded"
    else:
        code = "upstream_error"
    said = "" if code == "upstream_auth" else message_of(body)  # words about a key may quote it
    return UpstreamError(
        f"{who} answered {status}" + (f": {said}" if said else "."),
        code=code,
        upstream_status=status,
        body=body[:BODY_LIMIT],
        retry_after=retry_after(headers, now),
    )


def garbled(why: str, *, who: str, status: int = 200, body: bytes = b"") -> UpstreamError:
    """The error of an endpoint that reports success and sends something that cannot be used."""
    return UpstreamError(f"{who} {why}.", code="bad_upstream_response", upstream_status=status, body=body[:BODY_LIMIT])


# The first that fits counts: the kinds are subclasses of each other.
_FAILURES: tuple[tuple[type[HttpCallError], str, str], ...] = (
    (PoolExhausted, "upstream_refused", "has no free connection"),
    (ConnectTimeout, "upstream_timeout", "did not accept the connection in time"),
    (ConnectFailed, "upstream_refused", "cannot be reached"),
    (FirstByteTimeout, "upstream_timeout", "did not begin to answer in time"),
    (IdleTimeout, "upstream_timeout", "stopped sending in the middle of its answer"),
    (TotalTimeout, "upstream_timeout", "did not finish in time"),
    (BadResponse, "bad_upstream_response", "sent something that is not HTTP"),
)


def transport_failure(error: HttpCallError, *, who: str, started: bool = False) -> UpstreamError:
    """The error that a failed call is; whatever is not in the table is a lost connection."""
    found = ((code, what) for kind, code, what in _FAILURES if isinstance(error, kind))
    code, what = next(found, ("upstream_cut", "broke off the connection"))
    return UpstreamError(f"{who} {what}: {error}", code=code, started=started)


class _Said(msgspec.Struct):
    message: Any = None
    type: Any = None
    code: Any = None


class _ErrorBody(msgspec.Struct):
    error: _Said | str | None = None
    message: Any = None
    detail: Any = None


def message_of(body: bytes) -> str:
    """What an error body says, for people: `error.message`, `error`, `message` or `detail`; at most 500 characters."""
    try:
        said = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    text = said.error.message if isinstance(said.error, _Said) else said.error or said.message or said.detail
    return text[:500] if isinstance(text, str) else ""


def stream_refusal(error: bytes, *, who: str, started: bool) -> UpstreamError:
    """The error that an error frame inside a stream of status 200 is. `error` is the JSON of its `error`."""
    body = b'{"error":' + error + b"}"
    try:
        said = msgspec.json.decode(error, type=_Said)
    except msgspec.DecodeError:
        said = _Said()
    words = f"{said.type} {said.code}".lower()
    code = "upstream_overloaded" if "overloaded" in words else "upstream_error"
    if "rate_limit" in words or " 429" in words:
        code = "upstream_rate_limited"
    text = message_of(body) or "an error without words"
    return UpstreamError(
        f"{who} failed inside the stream: {text}", code=code, upstream_status=200, body=body[:BODY_LIMIT], started=started
    )


class Tap(Protocol):
    """Turns the bytes of an upstream's stream into OpenAI frames and knows how far the answer has come."""

    failure: UpstreamError | None
    """The error inside the stream that ended it; what follows it is not looked at."""

    @property
    def started(self) -> bool:
        """Whether content has come."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer has ended as it should."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Whole OpenAI frames for the bytes, up to an error frame. Raises ValueError on garbage."""
        ...

    def end(self) -> bytes:
        """What is left at the end of the bytes."""
        ...


_ERROR = (b'"error"',)
_TAIL = 16 * 1024
"""Bytes of the end of a stream in which its last `finish_reason` is looked for."""
_BLOCKS = 64
"""Reads that are kept whole for it: cutting them to size each time would cost more than all else."""


class OpenAITap:
    """Frames of an OpenAI-compatible stream, each with its original bytes; an error frame ends it.

    Decoding stops at the first content frame: after it, one search a read finds the frames that may be errors.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._splitter = FrameSplitter()
        self._reader = StreamReader()
        """Has read the frames as far as the first with content."""
        self._blocks: list[bytes] = []
        self.started = False
        self.failure: UpstreamError | None = None

    @property
    def id(self) -> str:
        """The answer's id, once it is known."""
        return self._reader.id

    @property
    def complete(self) -> bool:
        """`[DONE]` has come, or, for vendors that leave it out, a `finish_reason` near the end."""
        tail = self._tail()
        if tail.endswith(DONE):
            return True
        reader = StreamReader()
        for frame in reversed(FrameSplitter().feed(tail)):
            reader.read(frame)
            if reader.done or reader.finish_reason:
                return True
        return False

    def feed(self, data: bytes) -> bytes:
        """As `Tap.feed`."""
        block = self._splitter.block(data)
        self._blocks.append(block)
        if len(self._blocks) > _BLOCKS:
            self._blocks = [self._tail()]
        at = 0
        while (at := at if not self.started else marked(block, at, _ERROR)) < len(block):
            end = frame_end(block, at)
            if not self._look(block[at:end]):
                return block[:at]
            at = end
        return block

    def end(self) -> bytes:
        """A last event that lacks its blank line, completed: no client would dispatch it without."""
        rest = self._splitter.rest()
        if not rest.strip() or not self._look(rest):
            return b""
        whole = rest if rest.endswith((b"\n\n", b"\r\r")) else rest.rstrip(b"\r\n") + b"\n\n"
        self._blocks.append(whole)
        return whole

    def _look(self, frame: bytes) -> bool:
        """Take note of a frame; whether it may pass."""
        if (error := error_of(frame)) is not None:
            self.failure = stream_refusal(error, who=self._who, started=self.started)
            return False
        if not self.started:
            self._reader.read(frame)
            self.started = self._reader.started
        return True

    def _tail(self) -> bytes:
        """The end of what has come, `_TAIL` bytes where there are as many."""
        size, found = 0, len(self._blocks)
        while found and size < _TAIL:
            found -= 1
            size += len(self._blocks[found])
        return b"".join(self._blocks[found:])[-_TAIL:]


class Reading(Protocol):
    """What a `ReaderTap` asks of the reader of its dialect."""

    id: str
    done: bool
    error: bytes | None

    @property
    def started(self) -> bool:
        """Whether content has come."""
        ...

    def read(self, frame: bytes) -> int:
        """Take note of one frame."""
        ...


class ReaderTap:
    """Events of a stream in another dialect, each with its original bytes; what its reader finds to be an error ends it."""

    def __init__(self, reader: Reading, who: str) -> None:
        self._who = who
        self._splitter = FrameSplitter()
        self._reader = reader
        self.failure: UpstreamError | None = None

    @property
    def started(self) -> bool:
        """As `Tap.started`."""
        return self._reader.started

    @property
    def complete(self) -> bool:
        """As `Tap.complete`."""
        return self._reader.done

    @property
    def id(self) -> str:
        """The answer's id, once it is known."""
        return self._reader.id

    def feed(self, data: bytes) -> bytes:
        """As `Tap.feed`."""
        frames = self._splitter.feed(data)
        for i, frame in enumerate(frames):
            if not self._look(frame):
                return b"".join(frames[:i])
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def end(self) -> bytes:
        """As `Tap.end`: a last event that lacks its blank line, completed."""
        rest = self._splitter.rest()
        if not rest.strip() or not self._look(rest):
            return b""
        return rest if rest.endswith((b"\n\n", b"\r\r")) else rest.rstrip(b"\r\n") + b"\n\n"

    def _look(self, frame: bytes) -> bool:
        self._reader.read(frame)
        if self._reader.error is None:
            return True
        self.failure = stream_refusal(self._reader.error, who=self._who, started=self.started)
        return False


class Gate:
    """The `on_head` and sink of one streamed answer. What ends it (`failure`) is raised out of the sink, so that the
    connection closes and another endpoint can be asked at once: a broken upstream may well go on sending.
    """

    def __init__(self, tap: Tap, sink: Sink, *, who: str) -> None:
        self._tap = tap
        self._sink = sink
        self._who = who
        self._open = False
        self.failure: UpstreamError | None = None

    @property
    def started(self) -> bool:
        """Whether content has been passed on."""
        return self._tap.started

    def head(self, status: int, headers: Headers) -> Sink | None:
        """The sink for a stream; None where the answer is none, so that its body comes whole."""
        if status >= 400 or "text/event-stream" not in header(headers, "content-type").lower():
            return None
        self._open = True
        return self._take

    def close(self, status: int, headers: Headers, body: bytes, *, now: float) -> None:
        """The answer is over. Raises the `UpstreamError` that it amounts to, if it does."""
        if status >= 400:
            raise refusal(status, headers, body, now=now, who=self._who)
        if not self._open:
            kind = header(headers, "content-type") or "no content type"
            raise garbled(f"was asked for a stream and sent {kind}", who=self._who, status=status, body=body)
        if self.failure is None:
            self._pass(self._tap.end)
        if self.failure is not None:
            raise self.failure
        if not self._tap.complete:
            raise UpstreamError(f"{self._who} broke off its stream before the end.", code="upstream_cut", started=self.started)

    def _take(self, data: bytes) -> None:
        if self.failure is None:
            self._pass(self._tap.feed, data)
        if self.failure is not None:
            raise self.failure

    def _pass(self, source: Callable[..., bytes], *data: bytes) -> None:
        try:
            frames = source(*data)
        except ValueError as e:
            self.failure = garbled(f"sent a stream that cannot be read: {e}", who=self._who)
            self.failure.started = self.started
        else:
            self.failure = self._tap.failure
            if frames:
                self._sink(frames)
