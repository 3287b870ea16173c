"""`/api/keys` and `/api/access`: API keys, and whether they are asked for."""

from __future__ import annotations

import datetime as dt
import time
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from pydantic import Field

from noria.api.field import LONGEST, Labels, Metadata, Seconds, Strict, Title, actor, instant_ns, later_ns
from noria.app.keeper import Keeper
from noria.app.keyring import state
from noria.contracts.error import RequestError
from noria.contracts.release import Key

Budget = Annotated[float | None, Field(ge=0, le=1e9, description="Hard limit in US dollars, for the key's whole life.")]
Rpm = Annotated[int | None, Field(ge=1, le=10**9, description="Requests per minute.")]
Names = Annotated[list[str], Field(max_length=1000)]
Lifetime = Annotated[Seconds | None, Field(gt=0, le=LONGEST, description='Seconds from now, or text such as "30d".')]
Instant = Annotated[dt.datetime | None, Field(description="When it ends (ISO 8601); a time without a zone is UTC.")]


class Scope(Strict):
    """What a key may do. On a change, what is absent stays as it is."""

    name: Title = ""
    apps: Names = Field([], description="Apps and embedding models that it may use; empty = all.")
    endpoints: Names = Field(
        [], description="Request paths that it may call, `*` at the end for all that begin so; empty = all."
    )
    guard: str = Field(
        "", max_length=100, description="A guard policy of noria.yaml that its exchanges pass besides the release's."
    )
    org: str = ""
    team: str = ""
    user: str = Field("", description="Whose it is. A user's only team and a team's organisation follow by themselves.")
    tags: Labels = {}
    metadata: Metadata = {}
    budget_usd: Budget = None
    rpm: Rpm = None
    priority: Literal["high", "normal", "low"] = Field("normal", description="The highest that `x-noria-priority` may ask for.")
    expires_in: Lifetime = None
    expires_at: Instant = None


class NewKey(Scope):
    """A key to be made."""

    expires_in_days: float | None = Field(None, gt=0, le=36_500, description="As `expires_in`, in days.")


class ChangedKey(Scope):
    """What is to change of a key: only the fields that are there. `null` takes a limit away."""

    disabled: bool = False


class Rotation(Strict):
    """How long the text that is replaced goes on working."""

    overlap: Seconds = Field(86_400.0, ge=0, le=366 * 86_400.0, description='Seconds, or text such as "24h"; 0 = it ends now.')


class Access(Strict):
    """Whether `/v1` asks for a key although none exists."""

    keys_required: bool


def routes(app: FastAPI, keeper: Keeper) -> None:
    """The routes of keys."""

    @app.get("/api/keys", tags=["keys"])
    async def keys() -> list[dict[str, Any]]:
        """Every key, oldest first, without its text."""
        return [_told(keeper, k, leased) for k, leased in await keeper.keys()]

    @app.post("/api/keys", status_code=201, tags=["keys"])
    async def create(body: NewKey, request: Request) -> dict[str, Any]:
        """A new key; its text (`key`) is in this answer and nowhere else."""
        text, key = await keeper.keyring.create(actor=actor(request), **_fields(body))
        return {"key": text, **_told(keeper, key, 0)}

    @app.get("/api/keys/{id}", tags=["keys"])
    async def show(id: str) -> dict[str, Any]:
        """One key, without its text."""
        return await _whole(keeper, await keeper.keyring.get(id))

    @app.patch("/api/keys/{id}", tags=["keys"])
    async def update(id: str, body: ChangedKey, request: Request) -> dict[str, Any]:
        """Change a key; its text stays. Whose it is (`org`, `team`, `user`) is replaced as a whole."""
        return await _whole(keeper, await keeper.keyring.update(id, actor=actor(request), **_fields(body)))

    @app.post("/api/keys/{id}/rotate", tags=["keys"])
    async def rotate(id: str, body: Rotation, request: Request) -> dict[str, Any]:
        """A new text (`key`, in this answer and nowhere else) for the same key; the old one works until the overlap ends."""
        text, key = await keeper.keyring.rotate(id, int(body.overlap * 1e9), actor=actor(request))
        return {"key": text, **await _whole(keeper, key)}

    @app.delete("/api/keys/{id}", status_code=204, tags=["keys"])
    async def delete(id: str, request: Request) -> Response:
        """Revoke a key."""
        await keeper.keyring.revoke(id, actor=actor(request))
        return Response(status_code=204)

    @app.get("/api/access", tags=["keys"])
    async def access() -> dict[str, Any]:
        """Whether `/v1` asks for keys, whether because one has existed, and what a key may be limited to."""
        return {
            "keys_required": keeper.status()["keys_required"],
            "closed_by_a_key": await keeper.keyring.closed(),
            **await keeper.keyring.choices(),
        }

    @app.put("/api/access", tags=["keys"])
    async def set_access(body: Access, request: Request) -> dict[str, Any]:
        """`keys_required: false` lets this machine ask without a key again, once there are none (409 before that)."""
        if body.keys_required:
            raise RequestError("Make a key, or set serve.keys_required: always.", code="invalid_value", param="keys_required")
        await keeper.keyring.open(actor=actor(request))
        return await access()


def _fields(body: NewKey | ChangedKey) -> dict[str, Any]:
    """The fields of `Key` that a body sets."""
    there = body.model_fields_set if isinstance(body, ChangedKey) else set(type(body).model_fields)
    given = {name: getattr(body, name) for name in there}
    ends = [n for n in ("expires_in", "expires_at", "expires_in_days") if given.get(n) is not None]
    if len(ends) > 1:
        raise RequestError(f"Give {ends[0]} or {ends[1]}, not both.", code="invalid_value", param=ends[1])
    what: dict[str, Any] = {
        n: given[n] for n in ("name", "org", "team", "user", "tags", "metadata", "rpm", "priority") if n in given
    }
    what |= {n: tuple(dict.fromkeys(given[n])) for n in ("apps", "endpoints") if n in given}
    if "guard" in given:
        what["guard_name"] = given["guard"]
    if "disabled" in given:
        what["withheld"] = "disabled" if given["disabled"] else ""
    if "budget_usd" in given:
        what["budget_nanousd"] = None if given["budget_usd"] is None else round(given["budget_usd"] * 1e9)
    if given.keys() & {"expires_in", "expires_at", "expires_in_days"}:
        what["expires_ns"] = _end(given)
    return what


def _end(given: dict[str, Any]) -> int | None:
    if given.get("expires_at") is not None:
        end = instant_ns(given["expires_at"])
        if not time.time_ns() < end < later_ns(LONGEST):
            raise RequestError("expires_at is over already, or too far away.", code="invalid_value", param="expires_at")
        return end
    if given.get("expires_in_days") is not None:
        return later_ns(given["expires_in_days"] * 86_400)
    return None if given.get("expires_in") is None else later_ns(given["expires_in"])


async def _whole(keeper: Keeper, key: Key) -> dict[str, Any]:
    return _told(keeper, key, await keeper.leased(key))


def _told(keeper: Keeper, key: Key, leased: int | None) -> dict[str, Any]:
    """A key for people. Times are int64 ns as text: they exceed what JSON numbers hold exactly in JavaScript."""
    now = time.time_ns()
    used = keeper.used.of(key.id)
    until = max((end for _, end in key.former if end > now), default=None)
    return {
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "state": state(key, now),
        "apps": list(key.apps),
        "endpoints": list(key.endpoints),
        "guard": key.guard_name,
        "org": key.org,
        "team": key.team,
        "user": key.user,
        "tags": key.tags,
        "metadata": key.metadata,
        "budget_usd": None if key.budget_nanousd is None else key.budget_nanousd / 1e9,
        "leased_usd": None if key.budget_nanousd is None else (leased or 0) / 1e9,
        "rpm": key.rpm,
        "priority": key.priority,
        "created_ns": str(key.created_ns),
        "expires_ns": None if key.expires_ns is None else str(key.expires_ns),
        "overlap_until_ns": None if until is None else str(until),
        "last_used_ns": None if used is None else str(used),
    }
