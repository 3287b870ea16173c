"""API keys: made, changed, rotated and revoked; in force everywhere as soon as the workers have the next snapshot."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from msgspec.structs import replace

from noria.app.definition import CLOSED, KEY, Definition, guard_problem, stored_definition
from noria.app.directory import Directories
from noria.app.registry import Registry, put
from noria.contracts.error import NotFound, RequestError
from noria.contracts.port import Write
from noria.contracts.release import Key
from noria.contracts.tenancy import Owner
from noria.govern import tenancy
from noria.govern.access import new_key, rotated, works

LONGEST_OVERLAP_NS = 366 * 86_400 * 1_000_000_000


class Keyring:
    """The keys of a tenant."""

    def __init__(self, registry: Registry, directories: Directories) -> None:
        self._registry = registry
        self._directories = directories

    async def all(self) -> list[Key]:
        """Every key, oldest first."""
        return [k for k, _ in (await self._registry.all(KEY, Key)).values()]

    async def get(self, id: str) -> Key:
        """One key by its id. Raises `NotFound`."""
        return (await self._one(id))[0]

    async def create(self, *, actor: str = "admin", **what: Any) -> tuple[str, Key]:
        """A new key's text (shown once) and record; in force when this returns. `what` are fields of `Key`.

        Raises `NotFound` or `RequestError` where it names what is not there, `Conflict` where its owner changes meanwhile.
        """
        text, key = new_key(now_ns=time.time_ns(), tenant=self._registry.tenant, **what)
        key, fences = await self._checked(key)
        writes = [put(KEY, key.id, key, expect=0), Write(*CLOSED, b"\x01"), *fences]
        await self._registry.change(writes, ("key.created", actor, key.id, {"after": shown(key)}))
        return text, key

    async def update(self, id: str, *, actor: str = "admin", **what: Any) -> Key:
        """Change fields of a key; the same text goes on. Whose it is changes as a whole (`org`, `team`, `user`)."""
        old, version = await self._one(id)
        if what.keys() & {"org", "team", "user"}:
            what = {"org": "", "team": "", "user": ""} | what
        key, fences = await self._checked(replace(old, **what), old)
        if key == old:
            return old
        before, after = shown(old), shown(key)
        changed = [name for name in after if after[name] != before[name]]
        detail = {"before": {n: before[n] for n in changed}, "after": {n: after[n] for n in changed}}
        await self._registry.change([put(KEY, id, key, expect=version), *fences], ("key.updated", actor, id, detail))
        return key

    async def rotate(self, id: str, overlap_ns: int, *, actor: str = "admin") -> tuple[str, Key]:
        """A new text (shown once) for the same key: its id, limits, budget and traces go on. See `govern.access.rotated`."""
        if not 0 <= overlap_ns <= LONGEST_OVERLAP_NS:
            raise RequestError("An overlap lasts 0 to 366 days.", code="invalid_value", param="overlap")
        old, version = await self._one(id)
        text, key = rotated(old, now_ns=time.time_ns(), overlap_ns=overlap_ns)
        detail = {"before": {"hint": old.hint}, "after": {"hint": key.hint}, "overlap_seconds": overlap_ns / 1e9}
        await self._registry.change([put(KEY, id, key, expect=version)], ("key.rotated", actor, id, detail))
        return text, key

    async def revoke(self, id: str, *, actor: str = "admin") -> None:
        """Make a key worthless at once. Raises `NotFound`. Keys stay required, even after the last one."""
        old, _ = await self._one(id)
        writes = [Write(KEY, id, None), Write(*CLOSED, b"\x01")]
        await self._registry.change(writes, ("key.deleted", actor, id, {"before": shown(old)}))

    async def open(self, *, actor: str = "admin") -> None:
        """Let this machine ask without a key again. Raises `RequestError` (409) while there are keys."""
        if await self.all():
            raise RequestError(
                "There are keys: without them /v1 would be open beside them.", code="keys_exist", status=409,
                hint="Revoke them first.",
            )  # fmt: skip
        await self._registry.change([Write(*CLOSED, None)], ("keys.opened", actor, "keys", {}))

    async def closed(self) -> bool:
        """Whether keys are asked for because one has existed."""
        return await self._registry.records.get(self._registry.tenant, *CLOSED) is not None

    async def choices(self) -> dict[str, list[str]]:
        """The names that `apps` and `guard_name` of a key may have."""
        definition = await stored_definition(self._registry.records, self._registry.tenant) or Definition("", {})
        return {"apps": [*definition.apps, *definition.embedders], "guards": list(definition.guards)}

    async def _one(self, id: str) -> tuple[Key, int]:
        found = await self._registry.get(KEY, id, Key)
        if found is None:
            known = list(await self._registry.all(KEY, Key))
            raise NotFound.nearest("key", id, known, code="key_not_found")
        return found

    async def _checked(self, key: Key, old: Key | None = None) -> tuple[Key, list[Write]]:
        """`key` with its whole owner, and writes that fail where that owner is removed meanwhile. What a key had before is
        not held against it: an App may have left the configuration since.
        """
        definition = await stored_definition(self._registry.records, self._registry.tenant) or Definition("", {})
        tenancy.check_plain("name", key.name)
        for app in key.apps:
            if app not in definition.apps and app not in definition.embedders and (old is None or app not in old.apps):
                raise NotFound.nearest("app", app, [*definition.apps, *definition.embedders], code="app_not_found")
        tenancy.check_endpoints(key.endpoints)
        tenancy.check_tags(key.tags)
        tenancy.check_metadata(key.metadata)
        if key.guard_name and (old is None or key.guard_name != old.guard_name):
            guard_problem(key.guard_name, definition)
        given = Owner(key.org, key.team, key.user)
        if old is not None and given == Owner(old.org, old.team, old.user):
            return key, []
        directory, versions = await self._directories.whole()
        owner = tenancy.resolve(given, directory)
        return replace(key, org=owner.org, team=owner.team, user=owner.user), self._directories.fence(
            owner, directory, versions
        )


def state(key: Key, now_ns: int) -> str:
    """`active`, `disabled` or `expired`."""
    return "expired" if not works(key, now_ns) else "disabled" if key.withheld else "active"


def shown(key: Key) -> dict[str, Any]:
    """A key as it may be told: everything but its hashes."""
    told: dict[str, Any] = msgspec.to_builtins(key)
    for secret in ("hash", "former", "guard", "tenant"):
        told.pop(secret)
    return told
