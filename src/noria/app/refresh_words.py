"""A refresh in plain words: what happened, on what evidence, and who decided."""

from __future__ import annotations

from typing import Any

import msgspec

from noria.contracts.refresh import OPEN, Refresh, Step, StepName

_TITLES: dict[StepName, str] = {
    "detect": "Why",
    "harvest": "Rows from traffic",
    "version": "The version",
    "leak": "Leak gate",
    "train": "Training",
    "export": "Artifacts",
    "equivalence": "Is it what was trained",
    "release": "The candidate",
    "evaluate": "Measured",
    "gate": "Gate",
    "rollout": "Rollout",
    "settle": "What serves now",
}
_HASHES = ("version", "suite", "served", "id", "job", "current", "candidate", "rollout", "report")
"""Fields of outputs that are ids: what evidence can be looked up by."""


class Paragraph(msgspec.Struct, frozen=True):
    """One step, or one word of a person."""

    title: str
    text: str
    at_ns: int
    seconds: float = 0.0
    step: str = ""
    by: str = ""
    """Who decided, where a person did."""
    ids: dict[str, str] = {}
    facts: tuple[str, ...] = ()
    """Findings, each in a sentence with its figures."""


class Explained(msgspec.Struct, frozen=True):
    """The whole turn."""

    id: str
    app: str
    state: str
    summary: str
    began_ns: int
    ended_ns: int
    paragraphs: tuple[Paragraph, ...]


def explained(refresh: Refresh) -> Explained:
    """In the order in which it happened."""
    told = [_step(s) for s in refresh.steps if s.state != "waiting"]
    told += [
        Paragraph(w.action.capitalize(), w.why or "No reason was given.", w.at_ns, step=w.step, by=w.by) for w in refresh.words
    ]
    told.sort(key=lambda p: p.at_ns)
    return Explained(refresh.id, refresh.app, refresh.state, _summary(refresh), refresh.began_ns, refresh.ended_ns, tuple(told))


def _summary(r: Refresh) -> str:
    began = {"drift": "an alert of drift", "schedule": "the schedule", "demo": "the demonstration", "person": r.by}[r.cause]
    first = f"This turn of {r.app} was begun by {began}, to better {r.plan.parent_name} ({r.plan.parent[:11]})."
    if r.state in OPEN:
        now = f"It waits for a person before {r.at}" if r.state == "asks" else f"It is at {r.at}"
        return f"{first} {now}. {r.says}".strip()
    minutes = (r.ended_ns - r.began_ns) / 60e9
    return f"{first} After {minutes:.1f} minutes it ended {r.state.replace('_', ' ')}: {r.says}"


def _step(s: Step) -> Paragraph:
    seconds = round((s.ended_ns - s.began_ns) / 1e9, 3) if s.ended_ns else 0.0
    ids = {k: _id(s.output[k]) for k in _HASHES if s.output.get(k)} | {"inputs": s.inputs}
    findings = s.output.get("findings") or ()
    facts = tuple(f"{f['rule']['kind']}: {f['verdict']}. {f['says']}" for f in findings)
    return Paragraph(_TITLES[s.name], s.says or f"It is {s.state}.", s.began_ns, seconds, s.name, ids=ids, facts=facts)


def _id(value: Any) -> str:
    return str(value["dataset"]) if isinstance(value, dict) else str(value)
