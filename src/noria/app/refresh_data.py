"""The first steps of a refresh, on data: rows from traffic, the version that is trained on, and what of the suite was in it.

In a thread of its own, against the service (`app.dataset_steps`): every version is named by its content, so that each may be done twice.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from noria.adapt.job import job_of
from noria.app import dataset_steps as steps
from noria.app.dataset_client import DatasetClient, Reference
from noria.app.refresh_client import Client
from noria.contracts.dataset import Rejection
from noria.contracts.error import RequestError
from noria.contracts.refresh import Harvested, Leaked, Plan, Versioned
from noria.data.clean import Rules
from noria.data.dedup import Likeness
from noria.data.split import Ratios

NEW = "harvested"
"""The split that rows from traffic are in until they are split."""
ROUNDS = 5
"""Looks for rows of the suite among the training rows: the index of one side may miss what that of the other finds."""


def harvested(client: Client, app: str, plan: Plan, tell: steps.Tell) -> Harvested:
    """What people corrected, beside the version that was there when the turn began."""
    rows, d = DatasetClient(client.ask), plan.policy.data
    before = rows.find(Reference(d.dataset, plan.dataset))
    if d.harvest == "none":
        says = f"{before.rows} rows of {d.dataset}; nothing is harvested."
        return Harvested(before.id, before.id, before.rows, 0, {}, says)
    wanted = f'app="{_escaped(app)}" time>={plan.since_ns} time<{plan.until_ns} {d.where}'.strip()
    pii = None if d.pii == "off" else d.pii
    made = steps.harvest(rows, d.dataset, wanted, pii=pii, limit=d.limit, onto=before, judged=True, split=NEW, tell=tell)
    new = made.version.rows - before.rows
    left_out = f", {_counts(made.rejected)} left out" if made.rejected else ""
    says = f"{new} new rows that a person corrected or labelled{left_out}; {made.version.rows} in all."
    return Harvested(made.version.id, before.id, made.version.rows, new, made.rejected, says)


def versioned(client: Client, plan: Plan, harvested: Harvested, tell: steps.Tell) -> Versioned:
    """Cleaned, without duplicates, split; and the suite with its dataset pinned."""
    rows, d = DatasetClient(client.ask), plan.policy.data
    rules = Rules(d.min_chars, d.max_chars, langs=d.langs)
    clean = steps.clean(rows, Reference(d.dataset, harvested.version), rules, tell=tell)
    unique = steps.dedup(rows, Reference(d.dataset, clean.version.id), Likeness(d.near), tell=tell)
    split = steps.split(rows, Reference(d.dataset, unique.version.id), Ratios(d.splits), keep=True, tell=tell)
    rejected = clean.rejected | unique.rejected
    name, _, pinned = (
        ("", "", plan.suite.dataset) if plan.suite.dataset.startswith("d1:") else plan.suite.dataset.partition("@")
    )
    asked = split.version if name == d.dataset and not pinned else rows.find(Reference(name or "-", pinned or "latest"))
    if plan.suite.split not in asked.splits:
        raise RequestError(
            f"{asked.name} has no split {plan.suite.split!r}, which the suite {plan.suite.name} asks.", code="split_not_found",
            hint=f"It has: {', '.join(asked.splits)}.",
        )  # fmt: skip
    shares = ", ".join(f"{name} {count}" for name, count in split.version.splits.items())
    says = f"{split.version.id[:15]}: {shares}{'; left out: ' + _counts(rejected) if rejected else ''}."
    return Versioned(split.version.id, split.version.splits, rejected, replace(plan.suite, dataset=asked.id), says)


def unleaked(client: Client, plan: Plan, versioned: Versioned, tell: steps.Tell) -> Leaked:
    """What of the suite is among the training rows; without it, where it is to be dropped."""
    rows, d = DatasetClient(client.ask), plan.policy.data
    train, likeness = plan.policy.train.split, Likeness(d.near)
    suite = Reference("-", versioned.suite.dataset, versioned.suite.split)
    version, found, gone = versioned.version, 0, 0
    for _ in range(ROUNDS):
        leaks = steps.leak(rows, Reference("-", version, train), suite, likeness, tell=tell)
        found = max(found, len(leaks.pairs))
        if not leaks.pairs or d.leak == "refuse":
            break
        learned = steps.leak(rows, suite, Reference("-", version, train), likeness, tell=tell)
        also = {p.train: p.evaluation for p in leaks.pairs} | {p.evaluation: p.train for p in learned.pairs}
        no = [Rejection(row, "leak", "suite", threshold=d.near, survivor=asked) for row, asked in sorted(also.items())]
        made = steps.leave_out(rows, Reference(d.dataset, version), no)
        version, gone = made.version.id, gone + len(no)
    left, examples = len(leaks.pairs), tuple(p.evaluation for p in leaks.pairs[:5])
    says = f"{leaks.evaluation} rows of the suite looked up among {leaks.train} training rows: "
    says += (
        f"{left} were trained on."
        if left
        else f"none is trained on{f'; {gone} training rows were left out for it' if gone else ''}."
    )
    return Leaked(version, leaks.train, leaks.evaluation, found, left, versioned.suite.dataset, examples, says)


def base_of(folder: Path) -> str:
    """SHA-256 of the weights that a job was trained upon."""
    job = job_of(folder)
    return job.weights_sha256 if job else ""


def _counts(rejected: dict[str, int]) -> str:
    return ", ".join(f"{count} {rule}" for rule, count in sorted(rejected.items()))


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
