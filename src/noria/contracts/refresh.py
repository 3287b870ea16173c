"""One turn of the wheel: what it is asked to do, and a durable table of idempotent steps (ADR 23)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from noria.contracts.evaluation import Comparison, Estimate, Suite
from noria.contracts.rollout import Finding, RolloutPolicy, Verdict
from noria.contracts.training import Lora, Schedule

StepName = Literal[
    "detect", "harvest", "version", "leak", "train", "export", "equivalence", "release", "evaluate", "gate", "rollout", "settle",
]  # fmt: skip
STEPS: tuple[StepName, ...] = get_args(StepName)
"""In order; `journeys/model.py` reads like this list."""

StepState = Literal["waiting", "running", "done", "failed", "asks"]
State = Literal["running", "asks", "promoted", "rejected", "rolled_back", "inconclusive", "stopped", "failed"]
OPEN: frozenset[State] = frozenset({"running", "asks"})
"""An app has one of these at most."""
Cause = Literal["drift", "schedule", "person", "demo"]
Action = Literal["approve", "reject", "waive", "stop", "resume"]
Asking = Literal["harvest", "train", "evaluate", "gate", "rollout"]
Output = Literal["adapter_gguf", "merged_f16", "merged_q8_0", "merged_q4_k_m"]


class Data(msgspec.Struct, frozen=True):
    """What is learned from (`apps.<app>.refresh.data`)."""

    dataset: str
    """Its latest version, and what is harvested."""
    harvest: Literal["corrections", "none"] = "corrections"
    """`corrections`: exchanges that a person gave a correction or a label; `none`: the dataset as it is."""
    since_seconds: float = 30 * 86_400.0
    """How far back exchanges are looked at."""
    where: str = ""
    """Further conditions on them, as of `noria trace list`."""
    limit: int = 20_000
    """Exchanges looked at, at most."""
    min_new: int = 1
    """A turn that nobody began goes on only with so many rows that the dataset did not have."""
    pii: Literal["mask", "drop", "flag", "off"] = "mask"
    min_chars: int = 1
    max_chars: int | None = None
    langs: tuple[str, ...] = ()
    near: float | None = 0.8
    """Jaccard similarity from which on rows are duplicates; None = only exact ones are."""
    splits: tuple[tuple[str, float], ...] = (("train", 0.8), ("validation", 0.1), ("test", 0.1))
    """Shares of the rows that are in none of these splits yet; those that are stay."""
    leak: Literal["drop", "refuse"] = "drop"
    """What becomes of training rows that the suite asks: left out, or the turn is rejected."""


class Training(msgspec.Struct, frozen=True):
    """What is trained, upon what (`apps.<app>.refresh.train`); as `contracts.training.TrainingJob`."""

    method: Literal["sft", "tiny"] = "sft"
    base: str = ""
    """Installed model; empty = that of the current release."""
    outputs: tuple[Output, ...] = ("adapter_gguf",)
    """The first one is served."""
    split: str = "train"
    validation: str = "validation"
    lora: Lora = Lora()
    schedule: Schedule = Schedule()
    seed: int = 0
    memory: int = 0


class Gate(msgspec.Struct, frozen=True):
    """What a candidate must show before it sees traffic (`apps.<app>.refresh.gate`), besides what every candidate is asked
    (`release.gate.ALWAYS`). None = not asked.
    """

    margin: float = 0.02
    """Non-inferiority on the suite: by less than this may it be worse."""
    latency: float | None = 2.0
    """At most so many times the current release's median."""
    cost: float | None = None
    """At most so many times its mean cost."""
    equivalence: float | None = 0.95
    """Least share of answers that the served model has in common with the trained one."""
    leak: bool = True


class RefreshPolicy(msgspec.Struct, frozen=True):
    """How an app is refreshed (`apps.<app>.refresh`), every default filled in."""

    suite: str
    data: Data
    metric: str = ""
    """Of the suite, on which the candidate must not be worse; empty = its first one."""
    train: Training = Training()
    gate: Gate = Gate()
    rollout: RolloutPolicy = RolloutPolicy()
    start: Literal["drift", "schedule", "manual"] = "manual"
    every_seconds: float = 7 * 86_400.0
    """`schedule`: from one beginning to the next."""
    cool_down_seconds: float = 86_400.0
    """`drift`: after a turn ended, so long none is begun."""
    ask: tuple[Asking, ...] = ()
    """Steps before which a person is asked; `gate`: asked where it does not let the candidate pass, in place of rejecting it."""
    concurrency: int = 4
    """Items of the suite that are asked at once."""


class Plan(msgspec.Struct, frozen=True):
    """A policy with what it means now; fixed for the turn. Its hash is part of every step's inputs."""

    policy: RefreshPolicy
    suite: Suite
    """As declared; the step `version` says which version of its dataset is asked."""
    metric: str
    dataset: str
    """Version of the dataset when the turn began: rows are added to it."""
    parent: str
    """Id of the current release: what the candidate is made from and compared with."""
    parent_name: str
    system: str
    """Its system prompt: what is trained is asked like that."""
    base: str
    """Model that is trained upon; empty for `tiny`."""
    since_ns: int
    until_ns: int
    """Exchanges in [since, until) are looked at."""
    report: str = ""
    """The drift report that began it."""


class Step(msgspec.Struct, frozen=True):
    """One step of one turn. `inputs` is the hash of everything that it reads: with the same inputs it is not run again."""

    name: StepName
    state: StepState = "waiting"
    inputs: str = ""
    output: dict[str, Any] = {}
    began_ns: int = 0
    ended_ns: int = 0
    attempt: int = 0
    """Attempts of the turn that have worked on it."""
    says: str = ""
    """For people: what it found, or why it failed and what to do."""


class Word(msgspec.Struct, frozen=True):
    """What a person decided."""

    action: Action
    step: StepName
    """At which step."""
    by: str
    at_ns: int
    why: str = ""


class Refresh(msgspec.Struct, frozen=True):
    """One turn. It ends promoted, rejected, rolled_back, inconclusive, stopped or failed; each with its reason."""

    id: str
    app: str
    cause: Cause
    by: str
    plan: Plan
    began_ns: int
    steps: tuple[Step, ...] = tuple(Step(name) for name in STEPS)
    """All of them, in order."""
    state: State = "running"
    ended_ns: int = 0
    attempt: int = 1
    """Which process works on it: `<id>.<attempt>` of the job runner. A word of an earlier one is refused."""
    deaths: int = 0
    """Processes that died since a step was done."""
    words: tuple[Word, ...] = ()
    says: str = ""
    """Why it is where it is."""
    release: str = ""
    """Id of the candidate, once there is one."""
    release_name: str = ""
    alert_ns: int = 0
    """`drift`: since when the alert stands that began it."""

    def step(self, name: StepName) -> Step:
        """One of its steps."""
        return self.steps[STEPS.index(name)]

    @property
    def at(self) -> StepName:
        """The step that it is at, or ended at."""
        for s in reversed(self.steps):
            if s.state != "waiting":
                return s.name
        return STEPS[0]


class Ending(msgspec.Struct, frozen=True):
    """How a turn ended, and why."""

    state: Literal["promoted", "rejected", "rolled_back", "inconclusive"]
    says: str


class RefreshJob(msgspec.Struct, frozen=True):
    """`job.json` of `python -m noria.app.refresh_job FOLDER`."""

    id: str
    home: str
    """Whose keeper has the turn."""
    attempt: int


class Told(msgspec.Struct, frozen=True):
    """What the process of a turn tells the keeper: one step as it stands, and, at the end, how the turn ended."""

    attempt: int
    step: Step | None = None
    ending: Ending | None = None
    failed: str = ""
    """The step failed: the turn does, too."""


# -- what each step gives: `Step.output`; `says` is for people -----------------------------------------


class Detected(msgspec.Struct, frozen=True):
    """Why there is a turn."""

    cause: Cause
    standing: str
    """Of the app's drift: `drifted`, `steady`, `insufficient`, or empty where nobody watches."""
    report: str
    says: str


class Harvested(msgspec.Struct, frozen=True):
    """The dataset with the rows that came from traffic; raw."""

    version: str
    before: str
    """The version that was there."""
    rows: int
    new: int
    rejected: dict[str, int]
    says: str


class Versioned(msgspec.Struct, frozen=True):
    """The version cleaned, without duplicates, and split; and the suite with its dataset pinned."""

    version: str
    splits: dict[str, int]
    rejected: dict[str, int]
    suite: Suite
    says: str


class Leaked(msgspec.Struct, frozen=True):
    """What of the suite was among the training rows; `version` is without them where they are dropped."""

    version: str
    train: int
    evaluation: int
    found: int
    left: int
    """Rows of the suite that the version still trains on."""
    suite: str
    """Version of the dataset that the suite asks."""
    examples: tuple[str, ...]
    says: str


class Trained(msgspec.Struct, frozen=True):
    """A finished training job."""

    job: str
    folder: str
    files: dict[str, str]
    """Role → file name."""
    rows: int
    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    says: str


class Exported(msgspec.Struct, frozen=True):
    """What was trained as signed artifacts, by role; `served` is the one that the release is made with."""

    served: str
    kind: str
    artifacts: dict[str, str]
    says: str


class Compared(msgspec.Struct, frozen=True):
    """The trained model against the one that would be served; `fault` where what is written in the file is wrong already."""

    agreement: Estimate | None
    trained_accuracy: float
    served_accuracy: float
    fault: str
    says: str


class Released(msgspec.Struct, frozen=True):
    """The candidate; `same` where it is the current release again."""

    id: str
    name: str
    same: bool
    says: str


class Measured(msgspec.Struct, frozen=True):
    """Both releases on the suite: evaluations, what they came to, and the comparison in pairs."""

    current: str
    candidate: str
    comparisons: tuple[Comparison, ...]
    figures: dict[str, tuple[Estimate, Estimate]]
    """Figure or metric → the current release's and the candidate's."""
    says: str


class Judged(msgspec.Struct, frozen=True):
    """What the gate found."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    says: str


class Rolled(msgspec.Struct, frozen=True):
    """How the rollout ended."""

    rollout: str
    state: Literal["promoted", "rolled_back", "inconclusive"]
    evidence: dict[str, Any]
    says: str


class Settled(msgspec.Struct, frozen=True):
    """What serves the app now."""

    current: str
    percent: float
    """The candidate's share of the traffic."""
    says: str
