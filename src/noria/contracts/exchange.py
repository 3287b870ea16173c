"""The noun of the prompt journey: one prompt on its way to an answer, frozen; each stage returns a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from noria.contracts.message import Message
from noria.contracts.release import Key, Release
from noria.contracts.usage import Usage as Usage  # noqa: PLC0414  its place for whoever reads of exchanges

Kind = Literal["chat", "completion", "embedding", "moderation", "passthrough"]
Dialect = Literal["openai", "responses", "anthropic", "gemini"]
"""The wire protocol that a caller speaks. The journey itself works in `openai` (chat); the others are translated."""
Priority = Literal["high", "normal", "low"]
"""Who waits for whom where a limit has a queue; batches are `low`."""


class Exchange(msgspec.Struct, frozen=True):
    """One prompt. `body` holds the request's top-level values verbatim; stages replace what they edit.

    `messages` is None until a stage needs it and stays in step with `body["messages"]`: whoever
    changes it leaves `edited` true, and the provider writes it back once.
    """

    id: str
    """UUIDv7, = `x-request-id`."""
    trace: str
    """32 hex digits; ours begin with 48 bits of milliseconds, a caller's traceparent is kept."""
    span: str
    """16 hex digits."""
    tenant: str
    kind: Kind
    model: str
    """The name that the caller asked for: an App, or an embedder."""
    stream: bool
    body: dict[str, msgspec.Raw]
    started_ns: int
    """Wall clock, int64 ns UTC."""
    parent_span: str = ""
    authorization: str = ""
    """The caller's key as it came; emptied at admit, never recorded."""
    peer_is_loopback: bool = True
    key: Key | None = None
    subject: str = ""
    """Keyed hash of `user` / `safety_identifier`; the raw value is dropped at admit."""
    release: Release | None = None
    conversation: str = ""
    messages: tuple[Message, ...] | None = None
    edited: bool = False
    variables: dict[str, str] = {}
    """Values for the prompt template."""
    vault: tuple[tuple[str, str], ...] = ()
    """(placeholder, original) pairs of reversible masks; only in memory, never recorded."""
    usage_wanted: bool = False
    """Whether the caller asked for the usage frame of a stream."""
    tail_wanted: bool = False
    """Whether the caller sent `x-noria-tail: 1`."""
    dialect: Dialect = "openai"
    native: dict[str, msgspec.Raw] = {}
    """The request as the caller wrote it, where `dialect` is not `openai`: an endpoint that speaks it too gets this.

    Empty once a stage has edited the messages, or must see the answer as chat: then there is no native way.
    """
    native_headers: tuple[tuple[str, str], ...] = ()
    """The caller's headers that steer its protocol (`anthropic-beta`); they go along with `native` only."""
    tags: dict[str, str] = {}
    """Attribution: the key's own tags and what `x-noria-tags: env=prod,feature=search` adds."""
    priority: Priority = "normal"
    cache_control: str = ""
    """The caller's `Cache-Control` request header."""
    warnings: tuple[str, ...] = ()
    """What of the request could not be carried over into another protocol, one sentence each; recorded."""
    path: str = ""
    """The request path as it came, for keys that may call some paths only."""
    pin: str = ""
    """The release that the caller names (`x-noria-release`), by name or id; for operators and evaluations."""


Hear = Callable[[Usage | None], None]
"""Gets what an answer has used so far."""


def unheard(usage: Usage | None, /) -> None:
    """Nobody listens."""


class ModelCall(msgspec.Struct, frozen=True):
    """What a provider is asked to do: send `body` (OpenAI's wire form) to its endpoint."""

    exchange: str
    kind: Kind
    stream: bool
    body: dict[str, msgspec.Raw]
    traceparent: str = ""
    dialect: Dialect = "openai"
    """What `body` is written in, and the answer is wanted in. Only endpoints that speak it are asked in another."""
    headers: tuple[tuple[str, str], ...] = ()
    """Headers of the caller's protocol; the provider decides which of them may pass."""
    hear: Hear = unheard
    """For providers that translate a stream: what was used so far, as often as the endpoint tells it. Chat tells it at the end,
    and whoever leaves before pays for what was used by then.
    """


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The facts of a whole answer that are recorded."""

    id: str = ""
    model: str = ""
    finish_reason: str = ""
    usage: Usage | None = None


class RawCall(msgspec.Struct, frozen=True):
    """One request that passes through verbatim. `path` follows the endpoint's URL (`/images/generations?x=1`) and has been
    checked; `headers` are the caller's that an upstream may see, names in lower case.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    traceparent: str = ""


class ModelReply(msgspec.Struct, frozen=True):
    """A whole answer (`body`, OpenAI's wire form), or, after a stream, only its facts (`body` empty)."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    """Upstream headers worth keeping: rate limits, request id, processing time."""
    upstream_id: str = ""
    facts: Answer | None = None
    """Of a whole answer, where the provider has read them already: then nobody reads it a second time."""
    warnings: tuple[str, ...] = ()
    """What of the request the endpoint could not be told, one sentence each."""
