"""Tickets of batches' lines."""

from __future__ import annotations

from noria.contracts.batch import Ticket
from noria.gateway.ticket import sign, verify

TICKET = Ticket("key_1", "batch_1", 7, "id", 100)
SECRET = b"s" * 32


def test_a_ticket_is_good_until_it_ends_and_under_its_own_secret_only() -> None:
    value = sign(TICKET, SECRET)
    assert value.isascii()
    assert verify(value, SECRET, now_ns=99) == TICKET
    assert verify(value, SECRET, now_ns=100) is None
    assert verify(value, b"t" * 32, now_ns=0) is None
    assert verify(value, b"", now_ns=0) is None


def test_every_change_of_a_ticket_ends_it() -> None:
    value = sign(TICKET, SECRET)
    for i in range(len(value)):
        changed = value[:i] + ("A" if value[i] != "A" else "B") + value[i + 1 :]
        assert verify(changed, SECRET, now_ns=0) is None
    for nonsense in ("", ".", "a.b", value.partition(".")[0], "\xff.\xff"):
        assert verify(nonsense, SECRET, now_ns=0) is None
