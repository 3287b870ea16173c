"""What the keeper has to say of the running service by the workers' counters."""

from __future__ import annotations

from pathlib import Path

from noria.contracts.release import Snapshot
from noria.observe.metrics import by_app, policy_totals
from noria.observe.policy import silent


def idle(snapshot: Snapshot, metrics: Path) -> list[dict[str, str]]:
    """Policies that were never evaluated, and apps whose costs are not known; empty while nothing was counted."""
    look = "Look at its scope in noria.yaml."
    told = [
        {"level": "warning", "code": "policy_silent", "text": text, "do": look}
        for text in silent(snapshot, policy_totals(metrics), by_app(metrics, "noria_exchanges", outcome="ok"))
    ]
    for app, n in by_app(metrics, "noria_cost_unknown").items():
        if app in snapshot.apps and n:
            local = all(e.provider in ("local", "scripted") for r in snapshot.apps[app].releases.values() for e in r.route)
            if not local:
                text = f"What {n} exchanges of the app {app} cost is not known: a model of it has no price, or told no usage."
                told.append({"level": "warning", "code": "cost_unknown", "text": text, "do": "Give the model a `price`."})
    return told
