"""How fast a scope may ask, and what it may spend: one claim an exchange (DESIGN §5.2-3, §3a.11).

Requests and tokens count in whole minutes of UTC: never more than the limit in one of them, so at most twice the limit in
any 60 seconds. Exact in one worker; several share by leased slices (`gateway.lease`), which never pass a limit together
and leave at most (workers - 1) slices of it unused. Tokens are set aside by estimate and settled by usage.
"""

from __future__ import annotations

import math

from noria.contracts.error import LimitExceeded, StoreError
from noria.contracts.exchange import Exchange, Priority, Usage
from noria.contracts.port import Clock
from noria.contracts.release import Key, Limit, Snapshot
from noria.gateway.bank import PERMITS
from noria.gateway.bound import Bound, bound, limited, reserve_amount
from noria.gateway.budget import PLANS, Budgets, Journal, Purse, Reservation, Unkept
from noria.gateway.lease import Leases, Slice, Slices
from noria.gateway.queue import RANK, Line
from noria.gateway.scope import scopes

MINUTE_NS = 60_000_000_000
SOON = 1.0
"""Seconds that a caller is told to wait for one of the places of a limit of concurrency."""
Headers = list[tuple[str, str]]


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
        self.line: Line | None = None
        self.evaluated = 0
        self.acted = 0

    def at(self, now_ns: int) -> None:
        """Turn to the minute of `now_ns`."""
        if self.end_ns - MINUTE_NS <= now_ns < self.end_ns:
            return
        self.end_ns = (now_ns // MINUTE_NS + 1) * MINUTE_NS
        limit = self.limit
        if limit.requests_per_minute is not None:
            self.requests = self._next(self.requests, f"rate:{limit.id}:r", limit.requests_per_minute)
        if limit.tokens_per_minute is not None:
            self.tokens = self._next(self.tokens, f"rate:{limit.id}:t", limit.tokens_per_minute)
        if limit.concurrent is not None:
            self.permits = self._slices.open(self._tenant, PERMITS + limit.id, limit.concurrent, 0)

    def _next(self, old: Slice | None, name: str, ceiling: int) -> Slice:
        fresh = self._slices.open(self._tenant, f"{name}:{self.end_ns // MINUTE_NS}", ceiling, self.end_ns)
        if old is not None:
            fresh.demand = max(old.demand, old.drawn)
        return fresh

    def draw(self) -> bool:
        """Whether one more may enter by what is leased already."""
        requests, permits = self.requests, self.permits
        if self.line is not None and len(self.line):
            return False
        if requests is not None and not requests.draw(1):
            return False
        if permits is not None and not permits.draw(1):
            if requests is not None:
                requests.put_back(1)
            return False
        return True

    async def fill(self, now_ns: int) -> bool:
        """As `draw`, leasing more where needed. Raises `StoreError`."""
        self.at(now_ns)
        requests, permits = self.requests, self.permits
        if requests is not None and not await requests.fill(1, now_ns):
            return False
        entered = permits is None
        try:
            if permits is not None:
                entered = await permits.fill(1, now_ns)
        finally:
            if not entered and requests is not None:
                requests.put_back(1)
        return entered

    def undo(self) -> None:
        """One that had entered was not there."""
        if self.requests is not None:
            self.requests.put_back(1)
        self.leave()

    def leave(self) -> None:
        """One has left."""
        if self.permits is not None:
            self.permits.put_back(1)
        if self.line is not None:
            self.line.freed()


class Claim:
    """An exchange's place in the limits, and the money set aside for it; settled exactly once."""

    __slots__ = ("bound", "gates", "money", "plan", "tokens")

    def __init__(self, plan: tuple[Purse, ...]) -> None:
        self.plan = plan
        self.gates: list[Gate] | None = []
        """Those it has entered."""
        self.tokens: list[Slice] = []
        self.bound: Bound | None = None
        self.money: Reservation | None = None

    @property
    def amount(self) -> int | None:
        """Nano-dollars set aside under budgets; None where no budget applies."""
        return self.money.amount if self.money is not None else None

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
            gate.line = Line(lambda: gate.fill(self._clock.now_ns()), gate.undo, size=limit.queue_size)
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
        entered: list[Gate] = []
        claim.gates = entered
        done = False
        try:
            for gate in gates:
                gate.at(now)
                gate.evaluated += 1
                if gate.draw() or await self._wait(gate, x, now):
                    entered.append(gate)
            done = True
        finally:
            if not done:
                for gate in entered:
                    gate.undo()
            told(gates, now, headers)
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

    def _refused(self, gate: Gate) -> None:
        self.acted += 1
        gate.acted += 1

    async def _wait(self, gate: Gate, x: Exchange, now: int) -> bool:
        """Whether a place was taken; False where the keeper is away and nothing was. Raises `LimitExceeded`."""
        line = gate.line
        try:
            if (line is None or not len(line)) and await gate.fill(now):
                return True
            if line is not None and await line.wait(priority_of(x), gate.limit.queue_seconds):
                return True
        except StoreError:
            self.unchecked += 1
            return False
        except LimitExceeded as full:
            self._refused(gate)
            raise refusal(gate, now, waited=full.message) from None
        self._refused(gate)
        raise refusal(gate, now, waited=f"none came free in {gate.limit.queue_seconds:g} s" if line is not None else "")

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
                    raise refusal(gate, now, tokens=amount)
            except StoreError:
                self.unchecked += 1
                continue
            if tokens.low(now):
                tokens.renew(now)
            claim.tokens.append(tokens)

    # -- money --------------------------------------------------------------------------------------

    async def _money(self, claim: Claim, x: Exchange) -> Reservation:
        amount = reserve_amount(x, claim.bound)
        if amount is None:
            assert x.release is not None
            names = ", ".join(repr(e.name) for e in x.release.route if e.price is None)
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
    for unit in ("requests", "tokens"):
        slices = [(s, g) for g in gates if (s := getattr(g, unit)) is not None]
        if not slices:
            continue
        left, ceiling, end = min((max(0, s.left + s.room), s.ceiling, g.end_ns) for s, g in slices)
        headers += [
            (f"x-ratelimit-limit-{unit}", str(ceiling)),
            (f"x-ratelimit-remaining-{unit}", str(min(left, ceiling))),
            (f"x-ratelimit-reset-{unit}", duration(end - now_ns)),
        ]


def duration(ns: int) -> str:
    """A time as OpenAI's headers have it.

    >>> duration(12_000_000), duration(1_500_000_000), duration(360_000_000_000)
    ('12ms', '1.5s', '6m0s')
    """
    ms = max(0, math.ceil(ns / 1e6))
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
