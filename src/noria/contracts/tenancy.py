"""Who keys belong to: organisations, their teams, and users who may be in several teams.

Names are unique within a tenant and never change: limits, budgets and traces go by them.
"""

from __future__ import annotations

import msgspec


class Org(msgspec.Struct, frozen=True):
    """An organisation."""

    name: str
    title: str = ""
    """For people."""
    metadata: dict[str, str] = {}
    created_ns: int = 0


class Team(msgspec.Struct, frozen=True):
    """A team, of one organisation or of none."""

    name: str
    org: str = ""
    title: str = ""
    metadata: dict[str, str] = {}
    created_ns: int = 0


class User(msgspec.Struct, frozen=True):
    """A person or a service. With an `org`, all `teams` are of that organisation; without one, of any."""

    name: str
    org: str = ""
    teams: tuple[str, ...] = ()
    title: str = ""
    metadata: dict[str, str] = {}
    created_ns: int = 0


class Owner(msgspec.Struct, frozen=True):
    """Whose a key is; empty where it has none."""

    org: str = ""
    team: str = ""
    user: str = ""
