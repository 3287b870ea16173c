"""Identifiers and digests: UUIDv7 (RFC 9562), W3C trace ids that sort by time, RFC 8785 digests."""

from __future__ import annotations

import os
import time
from typing import Any

from blake3 import blake3

_HEX = "0123456789abcdef"
_VARIANT = {digit: "89ab"[i % 4] for i, digit in enumerate(_HEX)}
"""RFC 9562 §4.1: the two highest bits of the 17th hex digit are 10."""
_pool = b""
_used = 0
_TAIL = (1 << 74) - 1
_last = (0, 0)
"""Milliseconds and tail of the last id made from the clock."""


def random_bytes(n: int) -> bytes:
    """`n` random bytes, drawn from the kernel in blocks: one system call serves many ids.

    A forked child would repeat its parent's block; Noria never forks after import (it spawns).
    """
    global _pool, _used
    if _used + n > len(_pool):
        _pool, _used = os.urandom(4096), 0
    start, _used = _used, _used + n
    return _pool[start:_used]


def uuid7(now_ns: int | None = None) -> str:
    """A UUIDv7 as 36 characters: 48 bits of milliseconds, then 74 random bits.

    Ids that this process makes in one millisecond (or while the clock stands back) rise too: the random
    bits go up by a random step (RFC 9562 §6.2, method 2).

    >>> len(uuid7()), uuid7(0)[14]
    (36, '7')
    """
    global _last  # noqa: PLW0603  the last id is what the next one must exceed
    if now_ns is not None:
        h = f"{now_ns // 1_000_000 & 0xFFFFFFFFFFFF:012x}{random_bytes(10).hex()}"
        return f"{h[:8]}-{h[8:12]}-7{h[13:16]}-{_VARIANT[h[16]]}{h[17:20]}-{h[20:]}"
    ms = time.time_ns() // 1_000_000
    if ms > _last[0]:
        _last = (ms, int.from_bytes(random_bytes(10), "big") & _TAIL >> 1)  # the top bit is room to rise
    else:
        _last = (_last[0], _last[1] + 1 + int.from_bytes(random_bytes(4), "big"))
    return _uuid7(*_last)


def _uuid7(ms: int, tail: int) -> str:
    """The text of a UUIDv7 from its time and its 74 other bits."""
    value = (ms & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | (tail >> 62 & 0xFFF) << 64 | 0b10 << 62 | tail & (1 << 62) - 1
    h = f"{value:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def trace_id(now_ns: int | None = None) -> str:
    """32 hex digits, never all zero: 48 bits of milliseconds, then 80 random bits (DESIGN §3a.5)."""
    ms = (time.time_ns() if now_ns is None else now_ns) // 1_000_000
    return f"{ms & 0xFFFFFFFFFFFF:012x}" + random_bytes(10).hex()


def span_id() -> str:
    """16 hex digits, never all zero."""
    span = random_bytes(8)
    return span.hex() if any(span) else "0000000000000001"


def parse_traceparent(value: str) -> tuple[str, str] | None:
    """(trace id, parent span id) of a W3C `traceparent` header, or None where it is malformed.

    https://www.w3.org/TR/trace-context/#traceparent-header: an unknown version is read as version 0.
    """
    parts = value.strip().split("-")
    if len(parts) < 4 or len(parts[0]) != 2 or parts[0] == "ff" or (parts[0] == "00" and len(parts) != 4):
        return None
    trace, span = parts[1], parts[2]
    if len(trace) != 32 or len(span) != 16 or not set(parts[0] + trace + span) <= set(_HEX):
        return None
    if trace.strip("0") == "" or span.strip("0") == "":
        return None
    return trace, span


def canonical(value: Any) -> bytes:
    """RFC 8785 (JSON Canonicalization Scheme) form of a JSON value."""
    import rfc8785

    return rfc8785.dumps(value)


def digest(data: bytes) -> str:
    """BLAKE3 of `data`, 64 hex digits."""
    return blake3(data).hexdigest()


def keyed(key: bytes, data: bytes) -> str:
    """BLAKE3 of `data` under a 32-byte key, 64 hex digits: equal only for holders of one key."""
    return blake3(data, key=key).hexdigest()
