"""The keeper's HTTP side: the management API (`/api`), the console, and what workers ask (`/internal`).

It listens on a unix socket that only its owner may open. What workers relay from the network carries
`x-noria-relayed`, needs the admin token or a console session, and never reaches `/internal`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from noria import __version__
from noria.api import render
from noria.app.keeper import Keeper
from noria.app.link import Heartbeat
from noria.contracts.error import NoriaError, NotFound, Unauthorized
from noria.contracts.message import Message
from noria.contracts.release import Key
from noria.dialects.openai_error import error_answer
from noria.govern.access import COOKIE, COOKIE_RULES, cookie

RELAYED = "x-noria-relayed"


class NewKey(BaseModel):
    """What a new key may do."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("", max_length=200, description="For people.")
    apps: list[str] = Field([], description="Apps it may use; empty = all.")
    budget_usd: float | None = Field(None, ge=0, le=1e9, description="Hard limit in US dollars, for its whole life.")
    rpm: int | None = Field(None, ge=1, le=10**9, description="Requests per minute.")
    expires_in_days: float | None = Field(None, gt=0, le=36_500)


class Login(BaseModel):
    """The admin token, for a console session."""

    token: str


class Saying(BaseModel):
    """A conversation of a key."""

    tenant: str
    key: str
    conversation: str


def build(keeper: Keeper) -> FastAPI:
    """The keeper's application."""
    app = FastAPI(title="Noria", version=__version__, openapi_url="/api/openapi.json", docs_url=None, redoc_url=None)

    @app.exception_handler(NoriaError)
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, NoriaError)
        status, headers, body = error_answer(error)
        return Response(body, status, dict(headers), "application/json")

    _guard(app, keeper)
    _console(app, keeper)
    _traces(app, keeper)
    _keys(app, keeper)
    _internal(app, keeper)
    return app


def _guard(app: FastAPI, keeper: Keeper) -> None:
    """Relayed calls to `/api` need an operator; `/internal` is for the socket's owner alone."""

    @app.middleware("http")
    async def authorise(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.url.path
        if RELAYED in request.headers:
            error: NoriaError | None = None
            if path.startswith("/internal"):
                error = NotFound("There is nothing here.", code="not_found")
            elif (
                path.startswith("/api/") and path not in ("/api/login", "/api/openapi.json") and not _operator(request, keeper)
            ):
                error = Unauthorized("The management API needs the admin token or a console session.", code="admin_required",
                                     hint="The token is in NORIA_HOME/admin.token.")  # fmt: skip
            if error is not None:
                status, headers, body = error_answer(error)
                return Response(body, status, dict(headers), "application/json")
        return await call(request)


def _operator(request: Request, keeper: Keeper) -> bool:
    given = request.headers.get("authorization", "")
    if given.startswith("Bearer ") and keeper.sessions.is_admin(given[7:]):
        return True
    return keeper.sessions.valid(cookie(request.headers.get("cookie", "")), time.time_ns())


def _console(app: FastAPI, keeper: Keeper) -> None:
    @app.post("/api/login")
    async def login(body: Login) -> Response:
        """Exchange the admin token for a console session (cookie)."""
        if not keeper.sessions.is_admin(body.token.strip()):
            raise Unauthorized("That is not the admin token.", code="invalid_token", hint="It is in NORIA_HOME/admin.token.")
        answer = JSONResponse({"ok": True})
        answer.set_cookie(COOKIE, keeper.sessions.issue(time.time_ns()), **COOKIE_RULES)
        return answer

    @app.get("/api/status")
    async def status() -> dict[str, Any]:
        """How the service stands."""
        return keeper.status()


def _traces(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/traces")
    async def traces(
        filter: str = "", before: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 50, previews: bool = True
    ) -> dict[str, Any]:
        """One page of exchanges, newest first."""
        rows, total = await keeper.rows(render.query(filter, before, limit))
        shown = []
        for row in rows:
            line = render.summary(row)
            if previews:
                found = await keeper.exchange(row.id)
                line |= render.previews(found.request, found.answer, sse=row.answer_is_sse)
            shown.append(line)
        more = render.cursor(rows[-1]) if len(rows) == limit else None
        return {"rows": shown, "next": more, "total": total}

    @app.get("/api/traces/live")
    async def live() -> Response:
        """Exchanges as they are recorded, as server-sent events."""

        async def events() -> AsyncIterator[bytes]:
            yield b": live\n\n"
            async for row in keeper.live():
                if row is None:
                    yield b": keep-alive\n\n"
                    continue
                line = render.summary(row) | render.previews(row.request, row.answer, sse=row.answer_is_sse)
                yield b"event: row\ndata: " + msgspec.json.encode(line) + b"\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})

    @app.get("/api/traces/{id}")
    async def trace(id: str) -> dict[str, Any]:
        """One exchange, by its id or its trace id."""
        return render.whole(await keeper.exchange(id))


def _keys(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/keys")
    async def keys() -> list[dict[str, Any]]:
        """Every key, without its text."""
        return [_key(k, leased) for k, leased in await keeper.keys()]

    @app.post("/api/keys", status_code=201)
    async def create(body: NewKey) -> dict[str, Any]:
        """A new key; its text is in this answer and nowhere else."""
        text, key = await keeper.create_key(
            name=body.name,
            apps=tuple(body.apps),
            budget_nanousd=None if body.budget_usd is None else round(body.budget_usd * 1e9),
            rpm=body.rpm,
            expires_ns=None if body.expires_in_days is None else time.time_ns() + int(body.expires_in_days * 86400e9),
        )
        return {"key": text, **_key(key, 0)}

    @app.delete("/api/keys/{id}", status_code=204)
    async def delete(id: str) -> Response:
        """Revoke a key."""
        await keeper.delete_key(id)
        return Response(status_code=204)


def _key(key: Key, leased: int | None) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "apps": list(key.apps),
        "budget_usd": None if key.budget_nanousd is None else key.budget_nanousd / 1e9,
        "leased_usd": None if key.budget_nanousd is None else (leased or 0) / 1e9,
        "rpm": key.rpm,
        "created_ns": str(key.created_ns),
        "expires_ns": None if key.expires_ns is None else str(key.expires_ns),
    }


def _internal(app: FastAPI, keeper: Keeper) -> None:
    """What workers and the supervisor ask, msgpack where it is more than a word."""

    @app.get("/internal/snapshot", include_in_schema=False)
    async def snapshot(after: str = "", wait: float = 0.0) -> Response:
        found = await keeper.snapshot(after, min(wait, 60.0))
        if found is None:
            return Response(status_code=204)
        subject_key = await keeper.secret(keeper.tenant, "subjects")
        return _msgpack({"snapshot": found, "subject_key": subject_key})

    @app.post("/internal/heartbeat", include_in_schema=False)
    async def heartbeat(request: Request) -> Response:
        keeper.heard(msgspec.msgpack.decode(await request.body(), type=Heartbeat))
        return Response(status_code=204)

    @app.get("/internal/conversation", include_in_schema=False)
    async def said(tenant: str, key: str, conversation: str) -> Response:
        return _msgpack(await keeper.said(tenant, key, conversation))

    @app.post("/internal/conversation", include_in_schema=False)
    async def say(request: Request, tenant: str, key: str, conversation: str) -> Response:
        new = msgspec.msgpack.decode(await request.body(), type=tuple[Message, ...])
        await keeper.say(tenant, key, conversation, new)
        return Response(status_code=204)

    @app.post("/internal/take", include_in_schema=False)
    async def take(request: Request) -> Response:
        a = msgspec.msgpack.decode(await request.body())
        granted = await keeper.counters.take(
            a["tenant"], a["key"], want=a["want"], least=a["least"], ceiling=a["ceiling"],
            expires_ns=a["expires_ns"], now_ns=time.time_ns(),
        )  # fmt: skip
        return _msgpack(granted)

    @app.post("/internal/give", include_in_schema=False)
    async def give(request: Request) -> Response:
        a = msgspec.msgpack.decode(await request.body())
        await keeper.counters.give(a["tenant"], a["key"], a["amount"], now_ns=time.time_ns())
        return Response(status_code=204)

    @app.post("/internal/login-code", include_in_schema=False)
    async def code() -> dict[str, str]:
        return {"code": keeper.login_code()}


def _msgpack(value: Any) -> Response:
    return Response(msgspec.msgpack.encode(value), media_type="application/msgpack")
