"""What a configuration would change, in words, and changing it: `noria plan`, `noria apply` (DESIGN §3a.2).

The file declares; the registry is what is in force. Keys, conversations and traces are no part of the file and stay as
they are. Shares of traffic that something else than the file has set (a rollout, an operator) stay too, and are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol

import msgspec

from noria.app.added import NOTHING, Registered, registered
from noria.app.definition import Canary, Definition, Live, apply, from_elsewhere, live_shares, stored_definition
from noria.app.release_export import Exported, Source, exported
from noria.contracts.error import ConfigError, RequestError
from noria.contracts.port import RecordStore
from noria.contracts.release import App, Endpoint, Release
from noria.settings import Loaded, Settings, resolve_secret

IN_FORCE_WITHIN = 5.0
"""Seconds in which every worker should serve a new configuration."""
_SHOWN = 11
"""Characters of a hash for people."""
_OWN = frozenset({"source", "apps", "embedders", "guards", "rollouts", "refreshes"})
"""Fields of a definition that are shown in a form of their own."""
_IN_DEFINITION = frozenset({"schema_url", "models", "prompts", "guards", "apps", *Definition.__struct_fields__})
_LIVE = frozenset(
    {
        ("serve", "hosts"),
        ("serve", "public_url"),
        ("serve", "body_limit"),
        ("serve", "keys_required"),
        ("retention", "traces_days"),
        ("files", "max_size"),
    }
)
"""Settings of sections that are otherwise read at the start only."""


class Change(msgspec.Struct, frozen=True):
    """One difference between the file and what is in force."""

    verb: Literal["+", "-", "~", "=", "!"]
    """Added, removed, changed; left as it is although the file says otherwise; needs a restart."""
    what: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.what}" + (f": {self.detail}" if self.detail else "")


class Plan(msgspec.Struct, frozen=True):
    """Every difference. `empty`: applying would change nothing that is in force now."""

    changes: tuple[Change, ...]
    config: str | None
    """Hash of the configuration in force."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to apply; what needs a restart does not count."""
        return all(c.verb in "=!" for c in self.changes)


class Declared(Protocol):
    """What is needed of `app.rollouts`."""

    async def declare(self, declared: Mapping[str, Canary]) -> None:
        """Begin the rollouts that a file declares."""
        ...


class Owner(Protocol):
    """What is needed of the keeper."""

    records: RecordStore
    tenant: str
    keep_days: int

    @property
    def config(self) -> str | None:
        """Hash of the configuration in force."""
        ...

    async def refresh(self) -> None:
        """Build the snapshot anew and tell the workers."""
        ...

    @property
    def rollouts(self) -> Declared:
        """Who begins the rollouts that a file declares."""
        ...

    async def note(self, kind: str, actor: str, target: str, detail: dict[str, Any]) -> None:
        """Keep an event."""
        ...

    def workers(self) -> list[dict[str, Any]]:
        """Workers heard of lately."""
        ...


class Changes:
    """Plans and applies files. `load` and `define` are those that the service started with."""

    def __init__(
        self,
        owner: Owner,
        started: Loaded,
        file: Path | None,
        *,
        load: Callable[[Path | None], Loaded],
        define: Callable[[Loaded], Definition],
    ) -> None:
        self._owner = owner
        self._started = started.settings
        self.file = file
        self._load = load
        self._define = define
        self._one = asyncio.Lock()

    async def plan(self, file: Path | None = None) -> Plan:
        """What applying `file` (default: the one that the service was started with) would change.

        Raises `ConfigError` that names file, line and key of every mistake.
        """
        loaded, definition = await self._read(file)
        return await self._compare(loaded, definition)

    async def apply(self, file: Path | None = None) -> tuple[Plan, list[dict[str, Any]]]:
        """Apply `file` as one commit; the plan that was carried out, and how each worker stands. Raises as `plan`."""
        async with self._one:
            loaded, definition = await self._read(file)
            plan = await self._compare(loaded, definition)
            owner = self._owner
            lines = await apply(owner.records, owner.tenant, definition)
            owner.keep_days = loaded.settings.retention.traces_days
            if lines:
                shown = [str(c) for c in plan.changes if c.verb in "+-~"] or lines
                await owner.note("config.applied", "operator", definition.source, {"changes": shown})
                await owner.refresh()
                await owner.rollouts.declare(definition.rollouts)
        return plan, await self._in_force()

    async def exported(self, app: App, release: Release) -> Exported:
        """A release that was made while the service ran as part of its file. Raises `RequestError` where there is no file."""
        owner, stored = self._owner, await stored_definition(self._owner.records, self._owner.tenant)
        if self.file is None or stored is None:
            raise RequestError("The service was started without a noria.yaml: there is nothing to write into.", code="no_file")
        loaded = await asyncio.to_thread(self._load, self.file)
        known = await registered(owner.records, owner.tenant)
        source = Source(self.file, loaded, known, stored, self._define, app.weights)
        return await asyncio.to_thread(exported, source, app.name, release)

    async def _read(self, file: Path | None) -> tuple[Loaded, Definition]:
        loaded = await asyncio.to_thread(self._load, file or self.file)
        definition = await asyncio.to_thread(self._define, loaded)
        for endpoint in _endpoints(definition).values():
            if endpoint.key:
                try:
                    resolve_secret(endpoint.key)
                except ConfigError as e:  # a worker would refuse the whole configuration for it
                    raise ConfigError(f"models.{endpoint.name}.key: {e}", hint="Nothing was changed.") from e
        return loaded, definition

    async def _compare(self, loaded: Loaded, definition: Definition) -> Plan:
        owner = self._owner
        before = await stored_definition(owner.records, owner.tenant)
        live = await live_shares(owner.records, owner.tenant)
        known = await registered(owner.records, owner.tenant)
        changes = (*differences(before, definition, live, known), *restarts(self._started, loaded.settings))
        return Plan(changes, owner.config)

    async def _in_force(self) -> list[dict[str, Any]]:
        """The workers, when all of them serve the newest configuration, or said why not, or a while has passed."""
        end = monotonic() + IN_FORCE_WITHIN
        while True:
            workers = [w for w in self._owner.workers() if w["seen_seconds_ago"] < 3.0]
            told = [
                {"name": w["name"], "in_force": w["config"] == self._owner.config, "trouble": w["trouble"]} for w in workers
            ]
            if all(t["in_force"] or t["trouble"] for t in told) or monotonic() >= end:
                return told
            await asyncio.sleep(0.05)


def differences(
    before: Definition | None, after: Definition, live: Mapping[str, Live], known: Registered = NOTHING
) -> list[Change]:
    """From the definition in force to another, by content: models, prompts, guards, apps with their releases, the rest.

    `known` is what the registry has besides the file: it stays, and is told.
    """
    old = before or Definition("", {})
    changes = [
        *_named("model", _endpoints(old), _endpoints(after)),
        *_named("prompt", _prompts(old), _prompts(after)),
        *_named("guard", old.guards, after.guards),
    ]
    for name in sorted({*old.apps, *after.apps}):
        changes += _app(name, old.apps.get(name), after.apps.get(name), live.get(name), known)
        changes += _rollout(name, old.rollouts.get(name), after.rollouts.get(name))
    changes += _named("refresh of app", old.refreshes, after.refreshes)
    for field in Definition.__struct_fields__:
        a, b = getattr(old, field), getattr(after, field)
        if field not in _OWN and a != b and (before is not None or b != _default(field)):
            changes += _rest(field, a, b)
    return changes


def restarts(started: Settings, now: Settings) -> list[Change]:
    """Settings that are read at the start only and differ from those that the service started with."""
    found = []
    old, new = started.model_dump(), now.model_dump()
    for section in new:
        if section in _IN_DEFINITION or old.get(section) == new[section]:
            continue
        if not isinstance(new[section], dict):
            found.append(Change("!", section, "needs a restart"))
            continue
        for key, value in new[section].items():
            was = (old.get(section) or {}).get(key)
            if was == value or (section, key) in _LIVE:
                continue
            how = "stop and start Noria" if (section, key) in (("serve", "host"), ("serve", "port")) else "run `noria upgrade`"
            shown = "" if section == "stores" else f"{was} → {value}; "  # URLs may hold passwords
            found.append(Change("!", f"{section}.{key}", f"{shown}needs a restart: {how}"))
    return found


def _rollout(app: str, old: Canary | None, new: Canary | None) -> list[Change]:
    if old == new:
        return []
    said = f"candidate {new.candidate}, steps {', '.join(f'{s:g}' for s in new.policy.steps)} %" if new else ""
    return [Change("-" if new is None else "~" if old else "+", f"app {app}, rollout", said)]


def _app(name: str, old: App | None, new: App | None, live: Live | None, known: Registered) -> list[Change]:
    what = f"app {name}"
    if new is None:
        return [Change("-", what)]
    if old is None:
        return [Change("+", what, ", ".join(f"release {r.name} {r.id[:_SHOWN]}" for r in new.releases.values()))]
    changes = []
    for label in sorted({*old.releases, *new.releases}):
        a, b = old.releases.get(label), new.releases.get(label)
        if a is None and b is not None:
            changes.append(Change("+", f"{what}, release {label}", b.id[:_SHOWN]))
        elif b is None:
            changes.append(Change("-", f"{what}, release {label}"))
        elif a is not None and a != b:
            ids = f"{a.id[:_SHOWN]} → {b.id[:_SHOWN]}" if a.id != b.id else f"{b.id[:_SHOWN]} stays"
            changes.append(Change("~", f"{what}, release {label}", f"{ids} ({', '.join(_fields(a, b))})"))
    own = [f for f in App.__struct_fields__ if f not in ("releases", "weights") and getattr(old, f) != getattr(new, f)]
    changes += [Change("~", what, field) for field in own]
    for label in sorted(known.names(name) - set(new.releases)):
        added = known.added[name][label]
        changes.append(Change("=", f"{what}, release {label}", f"{added.release.id[:_SHOWN]} was made by {added.by} and stays"))
    if from_elsewhere(old, new, live, known.names(name)) and live is not None:
        changes.append(Change("=", what, f"keeps its live shares {_shares(live.weights)}, which did not come from the file"))
    elif live is not None and live.weights != new.weights:
        changes.append(Change("~", what, f"shares {_shares(live.weights)} → {_shares(new.weights)}"))
    return changes


def _named(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    changes = []
    for name in sorted({*old, *new}):
        if name not in old:
            changes.append(Change("+", f"{kind} {name}"))
        elif name not in new:
            changes.append(Change("-", f"{kind} {name}"))
        elif old[name] != new[name]:
            changes.append(Change("~", f"{kind} {name}", ", ".join(_fields(old[name], new[name]))))
    return changes


def _rest(field: str, old: Any, new: Any) -> list[Change]:
    """A field that this module knows nothing of: by name or id where its items have one, else as a whole."""
    a, b = _by_name(old), _by_name(new)
    if a is not None and b is not None and (a or b):
        return _named(field.removesuffix("s"), a, b)
    plain = all(isinstance(v, (str, int, float, bool, tuple, type(None))) for v in (old, new))
    return [Change("~", field, f"{_plain(old)} → {_plain(new)}" if plain else "")]


def _by_name(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, (tuple, list)):
        keys = [getattr(v, "id", None) or getattr(v, "name", None) for v in value]
        if all(isinstance(k, str) for k in keys):
            return dict(zip(map(str, keys), value, strict=True))
    return None


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _fields(a: Any, b: Any) -> list[str]:
    """Names of the fields in which two values of one kind differ."""
    if isinstance(a, msgspec.Struct) and type(a) is type(b):
        names = [f for f in a.__struct_fields__ if f != "id" and getattr(a, f) != getattr(b, f)]
        return names or ["behaviour of this version"]
    return []


def _shares(weights: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {share:g}" for name, share in weights.items()) + "}"


def _releases(definition: Definition) -> list[Release]:
    return [r for app in definition.apps.values() for r in app.releases.values()]


def _endpoints(definition: Definition) -> dict[str, Endpoint]:
    return {e.name: e for r in _releases(definition) for e in r.route} | definition.embedders


def _prompts(definition: Definition) -> dict[str, str]:
    return {r.prompt.name: r.prompt.digest for r in _releases(definition) if r.prompt}


def _default(field: str) -> Any:
    return getattr(Definition("", {}), field)
