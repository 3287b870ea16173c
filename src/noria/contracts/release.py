"""A Release: the immutable pin of everything that makes an App's answer (DESIGN §3a.1)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from noria.contracts.drift import DriftPolicy
from noria.contracts.price import Price as Price  # noqa: PLC0414  part of an endpoint
from noria.contracts.price import in_force
from noria.contracts.routing import Feature, Routing


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds. `first` bounds the wait for the first byte of the answer, `idle` a pause inside it."""

    connect: float = 5.0
    first: float = 120.0
    idle: float = 60.0
    total: float = 600.0


class Probe(msgspec.Struct, frozen=True):
    """How an endpoint is asked now and then whether it answers (`app.probing`). Seconds."""

    ask: str = "models"
    """`models`: its list of models; `completion`: one token; else a path."""
    every: float = 30.0
    timeout: float = 5.0
    failures: int = 2
    """Failures one after the other from which on it counts as out."""


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
    """What it costs now; None = unknown."""
    prices: tuple[Price, ...] = ()
    """Its prices where they change with time; `price` is then the one of when the snapshot was made (`price_at`)."""
    timeouts: Timeouts = Timeouts()
    options: dict[str, Any] = {}
    """What the provider's own `Config` accepts."""
    region: str = ""
    """Where it computes (`eu`, `us-east-1`, …), for data-residency constraints."""
    lacks: tuple[Feature, ...] = ()
    """What it is known not to be able to do."""
    digests: dict[str, str] = {}
    """weights, tokenizer, template, engine: known for local models only."""
    probe: Probe | None = None
    """Whether, and how, somebody looks after it besides the traffic."""

    def price_at(self, at_ns: int) -> Price | None:
        """What an exchange costs that began at a moment (Unix ns): whatever snapshot it is served from."""
        return in_force(self.prices, at_ns) if self.prices else self.price


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


class SemanticCaching(msgspec.Struct, frozen=True):
    """Answering a question by the answer to one that means the same (`gateway.semantic`)."""

    embedder: Endpoint
    """What turns the last user turn into a vector; a local model, so that it costs nothing."""
    threshold: float
    """Least cosine of two questions that may share an answer."""
    entries: int = 10_000
    """Questions held at once, per app and worker."""


class Caching(msgspec.Struct, frozen=True):
    """What may be answered without asking the model again (`gateway.cache`)."""

    ttl: float = 3600.0
    """Seconds that an answer is kept; 0 = none is (single flight alone)."""
    scope: Literal["key", "user", "team", "app"] = "key"
    """Who shares answers."""
    sampled: bool = False
    """Whether requests with a temperature above 0 are answered from the cache too."""
    max_bytes: int = 64 * 1024 * 1024
    """Memory for the app's answers in each worker."""
    shared_bytes: int = 256 * 1024 * 1024
    """Room for the app's answers in what all workers share; 0 = each worker has its own alone."""
    single_flight: bool = True
    """Whether identical requests under way share one call."""
    semantic: SemanticCaching | None = None


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
    caching: Caching | None = None
    routing: Routing = Routing()
    embedder: Endpoint | None = None
    """What `routing.semantic` embeds prompts with."""


class App(msgspec.Struct, frozen=True):
    """What a client calls. `weights` (release name → share) are live state; they need not sum to 1."""

    name: str
    releases: dict[str, Release]
    weights: dict[str, float]
    description: str = ""
    record_bodies: bool = True
    drift: DriftPolicy | None = None
    """How its traffic is watched; None = only when somebody asks."""
    aliases: dict[str, str] = {}
    """Environments (`staging`) → release name: what `model: "support@staging"` asks for. Live state, as `weights`."""


KEY_PREFIX = "nk-"
"""How the text of every key begins."""


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
    guard_name: str = ""
    """The policy of noria.yaml that `guard` comes from; a stored key has the name alone, a snapshot resolves it."""
    withheld: str = ""
    """Why the key does not work now: `disabled` by an operator, or, in a snapshot, `guard_missing`; empty = it works."""
    former: tuple[tuple[str, int], ...] = ()
    """(hash, int64 ns UTC until which it works) of texts that rotation has replaced; a snapshot has them as keys of their own."""
    metadata: dict[str, str] = {}
    """For people and their tools; not in snapshots."""
    priority: Literal["high", "normal", "low"] = "normal"
    """The highest priority that its requests may ask for (`x-noria-priority`), where a limit has a queue."""


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
    guards: dict[str, tuple[GuardRule, ...]] = {}
    """Guard policies by name, for `/v1/moderations`."""
    passthrough: Endpoint | None = None
    """Who is asked what is passed through verbatim and names no model."""
    file_limit: int = 512 * 1024 * 1024
    """Largest body of `POST /v1/files` in bytes."""
