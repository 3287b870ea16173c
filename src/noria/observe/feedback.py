"""What callers say of answers: the body of `POST /v1/feedback`, read strictly, and which exchange it means."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from noria.contracts.error import NotFound, RequestError
from noria.contracts.feedback import Feedback, Giver, Of, Statement
from noria.contracts.trace import ExchangeRow
from noria.kit import labels

MOST = 100
"""Statements of one request."""
LONGEST_TEXT = 65_536
LONGEST_COMMENT = 8_192
TARGETS: dict[str, Of] = {"target": "any", "exchange_id": "exchange", "response_id": "response", "trace_id": "trace"}
JUDGEMENTS = ("thumb", "score", "value", "label", "correction")
FIELDS = (*TARGETS, *JUDGEMENTS, "id", "metric", "comment", "user", "tags", "at")
THUMBS: dict[Any, float] = {"up": 1.0, "down": 0.0, True: 1.0, False: 0.0}
METRICS = {"thumb": "thumbs_up", "score": "score", "label": "label", "correction": "correction"}
"""The metric of each kind where the caller names none."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}\Z")
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_AHEAD_NS = 300 * 1_000_000_000
"""How far a caller's clock may be ahead of ours."""


def read(body: bytes, *, now_ns: int) -> tuple[list[Statement], bool]:
    """The statements of a body, and whether it was a list. Raises `RequestError` that names the place and the nearest key."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise RequestError(f"The body is no JSON: {e}.", code="invalid_json") from None
    several = isinstance(given, list)
    items = given if several else [given]
    if not 1 <= len(items) <= MOST:
        raise RequestError(f"A list holds 1 to {MOST} statements, not {len(items)}.", code="invalid_value")
    return [_statement(item, f"[{n}]." if several else "", now_ns) for n, item in enumerate(items)], several


def _statement(item: Any, place: str, now_ns: int) -> Statement:
    if not isinstance(item, dict):
        raise RequestError(
            "Feedback is a JSON object, or a list of them.", code="invalid_type", param=place.rstrip(".") or None
        )
    for name in item:
        if name not in FIELDS:
            near = NotFound.nearest("key", name[:100], list(FIELDS))
            raise RequestError(near.message, code="unknown_parameter", param=place + name[:100], hint=near.hint)
    given = {k: v for k, v in item.items() if v is not None}
    target, of = _target(given, place)
    kind, value, text = _judgement(given, place)
    metric = _text(given, "metric", place, 64) or METRICS[kind]
    if not _METRIC.match(metric):
        raise _wrong(place + "metric", "must be 1 to 64 letters, digits or . _ -")
    own = _text(given, "id", place, 200)
    if own and not _NAME.match(own):
        raise _wrong(place + "id", "must be 1 to 200 letters, digits or . _ : -")
    feedback = Feedback(
        id=own, target=target, kind=kind, at_ns=_at(given, place, now_ns), metric=metric, value=value, text=text,  # type: ignore[arg-type]  # one of the kinds
        comment=_text(given, "comment", place, LONGEST_COMMENT), tags=_tags(given, place),
    )  # fmt: skip
    return Statement(feedback, of, _text(given, "user", place, 512), own_id=bool(own))


def _target(given: dict[str, Any], place: str) -> tuple[str, Of]:
    named = [n for n in TARGETS if n in given]
    if len(named) != 1:
        raise _wrong(place + "target", f"must be given once, as one of {', '.join(TARGETS)}", code="missing_required_parameter")
    name = _text(given, named[0], place, 200)
    if not _NAME.match(name):
        raise _wrong(place + named[0], "must be an id as Noria gave it: x-request-id, x-noria-trace, or the answer's own id")
    return name, TARGETS[named[0]]


def _judgement(given: dict[str, Any], place: str) -> tuple[str, float | None, str]:
    """(kind, value, text) of the one judgement."""
    named = [n for n in JUDGEMENTS if n in given]
    if len(named) != 1:
        one = f"must hold one of {', '.join(JUDGEMENTS)}, not {len(named)}"
        raise _wrong(place or "body", one, code="missing_required_parameter", hint="Send a list to say several things.")
    (name,) = named
    said = given[name]
    if name == "thumb":
        if not isinstance(said, bool | str) or said not in THUMBS:
            raise _wrong(place + name, 'must be "up", "down", true or false')
        return "thumb", THUMBS[said], ""
    if name in ("score", "value"):
        if isinstance(said, bool) or not isinstance(said, int | float) or not math.isfinite(said) or abs(said) > 1e12:
            raise _wrong(place + name, "must be a number")
        return "score", float(said), ""
    text = _text(given, name, place, LONGEST_TEXT if name == "correction" else 512)
    if not text.strip():
        raise _wrong(place + name, "must not be empty")
    return name, None, text


def _text(given: dict[str, Any], name: str, place: str, most: int) -> str:
    value = given.get(name, "")
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise _wrong(place + name, f"must be text of at most {most} characters, without NUL")
    return value


def _tags(given: dict[str, Any], place: str) -> dict[str, str]:
    tags = given.get("tags", {})
    if not isinstance(tags, dict) or not all(isinstance(v, str) for v in tags.values()):
        raise _wrong(place + "tags", "must be an object of texts")
    try:
        labels.check(tags)
    except ValueError as e:
        raise _wrong(place + "tags", f"is wrong: {e}") from None
    return tags


def _at(given: dict[str, Any], place: str, now_ns: int) -> int:
    """When it was said: the caller's time where it tells one, else now."""
    told = given.get("at")
    if told is None:
        return now_ns
    try:
        moment = datetime.fromisoformat(told)
        at_ns = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000_000) * 1000
    except (TypeError, ValueError, OverflowError):
        raise _wrong(place + "at", "must be a time such as 2026-11-22T14:00:00Z") from None
    if not 0 <= at_ns <= now_ns + _AHEAD_NS:
        raise _wrong(place + "at", "must not be in the future")
    return at_ns


def _wrong(param: str, says: str, *, code: str = "invalid_value", hint: str | None = None) -> RequestError:
    return RequestError(f"{param} {says}.", code=code, param=param, hint=hint)


def outside(row: ExchangeRow, giver: Giver) -> str:
    """Why a giver may not speak of an exchange, in words; empty where it may."""
    if giver.operator:
        return ""
    if row.org != giver.org:
        return "This API key may give feedback on exchanges of its own organisation only."
    if giver.apps and row.app not in giver.apps:
        return f"This API key may give feedback on exchanges of its own apps only: {', '.join(sorted(giver.apps))}."
    return ""


def choose(rows: Sequence[ExchangeRow], giver: Giver, at_ns: int) -> tuple[ExchangeRow | None, str, str]:
    """Of the exchanges that a target names: (the one that is meant, a note where there were several, why none may be).

    The last one that had been answered when the feedback was given; where none had, the last.
    """
    mine = [r for r in rows if not outside(r, giver)]
    if not mine:
        return None, "", outside(rows[0], giver) if rows else ""
    if len(mine) == 1:
        return mine[0], "", ""
    answered = [r for r in mine if r.outcome == "ok" and r.started_ns <= at_ns] or mine
    last = max(answered, key=lambda r: (r.started_ns, r.id))
    return last, f"The target names {len(mine)} exchanges; this is the last that had been answered.", ""
