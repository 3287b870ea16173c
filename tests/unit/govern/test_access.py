"""Keys, the admin token, console sessions."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from noria.contracts.error import StoreError
from noria.govern.access import SESSION_NS, Sessions, admin_token, cookie, new_key
from noria.kit.ids import digest

HOUR = 3600 * 1_000_000_000


def test_a_keys_record_does_not_hold_its_text() -> None:
    text, key = new_key(now_ns=5, name="ci", apps=("support",), rpm=9)
    assert text.startswith("nk-")
    assert key.hash == digest(text.encode())
    assert text not in repr(key)
    assert (key.name, key.apps, key.rpm, key.created_ns) == ("ci", ("support",), 9, 5)


def test_the_hint_tells_keys_apart_without_giving_them_away() -> None:
    text, key = new_key(now_ns=5)
    assert key.hint == f"{text[:6]}…{text[-4:]}"
    assert len(text) - 10 > 32


def test_keys_are_256_random_bits() -> None:
    texts = {new_key(now_ns=5)[0] for _ in range(500)}
    assert len(texts) == 500
    assert {len(t) for t in texts} == {3 + 43}


def test_the_admin_token_is_made_once_and_is_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    token = admin_token(home)
    assert admin_token(home) == token
    assert token.startswith("na-")
    assert stat.S_IMODE((home / "admin.token").stat().st_mode) == 0o600
    assert [p.name for p in home.iterdir()] == ["admin.token"]


def test_a_half_written_token_of_a_crash_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "admin.new").write_text("na-hal")
    assert len(admin_token(tmp_path)) > 40


def test_a_home_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="admin token"):
        admin_token(tmp_path / "file" / "home")


def test_a_session_is_good_for_twelve_hours() -> None:
    sessions = Sessions("na-token")
    session = sessions.issue(HOUR)
    assert SESSION_NS == 12 * HOUR
    assert sessions.valid(session, HOUR)
    assert sessions.valid(session, 13 * HOUR - 1)
    assert not sessions.valid(session, 13 * HOUR)


def test_a_session_of_another_token_is_worthless() -> None:
    assert not Sessions("na-new").valid(Sessions("na-old").issue(0), 1)


def test_a_session_cannot_be_prolonged() -> None:
    sessions = Sessions("na-token")
    version, expiry, proof = sessions.issue(0).split(".")
    assert not sessions.valid(f"{version}.{int(expiry) + HOUR}.{proof}", 1)


@pytest.mark.parametrize(
    "bad",
    ["", "v1", "v1..", "v1.9999999999999999999.", "v2.1.x", "v1.-1.x", "v1.1e9.x", "v1.٣.x", "a.b.c.d", "nk-key", "é.é.é"],
)
def test_nonsense_is_no_session(bad: str) -> None:
    assert not Sessions("na-token").valid(bad, 0)


def test_only_the_admin_token_is_the_admin_token() -> None:
    sessions = Sessions("na-token")
    assert sessions.is_admin("na-token")
    assert not sessions.is_admin("na-toke")
    assert not sessions.is_admin("")
    assert not sessions.is_admin("na-tökén")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("noria_session=v1.2.3", "v1.2.3"),
        ("a=b; noria_session=v1.2.3; c=d", "v1.2.3"),
        ("a=b;noria_session=x=y", "x=y"),
        ("noria_session2=no; xnoria_session=no", ""),
        ("", ""),
        ("noria_session", ""),
    ],
)
def test_a_cookie_is_found_by_its_whole_name(header: str, value: str) -> None:
    assert cookie(header) == value
