"""`/api/budgets`, `/api/limits`, `/api/cost`: money and rates, for operators."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from msgspec.structs import replace
from pydantic import Field, model_validator

from noria.api.field import Strict, actor
from noria.api.render import parse_filter
from noria.app.invoice import Difference, compare, read_invoice
from noria.app.keeper import Keeper
from noria.app.limit_use import Use
from noria.app.treasury import Standing, endpoints
from noria.contracts.price import Price, begins
from noria.contracts.release import Budget, Endpoint, Limit
from noria.contracts.trace import Clause, Total
from noria.kit.ids import uuid7
from noria.settings.money import Scope, Zone

INVOICE_BYTES = 64 * 1024 * 1024


class NewBudget(Strict):
    """Money that a scope may spend in a window."""

    scope: Scope
    usd: float = Field(ge=0, le=1e9)
    window: Literal["day", "week", "month", "total"] = "total"
    zone: Zone = "UTC"
    hard: bool = Field(True, description="Whether what does not fit is refused; otherwise it is only told.")
    alerts: list[Annotated[float, Field(gt=0, le=10)]] = Field([0.8, 1.0], max_length=20)


class ChangedBudget(Strict):
    """What is to change of a budget: only the fields that are there. Scope and window stay, and with them what is spent."""

    usd: float = Field(0, ge=0, le=1e9)
    hard: bool = True
    alerts: list[Annotated[float, Field(gt=0, le=10)]] = Field([], max_length=20)


class NewLimit(Strict):
    """How fast a scope may ask."""

    scope: Scope
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    concurrent: int | None = Field(None, ge=1)
    queue_seconds: float = Field(0.0, ge=0, le=300)
    queue_size: int = Field(100, ge=1, le=10_000)

    @model_validator(mode="after")
    def _some(self) -> NewLimit:
        if self.requests_per_minute is self.tokens_per_minute is self.concurrent is None:
            raise ValueError("A limit needs `requests_per_minute`, `tokens_per_minute` or `concurrent`")
        return self


class LimitLease(Strict):
    """What one worker has of a limit."""

    worker: str
    taken: int
    free: int = Field(description="Of it, not used yet, by the worker's last report (each second).")


class LimitUse(Strict):
    """One unit of a limit now: `used` + `leased` + `left` is the limit, unless it was lowered."""

    unit: Literal["requests", "tokens", "concurrent"]
    limit: int
    used: int = Field(description="Requests begun, tokens spent or set aside, requests under way.")
    leased: int = Field(description="What workers of this node hold and have not used.")
    left: int
    elsewhere: int = Field(description="Of `used`: what other nodes have taken, and what workers that died had.")
    resets: str | None = Field(description="When the minute ends, UTC; null for requests under way.")
    resets_in_s: float | None
    leases: list[LimitLease]


class LimitStanding(Strict):
    """A limit and how it stands."""

    id: str
    scope: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None
    queue_seconds: float
    queue_size: int
    source: str = Field(description="`api`, `key` or `noria.yaml`.")
    use: list[LimitUse]


class Invoice(Strict):
    """A provider's CSV export."""

    csv: str = Field(max_length=INVOICE_BYTES)


def routes(app: FastAPI, keeper: Keeper) -> None:
    """The routes of all three."""
    _budgets(app, keeper)
    _limits(app, keeper)
    _cost(app, keeper)


def _budgets(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/budgets", tags=["money"])
    async def budgets() -> list[dict[str, Any]]:
        """Every budget and how it stands, those of keys among them."""
        return [_standing(await keeper.treasury.standing(b), keeper) for b in keeper.treasury.all()]

    @app.get("/api/budgets/{id}", tags=["money"])
    async def budget(id: str) -> dict[str, Any]:
        """One budget and how it stands."""
        return _standing(await keeper.treasury.standing(keeper.treasury.find(id)), keeper)

    @app.post("/api/budgets", status_code=201, tags=["money"])
    async def create(body: NewBudget, request: Request) -> dict[str, Any]:
        """A new budget, in force when this returns."""
        made = Budget(
            "budget_" + uuid7(),
            body.scope,
            round(body.usd * 1e9),
            body.window,
            body.zone,
            body.hard,
            tuple(sorted(body.alerts)),
        )
        await keeper.policies.add("budget", made.id, made, actor=actor(request))
        return _standing(await keeper.treasury.standing(made), keeper)

    @app.patch("/api/budgets/{id}", tags=["money"])
    async def change(id: str, body: ChangedBudget, request: Request) -> dict[str, Any]:
        """Change a budget's money, hardness or alerts; those of noria.yaml are changed there, a key's with the key."""
        given: dict[str, Any] = {n: getattr(body, n) for n in body.model_fields_set}
        if "usd" in given:
            given["nanousd"] = round(given.pop("usd") * 1e9)
        if "alerts" in given:
            given["alerts"] = tuple(sorted(given["alerts"]))
        made = replace(keeper.treasury.find(id), **given)
        await keeper.policies.change("budget", id, made, actor=actor(request))
        return _standing(await keeper.treasury.standing(made), keeper)

    @app.delete("/api/budgets/{id}", status_code=204, tags=["money"])
    async def delete(id: str, request: Request) -> Response:
        """Take a budget away; those of noria.yaml are taken away there."""
        await keeper.policies.remove("budget", id, actor=actor(request))
        return Response(status_code=204)


def _limits(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/limits", tags=["money"])
    async def limits(scope: str = "") -> list[LimitStanding]:
        """Every limit and how it stands, the rates of keys that are used in this minute among them; `scope`: those of one scope,
        used or not, or the one with this id.
        """
        return [await _limit(x, keeper) for x in keeper.treasury.limits(scope)]

    @app.post("/api/limits", status_code=201, tags=["money"])
    async def create(body: NewLimit, request: Request) -> LimitStanding:
        """A new limit, in force when this returns."""
        made = Limit("limit_" + uuid7(), **body.model_dump())
        await keeper.policies.add("limit", made.id, made, actor=actor(request))
        return await _limit(made, keeper)

    @app.delete("/api/limits/{id}", status_code=204, tags=["money"])
    async def delete(id: str, request: Request) -> Response:
        """Take a limit away; those of noria.yaml are taken away there."""
        await keeper.policies.remove("limit", id, actor=actor(request))
        return Response(status_code=204)


def _cost(app: FastAPI, keeper: Keeper) -> None:
    @app.get("/api/cost", tags=["money"])
    async def cost(
        by: Annotated[list[str] | None, Query(max_length=3)] = None, filter: str = "", since: str = "", until: str = ""
    ) -> dict[str, Any]:
        """What exchanges cost, summed by `app`, `model`, `endpoint`, `provider`, `key`, `org`, `team`, `user`, `tag`, `day`."""
        by = by or ["app"]
        clauses = [*parse_filter(filter), *_span(since, until)]
        groups = await keeper.traces.totals(keeper.tenant, clauses, by)
        whole = await keeper.traces.totals(keeper.tenant, clauses)
        return {"by": by, "groups": [_total(t, by) for t in groups], "total": _total(whole[0], []) if whole else None}

    @app.get("/api/cost/prices", tags=["money"])
    async def prices(model: str = "") -> list[dict[str, Any]]:
        """What prices apply now, and where each is stated."""
        seen = {e.name: e for e in endpoints(keeper.current())}
        return [
            _price(e) for e in seen.values() if not model or model in (e.name, e.model, f"{e.vendor or e.provider}/{e.model}")
        ]

    @app.post("/api/cost/reconcile", tags=["money"])
    async def reconcile(body: Invoice) -> dict[str, Any]:
        """An invoice against what was recorded, by model and day."""
        lines = read_invoice(body.csv)
        days = sorted({line.day for line in lines})
        ledger: list[Total] = []
        if days:
            span = [Clause("time", ">=", days[0]), Clause("time", "<=", f"{days[-1]}T23:59:59.999999")]
            ledger = list(await keeper.traces.totals(keeper.tenant, span, ("day", "model")))
        found = compare(lines, [t for t in ledger if t.group[0] in days and (t.cost_nanousd or t.unknown)])
        return {"days": days, "differences": [_difference(d) for d in found]}


def _span(since: str, until: str) -> list[Clause]:
    return [Clause("time", op, value) for op, value in ((">=", since), ("<", until)) if value]  # type: ignore[arg-type]  # one of the operators


def _usd(nano: int | None) -> float | None:
    return None if nano is None else nano / 1e9


def _standing(s: Standing, keeper: Keeper) -> dict[str, Any]:
    b = s.budget
    return {
        "id": b.id, "scope": b.scope, "usd": b.nanousd / 1e9, "window": b.window, "zone": b.zone, "hard": b.hard,
        "alerts": list(b.alerts), "used_usd": s.used / 1e9, "reserved_usd": s.reserved / 1e9,
        "left_usd": max(0, b.nanousd - s.used - s.reserved) / 1e9, "resets": s.window.resets or None, "source": keeper.policies.source(b.id),
    }  # fmt: skip


async def _limit(x: Limit, keeper: Keeper) -> LimitStanding:
    return LimitStanding(
        id=x.id,
        scope=x.scope,
        requests_per_minute=x.requests_per_minute,
        tokens_per_minute=x.tokens_per_minute,
        concurrent=x.concurrent,
        queue_seconds=x.queue_seconds,
        queue_size=x.queue_size,
        source=keeper.policies.source(x.id),
        use=[_use(u) for u in await keeper.treasury.uses(x)],
    )


def _moment(ns: int) -> str:
    return datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _use(u: Use) -> LimitUse:
    now = time.time_ns()
    return LimitUse(
        unit=u.unit,
        limit=u.limit,
        used=u.used,
        leased=u.leased,
        left=u.left,
        elsewhere=u.elsewhere,
        resets=None if u.resets_ns is None else _moment(u.resets_ns),
        resets_in_s=None if u.resets_ns is None else round(max(0, u.resets_ns - now) / 1e9, 3),
        leases=[LimitLease(worker=x.worker, taken=x.taken, free=x.free) for x in u.leases],
    )


def _total(t: Total, by: list[str]) -> dict[str, Any]:
    u = t.usage
    return {
        **dict(zip(by, t.group, strict=True)),
        "exchanges": t.exchanges, "cost_usd": t.cost_nanousd / 1e9, "unknown": t.unknown, "estimated": t.estimated, "zero": t.zero,
        "tokens_in": u.input, "tokens_out": u.output, "cached": u.cached, "cache_write": u.cache_write + u.cache_write_long,
        "reasoning": u.reasoning,
    }  # fmt: skip


def _price(e: Endpoint) -> dict[str, Any]:
    return {
        "name": e.name, "provider": e.vendor or e.provider, "model": e.model,
        "price": None if e.price is None else _stated(e.price), "later": [_stated(p) for p in e.prices if e.price and (p.hours or begins(p.since) > begins(e.price.since)) and p != e.price],
    }  # fmt: skip


def _stated(p: Price) -> dict[str, Any]:
    plain = {n: getattr(p, n) for n in p.__struct_fields__ if n != "tiers"}
    return {k: v for k, v in plain.items() if v not in (None, "")} | {
        "tiers": [{n: v for n in t.__struct_fields__ if (v := getattr(t, n)) is not None} for t in p.tiers]
    }


def _difference(d: Difference) -> dict[str, Any]:
    both = d.invoice_nanousd is not None and d.ledger_nanousd is not None
    return {
        "day": d.day, "model": d.model, "invoice_usd": _usd(d.invoice_nanousd), "ledger_usd": _usd(d.ledger_nanousd),
        "difference_usd": _usd((d.ledger_nanousd or 0) - (d.invoice_nanousd or 0)) if both else None,
        "invoice_tokens": [d.invoice_input, d.invoice_output], "ledger_tokens": [d.ledger_input, d.ledger_output],
        "exchanges": d.exchanges, "causes": list(d.causes),
    }  # fmt: skip
