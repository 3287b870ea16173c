"""Callers who speak another protocol than OpenAI's: their paths, their errors, their lists of models, their token counts."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from urllib.parse import parse_qs, unquote

import msgspec
from msgspec.structs import replace

from noria.app.house import WiredHouse, counter
from noria.contracts.error import NoriaError, RequestError
from noria.contracts.exchange import Exchange, ModelCall, Usage
from noria.contracts.stage import Ingress
from noria.dialects.anthropic_answer import error_status, write_error
from noria.dialects.anthropic_ingress import MESSAGES, write_model, write_models
from noria.dialects.anthropic_request import Raws, read_messages_request
from noria.dialects.gemini_answer import write_error as write_google_error
from noria.dialects.gemini_ingress import Generate
from noria.dialects.gemini_request import read_generate_request
from noria.dialects.native import HEADERS
from noria.dialects.openai import read_messages, read_request
from noria.dialects.openai_error import error_answer
from noria.gateway.constraint import allowed
from noria.gateway.dialect import TRANSLATED, spoken, voiced
from noria.kit.http_request import Request

PATHS: dict[str, Ingress] = {"/v1/messages": MESSAGES}
COUNT = "/v1/messages/count_tokens"
GEMINI = "/v1beta/models"
_ACTION = re.compile(r"/v1beta/models/([^:/]+(?:/[^:/]+)*):(generateContent|streamGenerateContent|countTokens)")
PER_MESSAGE = 4
"""Tokens that marks around a message cost, in an estimate."""

Counted = tuple[int, bool]
"""Tokens, and whether the number is exact."""


def generate(request: Request) -> tuple[str, Generate] | None:
    """What a Gemini path asks for (`generateContent`, `streamGenerateContent` or `countTokens`); None where it is none."""
    found = _ACTION.fullmatch(request.path)
    if found is None:
        return None
    sse = "sse" in parse_qs(request.query).get("alt", ())
    return found[2], Generate(unquote(found[1]), stream=found[2].startswith("stream"), sse=sse)


def google_key(headers: dict[str, str], request: Request | None = None) -> str:
    """The caller's key where Google's clients put it: a header, or the query."""
    if "x-goog-api-key" in headers:
        return headers["x-goog-api-key"]
    return parse_qs(request.query).get("key", [""])[0] if request is not None and request.path.startswith(GEMINI) else ""


def along(x: Exchange, headers: dict[str, str]) -> Exchange:
    """`x` with the headers that steer the caller's protocol."""
    found = tuple((name, headers[name]) for name in HEADERS.get(x.dialect, ()) if name in headers)
    return replace(x, native_headers=found) if found else x


def refused(request: Request, error: NoriaError, id: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body for an error before there is an exchange, in the words of the caller's protocol."""
    status, headers, body = error_answer(error)
    if anthropic(request):
        return error_status(status, body), [*headers, ("request-id", id)], write_error(status, body, id)
    if request.path.startswith(GEMINI):
        return status, headers, write_google_error(status, body)
    return status, headers, body


def anthropic(request: Request) -> bool:
    """Whether the caller is a client of Anthropic's API."""
    path = request.path
    return path in PATHS or path == COUNT or (path.startswith("/v1/models") and "anthropic-version" in request.headers)


def listed(names: list[str], name: str, created: int) -> bytes:
    """Models as Anthropic's clients read them: all of them, or the one that is named."""
    at = dt.datetime.fromtimestamp(created, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return write_model(name, at) if name else write_models([(n, at) for n in names])


def google_listed(names: list[str], name: str) -> bytes:
    """Models as Google's clients read them."""
    methods = ["generateContent", "streamGenerateContent", "countTokens"]
    made = [
        {"name": f"models/{n}", "displayName": n, "supportedGenerationMethods": methods} for n in ([name] if name else names)
    ]
    return msgspec.json.encode(made[0] if name else {"models": made})


async def counted(
    x: Exchange, request: Request, house: WiredHouse, ingress: Generate | None, subject: Callable[[str], str]
) -> tuple[bytes, Counted]:
    """The body of a token count, and how it is known. Admitted and rate-limited like any request; not recorded: no model answers.

    By the own count, where it has one, of the first endpoint that the request's regions allow, else by the estimate that `app.house.counter` documents, with
    `PER_MESSAGE` tokens for each message. The release's own prompt is not counted: it is not the caller's.
    """
    native = read_request(request.body)
    if ingress is None:
        body = read_messages_request(native, counting=True)
    else:
        native = _wrapped(native)
        body = read_generate_request(native, ingress.model, stream=False)
    model = msgspec.json.decode(body["model"]) if "model" in body else ""
    if not isinstance(model, str) or not model:
        raise RequestError("model: Field required", code="missing_required_parameter", param="model")
    x = along(
        replace(x, model=model, body=body, native=native, dialect="anthropic" if ingress is None else "gemini"), request.headers
    )
    x = house.admit(replace(x, subject=subject("")))
    limited: list[tuple[str, str]] = []
    claim = await house.limits.enter(x, limited)
    try:
        found = await _count(x, house)
    finally:
        if claim is not None:
            claim.settle(0, Usage())
    name = "input_tokens" if ingress is None else "totalTokens"
    return msgspec.json.encode({name: found[0]}), found


def _wrapped(native: Raws) -> Raws:
    """The request that is counted: Google's clients wrap it, or send its contents alone."""
    raw = native.get("generateContentRequest") or native.get("generate_content_request")
    return {k: v for k, v in msgspec.json.decode(raw, type=Raws).items() if k != "model"} if raw is not None else native


class _Nothing:
    """What a count leaves of the choice of dialects."""

    def __init__(self) -> None:
        self.native = False
        self.warnings: list[str] = []

    def speak(self, dialect: str) -> None:
        """Nothing."""


async def _count(x: Exchange, house: WiredHouse) -> Counted:
    assert x.release is not None, "admitted"
    provider = house.provider(allowed(x, x.release.route, x.release.routing.regions)[0])
    call: ModelCall = ModelCall(x.id, "chat", False, x.body, f"00-{x.trace}-{x.span}-01")
    if x.dialect in TRANSLATED:
        nothing = _Nothing()
        call = voiced(spoken(x, call, {}), provider, nothing, nothing)
    try:
        return await provider.count_request(call), True
    except NotImplementedError:
        pass
    messages = read_messages(x.body["messages"])
    text = "\n".join([*(m.text for m in messages), bytes(x.body.get("tools", b"")).decode()])
    return await counter(provider)(text) + PER_MESSAGE * len(messages), False
