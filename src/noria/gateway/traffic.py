"""What the routers of a worker share, whatever configuration is in force."""

from __future__ import annotations

import random
from collections.abc import Iterable

from noria.contracts.release import Endpoint
from noria.contracts.stage import Provider
from noria.gateway import topic
from noria.gateway.health import Board, Health
from noria.gateway.patience import Patience
from noria.gateway.retry import RetryBudget

EVENTS = ("evaluated", "rule", "filtered", "refused", "passed_over", "again", "hedge", "hedge_won", *topic.EVENTS)
"""What routers count themselves: orders that were not just the route's own, and what came of them."""


class Traffic:
    """What all routers of a worker share: how endpoints stand, how much may be retried, and what was counted."""

    def __init__(self, source: random.Random | None = None) -> None:
        self.board = Board()
        self.budget = RetryBudget()
        self.random = source or random.Random()  # noqa: S311  a choice of endpoints is no secret
        self.counts = dict.fromkeys(EVENTS, 0)

    def health(self, endpoint: Endpoint) -> Health:
        """How an endpoint stands: the same for all releases and configurations in which it is the same one."""
        return self.board.of(_same(endpoint), endpoint.name)

    def keep_only(self, endpoints: Iterable[Endpoint]) -> None:
        """Forget the health of all others."""
        self.board.keep_only(_same(e) for e in endpoints)

    def totals(self) -> dict[str, int]:
        """Events since the worker's start."""
        return {**self.counts, **self.board.counts, "retry": self.budget.granted, "retry_denied": self.budget.denied}

    def numbers(self, now: int) -> tuple[dict[str, int], dict[tuple[str, str], int], dict[str, str]]:
        """For `/metrics`: events, attempts by (endpoint, result), the state of each endpoint."""
        return self.totals(), self.board.attempts(), {s.endpoint: s.state for s in self.board.standings(now)}


def _same(e: Endpoint) -> tuple[str, ...]:
    return e.name, e.provider, e.vendor, e.model, e.url, e.key


class Member:
    """One endpoint of a route, with what is known of it."""

    __slots__ = ("endpoint", "health", "patience", "provider")

    def __init__(self, endpoint: Endpoint, provider: Provider, health: Health) -> None:
        self.endpoint = endpoint
        self.provider = provider
        self.health = health
        self.patience = Patience(endpoint.timeouts.first)
