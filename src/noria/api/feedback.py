"""`POST /v1/feedback`, relayed by workers that know whose key it comes with, and `/api/feedback` for operators."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, FastAPI, Query, Request, Response

from noria.api.files import read_owner
from noria.app.feedback import Stored, refusal
from noria.app.keeper import Keeper
from noria.contracts.error import RequestError
from noria.contracts.feedback import Giver, Receipt, Told
from noria.gateway.admit import CONSOLE
from noria.observe.feedback import read


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Add the routes."""
    relayed = APIRouter(prefix="/v1/feedback")

    @relayed.post("")
    async def give(request: Request) -> Response:
        owner = read_owner(request)
        return await _given(keeper, _giver(keeper, owner.tenant, owner.key), await request.body())

    app.include_router(relayed, include_in_schema=False)

    @app.post("/api/feedback", tags=["feedback"])
    async def add(request: Request) -> Response:
        """As `POST /v1/feedback`, by an operator: on any exchange."""
        return await _given(keeper, Giver(keeper.tenant, CONSOLE.id, operator=True), await request.body())

    @app.get("/api/feedback", tags=["feedback"])
    async def several(
        *, app: str = "", release: str = "", metric: str = "", kind: str = "", exchange: str = "",
        since: str = "", until: str = "", before: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> dict[str, Any]:  # fmt: skip
        """One page, newest first; `release` is an id or a name, times are ISO 8601."""
        if exchange:
            told = await keeper.feedback.of(keeper.tenant, exchange)
            return {"rows": [shown(t) for t in told], "next": None}
        since_ns, until_ns = instant(since, "since", 0), instant(until, "until", 1 << 63)

        def wanted(s: Stored) -> bool:
            j = s.joined
            return (
                (not app or (j is not None and j.app == app))
                and (not release or (j is not None and release in (j.release, j.release_name)))
                and (not metric or s.feedback.metric == metric)
                and (not kind or s.feedback.kind == kind)
                and s.received_ns < until_ns
            )

        found = await keeper.feedback.listed(keeper.tenant, wanted, since_ns=since_ns, after=before, limit=limit)
        return {"rows": [shown(t) for t in found], "next": found[-1].cursor if len(found) == limit else None}

    @app.get("/api/feedback/arms", tags=["feedback"])
    async def arms(app: str, metric: str = "thumbs_up", since: str = "") -> dict[str, Any]:
        """By release: how many scores in [0, 1] its exchanges have, and their mean."""
        found = await keeper.feedback.arms(keeper.tenant, app, metric, instant(since, "since", 0))
        return {r: {"n": n, "sum": total, "mean": total / n} for r, (n, total) in found.items()}


def _giver(keeper: Keeper, tenant: str, key: str) -> Giver:
    """Whose feedback a key's is."""
    if key == CONSOLE.id:
        return Giver(tenant, key, operator=True)
    snapshot = keeper.current()
    held = next((k for k in snapshot.keys.values() if k.id == key), None) if snapshot and key else None
    return Giver(tenant, key, held.org, held.apps) if held else Giver(tenant, key)


async def _given(keeper: Keeper, giver: Giver, body: bytes) -> Response:
    """200 where every exchange is known, 202 where some are not stored yet; stored durably in either case."""
    statements, several = read(body, now_ns=time.time_ns())
    receipts = await keeper.feedback.give(giver, statements)
    refusal(receipts)
    status = 202 if any(r.state == "waiting" for r in receipts) else 200
    told: Any = {"object": "list", "data": [_receipt(r) for r in receipts]} if several else _receipt(receipts[0])
    return Response(msgspec.json.encode(told), status, media_type="application/json")


def _receipt(r: Receipt) -> dict[str, Any]:
    return {"object": "feedback", **{k: v for k, v in msgspec.structs.asdict(r).items() if v}}


def shown(told: Told) -> dict[str, Any]:
    """One piece of feedback as JSON."""
    f, j = told.feedback, told.joined
    return {
        "id": f.id,
        "target": f.target,
        "kind": f.kind,
        "metric": f.metric,
        "value": f.value,
        "text": f.text,
        "comment": f.comment,
        "tags": f.tags,
        "by": f.by,
        "key": f.key,
        "time_ns": str(f.at_ns),
        "received_ns": str(told.received_ns),
        "state": "joined" if j else "refused" if told.refused else "waiting",
        "note": told.refused or (j.note if j else ""),
        "exchange": j.exchange if j else None,
        "app": j.app if j else None,
        "release": j.release if j else None,
        "release_name": j.release_name if j else None,
        "erased": told.erased,
    }


def instant(text: str, param: str, absent: int) -> int:
    """int64 ns UTC of an ISO 8601 time or of int ns. Raises `RequestError`."""
    if not text:
        return absent
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(f"{param} must be a time such as 2026-11-22T14:00.", code="invalid_value", param=param) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e9)
