"""Which Host and Origin are served."""

from __future__ import annotations

import pytest

from noria.api.origin import admitted


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LocalHost:1"])
def test_this_machine_is_served_by_its_own_names(host: str) -> None:
    assert admitted({"host": host}, ())


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.2",
        "[::2]",
        "[",
        "localhost@evil.example",
        "evil.example:localhost",
        "0.0.0.0",
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert not admitted({"host": host}, ())


def test_a_missing_host_is_foreign() -> None:
    assert not admitted({}, ("noria.lan",))


def test_names_from_the_configuration_are_served_in_any_case() -> None:
    assert admitted({"host": "Noria.LAN:8000"}, ("noria.lan",))
    assert not admitted({"host": "a.noria.lan"}, ("noria.lan",))


@pytest.mark.parametrize(
    ("origin", "good"),
    [
        ("http://localhost:8000", True),
        ("https://localhost:8000", True),
        ("HTTP://LOCALHOST:8000", True),
        ("http://localhost:3000", False),
        ("http://127.0.0.1:8000", False),
        ("http://localhost", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
        ("file://localhost:8000", False),
        ("http://localhost:8000@evil.example", False),
        ("http://[", False),
    ],
)
def test_a_page_may_ask_only_where_it_came_from(origin: str, good: bool) -> None:
    assert admitted({"host": "localhost:8000", "origin": origin}, ()) is good
