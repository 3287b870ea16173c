"""Money as the keeper sees it: the bank of leases, the ledger that puts it right, and who is told when much is spent.

The ledger is the recorded exchanges. What they cost before the traces of their days are dropped is kept as one sum a budget
(`Base`), so that a budget outlives the traces. Workers that died are found by their files (`kit.slots`): what they had under
way is recorded as orphans, what they held is nobody's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from noria.app.limit_use import Use, uses_of
from noria.app.recording import Recording
from noria.app.registry import event, put
from noria.app.webhook import Webhook
from noria.contracts.error import Conflict, NotFound, StoreError
from noria.contracts.port import Clock, Counter, RecordStore, TraceStore
from noria.contracts.release import Budget, Endpoint, Key, Limit, Snapshot
from noria.contracts.trace import Clause, ExchangeRow
from noria.gateway.bank import BUDGET, Bank, Tenure
from noria.gateway.budget import account_of, orphan_row, own_budget
from noria.gateway.limits import account_of as account_of_limit
from noria.gateway.limits import minute_end, own_limit
from noria.gateway.window import FOREVER, Window, window_of
from noria.kit import slots

log = logging.getLogger("noria.money")

BASE, ALERT = "spent", "budget_alert"
LOOK, ALERTS, REVIEW = 0.5, 5.0, 60.0
"""Seconds between looks for dead workers, for spent budgets, and between reviews of every account."""
RECENT_NS = 3600 * 1_000_000_000
ENOUGH = 20
"""Exchanges of an hour from which on a share of them says something."""
SUSPICIOUS = 0.1
OWN = frozenset({"local", "scripted"})
"""Providers that need no price."""


class Base(msgspec.Struct, frozen=True):
    """What a budget had spent in the window that began at `window`, by exchanges that began before `until` (both ns)."""

    window: int
    until: int
    nanousd: int


class Alert(msgspec.Struct, frozen=True):
    """A threshold of a budget that was reached; the record's being there means that it was told."""

    at_ns: int
    used: int


class Standing(msgspec.Struct, frozen=True):
    """A budget now."""

    budget: Budget
    window: Window
    used: int
    """Nano-dollars of recorded exchanges."""
    reserved: int
    """Nano-dollars that workers hold: free, or set aside for exchanges under way."""


class Treasury:
    """One a keeper. `tenure` is given where other nodes share the counters; else its ledger puts them right."""

    def __init__(
        self,
        home: Path,
        recording: Recording,
        *,
        tenant: str,
        records: RecordStore,
        traces: TraceStore,
        counters: Counter,
        clock: Clock,
        tenure: Tenure | None = None,
    ) -> None:
        self._folder = home / "inflight"
        self._recording = recording
        self._tenant = tenant
        self._records = records
        self._traces = traces
        self._clock = clock
        self.bank = Bank(counters, self, clock, tenure=tenure)
        self.webhook = Webhook("")
        self.orphans = 0
        self._snapshot: Snapshot | None = None
        self._budgets: dict[str, Budget] = {}
        self._bases: dict[str, Base | None] = {}
        self._told: set[str] = set()
        self._stored = -1
        self._notices: list[dict[str, str]] = []

    async def adopt(self, snapshot: Snapshot | None) -> None:
        """The budgets and keys of a snapshot, before any worker has it: a budget without windows counts from now on."""
        self._snapshot = snapshot
        self._budgets = {} if snapshot is None else {_name(b): b for b in snapshot.budgets}
        if snapshot is not None:
            own = [own_budget(k) for k in snapshot.keys.values() if k.budget_nanousd is not None]
            self._budgets |= {_name(b): b for b in own}
            for budget in snapshot.budgets:
                if budget.window == "total":
                    await self._base(budget)

    # -- the ledger (`gateway.bank.Ledger`) ---------------------------------------------------------

    def holders(self) -> set[str]:
        """Every worker of this node that lives."""
        return {f.holder for f in slots.every(self._folder) if f.alive}

    async def level(self) -> None:
        """See `Recording.level`."""
        await self._recording.level()

    async def spent(self, tenant: str, account: str) -> int | None:
        """See `gateway.bank.Ledger`."""
        if tenant != self._tenant or not account.startswith(BUDGET):
            return None
        name, _, start = account.removeprefix(BUDGET).rpartition("@")
        budget = self._budgets.get(name)
        if budget is None:
            return None
        return await self.used(budget, window_of(budget, int(start) * 1_000_000_000))

    async def used(self, budget: Budget, window: Window) -> int:
        """Nano-dollars that a window's exchanges cost: those on record, and those whose traces are gone."""
        base = await self._base(budget)
        kept = base.nanousd if base is not None and base.window == window.start else 0
        since = max(window.start, base.until if base is not None and base.window == window.start else 0)
        return kept + await self._sum(budget.scope, since, window.end)

    async def _sum(self, scope: str, since: int, until: int) -> int:
        clauses = [*scope_clauses(scope), Clause("time", ">=", str(since))]
        if until != FOREVER:
            clauses.append(Clause("time", "<", str(until)))
        found = await self._traces.totals(self._tenant, clauses, quality=False)
        return found[0].cost_nanousd if found else 0

    async def _base(self, budget: Budget) -> Base | None:
        """What is kept of a budget. One without windows counts from when it was first seen; a key's, from the key's beginning."""
        name = _name(budget)
        if name not in self._bases:
            record = await self._records.get(self._tenant, BASE, name)
            found = msgspec.msgpack.decode(record.value, type=Base) if record else None
            if found is None and budget.window == "total" and not budget.id.startswith("key:"):
                found = await self._keep(budget, Base(0, self._clock.now_ns(), 0))
            self._bases[name] = found
        return self._bases[name]

    async def _keep(self, budget: Budget, base: Base) -> Base:
        await self._records.commit(self._tenant, [put(BASE, _name(budget), base)], quiet=True)
        self._bases[_name(budget)] = base
        return base

    async def fold(self, before_ns: int) -> None:
        """Before the traces of the days before `before_ns` are dropped: keep what they cost, for windows that began earlier."""
        for budget in list(self._budgets.values()):
            window = window_of(budget, self._clock.now_ns())
            base = await self._base(budget)
            since = max(window.start, base.until if base is not None and base.window == window.start else 0)
            if since >= before_ns:
                continue
            kept = base.nanousd if base is not None and base.window == window.start else 0
            await self._keep(budget, Base(window.start, before_ns, kept + await self._sum(budget.scope, since, before_ns)))

    # -- life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: bury the dead, mend accounts, tell what is spent."""
        reviewed = told = time.monotonic()
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            try:
                await self.bury()
                await self.bank.mend()
                await self._vouch()
                if now - told >= ALERTS:
                    told = now
                    await self.tell()
                if now - reviewed >= REVIEW:
                    reviewed = now
                    self.bank.sweep()
                    self.bank.suspect(self._tenant)
                    await self.review()
            except StoreError as e:
                log.warning("budgets cannot be reviewed now: %s", e)
                await asyncio.sleep(2.0)

    async def _vouch(self) -> None:
        with suppress(StoreError):  # the counters say themselves that they are away
            await self.bank.vouch()

    async def bury(self) -> int:
        """Record what workers that died had under way, and free what they held; how many workers."""
        files = slots.every(self._folder)
        dead = [f for f in files if not f.alive]
        if dead:
            await self.level()  # what they had finished comes first: an orphan's row must not stand in for a real one
        for left in dead:
            await self._bury(left)
        if dead:
            files = slots.every(self._folder)  # anew: a worker that began meanwhile may hold something already
        for holder in self.bank.known() - {f.holder for f in files}:
            self.bank.ended(holder)
        return len(dead)

    async def _bury(self, left: slots.Left) -> None:
        rows: dict[str, list[ExchangeRow]] = {}
        for payload in await asyncio.to_thread(lambda: list(slots.payloads(left.path))):
            row = orphan_row(payload, left.name)
            if row is not None:
                rows.setdefault(row.tenant, []).append(row)
        new = 0
        for tenant, orphans in rows.items():
            for chunk in _chunks(orphans, self._traces.max_batch):
                new += await self._traces.append(tenant, [(row, "", "") for row in chunk], [], None)
        left.path.unlink(missing_ok=True)
        self.bank.ended(left.holder)
        self.orphans += new
        if new:
            log.warning("%s died with %d exchanges under way: each is charged what was reserved", left.name, new)

    # -- telling ------------------------------------------------------------------------------------

    def all(self) -> list[Budget]:
        """The configured budgets, and those of keys."""
        return list(self._budgets.values())

    def find(self, id: str) -> Budget:
        """A budget by its id. Raises `NotFound` with the nearest ids."""
        for budget in self._budgets.values():
            if budget.id == id:
                return budget
        raise NotFound.nearest("budget", id, [b.id for b in self._budgets.values()], code="budget_not_found")

    def limits(self, scope: str = "") -> list[Limit]:
        """The limits in force: the configured ones, and the own rates of keys, those that are used in this minute. With `scope`
        those of this scope, used or not, or the one with this id.
        """
        if self._snapshot is None:
            return []
        found = list(self._snapshot.limits)
        now = self._clock.now_ns()
        for key in self._snapshot.keys.values():
            if key.rpm is None:
                continue
            own = own_limit(key)
            if scope == own.scope or self.bank.met(self._tenant, account_of_limit(own, "requests", minute_end(now))):
                found.append(own)
        return [x for x in found if scope in ("", x.scope, x.id)]

    async def uses(self, limit: Limit) -> list[Use]:
        """How a limit stands now, by what it counts. Raises `StoreError`."""
        return await uses_of(limit, self.bank, self._tenant, self._clock.now_ns())

    async def standing(self, budget: Budget) -> Standing:
        """How a budget stands in the window that is running."""
        window = window_of(budget, self._clock.now_ns())
        used = await self.used(budget, window)
        held = self.bank.reserved((self._tenant, account_of(budget, window))) if budget.hard else 0
        return Standing(budget, window, used, held)

    async def leased(self, key: Key) -> int:
        """What a key's budget has spent and leased together (nano-dollars)."""
        budget = own_budget(key)
        return sum(await self.bank.used(self._tenant, account_of(budget, window_of(budget, self._clock.now_ns()))))

    async def tell(self) -> None:
        """Write an event, and tell the webhook, for each threshold that a budget has newly reached."""
        stored = self._recording.state()["stored"]
        if stored == self._stored or self._snapshot is None:
            return
        self._stored = stored
        for budget in self._snapshot.budgets:
            if budget.alerts:
                await self._tell(budget)

    async def _tell(self, budget: Budget) -> None:
        now = self._clock.now_ns()
        window = window_of(budget, now)
        open_ = [a for a in budget.alerts if self._alert(budget, window, a) not in self._told]
        if not open_:
            return
        used = await self.used(budget, window)
        for share in open_:
            if used <= 0 or used < share * budget.nanousd:
                continue
            name = self._alert(budget, window, share)
            detail = {
                "budget": budget.id, "scope": budget.scope, "window": budget.window, "threshold": share, "hard": budget.hard,
                "limit_usd": budget.nanousd / 1e9, "used_usd": used / 1e9, "resets": window.resets or None,
            }  # fmt: skip
            self._told.add(name)
            try:
                noted = event(self._tenant, "budget.reached", "keeper", budget.id, detail)
                await self._records.commit(self._tenant, [put(ALERT, name, Alert(now, used), expect=0), noted], quiet=True)
            except Conflict:
                continue  # told before this keeper began
            log.warning("budget %s (%s): %.0f %% spent", budget.id, budget.scope, 100 * used / max(1, budget.nanousd))
            self.webhook.send("budget.reached", detail)

    @staticmethod
    def _alert(budget: Budget, window: Window, share: float) -> str:
        return f"{_name(budget)}@{window.name}:{share:g}:{budget.nanousd}"

    async def review(self) -> None:
        """Look whether many exchanges of the last hour have no cost, or cost nothing although their model has a price."""
        since = self._clock.now_ns() - RECENT_NS
        found = await self._traces.totals(
            self._tenant, [Clause("time", ">=", str(since)), Clause("outcome", "=", "ok")], ("endpoint",), quality=False
        )
        known = {e.name: e for e in endpoints(self._snapshot)}
        self._notices = []
        for total in found:
            (name,) = total.group
            endpoint = known.get(name)
            if endpoint is None or total.exchanges < ENOUGH:
                continue
            free = endpoint.price is not None and endpoint.price.input == endpoint.price.output == 0
            zero = 0 if free else total.zero
            unpriced = 0 if endpoint.provider in OWN and endpoint.price is None else total.unknown
            if (zero + unpriced) / total.exchanges >= SUSPICIOUS:
                self._notices.append({
                    "level": "error", "code": "cost_unknown",
                    "text": f"The cost of {unpriced} of {total.exchanges} exchanges with {name!r} in the last hour is unknown, {zero} cost "
                    "nothing. Give the model a `price`, or see whether it reports usage (`noria cost prices`).",
                })  # fmt: skip

    def notices(self) -> list[dict[str, str]]:
        """What operators should know of money now."""
        return self._notices


def scope_clauses(scope: str) -> list[Clause]:
    """The condition under which a recorded exchange falls under a scope."""
    kind, _, name = scope.partition(":")
    return [] if kind == "tenant" else [Clause(kind, "=", name)]


def endpoints(snapshot: Snapshot | None) -> Iterable[Endpoint]:
    """Every endpoint that a snapshot names."""
    if snapshot is None:
        return []
    used = [e for a in snapshot.apps.values() for r in a.releases.values() for e in r.route]
    return [*used, *snapshot.embedders.values()]


def _name(budget: Budget) -> str:
    return account_of(budget, Window(0, 0)).removeprefix(BUDGET).rpartition("@")[0]


def _chunks(rows: Sequence[ExchangeRow], size: int) -> Iterable[Sequence[ExchangeRow]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))
