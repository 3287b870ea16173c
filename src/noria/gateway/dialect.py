"""Which dialect an endpoint is asked in: the caller's own where it speaks it, else chat form without what is the caller's own.

An exchange keeps its native request as long as nothing has to read or change what passes (`journeys.prompt`); each
attempt decides for itself, so a route may mix dialects. A hedged attempt is translated: two lanes of one race must speak alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from noria.contracts.error import RequestError
from noria.contracts.exchange import Dialect, Exchange, ModelCall
from noria.contracts.stage import Provider
from noria.dialects.lower import lower
from noria.dialects.native import request_of
from noria.dialects.responses_native import plain

Raws = dict[str, msgspec.Raw]
M = TypeVar("M")

TRANSLATED = frozenset({"anthropic", "gemini", "responses"})
"""Dialects whose requests keep extension fields in chat form, and which some endpoints speak themselves."""


class Ear(Protocol):
    """Where answers go; it must know which dialect comes."""

    def speak(self, dialect: Dialect) -> None:
        """The dialect of the next attempt's answer."""
        ...


class Told(Protocol):
    """What the choice leaves in the account."""

    native: bool
    warnings: list[str]


class Spoken(ModelCall, frozen=True):
    """A call whose caller speaks another dialect than chat; `body` is in chat form, extension fields included."""

    spoken: Dialect = "openai"
    native: Raws | None = None
    """The caller's own request, ready to be sent; None where it has to be translated."""
    native_headers: tuple[tuple[str, str], ...] = ()
    subject: str = ""
    plain: dict[frozenset[str], tuple[ModelCall, tuple[str, ...]]] = {}
    """Translations made so far, by the fields that are understood."""


def spoken(x: Exchange, call: ModelCall, params: Raws) -> Spoken:
    """The call of an exchange whose dialect is in `TRANSLATED`."""
    return Spoken(
        call.exchange,
        call.kind,
        call.stream,
        call.body,
        call.traceparent,
        hear=call.hear,
        spoken=x.dialect,
        native=request_of(x.dialect, x.native, params) if x.native and not _limited(x) else None,
        native_headers=x.native_headers,
        subject=x.subject,
        plain={},
    )


def _limited(x: Exchange) -> bool:
    """Whether a budget has set an output limit that the caller's own request has not (Anthropic's always has one)."""
    if x.dialect != "gemini" or "max_completion_tokens" not in x.body:
        return False
    return (
        re.search(
            rb'"max_?[oO]utput_?[tT]okens"', bytes(x.native.get("generationConfig", x.native.get("generation_config", b"")))
        )
        is None
    )


def natively(call: Spoken, provider: Provider) -> bool:
    """Whether the endpoint gets the caller's own request."""
    return call.native is not None and call.spoken in provider.speaks


def voiced(call: Spoken, provider: Provider, ear: Ear | None, told: Told) -> ModelCall:
    """The call as one endpoint is to get it. `ear` is None in a race. Raises `RequestError` for what cannot be translated."""
    if ear is not None and natively(call, provider):
        assert call.native is not None, "natively says so"
        told.native = True
        ear.speak(call.spoken)
        return ModelCall(
            call.exchange,
            call.kind,
            call.stream,
            call.native,
            call.traceparent,
            dialect=call.spoken,
            headers=call.native_headers,
            hear=call.hear,
        )
    made, lost = translated(call, provider)
    told.native = False
    told.warnings += [sentence for sentence in lost if sentence not in told.warnings]
    if ear is not None and call.native is not None:  # another endpoint of the route may have spoken natively
        ear.speak("openai")
    return made


def translated(call: Spoken, provider: Provider) -> tuple[ModelCall, tuple[str, ...]]:
    """The call in chat form and what that lost; extension fields stay for an endpoint of the same dialect."""
    lost = tuple(f"The header {name} was not forwarded: the request was translated." for name, _ in call.native_headers)
    if call.spoken in provider.speaks and call.spoken != "responses":
        return ModelCall(call.exchange, call.kind, call.stream, call.body, call.traceparent, hear=call.hear), lost
    known = call.plain.get(provider.understands)
    if known is None:
        if call.spoken == "responses":
            body, more = plain(call.body)
        else:
            body, more = lower(call.body, call.subject, provider.understands)
        made = ModelCall(call.exchange, call.kind, call.stream, body, call.traceparent, hear=call.hear)
        known = call.plain[provider.understands] = made, (*lost, *more)
    return known


def fitting(call: Spoken, members: Sequence[M], provider_of: Callable[[M], Provider]) -> list[M]:
    """Those members that can be asked at all. Raises the first `RequestError` where none can."""
    fit: list[M] = []
    refused: RequestError | None = None
    for member in members:
        provider = provider_of(member)
        if not natively(call, provider):
            try:
                translated(call, provider)
            except RequestError as e:
                refused = refused or e
                continue
        fit.append(member)
    if not fit and refused is not None:
        raise refused
    return fit


def without_native(x: Exchange) -> Exchange:
    """`x` for a journey that must see or change its answer in chat form."""
    return replace(x, native={}) if x.native else x
