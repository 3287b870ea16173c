"""Rows as the management API shows them (JSON values; nanoseconds as integers, times as strings)."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import msgspec

from noria.app.keeper import Recorded
from noria.contracts.error import RequestError
from noria.contracts.exchange import Dialect
from noria.contracts.trace import Clause, ExchangeRow, TraceQuery
from noria.dialects.native import assemble_any, in_chat_form, text_asked, text_of_answer

PREVIEW = 160
_COLUMN = r"([^\s<>=!~]+)(>=|<=|!=|=|>|<|~)"
_CLAUSE = re.compile(_COLUMN + r"(\S+)")
_WORD = re.compile(_COLUMN + r'"((?:[^"\\]|\\.)*)"(?!\S)|(\S+)', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')


def summary(row: ExchangeRow) -> dict[str, Any]:
    """One line of the trace list."""
    rulings: dict[tuple[str, str], Counter[str]] = {}
    for r in row.rulings:
        if not r.verdict.passed:
            rulings.setdefault((r.verdict.check, r.action), Counter()).update(f.label for f in r.verdict.findings)
    return {
        "id": row.id,
        "trace": row.trace,
        "time_ns": str(row.started_ns),
        "app": row.app,
        "release": row.release,
        "release_name": row.release_name,
        "kind": row.kind,
        "stream": row.stream,
        "status": row.status,
        "outcome": row.outcome,
        "endpoint": row.endpoint,
        "provider": row.provider,
        "served_model": row.served_model,
        "duration_ns": row.duration_ns,
        "ttft_ns": row.ttft_ns,
        "overhead_ns": row.overhead_ns,
        "tokens_in": row.usage.input,
        "tokens_out": row.usage.output,
        "cost_usd": None if row.cost_nanousd is None else row.cost_nanousd / 1e9,
        "cost_status": row.cost_status,
        "key": row.key,
        "conversation": row.conversation,
        "error_code": row.error_code,
        "error_message": row.error_message,
        "rulings": [{"check": c, "action": a, "label_counts": dict(n)} for (c, a), n in rulings.items()],
    }


def whole(found: Recorded) -> dict[str, Any]:
    """One exchange with everything that is known of it."""
    row = found.row
    more = {
        "stages": [msgspec.structs.asdict(s) for s in row.stages],
        "attempts": [msgspec.structs.asdict(a) for a in row.attempts],
        "rulings": [
            {
                "verdict": {
                    **msgspec.structs.asdict(r.verdict),
                    "findings": [msgspec.structs.asdict(f) for f in r.verdict.findings],
                },
                "action": r.action,
                "place": r.place,
                "took_ns": r.took_ns,
            }
            for r in row.rulings
        ],
        "usage": msgspec.structs.asdict(row.usage),
        "config": row.config,
        "span": row.span,
        "parent_span": row.parent_span,
        "worker": row.worker,
        "cut_tokens": row.cut_tokens,
        "cache": row.cache,
        "dialect": row.dialect,
        "native": row.native,
        "warnings": list(row.warnings),
        "finish_reason": row.finish_reason,
        "upstream_id": row.upstream_id,
        "subject": row.subject,
        "org": row.org,
        "team": row.team,
        "user": row.user,
        "tags": row.tags,
    }
    request = body_of(found.request)
    answer = read_answer_body(found.answer, sse=row.answer_is_sse, dialect=spoken(row))
    return {
        "row": {**summary(row), **more},
        "request": request,
        "answer": answer,
        "chat": in_chat_form(row.dialect, request, answer) if row.native else None,
        "answer_is_sse": row.answer_is_sse,
        "bodies": found.bodies,
    }


def spoken(row: ExchangeRow) -> Dialect:
    """The dialect of a row's bodies."""
    return row.dialect if row.native else "openai"


def read_answer_body(answer: bytes | None, *, sse: bool, dialect: Dialect = "openai") -> Any:
    """A recorded answer as one JSON value; a stream is joined into the whole answer it gave."""
    if not answer:
        return None
    return assemble_any(answer, dialect) if sse else body_of(answer)


def previews(request: bytes | None, answer: bytes | None, *, sse: bool, dialect: Dialect = "openai") -> dict[str, str]:
    """The first words of the last user turn and of the answer."""
    asked = body_of(request)
    given = read_answer_body(answer, sse=sse, dialect=dialect)
    if dialect != "openai" and isinstance(asked, dict | None) and isinstance(given, dict | None):
        return {
            "preview_in": _clip(text_asked(asked or {}, dialect)),
            "preview_out": _clip(text_of_answer(given, dialect) if given else ""),
        }
    return {"preview_in": _clip(_last_user(asked)), "preview_out": _clip(_first_choice(given))}


def parse_filter(text: str) -> tuple[Clause, ...]:
    """`app=support status>=400 error~"timed out"` as clauses. Raises `RequestError` that shows the shape.

    A value in double quotes may hold blanks and be empty; a quote or backslash in it is written with a backslash before it.
    """
    clauses = []
    for word in _WORD.finditer(text):
        if word[4] is None:
            clauses.append(Clause(word[1], word[2], _ESCAPED.sub(r"\1", word[3])))  # type: ignore[arg-type]  # one of the operators
            continue
        found = _CLAUSE.fullmatch(word[4])
        if found is None:
            raise RequestError(
                f"{word[4]!r} is not a condition.",
                param="filter",
                hint='Write column, operator, value: app=support status>=400 error~"timed out"',
            )
        clauses.append(Clause(found[1], found[2], found[3]))  # type: ignore[arg-type]  # one of the operators
    return tuple(clauses)


def query(filter: str, before: str, limit: int) -> TraceQuery:
    """A query from what a list asks for."""
    return TraceQuery(parse_filter(filter), before, max(1, min(limit, 1000)))


def cursor(row: ExchangeRow) -> str:
    """Where the page after `row` begins."""
    return f"{row.started_ns}.{row.id}"


def body_of(data: bytes | None) -> Any:
    """A recorded body as one JSON value; what is none is shown as it came."""
    if not data:
        return None
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"unreadable": data.decode("utf-8", "replace")}


def _last_user(request: Any) -> str:
    if not isinstance(request, dict):
        return ""
    for message in reversed(request.get("messages") or []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                content = " ".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
            return str(content or "")
    return str(request.get("prompt") or request.get("input") or "")


def _first_choice(answer: Any) -> str:
    if not isinstance(answer, dict) or not answer.get("choices"):
        return ""
    choice = answer["choices"][0]
    message = choice.get("message") or {}
    if message.get("content") or choice.get("text"):
        return str(message.get("content") or choice.get("text"))
    calls = message.get("tool_calls") or []
    return ", ".join(str((c.get("function") or c.get("custom") or {}).get("name", "")) + "()" for c in calls)


def _clip(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…"
