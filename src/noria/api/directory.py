"""`/api/orgs`, `/api/teams`, `/api/users`: who keys belong to."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from pydantic import Field

from noria.api.field import Metadata, Strict, Title, actor
from noria.app.directory import Kind, Member
from noria.app.keeper import Keeper
from noria.contracts.tenancy import Org, User


class Described(Strict):
    """What may be changed of all of them. On a change, what is absent stays as it is."""

    title: Title = ""
    metadata: Metadata = {}


class NewOrg(Described):
    """An organisation to be made."""

    name: str


class NewTeam(Described):
    """A team to be made. Its organisation never changes."""

    name: str
    org: str = Field("", description="Whose it is; empty = of none.")


class NewUser(Described):
    """A user to be made."""

    name: str
    org: str = Field("", description="Whose they are: then all their teams are of it. Empty = of none, and in any team.")
    teams: list[str] = Field([], max_length=1000)


class ChangedUser(Described):
    """What is to change of a user. `teams` is the whole list."""

    teams: list[str] = Field([], max_length=1000)


def routes(app: FastAPI, keeper: Keeper) -> None:
    """The routes of all three."""
    for kind in ("org", "team", "user"):
        _common(app, keeper, kind)

    @app.post("/api/orgs", status_code=201, tags=["orgs"])
    async def new_org(body: NewOrg, request: Request) -> dict[str, Any]:
        """A new organisation."""
        return _told(
            await keeper.directories.add("org", body.name, actor=actor(request), title=body.title, metadata=body.metadata), 0
        )

    @app.post("/api/teams", status_code=201, tags=["teams"])
    async def new_team(body: NewTeam, request: Request) -> dict[str, Any]:
        """A new team."""
        more = {"org": body.org, "title": body.title, "metadata": body.metadata}
        return _told(await keeper.directories.add("team", body.name, actor=actor(request), **more), 0)

    @app.post("/api/users", status_code=201, tags=["users"])
    async def new_user(body: NewUser, request: Request) -> dict[str, Any]:
        """A new user."""
        teams = tuple(dict.fromkeys(body.teams))
        more = {"org": body.org, "teams": teams, "title": body.title, "metadata": body.metadata}
        return _told(await keeper.directories.add("user", body.name, actor=actor(request), **more), 0)

    @app.patch("/api/users/{name}", tags=["users"])
    async def change_user(name: str, body: ChangedUser, request: Request, cascade: bool = False) -> dict[str, Any]:
        """Change a user's teams, title or metadata. Leaving a team in whose name they have live keys needs `cascade`."""
        what = {n: getattr(body, n) for n in body.model_fields_set}
        if "teams" in what:
            what["teams"] = tuple(dict.fromkeys(what["teams"]))
        made = await keeper.directories.update("user", name, actor=actor(request), cascade=cascade, **what)
        return _told(made, (await keeper.directories.counts()).get(("user", name), 0))


def _common(app: FastAPI, keeper: Keeper, kind: Kind) -> None:
    """Listing, showing, changing and removing are the same for each."""
    one = "/api/" + kind + "s/{name}"

    @app.get(f"/api/{kind}s", tags=[kind + "s"], name=f"{kind}s")
    async def everyone() -> list[dict[str, Any]]:
        """All of them by name, with how many live keys each has."""
        directory, _ = await keeper.directories.whole()
        counts = await keeper.directories.counts()
        members: dict[str, Any] = {"org": directory.orgs, "team": directory.teams, "user": directory.users}[kind]  # type: ignore[assignment]  # one of three mappings
        return [_told(m, counts.get((kind, n), 0)) for n, m in members.items()]

    @app.get(one, tags=[kind + "s"], name=f"show_{kind}")
    async def show(name: str) -> dict[str, Any]:
        """One of them."""
        directory, _ = await keeper.directories.whole()
        found: Member = getattr(directory, kind)(name)
        return _told(found, (await keeper.directories.counts()).get((kind, name), 0))

    if kind != "user":

        @app.patch(one, tags=[kind + "s"], name=f"change_{kind}")
        async def change(name: str, body: Described, request: Request) -> dict[str, Any]:
            """Change a title or metadata."""
            what = {n: getattr(body, n) for n in body.model_fields_set}
            made = await keeper.directories.update(kind, name, actor=actor(request), **what)
            return _told(made, (await keeper.directories.counts()).get((kind, name), 0))

    @app.delete(one, tags=[kind + "s"], name=f"remove_{kind}")
    async def remove(name: str, request: Request, cascade: bool = False) -> dict[str, Any]:
        """Remove it. Refused (409) while it has live keys, unless `cascade`, which revokes them (`revoked`: their ids)."""
        return {"revoked": await keeper.directories.remove(kind, name, actor=actor(request), cascade=cascade)}


def _told(member: Member, live: int) -> dict[str, Any]:
    told: dict[str, Any] = {"name": member.name, "title": member.title, "metadata": member.metadata}
    if not isinstance(member, Org):
        told["org"] = member.org
    if isinstance(member, User):
        told["teams"] = list(member.teams)
    return told | {"live_keys": live, "created_ns": str(member.created_ns)}
