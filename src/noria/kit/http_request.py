"""Requests off the wire, strictly: what two parsers could read in two ways is refused (RFC 9112 §11.2, CWE-444).

llhttp in its strict mode refuses most of it (bare CR or LF, folded lines, bad chunk sizes, both framings);
this module adds what llhttp leaves to the application: sizes and counts, repeated headers, coding lists,
old and new versions, target forms, and trailers, which are dropped.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

import httptools
import msgspec

from noria.kit.http_head import header_name
from noria.kit.http_response import Response

_METHODS = {m.encode(): m for m in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_SINGLE = frozenset({"host", "content-length", "transfer-encoding", "authorization", "content-type", "expect"})
_HOST = re.compile(r"[A-Za-z0-9._~-]+(:[0-9]{0,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{0,5})?").fullmatch
_IDLE, _HEAD, _BODY = range(3)
_AHEAD = 64
"""Pipelined requests that may wait on one connection."""
_hosts: set[str] = set()
"""Host values found well-formed, so that the usual one costs a look-up; bounded by `_HOSTS`."""
_HOSTS = 256


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Every bound of the server; bytes and seconds."""

    max_head: int = 32 * 1024
    max_headers: int = 100
    max_body: int = 16 * 1024 * 1024
    max_buffered: int = 256 * 1024 * 1024
    """Bytes of unfinished bodies over all connections."""
    max_connections: int = 4096
    max_ahead: int = 64 * 1024
    """Bytes that a client may send ahead of the answer it waits for, before we stop reading."""
    header_timeout: float = 10.0
    """From the first byte of a request (or from accept) to the end of its head."""
    body_timeout: float = 30.0
    """Between two pieces of a body."""
    idle_timeout: float = 75.0
    """Between an answer and the next request."""
    write_timeout: float = 60.0
    """How long a client may leave a full send buffer untouched."""
    linger: float = 2.0
    """How long we listen on after a refusal, so that a reset does not destroy the answer on its way."""


class Refusal(msgspec.Struct, frozen=True):
    """Why a request is not served; the connection closes after the answer."""

    status: int
    code: str
    message: str


class Buffered:
    """Bytes of unfinished bodies, over all connections of one server."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class Spill(Protocol):
    """Where the body of one request goes instead of memory; whoever gets the request closes it."""

    limit: int
    """Bytes at most, in place of `Limits.max_body`."""

    def too_large(self) -> Refusal:
        """The answer to a body beyond `limit`."""
        ...

    def write(self, part: bytes, /) -> Refusal | None:
        """Take the next piece; why not, where it cannot."""
        ...

    def close(self) -> None:
        """Let go of what was written. Idempotent."""
        ...


class Request:
    """One request, complete. `path` is raw (not percent-decoded) and without the query."""

    __slots__ = ("arrival", "body", "headers", "http10", "keep_alive", "method", "path", "peer", "query", "response", "spill")

    response: Response

    def __init__(self, method: str, path: str, query: str, headers: dict[str, str]) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        """Lower-case names, latin-1 values; repeated ones joined by ", "."""
        self.body = b""
        self.spill: Spill | None = None
        """What took the body; `body` is empty then."""
        self.peer = ""
        """The client's address, or "" on a unix socket."""
        self.keep_alive = True
        self.http10 = False
        self.arrival = 0
        """`perf_counter_ns` when the last byte of the request had come."""


Divert = Callable[[Request], Spill | Refusal | None]
"""Says of a request, before its body is read, that it goes somewhere else than into memory, or nowhere at all."""


class _Stop(Exception):
    """Unwinds llhttp once `refusal` has been set; nobody sees it."""


class RequestReader:
    """The parser of one connection: bytes go in, `complete` requests and at most one `refusal` come out."""

    __slots__ = (
        "_body",
        "_budget",
        "_divert",
        "_fed",
        "_final",
        "_fresh",
        "_held",
        "_limits",
        "_parser",
        "_raw",
        "_request",
        "_spill",
        "_state",
        "_url",
        "complete",
        "expects",
        "peer",
        "refusal",
    )

    def __init__(self, limits: Limits, budget: Buffered, divert: Divert | None = None) -> None:
        self._limits = limits
        self._budget = budget
        self._divert = divert
        self._spill: Spill | None = None
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._state = _IDLE
        self._final = False
        self._fresh = False
        self._fed = 0
        self._held = 0
        self._url = b""
        self._raw: list[tuple[bytes, bytes]] = []
        self._body: bytes | bytearray = b""
        self._request: Request | None = None
        self.peer = ""
        """The client's address, for each request."""
        self.complete: deque[Request] = deque()
        self.refusal: Refusal | None = None
        """Once set, nothing further is read; it is due after the answers to `complete`."""
        self.expects = False
        """Whether the client waits for `100 Continue` before it sends its body."""

    @property
    def in_body(self) -> bool:
        """Whether a head is complete and its body is not."""
        return self._state == _BODY

    @property
    def between(self) -> bool:
        """Whether no request has begun."""
        return self._state == _IDLE

    def feed(self, data: bytes) -> None:
        """Parse the next bytes, split anywhere."""
        if self._final or self.refusal is not None or self._parser is None:
            return
        self._fresh = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._set(501, "upgrade_unsupported", "This server speaks HTTP/1.1 only; send no Upgrade and no CONNECT.")
        except httptools.HttpParserError as e:
            if isinstance(e, httptools.HttpParserCallbackError) and not isinstance(e.__context__, _Stop):
                raise
            self._broken(str(e))
        else:
            if self._state != _IDLE and not self._fresh:
                self._count_idle(len(data))

    def close(self) -> None:
        """Let go of the parser (it refers back to us) and of what is buffered."""
        self._parser = None
        self._release()
        for request in self.complete:
            if request.spill is not None:
                request.spill.close()
        self.complete.clear()

    def _broken(self, reason: str) -> None:
        # What follows a request with `connection: close` in the same read is nobody's business.
        if not self._final and self.refusal is None:
            self._set(*_classify(reason))

    def _count_idle(self, size: int) -> None:
        # Heads that dribble in, chunk extensions and trailers show up in no other counter.
        self._fed += size
        if self._fed > self._limits.max_head:
            self._set(*self._head_too_large())

    def _set(self, status: int, code: str, message: str) -> None:
        self.refusal = Refusal(status, code, message)
        self._release()

    def _refuse(self, status: int, code: str, message: str) -> _Stop:
        self._set(status, code, message)
        return _Stop()

    def _release(self) -> None:
        self._budget.used -= self._held
        self._held = 0
        self._body = b""
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    # ── called by httptools ──

    def on_url(self, part: bytes) -> None:
        """A piece of the request target."""
        if self._state == _HEAD:
            self._url += part
        elif self._final:
            raise _Stop
        else:
            self._state = _HEAD
            self._fresh = True
            self._fed = 0
            self._url = part
        if len(self._url) > self._limits.max_head:
            raise self._refuse(414, "target_too_long", f"The request target exceeds {self._limits.max_head} bytes.")

    def on_header(self, raw: bytes, value: bytes) -> None:
        """One header, or one trailer: those are counted alike and dropped, for they must not pass for headers."""
        raws = self._raw
        raws.append((raw, value))
        if len(raws) > self._limits.max_headers:
            raise self._refuse(*self._head_too_large())

    def on_headers_complete(self) -> None:
        """Everything that can be refused before the body is."""
        parser = self._parser
        assert parser is not None
        method = _METHODS.get(parser.get_method())
        version = parser.get_http_version()
        headers = self._collect()
        if version != "1.1" and version != "1.0":
            raise self._refuse(505, "http_version_unsupported", f"HTTP/{version} is not spoken here; use HTTP/1.1.")
        if method is None or "upgrade" in headers:
            name = parser.get_method().decode("latin-1") if method is None else "Upgrade"
            raise self._refuse(501, "method_unsupported", f"{name} is not supported.")
        self._check_framing(headers, version)
        path, query = self._target(headers, method, version)
        request = Request(method, path, query, headers)
        request.peer = self.peer
        request.http10 = version == "1.0"
        request.keep_alive = version == "1.1" and parser.should_keep_alive()
        if self._divert is not None:
            self._send_aside(self._divert(request))
        self._check_length(headers)
        self._request = request
        self._state = _BODY
        self._fed = 0
        if "expect" in headers:
            self._check_expect(headers, version)

    def on_body(self, part: bytes) -> None:
        """A piece of the body; one piece stays as it is, several are joined in one growing buffer."""
        self.expects = False
        self._fresh = True
        self._fed = 0
        if self._spill is not None:
            refusal = self._spill.write(part)
            if refusal is not None:
                raise self._refuse(refusal.status, refusal.code, refusal.message)
            return
        held = self._held = self._held + len(part)
        budget = self._budget
        budget.used += len(part)
        if held > self._limits.max_body:
            raise self._too_large()
        if budget.used > self._limits.max_buffered:
            raise self._refuse(503, "overloaded", "The server holds too many unfinished request bodies. Try again later.")
        if not self._body:
            self._body = part
        elif isinstance(self._body, bytearray):
            self._body += part
        else:
            self._body = bytearray(self._body)
            self._body += part

    def on_message_complete(self) -> None:
        """The request is whole."""
        request = self._request
        assert request is not None
        body = self._body
        request.body = body if isinstance(body, bytes) else bytes(body)
        request.spill, self._spill = self._spill, None  # the request's from now on
        request.arrival = perf_counter_ns()
        self._release()
        self._request = None
        self._raw = []
        self._state = _IDLE
        self.expects = False
        self._final = not request.keep_alive
        if len(self.complete) >= _AHEAD:
            if request.spill is not None:
                request.spill.close()
            raise self._refuse(400, "pipeline_too_long", f"More than {_AHEAD} pipelined requests are waiting.")
        self.complete.append(request)

    # ── checks of a whole head ──

    def _collect(self) -> dict[str, str]:
        """The headers by name; raises where they are too large or a name repeats that must not."""
        raws, self._raw = self._raw, []
        headers: dict[str, str] = {}
        size = len(self._url)
        for raw, value in raws:
            size += len(raw) + len(value) + 4
            name = header_name(raw)
            text = value.decode("latin-1").strip(" \t")
            if name in headers:
                if name in _SINGLE:
                    raise self._refuse(400, "duplicate_header", f"The header {name} must not be repeated.")
                text = f"{headers[name]}, {text}"
            headers[name] = text
        if size > self._limits.max_head:
            raise self._refuse(*self._head_too_large())
        return headers

    def _check_framing(self, headers: dict[str, str], version: str) -> None:
        coding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        if coding is not None:
            if version == "1.0" or length is not None:
                raise self._refuse(400, "ambiguous_length", "Transfer-Encoding needs HTTP/1.1 and excludes Content-Length.")
            if coding != "chunked":
                raise self._refuse(501, "coding_unsupported", "The only Transfer-Encoding understood here is: chunked")
        elif length is not None and not (length.isascii() and length.isdigit()):
            raise self._refuse(400, "bad_length", "Content-Length must be one decimal number.")

    def _check_length(self, headers: dict[str, str]) -> None:
        """Whether an announced body is small enough for where it goes."""
        length = headers.get("content-length", "0")
        most = self._limits.max_body if self._spill is None else self._spill.limit
        if len(length) > 18 or int(length) > most:
            raise self._too_large()

    def _send_aside(self, where: Spill | Refusal | None) -> None:
        """The body goes to `where`. Raises where that is nowhere."""
        if isinstance(where, Refusal):
            raise self._refuse(where.status, where.code, where.message)
        self._spill = where

    def _target(self, headers: dict[str, str], method: str, version: str) -> tuple[str, str]:
        """Path and query of the target; raises where it or `Host` is malformed, or the two disagree (RFC 9112 §3.2)."""
        url = self._url.decode("latin-1")
        host = headers.get("host")
        if host is None:
            if version == "1.1":
                raise self._refuse(400, "host_missing", "HTTP/1.1 requests need a Host header.")
        elif host not in _hosts and not _well_formed(host):
            raise self._refuse(400, "host_invalid", "The Host header must be one name or address with an optional port.")
        if not url.startswith("/"):
            url = self._other_form(url, headers, method)
        if "#" in url or not url.isascii():
            raise self._refuse(400, "target_invalid", "The request target must be ASCII and have no fragment.")
        path, _, query = url.partition("?")
        return path, query

    def _other_form(self, url: str, headers: dict[str, str], method: str) -> str:
        if url == "*" and method == "OPTIONS":
            return url
        scheme, found, rest = url.partition("://")
        slash = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
        authority = rest[:slash]
        if not found or scheme.lower() not in ("http", "https") or _HOST(authority) is None:
            raise self._refuse(400, "target_invalid", "The request target must be a path or an http URL.")
        if headers.setdefault("host", authority).lower() != authority.lower():
            raise self._refuse(400, "host_mismatch", "The Host header does not agree with the request target.")
        path = rest[slash:]
        return path if path.startswith("/") else f"/{path}"

    def _check_expect(self, headers: dict[str, str], version: str) -> None:
        if headers["expect"].lower() != "100-continue":
            raise self._refuse(417, "expectation_failed", "The only expectation understood here is: 100-continue")
        # Without a body nothing needs to be asked for; HTTP/1.0 clients do not know 1xx (RFC 9110 §10.1.1).
        self.expects = version == "1.1" and ("transfer-encoding" in headers or headers.get("content-length", "0") != "0")

    def _head_too_large(self) -> tuple[int, str, str]:
        limits = self._limits
        return 431, "headers_too_large", f"The request head exceeds {limits.max_head} bytes or {limits.max_headers} headers."

    def _too_large(self) -> _Stop:
        if self._spill is not None:
            refusal = self._spill.too_large()
            return self._refuse(refusal.status, refusal.code, refusal.message)
        return self._refuse(413, "body_too_large", f"The request body exceeds {self._limits.max_body} bytes.")


def _classify(reason: str) -> tuple[int, str, str]:
    """Status, code and message for a reason of llhttp, which is fixed text and repeats no input."""
    if "PRI" in reason or "HTTP version" in reason:
        return 505, "http_version_unsupported", "This server speaks HTTP/1.1 only."
    return 400, "bad_request", f"This is not valid HTTP/1.1: {reason}."


def _well_formed(host: str) -> bool:
    if _HOST(host) is None:
        return False
    if len(_hosts) < _HOSTS:
        _hosts.add(host)
    return True
