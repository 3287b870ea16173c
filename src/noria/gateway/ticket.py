"""Tickets: how a batch's line enters the ordinary journey as the key that owns it, though nobody has that key's text.

The keeper signs with a key that it hands to its workers over their socket; it never leaves the node. A ticket is good
for one exchange and a few minutes.
"""

from __future__ import annotations

import base64
import binascii
import hmac

import msgspec

from noria.contracts.batch import Ticket
from noria.kit.ids import keyed

HEADER = "x-noria-ticket"
_PURPOSE = b"noria batch ticket\0"


def sign(ticket: Ticket, secret: bytes) -> str:
    """The header's value: payload and MAC (keyed BLAKE3), both fit for a header."""
    payload = base64.urlsafe_b64encode(msgspec.msgpack.encode(ticket)).decode()
    return f"{payload}.{_mac(payload, secret)}"


def verify(value: str, secret: bytes, *, now_ns: int) -> Ticket | None:
    """The ticket, or None where it is not ours, or over."""
    payload, found, mac = value.partition(".")
    if not secret or not found or not hmac.compare_digest(mac.encode(), _mac(payload, secret).encode()):
        return None
    try:
        ticket = msgspec.msgpack.decode(base64.urlsafe_b64decode(payload), type=Ticket)
    except (binascii.Error, msgspec.MsgspecError, ValueError):
        return None
    return ticket if ticket.expires_ns > now_ns else None


def _mac(payload: str, secret: bytes) -> str:
    return keyed(secret, _PURPOSE + payload.encode())
