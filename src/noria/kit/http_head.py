"""What both ends of HTTP/1.1 share: header names, header lines that cannot be split, status lines (RFC 9110, 9112).

Framing belongs to the connection alone: whoever relays a foreign `content-length` by accident would
desynchronise it, so the names in `FRAMING` are refused from callers.
"""

from __future__ import annotations

import re
from http import HTTPStatus

Headers = list[tuple[str, str]]
"""Names in lower case as they came or will go, values decoded as latin-1; order and repetition are kept."""

FRAMING = frozenset({"connection", "content-length", "transfer-encoding", "host", "date", "accept-encoding", "keep-alive"})
"""Header names that the HTTP ends write themselves."""

CODING = "x-noria-coding"
"""Between processes of ours, where a relay takes no `content-encoding`: what the caller accepts, and what an answer is packed in."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_REMEMBERED = 1024
_checked: set[str] = set()
_names: dict[bytes, str] = {}
_STATUS_LINES = {int(s): f"HTTP/1.1 {int(s)} {s.phrase}\r\n" for s in HTTPStatus}


def header_lines(headers: Headers) -> str:
    r"""The header block as text, every line ended by CRLF.

    Raises `ValueError` for a name that is no token or belongs to the framing, and for CR, LF or NUL in a value.

    >>> header_lines([("x-a", "1")])
    'x-a: 1\r\n'
    """
    for name, _ in headers:
        if name not in _checked:
            _check_name(name)
    text = "".join([f"{name}: {value}\r\n" for name, value in headers])
    # Each line brings exactly one CR and one LF of its own: three scans of the whole are cheaper than a scan of each value.
    if text.count("\r") != len(headers) or text.count("\n") != len(headers) or "\0" in text:
        bad = next(name for name, value in headers if any(c in value for c in "\r\n\0"))
        raise ValueError(f"the value of header {bad!r} contains CR, LF or NUL")
    return text


def _check_name(name: str) -> None:
    if _TOKEN(name) is None:
        raise ValueError(f"{name!r} is not a header name")
    if name.lower() in FRAMING:
        raise ValueError(f"header {name!r} is written by the HTTP layer itself; leave it out")
    if len(_checked) < _REMEMBERED:
        _checked.add(name)


def header_name(raw: bytes) -> str:
    """A received header name in lower case; the usual ones are remembered, so that they cost one look-up."""
    name = _names.get(raw)
    if name is None:
        name = raw.decode("latin-1").lower()
        if len(_names) < _REMEMBERED and len(raw) <= 64:
            _names[raw] = name
    return name


def status_line(status: int) -> str:
    """The first line of a response; a status without a registered phrase (529) gets an empty one.

    Raises `ValueError` outside 200..599: interim answers are the server's own business.
    """
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is not the status of a final response")
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"
