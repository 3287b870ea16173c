"""`apps.<app>.refresh`: defaults, what it means, and mistakes with their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from noria.app.stores import define
from noria.contracts.refresh import Data, Gate, Training
from noria.contracts.rollout import RolloutPolicy
from noria.contracts.training import Lora, Schedule
from noria.settings import InvalidSettings, loads
from noria.settings.refresh import RefreshSettings

TEXT = """
models: {{m: {{provider: scripted, model: m}}}}
suites: {{intents: {{dataset: desk, metrics: [label, {{f1: {{articles: true}}}}]}}}}
apps:
  support:
    model: m
    {drift}
    refresh: {{suite: intents, data: {{dataset: desk}}, {more}}}
"""


def mistakes(more: str = "start: manual", drift: str = "drift: {}", suite: str = "intents") -> list[str]:
    text = TEXT.format(more=more, drift=drift).replace("suite: intents", f"suite: {suite}")
    try:
        loads(text.encode(), name="f", folder=Path("/tmp"))
    except InvalidSettings as e:
        return [str(p) for p in e.problems]
    return []


def test_the_least_that_is_written_has_the_contracts_defaults() -> None:
    policy = RefreshSettings(suite="s", data={"dataset": "d"}).policy(RolloutPolicy(min_answers=3))
    assert policy.data == Data("d")
    assert policy.train == Training(lora=Lora(), schedule=Schedule())
    assert policy.gate == Gate()
    assert (policy.rollout.min_answers, policy.start, policy.ask) == (3, "manual", ())


def test_everything_that_is_written_arrives() -> None:
    policy = RefreshSettings(
        suite="s", metric="f1", start="schedule", every="2d", cool_down="1h", ask=["gate"], concurrency=2,
        data={"dataset": "d", "since": "3d", "near": None, "splits": {"train": 0.5, "test": 0.5}, "langs": ["zh"], "leak": "refuse"},
        train={"method": "tiny", "seed": 7, "memory": "1GB", "lora": {"r": 4}, "schedule": {"steps": 9}, "outputs": ["merged_q8_0"]},
        gate={"latency": None, "equivalence": 0.9}, rollout={"steps": [5.0]},
    ).policy(RolloutPolicy(min_answers=3))  # fmt: skip
    assert (policy.every_seconds, policy.cool_down_seconds, policy.data.since_seconds) == (172_800.0, 3600.0, 259_200.0)
    assert (policy.data.splits, policy.data.langs) == ((("train", 0.5), ("test", 0.5)), ("zh",))
    assert (policy.train.memory, policy.train.lora.r, policy.train.schedule.steps) == (1 << 30, 4, 9)
    assert (policy.gate.latency, policy.gate.equivalence) == (None, 0.9)
    assert (policy.rollout.steps, policy.rollout.min_answers) == ((5.0,), 200), "its own rollout, not the app's"


def test_the_definition_keeps_what_was_written_so_that_a_turn_may_change_it() -> None:
    loaded = loads(TEXT.format(more="start: drift", drift="drift: {}").encode(), name="f", folder=Path("/tmp"))
    assert define(loaded).refreshes == {"support": {"suite": "intents", "data": {"dataset": "desk"}, "start": "drift"}}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"suite": "intent"}, "refresh.suite: The suite 'intent' does not exist. Did you mean 'intents'?"),
        ({"more": "metric: f2"}, "refresh.metric: The metric 'f2' does not exist. Known: f1, label."),
        ({"more": "start: drift", "drift": "description: x"}, "refresh.start: Nobody watches whether this app drifts."),
        ({"more": "trian: {}"}, "There is no key 'trian' here. Did you mean 'train'?"),
        ({"more": "ask: [promote]"}, "Must be 'harvest', 'train', 'evaluate', 'gate' or 'rollout', not 'promote'."),
        ({"more": "rollout: {steps: [50, 10]}"}, "each above the one before"),
    ],
)  # fmt: skip
def test_mistakes_are_named(given: dict[str, str], says: str) -> None:
    assert any(says in m for m in mistakes(**given)), mistakes(**given)


def test_splits_add_up() -> None:
    text = TEXT.format(more="start: manual", drift="drift: {}").replace(
        "{dataset: desk}, start", "{dataset: desk, splits: {train: 0.8}}, start"
    )
    with pytest.raises(InvalidSettings, match="add up to 1"):
        loads(text.encode(), name="f", folder=Path("/tmp"))
