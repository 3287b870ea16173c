"""Reach a model: the endpoints that a release allows, in the order it chooses, until one has begun to answer (DESIGN §5.4).

The one retry owner: nothing below asks twice. Whom to ask is `order` (who may be asked `constraint`, who is passed over
`health`, who comes first `select`), what a failure means `retry`, what is asked twice at once `hedge`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Protocol

import msgspec

from noria.contracts.error import NoriaError, Unavailable, UpstreamError
from noria.contracts.exchange import Dialect, Exchange, ModelCall, ModelReply, Usage
from noria.contracts.release import Endpoint
from noria.contracts.routing import FallbackReason, Routing
from noria.contracts.stage import Provider
from noria.contracts.trace import Attempt
from noria.gateway.constraint import REGIONS_TAG
from noria.gateway.dialect import TRANSLATED, Spoken, fitting, spoken, voiced
from noria.gateway.facts import estimate
from noria.gateway.health import CALLERS
from noria.gateway.hedge import Lane, Race, idempotent
from noria.gateway.order import Order
from noria.gateway.retry import Kind, classify, pause
from noria.gateway.topic import Topics
from noria.gateway.traffic import Member, Traffic

NORIA_FIELDS = frozenset({"conversation", "variables"})
"""Request fields of ours, which no endpoint knows."""
LATEST_AGAIN_NS = 30_000_000_000
"""From an exchange's beginning: after it no endpoint is asked a second time."""
REASONS: dict[Kind, FallbackReason] = {"window": "context_window", "policy": "content_policy"}


class Gate(Protocol):
    """Where a stream goes; `committed` once content has left for the caller, after which no failover."""

    committed: bool

    def speak(self, dialect: Dialect) -> None:
        """The dialect of the next attempt's answer; asked for only where callers speak another than chat."""
        ...

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        ...

    def restart(self) -> None:
        """Forget what a failed attempt sent; only before the commit."""
        ...


class Tried(Protocol):
    """What attempts leave in the account."""

    attempts: list[Attempt]
    tries: int
    """Attempts begun."""
    endpoint: Endpoint | None
    model_ns: int
    first_ns: int | None
    """From the exchange's beginning to its first content."""
    hedged: list[Endpoint]
    """Endpoints whose answers were begun and not waited for: they may bill."""
    native: bool
    """Whether the last attempt was made in the caller's own dialect."""
    warnings: list[str]

    def hear(self, usage: Usage | None, /) -> None:
        """What the answer has used so far."""
        ...


class Router:
    """Sends a call to the endpoints of one release."""

    name = "model"
    behaviour = 1

    def __init__(
        self,
        route: Sequence[Endpoint],
        providers: Mapping[str, Provider],
        params: Mapping[str, object],
        *,
        routing: Routing | None = None,
        traffic: Traffic | None = None,
        topics: Topics | None = None,
    ) -> None:
        self._traffic = traffic or Traffic()
        self._routing = routing = routing or Routing()
        self._members = [Member(e, providers[e.name], self._traffic.health(e)) for e in route]
        self._order = Order(self._members, routing, self._traffic, topics)
        self._measured = routing.strategy == "least_latency" or (routing.hedge is not None and routing.hedge.after is None)
        self._fixed = self._order.fixed
        self._params = {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in params.items()}

    @property
    def ready(self) -> bool:
        """Whether at least one endpoint can be asked now."""
        return any(m.provider.ready is None for m in self._members)

    async def send(self, x: Exchange, gate: Gate, account: Tried, began: int) -> ModelReply:
        """The reply of the first endpoint that answers. `began` is the exchange's `perf_counter_ns`.

        Raises what the last endpoint tried said; an error that any endpoint would give (the caller's
        fault) is not tried elsewhere. `RequestError` (`no_model_qualifies`) where a constraint leaves nobody.
        """
        call = ModelCall(x.id, x.kind, x.stream, self._body(x), f"00-{x.trace}-{x.span}-01", hear=account.hear)
        traffic = self._traffic
        now = perf_counter_ns()
        budget = traffic.budget
        if now >= budget.edge_ns:
            budget.turn(now)
        budget.requests += 1
        if self._fixed and not traffic.board.out and REGIONS_TAG not in x.tags:
            order: Sequence[Member] = self._members
        else:
            order = await self._order.best(x, now)
        if x.dialect in TRANSLATED:
            call = spoken(x, call, self._params)
            if len(order) > 1:
                order = fitting(call, order, lambda m: m.provider)
        if self._routing.hedge is not None and len(order) > 1 and idempotent(call):
            return await _Sending(self, call, gate, account, began).hedged(order)
        if not order or order[0].provider.ready is not None:
            return await _Sending(self, call, gate, account, began).in_turn(order)
        try:
            return await self.attempt(order[0], call, gate, account, began)
        except (UpstreamError, Unavailable) as e:
            failure = e
        return await _Sending(self, call, gate, account, began).after(order[0], failure, order[1:])

    # -- one attempt --------------------------------------------------------------------------------

    async def attempt(self, member: Member, call: ModelCall, gate: Gate | Lane, account: Tried, began: int) -> ModelReply:
        """Ask one endpoint once, and note how it went. Raises `NoriaError`."""
        if isinstance(call, Spoken):
            call = voiced(call, member.provider, None if isinstance(gate, Lane) else gate, account)
        start = perf_counter_ns()
        health = member.health
        account.endpoint = member.endpoint
        account.tries += 1
        health.in_flight += 1
        trial = health.out != "ok" and health.tries(start)
        wait = member.patience.begin(gate, start) if call.stream else None
        status: int | None = None
        error = "cancelled"
        try:
            reply = await member.provider.send(call, gate.feed)
            if wait is not None and wait.expired:  # the cancellation is still to come
                await asyncio.sleep(0)
            status, error = reply.status, ""
            if reply.warnings:
                account.warnings += reply.warnings
            health.answered += 1
            health.in_a_row = 0
            if self._measured or health.out != "ok":
                self._went_well(member, start, account, began)
            return reply
        except asyncio.CancelledError:
            if wait is None or not wait.absorb():
                if isinstance(gate, Lane) and gate.lost:
                    error = "hedge_lost"
                    account.hedged.append(member.endpoint)
                raise
            late = self._too_late(member)
            error = late.code or ""
            self._went_wrong(member, late, start)
            raise late from None
        except NoriaError as e:
            status, error = getattr(e, "upstream_status", None), e.code or type(e).__name__
            self._went_wrong(member, e, start)
            raise
        finally:
            if wait is not None:
                member.patience.waits.discard(wait)
            health.in_flight -= 1
            if trial:
                health.trial = False
            took = perf_counter_ns() - start
            account.model_ns += took
            account.attempts.append(Attempt(member.endpoint.name, start - began, took, status, error))

    def _too_late(self, member: Member) -> UpstreamError:
        endpoint = member.endpoint
        return UpstreamError(
            f"The endpoint {endpoint.name!r} sent no content within {endpoint.timeouts.first:g} s.", code="upstream_timeout"
        )

    def _went_well(self, member: Member, start: int, account: Tried, began: int) -> None:
        now = perf_counter_ns()
        if member.health.recovers(start, now):
            self._traffic.board.note(member.health, out=False)
        if self._measured:
            first = account.first_ns
            member.health.waited(now - start if first is None else max(1, began + first - start), now)

    def _went_wrong(self, member: Member, error: NoriaError, start: int) -> None:
        if not isinstance(error, UpstreamError):
            return
        health, board = member.health, self._traffic.board
        was_well = health.well
        kind, now = classify(error), perf_counter_ns()
        if kind not in CALLERS:  # what a caller did wrong says nothing of the endpoint, and may repeat what it sent
            health.complained(str(error), now)
        if health.failed(kind, start, now, error.retry_after):
            board.note(health, out=True)
        elif health.well and not was_well:
            board.note(health, out=False)

    def _body(self, x: Exchange) -> dict[str, msgspec.Raw]:
        """The request as the model gets it: our own fields removed, the release's parameters filled in."""
        body = x.body
        if not NORIA_FIELDS.isdisjoint(body):
            body = {k: v for k, v in body.items() if k not in NORIA_FIELDS}
        return {**self._params, **body} if self._params else body

    # -- for one exchange's sending -----------------------------------------------------------------

    @property
    def routing(self) -> Routing:
        """How this release chooses."""
        return self._routing

    @property
    def traffic(self) -> Traffic:
        """What the worker's routers share."""
        return self._traffic


class _Sending:
    """One exchange on its way from endpoint to endpoint: made where more than one attempt may be needed."""

    def __init__(self, router: Router, call: ModelCall, gate: Gate, account: Tried, began: int) -> None:
        self._router = router
        self._routing = router.routing
        self._traffic = router.traffic
        self._call = call
        self._gate = gate
        self._account = account
        self._began = began
        self._failed: list[tuple[Member, Kind, NoriaError]] = []
        self._last: NoriaError | None = None
        self._larger_than: int | None = None

    async def in_turn(self, order: Sequence[Member]) -> ModelReply:
        """Each endpoint in its turn, then those again whose failure may pass."""
        for member in order:
            if self._larger_than is not None and (member.endpoint.context or 0) <= self._larger_than:
                continue
            unready = member.provider.ready
            if unready is not None:
                self._last = self._last or unready
                since = perf_counter_ns() - self._began
                self._account.attempts.append(Attempt(member.endpoint.name, since, 0, None, unready.code or "not_ready"))
                continue
            if not self._may():
                self._failed.clear()
                break
            try:
                return await self._ask(member)
            except (UpstreamError, Unavailable) as e:
                self._survive(member, e)
        return await self._again()

    async def after(self, member: Member, error: NoriaError, rest: Sequence[Member]) -> ModelReply:
        """As `in_turn`, when `member` has been asked already and failed with `error`."""
        self._survive(member, error)
        return await self.in_turn(rest)

    async def hedged(self, order: Sequence[Member]) -> ModelReply:
        """A race of the first two that are ready; where both fail, the others in their turn."""
        hedge = self._routing.hedge
        ready = [m for m in order if m.provider.ready is None]
        if hedge is None or len(ready) < 2:
            return await self.in_turn(order)
        after = hedge.after if hedge.after is not None else ready[0].health.p95()
        if after is None:  # too little is known of it
            return await self.in_turn(order)
        asked = list[Member]()

        async def ask(member: Member, lane: Lane) -> ModelReply:
            asked.append(member)
            return await self._router.attempt(member, self._call, lane, self._account, self._began)

        pair = ready[: 1 + hedge.most]
        race = Race(self._gate, self._call, self._told(pair))
        model_ns, start = self._account.model_ns, perf_counter_ns()
        try:
            return await race.run([partial(ask, m) for m in pair], after, self._may_hedge)
        except (UpstreamError, Unavailable) as e:
            if self._gate.committed:
                raise
            self._survive(asked[-1], e)
        finally:  # both waited at the same time
            self._account.model_ns = model_ns + perf_counter_ns() - start
        return await self.in_turn([m for m in order if m not in asked])

    def _told(self, pair: Sequence[Member]) -> Callable[[int], None]:
        """Whose answer it is, before its head leaves."""

        def won(lane: int) -> None:
            self._account.endpoint = pair[lane].endpoint
            self._traffic.counts["hedge_won"] += lane > 0

        return won

    async def _ask(self, member: Member) -> ModelReply:
        return await self._router.attempt(member, self._call, self._gate, self._account, self._began)

    def _may(self) -> bool:
        """Whether one more attempt may be made: always the first, then within the cap and the worker's budget."""
        tries = self._account.tries
        return not tries or (tries <= self._routing.retries and self._traffic.budget.allow(perf_counter_ns()))

    def _may_hedge(self) -> bool:
        may = self._may()
        self._traffic.counts["hedge"] += may
        return may

    def _survive(self, member: Member, error: NoriaError) -> None:
        """Go on after a failure, or raise it: when content has left, or when nobody else would do better."""
        self._last = error
        kind = classify(error)
        reason = REASONS.get(kind)
        if self._gate.committed or kind == "caller" or (reason is not None and reason not in self._routing.fallback_on):
            raise self._said(error)
        if kind == "window":
            self._larger_than = member.endpoint.context or estimate(bytes(self._call.body.get("messages", b"")))
        self._gate.restart()
        self._failed.append((member, kind, error))

    async def _again(self) -> ModelReply:
        """Those that failed once more, after a pause each, while attempts and time are left."""
        again = 0
        while self._failed and perf_counter_ns() - self._began < LATEST_AGAIN_NS:
            member, kind, error = self._failed.pop(0)
            again += 1
            wait = pause(again, kind, error.retry_after, self._traffic.random)
            if wait is None or not isinstance(error, UpstreamError) or member.provider.ready is not None:
                continue
            if not self._may():
                break
            self._traffic.counts["again"] += 1
            await asyncio.sleep(wait)
            try:
                return await self._ask(member)
            except (UpstreamError, Unavailable) as e:
                self._survive(member, e)
        raise self._said(self._last or Unavailable("This app has no model to ask.", code="no_endpoint"))

    def _said(self, error: NoriaError) -> NoriaError:
        """The error, with the word whether it has been tried more than once."""
        if isinstance(error, UpstreamError) and self._account.tries > 1:
            error.retried = True
        return error
