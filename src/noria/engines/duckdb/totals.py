"""Sums over recorded exchanges, grouped: what `TraceStore.totals` asks of DuckDB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noria.contracts.error import NotFound, RequestError
from noria.contracts.exchange import Usage
from noria.contracts.trace import GROUPS, Total
from noria.engines.duckdb.file import Connection
from noria.kit.clause import Condition

_SQL = {
    "app": "app", "model": "coalesce(nullif(served_model, ''), endpoint)", "endpoint": "endpoint", "provider": "provider",
    "key": "key", "org": "coalesce(org, '')", "team": "coalesce(team, '')", "user": "coalesce(\"user\", '')",
    "outcome": "outcome", "cache": "coalesce(cache, '')", "day": "day", "tag": "tag",
}  # fmt: skip
_USAGE = [f"coalesce(sum(tokens_{f}), 0)" for f in Usage.__struct_fields__]
assert set(_SQL) == set(GROUPS), "every group of the port has its column"


def totals(
    c: Connection, source: str, params: dict[str, Any], condition: Condition, by: Sequence[str], *, quality: bool
) -> list[Total]:
    """One row a group that has any exchange, dearest first. A `tag` counts an exchange once for each of its tags."""
    for name in by:
        if name not in _SQL:
            near = NotFound.nearest("group", name, list(_SQL))
            raise RequestError(near.message, code="unknown_group", param="by", hint=near.hint)
    columns = [f"{_SQL[name]} AS g{i}" for i, name in enumerate(by)]
    groups = [f"g{i}" for i in range(len(by))]
    status = "json_extract_string(detail, '$.cost_status')" if quality else "NULL"
    base = f"SELECT * FROM {source} WHERE {condition.sql}"  # noqa: S608  values are bound
    if "tag" in by:
        # one row an exchange and tag, and one without for those that have none
        base = f"SELECT *, unnest(CASE WHEN len(labels) > 0 THEN labels ELSE [''] END) AS tag FROM ({base})"  # noqa: S608  values are bound
    picked = ", ".join(
        [
            *columns,
            "cost_nanousd",
            "outcome",
            "cache",
            f"{status} AS quality",
            *(f"tokens_{f}" for f in Usage.__struct_fields__),
        ]
    )
    sums = ", ".join([
        *groups,
        "count(*)",
        "coalesce(sum(cost_nanousd), 0)",
        "count(*) FILTER (cost_nanousd IS NULL)",
        "count(*) FILTER (quality = 'estimated')",
        "count(*) FILTER (outcome = 'ok' AND cost_nanousd = 0 AND coalesce(cache, '') = '' AND coalesce(tokens_output, 0) > 0)",
        *_USAGE,
    ])  # fmt: skip
    sql = f"SELECT {sums} FROM (SELECT {picked} FROM ({base}))"  # noqa: S608  values are bound
    if groups:
        sql += f" GROUP BY {', '.join(groups)} ORDER BY {len(groups) + 2} DESC, {', '.join(groups)}"
    rows = c.execute(sql, {**params, **condition.params}).fetchall()
    return [_total(row, len(groups)) for row in rows if row[len(groups)]]


def _total(row: tuple[Any, ...], groups: int) -> Total:
    count, cost, unknown, estimated, zero, *tokens = (int(v) for v in row[groups:])
    return Total(tuple(str(v) for v in row[:groups]), count, cost, unknown, estimated, zero, Usage(*tokens))
