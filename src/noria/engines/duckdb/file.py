"""The hot file: opened with nothing else within reach, recovered, and used in transactions."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from noria.contracts.error import ConfigError

Connection = duckdb.DuckDBPyConnection

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "256MB",
    "threads": 1,
    "checkpoint_threshold": "16MB",
    "preserve_insertion_order": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
ROW_GROUP = 8192
"""Rows that a checkpoint rewrites at least, where any of them is new: the default of 122,880 with bodies is 250 MB."""


def path_of(url: str) -> Path:
    """The folder that a URL names; raises `ConfigError` where it names none."""
    scheme, separator, path = url.partition(":///")
    if scheme != "duckdb" or not separator or path.strip("/") == "":
        raise ConfigError(f"{url!r} names no folder.", hint="Write duckdb:///relative/folder or duckdb:////absolute/folder.")
    return Path(path).absolute()


def connect(place: Path) -> Connection:
    """Open `hot.duckdb` with nothing else within reach but the sealed folder.

    kill -9 leaves at worst a torn end of the WAL, which DuckDB drops by itself. Where the WAL is damaged (a power cut, a
    bad disk), it is kept aside and everything before the damage is replayed: what follows is in the spool or lost.
    """
    file, wal = place / "hot.duckdb", place / "hot.duckdb.wal"
    connection = duckdb.connect(":memory:", config={**CONFIG, "temp_directory": str(place / "tmp")})
    attach = f"ATTACH {quoted(file)} AS hot (ROW_GROUP_SIZE {ROW_GROUP})"
    with closing_on_error(connection):
        try:
            connection.execute(attach)
        except duckdb.IOException as e:
            if "replaying WAL" not in str(e):
                raise
            damage = re.search(r"entry at byte position (\d+)", str(e))
            shutil.copyfile(wal, wal.with_name(f"{wal.name}.damaged-{time.time_ns()}"))
            with wal.open("r+b") as log:
                log.truncate(int(damage[1]) if damage else 0)
            connection.execute(attach)
        connection.execute("USE hot")
        connection.execute(f"SET allowed_directories = [{quoted(place / 'sealed')}]")
        connection.execute("SET parquet_metadata_cache = true")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    return connection


def cursor_of(connection: Connection) -> Connection:
    """A second connection to the same database."""
    cursor = connection.cursor()
    cursor.execute("USE hot")
    return cursor


def quoted(path: Path) -> str:
    """A path as a SQL literal, where DuckDB takes no parameter."""
    return "'" + str(path).replace("'", "''") + "'"


def one(c: Connection, sql: str, params: Any) -> Any:
    """The one value that a query gives."""
    found = c.execute(sql, params).fetchone()
    assert found is not None
    return found[0]


@contextmanager
def transaction(c: Connection) -> Iterator[None]:
    """All of a block, or nothing."""
    c.execute("BEGIN")
    try:
        yield
    except BaseException:
        # A failed commit has ended the transaction already.
        with suppress(duckdb.Error):
            c.execute("ROLLBACK")
        raise
    c.execute("COMMIT")


@contextmanager
def closing_on_error(c: Connection) -> Iterator[None]:
    """Close a connection that could not be set up."""
    try:
        yield
    except BaseException:
        c.close()
        raise
