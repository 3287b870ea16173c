"""Reach a model: the endpoints of a release in order, until one has begun to answer (DESIGN §5.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import Protocol

import msgspec

from noria.contracts.error import NoriaError, Unavailable, UpstreamError
from noria.contracts.exchange import Exchange, ModelCall, ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.stage import Provider
from noria.contracts.trace import Attempt

NORIA_FIELDS = frozenset({"conversation", "variables"})
"""Request fields of ours, which no endpoint knows."""


class Gate(Protocol):
    """Where a stream goes; `committed` once content has left for the caller, after which no failover."""

    committed: bool

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        ...

    def restart(self) -> None:
        """Forget what a failed attempt sent; only before the commit."""
        ...


class Tried(Protocol):
    """What an attempt leaves in the account."""

    attempts: list[Attempt]
    endpoint: Endpoint | None
    model_ns: int


class Router:
    """Sends a call to the first endpoint of the route that answers."""

    name = "model"
    behaviour = 1

    def __init__(self, route: Sequence[Endpoint], providers: Mapping[str, Provider], params: Mapping[str, object]) -> None:
        self._route = [(e, providers[e.name]) for e in route]
        self._params = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in params.items()}

    @property
    def ready(self) -> bool:
        """Whether at least one endpoint can be asked now."""
        return any(p.ready is None for _, p in self._route)

    async def send(self, x: Exchange, gate: Gate, account: Tried, began: int) -> ModelReply:
        """The reply of the first endpoint that answers. `began` is the exchange's `perf_counter_ns`.

        Raises what the last endpoint tried said; an error that any endpoint would give (the caller's
        fault) is not tried elsewhere.
        """
        call = ModelCall(x.id, x.kind, x.stream, self._body(x), f"00-{x.trace}-{x.span}-01")
        failure: NoriaError | None = None
        for endpoint, provider in self._route:
            unready = provider.ready
            if unready is not None:
                failure = failure or unready
                account.attempts.append(Attempt(endpoint.name, perf_counter_ns() - began, 0, None, unready.code or "not_ready"))
                continue
            try:
                return await self._attempt(endpoint, provider, call, gate=gate, account=account, began=began)
            except UpstreamError as e:
                failure = e
                if gate.committed or e.callers_fault:
                    raise
                gate.restart()
            except Unavailable as e:  # a local model that went away between the look and the call
                failure = e
                if gate.committed:
                    raise
                gate.restart()
        raise failure or Unavailable("This app has no model to ask.", code="no_endpoint")

    async def _attempt(
        self, endpoint: Endpoint, provider: Provider, call: ModelCall, *, gate: Gate, account: Tried, began: int
    ) -> ModelReply:
        start = perf_counter_ns()
        account.endpoint = endpoint
        status: int | None = None
        error = "cancelled"
        try:
            reply = await provider.send(call, gate.feed)
            status, error = reply.status, ""
            return reply
        except UpstreamError as e:
            status, error = e.upstream_status, e.code or "upstream_error"
            raise
        except NoriaError as e:
            error = e.code or type(e).__name__
            raise
        finally:
            took = perf_counter_ns() - start
            account.model_ns += took
            account.attempts.append(Attempt(endpoint.name, start - began, took, status, error))

    def _body(self, x: Exchange) -> dict[str, msgspec.Raw]:
        """The request as the model gets it: our own fields removed, the release's parameters filled in."""
        body = x.body
        if not NORIA_FIELDS.isdisjoint(body):
            body = {k: v for k, v in body.items() if k not in NORIA_FIELDS}
        return {**self._params, **body} if self._params else body
