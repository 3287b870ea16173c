"""Budgets of a worker: reserve → settle → release, against every budget that an exchange falls under, all or none.

A reservation lies in a slot of the worker's file (`kit.slots`) before the model is called, and leaves it once the exchange's
row is in the spool: a worker that is killed meanwhile leaves an orphan, which is charged what was reserved (`orphan_row`).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from noria.contracts.error import LimitExceeded, StoreError, Unavailable
from noria.contracts.exchange import Exchange, Usage
from noria.contracts.release import Budget, Key, Snapshot
from noria.contracts.trace import ExchangeRow
from noria.gateway.bank import BUDGET
from noria.gateway.lease import Slice, Slices
from noria.gateway.scope import scopes
from noria.gateway.window import FOREVER, Window, window_of

LATE_NS = 2 * 86_400_000_000_000
"""How long the counter of a window outlives it: exchanges that began in it may settle later."""
PLANS = 10_000
"""Combinations of key and app whose budgets are kept ready."""


class Journal(Protocol):
    """Where reservations lie while they are open (`kit.slots.Slots`)."""

    def put(self, payload: bytes, /) -> int:
        """Keep it; the slot. Raises `ValueError` where it is too long, `OSError` where the disk is full."""
        ...

    def clear(self, slot: int, /) -> None:
        """It has ended."""
        ...


class Open(msgspec.Struct, frozen=True, array_like=True):
    """A reservation as its slot has it: what an orphan's row is made of."""

    tenant: str
    id: str
    trace: str
    span: str
    started_ns: int
    kind: str
    app: str
    release: str
    release_name: str
    stream: bool
    key: str
    subject: str
    conversation: str
    org: str
    team: str
    user: str
    tags: dict[str, str]
    dialect: str
    nanousd: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Open).decode


class Purse:
    """One budget in the window that is running."""

    __slots__ = ("account", "acted", "budget", "evaluated", "slice", "window")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.evaluated = 0
        self.acted = 0
        self.window = Window(0, 0)
        self.account = ""
        self.slice: Slice | None = None

    def at(self, now_ns: int, tenant: str, slices: Slices) -> Slice:
        """The slice of the window in which a moment lies."""
        if self.slice is None or not self.window.start <= now_ns < self.window.end:
            self.window = window_of(self.budget, now_ns)
            self.account = account_of(self.budget, self.window)
            expires = 0 if self.window.end == FOREVER else self.window.end + LATE_NS
            self.slice = slices.open(tenant, self.account, self.budget.nanousd, expires)
        return self.slice


class Reservation:
    """Money set aside for one exchange; settled exactly once."""

    __slots__ = ("_journal", "_slices", "_slot", "amount")

    def __init__(self, amount: int, slices: list[Slice], journal: Journal, slot: int) -> None:
        self.amount = amount
        self._slices: list[Slice] | None = slices
        self._journal = journal
        self._slot = slot

    def settle(self, cost: int | None) -> None:
        """Pay `cost` and free the rest; None (unknown) pays the whole reservation. Later calls do nothing. The exchange's row
        is in the spool: whoever finds the slot full after a crash finds the row too, and keeps only that.
        """
        slices, self._slices = self._slices, None
        if slices is None:
            return
        paid = self.amount if cost is None else cost
        for s in slices:
            s.pay(self.amount, paid)
        self._journal.clear(self._slot)


class Budgets:
    """Reserves. Soft budgets are the keeper's alone: they refuse nothing."""

    def __init__(self, slices: Slices, journal: Journal) -> None:
        self._slices = slices
        self._journal = journal
        self._by_scope: dict[str, list[Purse]] = {}
        self._own: dict[str, Purse] = {}
        self._plans: dict[tuple[str, str], tuple[Purse, ...]] = {}

    def adopt(self, snapshot: Snapshot) -> None:
        """The budgets of a snapshot; those that did not change keep their slices."""
        old = {p.budget: p for purses in self._by_scope.values() for p in purses}
        self._by_scope = {}
        for budget in snapshot.budgets:
            if budget.hard:
                self._by_scope.setdefault(budget.scope, []).append(old.get(budget) or Purse(budget))
        self._plans = {}
        if len(self._own) > PLANS:
            self._own = {}

    def policies(self) -> dict[str, tuple[int, int]]:
        """(evaluated, acted) of each hard budget of the configuration."""
        return {f"budget:{p.budget.id}": (p.evaluated, p.acted) for purses in self._by_scope.values() for p in purses}

    def plan(self, x: Exchange) -> tuple[Purse, ...]:
        """The hard budgets that `x` falls under, widest scope first."""
        key = x.key
        if not self._by_scope and (key is None or key.budget_nanousd is None):
            return ()
        if x.tags:
            return self._plan(x)
        name = (key.id if key is not None else "", x.model)
        found = self._plans.get(name)
        if found is None or (
            key is not None and key.budget_nanousd is not None and found[-1].budget.nanousd != key.budget_nanousd
        ):
            if len(self._plans) >= PLANS:
                self._plans.clear()
            found = self._plans[name] = self._plan(x)
        return found

    def _plan(self, x: Exchange) -> tuple[Purse, ...]:
        found = [p for scope in scopes(x) for p in self._by_scope.get(scope, ())]
        if x.key is not None and x.key.budget_nanousd is not None:
            own = self._own.get(x.key.id)
            if own is None or own.budget.nanousd != x.key.budget_nanousd:
                own = self._own[x.key.id] = Purse(own_budget(x.key))
            found.append(own)
        return tuple(found)

    async def reserve(self, x: Exchange, plan: tuple[Purse, ...], amount: int, now_ns: int) -> Reservation:
        """`amount` out of every budget of `plan`, or of none. Raises `LimitExceeded` (429) or `Unavailable` (503)."""
        drawn: list[Slice] = []
        done = False
        try:
            for purse in plan:
                slice_ = purse.at(x.started_ns, x.tenant, self._slices)
                purse.evaluated += 1
                if not slice_.draw(amount):
                    if not await self._filled(slice_, amount, now_ns):
                        purse.acted += 1
                        raise spent(purse, amount)
                elif slice_.low(now_ns):
                    slice_.renew(now_ns)
                drawn.append(slice_)
            slot = self._keep(x, amount)
            done = True
        finally:
            if not done:
                for s in drawn:
                    s.put_back(amount)
        return Reservation(amount, drawn, self._journal, slot)

    async def _filled(self, slice_: Slice, amount: int, now_ns: int) -> bool:
        try:
            return await slice_.fill(amount, now_ns)
        except StoreError as e:
            raise Unavailable("Budgets cannot be checked right now.", code="budget_unavailable") from e

    def _keep(self, x: Exchange, amount: int) -> int:
        key, release = x.key, x.release
        entry = Open(
            x.tenant, x.id, x.trace, x.span, x.started_ns, x.kind,
            release.app if release else x.model, release.id if release else "", release.name if release else "", x.stream,
            key.id if key else "", x.subject, x.conversation[:64],
            key.org if key else "", key.team if key else "", key.user if key else "", x.tags, x.dialect, amount,
        )  # fmt: skip
        try:
            return self._journal.put(_encode(entry))
        except ValueError as e:
            raise LimitExceeded("The tags of this request are too long to be accounted for.", code="tags_too_long") from e
        except OSError as e:
            raise Unavailable("Money cannot be set aside: the disk is full.", code="budget_unavailable") from e


def own_budget(key: Key) -> Budget:
    """A key's own budget: hard, for its whole life."""
    return Budget(f"key:{key.id}", f"key:{key.id}", key.budget_nanousd or 0)


def account_of(budget: Budget, window: Window) -> str:
    """The shared counter of a budget in one window."""
    name = budget.id if budget.id == budget.scope else f"{budget.id}|{budget.scope}"
    return f"{BUDGET}{name}@{window.name}"


def spent(purse: Purse, amount: int) -> LimitExceeded:
    """The refusal that says which budget, its limit, what is used and reserved of it, and when it begins anew."""
    budget, s = purse.budget, purse.slice
    used = s.used if s is not None else 0
    reserved = max(0, budget.nanousd - used - s.room) if s is not None else 0
    resets = purse.window.resets
    who = "this key" if budget.scope.startswith("key:") else budget.scope
    period = "" if budget.window == "total" else f" per {budget.window}"
    return LimitExceeded(
        f"The budget of {who} is spent: {_usd(budget.nanousd)} USD{period}, {_usd(used)} used, {_usd(reserved)} reserved; "
        f"this request may need {_usd(amount)}.",
        code="insufficient_quota",
        hint=f"It begins anew at {resets}." if resets else None,
        details={
            "budget": budget.id, "scope": budget.scope, "window": budget.window, "limit_usd": budget.nanousd / 1e9,
            "used_usd": used / 1e9, "reserved_usd": reserved / 1e9, "needed_usd": amount / 1e9, "resets": resets or None,
        },
    )  # fmt: skip


def _usd(nano: int) -> str:
    return f"{nano / 1e9:.2f}" if nano >= 10_000_000 or nano == 0 else f"{nano / 1e9:.9f}".rstrip("0")


def orphan_row(payload: bytes, worker: str) -> ExchangeRow | None:
    """The row of an exchange whose worker died: charged what was reserved, as an estimate. None for what is no reservation."""
    try:
        o = _decode(payload)
    except msgspec.DecodeError:
        return None
    return ExchangeRow(
        tenant=o.tenant, id=o.id, trace=o.trace, span=o.span, parent_span="", started_ns=o.started_ns, kind=o.kind,  # type: ignore[arg-type]  # it was one when it was put
        app=o.app, release=o.release, release_name=o.release_name, config="", outcome="error", status=500, stream=o.stream,
        duration_ns=0, ttft_ns=None, overhead_ns=0, endpoint="", provider="", served_model="", upstream_id="",
        finish_reason="", error_code="orphaned", error_message="The worker ended before the exchange did; what was reserved is charged.",
        key=o.key, subject=o.subject, conversation=o.conversation, usage=Usage(), cost_nanousd=o.nanousd,
        cost_status="estimated", stages=(), attempts=(), rulings=(), request=b"", answer=b"", answer_is_sse=False,
        worker=worker, dialect=o.dialect, org=o.org, team=o.team, user=o.user, tags=o.tags,  # type: ignore[arg-type]  # it was one when it was put
    )  # fmt: skip


class Unkept:
    """A journal that keeps nothing: for a process whose reservations nobody will look for."""

    def put(self, _payload: bytes, /) -> int:
        """As `Journal.put`."""
        return 0

    def clear(self, _slot: int, /) -> None:
        """As `Journal.clear`."""
