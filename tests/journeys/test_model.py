"""The journey of a model over work that the test does: every step once, in order; killed anywhere, the same end."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from noria.contracts.error import NoriaError, Unavailable
from noria.contracts.evaluation import Estimate, Suite
from noria.contracts.refresh import (
    STEPS,
    Compared,
    Data,
    Detected,
    Ending,
    Exported,
    Harvested,
    Judged,
    Leaked,
    Measured,
    Plan,
    Refresh,
    RefreshPolicy,
    Released,
    Rolled,
    Settled,
    Step,
    Trained,
    Versioned,
    Word,
)
from noria.journeys.model import Asks, Failed, Table, inputs, turn

PLAN = Plan(
    RefreshPolicy("s", Data("desk")), Suite("s", "desk"), "exact", "d1:0", "r1:old", "main", "", "", 0, 1,
)  # fmt: skip
AGREED = Estimate(1.0, 0.9, 1.0, 40, "wilson")


class Killed(BaseException):
    """The process is gone."""


class Worked:
    """Answers at once, and counts what it was asked; `found` replaces what a step gives."""

    def __init__(self, cause: Any = "person", **found: Any) -> None:
        self.calls: Counter[str] = Counter()
        self.found = {
            "detect": Detected(cause, "drifted", "", "d"),
            "harvest": Harvested("d1:a", "d1:0", 10, 3, {}, "h"),
            "version": Versioned("d1:b", {"train": 8}, {}, Suite("s", "d1:b"), "v"),
            "leak": Leaked("d1:c", 8, 2, 0, 0, "d1:b", (), "l"),
            "train": Trained("train_1", "/f", {}, 8, 1, 1.0, 2.0, 1.0, "t"),
            "export": Exported("a1:x", "adapter_gguf", {}, "e"),
            "equivalence": Compared(AGREED, 1.0, 1.0, "", "same"),
            "release": Released("r1:new", "tuned", False, "r"),
            "evaluate": Measured("e1", "e2", (), {}, "m"),
            "gate": Judged("pass", (), "g"),
            "rollout": Rolled("roll", "promoted", {}, "better."),
            "settle": Settled("r1:new", 100.0, "settled."),
        } | found

    def __getattr__(self, name: str) -> Any:
        async def do(*reads: Any) -> Any:
            self.calls[name] += 1
            found = self.found[name]
            if isinstance(found, BaseException):
                raise found
            return found(*reads) if callable(found) else found

        return do


class Kept:
    """The keeper's record of one turn."""

    def __init__(self, plan: Plan = PLAN, **given: Any) -> None:
        self.refresh = Refresh("refresh_1", "app", "person", "ann", plan, 0, **given)
        self.puts = 0
        self.dies_at = -1
        self.late = False
        """Whether it dies after the put, not before."""

    async def keep(self, step: Step) -> None:
        self.puts += 1
        if self.puts == self.dies_at and not self.late:
            raise Killed
        steps = tuple(step if s.name == step.name else s for s in self.refresh.steps)
        self.refresh = replace(self.refresh, steps=steps)
        if self.puts == self.dies_at:
            raise Killed

    def run(self, work: Worked) -> Ending:
        return asyncio.run(turn(self.refresh.plan, work, Table(self.refresh, self.keep, lambda: 7)))


def test_a_turn_does_each_step_once_in_order_and_says_how_it_ended() -> None:
    kept, work = Kept(), Worked()
    ending = kept.run(work)
    assert ending == Ending("promoted", "better. settled.")
    assert tuple(work.calls) == STEPS
    assert set(work.calls.values()) == {1}
    assert {s.state for s in kept.refresh.steps} == {"done"}
    assert [s.says for s in kept.refresh.steps][:3] == ["d", "h", "v"]
    again = Worked()
    assert kept.run(again) == ending
    assert not again.calls, "what is done with the same inputs is not done again"


@given(st.lists(st.tuples(st.integers(1, 24), st.booleans()), max_size=6))
def test_killed_anywhere_and_taken_up_again_it_ends_the_same(kills: list[tuple[int, bool]]) -> None:
    kept, work = Kept(), Worked()
    whole = Kept()
    expected = whole.run(Worked())
    for at, late in kills:
        kept.puts, kept.dies_at, kept.late = 0, at, late
        try:
            assert kept.run(work) == expected
        except Killed:
            continue
    kept.dies_at = -1
    assert kept.run(work) == expected
    assert [(s.name, s.inputs, s.output) for s in kept.refresh.steps] == [
        (s.name, s.inputs, s.output) for s in whole.refresh.steps
    ]
    assert all(n <= len(kills) + 1 for n in work.calls.values())


def test_a_step_is_done_again_where_what_it_reads_has_changed() -> None:
    kept = Kept()
    kept.run(Worked())
    old = kept.refresh
    changed = tuple(replace(s, inputs="other") if s.name == "train" else s for s in old.steps)
    kept.refresh = replace(old, steps=changed)
    work = Worked(train=Trained("train_2", "/g", {}, 8, 1, 1.0, 2.0, 1.0, "t"))
    kept.run(work)
    assert list(work.calls) == ["train", "export", "equivalence"], "the release is made from the same artifact"
    assert inputs("train", PLAN) != inputs("leak", PLAN)
    assert inputs("train", PLAN) != inputs("train", replace(PLAN, until_ns=2))
    assert inputs("train", PLAN, {"a": 1, "b": 2}) == inputs("train", PLAN, {"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("found", "state", "last"),
    [
        ({"cause": "drift", "harvest": Harvested("d1:a", "d1:0", 10, 0, {}, "h")}, "inconclusive", "harvest"),
        ({"equivalence": Compared(None, 0, 0, "wrong_eos", "It ends elsewhere.")}, "rejected", "equivalence"),
        ({"release": Released("r1:old", "main", True, "The same again.")}, "rejected", "release"),
        ({"gate": Judged("fail", (), "Worse.")}, "rejected", "gate"),
        ({"gate": Judged("inconclusive", (), "30 more.")}, "inconclusive", "gate"),
        ({"rollout": Rolled("roll", "inconclusive", {}, "No verdict.")}, "inconclusive", "rollout"),
        ({"rollout": Rolled("roll", "rolled_back", {}, "Harm.")}, "rolled_back", "settle"),
    ],
    ids=["too few rows", "fault in a file", "nothing learned", "gate fails", "gate cannot tell", "rollout cannot tell", "harm"],
)
def test_where_a_turn_ends_and_why(found: dict[str, Any], state: str, last: str) -> None:
    work = Worked(**found)
    ending = Kept().run(work)
    assert (ending.state, list(work.calls)[-1]) == (state, last)
    assert ending.says


def test_few_rows_do_not_keep_a_person_from_a_turn() -> None:
    work = Worked(harvest=Harvested("d1:a", "d1:a", 10, 0, {}, "h"))
    assert Kept().run(work).state == "promoted"


def test_leaked_rows_reject_where_they_are_not_dropped() -> None:
    leaked = Leaked("d1:c", 8, 2, 1, 1, "d1:b", ("x",), "1 was trained on.")
    refusing = replace(PLAN, policy=replace(PLAN.policy, data=Data("desk", leak="refuse")))
    work = Worked(leak=leaked)
    assert Kept(refusing).run(work) == Ending("rejected", "1 was trained on.")
    assert "train" not in work.calls


def word(action: Any, step: Any) -> Word:
    return Word(action, step, "ann", 1, "because")


def test_a_person_is_asked_before_a_step_and_answers_once() -> None:
    asking = replace(PLAN, policy=replace(PLAN.policy, ask=("train", "rollout")))
    kept, work = Kept(asking), Worked()
    for step in ("train", "rollout"):
        with pytest.raises(Asks) as asked:
            kept.run(work)
        assert (asked.value.step.name, asked.value.step.state) == (step, "asks")
        assert step not in work.calls
        kept.refresh = replace(kept.refresh, words=(*kept.refresh.words, word("approve", step)))
    assert kept.run(work).state == "promoted"
    assert set(work.calls.values()) == {1}


def test_a_gate_that_fails_asks_a_person_and_goes_on_with_a_waiver() -> None:
    asking = replace(PLAN, policy=replace(PLAN.policy, ask=("gate",)))
    seen: list[Any] = []
    work = Worked(
        gate=Judged("fail", (), "Worse."), rollout=lambda *reads: seen.append(reads[-1]) or Rolled("r", "promoted", {}, "")
    )
    kept = Kept(asking)
    with pytest.raises(Asks) as asked:
        kept.run(work)
    assert asked.value.step.output["verdict"] == "fail", "what it found stays to be looked at"
    kept.refresh = replace(kept.refresh, words=(word("waive", "gate"),))
    assert kept.run(work).state == "promoted"
    assert seen == ["ann: because"], "the rollout is told who let it pass, and why"
    passing = Worked(rollout=lambda *reads: seen.append(reads[-1]) or Rolled("r", "promoted", {}, ""))
    Kept(asking, words=(word("waive", "gate"),)).run(passing)
    assert seen[-1] == "", "a gate that was passed was not waived"


def test_what_a_step_raises_fails_the_turn_and_an_outage_does_not() -> None:
    kept = Kept()
    with pytest.raises(Failed, match=r"train: out of memory\. Buy more") as failed:
        kept.run(Worked(train=NoriaError("out of memory.", hint="Buy more.")))
    assert (failed.value.step.state, failed.value.step.name) == ("failed", "train")
    with pytest.raises(Unavailable):
        kept.run(Worked(train=Unavailable("the keeper is away")))
    assert kept.refresh.step("train").state == "running"


def test_what_a_step_has_begun_is_known_to_whoever_takes_it_up() -> None:
    kept = Kept()
    table = Table(kept.refresh, kept.keep, lambda: 7)

    async def begin(*_: Any) -> Any:
        await table.note("train", {"job": "train_9"})
        raise Killed

    async def first() -> None:
        await table.step("train", Trained, begin, PLAN)

    with pytest.raises(Killed):
        asyncio.run(first())
    assert kept.refresh.step("train").output == {"job": "train_9"}
    seen = []

    async def second() -> None:
        again = Table(kept.refresh, kept.keep, lambda: 8)

        async def do(*_: Any) -> Trained:
            seen.append(kept.refresh.step("train"))
            return Trained("train_9", "/f", {}, 8, 1, 1.0, 2.0, 1.0, "t")

        await again.step("train", Trained, do, PLAN)

    asyncio.run(second())
    assert (seen[0].output, seen[0].attempt) == ({"job": "train_9"}, 2)
