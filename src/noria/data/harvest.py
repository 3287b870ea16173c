"""Rows from what the service did: an exchange as the trace store has it, and what was said of its answer."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from noria.contracts.dataset import Rejection, Row, Source
from noria.data.clean import Detect
from noria.data.row import text_of


class Judgement(msgspec.Struct, frozen=True):
    """One statement about an answer (`contracts.feedback.Feedback`)."""

    kind: str
    metric: str = ""
    value: float | None = None
    text: str = ""


class Asked(msgspec.Struct, frozen=True):
    """An exchange as the management API gives it (`GET /api/exchanges`)."""

    id: str
    time_ns: int
    app: str
    release: str
    outcome: str
    subject: str = ""
    conversation: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    answer: str = ""
    bodies: str = "stored"
    """`stored`, `erased`, `none` or `off`."""
    feedback: tuple[Judgement, ...] = ()
    """Oldest first."""


def row_of(asked: Asked, detect: Detect) -> Row | Rejection:
    """The row of an exchange, or why there is none.

    A correction is the truth and a person's; else the answer stands in the row with the release that gave it, so that what a
    model said is never taken for what should have been said. The latest of each kind of feedback counts; thumbs and scores go
    into the tags. `detect` tells the language of a text.
    """
    label = _latest(asked, "label")
    correction = _latest(asked, "correction")
    if asked.bodies != "stored":
        return _no(asked, f"body_{asked.bodies}")
    users = [n for n, m in enumerate(asked.messages) if m.get("role") == "user"]
    if not users:
        return _no(asked, "no_prompt")
    said = asked.answer if users[-1] == len(asked.messages) - 1 else ""
    row = Row(
        messages=asked.messages[: users[-1] + 1],
        answer=correction or said,
        label=label,
        lang=detect(text_of(asked.messages[users[-1]])),
        group=f"conversation:{asked.conversation}" if asked.conversation else "",
        subject=asked.subject,
        source=Source("trace", asked.id, asked.time_ns, asked.app, asked.release),
        tags=_scores(asked),
    )
    if correction:
        return replace(row, source=replace(row.source, origin="feedback", release=""))
    return row if row.answer or row.label else _no(asked, "no_answer")


def judged(asked: Asked, row: Row) -> Row | Rejection:
    """The row of an exchange with what a person said of it, and nothing else: where that is a label alone, the model's own answer is
    no truth beside it.
    """
    if not any(j.kind in ("correction", "label") for j in asked.feedback):
        return _no(asked, "not_judged")
    return replace(row, answer="") if row.label and row.source.release else row


def _latest(asked: Asked, kind: str) -> str:
    return next((j.text for j in reversed(asked.feedback) if j.kind == kind), "")


def _scores(asked: Asked) -> dict[str, str]:
    return {j.metric or j.kind: f"{j.value:g}" for j in asked.feedback if j.value is not None}


def _no(asked: Asked, rule: str) -> Rejection:
    return Rejection("", "harvest", rule, source=asked.id)
