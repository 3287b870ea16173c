"""Slices of shared amounts: a worker leases some, spends it without asking, and gives back what it does not need.

An account is a Counter under a ceiling: a budget in one window, a limit in one minute, the permits of a limit. What every
worker has taken of it never passes the ceiling, so what they spend cannot either. What one holds idle, others miss: at most
`ceiling / (IDLE_SHARE × workers)` a worker (`Slice.share`); what is more goes back within `SOON`. The bounds that follow are
derived in docs/explanation/limits.md.

Operations on a slice are numbered, and each says how much the worker believes to hold (`Want.taken`): a grant whose answer
was lost, or that came after the worker had given up, is thereby found and taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from noria.contracts.error import StoreError

IDLE_SHARE = 8
"""The part of the ceiling that all workers of a node together may hold idle: one in so many."""
DRY_NS = 100_000_000
"""How long a refusal is believed without asking again."""
PAUSE_NS = 50_000_000
"""Least time between two renewals ahead of need."""
IDLE_TICKS = 2
"""Seconds after which a slice that nobody spends from is given back."""
SOON = 0.02
"""Seconds after which what is more than the share goes back."""
LATE = 0.005
"""Seconds that a renewal should take at most while a request waits for it (DESIGN §3a.11); longer ones are counted."""
AWAY, RETRY = 2.0, 0.25
"""Seconds for which nobody waits for a renewal once one has failed slowly, and between two attempts meanwhile."""
SIGN_OF_LIFE = 2
"""Seconds after which a worker that has nothing to tell says so."""


class Want(msgspec.Struct, frozen=True, array_like=True):
    """A request for a slice: at least `least`, better `want`. `taken` and `paid` as in `Holding`."""

    holder: str
    tenant: str
    account: str
    op: int
    taken: int
    paid: int
    want: int
    least: int
    ceiling: int
    expires_ns: int


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """What was granted (0 = nothing), what the ceiling leaves after it, and how much of the rest is spent for good."""

    amount: int
    room: int = 0
    used: int = 0


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """What a holder has of an account since its start: `taken` = granted minus given back, `paid` = spent for good, `free` = what
    of it lies idle now. Operations up to `op` have ended.
    """

    account: str
    op: int
    taken: int
    paid: int
    free: int = 0


class Leases(Protocol):
    """The shared accounts, as a worker reaches them. Raises `StoreError` where the keeper is away."""

    @property
    def holder(self) -> str:
        """Who takes: this worker, this life of it."""
        ...

    async def take(self, want: Want) -> Grant:
        """A slice; all grants together never pass the ceiling."""
        ...

    async def hold(self, tenant: str, holdings: list[Holding], *, full: bool) -> bool:
        """Tell what is held (`full`: all of it); what is held less than before goes back. Whether all of it must be told."""
        ...


class Reach:
    """Whether the shared accounts answer: while they do not, requests are decided without waiting for them."""

    __slots__ = ("_away_until", "_retry_at", "late")

    def __init__(self) -> None:
        self._away_until = 0.0
        self._retry_at = 0.0
        self.late = 0
        """Renewals that a request waited for longer than `LATE`."""

    def away(self, now: float) -> bool:
        """Whether an answer is not worth waiting for (`now`: the loop's time)."""
        return now < self._away_until

    def worth_a_try(self, now: float) -> bool:
        """Whether to ask all the same, with nobody waiting."""
        if now < self._retry_at:
            return False
        self._retry_at = now + RETRY
        return True

    def answered(self) -> None:
        """They did."""
        self._away_until = 0.0

    def failed(self, now: float, took: float) -> None:
        """They did not; a failure that is told at once costs nobody time."""
        if took > LATE or self._away_until:
            self._away_until = now + AWAY


class Slice:
    """What is left of the amounts that this worker has leased of one account."""

    __slots__ = (
        "_excess", "_leases", "_reach", "account", "ceiling", "demand", "drawn", "dry", "dry_until", "expires_ns", "idle", "left",
        "op", "paid", "renewal", "renewed_ns", "room", "taken", "tenant", "told", "used", "workers",
    )  # fmt: skip

    def __init__(
        self,
        leases: Leases,
        tenant: str,
        account: str,
        *,
        ceiling: int,
        expires_ns: int,
        workers: int,
        reach: Reach | None = None,
        excess: Callable[[Slice], None] | None = None,
    ) -> None:
        self._leases = leases
        self._reach = reach or Reach()
        self._excess = excess
        self.tenant = tenant
        self.account = account
        self.ceiling = ceiling
        self.expires_ns = expires_ns
        self.workers = workers
        self.left = 0
        self.taken = 0
        self.paid = 0
        self.op = 0
        self.room = ceiling
        """What others may still take, as of the last answer."""
        self.used = 0
        self.demand = 0
        """What was drawn in a recent second."""
        self.drawn = 0
        self.idle = 0
        self.dry = 0
        self.dry_until = 0
        self.renewed_ns = 0
        self.renewal: asyncio.Task[bool] | None = None
        self.told = (0, 0, 0, 0)

    def draw(self, amount: int) -> bool:
        """Whether there was enough; then it is taken off."""
        if self.left < amount:
            return False
        self.left -= amount
        self.drawn += amount
        return True

    def put_back(self, amount: int) -> None:
        """What was drawn and not needed."""
        self.left += amount
        if self.left > self.share and self._excess is not None:
            self._excess(self)

    def pay(self, drawn: int, cost: int) -> None:
        """Of what was `drawn`, `cost` is spent for good; the rest is free again. A cost above it is taken from what is left."""
        self.paid += cost
        self.put_back(drawn - cost)

    def low(self, now_ns: int) -> bool:
        """Whether to renew ahead of need."""
        return self.left < self.demand >> 1 and self.renewal is None and now_ns - self.renewed_ns > PAUSE_NS and self.room > 0

    def renew(self, now_ns: int) -> None:
        """Renew in the background."""
        self.renewed_ns = now_ns
        self._begin(1)

    async def fill(self, amount: int, now_ns: int) -> bool:
        """Draw `amount`, leasing more where needed; False where the ceiling leaves too little. Raises `StoreError`.

        One renewal at a time; it goes on where its caller leaves, so that nothing that was granted is lost.
        """
        while not self.draw(amount):
            now = asyncio.get_running_loop().time()
            mine = self.renewal is None
            if mine and now_ns < self.dry_until and amount >= self.dry:
                return False
            if self._reach.away(now):
                if mine and self._reach.worth_a_try(now):
                    self._begin(amount - self.left)
                raise StoreError("The shared accounts do not answer.", code="keeper_away")
            granted = await asyncio.shield(self.renewal or self._begin(amount - self.left))
            self._reach.late += asyncio.get_running_loop().time() - now > LATE
            if mine and not granted and self.left < amount:
                self.dry, self.dry_until = amount, now_ns + DRY_NS
                return False
        return True

    @property
    def share(self) -> int:
        """What one worker may hold idle."""
        return self.ceiling // (IDLE_SHARE * self.workers)

    @property
    def size(self) -> int:
        """How much to lease beyond what is needed now: a second's demand, at most the share."""
        return min(max(self.demand, self.drawn), self.share)

    def _begin(self, least: int) -> asyncio.Task[bool]:
        self.renewal = asyncio.ensure_future(self._take(least))
        self.renewal.add_done_callback(_heeded)
        return self.renewal

    async def _take(self, least: int) -> bool:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            self.op += 1
            want = Want(
                self._leases.holder, self.tenant, self.account, self.op, self.taken, self.paid,
                max(least, self.size), least, self.ceiling, self.expires_ns,
            )  # fmt: skip
            grant = await self._leases.take(want)
        except StoreError:
            self._reach.failed(loop.time(), loop.time() - began)
            raise
        else:
            self._reach.answered()
            self.taken += grant.amount
            self.left += grant.amount
            self.room, self.used = grant.room, grant.used
            return grant.amount > 0
        finally:
            self.renewal = None

    def tick(self) -> None:
        """Once a second: learn the demand, free what is not needed, lease what was used beyond the estimate."""
        drawn, self.drawn = self.drawn, 0
        self.demand = max(drawn, self.demand >> 1)
        self.idle = 0 if drawn else self.idle + 1
        if self.renewal is not None:
            return
        if self.left < 0 < self.room:
            self._begin(min(-self.left, self.room))
        elif self.left > 0 and self.idle >= IDLE_TICKS:
            self.release(self.left)
        elif self.left > 4 * self.demand:
            self.release(self.left - 2 * self.demand)
        else:
            self.shed()

    def shed(self) -> None:
        """Give back what is more than the share."""
        if self.renewal is None and self.left > self.share:
            self.release(self.left - self.share)

    def release(self, amount: int) -> None:
        """Give back; the next report says so."""
        self.op += 1
        self.left -= amount
        self.taken -= amount
        self.dry_until = 0

    def report(self) -> Holding | None:
        """What to tell, where it has changed; None while an operation is under way."""
        state = (self.op, self.taken, self.paid, self.left)
        if state == self.told or self.renewal is not None:
            return None
        self.told = state
        return self.holding()

    def holding(self) -> Holding:
        """What is held now. An operation under way has not ended."""
        return Holding(self.account, self.op - (self.renewal is not None), self.taken, self.paid, self.left)


def _heeded(renewal: asyncio.Task[bool]) -> None:
    """A renewal that failed while nobody waited for it is tried again by whoever needs it."""
    if not renewal.cancelled():
        renewal.exception()


class Slices:
    """The slices of a worker."""

    def __init__(self, leases: Leases, *, workers: int) -> None:
        self._leases = leases
        self.workers = max(1, workers)
        self.reach = Reach()
        self._by_account: dict[tuple[str, str], Slice] = {}
        self._above: dict[Slice, None] = {}
        self._soon: asyncio.Task[None] | None = None
        self._telling = asyncio.Lock()
        self._full = True
        self._ticks = 0

    def open(self, tenant: str, account: str, ceiling: int, expires_ns: int) -> Slice:
        """The slice of an account, under the ceiling that it has now."""
        found = self._by_account.get((tenant, account))
        if found is None:
            found = self._by_account[tenant, account] = Slice(
                self._leases, tenant, account, ceiling=ceiling, expires_ns=expires_ns, workers=self.workers,
                reach=self.reach, excess=self._excess,
            )  # fmt: skip
        if found.ceiling != ceiling:
            found.ceiling, found.dry_until = ceiling, 0
        return found

    def _excess(self, s: Slice) -> None:
        """One holds more than its share: others may miss it."""
        self._above[s] = None
        if self._soon is None:
            self._soon = asyncio.ensure_future(self._give_excess())

    async def _give_excess(self) -> None:
        await asyncio.sleep(SOON)  # what comes back is used again under load: look when the moment is over
        above, self._above, self._soon = self._above, {}, None
        for s in above:
            s.shed()
        try:
            await self._tell(list(above), full=False)
        except StoreError:
            return  # the next report tells all

    def __iter__(self) -> Iterator[Slice]:
        return iter(list(self._by_account.values()))

    async def tick(self, now_ns: int) -> None:
        """Once a second: free what is idle, tell what has changed. Raises `StoreError`; told again the next time."""
        self._ticks += 1
        for key, s in list(self._by_account.items()):
            if s.expires_ns and s.expires_ns <= now_ns and s.renewal is None:
                del self._by_account[key]
                continue
            s.tick()
        await self.tell()

    async def tell(self, *, give_back: bool = False) -> None:
        """Report; with `give_back` everything free goes back first (on drain)."""
        if give_back:
            for s in self:
                if s.left > 0 and s.renewal is None:
                    s.release(s.left)
        await self._tell(list(self), full=self._full, alive=self._full or self._ticks % SIGN_OF_LIFE == 0)

    async def _tell(self, slices: list[Slice], *, full: bool, alive: bool = False) -> None:
        """One report at a time: a later one must not be overtaken. `alive`: say something, even if nothing has changed."""
        async with self._telling:
            by_tenant: dict[str, list[Holding]] = {}
            for s in slices:
                holding = s.holding() if full else s.report()
                if holding is not None:
                    by_tenant.setdefault(s.tenant, []).append(holding)
            if not by_tenant and alive:
                by_tenant[""] = []  # a keeper that has begun anew asks for all of it; that nothing is held must be known too
            if not by_tenant:
                return
            before, self._full = self._full, True  # until the report has arrived
            again = before and not full
            for tenant, holdings in by_tenant.items():
                again = await self._leases.hold(tenant, holdings, full=full) or again
            self._full = again
