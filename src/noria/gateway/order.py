"""Whom to ask for one request, best first: rules and topics, then constraints, then health, then the strategy."""

from __future__ import annotations

from collections.abc import Sequence

from noria.contracts.exchange import Exchange
from noria.contracts.routing import Pools, Routing, Rule
from noria.gateway import constraint
from noria.gateway.facts import Facts
from noria.gateway.health import standing
from noria.gateway.select import Select
from noria.gateway.topic import Topics
from noria.gateway.traffic import Member, Traffic


class Order:
    """How one release chooses among its members."""

    def __init__(self, members: Sequence[Member], routing: Routing, traffic: Traffic, topics: Topics | None) -> None:
        self._traffic = traffic
        self._routing = routing
        self._named = {m.endpoint.name: m for m in members}
        self._pools = self._of(routing.pools) if routing.pools else [[m] for m in members]
        self._rules = [(rule, self._of(rule.use)) for rule in routing.rules]
        self._topics = topics
        self._by_topic = {t.name: self._of(t.use) for t in routing.semantic.topics} if routing.semantic else {}
        self._select = Select(routing, traffic.random)
        self._lacking = any(m.endpoint.lacks for m in members)
        self.fixed = routing.plain and not self._lacking
        """Whether the order is that of the route as long as every endpoint is well and no key narrows the regions."""

    async def best(self, x: Exchange, now: int) -> list[Member]:
        """Whom to ask, best first. Raises `RequestError` where nobody may be."""
        traffic, facts = self._traffic, Facts(x)
        traffic.counts["evaluated"] += 1
        regions = constraint.demanded(x, self._routing.regions)
        pools = await self._qualified(await self._chosen(facts, regions), facts, regions)
        ejected: list[Member] = []
        able = pools
        if self._routing.health and traffic.board.out:
            able, ejected = standing(pools, now)
            traffic.counts["passed_over"] += sum(map(len, able)) < sum(map(len, pools))
        order: list[Member] = []
        for pool in able:
            order += pool if len(pool) == 1 else self._select.order(pool, facts, now)
        return order + ejected

    async def _chosen(self, facts: Facts, regions: constraint.Regions) -> Sequence[Sequence[Member]]:
        """The pools that a rule or a topic sends the request to, else those of the release."""
        for rule, pools in self._rules:
            if holds(rule, facts):
                self._traffic.counts["rule"] += 1
                return pools
        if self._topics is not None and self._topics.within(regions):
            found = await self._topics.topic(facts.text)
            if found is not None:
                return self._by_topic[found.name]
        return self._pools

    async def _qualified(
        self, pools: Sequence[Sequence[Member]], facts: Facts, regions: constraint.Regions
    ) -> Sequence[Sequence[Member]]:
        """Those who may answer. Endpoints that are surely too small are left out as long as a larger one is there."""
        if regions or self._lacking:
            fit = [[m for m in pool if not constraint.why_not(m.endpoint, facts, regions)] for pool in pools]
            if not any(fit) and pools:
                self._traffic.counts["refused"] += 1
                raise constraint.refusal([m.endpoint for pool in pools for m in pool], facts, regions)
            self._traffic.counts["filtered"] += sum(map(len, fit)) < sum(map(len, pools))
            pools = [pool for pool in fit if pool]
        if self._routing.window == "largest":
            large = [[m for m in pool if not constraint.too_small(m.endpoint, facts)] for pool in pools]
            pools = [pool for pool in large if pool] or pools
        return pools

    def _of(self, pools: Pools) -> list[list[Member]]:
        return [[self._named[name] for name in pool] for pool in pools]


def holds(rule: Rule, facts: Facts) -> bool:
    """Whether every condition of a rule holds; the cheap ones are looked at first."""
    x = facts.x
    return (
        (rule.stream is None or rule.stream == x.stream)
        and all(x.tags.get(name) == value for name, value in rule.tags.items())
        and (rule.tools is None or rule.tools == facts.tools)
        and (rule.images is None or rule.images == facts.images)
        and (rule.min_tokens is None or facts.tokens >= rule.min_tokens)
        and (rule.max_tokens is None or facts.tokens <= rule.max_tokens)
        and (not rule.language or facts.language in rule.language)
    )
