"""What is recorded of an exchange: one wide row, and how rows are asked for.

`ExchangeRow` is what workers append to the spool, so its field order is a format: add at the end, with
a default, never remove or reorder (readable at N-1 and N+1; msgspec `array_like` ignores extra items).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from noria.contracts.exchange import Dialect, Kind, Usage
from noria.contracts.verdict import Ruling

Outcome = Literal["ok", "blocked", "refused", "error", "cancelled"]
CacheUse = Literal["", "hit", "semantic", "joined"]
"""`joined`: the answer of an identical request that was under way (single flight)."""
CostStatus = Literal["exact", "estimated", "unknown"]


class StageTime(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One stage: its name, its start after the exchange's start, and its duration, in ns."""

    name: str
    offset_ns: int
    took_ns: int


class Attempt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One try at one endpoint."""

    endpoint: str
    offset_ns: int
    took_ns: int
    status: int | None = None
    error: str = ""


class ExchangeRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One exchange, whole. `request` is what the model was sent, `answer` what it gave, both after masking."""

    tenant: str
    id: str
    trace: str
    span: str
    parent_span: str
    started_ns: int
    kind: Kind
    app: str
    release: str
    release_name: str
    config: str
    """Hash of the configuration snapshot that served it."""
    outcome: Outcome
    status: int
    stream: bool
    duration_ns: int
    ttft_ns: int | None
    """Time to the first content byte towards the caller."""
    overhead_ns: int
    """Duration minus the time spent waiting for the model."""
    endpoint: str
    provider: str
    served_model: str
    upstream_id: str
    finish_reason: str
    error_code: str
    error_message: str
    key: str
    subject: str
    conversation: str
    usage: Usage
    cost_nanousd: int | None
    """Nano-dollars (1e-9 USD); None = unknown, never 0 for unknown."""
    cost_status: CostStatus
    stages: tuple[StageTime, ...]
    attempts: tuple[Attempt, ...]
    rulings: tuple[Ruling, ...]
    request: bytes
    answer: bytes
    answer_is_sse: bool
    worker: str
    cut_tokens: int = 0
    """Tokens dropped to fit the window (0 where nothing was cut)."""
    dialect: Dialect = "openai"
    """The protocol that the caller spoke."""
    org: str = ""
    team: str = ""
    user: str = ""
    """Whose key it was: organisation, team, user."""
    tags: dict[str, str] = {}
    cache: CacheUse = ""
    """How the answer came out of a cache, if it did; such an answer costs 0."""
    warnings: tuple[str, ...] = ()
    """What could not be carried over from the caller's protocol into the model's."""
    native: bool = False
    """Whether `request` and `answer` are in the caller's own dialect rather than in OpenAI's chat form."""


class Clause(msgspec.Struct, frozen=True):
    """One condition on a column: `app = support`, `duration_ms > 200`."""

    column: str
    op: Literal["=", "!=", ">", ">=", "<", "<=", "~"]
    value: str


class TraceQuery(msgspec.Struct, frozen=True):
    """Rows of one tenant, newest first; `before` is the keyset cursor of the last page's last row."""

    clauses: tuple[Clause, ...] = ()
    before: str = ""
    limit: int = 50


GROUPS = ("app", "model", "endpoint", "provider", "key", "org", "team", "user", "tag", "outcome", "cache", "day")
"""What `TraceStore.totals` groups by; `model` is the served model's name, `cache` is empty for what a model answered, `day` is UTC."""


class Total(msgspec.Struct, frozen=True):
    """Sums over a group of exchanges."""

    group: tuple[str, ...]
    exchanges: int
    cost_nanousd: int
    """Of those whose cost is known."""
    unknown: int
    """Exchanges whose cost is not known."""
    estimated: int
    zero: int
    """Exchanges that were answered with tokens, not from a cache, and cost nothing: free models, or a price that is wrong."""
    usage: Usage


class SpoolPosition(msgspec.Struct, frozen=True):
    """How far a spool has been consumed: committed in the same transaction as the rows it gave."""

    spool: str
    """Node and worker slot."""
    segment: int
    offset: int
