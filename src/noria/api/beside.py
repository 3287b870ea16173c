"""What a worker serves under `/v1` beside the journey of a prompt: files and batches (relayed), moderations, and the rest of
OpenAI's surface, verbatim.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec
from msgspec.structs import replace

from noria.api.line import LineOutlet
from noria.api.owner import owner_header
from noria.app.house import WiredHouse
from noria.app.line_house import Finishing, Preparing
from noria.app.worker import Worker
from noria.contracts.batch import Envelope, Ticket
from noria.contracts.error import NotFound, RequestError
from noria.contracts.exchange import Exchange, RawCall, Usage
from noria.contracts.stage import Outlet
from noria.dialects.openai_moderation import read_moderation
from noria.dialects.raw_request import METHODS, asked_headers, checked_path, find_model
from noria.journeys.moderation import moderate
from noria.journeys.prompt import House
from noria.journeys.raw import Passing, pass_through
from noria.kit.http_client import Flow
from noria.kit.http_request import Request

MODERATIONS = "/v1/moderations"
FEEDBACK = "/v1/feedback"
FILES = "/v1/files"
_ID = r"[A-Za-z0-9_-]{1,100}"
_KEPT = (
    (re.compile(r"/v1/(files|batches)"), "GET, POST"),
    (re.compile(rf"/v1/files/{_ID}"), "GET, DELETE"),
    (re.compile(rf"/v1/files/{_ID}/content"), "GET"),
    (re.compile(rf"/v1/batches/{_ID}"), "GET"),
    (re.compile(rf"/v1/batches/{_ID}/cancel"), "POST"),
    (re.compile(MODERATIONS), "POST"),
    (re.compile(FEEDBACK), "POST"),
)
_OURS = re.compile(
    r"/v1/(chat|completions|embeddings|engines|responses|messages|models|files|batches|moderations|feedback|traces|logs|metrics)(/|\Z)",
    re.IGNORECASE,
)
"""What is never passed to an upstream: it is served here. `/v1/chat/completions/` is no way around an app's prompt."""


def methods(path: str) -> str:
    """What may be asked of a path of ours, as the `allow` header has it; empty for a path that is none."""
    return next((allowed for pattern, allowed in _KEPT if pattern.fullmatch(path)), "")


def owner(x: Exchange, house: WiredHouse) -> tuple[str, str]:
    """The header that tells the keeper whose files and batches are meant. Raises `Unauthorized`."""
    return owner_header(x, house.admit.caller(x))


async def held(x: Exchange, house: WiredHouse, relay: Callable[[tuple[str, str]], Awaitable[None]]) -> None:
    """What the keeper answers, once the caller has its place in the limits: `relay` is told whose request it is."""
    x = house.admit.enter(x)
    claim = await house.limits.enter(x, [])
    try:
        await relay(owner_header(x, x.key))
    finally:
        if claim is not None:
            claim.settle(0, Usage())


def lined(
    x: Exchange, request: Request, ticket: Ticket, worker: Worker, *, house: WiredHouse, out: Outlet
) -> tuple[Exchange, House, Outlet, bytes]:
    """An exchange that is a line of a batch: its key is the batch's, its answer is kept. Raises `Unauthorized`."""
    key = house.admit.holder(ticket.key) if ticket.key else None
    line = replace(x, id=ticket.exchange, authorization="", key=key, priority="low")
    if ticket.mode == "prepare":
        preparing = Preparing(house)
        return line, preparing, LineOutlet(out, ticket, worker, preparing), request.body
    if ticket.mode == "finish":
        envelope = msgspec.msgpack.decode(request.body, type=Envelope)
        return line, Finishing(house, envelope), LineOutlet(out, ticket, worker), envelope.request
    return line, house, LineOutlet(out, ticket, worker), request.body


async def moderated(x: Exchange, house: WiredHouse, out: Outlet, body: bytes) -> None:
    """`POST /v1/moderations`."""
    model, texts = read_moderation(body)
    await moderate(replace(x, kind="moderation", model=model), house, out, texts)


async def through(x: Exchange, house: WiredHouse, out: Outlet, request: Request) -> None:
    """Any other path: to the endpoint of the app that the request names, or to the one that is configured for the rest."""
    if _OURS.match(request.path):
        raise NotFound(f"Unknown request URL: {request.method} {request.path[:200]}.", code="unknown_url")
    path = checked_path(request.path, request.query)
    if request.method not in METHODS or "upgrade" in request.headers:
        raise RequestError(f"{request.method} passes nothing through here.", code="method_not_allowed", status=405)
    content_type = request.headers.get("content-type", "")
    model = find_model(content_type, request.body)
    valve = Flow()
    request.response.on_pause, request.response.on_resume = valve.pause, valve.resume
    call = RawCall(request.method, path, tuple(asked_headers(request.headers)), request.body)
    passing = Passing(call, model, content_type, valve)
    await pass_through(replace(x, model=model.name if model else ""), house, out, passing)
