"""Tickets: how a batch's line enters the ordinary journey as the key that owns it, though nobody has that key's text.

The keeper signs with a key that it hands to its workers over their socket; it never leaves the node. A ticket is good
for one exchange and a few minutes. A pass, which an evaluation has in place of an API key, is good for one release until it
expires.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TypeVar

import msgspec

from noria.contracts.batch import Ticket
from noria.contracts.evaluation import Pass
from noria.kit.ids import keyed

T = TypeVar("T", Ticket, Pass)

HEADER = "x-noria-ticket"
MARK = "np-"
"""How a pass begins, where other callers have a key."""
_PURPOSE = b"noria batch ticket\0"
_PASSING = b"noria evaluation pass\0"


def sign(ticket: Ticket, secret: bytes) -> str:
    """The header's value: payload and MAC (keyed BLAKE3), both fit for a header."""
    return _signed(ticket, secret, _PURPOSE)


def verify(value: str, secret: bytes, *, now_ns: int) -> Ticket | None:
    """The ticket, or None where it is not ours, or over."""
    return _verified(value, secret, _PURPOSE, Ticket, now_ns)


def sign_pass(given: Pass, secret: bytes) -> str:
    """What an evaluation sends as its API key."""
    return MARK + _signed(given, secret, _PASSING)


def verify_pass(value: str, secret: bytes, *, now_ns: int) -> Pass | None:
    """The pass, or None where it is not ours, or over."""
    return _verified(value[len(MARK) :], secret, _PASSING, Pass, now_ns) if value.startswith(MARK) else None


def _signed(value: Ticket | Pass, secret: bytes, purpose: bytes) -> str:
    payload = base64.urlsafe_b64encode(msgspec.msgpack.encode(value)).decode()
    return f"{payload}.{keyed(secret, purpose + payload.encode())}"


def _verified(value: str, secret: bytes, purpose: bytes, kind: type[T], now_ns: int) -> T | None:
    payload, found, mac = value.partition(".")
    if not secret or not found or not hmac.compare_digest(mac.encode(), keyed(secret, purpose + payload.encode()).encode()):
        return None
    try:
        said = msgspec.msgpack.decode(base64.urlsafe_b64decode(payload), type=kind)
    except (binascii.Error, msgspec.MsgspecError, ValueError):
        return None
    return said if said.expires_ns > now_ns else None
