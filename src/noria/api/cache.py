"""`/api/cache`: what is kept to be answered again, for operators."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request

from noria.api.field import actor
from noria.app.keeper import Keeper


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Add the routes."""

    @app.get("/api/cache", tags=["cache"])
    async def show(tenant: str = "") -> dict[str, Any]:
        """Answers that all workers share, by app; memory and events of this node's workers."""
        return await keeper.cached(tenant or keeper.tenant)

    @app.delete("/api/cache", tags=["cache"])
    async def purge(request: Request, tenant: str = "", app: str = "", user: str = "") -> dict[str, Any]:
        """Drop kept answers: of an app, of a user (as callers name it), of both, or all of the tenant. In force in the shared
        cache when this returns, and in the memory of every worker within a second.
        """
        dropped = await keeper.purge_cache(tenant or keeper.tenant, app=app, user=user, actor=actor(request))
        return {"tenant": tenant or keeper.tenant, "app": app or None, "user": user or None, "dropped": dropped}
