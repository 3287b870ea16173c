"""What somebody said of an answer, or what the answer should have been. It may come before the exchange is stored, or weeks later."""

from __future__ import annotations

from typing import Literal

import msgspec


class Feedback(msgspec.Struct, frozen=True):
    """One statement about one exchange. A later one of the same `by` and `metric` replaces the earlier."""

    id: str
    target: str
    """What it is about, as the caller knows it: an exchange id (`x-request-id`), a response id, or a trace id."""
    kind: Literal["thumb", "score", "label", "correction"]
    at_ns: int
    metric: str = ""
    """Which judgement: `thumbs_up`, `helpful`, …; empty = the kind's own."""
    value: float | None = None
    """thumb: 0 or 1; score: any finite number, or within the metric's declared range."""
    text: str = ""
    """label: the class; correction: what the answer should have been."""
    comment: str = ""
    by: str = ""
    """Keyed hash of who said it; empty = the caller's key."""
    key: str = ""
    """The API key that it came with."""
    tags: dict[str, str] = {}


Of = Literal["any", "exchange", "response", "trace"]
"""What kind of name a target is; `any` = whatever it turns out to be."""


class Statement(msgspec.Struct, frozen=True):
    """What a caller said, read and found well-formed, before it is known who said it of which exchange."""

    feedback: Feedback
    of: Of = "any"
    user: str = ""
    """Who said it, as the caller names them; only its keyed hash is stored."""
    own_id: bool = False
    """Whether `feedback.id` is the caller's own: the same id again is the same statement."""


class Giver(msgspec.Struct, frozen=True):
    """Whose key feedback comes with: it may speak of exchanges of its own organisation and apps alone."""

    tenant: str
    key: str = ""
    org: str = ""
    apps: tuple[str, ...] = ()
    """Empty = every app."""
    operator: bool = False
    """The console, the command line: may speak of every exchange of the tenant."""


class Joined(msgspec.Struct, frozen=True):
    """The exchange that feedback is about."""

    exchange: str
    app: str
    release: str
    release_name: str
    started_ns: int
    note: str = ""
    """For people: why this one, where the target named several."""
    pinned: bool = False
    """Whether the exchange asked for its release by name: it says nothing of how traffic was shared out."""


class Told(msgspec.Struct, frozen=True):
    """One piece of stored feedback as it is shown."""

    feedback: Feedback
    received_ns: int
    cursor: str
    """Where the list goes on after it."""
    joined: Joined | None = None
    refused: str = ""
    """Why it was not joined to the exchange that it names."""
    erased: bool = False
    """Whether the key of its text was destroyed: label, correction, comment and tags are gone."""


class Receipt(msgspec.Struct, frozen=True):
    """What became of one statement. `waiting`: its exchange is not stored yet; `superseded`: a later one was there before."""

    id: str
    target: str
    state: Literal["joined", "waiting", "superseded", "known", "refused"]
    exchange: str = ""
    note: str = ""
