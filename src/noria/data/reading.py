"""Rows from files: JSON lines (`.gz` too), CSV and Parquet, in the shapes that people have.

The prompt as `data/collect.py` reads it, or what stands before the last answer of `messages`; the answer under `answer`,
`output`, `response`, `completion` or `target`; the class under `label` or `intent`. What else a line says is passed over.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from noria.contracts.dataset import Row, Source
from noria.contracts.error import ConfigError, boundary
from noria.data.collect import messages_of

ANSWERS = ("answer", "output", "response", "completion", "target")
LABELS = ("label", "intent")
LONGEST_LABEL = 512
"""Characters of a label, a group or the name of a split at most."""
PART = 2048
"""Lines of a Parquet file that are in memory at once."""


class Bad(NamedTuple):
    """A line that gives no row, and why."""

    ref: str
    rule: str
    detail: str


class Offered(NamedTuple):
    """A row of a file, and the split that the file has it in ("" = it says nothing)."""

    row: Row
    split: str


class Fields(NamedTuple):
    """Columns that the user names because they are called otherwise; empty = found by their usual names."""

    text: str = ""
    answer: str = ""
    label: str = ""
    lang: str = ""
    group: str = ""
    split: str = "split"
    user: str = ""
    """The person a line is about; it becomes a keyed hash before anything is stored."""
    tags: tuple[str, ...] = ()


Subject = Callable[[str], str]
"""A person, as the file names them → the keyed hash that stands for them."""


def read_file(path: Path, fields: Fields, *, subject: Subject, lang: str = "") -> Iterator[Offered | Bad]:
    """Every line of a file as a row, or as what is wrong with it, in order. Blank lines are passed over.

    Raises `ConfigError` for a file that cannot be read at all, and for a column named in `fields` that no line has.
    """
    try:
        stem = file_digest(path)
        seen: set[str] = set()
        for number, value in _lines(path):
            ref = f"{stem}:{number}"
            if isinstance(value, Bad):
                yield Bad(ref, value.rule, f"{path.name}:{number}: {value.detail}")
                continue
            seen.update(value)
            made = row_of(value, fields, ref, subject=subject, lang=lang)
            yield Bad(ref, made.rule, f"{path.name}:{number}: {made.detail}") if isinstance(made, Bad) else made
    except (OSError, EOFError, zlib.error, UnicodeError, csv.Error) as e:
        raise ConfigError(f"{path} cannot be read: {e}") from e
    _all_there(path, fields, seen)


def _all_there(path: Path, fields: Fields, seen: set[str]) -> None:
    named = [fields.text, fields.answer, fields.label, fields.lang, fields.group, fields.user, *fields.tags]
    named += [fields.split] if fields.split != "split" else []
    for column in filter(None, named):
        if column not in seen:
            raise ConfigError(f"No line of {path} has {column!r}.", hint=f"There are: {', '.join(sorted(seen))[:400]}.")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, the first 16 hex digits: what rows of it are traced back to."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | Bad]]:
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")):
        return _json_lines(path)
    if name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        return _csv_lines(path)
    if name.endswith(".parquet"):
        return _parquet_lines(path)
    raise ConfigError(f"{path} is of no known kind.", hint="Known: .jsonl, .csv, .tsv (each also .gz) and .parquet.")


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | Bad]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            except (msgspec.DecodeError, UnicodeDecodeError) as e:
                yield number, Bad("", "not_json", f"not a JSON value ({e})")
                continue
            if isinstance(value, str):
                value = {"text": value}
            yield number, value if isinstance(value, dict) else Bad("", "no_object", "a JSON object or string is needed")


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | Bad]]:
    import io

    tab = ".tsv" in path.name.lower()
    with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if tab else ",", strict=True)
        head = next(reader, None)
        if head is None:
            return
        while True:
            number = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            if not values:
                continue
            if len(values) != len(head):
                yield number, Bad("", "columns", f"{len(values)} columns where the head has {len(head)}")
                continue
            yield number, dict(zip(head, values, strict=True))


def _parquet_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | Bad]]:
    import duckdb

    with boundary(ConfigError, f"{path} cannot be read"), duckdb.connect(":memory:") as db:
        found = db.execute("SELECT * FROM read_parquet(?)", [str(path)])
        head, number = [d[0] for d in found.description or ()], 0
        while part := found.fetchmany(PART):
            for values in part:
                number += 1
                yield number, dict(zip(head, values, strict=True))


def row_of(value: Mapping[str, Any], fields: Fields, ref: str, *, subject: Subject, lang: str = "") -> Offered | Bad:
    """The row of one line's values."""
    found = _dialogue(value, fields)
    if isinstance(found, Bad):
        return found
    messages, said = found
    texts = {
        "answer": _text(value, (fields.answer,) if fields.answer else ANSWERS) or said,
        "label": _text(value, (fields.label,) if fields.label else LABELS),
        "lang": _text(value, (fields.lang,)) or lang,
        "group": _text(value, (fields.group,)),
    }
    for name in ("label", "lang", "group"):
        if len(texts[name]) > LONGEST_LABEL:
            return Bad(ref, f"{name}_too_long", f"the {name} has {len(texts[name])} characters, {LONGEST_LABEL} at most")
    user, split = _text(value, (fields.user,)), _text(value, (fields.split,))
    if len(split) > LONGEST_LABEL or "/" in split:
        return Bad(ref, "split_name", "the name of the split is too long, or has a /")
    tags = {name: text for name in fields.tags if (text := _text(value, (name,)))}
    row = Row(tuple(messages), **texts, subject=subject(user) if user else "", source=Source("file", ref), tags=tags)
    try:
        msgspec.json.encode(row)
    except (UnicodeEncodeError, TypeError, ValueError) as e:
        return Bad(ref, "not_json", f"cannot be written as JSON ({e})")
    return Offered(row, split)


def _dialogue(value: Mapping[str, Any], fields: Fields) -> tuple[list[dict[str, Any]], str] | Bad:
    """What is asked, and the answer where the dialogue goes on with one."""
    if fields.text:
        text = value.get(fields.text)
        if not isinstance(text, str) or not text.strip():
            return Bad("", "no_prompt", f"{fields.text!r} is no text, or empty")
        return [{"role": "user", "content": text}], ""
    messages = messages_of(dict(value))
    if not messages or messages[-1].get("role") != "user":
        return Bad("", "no_prompt", f"no prompt found; keys: {', '.join(map(str, value))[:200]}")
    given: list[Any] = next(
        (value[k] for k in ("messages", "conversations", "conversation", "dialog") if isinstance(value.get(k), list)), []
    )
    last = given[-1] if given and isinstance(given[-1], dict) else {}
    said = last.get("content", last.get("value"))
    is_answer = str(last.get("role", last.get("from", ""))).lower() in {"assistant", "gpt", "bot"}
    return messages, said if is_answer and isinstance(said, str) else ""


def _text(value: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of these that is there, as text; numbers and truth values as JSON writes them."""
    for name in names:
        found = value.get(name) if name else None
        if isinstance(found, str):
            return found
        if isinstance(found, bool | int | float):
            return msgspec.json.encode(found).decode()
    return ""


def labels_of(path: Path) -> dict[str, str]:
    """Row id (or the beginning of one) → label, from a file with `row` and `label` on each line. Raises `ConfigError`."""
    found: dict[str, str] = {}
    for number, value in _lines(path):
        row, label = ("", "") if isinstance(value, Bad) else (_text(value, ("row", "id")), _text(value, ("label",)))
        if not row or len(label) > LONGEST_LABEL:
            raise ConfigError("`row` and `label` are needed on each line.", where=f"{path}:{number}")
        if found.setdefault(row, label) != label:
            raise ConfigError(f"The row {row} has two labels.", where=f"{path}:{number}")
    return found
