"""`/api/drift`: how apps stand, reports, and what the drift job reads and gives back."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response

from noria.api.feedback import instant
from noria.api.field import Strict
from noria.app.keeper import Keeper
from noria.contracts.drift import DriftPolicy, DriftReport, Windows
from noria.contracts.error import RequestError


class Wanted(Strict):
    """A comparison that is asked for. Times are ISO 8601; without them the windows of the app's settings, up to now."""

    from_: str = ""
    split: str = ""
    until: str = ""
    sample: int = 1000


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Add the routes."""

    @app.get("/api/drift", tags=["drift"])
    async def several() -> list[dict[str, Any]]:
        """How every app stands that is watched or was looked at."""
        return [await _standing(keeper, s.app) for s in await keeper.drift.states()]

    @app.get("/api/drift/{name}", tags=["drift"])
    async def one(name: str, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> dict[str, Any]:
        """How an app stands, with its latest reports."""
        keeper.drift.policy(name)
        reports = await keeper.drift.reports(name, limit)
        return {**await _standing(keeper, name), "reports": [msgspec.to_builtins(r) for r in reports]}

    @app.get("/api/drift/{name}/samples", tags=["drift"])
    async def samples(name: str, since: str, until: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
        """Exchanges of a stretch of time as they are compared, newest first, and how many there are."""
        keeper.drift.policy(name)
        found, total = await keeper.drift.samples(name, instant(since, "since", 0), instant(until, "until", 1 << 62), limit)
        return Response(msgspec.json.encode({"total": total, "rows": found}), media_type="application/json")

    @app.post("/api/drift/{name}/run", status_code=202, tags=["drift"])
    async def run(name: str, wanted: Wanted) -> dict[str, str]:
        """Start a comparison."""
        return {"id": await keeper.drift.start(name, _windows(wanted), sample=min(max(wanted.sample, 50), 5000))}

    @app.get("/api/drift/{name}/jobs/{id}", tags=["drift"])
    async def job(name: str, id: str) -> dict[str, Any]:
        """A comparison that was started: its report once it is there."""
        keeper.drift.policy(name)
        report = await keeper.drift.wait(name, id)
        return (
            {"id": id, "state": "running"}
            if report is None
            else {"id": id, "state": "done", "report": msgspec.to_builtins(report)}
        )

    @app.post("/api/drift/{name}/reports", tags=["drift"])
    async def take(name: str, request: Request) -> dict[str, Any]:
        """What the drift job found."""
        try:
            report = msgspec.json.decode(await request.body(), type=DriftReport)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise RequestError(f"The body is no drift report: {e}.", code="invalid_report") from None
        if report.app != name:
            raise RequestError(f"The report is of {report.app!r}, not of {name!r}.", code="invalid_report")
        state = await keeper.drift.take(report)
        return {"app": name, "firing": state.firing}


async def _standing(keeper: Keeper, app: str) -> dict[str, Any]:
    state = await keeper.drift.state(app)
    policy = _policy(keeper, app)
    latest = await keeper.drift.reports(app, 1)
    return {
        "app": app,
        "firing": state.firing,
        "standing": state.standing,
        "since_ns": str(state.since_ns),
        "checked_ns": str(state.checked_ns),
        "policy": msgspec.to_builtins(policy) if policy else None,
        "says": latest[0].says if latest else "Not looked at yet.",
    }


def _policy(keeper: Keeper, app: str) -> DriftPolicy | None:
    snapshot = keeper.current()
    return snapshot.apps[app].drift if snapshot and app in snapshot.apps else None


def _windows(wanted: Wanted) -> Windows | None:
    times = (wanted.from_, wanted.split, wanted.until)
    if not any(times):
        return None
    if not all(times):
        raise RequestError("Give all of from_, split and until, or none.", code="invalid_value", param="split")
    return Windows(*(instant(t, n, 0) for t, n in zip(times, ("from_", "split", "until"), strict=True)))
