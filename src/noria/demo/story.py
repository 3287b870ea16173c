"""One turn of the wheel, told in acts: `tell` reads like the story. Every verdict is the service's own, on what it measured.

Where a verdict is not reached, the story ends there with the reason (`NotReached`), and with it the promise of exit code 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode

from noria.app import dataset_steps as steps
from noria.app.dataset_client import DatasetClient
from noria.contracts.error import NoriaError
from noria.data.reading import Fields
from noria.demo.customers import Acts, Intent, Message
from noria.demo.damage import damaged
from noria.demo.narrate import Narrator
from noria.demo.place import DAMAGED, HISTORY, Place
from noria.demo.service import Service, running
from noria.demo.size import APP, DATASET, FIRST, STRICT, SUITE, Size
from noria.demo.traffic import Customers, Heard, Round

LOOK_S = 0.5
BEGIN_WITHIN_S = 30.0
"""How long an alert may take to open a refresh, and a rollout to end after the last customer was answered."""
WORSE = 0.40
"""How much worse the damaged candidate must be, measured, for the demo to speak of damage."""
BAD = "damaged"
UNDER_WAY = ("running", "paused", "inconclusive")
"""States of a rollout that has not ended."""


class NotReached(NoriaError):
    """A verdict that the demo is about was not reached. `act`: where."""

    def __init__(self, verdict: str, says: str) -> None:
        super().__init__(f"{verdict}: {says}", code="not_reached")


class Cast(NamedTuple):
    """Who takes part."""

    place: Place
    size: Size
    known: tuple[Intent, ...]
    acts: Acts


class Windows(NamedTuple):
    """Moments, int64 ns UTC."""

    begin: int
    split: int
    until: int


class Story:
    """The acts. What one learns, the next ones use."""

    def __init__(self, cast: Cast, narrator: Narrator) -> None:
        self._cast = cast
        self._n = narrator
        self._rest: Iterator[Message] = iter(cast.acts.rest)
        self._refresh: dict[str, Any] = {}

    @property
    def service(self) -> Service | None:
        """The service, once it serves."""
        return getattr(self, "_service", None)

    async def tell(self, stack: contextlib.AsyncExitStack) -> None:
        """All of it; the service stays until `stack` is closed. Raises `NotReached`, and what a broken service raises."""
        size = self._cast.size
        with self._act("open"):
            await self._opens(stack)
        with self._act("quiet"):
            before = await self._quiet()
        with self._act("change"):
            windows = await self._change(before)
        with self._act("alert"):
            await self._alert(windows)
        with self._act("refresh"):
            await self._refreshed()
        with self._act("canary"):
            await self._canary()
        if not size.fast:
            with self._act("fair"):
                await self._fair()
        with self._act("gate"):
            await self._meets_the_gate()
        with self._act("damage"):
            await self._caught_by_the_canary()
        with self._act("retire"):
            await self._retires()

    def _act(self, name: str) -> Any:
        act = self._cast.size.act(name)
        return self._n.phase(act.name, act.title, act.budget_s)

    def _reach(self, name: str, says: str, *, reached: bool) -> None:
        self._n.verdict(name, says, reached=reached)
        if not reached:
            raise NotReached(name, says)

    # -- before ---------------------------------------------------------------------------------------------

    async def _opens(self, stack: contextlib.AsyncExitStack) -> None:
        self._service = await stack.enter_async_context(running(self._cast.place.home, self._cast.place.config))
        self._customers = Customers(self._service.client, APP, [i.id for i in self._cast.known])
        acts, size = self._cast.acts, self._cast.size
        old = [i.id for i in self._cast.known if i.since == "v1"]
        self._n.say(f"The service runs at {self._service.url}/v1, with a home of its own in {self._service.home}.")
        what = "a classifier on n-grams, trained on the past" if size.fast else "the small base model with a prompt"
        self._n.say(f"App {APP}: v1 is {what}. It is to name what a message is about, one of {len(old)} intents.")
        version = await asyncio.to_thread(self._history, len(acts.history))
        self._n.say(
            f"Dataset v1 ({version.id[:15]}): {version.rows} messages that were filed by hand, {_shares(version.splits)}."
        )
        self._n.say(
            "The customers are played: their messages, their thumbs and the corrections come from our own labelled data. "
            "Nothing else is."
        )
        self._n.figure("first", {"version": version.id, "splits": version.splits, "intents": len(old)})

    def _history(self, rows: int) -> Any:
        client = DatasetClient(self._service.ask)
        note = f"{rows} messages of the time before"
        return steps.import_files(client, DATASET, [self._cast.place.root / HISTORY], Fields(), note=note).version

    async def _quiet(self) -> Windows:
        begin = time.time_ns()
        heard = await self._written(self._cast.acts.before, "quiet", correct=False)
        self._n.say(f"{_right(heard.heard)} of the answers named the right intent.")
        return Windows(begin, _middle(heard), time.time_ns())

    async def _change(self, before: Windows) -> Windows:
        heard = await self._written(self._cast.acts.after, "change", correct=True)
        new = {i.id for i in self._cast.known if i.since != "v1"}
        fresh = [h for h in heard.heard if h.message.intent in new]
        share, corrected = len(fresh) / len(heard.heard), sum(not h.right and not h.error for h in heard.heard)
        self._n.say(
            f"{share:.0%} asked about something new ({_right(fresh)} right), of the others {_right([h for h in heard.heard if h not in fresh])} "
            f"were right. The desk's people corrected {corrected}."
        )
        if not self._cast.size.fast:
            report = await self._compared(before)
            self._n.say(f"Compared with itself, yesterday is {report['standing']}: {report['says']}")
        return Windows(before.begin, before.until, time.time_ns())

    async def _written(self, messages: tuple[Message, ...], name: str, *, correct: bool) -> Round:
        def tell(heard: list[Heard]) -> bool:
            self._n.live(f"{len(heard)} of {len(messages)} customers answered, {_right(heard)} right")
            return True

        made = await self._customers.write(messages, rate=self._cast.size.rate, correct=correct, tell=tell)
        self._told(name, made)
        return made

    def _told(self, name: str, made: Round) -> None:
        facts = made.facts()
        self._n.figure(name, facts)
        self._n.say(
            f"{facts['sent']} messages in {facts['seconds']:.0f} s, {facts['failed']} failed; half were answered within "
            f"{facts['p50_ms'] or 0:.0f} ms, 95 % within {facts['p95_ms'] or 0:.0f} ms."
        )

    # -- the refresh ----------------------------------------------------------------------------------------

    async def _compared(self, windows: Windows) -> dict[str, Any]:
        """A drift report of two windows, made by the service's own job."""
        body = {"from_": str(windows.begin), "split": str(windows.split), "until": str(windows.until)}

        async def begun() -> str | None:
            try:
                return str((await self._service.call("POST", f"/api/drift/{APP}/run", body))["id"])
            except NoriaError as e:
                if e.code == "drift_running":  # the hourly look
                    return None
                raise

        job = await self._until(begun, BEGIN_WITHIN_S, "the drift job does not begin")

        async def done() -> dict[str, Any] | None:
            found = await self._service.call("GET", f"/api/drift/{APP}/jobs/{job}")
            return dict(found["report"]) if found["state"] == "done" else None

        report: dict[str, Any] = await self._until(done, 120.0, "the drift job does not end")
        return report

    async def _alert(self, windows: Windows) -> None:
        report = await self._compared(windows)
        drifted = [s for s in report["signals"] if s["standing"] == "drifted"]
        self._n.figure("drift", report)
        named = ", ".join(f"{s['name']} (effect {s['effect']:.3g}, q {s['q']:.2g})" for s in drifted)
        self._reach("drift", f"{report['says']} Signals: {named or 'none'}.", reached=report["standing"] == "drifted")

        async def opened() -> dict[str, Any] | None:
            found = (await self._service.call("GET", "/api/refreshes?" + urlencode({"app": APP})))["refreshes"]
            return dict(found[0]) if found else None

        found = await self._until(opened, BEGIN_WITHIN_S, "the alert opened no refresh")
        self._reach("refresh begins", f"{found['id']}, because of {found['cause']}.", reached=found["cause"] == "drift")
        self._refresh = found

    async def _turn(self) -> dict[str, Any]:
        self._refresh = await self._service.call("GET", f"/api/refreshes/{self._refresh['id']}")
        return self._refresh

    async def _refreshed(self) -> None:
        """Every step to the gate; told when it is done."""
        told: set[str] = set()
        while True:
            turn = await self._turn()
            for step in turn["steps"]:
                if step["state"] == "done" and step["name"] not in told:
                    told.add(step["name"])
                    self._n.say(f"{step['name']}: {step['says']}")
                    self._n.figure(f"step.{step['name']}", {"seconds": _seconds(step), "output": step["output"]})
            rolling = _step(turn, "rollout")["state"] != "waiting"
            if turn["state"] not in ("running", "asks") or rolling:
                break
            self._n.live(f"{turn['at']}: {_progress(turn['progress'])}")
            await asyncio.sleep(LOOK_S)
        await self._kept(turn)
        gate = _step(turn, "gate")
        says = gate["says"] or turn["says"]
        self._reach("gate", says, reached=rolling and gate["output"].get("verdict") == "pass" and not turn["words"])

    async def _kept(self, turn: dict[str, Any]) -> None:
        """What the report shows of training and evaluation."""
        measured = _step(turn, "evaluate")["output"]
        if "comparisons" in measured:
            found = [await self._service.call("GET", f"/api/evaluations/{measured[w]}") for w in ("current", "candidate")]
            self._n.figure("measured", [e["report"]["estimates"]["label"] for e in found])
            classes = {name: told["f1"] for name, told in found[1]["report"]["by_label"].items()}
            before = {name: told["f1"] for name, told in found[0]["report"]["by_label"].items()}
            self._n.figure("classes", {name: [before.get(name, 0.0), f1] for name, f1 in classes.items()})
        job = _step(turn, "train")["output"].get("job")
        if job:
            shown = await self._service.call("GET", f"/api/jobs/training/{job}")
            if shown["result"] is not None:
                self._n.figure(
                    "training",
                    {k: shown["result"][k] for k in ("steps", "seconds", "cpu_seconds", "peak_bytes", "loss", "rows")},
                )

    async def _canary(self) -> None:
        async def begun() -> dict[str, Any] | None:
            found = await self._service.call("GET", "/api/rollouts?" + urlencode({"app": APP, "limit": 1}))
            return dict(found[0]) if found else None

        rollout = await self._until(begun, BEGIN_WITHIN_S, "the refresh begins no rollout")
        heard, rollout = await self._during("canary", rollout["id"])
        if rollout["state"] in UNDER_WAY:
            says = rollout["decisions"][-1]["says"] if rollout["decisions"] else ""
            self._reach("promoted", f"no verdict after {len(heard.heard)} customers. {says}", reached=False)

        async def settled() -> dict[str, Any] | None:
            turn = await self._turn()
            return turn if turn["state"] not in ("running", "asks") else None

        turn = await self._until(settled, BEGIN_WITHIN_S, "the refresh does not end")
        self._n.figure("rollout", rollout)
        measured = turn["state"] == "promoted" and _measured(rollout, "promote")
        self._reach("promoted", turn["says"], reached=measured)

    async def _during(self, name: str, rollout: str) -> tuple[Round, dict[str, Any]]:
        """Customers write until a rollout is over, or there is nobody left; and the rollout as it stands then."""
        shown: dict[str, Any] = {"state": "running", "percent": 0.0}

        async def watched() -> None:
            while shown["state"] in UNDER_WAY:
                shown.update(await self._service.call("GET", f"/api/rollouts/{rollout}"))
                await asyncio.sleep(LOOK_S)

        watch = asyncio.create_task(watched())

        def tell(heard: list[Heard]) -> bool:
            self._n.live(f"{len(heard)} customers answered, {_right(heard)} right; the candidate has {shown['percent']:g} %")
            return not watch.done()

        try:
            made = await self._customers.write(self._rest, rate=self._cast.size.canary_rate, correct=False, tell=tell)
            await asyncio.wait((watch,), timeout=BEGIN_WITHIN_S)
            self._told(name, made)
            if watch.done():
                watch.result()
            return made, shown
        finally:
            watch.cancel()

    # -- what else there is ---------------------------------------------------------------------------------

    async def _fair(self) -> None:
        """The base once more, with every name in its prompt and its answer forced into one of them."""
        found = await self._evaluated(STRICT)
        self._n.figure("strict", found["report"]["estimates"]["label"])
        self._n.say(
            f"The untrained base with all names in its prompt, forced to answer by one of them: {_interval(found)}. "
            "So the gain is not only one of form."
        )

    async def _evaluated(self, release: str) -> dict[str, Any]:
        """A release on the suite that the refresh measured by."""
        suite = _step(self._refresh, "version")["output"]["suite"]
        begun = await self._service.call("POST", "/api/evaluations", {"definition": suite, "app": APP, "release": release})

        async def done() -> dict[str, Any] | None:
            found = await self._service.call("GET", f"/api/evaluations/{begun['id']}")
            if found["state"] == "running":
                p = found["progress"]
                self._n.live(f"{release}: {p.get('done', 0)} of {p.get('total', '?')} items")
                return None
            return dict(found)

        found: dict[str, Any] = await self._until(done, 600.0, f"the evaluation of {release} does not end")
        if found["state"] != "done":
            raise NotReached("evaluation", f"{release} could not be measured: {found['says']}")
        return found

    async def _meets_the_gate(self) -> None:
        exported, train = (_step(self._refresh, name)["output"] for name in ("export", "train"))
        source = self._service.home / "training" / "local" / train["job"]
        name = train["files"]["tiny_model" if exported["kind"] == "tiny_model" else "adapter_gguf"]
        target = self._cast.place.root / f"{DAMAGED}{name}"
        self._n.say(
            f"A copy of what was trained is damaged on purpose: {await asyncio.to_thread(damaged, source / name, target)}."
        )
        made = await self._service.local(
            "POST", "/api/artifacts", {
                "kind": exported["kind"], "files": {name: str(target)}, "inputs": {"damaged": exported["served"]},
                "facts": {"scale": "1"} if exported["kind"] == "adapter_gguf" else {},
            },
        )  # fmt: skip
        part = "adapter" if exported["kind"] == "adapter_gguf" else "model"
        body = {
            "app": APP,
            "parent": self._refresh["release"],
            "name": BAD,
            part: made["id"],
            "note": "Damaged on purpose by the demo.",
        }
        release = await self._service.call("POST", "/api/releases", body)
        await self._served(release)
        found, good = await self._evaluated(BAD), _step(self._refresh, "evaluate")["output"]["candidate"]
        compared = await self._service.call(
            "POST", "/api/evaluations/compare", {"first": good, "second": found["id"], "margins": {"label": self._margin}}
        )
        comparison = next(c for c in compared["comparisons"] if c["metric"] == "label")
        d = comparison["difference"]
        self._n.figure("damaged", {"comparison": comparison, "estimate": found["report"]["estimates"]["label"]})
        says = f"{_interval(found)} against the promoted release: {d['value']:+.1%} [{d['low']:+.1%}, {d['high']:+.1%}]."
        self._reach("really damaged", says, reached=d["value"] <= -WORSE)
        self._evidence = {"compared": {SUITE: compared["comparisons"]}}
        rollout = await self._service.call("POST", "/api/rollouts", self._asked())
        failed = [f for f in rollout["findings"] if f["verdict"] == "fail"]
        self._n.figure("rejected", rollout)
        caught = rollout["state"] == "rejected" and [f["rule"]["kind"] for f in failed] == ["quality"]
        self._reach("caught at the gate", " ".join(f["says"] for f in failed) or rollout["state"], reached=caught)

    _evidence: dict[str, Any]

    @property
    def _margin(self) -> float:
        return float(self._cast.size.gate["margin"])

    def _asked(self) -> dict[str, Any]:
        rules = [{"kind": "quality", "metric": "label", "suite": SUITE, "margin": self._margin}, {"kind": "signature"}]
        return {"app": APP, "candidate": BAD, "policy": self._cast.size.rollout, "rules": rules, "evidence": self._evidence}

    async def _served(self, release: dict[str, Any]) -> None:
        """Until the release's model is there and every worker knows it."""
        first = release["model"].partition(" → ")[0]

        async def ready() -> bool | None:
            status = await self._service.call("GET", "/api/status")
            model = next((m for m in status["models"] if m["name"] == first), None)
            if model is not None and model["state"] == "failed":
                raise NotReached("served", f"{first} cannot be loaded: {model['detail']}")
            same = all(w["config"] == status["config"] for w in status["workers"] if w["seen_seconds_ago"] < 3)
            return True if model is not None and model["state"] == "ready" and same else None

        await self._until(ready, 120.0, f"{first} is not served")

    async def _caught_by_the_canary(self) -> None:
        waive = {"by": "demo", "why": "To see whether the canary catches it, too."}
        rollout = await self._service.call("POST", "/api/rollouts", {**self._asked(), "waive": waive})
        self._n.say(
            f"Somebody waives the gate ({rollout['waived']}): {BAD} gets {self._cast.size.rollout['steps'][0]} % of the customers."
        )

        heard, found = await self._during("damage", rollout["id"])
        if found["state"] in UNDER_WAY:
            self._reach("rolled back", f"no verdict after {len(heard.heard)} customers", reached=False)
        self._n.figure("rolled_back", found)
        self._reach("rolled back", found["reason"], reached=found["state"] == "rolled_back" and _measured(found, "roll_back"))

    async def _retires(self) -> None:
        for name in (FIRST, *(() if self._cast.size.fast else (STRICT,))):
            await self._service.call("POST", "/api/releases/retire", {"app": APP, "name": name, "why": "Its successor serves."})
        left = await self._service.call("GET", "/api/releases?" + urlencode({"app": APP}))
        serving = [r for r in left if r["percent"]]
        gone = next(r for r in left if r["name"] == FIRST)
        says = f"{FIRST} is served no more; {serving[0]['name']} ({serving[0]['id'][:11]}) has {serving[0]['percent']:g} % of the traffic."
        self._n.figure("releases", left)
        self._reach("retired", says, reached=bool(gone["retired_ns"]) and serving[0]["id"] == self._refresh["release"])

    async def _until(self, look: Callable[[], Awaitable[Any]], seconds: float, otherwise: str) -> Any:
        """What `look` gives as soon as it gives something. Raises `NotReached`."""
        end = time.monotonic() + seconds
        while (found := await look()) is None:
            if time.monotonic() > end:
                raise NotReached("in time", f"{otherwise} within {seconds:.0f} s")
            await asyncio.sleep(LOOK_S / 2)
        return found


def _measured(rollout: dict[str, Any], action: str) -> bool:
    """Whether the last decision is that, and was made on what was measured: a person's names them."""
    if not rollout["decisions"]:
        return False
    last = rollout["decisions"][-1]
    evidence = last["evidence"]
    return last["action"] == action and "by" not in evidence and evidence.get("candidate", {}).get("judged", 0) > 0


def _step(turn: dict[str, Any], name: str) -> dict[str, Any]:
    return next(dict(s) for s in turn["steps"] if s["name"] == name)


def _seconds(step: dict[str, Any]) -> float:
    return round((int(step["ended_ns"]) - int(step["began_ns"])) / 1e9, 1)


def _middle(heard: Round) -> int:
    return time.time_ns() - int(heard.seconds * 0.5e9)


def _right(heard: list[Heard] | tuple[Heard, ...]) -> str:
    return f"{sum(h.right for h in heard) / len(heard):.0%}" if heard else "none"


def _shares(splits: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in splits.items())


def _interval(evaluation: dict[str, Any]) -> str:
    e = evaluation["report"]["estimates"]["label"]
    return f"{e['value']:.1%} [{e['low']:.1%}, {e['high']:.1%}] of {e['n']}"


def _progress(p: dict[str, Any]) -> str:
    """How far a step is, from what it tells."""
    if p.get("loss") is not None:
        return f"step {p['step']} of {p['steps']}, loss {p['loss']:.2f}, {p['eta_seconds']:.0f} s left"
    if "done" in p:
        return f"{p.get('release', '')} {p['done']} of {p.get('total') or '?'} {p.get('unit', '')}".strip()
    return str(p.get("phase") or p.get("note") or "")
