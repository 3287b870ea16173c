"""The journey of a batch's line where the endpoint's own batch API is between its two halves.

`prepare` goes as far as the model and hands back what it would have been sent: nothing is recorded, nothing is spent.
`finish` makes the whole journey with the answer that the batch API gave in the model's place, at the batch price. Both
halves are `journeys.prompt.answer`; only the router is another.
"""

from __future__ import annotations

from dataclasses import replace as with_fields
from time import perf_counter_ns
from typing import Protocol, cast

import msgspec
from msgspec.structs import replace

from noria.contracts.batch import Envelope
from noria.contracts.error import NoriaError
from noria.contracts.exchange import Exchange, ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.stage import Inward
from noria.contracts.trace import Attempt, ExchangeRow
from noria.dialects.upstream import refusal
from noria.gateway.constraint import allowed
from noria.gateway.limits import Claim, Limits
from noria.gateway.router import NORIA_FIELDS, Router
from noria.journeys.prompt import House, Parts
from noria.observe.account import Account

_NOT_SENT = NORIA_FIELDS | {"stream", "stream_options"}


Place = tuple[str, str, str]
"""Name, URL and region of an endpoint."""


class Prepared(msgspec.Struct, frozen=True):
    """What a `prepare` answers. `bounded`: money was set aside for it, so it must not be spent later and elsewhere."""

    body: msgspec.Raw
    bounded: bool
    place: Place = ("", "", "")
    """Of the endpoint that it was prepared for, and may be sent to."""


def place(endpoint: Endpoint) -> Place:
    """Where what is sent to an endpoint goes."""
    return endpoint.name, endpoint.url, endpoint.region


class Droppable(House, Protocol):
    """A house that can forget what it has opened."""

    def drop(self, x: Exchange, /) -> None:
        """Forget the account of `x`, unrecorded."""
        ...


class Halted(NoriaError):
    """The journey has come to the model, and no further was wanted."""


class Unlimited:
    """In place of `Limits`: what is finished was let in when it was prepared."""

    async def enter(self, x: Exchange, headers: list[tuple[str, str]]) -> None:  # noqa: ARG002  the signature of Limits
        """Nothing to enter."""
        return

    async def reserve(self, claim: None, x: Exchange) -> Exchange:  # noqa: ARG002  the signature of Limits
        """Nothing to set aside."""
        return x


class Preparing:
    """`House` of a `prepare`, over the house in force."""

    def __init__(self, house: Droppable) -> None:
        self._house = house
        self.prepared: Prepared | None = None

    @property
    def admit(self) -> Inward:
        """See `House`."""
        return self._house.admit

    @property
    def limits(self) -> Limits:
        """See `House`: the real ones, whose money is given back at the end."""
        return self._house.limits

    def open(self, x: Exchange) -> Account:
        """See `House`."""
        return self._house.open(x)

    def parts(self, x: Exchange) -> Parts:
        """See `House`."""
        return with_fields(self._house.parts(x), router=cast("Router", self), cache=None, memory=None)

    def close(self, x: Exchange, account: Account, claim: Claim | None = None) -> ExchangeRow:
        """Not recorded, except where it was refused."""
        if self.prepared is None:
            return self._house.close(x, account, claim)
        self._house.drop(x)
        row = account.row(x, worker="", config="")
        if claim is not None:
            claim.settle(row.cost_nanousd, row.usage)
        return row

    async def send(self, x: Exchange, gate: object, account: Account, began: int) -> ModelReply:  # noqa: ARG002  as a router
        """In the router's place. Raises `RequestError` where the endpoint computes outside of the line's regions."""
        assert x.release is not None
        endpoint = allowed(x, x.release.route[:1], x.release.routing.regions)[0]
        params = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in x.release.params.items()}
        fields = {**params, **{k: v for k, v in x.body.items() if k not in _NOT_SENT}}
        fields["model"] = msgspec.Raw(msgspec.json.encode(endpoint.model))
        self.prepared = Prepared(msgspec.Raw(msgspec.json.encode(fields)), account.reserved is not None, place(endpoint))
        raise Halted("The line is prepared.", code="prepared")


class Finishing:
    """`House` of a `finish`, over the house in force."""

    limits = cast("Limits", Unlimited())

    def __init__(self, house: House, envelope: Envelope) -> None:
        self._house = house
        self._envelope = envelope

    @property
    def admit(self) -> Inward:
        """See `House`."""
        return self._house.admit

    def open(self, x: Exchange) -> Account:
        """See `House`."""
        return self._house.open(x)

    def parts(self, x: Exchange) -> Parts:
        """See `House`."""
        return with_fields(self._house.parts(x), router=cast("Router", self), cache=None, memory=None)

    def close(self, x: Exchange, account: Account, claim: Claim | None = None) -> ExchangeRow:
        """See `House`."""
        return self._house.close(x, account, claim)

    async def send(self, x: Exchange, gate: object, account: Account, began: int) -> ModelReply:  # noqa: ARG002  as a router
        """In the router's place: what the batch API answered."""
        assert x.release is not None
        endpoint = x.release.route[0]
        status, body = self._envelope.status, self._envelope.answer
        account.endpoint = at_batch_price(endpoint, x.started_ns)
        error = "upstream_error" if status >= 400 else ""
        account.attempts.append(Attempt(endpoint.name, perf_counter_ns() - began, 1, status, error))
        if status >= 400:
            raise refusal(status, [], body, now=0.0, who=f"The endpoint {endpoint.name!r}")
        return ModelReply(status, body)


def at_batch_price(endpoint: Endpoint, at_ns: int) -> Endpoint:
    """The endpoint as a batch pays for it at a moment (Unix ns)."""
    price = endpoint.price_at(at_ns)
    if price is None or price.batch == 1.0:
        return endpoint
    return replace(endpoint, price=replace(price, share=price.batch), prices=())
