"""Which dialect each endpoint of a route is asked in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from noria.contracts.error import RequestError
from noria.contracts.exchange import Exchange, ModelCall
from noria.dialects.anthropic_request import read_messages_request
from noria.gateway.dialect import fitting, spoken, voiced


def raws(value: dict[str, Any]) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(msgspec.json.encode(value), type=dict[str, msgspec.Raw])


OPENAI: Any = SimpleNamespace(speaks=frozenset({"openai"}), understands=frozenset())
CLAUDE: Any = SimpleNamespace(speaks=frozenset({"openai", "anthropic"}), understands=frozenset())
SEARCH = {"type": "web_search_20250305", "name": "web_search"}


class Ear:
    def __init__(self) -> None:
        self.spoke: list[str] = []
        self.native = False
        self.warnings: list[str] = []

    def speak(self, dialect: str) -> None:
        self.spoke.append(dialect)


def call(native: bool = True, params: dict[str, Any] | None = None, **more: Any) -> Any:
    body = raws({"model": "app", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], "top_k": 3} | more)
    chat = read_messages_request(body)
    headers = (("anthropic-beta", "x"),)
    x = Exchange(
        "x", "t", "s", "local", "chat", "app", False, chat, 0,
        dialect="anthropic", native=body if native else {}, native_headers=headers,
    )  # fmt: skip
    return spoken(x, ModelCall("x", "chat", False, chat), raws(params or {}))


def test_an_endpoint_of_the_callers_dialect_gets_the_request_itself():
    ear = Ear()
    made = voiced(call(), CLAUDE, ear, ear)
    assert (made.dialect, ear.spoke, ear.native, ear.warnings) == ("anthropic", ["anthropic"], True, [])
    assert made.headers == (("anthropic-beta", "x"),)
    assert "max_tokens" in made.body


def test_each_attempt_of_a_mixed_route_decides_for_itself():
    ear, asked = Ear(), call()
    voiced(asked, CLAUDE, ear, ear)
    made = voiced(asked, OPENAI, ear, ear)
    assert (made.dialect, ear.spoke, ear.native) == ("openai", ["anthropic", "openai"], False)
    assert "top_k" not in made.body
    assert any("top_k" in w for w in ear.warnings)
    assert any("anthropic-beta" in w for w in ear.warnings)


@pytest.mark.parametrize("asked", [call(native=False), call(params={"seed": 1})])
def test_an_edited_request_and_one_with_a_parameter_that_needs_translating_are_translated(asked):
    ear = Ear()
    made = voiced(asked, CLAUDE, ear, ear)
    assert (made.dialect, ear.native) == ("openai", False)
    assert "top_k" in made.body, "an endpoint of the same dialect loses nothing"


def test_parameters_of_the_release_fill_in_what_the_caller_left_out():
    made = voiced(call(params={"temperature": 0.5, "max_tokens": 99}), CLAUDE, Ear(), Ear())
    assert (bytes(made.body["temperature"]), bytes(made.body["max_tokens"])) == (b"0.5", b"5")


def test_a_race_is_run_in_chat_form():
    ear = Ear()
    assert voiced(call(), CLAUDE, None, ear).dialect == "openai"
    assert not ear.native


def test_endpoints_that_would_have_to_refuse_are_passed_over():
    asked = call(tools=[SEARCH])
    assert fitting(asked, [OPENAI, CLAUDE], lambda m: m) == [CLAUDE]
    with pytest.raises(RequestError, match="web_search"):
        fitting(asked, [OPENAI, OPENAI], lambda m: m)
