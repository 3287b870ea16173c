"""The steps of a refresh against the running service, as `journeys.model.Work` wants them.

Each may have been begun by a process that died. Names of what is begun are made from the turn's id, so that the same call finds what
is there; datasets, artifacts and releases are named by their content.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from noria.app import refresh_data as data
from noria.app.refresh_client import Client, Refused
from noria.app.refresh_jobs import Jobs
from noria.app.refresh_rollout import rolled, settled
from noria.app.refresh_same import compared
from noria.contracts.artifact import FINGERPRINT
from noria.contracts.evaluation import Comparison, Estimate
from noria.contracts.refresh import (
    Compared,
    Detected,
    Exported,
    Harvested,
    Judged,
    Leaked,
    Measured,
    Plan,
    Refresh,
    Released,
    Rolled,
    Settled,
    Trained,
    Versioned,
)
from noria.contracts.rollout import Finding, GateRule
from noria.journeys.model import Table
from noria.kit.ids import digest
from noria.release.gate import Equivalence, Evidence, Leak

READY_WITHIN_S = 900.0
"""How long a candidate's model may take to be there."""
_KINDS = {"adapter_gguf": "adapter_gguf", "tiny_model": "tiny_model"}
"""Role of a trained file → kind of its artifact; merged models are `model_gguf`."""
FIGURES = ("latency_p50_ms", "latency_p95_ms", "cost_usd", "errors")


class Steps:
    """`Work` of one turn."""

    def __init__(self, client: Client, refresh: Refresh, home: Path, table: Table) -> None:
        self._client = client
        self._refresh = refresh
        self._home = home
        self._jobs = Jobs(client, table)

    # -- data ---------------------------------------------------------------------------------------

    async def detect(self, plan: Plan) -> Detected:
        """See `Work`."""
        found = await self._client.call("GET", f"/api/drift/{quote(self._refresh.app, safe='')}?limit=100")
        watched = found["policy"] is not None or found["reports"]
        told = next((r for r in found["reports"] if r["id"] == plan.report), None)
        stands = f"Drift: {found['says']}" if watched else "Nobody watches its drift."
        began = {
            "drift": f"Drift began it. {told['says'] if told else stands}",
            "schedule": f"It was due. {stands}",
            "person": f"{self._refresh.by} began it. {stands}",
            "demo": f"The demonstration began it. {stands}",
        }[self._refresh.cause]
        return Detected(self._refresh.cause, found["standing"] if watched else "", plan.report, began)

    async def harvest(self, plan: Plan) -> Harvested:
        """See `Work`."""
        return await asyncio.to_thread(data.harvested, self._client, self._refresh.app, plan, self._rows("exchanges"))

    async def version(self, plan: Plan, harvested: Harvested) -> Versioned:
        """See `Work`."""
        return await asyncio.to_thread(data.versioned, self._client, plan, harvested, self._rows("rows"))

    async def leak(self, plan: Plan, versioned: Versioned) -> Leaked:
        """See `Work`."""
        return await asyncio.to_thread(data.unleaked, self._client, plan, versioned, self._rows("rows"))

    def _rows(self, unit: str) -> Any:
        """Tells progress from a thread, now and then."""
        loop, last = asyncio.get_running_loop(), [0.0]

        def tell(done: int, total: int | None) -> None:
            if time.monotonic() - last[0] > 1.0:
                last[0] = time.monotonic()
                asyncio.run_coroutine_threadsafe(self._client.progress(done=done, total=total, unit=unit), loop)

        return tell

    # -- model --------------------------------------------------------------------------------------

    async def train(self, plan: Plan, leaked: Leaked) -> Trained:
        """See `Work`."""
        t = plan.policy.train
        body = {
            "dataset": leaked.version, "method": t.method, "system": plan.system, "train": t.split, "validation": t.validation,
            "lora": msgspec.to_builtins(t.lora), "schedule": msgspec.to_builtins(t.schedule), "seed": t.seed,
            "memory": t.memory, "outputs": list(t.outputs),
        }  # fmt: skip
        if plan.base:
            body["base"] = plan.base
        job = await self._jobs.train(body, leaked.version)
        result = job["result"]
        losses = result["loss"] or [0.0]
        files = {m["role"]: m["name"] for m in result["made"]}
        says = (
            f"{result['rows']} rows, {result['steps']} steps in {result['seconds']:.0f} s, loss {losses[0]:.3f} → {losses[-1]:.3f}"
            f"{', ' + str(len(result['skipped'])) + ' rows left out' if result['skipped'] else ''}."
        )
        return Trained(
            job["id"], job["folder"], files, result["rows"], result["steps"], result["seconds"], losses[0], losses[-1], says
        )

    async def export(self, plan: Plan, leaked: Leaked, trained: Trained) -> Exported:
        """See `Work`."""
        folder, t = Path(trained.folder), plan.policy.train
        roles = ("tiny_model",) if t.method == "tiny" else t.outputs
        made: dict[str, str] = {}
        inputs = {"dataset": leaked.version, "job": trained.job}
        facts = {"prompt": digest(plan.system.encode()) if plan.system else ""}
        if t.method == "sft":
            inputs["base"] = "sha256:" + await asyncio.to_thread(data.base_of, folder)
        for role in roles:
            name = trained.files[role]
            files = {name: str(folder / name)}
            if (folder / FINGERPRINT).exists():
                files[FINGERPRINT] = str(folder / FINGERPRINT)
            extra = {"scale": "1"} if role == "adapter_gguf" else {}
            body = {"kind": _KINDS.get(role, "model_gguf"), "files": files, "inputs": inputs, "facts": facts | extra}
            made[role] = (await self._client.call("POST", "/api/artifacts", body))["id"]
        served = made[roles[0]]
        says = f"Signed: {', '.join(f'{role} {name[:15]}' for role, name in made.items())}; {roles[0]} is what is served."
        return Exported(served, _KINDS.get(roles[0], "model_gguf"), made, says)

    async def equivalence(self, plan: Plan, trained: Trained, exported: Exported) -> Compared:
        """See `Work`."""
        return await asyncio.to_thread(compared, self._home, plan, trained, exported)

    async def release(self, plan: Plan, exported: Exported) -> Released:
        """See `Work`."""
        name = f"tuned-{exported.served[3:11]}"
        body = {
            "app": self._refresh.app, "parent": plan.parent, "name": name, "by": f"refresh:{self._refresh.id}",
            "adapter" if exported.kind == "adapter_gguf" else "model": exported.served,
            "note": f"Made by {self._refresh.id}.",
        }  # fmt: skip
        try:
            made = await self._client.call("POST", "/api/releases", body)
        except Refused as e:
            if e.code != "same_release":
                raise
            says = f"What was trained is {plan.parent_name} ({plan.parent[:11]}) again: nothing new was learned."
            return Released(plan.parent, plan.parent_name, True, says)
        await self._served(made)
        says = f"{name} ({made['id'][:11]}) is served, without traffic, beside {plan.parent_name} ({plan.parent[:11]})."
        return Released(made["id"], name, False, says)

    async def _served(self, made: dict[str, Any]) -> None:
        """Wait until the candidate's model is there and every worker knows it. Raises `Refused` where it cannot be loaded."""
        first, end = made["model"].partition(" → ")[0], time.monotonic() + READY_WITHIN_S
        while True:
            status = await self._client.call("GET", "/api/status")
            model = next((m for m in status["models"] if m["name"] == first), None)
            if model is not None and model["state"] == "failed":
                raise Refused(f"The candidate's model cannot be loaded: {model['detail']}", code="model_failed")
            behind = [w["name"] for w in status["workers"] if w["config"] != status["config"] and w["seen_seconds_ago"] < 3]
            if model is not None and model["state"] == "ready" and not behind:
                return
            if time.monotonic() > end:
                raise Refused(f"The candidate's model was not ready after {READY_WITHIN_S:.0f} s.", code="model_not_ready")
            await self._client.progress(note=f"{first} is {model['state'] if model else 'being set up'}")
            await asyncio.sleep(0.2)

    # -- judgement ----------------------------------------------------------------------------------

    async def evaluate(self, plan: Plan, versioned: Versioned, released: Released) -> Measured:
        """See `Work`."""
        current, candidate = await self._jobs.evaluate(
            self._refresh.app, versioned.suite, (plan.parent, released.id), plan.policy.concurrency
        )
        asked = {"first": current["id"], "second": candidate["id"], "margins": {plan.metric: plan.policy.gate.margin}}
        found = await self._client.call("POST", "/api/evaluations/compare", asked)
        comparisons = msgspec.convert(found["comparisons"], tuple[Comparison, ...])
        first, second = (e["report"]["estimates"] for e in (current, candidate))
        shown = [*versioned.suite.metrics, *FIGURES]
        pairs = {
            k: msgspec.convert((first[k], second[k]), tuple[Estimate, Estimate]) for k in shown if k in first and k in second
        }
        says = " ".join(f"{c.metric}: {_percent(pairs, c.metric)}{_difference(c)}." for c in comparisons)
        return Measured(current["id"], candidate["id"], comparisons, pairs, says)

    async def gate(self, plan: Plan, evidence: tuple[Leaked, Compared, Released, Measured]) -> Judged:
        """See `Work`."""
        body = {"app": self._refresh.app, "candidate": evidence[2].name, **_asked(plan, evidence)}
        found = await self._client.call("POST", "/api/releases/gate", body)
        findings = msgspec.convert(found["findings"], tuple[Finding, ...])
        wrong = [f for f in findings if f.verdict != "pass"]
        says = " ".join(f"{f.rule.kind}: {f.says}" for f in wrong) if wrong else f"It passes all {len(findings)} rules."
        return Judged(found["verdict"], findings, says)

    async def rollout(self, plan: Plan, evidence: tuple[Leaked, Compared, Released, Measured], waived: str) -> Rolled:
        """See `Work`."""
        return await rolled(self._client, self._refresh, plan, evidence[2], _asked(plan, evidence) | _waiver(waived))

    async def settle(self, released: Released, rolled: Rolled) -> Settled:
        """See `Work`."""
        found = await self._client.call("GET", "/api/releases?" + urlencode({"app": self._refresh.app}))
        return settled(found, released, rolled)


def _waiver(waived: str) -> dict[str, Any]:
    by, _, why = waived.partition(": ")
    return {"waive": {"by": by, "why": why}} if waived else {}


def _asked(plan: Plan, evidence: tuple[Leaked, Compared, Released, Measured]) -> dict[str, Any]:
    """Rules and evidence as the service's gate takes them."""
    leaked, same, _, measured = evidence
    g, suite = plan.policy.gate, plan.suite.name
    rules = [GateRule("quality", metric=plan.metric, suite=suite, margin=g.margin), GateRule("dataset", version=leaked.version)]
    if g.latency is not None:
        rules.append(GateRule("latency", metric="latency_p50_ms", suite=suite, ratio=g.latency))
    if g.cost is not None:
        rules.append(GateRule("cost", metric="cost_usd", suite=suite, ratio=g.cost))
    if g.equivalence is not None:
        rules.append(GateRule("equivalence", ratio=g.equivalence))
    if g.leak:
        rules.append(GateRule("leak"))
    known = Evidence(
        compared={suite: measured.comparisons},
        figures={suite: measured.figures},
        leak=Leak(leaked.left, leaked.evaluation, leaked.examples, leaked.version, leaked.suite),
        equivalence=Equivalence(same.agreement, same.says) if same.agreement is not None else None,
        asked={suite: leaked.suite},
    )
    return {"rules": msgspec.to_builtins(rules), "evidence": msgspec.to_builtins(known)}


def _percent(pairs: dict[str, tuple[Estimate, Estimate]], metric: str) -> str:
    if metric not in pairs:
        return ""
    a, b = pairs[metric]
    return f"{a.value:.1%} [{a.low:.1%}, {a.high:.1%}] → {b.value:.1%} [{b.low:.1%}, {b.high:.1%}], "


def _difference(c: Comparison) -> str:
    d = c.difference
    return f"difference {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}] on {c.n} items, p {c.p_adjusted:.3g}: {c.verdict}"
