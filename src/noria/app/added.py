"""What the registry adds to the file: releases made elsewhere, those that are retired, environments' names (ADR 23)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from noria.contracts.port import RecordStore
from noria.contracts.release import App, Release
from noria.release.registry import Added

ADDED, RETIRED, ALIAS = "added", "retired", "alias"
"""Record kinds; their ids are `<app>|<name>`."""
SEPARATOR = "|"
"""Stands in no name (`settings.shape.Name`)."""


class Retired(msgspec.Struct, frozen=True):
    """A release of the file that is not served any more: while its id is this one. Changed in the file, it is another."""

    release_id: str
    at_ns: int
    by: str
    why: str = ""


class Registered(NamedTuple):
    """All of it, by app."""

    added: Mapping[str, Mapping[str, Added]] = {}
    """Retired ones too."""
    retired: Mapping[str, Mapping[str, Retired]] = {}
    aliases: Mapping[str, Mapping[str, str]] = {}

    def names(self, app: str) -> set[str]:
        """Releases that are served besides those of the file."""
        return {name for name, a in self.added.get(app, {}).items() if not a.retired_ns}


NOTHING = Registered()


def place(app: str, name: str) -> str:
    """A record's id."""
    return f"{app}{SEPARATOR}{name}"


async def registered(records: RecordStore, tenant: str) -> Registered:
    """As of now."""
    found: list[dict[str, dict[str, object]]] = []
    for kind, shape in ((ADDED, Added), (RETIRED, Retired), (ALIAS, str)):
        by_app: dict[str, dict[str, object]] = {}
        after = ""
        while page := await records.scan(tenant, kind, after=after, limit=1000):
            after = page[-1].id
            for record in page:
                app, _, name = record.id.partition(SEPARATOR)
                by_app.setdefault(app, {})[name] = msgspec.msgpack.decode(record.value, type=shape)
        found.append(by_app)
    return Registered(*found)  # type: ignore[arg-type]  # decoded by the types above


def merged(app: App, known: Registered, weights: Mapping[str, float]) -> App:
    """`app` of the file with what the registry adds, its shares being `weights`.

    A release that takes traffic is served even where it was retired by the file's being older: nothing is left without an answer.
    """
    retired, added = known.retired.get(app.name, {}), known.added.get(app.name, {})
    releases: dict[str, Release] = {
        name: r
        for name, r in app.releases.items()
        if weights.get(name, 0.0) > 0 or name not in retired or retired[name].release_id != r.id
    }
    releases |= {name: a.release for name, a in added.items() if not a.retired_ns and name not in app.releases}
    shares = {name: weights.get(name, 0.0) for name in releases}
    if not any(shares.values()):  # what had the traffic is gone: as the file says, else the first
        shares = {name: app.weights.get(name, 0.0) for name in releases}
    if not any(shares.values()):
        shares = dict.fromkeys(releases, 0.0) | {next(iter(releases)): 1.0}
    aliases = {alias: name for alias, name in known.aliases.get(app.name, {}).items() if name in releases}
    return replace(app, releases=releases, weights=shares, aliases=aliases)
