"""What `apply` stores and what workers get: Definition (resolved once) and Snapshot (DESIGN §3a.2-3).

Names resolve to digests here and nowhere else: not at request time, not at restart. The registry is the
RecordStore; a Snapshot is built from it alone, so a keeper that never saw the file builds the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from noria.app.added import ADDED, ALIAS, RETIRED, Registered, merged, place, registered
from noria.app.pricing import of_today, today
from noria.contracts.error import ConfigError, NotFound
from noria.contracts.evaluation import Suite
from noria.contracts.port import RecordStore, Write
from noria.contracts.release import App, Budget, Endpoint, GuardRule, Key, Limit, Release, Snapshot
from noria.contracts.rollout import RolloutPolicy
from noria.kit.ids import digest
from noria.release.registry import Added

T = TypeVar("T")
DEFINITION, LIVE, KEY, RELEASE = "definition", "live", "key", "release"
BUDGET, LIMIT = "budget", "limit"
CLOSED = ("access", "closed")
"""The record that says that a key has existed: from then on keys are asked for, also after the last one is revoked."""


class Canary(msgspec.Struct, frozen=True):
    """A rollout that the file declares: which release of an app is the candidate, and how it gets traffic."""

    candidate: str
    policy: RolloutPolicy


class Definition(msgspec.Struct, frozen=True):
    """The resolved configuration of a tenant. `source` is the digest of the text it came from."""

    source: str
    apps: dict[str, App]
    embedders: dict[str, Endpoint] = {}
    keys_required: bool = False
    hosts: tuple[str, ...] = ()
    body_limit: int = 16 * 1024 * 1024
    budgets: tuple[Budget, ...] = ()
    limits: tuple[Limit, ...] = ()
    webhook: str = ""
    """Where the URL is that is told of spent budgets (`env:NAME`)."""
    guards: dict[str, tuple[GuardRule, ...]] = {}
    """Guard policies by name, with what their files say: for keys that name one, and for `/v1/moderations`."""
    passthrough: Endpoint | None = None
    """Who is asked what is passed through verbatim and names no model."""
    file_limit: int = 512 * 1024 * 1024
    public_url: str = ""
    rollouts: dict[str, Canary] = {}
    """By app."""
    refreshes: dict[str, dict[str, Any]] = {}
    """By app, as the file has them (`settings.refresh`): a turn may be begun with other settings upon them."""
    suites: dict[str, Suite] = {}
    """By name; their datasets as the file names them (`name`, `name@d1:…`), resolved when one is run."""


class Live(msgspec.Struct, frozen=True):
    """How an app's traffic is shared out now."""

    weights: dict[str, float]


async def stored_definition(records: RecordStore, tenant: str) -> Definition | None:
    """The definition in force, or None before the first apply."""
    record = await records.get(tenant, DEFINITION, "current")
    return msgspec.msgpack.decode(record.value, type=Definition) if record else None


async def apply(records: RecordStore, tenant: str, definition: Definition) -> list[str]:
    """Store `definition` and the releases it names; what changed, as lines for people. One commit, or none.

    An app whose releases changed gets the shares that the definition gives, unless its live ones came from elsewhere
    (`from_elsewhere`). Where the file changes the candidate of a declared rollout that has been promoted, what was promoted
    stays, under a name of its own, until the new one has earned the traffic. The same definition twice changes nothing.
    Raises `ConfigError` where a release of the file has the name of another that was added while the service ran.
    """
    before = await stored_definition(records, tenant)
    live = await live_shares(records, tenant)
    known = await registered(records, tenant)
    if before == definition:
        return []
    old_apps = before.apps if before else {}
    changes = [f"+ app {name}" for name in definition.apps if name not in old_apps]
    changes += [f"- app {name}" for name in old_apps if name not in definition.apps]
    writes = [Write(DEFINITION, "current", msgspec.msgpack.encode(definition))]
    for name, app in definition.apps.items():
        writes += [Write(RELEASE, r.id, msgspec.msgpack.encode(r)) for r in app.releases.values()]
        writes += _taken_over(app, known)
        if name in old_apps and _ids(old_apps[name]) == _ids(app) and old_apps[name].weights == app.weights:
            continue
        if name in old_apps:
            changes.append(f"~ app {name}: {', '.join(f'{r} {i[:11]}' for r, i in _ids(app).items())}")
            kept = _kept(old_apps[name], app, live.get(name), definition.rollouts.get(name))
            writes += kept
            if kept or from_elsewhere(old_apps[name], app, live.get(name), known.names(name)):
                continue
        writes.append(Write(LIVE, name, msgspec.msgpack.encode(Live(app.weights))))
    for name in old_apps.keys() - definition.apps.keys():
        writes += _gone(name, known)
    await records.commit(tenant, writes)
    return changes or ["~ settings"]


def _taken_over(app: App, known: Registered) -> list[Write]:
    """Records of added releases that the file declares now, too: they go. Raises `ConfigError` where it means another release."""
    writes = []
    for name, added in known.added.get(app.name, {}).items():
        if name not in app.releases:
            continue
        if not added.retired_ns and added.release.id != app.releases[name].id:
            raise ConfigError(
                f"apps.{app.name}.releases.{name}: a release of this name was made by {added.by} and is another.",
                hint="Give the one in the file another name, or retire the other: noria release retire.",
            )
        writes.append(Write(ADDED, place(app.name, name), None))
    return writes


def _kept(old: App, new: App, live: Live | None, canary: Canary | None) -> list[Write]:
    """What keeps a promoted candidate in service while the file replaces it by another: traffic moves by rollout alone."""
    if canary is None or live is None or canary.candidate not in old.releases:
        return []
    name = canary.candidate
    was, now = old.releases[name], new.releases[name]
    if was.id == now.id or not live.weights.get(name, 0.0):
        return []
    other = f"{name}-{was.id[3:9]}"
    weights = {n: w for n, w in live.weights.items() if n != name and n in new.releases}
    kept = Added(replace(was, name=other), 0, "apply", note=f"was {name} until the file changed it")
    return [
        Write(ADDED, place(new.name, other), msgspec.msgpack.encode(kept)),
        Write(LIVE, new.name, msgspec.msgpack.encode(Live({**weights, other: live.weights[name], name: 0.0}))),
    ]


def _gone(app: str, known: Registered) -> list[Write]:
    """Live state of an app that the file has no more."""
    names = [(ADDED, known.added), (RETIRED, known.retired), (ALIAS, known.aliases)]
    mine = [Write(kind, place(app, name), None) for kind, of in names for name in of.get(app, ())]
    return [Write(LIVE, app, None), *mine]


async def live_shares(records: RecordStore, tenant: str) -> dict[str, Live]:
    """The shares of traffic in force, by app."""
    return {r.id: msgspec.msgpack.decode(r.value, type=Live) for r in await records.scan(tenant, LIVE)}


def from_elsewhere(old: App, new: App, live: Live | None, added: Collection[str] = ()) -> bool:
    """Whether something else than the file has set an app's live shares, to releases that it still has: then they stay.

    `added` are releases that the app has besides those of the file.
    """
    if live is None or live.weights in (old.weights, new.weights):
        return False
    return all(name in new.releases or name in added for name, share in live.weights.items() if share)


async def build_snapshot(records: RecordStore, tenant: str) -> Snapshot | None:
    """The whole configuration as one value named by its hash; None before the first apply."""
    revision = await records.revision(tenant)
    definition = await stored_definition(records, tenant)
    if definition is None:
        return None
    live, known = await live_shares(records, tenant), await registered(records, tenant)
    apps = {
        name: of_today(merged(app, known, live[name].weights if name in live else app.weights))
        for name, app in definition.apps.items()
    }
    keys = in_force(await stored_keys(records, tenant), definition.guards)
    closed = await records.get(tenant, *CLOSED) is not None
    snapshot = Snapshot(
        hash="",
        tenant=tenant,
        revision=0,
        apps=apps,
        keys=keys,
        keys_required=definition.keys_required or closed,
        embedders={name: today(e) for name, e in definition.embedders.items()},
        hosts=definition.hosts,
        body_limit=definition.body_limit,
        budgets=(*definition.budgets, *(await stored(records, tenant, BUDGET, Budget))),
        limits=(*definition.limits, *(await stored(records, tenant, LIMIT, Limit))),
        guards=definition.guards,
        passthrough=definition.passthrough,
        file_limit=definition.file_limit,
    )
    content = msgspec.json.encode(snapshot, order="deterministic")
    return replace(snapshot, hash="c1:" + digest(content), revision=revision)


async def stored_keys(records: RecordStore, tenant: str) -> list[Key]:
    """Every key of the tenant, oldest first."""
    return await stored(records, tenant, KEY, Key)


async def stored(records: RecordStore, tenant: str, kind: str, type: type[T]) -> list[T]:
    """Every record of a kind, in the ids' order."""
    found: list[T] = []
    after = ""
    while page := await records.scan(tenant, kind, after=after, limit=1000):
        found += [msgspec.msgpack.decode(r.value, type=type) for r in page]
        after = page[-1].id
    return found


def in_force(keys: Iterable[Key], guards: Mapping[str, tuple[GuardRule, ...]]) -> dict[str, Key]:
    """Keys by every hash that opens them: guards resolved, replaced texts as keys of their own that end earlier.

    A key whose guard is not configured any more is withheld: unguarded it must not work.
    """
    found = {}
    for key in keys:
        missing = bool(key.guard_name) and key.guard_name not in guards
        lean = replace(
            key,
            guard=guards.get(key.guard_name, ()),
            withheld=key.withheld or ("guard_missing" if missing else ""),
            former=(),
            metadata={},
        )
        found[key.hash] = lean
        for replaced, until in key.former:
            end = until if key.expires_ns is None else min(until, key.expires_ns)
            found[replaced] = replace(lean, hash=replaced, expires_ns=end)
    return found


def guard_problem(name: str, definition: Definition) -> None:
    """Raise `NotFound`, with the nearest names, where no guard policy has this name."""
    if name not in definition.guards:
        raise NotFound.nearest("guard", name, list(definition.guards), code="guard_not_found")


def with_ids(app: App, identify: Callable[[Release], str]) -> App:
    """`app` with the ids of its releases computed."""
    return replace(app, releases={n: replace(r, id=identify(r)) for n, r in app.releases.items()})


def _ids(app: App) -> Mapping[str, str]:
    return {name: r.id for name, r in app.releases.items()}
