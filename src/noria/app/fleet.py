"""How every endpoint stands, from all workers together: their heartbeats, their counters, the files of local models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from noria.app.keeper import Keeper
from noria.app.treasury import endpoints
from noria.contracts.release import Endpoint, Snapshot
from noria.observe.metrics import STATES
from noria.observe.tally import Seen, by_endpoint

SHARES = {"p50": 0.5, "p95": 0.95}


def fleet(keeper: Keeper) -> list[dict[str, Any]]:
    """Every endpoint in use, by name: state, what is under way, how it answered, what it said when it last failed."""
    snapshot = keeper.current()
    named = {e.name: e for e in endpoints(snapshot)}
    local = {m["name"]: m for m in keeper.models()}
    heard: dict[str, list[dict[str, Any]]] = {}
    for worker in keeper.workers():
        for standing in worker["endpoints"]:
            heard.setdefault(standing["endpoint"], []).append(standing)
    counted = by_endpoint(keeper.home / "metrics")
    used = _apps(snapshot)
    return [
        {
            **_fixed(endpoint, used.get(name, [])),
            "server": {"state": local[name]["state"], "detail": local[name]["detail"]} if name in local else None,
            **_now(heard.get(name, [])),
            **_record(counted.get(name, Seen())),
        }
        for name, endpoint in sorted(named.items())
    ]


def _apps(snapshot: Snapshot | None) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for app in snapshot.apps.values() if snapshot else ():
        for name in dict.fromkeys(e.name for r in app.releases.values() for e in r.route):
            found.setdefault(name, []).append(app.name)
    return found


def _fixed(e: Endpoint, apps: list[str]) -> dict[str, Any]:
    return {"name": e.name, "provider": e.vendor or e.provider, "model": e.model, "region": e.region, "apps": apps}


def _now(standings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst state of all workers, and how many of them hold something against it."""
    worst = max(standings, key=lambda s: STATES.index(s["state"]), default=None)
    failed = min((s for s in standings if s["last_error"]), key=lambda s: s["last_error_ago"], default=None)
    return {
        "state": worst["state"] if worst else "unused",
        "seconds_left": worst["seconds_left"] if worst else 0.0,
        "workers": len(standings),
        "workers_out": sum(s["state"] != "ok" for s in standings),
        "in_flight": sum(s["in_flight"] for s in standings),
        "failures_in_a_row": max((s["failures_in_a_row"] for s in standings), default=0),
        "recent_latency_ms": _mean(s["latency_ms"] for s in standings),
        "last_error": {"text": failed["last_error"], "seconds_ago": failed["last_error_ago"]} if failed else None,
    }


def _record(seen: Seen) -> dict[str, Any]:
    """Since the service began; milliseconds."""
    return {
        "attempts": dict(sorted(seen.attempts.items())),
        "took_ms": {name: _ms(seen.took.quantile(share)) for name, share in SHARES.items()},
        "first_ms": {name: _ms(seen.first.quantile(share)) for name, share in SHARES.items()},
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(sum(known) / len(known), 1) if known else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
