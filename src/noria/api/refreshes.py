"""`/api/refreshes`: turns of the wheel, for operators; and what the process of a turn reads and tells."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Query, Request, Response
from pydantic import Field

from noria.api.field import Strict, actor
from noria.app.keeper import Keeper
from noria.app.refresh_plan import Wish
from noria.app.refresh_words import explained
from noria.app.refreshes import Refreshes
from noria.contracts.error import NotFound, RequestError
from noria.contracts.refresh import Action, Refresh, Told


class Beginning(Strict):
    """A turn that is asked for."""

    app: str
    settings: dict[str, Any] = Field(
        {}, description="As `apps.<app>.refresh`: what is given stands in place of what the file says."
    )
    cause: Literal["person", "demo"] = "person"


class Reason(Strict):
    """Why a person decides so; needed to reject and to waive."""

    why: str = Field("", max_length=1000)


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Add the routes. A keeper that runs no jobs has none to show."""
    _asked(app, keeper)
    _words(app, keeper)
    _job(app, keeper)


def _of(keeper: Keeper) -> Refreshes:
    if keeper.refreshes is None:
        raise NotFound("This keeper runs no jobs.", code="not_found")
    return keeper.refreshes


def _asked(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/refreshes", tags=["refreshes"])
    async def several(app: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        """Turns, newest first, without the outputs of their steps."""
        found = await _of(keeper).all(app)
        return {"refreshes": [_shown(_of(keeper), r, whole=False) for r in found[:limit]], "total": len(found)}

    @app.post("/api/refreshes", tags=["refreshes"], status_code=201)
    async def start(request: Request, body: Beginning) -> dict[str, Any]:
        """Begin a turn. 409 where the app has one under way, or a rollout."""
        made = await _of(keeper).start(Wish(body.app, body.cause, actor(request), body.settings))
        return _shown(_of(keeper), made)

    @app.get("/api/refreshes/{id}", tags=["refreshes"])
    async def one(id: str) -> dict[str, Any]:
        """One turn with its steps, what each found, how far the one under way is, and who decided what; the latest of an app by the
        app's name.
        """
        return _shown(_of(keeper), (await _of(keeper).get(id))[0])

    @app.get("/api/refreshes/{id}/explain", tags=["refreshes"])
    async def explain(id: str) -> dict[str, Any]:
        """What happened, and on what evidence, in sentences."""
        told = explained((await _of(keeper).get(id))[0])
        return _fields(msgspec.to_builtins(told))


def _words(app: FastAPI, keeper: Keeper) -> None:
    async def said(request: Request, id: str, action: Action, body: Reason) -> dict[str, Any]:
        return _shown(_of(keeper), await _of(keeper).say(id, action, by=actor(request), why=body.why))

    @app.post("/api/refreshes/{id}/approve", tags=["refreshes"])
    async def approve(request: Request, id: str, body: Reason) -> dict[str, Any]:
        """Let a turn that asks go on."""
        return await said(request, id, "approve", body)

    @app.post("/api/refreshes/{id}/reject", tags=["refreshes"])
    async def reject(request: Request, id: str, body: Reason) -> dict[str, Any]:
        """End a turn that asks; with a reason."""
        return await said(request, id, "reject", body)

    @app.post("/api/refreshes/{id}/waive", tags=["refreshes"])
    async def waive(request: Request, id: str, body: Reason) -> dict[str, Any]:
        """Let a candidate pass a gate that it did not pass, with a reason; also after the turn has ended for it."""
        return await said(request, id, "waive", body)

    @app.post("/api/refreshes/{id}/stop", tags=["refreshes"])
    async def stop(request: Request, id: str, body: Reason) -> dict[str, Any]:
        """End a turn that runs; a rollout of its stays at its step."""
        return await said(request, id, "stop", body)

    @app.post("/api/refreshes/{id}/resume", tags=["refreshes"])
    async def resume(request: Request, id: str, body: Reason) -> dict[str, Any]:
        """Go on with a turn that was stopped, failed, or is inconclusive: what is done is not done again."""
        return await said(request, id, "resume", body)


def _job(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/internal/refreshes/{id}", include_in_schema=False)
    async def read(id: str) -> Response:
        return Response(msgspec.json.encode((await _of(keeper).get(id))[0]), media_type="application/json")

    @app.post("/internal/refreshes/{id}", include_in_schema=False)
    async def told(request: Request, id: str) -> Response:
        try:
            word = msgspec.json.decode(await request.body(), type=Told)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise RequestError(f"That is no word of a refresh: {e}.", code="invalid_value") from None
        return Response(msgspec.json.encode(await _of(keeper).take(id, word)), media_type="application/json")

    @app.post("/internal/refreshes/{id}/progress", include_in_schema=False)
    async def progress(request: Request, id: str, attempt: int) -> Response:
        await _of(keeper).tell(id, attempt, msgspec.json.decode(await request.body(), type=dict[str, Any]))
        return Response(status_code=204)


def _shown(refreshes: Refreshes, refresh: Refresh, *, whole: bool = True) -> dict[str, Any]:
    shown = msgspec.to_builtins(refresh) | {"at": refresh.at, "progress": refreshes.progress(refresh)}
    if not whole:
        del shown["plan"]
        shown["steps"] = [{k: v for k, v in s.items() if k != "output"} for s in shown["steps"]]
    return _fields(shown)


def _fields(value: dict[str, Any]) -> dict[str, Any]:
    """Moments (`…_ns`) as text: 64 bits are more than a browser's numbers hold."""
    return {k: str(v) if k.endswith("_ns") and v is not None else _inside(v) for k, v in value.items()}


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return _fields(value)
    return [_inside(v) for v in value] if isinstance(value, (list, tuple)) else value
