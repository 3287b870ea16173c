"""Tickets of batches' lines."""

from __future__ import annotations

from noria.contracts.batch import Ticket
from noria.contracts.evaluation import Pass
from noria.gateway.ticket import sign, sign_pass, verify, verify_pass

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


def test_a_pass_is_no_ticket_and_a_ticket_no_pass() -> None:
    given = Pass("eval_1", "support", "r1:x", 100)
    value = sign_pass(given, SECRET)
    assert value.startswith("np-")
    assert verify_pass(value, SECRET, now_ns=99) == given
    assert verify_pass(value, SECRET, now_ns=100) is None
    assert verify_pass(value, b"t" * 32, now_ns=0) is None
    assert verify_pass(value[3:], SECRET, now_ns=0) is None
    assert verify(value[3:], SECRET, now_ns=0) is None
    assert verify_pass("np-" + sign(TICKET, SECRET), SECRET, now_ns=0) is None
