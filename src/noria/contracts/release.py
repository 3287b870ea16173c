"""A Release: the immutable pin of everything that makes an App's answer (DESIGN §3a.1)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Price(msgspec.Struct, frozen=True):
    """US dollars per million tokens. An absent price is unknown, which is not free."""

    input: float
    output: float
    cached: float | None = None


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds. `first` bounds the wait for the first byte of the answer, `idle` a pause inside it."""

    connect: float = 5.0
    first: float = 120.0
    idle: float = 60.0
    total: float = 600.0


class Endpoint(msgspec.Struct, frozen=True):
    """One model as the configuration names it. Only `provider`, `model`, `params` and digests make a release.

    `key` is a reference (`env:NAME`, `file:PATH`), never the secret itself.
    """

    name: str
    provider: str
    model: str
    url: str = ""
    key: str = ""
    vendor: str = ""
    context: int | None = None
    """Context window in tokens, where it is known."""
    price: Price | None = None
    timeouts: Timeouts = Timeouts()
    options: dict[str, Any] = {}
    """What the provider's own `Config` accepts."""
    region: str = ""
    """Where it computes (`eu`, `us-east-1`, …), for data-residency constraints."""
    digests: dict[str, str] = {}
    """weights, tokenizer, template, engine: known for local models only."""


class Prompt(msgspec.Struct, frozen=True):
    """A system prompt with variables, versioned by content."""

    name: str
    text: str
    digest: str


class GuardRule(msgspec.Struct, frozen=True):
    """One check of a policy with what follows from it. `stream` matters for answer-scoped checks only."""

    check: str
    action: Literal["flag", "mask", "block"]
    on: tuple[Literal["input", "output"], ...] = ("input",)
    options: dict[str, Any] = {}
    message: str = ""
    stream: Literal["hold", "after"] = "hold"


class Release(msgspec.Struct, frozen=True):
    """What answers for an App. `id` is `r1:` + BLAKE3 of the RFC 8785 form of its resolved digests."""

    id: str
    name: str
    app: str
    route: tuple[Endpoint, ...]
    """In order: the first answers, the others are fallbacks."""
    prompt: Prompt | None = None
    guard: tuple[GuardRule, ...] = ()
    guard_name: str = ""
    memory: int = 0
    """How many messages of a conversation are kept and replayed; 0 = no conversation memory."""
    normalize: bool = True
    fit: bool = True
    """Fit the prompt into the context window by dropping the oldest turns."""
    params: dict[str, Any] = {}
    """Request parameters that the release sets where the caller did not (temperature, max_tokens, …)."""
    reproducible: bool = False


class App(msgspec.Struct, frozen=True):
    """What a client calls. `weights` (release name → share) are live state; they need not sum to 1."""

    name: str
    releases: dict[str, Release]
    weights: dict[str, float]
    description: str = ""
    record_bodies: bool = True


class Key(msgspec.Struct, frozen=True):
    """An API key as the workers see it: by its hash, never by its text."""

    id: str
    hash: str
    name: str = ""
    tenant: str = "local"
    apps: tuple[str, ...] = ()
    """Empty = every app."""
    budget_nanousd: int | None = None
    rpm: int | None = None
    expires_ns: int | None = None
    created_ns: int = 0
    hint: str = ""
    """First and last characters, so that a person can tell keys apart."""
    org: str = ""
    team: str = ""
    user: str = ""
    """Whose key it is: names within the tenant, empty where it has none."""
    tags: dict[str, str] = {}
    """Attribution that every exchange of the key carries."""
    endpoints: tuple[str, ...] = ()
    """Request paths that it may call (`/v1/embeddings`, or `/v1/files*` with a star at the end); empty = all of `/v1`."""
    guard: tuple[GuardRule, ...] = ()
    """Checks that this key's exchanges pass besides those of the release."""


class Budget(msgspec.Struct, frozen=True):
    """Money that a scope may spend in a window. Every budget that an exchange falls under must have room for it.

    `scope` is `tenant`, or a kind and a name: `org:acme`, `team:search`, `user:ann`, `key:key_…`, `app:support`,
    `tag:env=prod`. Windows begin at midnight of `zone` (an IANA name), weeks on Monday.
    """

    id: str
    scope: str
    nanousd: int
    window: Literal["day", "week", "month", "total"] = "total"
    zone: str = "UTC"
    hard: bool = True
    """False: nothing is refused, only told."""
    alerts: tuple[float, ...] = (0.8, 1.0)
    """Shares of the budget at which an event is written and the webhook is told, once a window each."""


class Limit(msgspec.Struct, frozen=True):
    """How fast a scope (as in `Budget`) may ask. What is None is not limited."""

    id: str
    scope: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    queue_seconds: float = 0.0
    """How long a request may wait for its turn instead of getting 429; by priority, then in order of arrival."""
    queue_size: int = 100
    """How many may wait at once in one worker."""


class Snapshot(msgspec.Struct, frozen=True):
    """The whole configuration as one immutable value, named by its hash (DESIGN §3a.3)."""

    hash: str
    tenant: str
    revision: int
    apps: dict[str, App]
    keys: dict[str, Key]
    """By key hash."""
    keys_required: bool = False
    embedders: dict[str, Endpoint] = {}
    """Models that `/v1/embeddings` serves, by name."""
    hosts: tuple[str, ...] = ()
    """Extra `Host` names accepted besides the loopback names (DESIGN §3a.13)."""
    body_limit: int = 16 * 1024 * 1024
    """Largest request body in bytes."""
    budgets: tuple[Budget, ...] = ()
    limits: tuple[Limit, ...] = ()
    """Of keys too: a key's own budget and rate appear here under `key:<id>`."""
