"""Which endpoint of a pool comes first."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from noria.contracts.exchange import Exchange
from noria.contracts.release import Endpoint, Key, Price
from noria.contracts.routing import Routing
from noria.gateway.facts import Facts
from noria.gateway.health import Health
from noria.gateway.retry import SECOND_NS
from noria.gateway.select import Select


@dataclass
class Member:
    endpoint: Endpoint
    health: Health


def members(*names: str, prices: dict[str, Price] | None = None) -> list[Member]:
    return [Member(Endpoint(n, "p", n, price=(prices or {}).get(n)), Health(n)) for n in names]


def facts(text: str = "hello", **what: Any) -> Facts:
    body = {"messages": [{"role": "user", "content": text}], **what.pop("body", {})}
    raw = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in body.items()}
    return Facts(Exchange(what.pop("id", "x"), "t", "s", "local", "chat", "app", False, raw, 0, **what))


def names(pool: list[Member]) -> list[str]:
    return [m.endpoint.name for m in pool]


def test_priority_is_the_order_of_the_route() -> None:
    assert names(Select(Routing(), random.Random(1)).order(members("a", "b", "c"), facts(), 0)) == ["a", "b", "c"]


def test_weighted_shares_are_those_of_the_configuration() -> None:
    pool = members("a", "b", "c", "never")
    select = Select(Routing(strategy="weighted", weights={"a": 6, "b": 3, "never": 0}), random.Random(3))
    first = Counter(names(select.order(pool, facts(), 0))[0] for _ in range(10_000))
    assert first["never"] == 0
    assert first["a"] == pytest.approx(6000, abs=200)
    assert first["b"] == pytest.approx(3000, abs=200)
    assert all(names(select.order(pool, facts(), 0))[-1] == "never" for _ in range(50)), "only when the others are out"


def test_the_cheapest_depends_on_what_is_asked() -> None:
    prices = {"reader": Price(input=0.1, output=9.0), "writer": Price(input=2.0, output=1.0)}
    pool = members("unknown", "reader", "writer", prices=prices)
    select = Select(Routing(strategy="cheapest"), random.Random(1))
    long_prompt = facts("word " * 10_000, body={"max_tokens": 5})
    assert names(select.order(pool, long_prompt, 0)) == ["reader", "writer", "unknown"]
    assert names(select.order(pool, facts("hi"), 0)) == ["writer", "reader", "unknown"]


@pytest.mark.parametrize(
    ("sticky", "what"),
    [
        ("session", {"conversation": "c{n}"}),
        ("session", {"subject": "s{n}"}),
        ("user", {"subject": "s{n}"}),
        ("user", {"key": "{n}"}),
        ("tag:customer", {"tags": "{n}"}),
        ("field:prompt_cache_key", {"body": "{n}"}),
    ],
)
def test_sticky_keeps_a_unit_at_its_endpoint_whatever_else_differs(sticky, what) -> None:
    select, pool = Select(Routing(strategy="sticky", sticky=sticky), random.Random(1)), members("a", "b", "c")

    def ask(n: int, id: str) -> str:
        (name, pattern), *_ = what.items()
        value = pattern.format(n=n)
        made = {"key": Key(value, ""), "tags": {"customer": value}, "body": {"prompt_cache_key": value}}.get(name, value)
        return names(select.order(pool, facts(id, id=id, **{name: made}), 0))[0]

    homes = {n: ask(n, "1") for n in range(300)}
    assert homes == {n: ask(n, "2") for n in range(300)}
    assert min(Counter(homes.values()).values()) > 60, "and the units are spread"


def test_when_an_endpoint_leaves_only_its_own_units_move() -> None:
    select = Select(Routing(strategy="sticky", sticky="user", weights={"a": 2}), random.Random(1))
    before, after = members("a", "b", "c", "d"), members("a", "b", "d")
    moved = 0
    for n in range(500):
        order = names(select.order(before, facts(subject=str(n)), 0))
        now = names(select.order(after, facts(subject=str(n)), 0))
        assert now == [name for name in order if name != "c"]
        moved += order[0] != now[0]
    assert moved == pytest.approx(100, abs=40), "a fifth, by the weights"


def test_a_request_without_the_unit_is_spread_by_weight() -> None:
    select, pool = Select(Routing(strategy="sticky", sticky="tag:x"), random.Random(1)), members("a", "b")
    assert {names(select.order(pool, facts(), 0))[0] for _ in range(50)} == {"a", "b"}


def simulate(strategy: str, seconds: int, latency: Any, *, rate: int = 50, seed: int = 1) -> list[Counter[str]]:
    """Requests by endpoint, a counter a second: arrivals at `rate` a second, answers after `latency(name, t)` seconds."""
    source = random.Random(seed)
    select, pool = Select(Routing(strategy=strategy), source), members("fast", "slow", "other")
    running: list[tuple[int, int, Member]] = []
    counts = [Counter() for _ in range(seconds)]
    now, end = 1000 * SECOND_NS, (1000 + seconds) * SECOND_NS
    while now < end:
        for done in [r for r in running if r[0] <= now]:
            running.remove(done)
            done[2].health.waited(done[0] - done[1], done[0])
            done[2].health.end()
        chosen = select.order(pool, facts(), now)[0]
        chosen.health.begin(now)
        counts[now // SECOND_NS - 1000][chosen.endpoint.name] += 1
        took = latency(chosen.endpoint.name, now / SECOND_NS - 1000) * source.uniform(0.8, 1.2)
        running.append((now + int(took * SECOND_NS), now, chosen))
        now += int(source.expovariate(rate) * SECOND_NS)
    return counts


def test_least_latency_shifts_the_load_away_from_a_slow_endpoint() -> None:
    counts = simulate("least_latency", 20, lambda name, t: 1.0 if name == "slow" else 0.1)
    late = sum(counts[5:], Counter())
    assert late["slow"] / late.total() < 0.1
    assert late["slow"] > 0, "it is tried now and then"
    even = sum(simulate("weighted", 20, lambda name, t: 1.0 if name == "slow" else 0.1)[5:], Counter())
    assert even["slow"] / even.total() > 0.3


def test_least_latency_comes_back_when_the_endpoint_has_recovered() -> None:
    counts = simulate("least_latency", 90, lambda name, t: 2.0 if name == "slow" and t < 20 else 0.1)
    during, after = sum(counts[5:20], Counter()), sum(counts[60:], Counter())
    assert during["slow"] / during.total() < 0.1
    assert after["slow"] / after.total() > 0.2


def test_least_latency_spreads_over_equals() -> None:
    counts = sum(simulate("least_latency", 20, lambda name, t: 0.2), Counter())
    assert min(counts.values()) > counts.total() * 0.2
