"""`/v1/files` and `/v1/batches` in the keeper. Workers relay them here once they know whose request it is.

Who asks stands in `x-noria-owner`, which workers write and never pass on from outside; without it nothing is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qs, quote

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from noria.api.owner import OWNER, UPLOAD
from noria.app.depot import Depot
from noria.app.files import PIECE
from noria.app.keeper import Keeper
from noria.contracts.batch import Batch, Owner, StoredFile
from noria.contracts.error import NotFound, RequestError
from noria.dialects.openai_batch import PURPOSES, batch_object, file_object, page, read_batch, read_expiry
from noria.gateway.constraint import REGIONS_TAG
from noria.kit import labels
from noria.kit.multipart import BadForm, read_file, read_form
from noria.kit.upload import path_of

MOST_SHOWN = 10_000


def read_owner(request: Request) -> Owner:
    """Who asks. Raises `NotFound` for what no worker has relayed."""
    if OWNER not in request.headers:
        raise NotFound("There is nothing here.", code="not_found")
    told = parse_qs(request.headers[OWNER], keep_blank_values=True)
    return Owner(told["tenant"][0], told["scope"][0], told["key"][0])


def routes(app: FastAPI, keeper: Keeper) -> None:
    """Mount the routes. A keeper without a place for files says so."""

    def depot() -> Depot:
        if keeper.depot is None:
            raise NotFound("There is nothing here.", code="not_found")
        return keeper.depot

    app.include_router(_files(depot), include_in_schema=False)
    app.include_router(_batches(depot), include_in_schema=False)


def _files(depot: Callable[[], Depot]) -> APIRouter:
    files = APIRouter(prefix="/v1/files")

    @files.post("")
    async def add(request: Request) -> Response:
        owner = read_owner(request)
        kind = request.headers.get("content-type", "")
        try:
            body = path_of(depot().home, request.headers.get(UPLOAD, ""))
            form = await asyncio.to_thread(read_form, body, kind)
        except (BadForm, FileNotFoundError, ValueError) as e:
            raise RequestError(f"The request is no multipart/form-data: {e}.", code="invalid_multipart") from None
        if form.filename is None:
            raise RequestError("The form has no file.", code="missing_required_parameter", param="file")
        purpose = form.fields.get("purpose")
        if purpose not in PURPOSES:
            raise RequestError(f"purpose must be one of: {', '.join(sorted(PURPOSES))}.", code="invalid_value", param="purpose")
        keep = _expiry(form.fields.get("expires_after[anchor]"), form.fields.get("expires_after[seconds]"))
        file = await depot().files.take_in(
            owner, read_file(body, kind, PIECE), form.size,
            filename=form.filename or "file", purpose=purpose, keep_seconds=keep,
        )  # fmt: skip
        return _json(file_object(file))

    @files.get("")
    async def several(request: Request, owner: Owner = Depends(read_owner)) -> Response:  # noqa: B008  how FastAPI injects
        purpose = request.query_params.get("purpose")
        found = [f for f in await depot().files.list(owner) if purpose in (None, f.purpose)]
        return _json(_page(request, found, file_object, usual=MOST_SHOWN))

    @files.get("/{id}")
    async def one(id: str, owner: Owner = Depends(read_owner)) -> Response:  # noqa: B008  how FastAPI injects
        return _json(file_object(await depot().files.get(owner, id)))

    @files.get("/{id}/content")
    async def content(id: str, owner: Owner = Depends(read_owner)) -> Response:  # noqa: B008  how FastAPI injects
        file = await depot().files.get(owner, id)
        named = f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}"
        headers = {"content-disposition": named, "x-content-type-options": "nosniff"}
        pieces = depot().files.read(owner, id)
        first = await anext(pieces)  # what is gone is told before the answer begins
        headers["content-length"] = str(file.bytes)
        return StreamingResponse(_joined(first, pieces), headers=headers, media_type="application/octet-stream")

    @files.delete("/{id}")
    async def delete(id: str, owner: Owner = Depends(read_owner)) -> Response:  # noqa: B008  how FastAPI injects
        await depot().files.delete(owner, id)
        return _json({"id": id, "object": "file", "deleted": True})

    return files


def _batches(depot: Callable[[], Depot]) -> APIRouter:
    batches = APIRouter(prefix="/v1/batches")

    @batches.post("")
    async def create(request: Request, owner: Owner = Depends(read_owner)) -> Response:  # noqa: B008  how FastAPI injects
        _without_regions(request.headers.get("x-noria-tags", ""))
        return _json(batch_object(await depot().batches.create(owner, read_batch(await request.body()))))

    @batches.get("")
    async def several(request: Request, owner: Owner = Depends(read_owner)) -> Response:  # noqa: B008  how FastAPI injects
        return _json(_page(request, await depot().batches.list(owner), batch_object, usual=20))

    @batches.get("/{id}")
    async def one(id: str, owner: Owner = Depends(read_owner)) -> Response:  # noqa: B008  how FastAPI injects
        return _json(batch_object(await depot().batches.get(owner, id)))

    @batches.post("/{id}/cancel")
    async def cancel(id: str, owner: Owner = Depends(read_owner)) -> Response:  # noqa: B008  how FastAPI injects
        return _json(batch_object(await depot().batches.cancel(owner, id)))

    return batches


def _without_regions(tags: str) -> None:
    """Raises `RequestError` where a caller's own tag narrows the regions: a batch's lines carry the tags of its key alone."""
    try:
        given = labels.read(tags) if tags else {}
    except ValueError as e:
        raise RequestError(f"The header x-noria-tags is wrong: {e}.", code="invalid_tags", param="x-noria-tags") from None
    if given.get(REGIONS_TAG):
        raise RequestError(
            f"x-noria-tags: {REGIONS_TAG}={given[REGIONS_TAG]} cannot be kept: a batch carries the tags of its key alone.",
            code="invalid_tags",
            param="x-noria-tags",
            hint=f"Use a key with the tag `{REGIONS_TAG}`.",
        )


def _page(request: Request, items: list[Any], show: Any, *, usual: int) -> dict[str, Any]:
    """One page of `items` (oldest first), newest first unless `order=asc`. Raises `RequestError`."""
    asked = request.query_params
    order, limit, after = asked.get("order", "desc"), asked.get("limit", str(usual)), asked.get("after", "")
    if order not in ("asc", "desc"):
        raise RequestError("order must be asc or desc.", code="invalid_value", param="order")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MOST_SHOWN:
        raise RequestError(f"limit must be from 1 to {MOST_SHOWN}.", code="invalid_value", param="limit")
    ordered: list[StoredFile | Batch] = items if order == "asc" else items[::-1]
    if after:
        at = next((i for i, item in enumerate(ordered) if item.id == after), None)
        if at is None:
            raise RequestError("after names nothing in this list.", code="invalid_value", param="after")
        ordered = ordered[at + 1 :]
    shown = ordered[: int(limit)]
    return page([show(item) for item in shown], more=len(ordered) > len(shown))


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _expiry(anchor: Any, seconds: Any) -> int:
    if anchor is None and seconds is None:
        return 0
    number = str(seconds or "")
    return read_expiry(str(anchor), int(number) if number.isascii() and number.isdigit() else 0)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
