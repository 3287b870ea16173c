"""How fast a scope may ask, and what it may spend: one claim an exchange (DESIGN §5.2-3, §3a.11).

Requests and tokens count in whole minutes of UTC: never more than the limit in one of them, so at most twice the limit in
any 60 seconds. Exact in one worker; several share by leased slices (`gateway.lease`), which never pass a limit together
and leave at most (workers - 1) slices of it unused. Tokens are set aside by estimate and settled by usage. The bounds are
derived in docs/explanation/limits.md.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from noria.contracts.error import LimitExceeded, StoreError
from noria.contracts.exchange import Exchange, Priority, Usage
from noria.contracts.port import Clock
from noria.contracts.release import Key, Limit, Snapshot
from noria.gateway.bank import PERMITS, RATE
from noria.gateway.bound import Bound, bound, limited, reserve_amount
from noria.gateway.budget import PLANS, Budgets, Journal, Purse, Reservation, Unkept
from noria.gateway.lease import Leases, Slice, Slices
from noria.gateway.queue import RANK, Line
from noria.gateway.scope import scopes

MINUTE_NS = 60_000_000_000
LATE_NS = MINUTE_NS
"""How long a minute's account outlives it: a renewal that the keeper sees after the minute's end must not find it empty."""
SOON = 1.0
"""Seconds that a caller is told to wait for one of the places of a limit of concurrency."""
Headers = list[tuple[str, str]]
_TOLD = {
    unit: (f"x-ratelimit-limit-{unit}", f"x-ratelimit-remaining-{unit}", f"x-ratelimit-reset-{unit}")
    for unit in ("requests", "tokens")
}
"""The headers that tell of a limit, by its unit: OpenAI's names."""
Unit = Literal["requests", "tokens", "concurrent"]
"""What a limit counts: exchanges begun in a minute, tokens of a minute, exchanges under way."""


def minute_end(now_ns: int) -> int:
    """When the minute of a moment is over (ns)."""
    return (now_ns // MINUTE_NS + 1) * MINUTE_NS


def account_of(limit: Limit, unit: Unit, end_ns: int) -> str:
    """The shared counter of one unit of a limit, in the minute that ends at `end_ns`."""
    if unit == "concurrent":
        return PERMITS + limit.id
    return f"{RATE}{limit.id}:{unit[0]}:{end_ns // MINUTE_NS}"


class Gate:
    """One limit in this worker."""

    __slots__ = ("_slices", "_tenant", "acted", "end_ns", "evaluated", "limit", "line", "permits", "requests", "tokens")

    def __init__(self, limit: Limit, tenant: str, slices: Slices) -> None:
        self.limit = limit
        self._tenant = tenant
        self._slices = slices
        self.end_ns = 0
        self.requests: Slice | None = None
        self.tokens: Slice | None = None
        self.permits: Slice | None = None
        self.line: Line[Place] | None = None
        self.evaluated = 0
        self.acted = 0

    def at(self, now_ns: int) -> None:
        """Turn to the minute of `now_ns`; never back to one that is over, unless the clock was set."""
        if now_ns < self.end_ns <= now_ns + 2 * MINUTE_NS:
            return
        self.end_ns = minute_end(now_ns)
        limit = self.limit
        if limit.requests_per_minute is not None:
            self.requests = self._next(self.requests, "requests", limit.requests_per_minute)
        if limit.tokens_per_minute is not None:
            self.tokens = self._next(self.tokens, "tokens", limit.tokens_per_minute)
        if limit.concurrent is not None:
            account = account_of(limit, "concurrent", self.end_ns)
            self.permits = self._slices.open(self._tenant, account, limit.concurrent, 0)

    def _next(self, old: Slice | None, unit: Unit, ceiling: int) -> Slice:
        account = account_of(self.limit, unit, self.end_ns)
        fresh = self._slices.open(self._tenant, account, ceiling, self.end_ns + LATE_NS)
        if old is not None:
            fresh.demand = max(old.demand, old.drawn)
        return fresh

    def draw(self) -> Place | None:
        """A place by what is leased already."""
        requests, permits = self.requests, self.permits
        if self.line is not None and len(self.line):
            return None
        if requests is not None and not requests.draw(1):
            return None
        if permits is not None and not permits.draw(1):
            if requests is not None:
                requests.put_back(1)
            return None
        return Place(self, requests)

    async def fill(self, now_ns: int) -> Place | None:
        """As `draw`, leasing more where needed. Raises `StoreError`."""
        self.at(now_ns)
        requests, permits = self.requests, self.permits
        if requests is not None and not await requests.fill(1, now_ns):
            return None
        entered = permits is None
        try:
            if permits is not None:
                entered = await permits.fill(1, now_ns)
        finally:
            if not entered and requests is not None:
                requests.put_back(1)
        return Place(self, requests) if entered else None

    def leave(self) -> None:
        """One has left."""
        if self.permits is not None:
            self.permits.put_back(1)
        if self.line is not None:
            self.line.freed()


class Place(NamedTuple):
    """An exchange's place in one limit, and the minute that it counts in: by now the gate may be in the next."""

    gate: Gate
    requests: Slice | None

    def undo(self) -> None:
        """It was not there."""
        if self.requests is not None:
            self.requests.put_back(1)
        self.gate.leave()


class Claim:
    """An exchange's place in the limits, and the money set aside for it; settled exactly once."""

    __slots__ = ("bound", "gates", "money", "plan", "tokens", "unchecked")

    def __init__(self, plan: tuple[Purse, ...]) -> None:
        self.plan = plan
        self.unchecked: tuple[str, ...] = ()
        """The limits that it was let through without: the keeper was away."""
        self.gates: list[Gate] | None = []
        """Those it has entered."""
        self.tokens: list[Slice] = []
        self.bound: Bound | None = None
        self.money: Reservation | None = None

    @property
    def amount(self) -> int | None:
        """Nano-dollars set aside under budgets; None where no budget applies."""
        return self.money.amount if self.money is not None else None

    @property
    def warnings(self) -> list[str]:
        """What its trace must say of how it was let in."""
        return [
            f"The rate limit {name!r} was not checked: the keeper did not answer." for name in dict.fromkeys(self.unchecked)
        ]

    def settle(self, cost: int | None, usage: Usage) -> None:
        """Pay, free the rest, leave. Later calls do nothing. Never waits, never raises."""
        gates, self.gates = self.gates, None
        if gates is None:
            return
        if self.money is not None:
            self.money.settle(cost)
        if self.tokens and self.bound is not None:
            known = usage.input is not None
            real = (usage.input or 0) + (usage.output or 0) if known else 0 if cost == 0 else self.bound.estimate
            for s in self.tokens:
                s.pay(self.bound.estimate, real)
        for gate in gates:
            gate.leave()


class Limits:
    """Takes an exchange's share of every limit and budget that it falls under, before the model is called."""

    def __init__(self, leases: Leases, clock: Clock, *, workers: int = 1, journal: Journal | None = None) -> None:
        self._clock = clock
        self.slices = Slices(leases, workers=workers)
        self.budgets = Budgets(self.slices, journal or Unkept())
        self._by_scope: dict[str, list[Gate]] = {}
        self._own: dict[str, Gate] = {}
        self._plans: dict[tuple[str, str], tuple[Gate, ...]] = {}
        self._tenant = "local"
        self.evaluated = 0
        self.acted = 0
        self.unchecked = 0
        """Requests let through because the keeper was away (rates only; money never)."""

    def adopt(self, snapshot: Snapshot) -> None:
        """The limits and budgets of a snapshot, from now on; what is under way keeps its places."""
        self.budgets.adopt(snapshot)
        self._tenant = snapshot.tenant
        old = {g.limit: g for gates in self._by_scope.values() for g in gates}
        self._by_scope = {}
        for limit in snapshot.limits:
            self._by_scope.setdefault(limit.scope, []).append(old.get(limit) or self._gate(limit))
        self._plans = {}
        if len(self._own) > PLANS:
            self._own = {}

    def _gate(self, limit: Limit) -> Gate:
        gate = Gate(limit, self._tenant, self.slices)
        if limit.queue_seconds > 0:
            gate.line = Line(lambda: gate.fill(self._clock.now_ns()), size=limit.queue_size)
        return gate

    # -- the journey --------------------------------------------------------------------------------

    async def enter(self, x: Exchange, headers: Headers) -> Claim | None:
        """A place in every limit of requests and concurrency; None where neither limit nor budget applies.

        Appends what the answer's head says of them to `headers`. Raises `LimitExceeded` (429).
        """
        gates, plan = self._gates(x), self.budgets.plan(x)
        if not gates and not plan:
            return None
        self.evaluated += 1
        claim = Claim(plan)
        if not gates:
            return claim
        now = self._clock.now_ns()
        entered: list[Place] = []
        done = False
        try:
            for gate in gates:
                gate.at(now)
                gate.evaluated += 1
                place = gate.draw()
                if place is None:
                    place = await self._wait(gate, x, now)
                    now = self._clock.now_ns()
                if place is not None:
                    entered.append(place)
                else:
                    self._let_through(claim, gate)
            done = True
        finally:
            if not done:
                for place in entered:
                    place.undo()
            told(gates, self._clock.now_ns() if not done else now, headers)
        claim.gates = [place.gate for place in entered]
        return claim

    async def reserve(self, claim: Claim | None, x: Exchange) -> Exchange:
        """`x`, bounded in cost where a budget applies, once tokens and money are set aside for it.

        `x` is what the model will be sent, so that the prompt template and remembered turns are counted.
        Raises `LimitExceeded` (429) or `Unavailable` (503).
        """
        if claim is None:
            return x
        if claim.plan:
            x = limited(x)
        if claim.plan or any(g.tokens is not None for g in claim.gates or ()):
            claim.bound = bound(x)
            await self._tokens(claim)
        if claim.plan:
            claim.money = await self._money(claim, x)
        return x

    # -- rates --------------------------------------------------------------------------------------

    def _gates(self, x: Exchange) -> tuple[Gate, ...]:
        key = x.key
        if not self._by_scope and (key is None or key.rpm is None):
            return ()
        if x.tags:
            return self._plan(x)
        name = (key.id if key is not None else "", x.model)
        found = self._plans.get(name)
        if found is None or (key is not None and key.rpm is not None and found[-1].limit.requests_per_minute != key.rpm):
            if len(self._plans) >= PLANS:
                self._plans.clear()
            found = self._plans[name] = self._plan(x)
        return found

    def _plan(self, x: Exchange) -> tuple[Gate, ...]:
        found = [g for scope in scopes(x) for g in self._by_scope.get(scope, ())]
        if x.key is not None and x.key.rpm is not None:
            own = self._own.get(x.key.id)
            if own is None or own.limit.requests_per_minute != x.key.rpm:
                own = self._own[x.key.id] = self._gate(own_limit(x.key))
            found.append(own)
        return tuple(found)

    @property
    def queued(self) -> int:
        """Requests that wait for a place."""
        return sum(len(g.line) for gates in self._by_scope.values() for g in gates if g.line is not None)

    def policies(self) -> dict[str, tuple[int, int]]:
        """(evaluated, acted) of each limit and budget of the configuration, since it is in force here."""
        gates = {f"limit:{g.limit.id}": (g.evaluated, g.acted) for gates in self._by_scope.values() for g in gates}
        return gates | self.budgets.policies()

    def _let_through(self, claim: Claim, gate: Gate) -> None:
        self.unchecked += 1
        claim.unchecked = (*claim.unchecked, gate.limit.id)

    def _refused(self, gate: Gate) -> None:
        self.acted += 1
        gate.acted += 1

    async def _wait(self, gate: Gate, x: Exchange, now: int) -> Place | None:
        """The place that was taken; None where the keeper is away and none was. Raises `LimitExceeded`."""
        line = gate.line
        try:
            if (line is None or not len(line)) and (place := await gate.fill(now)):
                return place
            if line is not None and (place := await line.wait(priority_of(x), gate.limit.queue_seconds)):
                return place
        except StoreError:
            return None
        except LimitExceeded as full:
            self._refused(gate)
            raise refusal(gate, self._clock.now_ns(), waited=full.message) from None
        self._refused(gate)
        waited = f"none came free in {gate.limit.queue_seconds:g} s" if line is not None else ""
        raise refusal(gate, self._clock.now_ns(), waited=waited)

    async def _tokens(self, claim: Claim) -> None:
        assert claim.bound is not None
        amount, now = claim.bound.estimate, self._clock.now_ns()
        for gate in claim.gates or ():
            if gate.limit.tokens_per_minute is None:
                continue
            gate.at(now)
            tokens = gate.tokens
            assert tokens is not None
            if amount > gate.limit.tokens_per_minute:
                self._refused(gate)
                raise too_large(gate, amount)
            try:
                if not tokens.draw(amount) and not await tokens.fill(amount, now):
                    self._refused(gate)
                    raise refusal(gate, self._clock.now_ns(), tokens=amount)
            except StoreError:
                self._let_through(claim, gate)
                continue
            if tokens.low(now):
                tokens.renew(now)
            claim.tokens.append(tokens)

    # -- money --------------------------------------------------------------------------------------

    async def _money(self, claim: Claim, x: Exchange) -> Reservation:
        amount = reserve_amount(x, claim.bound)
        if amount is None:
            assert x.release is not None
            names = ", ".join(repr(e.name) for e in x.release.route if e.price_at(x.started_ns) is None)
            self.acted += 1
            raise LimitExceeded(
                f"A budget applies, but the price of the model {names} is not known.",
                code="price_unknown",
                hint="Give the model a `price` in noria.yaml.",
                lasting=True,
            )
        try:
            return await self.budgets.reserve(x, claim.plan, amount, self._clock.now_ns())
        except LimitExceeded:
            self.acted += 1
            raise

    # -- upkeep -------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Once a second. Raises `StoreError` where the keeper is away; nothing is lost by it."""
        await self.slices.tick(self._clock.now_ns())

    async def give_back(self) -> None:
        """Return what is free (on drain); where the keeper is away it finds out by itself."""
        try:
            await self.slices.tell(give_back=True)
        except StoreError:
            return


def priority_of(x: Exchange) -> Priority:
    """What the caller asks for, at most what the key may; without a key at most `normal`."""
    most: Priority = x.key.priority if x.key is not None else "normal"
    return x.priority if RANK[x.priority] >= RANK[most] else most


def own_limit(key: Key) -> Limit:
    """A key's own rate."""
    return Limit(f"key:{key.id}", f"key:{key.id}", requests_per_minute=key.rpm)


def refusal(gate: Gate, now_ns: int, *, tokens: int = 0, waited: str = "") -> LimitExceeded:
    """429 that says which scope and limit, and when to come again."""
    limit = gate.limit
    minute = max(0.001, (gate.end_ns - now_ns) / 1e9)
    if tokens:
        what, number, wait = "tokens per minute", limit.tokens_per_minute, minute
    elif gate.requests is not None and (gate.permits is None or gate.requests.left + gate.requests.room < 1):
        what, number, wait = "requests per minute", limit.requests_per_minute, minute
    else:
        what, number, wait = "requests at a time", limit.concurrent, SOON
    who = "this key" if limit.scope.startswith("key:") else limit.scope
    reason = f" ({waited})" if waited else f" (this request may need {tokens})" if tokens else ""
    return LimitExceeded(
        f"Rate limit of {who} reached: {number} {what}{reason}.",
        code="rate_limit_exceeded",
        retry_after=wait,
        details={"limit": limit.id, "scope": limit.scope, "unit": what, "limit_value": number, "retry_after_s": round(wait, 3)},
    )


def too_large(gate: Gate, amount: int) -> LimitExceeded:
    """No waiting helps a request that needs more than a whole minute's tokens."""
    limit = gate.limit
    return LimitExceeded(
        f"This request may take {amount} tokens; {limit.scope} has {limit.tokens_per_minute} per minute in all.",
        code="rate_limit_exceeded",
        hint="Lower max_tokens, or shorten the prompt.",
        details={"limit": limit.id, "scope": limit.scope, "unit": "tokens per minute", "limit_value": limit.tokens_per_minute},
        lasting=True,
    )


def told(gates: tuple[Gate, ...], now_ns: int, headers: Headers) -> None:
    """`x-ratelimit-*` of the tightest limit of each kind, as of the last lease of this worker (OpenAI's names and durations)."""
    end, until = 0, ""
    for unit, (limit, remaining, reset) in _TOLD.items():
        tightest: tuple[int, int, int] | None = None
        for gate in gates:
            s: Slice | None = getattr(gate, unit)
            if s is not None:
                found = s.left + s.room, s.ceiling, gate.end_ns
                tightest = found if tightest is None or found < tightest else tightest
        if tightest is not None:
            left, ceiling, ends = tightest
            if ends != end:  # most often all limits turn with the same minute
                end, until = ends, duration(ends - now_ns)
            headers += (limit, str(ceiling)), (remaining, str(min(max(0, left), ceiling))), (reset, until)


def duration(ns: int) -> str:
    """A time as OpenAI's headers have it.

    >>> duration(12_000_000), duration(1_500_000_000), duration(360_000_000_000)
    ('12ms', '1.5s', '6m0s')
    """
    ms = max(0, math.ceil(ns / 1e6))
    if ms < 60_000:
        return f"{ms / 1000:g}s" if ms >= 1000 else f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes}m{rest / 1000:g}s"
