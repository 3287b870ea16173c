"""Typed conditions on named columns, compiled to SQL whose values are all bound as `$name` parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple

from noria.contracts.error import NotFound, RequestError
from noria.contracts.trace import Clause

LAST_NS = 2**63 - 1

_ORDERED = ("=", "!=", ">", ">=", "<", "<=")
_OPERATORS: dict[str, tuple[str, ...]] = {
    "number": _ORDERED,
    "time": _ORDERED,
    "bool": ("=", "!="),
    "text": ("=", "!=", "~"),
    "set": ("=", "!=", "~"),
}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_WANTED = {"number": "a number", "bool": "true or false", "time": "a time such as 2026-11-22T14:00"}


class Column(NamedTuple):
    """How a name is read: an SQL expression, the kind of its value, and how many stored units make one asked-for unit."""

    sql: str
    type: Literal["text", "number", "bool", "time", "set"]
    scale: int = 1


class Condition(NamedTuple):
    """Compiled clauses: SQL, its parameters, and the times (int64 ns, inclusive) outside of which nothing can match."""

    sql: str
    params: dict[str, Any]
    first_ns: int
    last_ns: int


def compile_clauses(clauses: Sequence[Clause], columns: Mapping[str, Column]) -> Condition:
    """All of the clauses at once; `true` for none.

    `~` is substring, `!=` also holds where there is no value, on sets `=` asks for a member and `~` for a member that
    contains the text. Raises `RequestError`: an unknown column (with the nearest), a value or operator that does not fit.
    """
    parts, params = [], {}
    first_ns, last_ns = 0, LAST_NS
    for i, clause in enumerate(clauses):
        column = columns.get(clause.column)
        if column is None:
            near = NotFound.nearest("column", clause.column, list(columns))
            raise RequestError(near.message, code="unknown_column", param=clause.column, hint=near.hint)
        value = _value(column, clause)
        parts.append(_comparison(column, clause.op, f"$c{i}"))
        params[f"c{i}"] = value
        if column.type == "time" and clause.op in {"=", ">", ">="}:
            first_ns = max(first_ns, value)
        if column.type == "time" and clause.op in {"=", "<", "<="}:
            last_ns = max(0, min(last_ns, value))
    return Condition(" AND ".join(parts) or "true", params, first_ns, last_ns)


def _comparison(column: Column, op: str, value: str) -> str:
    if column.type == "set":
        return {
            "=": f"list_contains({column.sql}, {value})",
            "!=": f"NOT list_contains({column.sql}, {value})",
            "~": f"len(list_filter({column.sql}, x -> contains(x, {value}))) > 0",
        }[op]
    other = {"~": f"contains({column.sql}, {value})", "!=": f"{column.sql} IS DISTINCT FROM {value}"}
    return other.get(op, f"{column.sql} {op} {value}")


def _value(column: Column, clause: Clause) -> Any:
    """The clause's value in the column's type."""
    name, text = clause.column, clause.value
    operators = _OPERATORS[column.type]
    if clause.op not in operators:
        hint = f"Use one of {' '.join(operators)}."
        raise RequestError(f"{clause.op!r} cannot be asked of {name!r}.", code="bad_operator", param=name, hint=hint)
    try:
        match column.type:
            case "number":
                return _number(text, column.scale)
            case "bool":
                return _TRUTH[text.lower()]
            case "time":
                return _time(text)
            case _:
                return text
    except (InvalidOperation, KeyError, ValueError, OverflowError) as e:
        raise RequestError(f"{name!r} is {_WANTED[column.type]}, not {text!r}.", code="bad_value", param=name) from e


def _number(text: str, scale: int) -> int | float:
    scaled = Decimal(text) * scale
    if not abs(scaled) <= LAST_NS:
        raise ValueError("out of range")
    return int(scaled) if scaled == int(scaled) else float(scaled)


def _time(text: str) -> int:
    """ISO 8601, UTC where no zone is given, or int ns."""
    if text.isdecimal():
        return int(_number(text, 1))
    at = datetime.fromisoformat(text)
    whole = at if at.tzinfo else at.replace(tzinfo=UTC)
    return int(whole.replace(microsecond=0).timestamp()) * 1_000_000_000 + whole.microsecond * 1000
