"""How large the demo is, and how long each act may take: in full with a language model, `fast` with a classifier in its place."""

from __future__ import annotations

from typing import Any

import msgspec

from noria.demo.customers import Deal

APP, DATASET, SUITE, FIRST, STRICT = "desk", "desk", "intents", "v1", "strict"
PROMPT = "Name the intent."
"""Of v1, and so of what is trained: short, for each of its tokens is computed again in every row of every step."""
BASE = "smollm2-135m"


class Act(msgspec.Struct, frozen=True):
    """One part of the story; `budget_s` is meant for two cores that do nothing else."""

    name: str
    title: str
    budget_s: float


class Size(msgspec.Struct, frozen=True):
    """Everything that is a number."""

    fast: bool
    deal: Deal
    rate: float
    """Messages a second, at most."""
    canary_rate: float
    """The same while a rollout is under way: it is looked at once a second, and messages are few."""
    splits: dict[str, float]
    train: dict[str, Any]
    """`apps.desk.refresh.train`."""
    gate: dict[str, Any]
    rollout: dict[str, Any]
    params: dict[str, Any]
    """Of a request."""
    acts: tuple[Act, ...]

    def act(self, name: str) -> Act:
        """One act by its name."""
        return next(a for a in self.acts if a.name == name)

    @property
    def budget_s(self) -> float:
        """All of it."""
        return sum(a.budget_s for a in self.acts)


ROLLOUT = {"steps": [25, 50], "metric": "thumbs_up", "max_regression": 0.15, "min_answers": 30, "patience_hours": 0.5}
"""A margin of 0.15 can be had from some hundred answers; excluding a drop of 0.02 takes tens of thousands."""


def _acts(*seconds: float) -> tuple[Act, ...]:
    told = (
        ("open", "A help desk opens"),
        ("quiet", "Yesterday: v1 answers what it knows"),
        ("change", "Today: customers ask about new things, and say what is right"),
        ("alert", "The service notices, and a refresh begins by itself"),
        ("refresh", "The refresh: dataset v2, training, evaluation, gate"),
        ("canary", "The canary: real answers decide"),
        ("fair", "For comparison: the base with a better prompt"),
        ("gate", "A damaged candidate meets the gate"),
        ("damage", "The gate is waived: the canary is what is left"),
        ("retire", "v1 retires"),
    )
    return tuple(Act(name, title, s) for (name, title), s in zip(told, seconds, strict=True))


FULL = Size(
    fast=False, deal=Deal(40, 8, 8, 30), rate=6.0, canary_rate=6.0, splits={"train": 0.75, "validation": 0.07, "test": 0.18},
    train={
        "method": "sft", "outputs": ["adapter_gguf"], "lora": {"r": 16, "alpha": 32},
        "schedule": {"epochs": 1, "batch": 8, "learning_rate": 1e-3, "max_length": 96, "checkpoint_every": 50},
    },
    gate={"margin": 0.05, "latency": 3.0, "equivalence": 0.85}, rollout=ROLLOUT, params={"max_tokens": 8},
    acts=_acts(30, 35, 85, 20, 370, 60, 40, 50, 40, 10),
)  # fmt: skip
FAST_SCHEDULE = {"epochs": 20, "batch": 16, "learning_rate": 2e-3}
FAST = Size(
    fast=True, deal=Deal(40, 7, 6, 18), rate=60.0, canary_rate=20.0, splits={"train": 0.72, "validation": 0.1, "test": 0.18},
    train={"method": "tiny", "schedule": FAST_SCHEDULE},
    gate={"margin": 0.05, "latency": None, "equivalence": 0.95}, rollout=ROLLOUT, params={},
    acts=_acts(10, 5, 8, 10, 20, 15, 0, 8, 8, 3),
)  # fmt: skip
