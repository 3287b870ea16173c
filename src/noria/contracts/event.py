"""The seam of governance: what happened, as one typed value; subscribers are wired in `noria.app`."""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True):
    """Something that changed or was decided: who did what to what, when, with which evidence.

    `kind` is `noun.verb` (`key.created`, `config.applied`, `release.rolled_back`).
    """

    tenant: str
    id: str
    at_ns: int
    kind: str
    actor: str
    target: str
    detail: dict[str, Any] = {}
