"""The price table that comes along: read offline, by date, and honest about what it does not know."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from noria.app.pricing import of_today, priced, read_price_file, today
from noria.contracts.error import ConfigError
from noria.contracts.price import begins
from noria.contracts.release import App, Endpoint, Price, Release

OFFLINE = """
import socket, sys
def refuse(*a, **k): raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from noria.gateway.prices import look_up, source
import msgspec
asked = [
    ("openai", "gpt-5-mini"), ("anthropic", "claude-sonnet-4-5"), ("openai", "nothing-like-it"), ("ollama", "qwen3"),
    ("deepseek", "deepseek-v4-pro"), ("google", "gemini-2.5-flash"),
]
sys.stdout.buffer.write(msgspec.json.encode([look_up(*a) for a in asked]))
"""


def test_the_table_is_read_without_the_network_and_knows_what_it_knows() -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, check=True, timeout=60)
    mini, sonnet, nothing, ollama, deepseek, flash = msgspec.json.decode(done.stdout)
    (price,) = mini["prices"]
    assert (price["input"], price["output"], price["cached"], price["batch"]) == (0.25, 2.0, 0.025, 0.5)
    assert price["source"].startswith("genai-prices ")
    assert sonnet["prices"][-1]["cache_write_long"] == 6.0
    assert sonnet["prices"][-1]["tiers"][0]["above"] == 200_000
    assert nothing["prices"] == ollama["prices"] == []
    peak = [p for p in deepseek["prices"] if p["hours"]]
    assert [p["hours"] for p in peak] == ["01:00-04:00", "06:00-10:00"]
    assert all(p["input"] == 2 * deepseek["prices"][-1]["input"] for p in peak), "the undated price is the cheaper one"
    assert (sonnet["prices"][-1]["search"], flash["prices"][-1]["cached_audio"]) == (10.0, 0.1)


def test_noria_yaml_comes_before_the_price_file_and_that_before_the_table(tmp_path) -> None:
    file = tmp_path / "prices.json"
    file.write_text('{"openai/gpt-5-mini": [{"input": 9, "output": 9}, {"input": 8, "output": 8, "since": "2020-01-01"}]}')
    base = Endpoint("a", "openai_compatible", "gpt-5-mini", vendor="openai")
    route = {
        "a": base,
        "b": msgspec.structs.replace(base, name="b", price=Price(1, 1)),
        "c": msgspec.structs.replace(base, name="c", model="gpt-5"),
        "d": Endpoint("d", "local", "smollm2"),
    }
    made = priced(route, tmp_path, str(file))
    assert (made["a"].price.input, made["a"].price.source) == (8, "prices.json")
    assert made["b"].price.input == 1
    assert made["c"].price.source.startswith("genai-prices")
    assert made["d"].price is None
    assert (tmp_path / "run" / "prices.json").exists()
    assert priced(route, tmp_path, str(file)) == made


@pytest.mark.parametrize(
    ("text", "word"), [("{", "not JSON"), ('{"a/b": {"input": 1}}', "input"), ('{"a/b": {"inptu": 1, "output": 1}}', "inptu")]
)
def test_a_wrong_price_file_says_where(tmp_path, text, word) -> None:
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_price_file(str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_price_file(str(tmp_path / "absent.json"))


def test_a_price_changes_on_its_day_without_an_apply() -> None:
    old, new = Price(1, 1), Price(2, 2, since="2026-12-01")
    e = Endpoint("a", "p", "m", price=old, prices=(old, new))
    first = begins("2026-12-01")
    assert today(e, first - 1) is e
    assert (e.price_at(first - 1), e.price_at(first)) == (old, new), "also from a snapshot of the day before"
    app = App("a", {"main": Release("r1:x", "main", "a", (e,))}, {"main": 1.0})
    changed = of_today(app, first).releases["main"]
    assert changed.route[0].price == new
    assert changed.id == "r1:x"
    assert of_today(app, first - 1) is app
