"""`/api/jobs`: work that was given up, for operators."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request

from noria.api.field import Strict, actor
from noria.app.keeper import Keeper
from noria.contracts.error import NotFound
from noria.contracts.port import Queue


class Named(Strict):
    """One job of one queue; their names may hold anything."""

    queue: str
    id: str


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Mount the routes. A keeper without a queue has no jobs."""

    def queue() -> Queue:
        if keeper.depot is None:
            raise NotFound("This keeper has no queue.", code="not_found")
        return keeper.depot.queue

    @app.get("/api/jobs/dead", tags=["jobs"])
    async def dead(limit: Annotated[int, Query(ge=1, le=1000)] = 1000) -> list[dict[str, Any]]:
        """Jobs that were given up, oldest first."""
        found = await queue().dead(keeper.tenant, limit=limit)
        return [
            {"queue": j.queue, "id": j.id, "attempts": j.attempt, "bytes": len(j.body), "put": _shown(j.put_ns)} for j in found
        ]

    @app.post("/api/jobs/revive", tags=["jobs"])
    async def revive(request: Request, job: Named) -> dict[str, Any]:
        """Have a job tried again, at once."""
        if not await queue().revive(keeper.tenant, job.queue, job.id, now_ns=time.time_ns()):
            words = f"The queue {job.queue!r} has no dead job {job.id!r}."
            raise NotFound(words, code="job_not_found", hint="See `noria jobs dead`.")
        await keeper.note("job.revived", actor(request), f"{job.queue}/{job.id}", {})
        return {"queue": job.queue, "id": job.id, "revived": True}


def _shown(ns: int) -> str:
    return datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
