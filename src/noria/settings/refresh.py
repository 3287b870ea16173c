"""`apps.<app>.refresh`: how an app's traffic becomes its next release, as it is written and as `journeys.model` has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from noria.contracts.refresh import Asking, Data, Gate, Output, RefreshPolicy, Training
from noria.contracts.rollout import RolloutPolicy
from noria.contracts.training import Lora, Schedule
from noria.settings.document import Document
from noria.settings.problem import Path, Problem, unknown
from noria.settings.rollout import PolicySettings
from noria.settings.shape import Duration, Size, Strict

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _whole(shares: dict[str, float]) -> dict[str, float]:
    if any(not 0 < share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError("The shares of the splits add up to 1, each above 0: {train: 0.8, validation: 0.1, test: 0.1}")
    return shares


class DataSettings(Strict):
    """What is learned from."""

    dataset: str = Field(min_length=1)
    """Its latest version, beside what is harvested; each turn makes the next version of it."""
    harvest: Literal["corrections", "none"] = "corrections"
    """`corrections`: exchanges to which a person gave a correction or a label; `none`: the dataset as it is."""
    since: Duration = Field(default=30 * 86_400.0, ge=1)
    """How far back exchanges are looked at."""
    where: str = ""
    """Further conditions on them, as of `noria trace list`: `language = zh`."""
    limit: int = Field(default=20_000, ge=1, le=1_000_000)
    """How many exchanges are looked at, at most, newest first."""
    min_new: int = Field(default=1, ge=0)
    """A turn that drift or the schedule began goes on only with so many rows that the dataset did not have."""
    pii: Literal["mask", "drop", "flag", "off"] = "mask"
    """What becomes of personal data in harvested rows, before anything is stored."""
    min_chars: int = Field(default=1, ge=0)
    """Shorter questions are left out."""
    max_chars: int | None = Field(default=None, ge=1)
    """Longer rows (prompt and answer) are left out."""
    langs: list[str] = []
    """Languages wanted (ISO 639-1); empty = all."""
    near: float | None = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity from which on two questions are one; null = only the same text is."""
    splits: Annotated[dict[str, float], Field(min_length=1), AfterValidator(_whole)] = {
        "train": 0.8,
        "validation": 0.1,
        "test": 0.1,
    }
    """Shares by which new rows are split; rows that are in one of these splits stay there."""
    leak: Literal["drop", "refuse"] = "drop"
    """What becomes of training rows that the suite asks, too: they are left out, or the turn is rejected."""


class LoraSettings(Strict):
    """Low-rank adaptation."""

    r: int = Field(default=16, ge=1, le=256)
    """Its rank."""
    alpha: int = Field(default=32, ge=1, le=1024)
    """Its scale, over the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of its inputs."""
    targets: list[Target] = list(get_args(Target))
    """The layers that it is put upon."""


class ScheduleSettings(Strict):
    """How long and how fast."""

    epochs: float = Field(default=1.0, gt=0, le=1000)
    """Rounds over the rows."""
    steps: int = Field(default=0, ge=0)
    """At most so many optimiser steps; 0 = as `epochs` says."""
    batch: int = Field(default=8, ge=1, le=1024)
    """Rows of a step."""
    accumulate: int = Field(default=1, ge=1, le=1024)
    """Batches of a step."""
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    """At its height."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which it rises."""
    max_length: int = Field(default=256, ge=8, le=131_072)
    """Tokens of a row; longer ones are left out by name."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps."""


class TrainingSettings(Strict):
    """What is trained, upon what."""

    method: Literal["sft", "tiny"] = "sft"
    """`sft`: LoRA upon a local model (needs noria[train]); `tiny`: a classifier on n-grams, in seconds and without torch."""
    base: str = ""
    """An installed model; empty = that of the current release."""
    outputs: list[Output] = Field(default=["adapter_gguf"], min_length=1)
    """What is made of it; the first is what is served. Not asked by `tiny`."""
    split: str = "train"
    """Rows that are trained on."""
    validation: str = "validation"
    """Rows that are held out, by which what is served is compared with what was trained."""
    lora: LoraSettings = LoraSettings()
    """Low-rank adaptation."""
    schedule: ScheduleSettings = ScheduleSettings()
    """How long and how fast."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the order of the rows and the start weights."""
    memory: Size = Field(default=0, ge=0)
    """Most memory that it may be predicted to take; 0 = as `train.memory`."""


class GateSettings(Strict):
    """What a candidate must show before it sees traffic; null = not asked. That its artifacts are whole and signed, and that it is what
    was trained on this version of the data, is asked always.
    """

    margin: float = Field(default=0.02, gt=0, lt=1)
    """On the suite's metric a drop as large as this must be excluded (95 % interval)."""
    latency: float | None = Field(default=2.0, gt=0)
    """Its median latency is at most so many times the current release's."""
    cost: float | None = Field(default=None, gt=0)
    """Its mean cost is at most so many times the current release's."""
    equivalence: float | None = Field(default=0.95, gt=0, le=1)
    """Least share of answers that the served model has in common with the trained one."""
    leak: bool = True
    """No row of the suite was trained on."""


class RefreshSettings(Strict):
    """One turn: harvest, version, leak gate, train, export, equivalence, release, evaluate, gate, rollout."""

    suite: str = Field(min_length=1)
    """A name under `suites`: what the current release and the candidate are measured by."""
    metric: str = ""
    """The metric of the suite on which the candidate must not be worse; empty = its first one."""
    data: DataSettings
    """What is learned from."""
    train: TrainingSettings = TrainingSettings()
    """What is trained."""
    gate: GateSettings = GateSettings()
    """What the candidate must show."""
    rollout: PolicySettings | None = None
    """How the candidate gets traffic; when absent, as the app's `rollout`."""
    start: Literal["drift", "schedule", "manual"] = "manual"
    """What begins a turn: an alert of `drift`, `every`, or a person alone. A person always may."""
    every: Duration = Field(default=7 * 86_400.0, ge=1)
    """With `start: schedule`: from one beginning to the next."""
    cool_down: Duration = Field(default=86_400.0, ge=0)
    """With `start: drift`: for so long after a turn has ended none is begun."""
    ask: list[Asking] = []
    """Steps before which a person is asked; `gate`: asked where the gate does not let the candidate pass, in place of rejecting it."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Items of the suite that are asked at once."""

    def policy(self, rollout: RolloutPolicy) -> RefreshPolicy:
        """As a turn has it; `rollout` is the app's."""
        d, t = self.data, self.train
        data = d.model_dump(exclude={"since"}) | {"langs": tuple(d.langs), "since_seconds": d.since}
        data["splits"] = tuple(d.splits.items())
        lora = Lora(**t.lora.model_dump() | {"targets": tuple(t.lora.targets)})
        plain = t.model_dump(exclude={"lora", "schedule"}) | {"outputs": tuple(t.outputs)}
        return RefreshPolicy(
            self.suite, Data(**data), self.metric, Training(lora=lora, schedule=Schedule(**t.schedule.model_dump()), **plain),
            Gate(**self.gate.model_dump()), self.rollout.policy() if self.rollout else rollout, self.start, self.every,
            self.cool_down, tuple(self.ask), self.concurrency,
        )  # fmt: skip


def problems(doc: Document, app: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """The suite must be there and have the metric; a start by drift needs somebody who watches."""
    given = app.get("refresh")
    if not isinstance(given, dict):
        return
    at = (*path, "refresh")
    declared = {name: value for name, value, _ in doc.entries("suites")}
    suite = given.get("suite")
    if isinstance(suite, str) and suite not in declared:
        yield doc.problem((*at, "suite"), *unknown("suite", suite, list(declared)))
    elif isinstance(suite, str) and isinstance(given.get("metric"), str) and given["metric"]:
        metrics = _metrics(declared[suite])
        if given["metric"] not in metrics:
            yield doc.problem((*at, "metric"), *unknown("metric", given["metric"], metrics))
    if given.get("start") == "drift" and not isinstance(app.get("drift"), dict):
        yield doc.problem((*at, "start"), "Nobody watches whether this app drifts.", "Write `drift: {}` under the app.")


def _metrics(suite: Any) -> list[str]:
    listed = suite.get("metrics") if isinstance(suite, dict) else None
    if not isinstance(listed, list):
        return ["exact"]
    return [item if isinstance(item, str) else next(iter(item), "") for item in listed if isinstance(item, str | dict)]
