"""Personal data in rows, before anything is stored. What finds and masks it is injected; here is what follows for a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec.structs import replace

from noria.contracts.dataset import Rejection, Row

Action = Literal["mask", "drop", "flag"]
"""`mask`: replace each finding by its kind; `drop`: leave the row out; `flag`: keep it, with a tag that says what is in it."""

Mask = Callable[[str], tuple[str, tuple[str, ...]]]
"""A text → the text without its findings, and what they were (`email`, …)."""

TAG = "pii"


def protect(row: Row, mask: Mask, action: Action) -> Row | Rejection:
    """The row as it may be stored, or why it may not. The label is looked at too: it is text of the same file."""
    found: set[str] = set()

    def masked(text: str) -> str:
        clear, kinds = mask(text)
        found.update(kinds)
        return clear

    messages = tuple(_message(m, masked) for m in row.messages)
    clean = replace(
        row, messages=messages, answer=masked(row.answer), label=masked(row.label), group=masked(row.group),
        tags={k: masked(v) for k, v in row.tags.items()},
    )  # fmt: skip
    if not found:
        return row
    kinds = ",".join(sorted(found))
    if action == "drop":
        return Rejection("", "pii", "dropped", detail=kinds, source=row.source.ref)
    if action == "flag":
        return replace(row, tags={**row.tags, TAG: kinds})
    return replace(clean, tags={**clean.tags, TAG: f"masked:{kinds}"})


def _message(message: dict[str, Any], masked: Callable[[str], str]) -> dict[str, Any]:
    return {k: v if k in ("role", "type") else _value(v, masked) for k, v in message.items()}


def _value(value: Any, masked: Callable[[str], str]) -> Any:
    """Every text in a message's content, tool calls included."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list):
        return [_value(v, masked) for v in value]
    if isinstance(value, dict):
        return {k: _value(v, masked) for k, v in value.items()}
    return value
