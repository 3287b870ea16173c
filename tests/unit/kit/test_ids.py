"""Identifiers and digests, held against their standards."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.kit.ids import canonical, digest, keyed, parse_traceparent, span_id, trace_id, uuid7

NOW = 1_795_000_000_123_456_789
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_uuid7_is_one_by_the_standard() -> None:
    for _ in range(2000):
        made = uuid.UUID(uuid7(NOW))
        assert made.version == 7
        assert made.variant == uuid.RFC_4122
        assert made.int >> 80 == NOW // 1_000_000


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    assert uuid7(NOW) < uuid7(NOW + 1_000_000)
    assert trace_id(NOW) < trace_id(NOW + 1_000_000)
    assert len({uuid7(NOW) for _ in range(5000)}) == 5000
    assert len({trace_id(NOW) for _ in range(5000)}) == 5000


def test_every_random_bit_is_used() -> None:
    seen_one = seen_zero = 0
    for _ in range(400):
        bits = uuid.UUID(uuid7(0)).int
        seen_one |= bits
        seen_zero |= ~bits
    random = ((1 << 12) - 1) << 64 | ((1 << 62) - 1)
    assert seen_one & random == random
    assert seen_zero & random == random


def test_a_trace_id_begins_with_its_milliseconds() -> None:
    assert int(trace_id(NOW)[:12], 16) == NOW // 1_000_000
    assert len(trace_id()) == 32


def test_a_span_id_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(span_id()) == 16
    monkeypatch.setattr("noria.kit.ids.random_bytes", lambda n: bytes(n))
    assert int(span_id(), 16) != 0


def test_a_traceparent_is_read() -> None:
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-01") == (TRACE, SPAN)
    assert parse_traceparent(f"  00-{TRACE}-{SPAN}-00 ") == (TRACE, SPAN)
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like") == (TRACE, SPAN)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{'g' * 32}-{SPAN}-01",
    ],
)
def test_a_malformed_traceparent_is_none(bad: str) -> None:
    assert parse_traceparent(bad) is None


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.text(max_size=80))
def test_no_header_breaks_the_reader(text: str) -> None:
    found = parse_traceparent(text)
    assert found is None or len(found[0]) == 32


def test_the_canonical_form_is_that_of_rfc_8785() -> None:
    value = {"\u20ac": "Euro Sign", "\r": "CR", "1": "One", "numbers": [333333333.33333329, 1e30, 4.50, 2e-3]}
    assert canonical(value).decode() == '{"\\r":"CR","1":"One","numbers":[333333333.3333333,1e+30,4.5,0.002],"€":"Euro Sign"}'


def test_equal_values_have_one_digest() -> None:
    assert digest(canonical({"a": 1, "b": 2.0})) == digest(canonical({"b": 2, "a": 1}))
    assert digest(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", "BLAKE3's own test vector"


def test_a_keyed_digest_is_known_to_holders_of_the_key_only() -> None:
    one, two = b"1" * 32, b"2" * 32
    assert keyed(one, b"data") == keyed(one, b"data")
    assert len({keyed(one, b"data"), keyed(two, b"data"), digest(b"data"), keyed(one, b"other")}) == 4


def test_ids_made_one_after_the_other_rise_even_within_a_millisecond() -> None:
    made = [uuid7() for _ in range(5000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(i[14] == "7" and i[19] in "89ab" for i in made)
