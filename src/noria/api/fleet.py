"""`/api/endpoints`, `/api/batches`, `/api/files`: what runs and what lies here, whoever it belongs to."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from noria.app.depot import Depot
from noria.app.fleet import fleet
from noria.app.keeper import Keeper
from noria.contracts.batch import Batch, StoredFile
from noria.contracts.error import NotFound
from noria.dialects.openai_batch import batch_object, file_object


def routes(app: FastAPI, keeper: Keeper) -> None:
    """The routes of all three."""

    def depot() -> Depot:
        if keeper.depot is None:
            raise NotFound("This keeper has no place for files.", code="not_found")
        return keeper.depot

    @app.get("/api/endpoints", tags=["endpoints"])
    async def several() -> list[dict[str, Any]]:
        """Every endpoint: state in the eyes of the workers, what is under way, attempts, latency, its last error."""
        return fleet(keeper)

    @app.get("/api/batches", tags=["batches"])
    async def batches() -> list[dict[str, Any]]:
        """The batches of every key, newest first."""
        return [_batch(b) for b in await depot().batches.every(keeper.tenant)]

    @app.post("/api/batches/{id}/cancel", tags=["batches"])
    async def cancel(id: str) -> dict[str, Any]:
        """Begin to end a batch, whoever it belongs to."""
        return _batch(await depot().batches.cancel_any(keeper.tenant, id))

    @app.get("/api/files", tags=["batches"])
    async def files() -> list[dict[str, Any]]:
        """The files of every key, newest first; their contents are their owners' alone."""
        return [_file(f) for f in await depot().files.every(keeper.tenant)]


def _batch(b: Batch) -> dict[str, Any]:
    return {**batch_object(b), "owner": b.owner, "key": b.key, "lane": b.lane, "endpoint_name": b.upstream_endpoint}


def _file(f: StoredFile) -> dict[str, Any]:
    return {**file_object(f), "owner": f.owner, "key": f.key}
