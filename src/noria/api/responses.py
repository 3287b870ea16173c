"""What workers ask the keeper about stored Responses: msgpack in, msgpack out."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response

from noria.app.keeper import Keeper
from noria.ground.responses import Kept


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Under `/internal`, which only the owner of the socket reaches."""

    @app.post("/internal/responses/retain", include_in_schema=False)
    async def retain(request: Request) -> Response:
        tenant, kept = msgspec.msgpack.decode(await request.body(), type=tuple[str, Kept])
        return _packed(await keeper.responses.retain(tenant, kept))

    @app.post("/internal/responses/recall", include_in_schema=False)
    async def recall(request: Request) -> Response:
        tenant, key, ids, chain = msgspec.msgpack.decode(await request.body(), type=tuple[str, str, tuple[str, ...], bool])
        return _packed(await keeper.responses.recall(tenant, key, ids, chain=chain))

    @app.post("/internal/responses/forget", include_in_schema=False)
    async def forget(request: Request) -> Response:
        tenant, key, name = msgspec.msgpack.decode(await request.body(), type=tuple[str, str, str])
        return _packed(await keeper.responses.forget(tenant, key, name))


def _packed(value: Any) -> Response:
    return Response(msgspec.msgpack.encode(value), media_type="application/msgpack")
