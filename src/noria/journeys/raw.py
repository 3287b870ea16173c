"""Follow a request that passes through verbatim: no stage edits it, but its key, limits, money and row are those of any other.

It costs what the endpoint's price says of the usage in its answer, and of the exchange as such (`price.request`). Under a
budget only calls with a price an exchange, and none a token, may pass: what others cost is not known before.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol

import msgspec
from msgspec.structs import replace

from noria.contracts.error import NoriaError, RequestError, Unauthorized, UpstreamError
from noria.contracts.exchange import Exchange, RawCall, Usage
from noria.contracts.price import Price
from noria.contracts.release import Endpoint, Release
from noria.contracts.stage import Outlet, Provider, Sink, Valve
from noria.contracts.trace import Attempt, ExchangeRow
from noria.dialects.openai_error import error_answer
from noria.dialects.raw_request import Model, given_headers, read_facts, with_model
from noria.gateway.admit import Admit
from noria.gateway.limits import Claim, Limits
from noria.observe.account import Account

WHOLE = 1024 * 1024
"""Bytes of an announced body up to which an answer is kept whole until its row is written."""
TAIL = 64 * 1024
"""Bytes of a longer answer's end in which its usage is looked for."""
Headers = list[tuple[str, str]]


class RawHouse(Protocol):
    """As `journeys.prompt.House`, with somebody to pass to."""

    @property
    def admit(self) -> Admit:
        """Who may ask, for what."""
        ...

    @property
    def limits(self) -> Limits:
        """Rates and budgets."""
        ...

    def passing(self, x: Exchange, /) -> tuple[Endpoint, Provider]:
        """Who is asked: the first endpoint of the app that passes anything through, or the one configured for requests
        that name no model. Raises `NotFound`.
        """
        ...

    def open(self, x: Exchange, /) -> Account:
        """See `journeys.prompt.House`."""
        ...

    def close(self, x: Exchange, account: Account, claim: Claim | None = None, /) -> ExchangeRow:
        """See `journeys.prompt.House`."""
        ...


@dataclass(frozen=True, slots=True)
class Passing:
    """One request as it came: the call, and where it names its model, if it does."""

    call: RawCall
    model: Model | None
    content_type: str = ""
    valve: Valve | None = None


class Way:
    """The answer on its way back: small ones wait for their row, others are streamed."""

    def __init__(self, x: Exchange, account: Account, out: Outlet) -> None:
        self.started = False
        self.kind = ""
        self.size = 0
        self.tail = bytearray()
        self._x = x
        self._account = account
        self._out = out

    def head(self, status: int, headers: Headers) -> Sink | None:
        """The sink of a long answer, or of one of unknown length; None for what is to come whole."""
        named = dict(headers)
        self.kind = named.get("content-type", "")
        length = named.get("content-length", "")
        if status >= 400 or (length.isdigit() and int(length) <= WHOLE) or status in (204, 304):
            return None
        self.started = True
        self._account.first_ns = self._account.watch.elapsed()
        self._out.head(status, self.named(headers), stream=True)
        return self._take

    def named(self, headers: Headers) -> Headers:
        """The head of the answer."""
        own = [("x-request-id", self._x.id), ("x-noria-trace", self._x.trace)]
        if self._x.release is not None:
            own.append(("x-noria-release", self._x.release.id))
        return own + given_headers(headers) + self._account.headers

    def admitted(self, x: Exchange) -> None:
        """The exchange has a key and a release."""
        self._x = x

    def _take(self, data: bytes) -> None:
        self.size += len(data)
        self.tail += data
        if len(self.tail) > 2 * TAIL:
            del self.tail[:-TAIL]
        self._out.data(data)


async def pass_through(x: Exchange, house: RawHouse, out: Outlet, passing: Passing) -> None:
    """Take `x` to an endpoint as it is and the answer back as it is. Cancelling cancels the call; it is recorded all the same.

    An answer that breaks off after its head is left without `end`: whoever holds the connection cuts it.
    """
    account = house.open(x)
    way = Way(x, account, out)
    claim = None
    answer: tuple[int, Headers, bytes] = (0, [], b"")
    try:
        x, endpoint, provider = _admitted(x, house)
        way.admitted(x)
        claim = await house.limits.enter(x, account.headers)
        await house.limits.reserve(claim, _priced(x, endpoint))
        account.reserved = claim.amount if claim else None
        account.request = _facts(passing)
        answer = await _ask(x, account, way, passing=passing, endpoint=endpoint, provider=provider)
        _read(account, way, answer)
        x = replace(x, stream=way.kind.startswith("text/event-stream"))
    except NoriaError as e:
        account.error = e
        account.status = error_answer(e)[0] if not way.started else 200
    except BaseException as e:
        account.error = e
        account.status = 499
        raise
    finally:
        house.close(x, account, claim)
    _end(account, way, out, answer)


def _admitted(x: Exchange, house: RawHouse) -> tuple[Exchange, Endpoint, Provider]:
    """Who may ask, and who is asked."""
    if x.model:
        x = house.admit(x)
        endpoint, provider = house.passing(x)
    else:
        x = house.admit.enter(x)
        endpoint, provider = house.passing(x)
        if x.key is not None and x.key.apps and not x.key.endpoints:
            raise Unauthorized(
                "This API key may use some apps only, and this request names none.",
                code="endpoint_not_allowed",
                hint="Give the key `endpoints` that name the path.",
                status=403,
            )
        x = replace(x, model=endpoint.name)
    if (x.release is not None and x.release.guard) or (x.key is not None and x.key.guard):
        raise RequestError(
            f"{x.model!r} is guarded, and no guard reads what passes through at {x.path}.",
            code="guarded_app",
            param="model",
            hint="Name an app, and use a key, without guards.",
        )
    return x, endpoint, provider


def _priced(x: Exchange, endpoint: Endpoint) -> Exchange:
    """`x` as money sees it: at the price of an exchange, or, where tokens cost too, at one that nobody knows beforehand."""
    price = endpoint.price_at(x.started_ns)
    price = price if price is not None and _flat(price) else None
    bare = x.release or Release(id="", name="", app=x.model, route=())
    return replace(x, body={}, release=replace(bare, route=(replace(endpoint, price=price, prices=()),)))


def _flat(price: Price) -> bool:
    """Whether an exchange costs the same whatever its tokens."""
    rates = (
        price.input, price.output, price.cached, price.reasoning, price.audio_input, price.audio_output, price.image_input,
        price.cached_audio, price.image_output,
    )  # fmt: skip
    return price.request > 0 and not any(rates) and not price.compute_hour and not price.tiers


async def _ask(
    x: Exchange, account: Account, way: Way, *, passing: Passing, endpoint: Endpoint, provider: Provider
) -> tuple[int, Headers, bytes]:
    call = replace(passing.call, traceparent=f"00-{x.trace}-{x.span}-01")
    if passing.model is not None:
        call = replace(call, body=with_model(call.body, passing.model, endpoint.model))
    account.endpoint = endpoint
    start = perf_counter_ns()
    status: int | None = None
    error = "cancelled"
    try:
        answer = await provider.raw(call, way.head, passing.valve)
        status, error = answer[0], "" if answer[0] < 400 else "upstream_error"
        return answer
    except UpstreamError as e:
        status, error = e.upstream_status, e.code or "upstream_error"
        raise
    except NoriaError as e:
        error = e.code or type(e).__name__
        raise
    finally:
        took = perf_counter_ns() - start
        account.model_ns += took
        account.attempts.append(Attempt(endpoint.name, start - account.watch.began, took, status, error))


def _read(account: Account, way: Way, answer: tuple[int, Headers, bytes]) -> None:
    """What the answer says of itself, into the account."""
    status, headers, body = answer
    account.status = status
    usage, model, id = read_facts(way.kind, body or bytes(way.tail))  # noqa: A001  the field's word
    account.served_model = model
    account.upstream_id = dict(headers).get("x-request-id") or id
    price = account.endpoint.price_at(account.began_ns) if account.endpoint else None
    if usage is not None:
        account.usage = usage
    elif price is not None and _flat(price):
        account.usage = Usage(0, 0)
    told = {"status": status, "content_type": way.kind, "bytes": way.size or len(body)}
    account.answer = msgspec.json.encode(told)


def _facts(passing: Passing) -> bytes:
    """What is recorded of the request: never its body, nor its query."""
    call = passing.call
    told = {
        "method": call.method,
        "path": "/v1" + call.path.partition("?")[0],
        "content_type": passing.content_type.partition(";")[0],
        "bytes": len(call.body),
    }
    return msgspec.json.encode(told)


def _end(account: Account, way: Way, out: Outlet, answer: tuple[int, Headers, bytes]) -> None:
    if isinstance(account.error, NoriaError):
        if way.started:
            return
        status, headers, body = error_answer(account.error)
        out.head(status, [("content-type", "application/json"), *way.named(headers)], stream=False)
        out.data(body)
    elif not way.started:
        status, headers, body = answer
        out.head(status, way.named(headers), stream=False)
        out.data(body)
    out.end()
