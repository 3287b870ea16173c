"""The end of a refresh: the candidate's rollout to a verdict, and what serves afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

from noria.app.refresh_client import Client, Refused
from noria.contracts.error import Conflict
from noria.contracts.refresh import Plan, Refresh, Released, Rolled, Settled

LOOK_S = 0.5


async def rolled(client: Client, refresh: Refresh, plan: Plan, released: Released, gate: dict[str, Any]) -> Rolled:
    """Begin the rollout, or find the one that was begun, and follow it. `gate`: rules, evidence, and a waiver where there is one.

    Raises `Refused` where it cannot begin.
    """
    mine = await _mine(client, refresh, released)
    if mine is None:
        await _still_current(client, refresh, plan)
        body = {
            "app": refresh.app, "candidate": released.name, "policy": msgspec.to_builtins(plan.policy.rollout),
            "by": f"refresh:{refresh.id}", **gate,
        }  # fmt: skip
        try:
            mine = await client.call("POST", "/api/rollouts", body)
        except Conflict:  # the answer to an earlier call was lost, or somebody else was faster
            mine = await _mine(client, refresh, released)
            if mine is None:
                raise
    while True:
        shown = await client.call("GET", f"/api/rollouts/{mine['id']}")
        if (ended := _ended(shown)) is not None:
            return ended
        latest = shown["decisions"][-1] if shown["decisions"] else {"says": ""}
        await client.progress(
            rollout=shown["id"], state=shown["state"], percent=shown["percent"], step=shown["step"] + 1,
            steps=len(shown["policy"]["steps"]), note=latest["says"],
        )  # fmt: skip
        await asyncio.sleep(LOOK_S)


def _ended(shown: dict[str, Any]) -> Rolled | None:
    states: dict[str, Literal["promoted", "rolled_back", "inconclusive"]] = {
        "promoted": "promoted", "rolled_back": "rolled_back", "inconclusive": "inconclusive",
    }  # fmt: skip
    if shown["state"] == "rejected":
        raise Refused(f"The rollout was refused at its gate: {shown['reason']}", code="gate_failed")
    if (state := states.get(shown["state"])) is None:
        return None
    evidence = shown["decisions"][-1]["evidence"] if shown["decisions"] else {}
    return Rolled(shown["id"], state, evidence, shown["reason"])


async def _mine(client: Client, refresh: Refresh, released: Released) -> dict[str, Any] | None:
    found = await client.call("GET", "/api/rollouts?" + urlencode({"app": refresh.app}))
    wanted = (f"refresh:{refresh.id}", released.id)
    return next((r for r in found if (r["by"], r["candidate_id"]) == wanted and r["state"] != "rejected"), None)


async def _still_current(client: Client, refresh: Refresh, plan: Plan) -> None:
    """Raise where the app is served by another release than the one that the candidate was compared with."""
    now = _current(await client.call("GET", "/api/releases?" + urlencode({"app": refresh.app})))
    if now["id"] != plan.parent:
        raise Refused(
            f"{refresh.app} is served by {now['name']} now, the candidate was compared with {plan.parent_name}. Begin another refresh.",
            code="parent_changed",
        )


def _current(releases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(releases, key=lambda r: r["percent"])


def settled(releases: Sequence[dict[str, Any]], released: Released, rolled: Rolled) -> Settled:
    """What serves now."""
    now = _current(releases)
    percent = next((r["percent"] for r in releases if r["id"] == released.id), 0.0)
    says = f"{now['name']} ({now['id'][:11]}) serves {now['percent']:g} % of the traffic."
    expected = 100.0 if rolled.state == "promoted" else 0.0
    if percent != expected:
        says += f" Somebody has changed that since: the candidate has {percent:g} %."
    return Settled(now["id"], percent, says)
