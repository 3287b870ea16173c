"""Which endpoint of a pool is asked first, and in which order the others stand behind it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from noria.contracts.release import Endpoint
from noria.contracts.routing import Routing
from noria.gateway.facts import Facts
from noria.gateway.health import Health
from noria.kit.ids import digest

BEHAVIOUR = 1
"""Enters the id of releases whose routing is more than an order."""


class Member(Protocol):
    """An endpoint in a pool."""

    @property
    def endpoint(self) -> Endpoint:
        """What the configuration says of it."""
        ...

    @property
    def health(self) -> Health:
        """How it stands."""
        ...


M = TypeVar("M", bound=Member)


class Select:
    """Orders one pool by the strategy of a release. Nothing of a request is kept."""

    def __init__(self, routing: Routing, source: random.Random) -> None:
        self._weights = routing.weights
        self._sticky = routing.sticky
        self._random = source
        orders: Mapping[str, Callable[[Sequence[M], Facts, int], list[M]]] = {
            "priority": lambda pool, facts, now: list(pool),  # noqa: ARG005  one shape for all strategies
            "weighted": self._weighted,
            "least_latency": self._least_latency,
            "cheapest": self._cheapest,
            "sticky": self._bound,
        }
        self.order = orders[routing.strategy]
        """`order(pool, facts, now_ns)`: the pool's members, best first."""

    def _weighted(self, pool: Sequence[M], facts: Facts, now: int) -> list[M]:  # noqa: ARG002  one shape for all strategies
        """Drawn without replacement in proportion to the weights (Efraimidis and Spirakis, 2006)."""
        return sorted(pool, key=lambda m: self._draw(m.endpoint.name, self._random.random()))

    def _draw(self, name: str, uniform: float) -> float:
        weight = self._weights.get(name, 1.0)
        return -math.log(1.0 - uniform) / weight if weight > 0 else math.inf

    def _least_latency(self, pool: Sequence[M], facts: Facts, now: int) -> list[M]:  # noqa: ARG002  one shape for all strategies
        """The better of two drawn at random first (power of two choices, Mitzenmacher 2001), the others by load.

        Taking the best of all would send every request to it until its numbers catch up.
        """
        rest = sorted(pool, key=lambda m: m.health.load(now))
        if len(rest) > 2:
            first = rest[min(self._random.sample(range(len(rest)), 2))]
            rest.remove(first)
            rest.insert(0, first)
        return rest

    def _cheapest(self, pool: Sequence[M], facts: Facts, now: int) -> list[M]:  # noqa: ARG002  one shape for all strategies
        """By price × expected tokens; a model whose price is not known comes last."""
        prompt, answer = facts.tokens, facts.output()

        def cost(member: M) -> float:
            price = member.endpoint.price
            return prompt * price.input + answer * price.output if price is not None else math.inf

        return sorted(pool, key=cost)

    def _bound(self, pool: Sequence[M], facts: Facts, now: int) -> list[M]:
        """By rendezvous hash (Thaler and Ravishankar 1998), weighted: a member that goes takes only its own keys along."""
        unit = self.unit(facts)
        if not unit:
            return self._weighted(pool, facts, now)

        def place(member: M) -> float:
            uniform = int(digest(f"{member.endpoint.name}\0{unit}".encode())[:13], 16) / 16**13
            return self._draw(member.endpoint.name, uniform)

        return sorted(pool, key=place)

    def unit(self, facts: Facts) -> str:
        """What is kept together; empty where the request does not say it."""
        x, (kind, _, name) = facts.x, self._sticky.partition(":")
        key = x.key
        if kind == "tag":
            return x.tags.get(name) or (key.tags.get(name, "") if key else "")
        if kind == "field":
            return facts.field(name)
        if kind == "session" and x.conversation:
            return x.conversation
        return x.subject or (key.user or key.id if key else "")
