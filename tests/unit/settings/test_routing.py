"""`routing` in the configuration: what it becomes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from noria.app.house import identify
from noria.contracts.release import Release
from noria.contracts.routing import Hedge, Routing
from noria.settings import InvalidSettings, apps, loads

MODELS: dict[str, Any] = {n: {"provider": "scripted", "model": n} for n in ("a", "b", "c")}
MODELS["e"] = {"provider": "scripted", "model": "e", "kind": "embedding"}


def load(model: Any, routing: dict[str, Any] | None = None, models: dict[str, Any] | None = None, **app: Any) -> Release:
    release = {"model": model} | ({} if routing is None else {"routing": routing})
    text = json.dumps({"models": MODELS | (models or {}), "apps": {"app": release | app}})
    return apps(loads(text.encode(), name="noria.yaml", folder=Path()).settings, identify)["app"].releases["main"]


def problems(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(InvalidSettings) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def test_a_plain_route_is_an_order_and_nothing_else() -> None:
    release = load(["a", "b"])
    assert [e.name for e in release.route] == ["a", "b"]
    assert release.routing == Routing()
    assert release.routing.plain


def test_an_inner_list_is_a_pool_and_a_strategy_makes_a_plain_list_one() -> None:
    assert load([["a", "b"], "c"]).routing.pools == (("a", "b"), ("c",))
    assert [e.name for e in load([["a", "b"], "c"]).route] == ["a", "b", "c"]
    assert load(["a", "b"], {"strategy": "weighted"}).routing.pools == (("a", "b"),)
    assert load(["a", ["b", "c"]], {"strategy": "weighted"}).routing.pools == (("a",), ("b", "c"))
    assert load("a", {"strategy": "weighted"}).routing.pools == ()


def test_rules_topics_and_the_rest_are_carried_over() -> None:
    routing = load(
        ["a", "b", "c"],
        {
            "rules": [{"when": {"language": "zh", "tags": {"t": "x"}}, "use": [["b", "c"]]}],
            "semantic": {
                "embedder": "e",
                "topics": {n: {"examples": ["x", "y"], "use": n} for n in ("a", "b")},
                "within": "80ms",
            },
            "hedge": {"after": "p95"},
            "retries": 0,
            "regions": [],
            "window": "largest",
        },
    ).routing
    (rule,) = routing.rules
    assert (rule.language, rule.tags, rule.use) == (("zh",), {"t": "x"}, (("b", "c"),))
    assert routing.semantic is not None
    assert [(t.name, t.use) for t in routing.semantic.topics] == [("a", (("a",),)), ("b", (("b",),))]
    assert routing.semantic.within == 0.08
    assert (routing.hedge, routing.retries) == (Hedge(None, 1), 0)
    assert load(["a", "b"], {"hedge": {"after": "250ms"}}).routing.hedge == Hedge(0.25, 1)


def test_regions_of_app_and_release_both_bind() -> None:
    models = {"a": MODELS["a"] | {"region": "eu-west-1"}}
    release = load("a", {"regions": ["eu-west-1", "uk"]}, models, regions="eu")
    assert release.routing.regions == (("eu",), ("eu-west-1", "uk"))
    assert release.route[0].region == "eu-west-1"


EU = {"a": MODELS["a"] | {"region": "eu-west-1"}, "b": MODELS["b"] | {"region": "us"}}
TOPICS = {n: {"examples": ["x", "y"], "use": "a"} for n in "pq"}


def test_an_app_that_no_model_may_answer_is_refused() -> None:
    assert "apps.app.regions" in problems("b", None, EU, regions="eu")
    assert "every request would be refused" in problems(["a", "b"], {"regions": "us"}, EU, regions="eu")
    assert "every request would be refused" in problems("b", models=EU, regions=["eu", ""])
    assert load(["b", "a"], None, EU, regions="eu").routing.regions == (("eu",),)


@pytest.mark.parametrize(
    "what",
    [
        {"routing": {"semantic": {"embedder": "e", "topics": TOPICS}}},
        {"cache": {"semantic": {"embedder": "e"}}},
        {"cache": {"semantic": "e"}},
    ],
)
def test_an_embedder_outside_of_an_apps_regions_is_refused(what: dict[str, Any]) -> None:
    in_the_us = EU | {"e": MODELS["e"] | {"region": "us-east-1"}}
    inside = EU | {"e": MODELS["e"] | {"region": "eu"}}
    assert "'e' computes in 'us-east-1', and prompts of this app must stay in regions [eu]" in problems(
        "a", models=in_the_us, regions="eu", **what
    )
    assert "'e' has no known region" in problems("a", models=EU, regions="eu", **what)
    assert load("a", models=inside, regions="eu", **what).routing.regions == (("eu",),)
    assert load("a", models=in_the_us, **what).routing.regions == ()
    release = {"routing": {"regions": "eu"} | what.get("routing", {})}
    assert "must stay in regions [eu]" in problems("a", models=in_the_us, **(what | release))
    several = {"releases": {"r1": {"model": "a"} | what, "r2": {"model": "a"}}}
    text = json.dumps({"models": MODELS | in_the_us, "apps": {"app": several | {"regions": "eu"}}})
    with pytest.raises(InvalidSettings, match=r"apps\.app\.releases\.r1"):
        loads(text.encode(), name="noria.yaml", folder=Path())


@pytest.mark.parametrize(
    ("model", "routing", "said"),
    [
        (["a"], {"rules": [{"when": {"tools": True}, "use": "b"}]}, "in this release's `model`"),
        (["a", "x"], {}, "'x'"),
        (["a", ["b", "x"]], {}, "'x'"),
        (["a", ["b", "a"]], {}, "in the route already"),
        (["a", []], {}, "model"),
        (["a"], {"weights": {"b": 1}, "strategy": "weighted"}, "'b'"),
        (["a", "b"], {"weights": {"b": 1}}, "no effect with strategy: priority"),
        (["a", "b"], {"strategy": "fastest"}, "least_latency"),
        (["a", "b"], {"strategy": "sticky", "sticky": "header:x"}, "tag:NAME"),
        (["a"], {"hedge": {}}, "second model"),
        (["a"], {"regions": "eu"}, "every request would be refused"),
        (["a"], {"rules": [{"when": {"language": "xx"}, "use": "a"}]}, "language"),
        (["a"], {"rules": [{"when": {"colour": "red"}, "use": "a"}]}, "colour"),
        (
            ["a"],
            {"semantic": {"embedder": "b", "topics": {n: {"examples": ["x", "y"], "use": "a"} for n in "pq"}}},
            "embedding",
        ),
    ],
)
def test_what_leads_nowhere_or_does_nothing_is_refused(model: Any, routing: dict[str, Any], said: str) -> None:
    assert said in problems(model, routing)


def test_the_choice_is_part_of_a_releases_identity_and_resilience_is_not() -> None:
    plain = load(["a", "b"]).id
    assert load(["a", "b"], {"retries": 5, "health": False, "hedge": {"after": 1}}).id == plain
    others = [
        load(["a", "b"], {"strategy": "weighted"}).id,
        load(["a", "b"], {"strategy": "weighted", "weights": {"a": 2}}).id,
        load([["a", "b"]]).id,
        load(["a", "b"], {"rules": [{"when": {"stream": True}, "use": "b"}]}).id,
        load(["a", "b"], {"window": "largest"}).id,
        load(["a", "b"], models={"b": MODELS["b"] | {"lacks": ["tools"]}}).id,
        load(["a", "b"], {"regions": "eu"}, {"a": MODELS["a"] | {"region": "eu"}}).id,
    ]
    assert len({plain, *others}) == len(others) + 1


def test_names_are_no_part_of_it() -> None:
    renamed = {"x": MODELS["a"], "y": MODELS["b"]}
    assert (
        load([["x", "y"]], {"strategy": "weighted", "weights": {"x": 2}}, renamed).id
        == load([["a", "b"]], {"strategy": "weighted", "weights": {"a": 2}}).id
    )
