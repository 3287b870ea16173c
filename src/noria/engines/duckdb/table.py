"""The shape of the hot and sealed tables: typed columns, the rest of a row as JSON, and what can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from msgspec.structs import astuple

from noria.contracts.error import RequestError
from noria.contracts.exchange import Usage
from noria.contracts.trace import ExchangeRow, TraceQuery
from noria.engines.duckdb.arrow import Table
from noria.kit.clause import Column, Condition, compile_clauses

Values = tuple[Any, ...]

_FIELDS = {f.name: f for f in msgspec.structs.fields(ExchangeRow)}
_TYPED = {
    "tenant": "VARCHAR", "id": "VARCHAR", "trace": "VARCHAR", "started_ns": "BIGINT", "kind": "VARCHAR", "app": "VARCHAR",
    "release": "VARCHAR", "release_name": "VARCHAR", "outcome": "VARCHAR", "status": "BIGINT", "stream": "BOOLEAN",
    "duration_ns": "BIGINT", "ttft_ns": "BIGINT", "endpoint": "VARCHAR", "provider": "VARCHAR", "served_model": "VARCHAR",
    "error_code": "VARCHAR", "key": "VARCHAR", "subject": "VARCHAR", "conversation": "VARCHAR", "cost_nanousd": "BIGINT",
    "dialect": "VARCHAR", "org": "VARCHAR", "team": "VARCHAR", "user": "VARCHAR", "cache": "VARCHAR",
}  # fmt: skip
_LATER = {"dialect", "org", "team", "user", "cache"}
"""Columns that rows written before them lack; a row reads as its field's default there."""
_USAGE = {f"tokens_{f}": "BIGINT" for f in Usage.__struct_fields__}
_DERIVED = {
    "day": "VARCHAR", "labels": "VARCHAR[]", "checks": "VARCHAR[]", "actions": "VARCHAR[]", "request_body": "VARCHAR", "answer_body": "VARCHAR",
    "detail": "VARCHAR", "response_id": "VARCHAR",
}  # fmt: skip
_TABLE = {**_TYPED, **_USAGE, **_DERIVED}
_BODY = {
    "tenant": "VARCHAR",
    "day": "VARCHAR",
    "id": "VARCHAR",
    "h": "BIGINT",
    "subject": "VARCHAR",
    "data": "BLOB USING COMPRESSION uncompressed",
    "ids": "VARCHAR",
    "hs": "BIGINT[]",
}
"""A body alone has its id and the hash `h` of it. Bodies that were sealed together are one row: `ids` are theirs, one a line,
`hs` the hashes; `id` names the row, so that a release which does not know of them seals and drops them like any other.
"""


def _field(f: msgspec.structs.FieldInfo) -> tuple[str, Any] | tuple[str, Any, Any]:
    if f.required:
        return f.name, f.type
    default = msgspec.field(default_factory=f.default_factory) if f.default is msgspec.NODEFAULT else f.default
    return f.name, f.type, default


_rest = [n for n in _FIELDS if n not in {*_TYPED, "usage", "request", "answer"}]
_Detail: Any = msgspec.defstruct("_Detail", [_field(_FIELDS[n]) for n in _rest], omit_defaults=True)
_NONE: tuple[str, ...] = ()
_encoder = msgspec.json.Encoder()
_decode_detail = msgspec.json.Decoder(_Detail).decode


def _create(table: str, columns: dict[str, str]) -> str:
    return f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(f'{n} {t}' for n, t in columns.items())})"


SCHEMA = (
    _create("exchanges", _TABLE),
    *(f"ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS {n} {t}" for n, t in _TABLE.items()),
    _create("bodies", _BODY),
    *(f"ALTER TABLE bodies ADD COLUMN IF NOT EXISTS {n} {t}" for n, t in _BODY.items()),
    "CREATE TABLE IF NOT EXISTS sealed (tenant VARCHAR, day VARCHAR, part BIGINT, dropped BOOLEAN)",
    "CREATE TABLE IF NOT EXISTS spool_positions (spool VARCHAR PRIMARY KEY, segment BIGINT, byte_offset BIGINT)",
)
EXCHANGES = Table("exchanges", _TABLE)
BODIES = Table("bodies", _BODY)
COLUMNS_SQL = ", ".join(_TABLE)


COLUMNS: dict[str, Column] = {
    "id": Column("id", "text"),
    "trace": Column("trace", "text"),
    "response": Column("response_id", "text"),
    "time": Column("started_ns", "time"),
    "kind": Column("kind", "text"),
    "app": Column("app", "text"),
    "release": Column("[release, release_name]", "set"),
    "outcome": Column("outcome", "text"),
    "status": Column("status", "number"),
    "stream": Column("stream", "bool"),
    "duration_ms": Column("duration_ns", "number", 1_000_000),
    "ttft_ms": Column("ttft_ns", "number", 1_000_000),
    "model": Column("served_model", "text"),
    "endpoint": Column("endpoint", "text"),
    "provider": Column("provider", "text"),
    "error": Column("error_code", "text"),
    "key": Column("key", "text"),
    "subject": Column("subject", "text"),
    "conversation": Column("conversation", "text"),
    "tokens_in": Column("tokens_input", "number"),
    "tokens_out": Column("tokens_output", "number"),
    "cost_usd": Column("cost_nanousd", "number", 1_000_000_000),
    "dialect": Column("dialect", "text"),
    "org": Column("org", "text"),
    "team": Column("team", "text"),
    "user": Column("user", "text"),
    "tag": Column("labels", "set"),
    "cache": Column("cache", "text"),
    "check": Column("[c for c, i in checks if actions[i] <> 'allow']", "set"),
    "action": Column("actions", "set"),
}
"""What a `TraceQuery` may ask for. `response` is the id that the model's own answer bears, not known to be unique and of rows since
it is a column alone (what older rows have lies in `detail`); `release` matches id or name; `check` holds where that check found something (a ruling of
nothing found has the action `allow`), `action` where any ruling has it;
`time` takes ISO 8601 (UTC where no zone is given) or int ns; `!=` holds for rows without a value."""


def condition_of(query: TraceQuery, *, paged: bool = True) -> Condition:
    """The query as SQL. Raises `RequestError` for what cannot be asked."""
    condition = compile_clauses(query.clauses, COLUMNS)
    if not paged or not query.before:
        return condition
    started, _, before = query.before.partition(".")
    if not started.isdecimal() or len(started) > 19:
        raise RequestError(f"{query.before!r} is not a cursor.", code="bad_cursor", hint="Pass the last row's, unchanged.")
    sql = "(started_ns < $before_ns OR (started_ns = $before_ns AND id < $before_id))"
    params = condition.params | {"before_ns": int(started), "before_id": before}
    return Condition(f"{condition.sql} AND {sql}", params, condition.first_ns, min(condition.last_ns, int(started)))


def day_of(ns: int) -> str:
    """The UTC day of a time, YYYY-MM-DD."""
    return _day(ns // 86_400_000_000_000)


@lru_cache(maxsize=4096)
def _day(days: int) -> str:
    return datetime.fromtimestamp(days * 86_400, UTC).strftime("%Y-%m-%d")


def columns_of(rows: Sequence[tuple[ExchangeRow, str, str]]) -> list[Sequence[Any]]:
    """Rows (at least one) with their body ids as the hot table's columns, in its order."""
    exchanges, requests, answers = zip(*rows, strict=True)
    # Column by column: taken from each row one after the other, the same values cost three times as much.
    fields = dict(zip(_FIELDS, zip(*map(astuple, exchanges), strict=True), strict=True))
    return [
        *(fields[n] for n in _TYPED),
        *zip(*map(astuple, fields["usage"]), strict=True),
        [day_of(ns) for ns in fields["started_ns"]],
        [[f"{k}={v}" for k, v in tags.items()] if tags else _NONE for tags in fields["tags"]],
        [[r.verdict.check for r in rulings] if rulings else _NONE for rulings in fields["rulings"]],
        [[r.action for r in rulings] if rulings else _NONE for rulings in fields["rulings"]],
        requests,
        answers,
        # JSON text has no newline of its own
        _encoder.encode_lines(list(map(_Detail, *(fields[n] for n in _rest)))).decode().split("\n")[:-1],
        fields["upstream_id"],
    ]


def row_of(values: Values) -> tuple[ExchangeRow, str, str]:
    """A row as it was, bodies left empty, with its body ids."""
    hot = dict(zip(_TABLE, values, strict=True))
    detail = msgspec.structs.asdict(_decode_detail(hot["detail"]))
    typed = {n: _FIELDS[n].default if hot[n] is None and n in _LATER else hot[n] for n in _TYPED}
    usage = Usage(*(d if hot[n] is None else hot[n] for n, d in zip(_USAGE, Usage.__struct_defaults__, strict=True)))
    row = ExchangeRow(**typed, **detail, usage=usage, request=b"", answer=b"")
    return row, hot["request_body"], hot["answer_body"]


def relation(files: Sequence[str], tenant: str, days: tuple[str, str]) -> tuple[str, dict[str, Any]]:
    """One relation over the hot rows of these days (inclusive) and sealed files, of one tenant only."""
    hot = f"SELECT {COLUMNS_SQL} FROM exchanges WHERE tenant = $tenant AND day BETWEEN $first AND $last"  # noqa: S608  values are bound
    params: dict[str, Any] = {"tenant": tenant, "first": days[0], "last": days[1]}
    if not files:
        return f"({hot})", params
    older = "SELECT * FROM exchanges WHERE false UNION ALL BY NAME SELECT * FROM read_parquet($files, union_by_name = true)"
    sealed = f"SELECT {COLUMNS_SQL} FROM ({older}) WHERE tenant = $tenant"  # noqa: S608  values are bound
    return f"({hot} UNION ALL {sealed})", {**params, "files": list(files)}
