"""Stored Responses as callers ask for them: `/v1/responses/{id}` and what is under it."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote

import msgspec

from noria.app.link import Link
from noria.contracts.error import NotFound, RequestError
from noria.contracts.exchange import Exchange
from noria.dialects.responses_items import item_id, response_of, write_items
from noria.ground.responses import Kept
from noria.kit.http_request import Request

PREFIX = "/v1/responses/"
MOST_ITEMS = 100


def methods(path: str) -> str:
    """What may be asked of a path under `/v1/responses/`, as the `allow` header has it; empty where there is nothing."""
    name, _, what = path.removeprefix(PREFIX).partition("/")
    allowed = {"": "GET, DELETE", "input_items": "GET", "cancel": "POST"}
    return allowed.get(what, "") if name not in ("", "compact", "input_tokens") else ""


async def answer_stored(request: Request, x: Exchange, link: Link) -> bytes:
    """The body for a request about a stored Response. `x` carries the caller's key. Raises `NotFound`, `RequestError`."""
    name, _, what = unquote(request.path.removeprefix(PREFIX)).partition("/")
    digits = response_of(name) if name.startswith("resp_") and len(name) == 37 else ""
    key = x.key.id if x.key else ""
    if what == "cancel":
        raise RequestError("Only a response in the background can be cancelled.", code="unsupported_feature")
    asked = {k: v[-1] for k, v in parse_qs(request.query).items()}
    if asked.get("stream") == "true":
        raise RequestError("A stored response cannot be streamed again.", code="unsupported_feature", param="stream")
    if request.method == "DELETE":
        if not digits or not await link.forget(x.tenant, key, digits):
            raise _unknown(name)
        return msgspec.json.encode({"id": name, "object": "response", "deleted": True})
    found = await link.recall(x.tenant, key, (digits,)) if digits else ()
    if not found:
        raise _unknown(name)
    return found[0].response if not what else _input_items(found[0], asked)


def _unknown(name: str) -> NotFound:
    return NotFound(f"Response with id '{name[:100]}' not found.", code="response_not_found")


def _input_items(kept: Kept, asked: dict[str, str]) -> bytes:
    """One page of the items that the request brought; newest first unless `order=asc`."""
    numbers = iter(range(1 << 30))
    items = write_items(msgspec.json.decode(kept.input), lambda prefix: item_id(f"{prefix}_in", kept.id, next(numbers)))
    order, after, limit = asked.get("order", "desc"), asked.get("after", ""), asked.get("limit", "20")
    if order not in ("asc", "desc"):
        raise RequestError("'order' must be asc or desc.", code="invalid_value", param="order")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MOST_ITEMS:
        raise RequestError(f"'limit' must be from 1 to {MOST_ITEMS}.", code="invalid_value", param="limit")
    if order == "desc":
        items.reverse()
    if after:
        at = next((i for i, item in enumerate(items) if item["id"] == after), None)
        if at is None:
            raise RequestError(f"'after' names no item of this response: {after[:100]!r}.", code="invalid_value", param="after")
        items = items[at + 1 :]
    page = items[: int(limit)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return msgspec.json.encode({"object": "list", "data": page, **ends, "has_more": len(items) > len(page)})
