"""What `apply` stores and what workers get: Definition (resolved once) and Snapshot (DESIGN §3a.2-3).

Names resolve to digests here and nowhere else: not at request time, not at restart. The registry is the
RecordStore; a Snapshot is built from it alone, so a keeper that never saw the file builds the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from noria.contracts.port import RecordStore, Write
from noria.contracts.release import App, Endpoint, Key, Release, Snapshot
from noria.kit.ids import digest

DEFINITION, LIVE, KEY, RELEASE = "definition", "live", "key", "release"


class Definition(msgspec.Struct, frozen=True):
    """The resolved configuration of a tenant. `source` is the digest of the text it came from."""

    source: str
    apps: dict[str, App]
    embedders: dict[str, Endpoint] = {}
    keys_required: bool = False
    hosts: tuple[str, ...] = ()
    body_limit: int = 16 * 1024 * 1024


class Live(msgspec.Struct, frozen=True):
    """How an app's traffic is shared out now."""

    weights: dict[str, float]


async def stored_definition(records: RecordStore, tenant: str) -> Definition | None:
    """The definition in force, or None before the first apply."""
    record = await records.get(tenant, DEFINITION, "current")
    return msgspec.msgpack.decode(record.value, type=Definition) if record else None


async def apply(records: RecordStore, tenant: str, definition: Definition) -> list[str]:
    """Store `definition` and the releases it names; what changed, as lines for people. One commit, or none.

    An app whose releases changed gets the shares that the definition gives; rollouts come with the
    journey of a model. The same definition twice changes nothing.
    """
    before = await stored_definition(records, tenant)
    if before == definition:
        return []
    old_apps = before.apps if before else {}
    changes = [f"+ app {name}" for name in definition.apps if name not in old_apps]
    changes += [f"- app {name}" for name in old_apps if name not in definition.apps]
    writes = [Write(DEFINITION, "current", msgspec.msgpack.encode(definition))]
    for name, app in definition.apps.items():
        writes += [Write(RELEASE, r.id, msgspec.msgpack.encode(r)) for r in app.releases.values()]
        if name in old_apps and _ids(old_apps[name]) == _ids(app) and old_apps[name].weights == app.weights:
            continue
        if name in old_apps:
            changes.append(f"~ app {name}: {', '.join(f'{r} {i[:11]}' for r, i in _ids(app).items())}")
        writes.append(Write(LIVE, name, msgspec.msgpack.encode(Live(app.weights))))
    writes += [Write(LIVE, name, None) for name in old_apps if name not in definition.apps]
    await records.commit(tenant, writes)
    return changes or ["~ settings"]


async def build_snapshot(records: RecordStore, tenant: str) -> Snapshot | None:
    """The whole configuration as one value named by its hash; None before the first apply."""
    revision = await records.revision(tenant)
    definition = await stored_definition(records, tenant)
    if definition is None:
        return None
    live = {r.id: msgspec.msgpack.decode(r.value, type=Live) for r in await records.scan(tenant, LIVE)}
    apps = {name: replace(app, weights=live[name].weights) if name in live else app for name, app in definition.apps.items()}
    keys = {k.hash: k for k in await stored_keys(records, tenant)}
    snapshot = Snapshot(
        hash="",
        tenant=tenant,
        revision=0,
        apps=apps,
        keys=keys,
        keys_required=definition.keys_required,
        embedders=definition.embedders,
        hosts=definition.hosts,
        body_limit=definition.body_limit,
    )
    content = msgspec.json.encode(snapshot, order="deterministic")
    return replace(snapshot, hash="c1:" + digest(content), revision=revision)


async def stored_keys(records: RecordStore, tenant: str) -> list[Key]:
    """Every key of the tenant, oldest first."""
    keys: list[Key] = []
    after = ""
    while page := await records.scan(tenant, KEY, after=after, limit=1000):
        keys += [msgspec.msgpack.decode(r.value, type=Key) for r in page]
        after = page[-1].id
    return keys


def with_ids(app: App, identify: Callable[[Release], str]) -> App:
    """`app` with the ids of its releases computed."""
    return replace(app, releases={n: replace(r, id=identify(r)) for n, r in app.releases.items()})


def _ids(app: App) -> Mapping[str, str]:
    return {name: r.id for name, r in app.releases.items()}
