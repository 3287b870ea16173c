"""One turn of the wheel: a durable table of idempotent steps (ADR 23)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

STEPS = (
    "detect", "harvest", "version", "leak", "train", "export", "equivalence", "evaluate", "release", "gate", "rollout", "settle",
)  # fmt: skip
"""In order; `journeys/model.py` reads like this list."""

StepState = Literal["waiting", "running", "done", "failed", "skipped", "asks"]


class Step(msgspec.Struct, frozen=True):
    """One step of one refresh. `inputs` is the hash of everything that it reads: with the same inputs it is not run again."""

    name: str
    state: StepState
    inputs: str = ""
    output: dict[str, Any] = {}
    began_ns: int = 0
    ended_ns: int = 0
    attempt: int = 0
    says: str = ""
    """For people: what it found, or why it failed and what to do."""


class Refresh(msgspec.Struct, frozen=True):
    """One turn. It ends promoted, rejected, rolled_back, inconclusive, stopped or failed; each with its reason."""

    id: str
    app: str
    cause: Literal["drift", "schedule", "person", "demo"]
    plan: dict[str, Any]
    """Every setting of the turn, resolved: data, training, suite, gate, rollout; its hash is part of every step's inputs."""
    began_ns: int
    steps: tuple[Step, ...] = ()
    state: Literal["running", "asks", "promoted", "rejected", "rolled_back", "inconclusive", "stopped", "failed"] = "running"
    ended_ns: int = 0
    job: str = ""
    """The job that works on it."""
    says: str = ""
