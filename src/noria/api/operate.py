"""`/api/plan` and `/api/apply`: what noria.yaml would change, and changing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from pydantic import Field

from noria.api.field import Strict
from noria.app.change import Changes, Plan
from noria.app.keeper import Keeper
from noria.contracts.error import ConfigError, RequestError, Unavailable


class File(Strict):
    """Which file is meant."""

    file: str = Field(
        "", max_length=4096, description="Absolute path on the service's machine; empty = the file that it was started with."
    )


def routes(app: FastAPI, keeper: Keeper, relayed: str) -> None:
    """Add them. Calls that came over the network (`relayed` is their header) may not name a file."""

    def changes(request: Request, body: File) -> tuple[Changes, Path | None]:
        if keeper.changes is None:
            raise Unavailable("This keeper reads no files.", code="no_file")
        if body.file and relayed in request.headers:
            raise RequestError(
                "Over the network only the file that the service was started with can be applied.",
                code="file_refused", param="file", status=403,
            )  # fmt: skip
        if not body.file and keeper.changes.file is None:
            raise RequestError("The service was started without a noria.yaml.", code="no_file", param="file")
        return keeper.changes, Path(body.file) if body.file else None

    @app.post("/api/plan")
    async def plan(request: Request, body: File) -> dict[str, Any]:
        """What applying noria.yaml as it is now would change."""
        by, file = changes(request, body)
        try:
            return _shown(await by.plan(file))
        except ConfigError as e:
            raise _invalid(e) from e

    @app.post("/api/apply")
    async def apply(request: Request, body: File) -> dict[str, Any]:
        """Apply noria.yaml as it is now: all of it, or nothing where anything is wrong. Says how each worker stands."""
        by, file = changes(request, body)
        try:
            done, workers = await by.apply(file)
        except ConfigError as e:
            raise _invalid(e) from e
        return _shown(done) | {"config": keeper.config, "workers": workers}


def _shown(plan: Plan) -> dict[str, Any]:
    return {
        "empty": plan.empty,
        "config": plan.config,
        "changes": [{"verb": c.verb, "what": c.what, "detail": c.detail} for c in plan.changes],
        "lines": [str(c) for c in plan.changes],
    }


def _invalid(error: ConfigError) -> RequestError:
    return RequestError(str(error), code="invalid_configuration", status=422)
