"""Prompts from files: JSON lines in the shapes that people have, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from noria.contracts.error import ConfigError

Messages = list[dict[str, Any]]

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bot": "assistant", "system": "system", "tool": "tool",
          "function_call": "assistant", "observation": "tool"}  # fmt: skip
_TEXT_KEYS = (
    "prompt",
    "text",
    "question",
    "query",
    "instruction",
    "input",
    "content",
    "sentence",
    "user_query",
    "Question",
    "utterance",
)


class Prompt(msgspec.Struct, frozen=True):
    """One prompt of a file: its line (from 1), what to send, and the row's own id where it has one."""

    line: int
    messages: Messages
    id: str = ""


def read_prompts(path: Path, *, skip: Callable[[int, str], None] | None = None) -> Iterator[Prompt]:
    """Every prompt of a JSONL file (`.gz` too), in order; blank lines are passed over.

    A row without a prompt is told to `skip(line, why)` and passed over; without `skip` it is an error.

    Understood: `messages`; `conversations`/`conversation`/`dialog` (ShareGPT `from`/`value` or
    `role`/`content`); `turns` (the first); `instruction` + `input` (Alpaca); or one text under
    `prompt`, `text`, `question`, `query`, … A conversation ends at its last user turn, which is what is
    asked. Raises `ConfigError` that names file and line.
    """
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as f:
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                try:
                    prompt = _prompt(path, number, line)
                except ConfigError as e:
                    if skip is None:
                        raise
                    skip(number, e.text)
                else:
                    yield prompt
    except (OSError, EOFError, zlib.error) as e:
        where = f"{path}:{number + 1}" if number else None
        raise ConfigError(f"{path} cannot be read: {e}", where=where) from e


def _prompt(path: Path, number: int, line: bytes) -> Prompt:
    where = f"{path}:{number}"
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"not a JSON value: {e}", where=where) from None
    if isinstance(row, str):
        return Prompt(number, [{"role": "user", "content": row}])
    if not isinstance(row, dict):
        raise ConfigError("a JSON object or string is needed on each line.", where=where)
    messages = messages_of(row)
    if not messages:
        raise ConfigError(
            "no prompt found in this row.",
            where=where,
            hint=f"Keys: {', '.join(map(str, row))}. Known: messages, conversations, turns, {', '.join(_TEXT_KEYS)}.",
        )
    own = row.get("id", row.get("idx", ""))
    return Prompt(number, messages, str(own) if isinstance(own, (str, int)) else "")


def messages_of(row: dict[str, Any]) -> Messages:
    """The messages to send for a row, or none where no shape fits."""
    for key in ("messages", "conversations", "conversation", "dialog"):
        if isinstance(row.get(key), list):
            return _until_last_user([m for m in map(_message, row[key]) if m])
    turns = row.get("turns")
    if isinstance(turns, list) and turns:
        first = turns[0].get("content") if isinstance(turns[0], dict) else turns[0]
        return [{"role": "user", "content": first}] if isinstance(first, str) and first.strip() else []
    instruction = row.get("instruction")
    if isinstance(instruction, str) and instruction.strip():
        extra = row.get("input")
        text = f"{instruction}\n\n{extra}" if isinstance(extra, str) and extra.strip() else instruction
        return [{"role": "user", "content": text}]
    for key in _TEXT_KEYS:
        value: Any = row.get(key)
        words: Any = (
            value.get("text") if isinstance(value, dict) else value
        )  # OpenAssistant keeps a prompt's text one level down
        if isinstance(words, str) and words.strip():
            return [{"role": "user", "content": words}]
    return []


def _message(item: Any) -> dict[str, Any] | None:
    if not isinstance(item, dict):
        return None
    role = _ROLES.get(str(item.get("role", item.get("from", ""))).lower())
    content = item.get("content", item.get("value"))
    if role is None or content is None:
        return None
    return {**item, "role": role, "content": content} if "role" in item else {"role": role, "content": content}


def _until_last_user(messages: Messages) -> Messages:
    """Up to the last user turn. Tool traffic without its calls would be refused by a model, so it goes."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    return [m for m in messages[: last + 1] if m["role"] != "tool"]
