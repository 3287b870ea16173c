"""How a release chooses among the endpoints of its route: pools, strategy, conditions, constraints, resilience.

Endpoints are named; their names are those of `Release.route`. Names are no part of a release's identity, the choice
that they express is: `release.identity` writes them as places in the route.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

Strategy = Literal["priority", "weighted", "least_latency", "cheapest", "sticky"]
Feature = Literal["tools", "images", "json_schema"]
"""What a request may need and a model may lack."""
FEATURES: tuple[Feature, ...] = get_args(Feature)
Pools = tuple[tuple[str, ...], ...]
"""Endpoints that share the load, pool after pool in order of priority."""
FallbackReason = Literal["context_window", "content_policy"]


class Rule(msgspec.Struct, frozen=True):
    """Facts of a request that must all hold, and the pools it then goes to. What is None or empty is not asked for."""

    use: Pools
    language: tuple[str, ...] = ()
    """ISO 639-1 codes, any of them; see `gateway.language`."""
    min_tokens: int | None = None
    """Estimated tokens of the prompt, at least."""
    max_tokens: int | None = None
    """At most."""
    tools: bool | None = None
    images: bool | None = None
    stream: bool | None = None
    tags: dict[str, str] = {}


class Topic(msgspec.Struct, frozen=True):
    """A kind of prompt, told by examples, and the pools it goes to."""

    name: str
    examples: tuple[str, ...]
    use: Pools


class Semantic(msgspec.Struct, frozen=True):
    """Routing by meaning: the topic whose centroid of embedded examples is nearest to the last user message."""

    topics: tuple[Topic, ...]
    margin: float = 0.01
    """How much nearer (cosine) the best topic must be than the next; below it no topic is chosen."""
    within: float = 0.25
    """Seconds that a request may wait for its embedding (DESIGN §3a.11); after it no topic is chosen."""


class Hedge(msgspec.Struct, frozen=True):
    """A second attempt, at another endpoint, where the first is late."""

    after: float | None = None
    """Seconds; None = the 95th percentile of the endpoint's own recent waits."""
    most: int = 1
    """Second attempts at most."""


class Routing(msgspec.Struct, frozen=True):
    """The default is what a plain list of models means: in order, each the fallback of those before it."""

    strategy: Strategy = "priority"
    """How the endpoints of one pool are chosen from."""
    pools: Pools = ()
    """Empty = each endpoint is a pool of its own."""
    weights: dict[str, float] = {}
    """Shares within a pool (`weighted`, `sticky`); 1 where not given, 0 = only when the others are out."""
    sticky: str = ""
    """What is kept together: `user`, `session`, `tag:NAME` or `field:NAME` (a field of the request)."""
    rules: tuple[Rule, ...] = ()
    """The first that holds decides."""
    semantic: Semantic | None = None
    """Asked where no rule holds."""
    regions: tuple[tuple[str, ...], ...] = ()
    """Constraints (of the app, of the release): an endpoint's region must be in each."""
    retries: int = 2
    """Attempts after the first, at most, at whatever endpoint."""
    health: bool = True
    """Whether endpoints that fail are passed over for a while."""
    hedge: Hedge | None = None
    fallback_on: tuple[FallbackReason, ...] = ("context_window",)
    """Refusals of a request by one endpoint for which another is asked all the same."""
    window: Literal["smallest", "largest"] = "smallest"
    """To which context window of the route prompts are fitted."""

    @property
    def plain(self) -> bool:
        """Whether the choice is nothing but the order of the route, so that it adds nothing to a release's identity."""
        return (
            self.strategy == "priority"
            and not (self.pools or self.rules or self.semantic or self.regions)
            and self.window == "smallest"
        )
