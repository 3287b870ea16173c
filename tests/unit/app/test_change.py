"""What a plan says, and what an apply leaves alone."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from noria.app.change import Change, Plan, differences, restarts
from noria.app.definition import LIVE, Definition, Live, apply, live_shares
from noria.contracts.port import Write
from noria.contracts.release import App, Endpoint, GuardRule, Limit, Prompt, Release
from noria.engines.memory import MemoryRecords
from noria.settings import Settings

GPT = Endpoint("gpt", "scripted", "m")


def app(name: str = "support", *, prompt: str = "", model: str = "m", **weights: float) -> App:
    shares = weights or {"main": 1.0}
    text = Prompt("p", prompt, f"d-{prompt}") if prompt else None
    releases = {n: Release(f"r1:{n}-{model}-{prompt}-0000", n, name, (replace(GPT, model=model),), prompt=text) for n in shares}
    return App(name, releases, dict(shares))


def definition(*apps: App, **more) -> Definition:
    return Definition("s", {a.name: a for a in apps}, **more)


def told(before, after, live=None) -> list[str]:
    return [str(c) for c in differences(before, after, live or {})]


def test_the_first_definition_is_all_additions_and_says_nothing_of_defaults():
    assert told(None, definition(app())) == ["+ model gpt", "+ app support: release main r1:main-m--"]


def test_the_same_definition_differs_in_nothing():
    assert told(definition(app()), definition(app())) == []


def test_content_is_compared_and_the_reason_is_named():
    found = told(definition(app(prompt="a")), definition(app(prompt="b")))
    assert found == ["~ prompt p", "~ app support, release main: r1:main-m-a → r1:main-m-b (prompt)"]
    assert "~ model gpt: model" in told(definition(app()), definition(app(model="n")))


def test_releases_come_and_go_by_name():
    found = told(definition(app(a=1.0, b=0.0)), definition(app(a=1.0, c=0.0)))
    assert found == ["- app support, release b", "+ app support, release c: r1:c-m--000"]
    assert told(definition(app(), app("old")), definition(app())) == ["- app old"]


def test_what_this_module_knows_nothing_of_is_compared_by_name():
    one, two = Limit("l", "tenant", requests_per_minute=1), Limit("l", "tenant", requests_per_minute=2)
    assert told(definition(app(), limits=(one,)), definition(app(), limits=(two,))) == ["~ limit l: requests_per_minute"]
    assert told(definition(app()), definition(app(), body_limit=99)) == ["~ body_limit: 16777216 → 99"]
    assert told(definition(app()), definition(app(), hosts=("a", "b"))) == ["~ hosts: none → a, b"]
    rule = (GuardRule("pii", "mask"),)
    assert told(definition(app()), definition(app(), guards={"g": rule})) == ["+ guard g"]


def test_shares_that_came_from_elsewhere_are_kept_and_told():
    live = {"support": Live({"a": 0.5, "b": 0.5})}
    same = definition(app(a=1.0, b=0.0))
    assert told(same, same, live) == ["= app support: keeps its live shares {a: 0.5, b: 0.5}, which did not come from the file"]
    gone = definition(app(a=1.0))
    assert told(same, gone, live) == ["- app support, release b", "~ app support: shares {a: 0.5, b: 0.5} → {a: 1}"]
    assert Plan((Change("=", "x"), Change("!", "y")), None).empty
    assert not Plan((Change("~", "x"),), None).empty


@pytest.mark.parametrize(
    ("after", "shares"),
    [
        (app(a=1.0, b=0.0, model="n"), {"a": 0.5, "b": 0.5}),
        (app(a=0.2, b=0.8), {"a": 0.5, "b": 0.5}),
        (app(a=1.0, c=0.0), {"a": 1.0, "c": 0.0}),
    ],
    ids=["other content", "other shares in the file", "a live release is gone"],
)
async def test_apply_leaves_live_shares_that_the_file_did_not_set(after, shares):
    records = MemoryRecords("memory://")
    await apply(records, "local", definition(app(a=1.0, b=0.0)))
    await records.commit("local", [Write(LIVE, "support", msgspec.msgpack.encode(Live({"a": 0.5, "b": 0.5})))])
    await apply(records, "local", definition(after))
    assert (await live_shares(records, "local"))["support"].weights == shares


def test_settings_that_are_read_at_the_start_only_are_told_with_the_way_to_put_them_in_force():
    started = Settings.model_validate({"serve": {"port": 8000, "body_limit": 2048}})
    now = Settings.model_validate(
        {
            "serve": {"port": 9000, "workers": 3, "body_limit": 4096},
            "stores": {"records": "postgres://h/d"},
            "apps": {},
        }
    )
    found = {c.what: c.detail for c in restarts(started, now)}
    assert set(found) == {"serve.port", "serve.workers", "stores.records"}
    assert found["serve.port"] == "8000 → 9000; needs a restart: stop and start Noria"
    assert "noria upgrade" in found["serve.workers"]
    assert "postgres" not in str(found), "URLs are not shown"
