"""The keeper's HTTP side: the management API (`/api`), the console, and what workers ask (`/internal`).

It listens on a unix socket that only its owner may open. What workers relay from the network carries
`x-noria-relayed`, needs the admin token or a console session, and never reaches `/internal`.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from noria import __version__
from noria.api import (
    cache,
    datasets,
    directory,
    drift,
    evaluations,
    feedback,
    files,
    fleet,
    jobs,
    keys,
    money,
    operate,
    refreshes,
    refusal,
    releases,
    render,
    responses,
    training,
)
from noria.api.parameters import known
from noria.api.permission import needed
from noria.app.keeper import Keeper
from noria.app.link import Heartbeat
from noria.app.sharing import body_key
from noria.contracts.error import NotFound, Unauthorized
from noria.contracts.message import Message
from noria.gateway.lease import Holding, Want
from noria.govern.access import COOKIE, COOKIE_RULES, cookie

RELAYED = "x-noria-relayed"
PREVIEWS = 50
"""Rows whose bodies are in memory at once."""


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
    app = FastAPI(
        title="Noria",
        version=__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(known)],
        responses=refusal.REFERENCE,
    )
    refusal.install(app)
    app.add_middleware(_Guard, keeper=keeper)
    _console(app, keeper)
    _traces(app, keeper)
    keys.routes(app, keeper)
    directory.routes(app, keeper)
    money.routes(app, keeper)
    cache.routes(app, keeper)
    datasets.routes(app, keeper)
    fleet.routes(app, keeper)
    _internal(app, keeper)
    responses.routes(app, keeper)
    files.routes(app, keeper)
    jobs.routes(app, keeper)
    releases.routes(app, keeper, RELAYED)
    training.routes(app, keeper)
    evaluations.routes(app, keeper)
    feedback.routes(app, keeper)
    drift.routes(app, keeper)
    refreshes.routes(app, keeper)
    operate.routes(app, keeper, RELAYED)
    return app


class _Guard:
    """Relayed calls to `/api` need an operator; `/internal` is for the socket's owner alone. Plain ASGI: a function as
    middleware costs each heartbeat two tasks and a queue.
    """

    def __init__(self, app: ASGIApp, keeper: Keeper) -> None:
        self._app = app
        self._keeper = keeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refused(Request(scope)) if scope["type"] == "http" else None
        await (refused or self._app)(scope, receive, send)

    def _refused(self, request: Request) -> Response | None:
        path = request.scope["path"]  # as routes are matched
        if RELAYED in request.headers:
            if path.startswith("/internal"):
                return refusal.answer_of(NotFound("There is nothing here.", code="not_found"))
            if path.startswith("/api/") and needed(path) != "open" and not _operator(request, self._keeper):
                error = Unauthorized("The management API needs the admin token or a console session.", code="admin_required",
                                     hint="The token is in NORIA_HOME/admin.token.")  # fmt: skip
                return refusal.answer_of(error)
        return None


def _operator(request: Request, keeper: Keeper) -> bool:
    given = request.headers.get("authorization", "")
    if given.startswith("Bearer ") and keeper.sessions.is_admin(given[7:]):
        return True
    return keeper.sessions.valid(cookie(request.headers.get("cookie", "")), time.time_ns())


def _console(app: FastAPI, keeper: Keeper) -> None:
    @app.post("/api/login", responses=refusal.MODEL)
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
        named, total = await keeper.rows(render.query(filter, before, limit))
        shown = [render.summary(row) for row, _, _ in named]
        for at in range(0, len(named) if previews else 0, PREVIEWS):
            for n, found in enumerate(await keeper.recorded(named[at : at + PREVIEWS]), at):
                shown[n] |= render.previews(
                    found.request, found.answer, sse=found.row.answer_is_sse, dialect=render.spoken(found.row)
                )
        more = render.cursor(named[-1][0]) if len(named) == limit else None
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
                line = render.summary(row) | render.previews(
                    row.request, row.answer, sse=row.answer_is_sse, dialect=render.spoken(row)
                )
                yield b"event: row\ndata: " + msgspec.json.encode(line) + b"\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})

    @app.get("/api/traces/{id}")
    async def trace(id: str) -> dict[str, Any]:
        """One exchange, by its id or its trace id."""
        found = await keeper.exchange(id)
        said = await keeper.feedback.of(keeper.tenant, found.row.id)
        return {**render.whole(found), "feedback": [feedback.shown(f) for f in said]}


def _internal(app: FastAPI, keeper: Keeper) -> None:
    """What workers and the supervisor ask, msgpack where it is more than a word."""

    @app.get("/internal/alive", include_in_schema=False)
    async def alive() -> Response:
        return Response(status_code=204, headers={"x-noria-pid": str(os.getpid()), "x-noria-config": str(keeper.config)})

    @app.get("/internal/snapshot", include_in_schema=False)
    async def snapshot(after: str = "", wait: float = 0.0, worker: str = "") -> Response:
        found = await keeper.snapshot(after, min(wait, 60.0), worker)
        if found is None:
            return Response(status_code=204)
        subject_key = await keeper.secret(keeper.tenant, "subjects")
        return _msgpack({"snapshot": found, "subject_key": subject_key, "cache": keeper.cache_url})

    @app.post("/internal/heartbeat", include_in_schema=False)
    async def heartbeat(request: Request) -> Response:
        return _msgpack(keeper.heard(msgspec.msgpack.decode(await request.body(), type=Heartbeat)))

    @app.get("/internal/conversation", include_in_schema=False)
    async def said(tenant: str, key: str, conversation: str) -> Response:
        return _msgpack(await keeper.said(tenant, key, conversation))

    @app.post("/internal/conversation", include_in_schema=False)
    async def say(request: Request, tenant: str, key: str, conversation: str, once: str = "") -> Response:
        new = msgspec.msgpack.decode(await request.body(), type=tuple[Message, ...])
        await keeper.say(tenant, key, conversation, new, once=once)
        return Response(status_code=204)

    @app.post("/internal/take", include_in_schema=False)
    async def take(request: Request) -> Response:
        want = msgspec.msgpack.decode(await request.body(), type=Want)
        return _msgpack(await keeper.treasury.bank.take(want))

    @app.post("/internal/hold", include_in_schema=False)
    async def hold(request: Request) -> Response:
        tenant, holder, holdings, full = msgspec.msgpack.decode(await request.body(), type=tuple[str, str, list[Holding], bool])
        return _msgpack(await keeper.treasury.bank.hold(tenant, holder, holdings, full=full))

    @app.get("/internal/cache-key", include_in_schema=False)
    async def cache_key(tenant: str, subject: str = "") -> Response:
        return _msgpack(body_key(await keeper.body_key(tenant, subject)))

    @app.post("/internal/login-code", include_in_schema=False)
    async def code() -> dict[str, str]:
        return {"code": keeper.login_code()}


def _msgpack(value: Any) -> Response:
    return Response(msgspec.msgpack.encode(value), media_type="application/msgpack")
