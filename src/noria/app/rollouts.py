"""Rollouts as the keeper runs them: shares of traffic follow `release.rollout.decide`, each decision one commit with its event.

What decides is stored (the rollout, its step, since when), what it decides on is asked anew each time, so that a keeper which
is started again goes on as if nothing had been; a commit names the version of the rollout that it was decided on, so that one
piece of evidence decides once, whoever else looks at it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import pairwise
from typing import Any

import msgspec
from msgspec.structs import replace

from noria.app.definition import LIVE, Canary, Live, stored_definition
from noria.app.registry import Registry, put
from noria.contracts.error import Conflict, NoriaError, NotFound, RequestError, StoreError, Unavailable
from noria.contracts.port import TraceStore, Write
from noria.contracts.release import App, Endpoint, Snapshot
from noria.contracts.rollout import Decision, Finding, Look, Rollout, RolloutPolicy, State
from noria.contracts.trace import Clause
from noria.gateway.admit import PINNED
from noria.kit.ids import uuid7
from noria.release import gate
from noria.release.rollout import Seen, Tally, decide, known_by

log = logging.getLogger("noria.rollouts")

ROLLOUT, OPEN, DECISION, LOOK = "rollout", "rollout_open", "decision", "rollout_look"
"""Record kinds: rollouts by id; the one that an app has under way, by app; decisions other than to hold, `<rollout>|000001`; what
was known meanwhile, `<rollout>|<judged answers of the candidate>`."""
GROWN = 1.1
"""What is known is kept each time that there are so many times the judged answers: a hundred records to 20,000 of them."""
UNDER_WAY: frozenset[State] = frozenset({"running", "paused", "inconclusive"})
TRIES = 5
"""Of a person's decision, where the rollout changes meanwhile."""
EVERY = 1.0
"""Seconds between two looks, at most; feedback wakes it earlier."""
AGAIN_NS = 60 * 1_000_000_000
"""The same evidence is judged again after this: patience ends without news, too."""
ANSWERED = "answered"
"""The metric that is no judgement: the share of requests that did not fail."""
_COUNTED = {"ok": True, "blocked": True, "error": False}
"""Outcomes that count, and whether they are good ones: a caller who left or was refused says nothing of the release."""

Scores = Callable[[str, str, str, int], Awaitable[tuple[int, float]]]
"""(app, metric, release id, since ns) → how many answers of the release from then on are judged, and the sum of their scores in
[0, 1]; exchanges that asked for a release by name left out."""

Asked = Callable[[str, str], Awaitable[tuple[Finding, ...]]]
"""(app, candidate) → findings of what is asked of every candidate (`app.gates`)."""


class Plan(msgspec.Struct, frozen=True):
    """A rollout that is asked for."""

    app: str
    candidate: str
    by: str
    policy: RolloutPolicy = RolloutPolicy()
    findings: tuple[Finding, ...] = ()
    passed: bool = True
    """Whether the gate let it pass, or somebody did (`waived`)."""
    waived: str = ""


class Rollouts:
    """All rollouts of the tenant. `current` is the snapshot in force; `unready` says why an endpoint cannot answer yet."""

    def __init__(
        self,
        registry: Registry,
        traces: TraceStore,
        *,
        current: Callable[[], Snapshot | None],
        unready: Callable[[Endpoint], str],
    ) -> None:
        self._registry = registry
        self._traces = traces
        self._current = current
        self._unready = unready
        self.asked: Asked | None = None
        """What is asked of every candidate, from whoever knows the files that it serves."""
        self.scores: Scores | None = None
        """Judged answers, from whoever keeps feedback."""
        self._news = asyncio.Event()
        self._one = asyncio.Lock()
        self._latest: dict[str, Decision] = {}
        self._looked: dict[str, tuple[Seen, int]] = {}
        """What the latest look saw, of which version of the rollout."""
        self._kept: dict[str, int] = {}
        """Judged answers of the candidate when what was known was kept last, by rollout."""

    # -- what is asked ------------------------------------------------------------------------------

    async def all(self, app: str = "") -> list[Rollout]:
        """Rollouts, of an app or all, newest first."""
        found = [r for r, _ in (await self._registry.all(ROLLOUT, Rollout)).values() if app in ("", r.app)]
        return sorted(found, key=lambda r: r.id, reverse=True)

    async def get(self, id: str) -> tuple[Rollout, int]:
        """A rollout with its version, by its id, or the latest of an app by the app's name. Raises `NotFound`."""
        found = await self._registry.get(ROLLOUT, id, Rollout)
        if found is None:
            latest = next(iter(await self.all(id)), None)
            found = await self._registry.get(ROLLOUT, latest.id, Rollout) if latest else None
        if found is None:
            raise NotFound(f"No rollout {id!r}, nor one of an app of that name.", code="rollout_not_found")
        return found

    async def decisions(self, rollout: Rollout) -> list[Decision]:
        """What was decided, oldest first, with the latest look at the end where that was to hold."""
        keys = [_nth(rollout.id, n) for n in range(1, rollout.decisions + 1)]
        found = [d[0] for k in keys if (d := await self._registry.get(DECISION, k, Decision))]
        latest = self._latest.get(rollout.id)
        if rollout.state in UNDER_WAY and latest is not None and latest.action == "hold":
            found.append(latest)
        return found

    async def looks(self, rollout: Rollout) -> list[Look]:
        """What was known as the answers came in, oldest first."""
        begin = f"{rollout.id}|"
        found = await self._registry.records.scan(self._registry.tenant, LOOK, after=begin, limit=1000)
        return [msgspec.msgpack.decode(r.value, type=Look) for r in found if r.id.startswith(begin)]

    async def declared_policy(self, app: str) -> RolloutPolicy:
        """The policy that the file declares for an app, else the default one."""
        definition = await stored_definition(self._registry.records, self._registry.tenant)
        declared = definition.rollouts.get(app) if definition else None
        return declared.policy if declared else RolloutPolicy()

    # -- what is done -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at every open rollout each second, or when there is news."""
        while True:
            self._news.clear()
            try:
                await self.look()
            except (StoreError, NoriaError) as e:
                log.warning("rollouts stand still for a moment: %s", e)
            try:
                async with asyncio.timeout(EVERY):
                    await self._news.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(EVERY / 10)  # feedback comes in bursts: one look for all of it

    def news(self) -> None:
        """Something was judged."""
        self._news.set()

    async def look(self) -> None:
        """One look at every open rollout."""
        for app, (name, _) in (await self._registry.all(OPEN, str)).items():
            async with self._one:
                found = await self._registry.get(ROLLOUT, name, Rollout)
                if found is None or found[0].state not in UNDER_WAY:
                    continue
                try:
                    await self._one_look(*found)
                except Conflict:
                    log.info("the rollout of %s was decided elsewhere", app)

    async def declare(self, declared: Mapping[str, Canary]) -> None:
        """Begin the rollouts that the file declares, each candidate once: what was rolled back is not tried again unasked."""
        past = {(r.app, r.candidate_id) for r in await self.all()}
        for name, canary in declared.items():
            app = self._app(name)
            candidate = app.releases.get(canary.candidate)
            if candidate is None or (name, candidate.id) in past or app.weights.get(canary.candidate, 0.0) > 0:
                continue
            try:
                findings = await self.asked(name, canary.candidate) if self.asked is not None else ()
                passed = gate.verdict(findings) == "pass"
                await self.start(Plan(name, canary.candidate, "file", canary.policy, findings, passed))
            except NoriaError as e:
                log.warning("the rollout of %s does not begin: %s", name, e.text)

    async def start(self, plan: Plan) -> Rollout:
        """Begin a rollout: the candidate gets its first share as soon as its model is there. One that did not pass its gate is
        recorded as rejected. Raises `RequestError`, `NotFound`, `Conflict` (409) where one is under way.
        """
        async with self._one:
            app = self._app(plan.app)
            if plan.candidate not in app.releases:
                raise NotFound.nearest("release", plan.candidate, sorted(app.releases), code="release_not_found")
            _sane(plan.policy)
            stable = max(app.weights, key=lambda n: app.weights[n])
            before = {n: w for n, w in app.weights.items() if n != plan.candidate}
            if stable == plan.candidate or not any(before.values()):
                raise RequestError(f"{plan.candidate} has the traffic already.", code="already_live", param="candidate")
            if app.releases[stable].id == app.releases[plan.candidate].id:
                raise RequestError(f"{plan.candidate} is the same release as {stable}.", code="same_release", param="candidate")
            made = Rollout(
                "roll_" + uuid7(), plan.app, stable, plan.candidate, app.releases[stable].id, app.releases[plan.candidate].id,
                plan.policy, "running" if plan.passed else "rejected", began_ns=time.time_ns(),
                ended_ns=0 if plan.passed else time.time_ns(), findings=plan.findings, waived=plan.waived,
                reason="" if plan.passed else "The gate did not let it pass.", by=plan.by, before=before,
            )  # fmt: skip
            detail = {
                "rollout": made.id, "release": made.candidate_id, "against": made.stable_id, "waived": made.waived,
                "findings": [f"{f.verdict}: {f.says}" for f in made.findings], "policy": msgspec.to_builtins(made.policy),
            }  # fmt: skip
            kind = "release.rollout_started" if plan.passed else "release.rejected"
            writes = [put(ROLLOUT, made.id, made, expect=0)]
            if plan.passed:
                writes.append(await self._opening(plan.app, made.id))
            await self._registry.change(writes, (kind, plan.by, f"{plan.app}/{plan.candidate}", detail))
        if plan.passed:
            await self.look()
        return (await self.get(made.id))[0]

    async def override(self, id: str, action: str, *, actor: str, why: str = "") -> Rollout:
        """A person decides: `promote`, `rollback`, `pause`, `resume`. Raises `RequestError` where that makes no sense now."""
        for left in range(TRIES, 0, -1):  # not behind a look, which asks the trace store: whoever rolls back is in a hurry
            try:
                return await self._override(id, action, actor, why)
            except Conflict:
                if left == 1:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _override(self, id: str, action: str, actor: str, why: str) -> Rollout:
        rollout, version = await self.get(id)
        allowed = {
            "pause": ("running",), "resume": ("paused", "inconclusive"),
            "promote": tuple(UNDER_WAY), "rollback": (*UNDER_WAY, "promoted"),
        }  # fmt: skip
        if action not in allowed:
            raise NotFound.nearest("action", action, list(allowed), code="unknown_action")
        if rollout.state not in allowed[action]:
            raise RequestError(f"The rollout is {rollout.state}: there is nothing to {action}.", code="wrong_state", status=409)
        if action in ("promote", "rollback") and not why.strip():
            raise RequestError(f"To {action} against the measurement needs a reason.", code="reason_missing", param="why")
        await self._overrule(rollout, version, action, actor, why)
        return (await self.get(rollout.id))[0]

    async def _overrule(self, rollout: Rollout, version: int, action: str, actor: str, why: str) -> None:
        now = time.time_ns()
        if action in ("pause", "resume"):
            state: State = "paused" if action == "pause" else "running"
            again = now if rollout.state == "inconclusive" else rollout.step_began_ns
            changed = replace(rollout, state=state, reason=why, step_began_ns=again)
            event = (
                f"release.rollout_{state if state == 'paused' else 'resumed'}",
                actor,
                _target(rollout),
                {"rollout": rollout.id, "why": why},
            )
            await self._registry.change([put(ROLLOUT, rollout.id, changed, expect=version)], event)
            return
        if action == "rollback" and rollout.state == "promoted":
            self._still_there(rollout)
        looked = self._latest.get(rollout.id)
        evidence = {**(looked.evidence if looked else {}), "by": actor}
        kind: Any = "promote" if action == "promote" else "roll_back"
        await self._carry_out(rollout, version, Decision(rollout.id, now, kind, f"{actor}: {why}", evidence), actor)

    # -- one rollout --------------------------------------------------------------------------------

    async def _one_look(self, rollout: Rollout, version: int) -> None:
        if gone := self._changed_under(rollout):
            now = time.time_ns()
            await self._carry_out(rollout, version, Decision(rollout.id, now, "roll_back", gone, {}), "keeper")
            return
        if not rollout.step_began_ns:
            await self._begin(rollout, version)
            return
        seen, now = await self._seen(rollout), time.time_ns()
        known = self._latest.get(rollout.id)
        if known is not None and self._looked.get(rollout.id) == (seen, version) and now - known.at_ns < AGAIN_NS:
            return
        decision = await asyncio.to_thread(decide, rollout, seen, now)  # an estimate may take a second: the keeper has callers
        self._looked[rollout.id] = (seen, version)
        if seen.candidate.judged > GROWN * self._kept.get(rollout.id, 0) or decision.action != "hold":
            await self._keep(rollout, seen, now)
        if rollout.state != "running" and decision.action != "roll_back":  # a person has the word; harm acts all the same
            decision = replace(decision, action="hold")
        if decision.action == "hold":
            self._latest[rollout.id] = decision
            return
        await self._carry_out(rollout, version, decision, "keeper")

    async def _keep(self, rollout: Rollout, seen: Seen, now: int) -> None:
        """For the picture of how it became sure; kept once for each number of answers."""
        judged = seen.candidate.judged
        look = await asyncio.to_thread(known_by, rollout, seen, now)
        kept = put(LOOK, f"{rollout.id}|{judged:09d}", look)
        await self._registry.records.commit(self._registry.tenant, [kept], quiet=True)
        self._kept[rollout.id] = judged

    async def _begin(self, rollout: Rollout, version: int) -> None:
        """The first share, once the candidate can answer."""
        release = self._app(rollout.app).releases[rollout.candidate]
        now = time.time_ns()
        if why := self._unready(release.route[0]):
            if rollout.state == "running":
                late = now - rollout.began_ns > rollout.policy.patience_hours * 3600e9
                decision = Decision(rollout.id, now, "give_up" if late else "hold", f"No traffic yet: {why}", {"waits": why})
                self._latest[rollout.id] = decision
                if late:
                    await self._carry_out(rollout, version, decision, "keeper")
            return
        if rollout.state == "running":
            begun = replace(rollout, step_began_ns=now, began_ns=now)
            share = rollout.policy.steps[0]
            detail = {"rollout": rollout.id, "percent": share, "step": 0}
            live = put(LIVE, rollout.app, Live(_shares(rollout, share)))
            await self._registry.change(
                [put(ROLLOUT, rollout.id, begun, expect=version), live],
                ("release.advanced", "keeper", _target(rollout), detail),
            )

    async def _carry_out(self, rollout: Rollout, version: int, decision: Decision, actor: str) -> None:
        """State, shares, decision and event in one commit that holds only where nobody else was faster."""
        now, number = decision.at_ns, rollout.decisions + 1
        states: dict[str, State] = {
            "advance": "running", "promote": "promoted", "roll_back": "rolled_back", "give_up": "inconclusive",
        }  # fmt: skip
        state = states[decision.action]
        ended = now if state in ("promoted", "rolled_back") else 0
        changed = replace(rollout, state=state, decisions=number, ended_ns=ended, reason=decision.says)
        writes = [put(DECISION, _nth(rollout.id, number), decision, expect=0)]
        if decision.action == "advance":
            changed = replace(changed, step=rollout.step + 1, step_began_ns=now)
            writes.append(put(LIVE, rollout.app, Live(_shares(changed, rollout.policy.steps[changed.step]))))
        elif ended:
            share = 100.0 if state == "promoted" else 0.0
            if rollout.app in self._apps():
                writes.append(put(LIVE, rollout.app, Live(_shares(rollout, share))))
            if rollout.state in UNDER_WAY:
                writes.append(Write(OPEN, rollout.app, None))
        writes.append(put(ROLLOUT, rollout.id, changed, expect=version))
        kinds = {"advance": "release.advanced", "promote": "release.promoted", "roll_back": "release.rolled_back"}
        kind = kinds.get(decision.action, "release.inconclusive")
        detail = {"rollout": rollout.id, "release": rollout.candidate_id, "says": decision.says, "evidence": decision.evidence}
        await self._registry.change(writes, (kind, actor, _target(rollout), detail))
        self._latest.pop(rollout.id, None)
        self._looked.pop(rollout.id, None)
        if ended:
            self._kept.pop(rollout.id, None)
        log.info("%s of %s: %s. %s", rollout.candidate, rollout.app, state, decision.says)

    async def _opening(self, app: str, id: str) -> Write:
        """The write that makes it the app's only rollout under way."""
        there = await self._registry.get(OPEN, app, str)
        if there is not None:
            raise RequestError(
                f"A rollout of {app} is under way ({there[0]}).", code="rollout_under_way", status=409,
                hint="Promote it or roll it back first.",
            )  # fmt: skip
        return put(OPEN, app, id, expect=0)

    def _still_there(self, rollout: Rollout) -> None:
        """Raise where what a rollback would go back to is not served any more, or something else has happened since."""
        app = self._app(rollout.app)
        if rollout.stable not in app.releases:
            raise RequestError(f"{rollout.stable} is retired: there is nothing to go back to.", code="retired", status=409)
        if not app.weights.get(rollout.candidate):
            raise RequestError(f"{rollout.candidate} has no traffic any more.", code="wrong_state", status=409)

    def _changed_under(self, rollout: Rollout) -> str:
        """Why a rollout makes no sense any more: the configuration has other releases now."""
        app = self._apps().get(rollout.app)
        if app is None:
            return f"The app {rollout.app} is gone."
        for name, pinned in ((rollout.stable, rollout.stable_id), (rollout.candidate, rollout.candidate_id)):
            if name not in app.releases or app.releases[name].id != pinned:
                return f"The release {name} was changed or taken away by the configuration."
        return ""

    # -- what was seen ------------------------------------------------------------------------------

    async def _seen(self, rollout: Rollout) -> Seen:
        """Both arms, from the same moment on."""
        stable = await self._tally(rollout, rollout.stable_id, rollout.began_ns)
        candidate = await self._tally(rollout, rollout.candidate_id, rollout.began_ns)
        if rollout.step == 0:
            return Seen(stable, candidate, candidate.judged)
        step = await self._tally(rollout, rollout.candidate_id, rollout.step_began_ns)
        return Seen(stable, candidate, step.judged)

    async def _tally(self, rollout: Rollout, release: str, since_ns: int) -> Tally:
        metric = rollout.policy.metric
        good, failed = await self._outcomes(rollout.app, release, since_ns)
        if metric == ANSWERED:
            return Tally(good + failed, float(good), good + failed, failed)
        if metric in self._checks(rollout):
            found, _ = await self._outcomes(rollout.app, release, since_ns, Clause("check", "=", metric))
            return Tally(good, float(good - found), good + failed, failed)
        judged, total = (0, 0.0) if self.scores is None else await self.scores(rollout.app, metric, release, since_ns)
        return Tally(judged, min(max(total, 0.0), float(judged)), good + failed, failed)

    async def _outcomes(self, app: str, release: str, since_ns: int, *more: Clause) -> tuple[int, int]:
        """(answered or blocked, failed) exchanges of a release, from the trace store."""
        clauses = [
            Clause("app", "=", app), Clause("release", "=", release), Clause("time", ">=", str(since_ns)),
            Clause("tag", "!=", "=".join(PINNED)), *more,
        ]  # fmt: skip
        sums = await self._traces.totals(self._registry.tenant, clauses, ("outcome",), quality=False)
        counts = {True: 0, False: 0}
        for t in sums:
            if (good := _COUNTED.get(t.group[0])) is not None:
                counts[good] += t.exchanges
        return counts[True], counts[False]

    def _checks(self, rollout: Rollout) -> set[str]:
        """Checks that judge the answers of both releases."""
        app = self._app(rollout.app)
        guards = [app.releases[n].guard for n in (rollout.stable, rollout.candidate) if n in app.releases]
        return set.intersection(*({g.check for g in guard} for guard in guards)) if guards else set()

    def _apps(self) -> Mapping[str, App]:
        snapshot = self._current()
        return snapshot.apps if snapshot else {}

    def _app(self, name: str) -> App:
        if self._current() is None:
            raise Unavailable("There is no configuration yet.", code="no_configuration")
        if name not in self._apps():
            raise NotFound.nearest("app", name, sorted(self._apps()), code="app_not_found")
        return self._apps()[name]


def _sane(policy: RolloutPolicy) -> None:
    """Raise `RequestError` where a policy could not be carried out."""
    steps = policy.steps
    rising = bool(steps) and steps[0] > 0 and steps[-1] <= 100 and all(a < b for a, b in pairwise(steps))
    if not rising:
        raise RequestError("Steps are percent of the traffic, rising: [1, 10, 50].", code="bad_policy", param="steps")
    rules = {
        "alpha": 0 < policy.alpha < 0.5, "max_regression": 0 < policy.max_regression < 1, "min_answers": policy.min_answers >= 1,
        "error_rate": 0 <= policy.error_rate < 1, "patience_hours": policy.patience_hours > 0, "metric": bool(policy.metric),
    }  # fmt: skip
    for field, holds in rules.items():
        if not holds:
            raise RequestError(f"{field} cannot be {getattr(policy, field)!r}.", code="bad_policy", param=field)


def _shares(rollout: Rollout, percent: float) -> dict[str, float]:
    """The app's shares where the candidate has `percent`: the others keep their proportions; at 0 all is as it was before."""
    if percent == 0:
        return {**rollout.before, rollout.candidate: 0.0}
    total = sum(rollout.before.values())
    others = {n: round(w / total * (100.0 - percent), 9) for n, w in rollout.before.items()}
    return {**others, rollout.candidate: percent}


def _target(rollout: Rollout) -> str:
    return f"{rollout.app}/{rollout.candidate}"


def _nth(id: str, number: int) -> str:
    return f"{id}|{number:06d}"
