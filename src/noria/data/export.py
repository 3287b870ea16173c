"""A version as a file: JSON lines, CSV or Parquet (DuckDB's COPY), whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from noria.contracts.dataset import Row
from noria.contracts.error import ConfigError, StoreError, boundary
from noria.data.row import text_of
from noria.kit.atomic import STAGING, sync_folder

FORMATS = ("jsonl", "csv", "parquet")
COLUMNS = ("row", "split", "prompt", "messages", "answer", "label", "lang", "group", "subject", "source", "tags")
"""Of CSV and Parquet; `messages`, `source` and `tags` are JSON, `prompt` is the last user turn."""

Item = tuple[str, str, Row]
"""Row id, split, row."""


def format_of(path: Path, given: str = "") -> str:
    """The format asked for, else that of the file's name. Raises `ConfigError`."""
    name = given or path.suffix.removeprefix(".").lower()
    if name not in FORMATS:
        raise ConfigError(f"{name or path.name!r} is no format.", hint=f"Known: {', '.join(FORMATS)}.")
    return name


def write(path: Path, items: Iterable[Item], format: str) -> int:
    """Write items to `path`, replacing what is there only once all of it is on disk; how many. The file is its owner's alone."""
    count = 0

    def counted() -> Iterator[Item]:
        nonlocal count
        for item in items:
            count += 1
            yield item

    with boundary(StoreError, f"exporting to {path}"), _aside(path) as (aside, file):
        longest = _json_lines(file, counted(), flat=format != "jsonl")
        file.flush()
        if format == "jsonl":
            os.fsync(file.fileno())
            aside.replace(path)
        else:
            _convert(aside, path, format, longest)
        sync_folder(path.absolute().parent)
    return count


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """An unfinished neighbour, gone at the end."""
    aside = path.with_name(f"{STAGING}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield aside, file
    finally:
        aside.unlink(missing_ok=True)


def _json_lines(file: IO[bytes], items: Iterable[Item], *, flat: bool) -> int:
    """Bytes of the longest line."""
    encode = msgspec.json.encode
    longest = 0
    for name, split, row in items:
        if not flat:
            longest = max(longest, file.write(encode({"row": name, "split": split, **msgspec.structs.asdict(row)}) + b"\n"))
            continue
        value = {
            **msgspec.structs.asdict(row),
            "row": name,
            "split": split,
            "prompt": text_of(row.messages[-1]) if row.messages else "",
            "messages": encode(row.messages).decode(),
            "source": encode(row.source).decode(),
            "tags": encode(row.tags).decode(),
        }
        longest = max(longest, file.write(encode({column: value[column] for column in COLUMNS}) + b"\n"))
    return longest


def _convert(lines: Path, path: Path, format: str, longest: int) -> None:
    """JSON lines → CSV or Parquet: DuckDB streams from one file into the other, in bounded memory."""
    import duckdb

    made = lines.with_name(f"{lines.name}.out")
    options = (
        "FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false"
        if format == "parquet"
        else "FORMAT csv, HEADER, USE_TMP_FILE false"
    )
    columns = "{" + ", ".join(f"'{name}': 'VARCHAR'" for name in COLUMNS) + "}"
    try:
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with duckdb.connect(":memory:") as db:
            db.execute("SET threads = 1")  # each would have a buffer of several times the longest line
            source = (
                f"read_json($1, format='newline_delimited', columns={columns}, maximum_object_size={max(longest, 1 << 20)})"
            )
            db.execute(f"COPY (SELECT * FROM {source}) TO '{_quoted(made)}' ({options})", [str(lines)])  # noqa: S608  our own names
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.chmod(0o600)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
