"""Organisations, teams and users: made, changed and removed. What still has keys is removed only together with them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from noria.app.definition import CLOSED, KEY
from noria.app.registry import Registry, put
from noria.contracts.error import NoriaError, RequestError
from noria.contracts.port import Write
from noria.contracts.release import Key
from noria.contracts.tenancy import Org, Owner, Team, User
from noria.govern import tenancy
from noria.govern.access import works
from noria.govern.tenancy import Directory

Kind = Literal["org", "team", "user"]
KINDS: dict[Kind, type[Org | Team | User]] = {"org": Org, "team": Team, "user": User}
Versions = Mapping[tuple[str, str], int]
Member = Org | Team | User


class Directories:
    """The directory of a tenant."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def whole(self) -> tuple[Directory, Versions]:
        """Everybody, and the version of each record by (kind, name)."""
        orgs = await self._registry.all("org", Org)
        teams = await self._registry.all("team", Team)
        users = await self._registry.all("user", User)
        versions = {(k, n): v for k, found in (("org", orgs), ("team", teams), ("user", users)) for n, (_, v) in found.items()}
        made = Directory(
            {n: o for n, (o, _) in orgs.items()}, {n: t for n, (t, _) in teams.items()}, {n: u for n, (u, _) in users.items()}
        )
        return made, versions

    def fence(self, owner: Owner, directory: Directory, versions: Versions) -> list[Write]:
        """Writes that change nothing, and fail (`Conflict`) where the owner was changed or removed since it was read."""
        there: list[tuple[Kind, str, Member]] = []
        if owner.org:
            there.append(("org", owner.org, directory.org(owner.org)))
        if owner.team:
            there.append(("team", owner.team, directory.team(owner.team)))
        if owner.user:
            there.append(("user", owner.user, directory.user(owner.user)))
        return [put(kind, name, value, expect=versions[kind, name]) for kind, name, value in there]

    async def add(self, kind: Kind, name: str, *, actor: str = "admin", **what: Any) -> Member:
        """A new organisation, team or user. Raises `RequestError` (409) where the name is taken, `NotFound` where what it
        belongs to is not there.
        """
        tenancy.check_name(kind, name)
        directory, versions = await self.whole()
        if (kind, name) in versions:
            raise RequestError(f"The {kind} {name!r} exists.", code=f"{kind}_exists", param="name", status=409)
        value = KINDS[kind](name, created_ns=time.time_ns(), **what)
        fences = self._check(value, directory, versions)
        detail = {"after": msgspec.to_builtins(value)}
        await self._registry.change([put(kind, name, value, expect=0), *fences], (f"{kind}.created", actor, name, detail))
        return value

    async def update(self, kind: Kind, name: str, *, actor: str = "admin", cascade: bool = False, **what: Any) -> Member:
        """Change a title, metadata, or a user's teams. A user leaves a team in whose name he has live keys only with
        `cascade`, which revokes them. Names and the organisation stay: what was spent is counted by them.
        """
        directory, versions = await self.whole()
        old = _get(directory, kind, name)
        value: Member = replace(old, **what)
        if value == old:
            return old
        fences = self._check(value, directory, versions)
        left = set(old.teams) - set(value.teams) if isinstance(old, User) and isinstance(value, User) else set()
        keys = [k for k in await self._keys() if kind == "user" and k.user == name and k.team in left]
        _refuse(f"The user {name!r} has", keys, cascade=cascade)
        before, after = msgspec.to_builtins(old), msgspec.to_builtins(value)
        detail = {"before": {n: before[n] for n in what}, "after": {n: after[n] for n in what}} | _revoked(keys)
        writes = [put(kind, name, value, expect=versions[kind, name]), *fences, *_gone(keys)]
        await self._registry.change(writes, (f"{kind}.updated", actor, name, detail))
        return value

    async def remove(self, kind: Kind, name: str, *, actor: str = "admin", cascade: bool = False) -> list[str]:
        """Remove an organisation (with its teams), a team or a user; the ids of the keys that this revokes.

        Raises `RequestError` (409) while it has live keys, or an organisation has teams or users, unless `cascade`.
        Users stay; they leave the teams and the organisation that go.
        """
        directory, versions = await self.whole()
        old = _get(directory, kind, name)
        teams = [t.name for t in directory.teams.values() if t.org == name] if kind == "org" else [name] * (kind == "team")
        keys = [k for k in await self._keys() if getattr(k, kind) == name or k.team in teams]
        _refuse(f"The {kind} {name!r} has", keys, cascade=cascade)
        members = [u for u in directory.users.values() if (kind == "org" and u.org == name) or set(teams) & set(u.teams)]
        if kind == "org" and (teams or members) and not cascade:
            raise RequestError(
                f"The org {name!r} has {len(teams)} teams and {len(members)} users.", code="org_in_use", status=409,
                hint="Remove them first, or cascade: its teams go with it, its users stay without it.",
            )  # fmt: skip
        writes = [Write(kind, name, None, expect=versions[kind, name])]
        writes += [Write("team", t, None, expect=versions["team", t]) for t in teams if kind == "org"]
        for user in members:
            rest = tuple(t for t in user.teams if t not in teams)
            stays = replace(user, teams=rest, org="" if kind == "org" and user.org == name else user.org)
            writes.append(put("user", user.name, stays, expect=versions["user", user.name]))
        detail = {"before": msgspec.to_builtins(old), "users": [u.name for u in members]} | _revoked(keys)
        if kind == "org":
            detail["teams"] = teams
        await self._registry.change([*writes, *_gone(keys)], (f"{kind}.deleted", actor, name, detail))
        return [k.id for k in keys]

    async def counts(self) -> dict[tuple[str, str], int]:
        """Live keys by (kind, name) of who has any."""
        found: dict[tuple[str, str], int] = {}
        for key in live(await self._keys(), time.time_ns()):
            for kind in KINDS:
                name = getattr(key, kind)
                if name:
                    found[kind, name] = found.get((kind, name), 0) + 1
        return found

    async def _keys(self) -> list[Key]:
        return [k for k, _ in (await self._registry.all(KEY, Key)).values()]

    def _check(self, value: Member, directory: Directory, versions: Versions) -> list[Write]:
        """Raise where `value` is out of bounds or names what is not there; fences for what it names."""
        tenancy.check_plain("title", value.title)
        tenancy.check_metadata(value.metadata)
        if isinstance(value, User):
            tenancy.check_user(value, directory)
            teams = [put("team", t, directory.team(t), expect=versions["team", t]) for t in value.teams]
            return teams + self.fence(Owner(org=value.org), directory, versions)
        return self.fence(Owner(org=value.org), directory, versions) if isinstance(value, Team) else []


def live(keys: Iterable[Key], now_ns: int) -> list[Key]:
    """Keys that work, or would if they were enabled."""
    return [k for k in keys if works(k, now_ns)]


def _get(directory: Directory, kind: Kind, name: str) -> Member:
    if kind == "org":
        return directory.org(name)
    return directory.team(name) if kind == "team" else directory.user(name)


def _refuse(who: str, keys: list[Key], *, cascade: bool) -> None:
    working = live(keys, time.time_ns())
    if working and not cascade:
        some = ", ".join(k.name or k.id for k in working[:3]) + ("…" if len(working) > 3 else "")
        error: NoriaError = RequestError(
            f"{who} {len(working)} live {'key' if len(working) == 1 else 'keys'}: {some}.", code="keys_exist", status=409,
            hint="Revoke them first, or cascade, which revokes them.",
        )  # fmt: skip
        raise error


def _gone(keys: list[Key]) -> list[Write]:
    return [*(Write(KEY, k.id, None) for k in keys), Write(*CLOSED, b"\x01")] if keys else []


def _revoked(keys: list[Key]) -> dict[str, Any]:
    return {"revoked": [{"id": k.id, "name": k.name, "hint": k.hint} for k in keys]} if keys else {}
