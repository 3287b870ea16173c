"""What is wrong with a configuration: one Problem a mistake, all of them in one error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from noria.contracts.error import ConfigError, NotFound

Path: TypeAlias = tuple[str | int, ...]
"""Keys and list indices from the root: `("guards", "default", 1, "pii")`."""


class Problem(msgspec.Struct, frozen=True, order=True):
    """One mistake. `line` and `column` count from 1; `path` is dotted; values that may be secret are never shown."""

    file: str
    line: int
    column: int
    path: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: "
        return place + (f"{self.path}: " if self.path else "") + self.what + (f" {self.hint}" if self.hint else "")


class InvalidSettings(ConfigError):
    """A configuration with mistakes: `problems` holds every one, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        count = len(self.problems)
        head = f"{count} mistakes in the configuration:\n" if count > 1 else ""
        super().__init__(head + "\n".join(map(str, self.problems)))


def unknown(what: str, name: str, known: Iterable[str]) -> tuple[str, str]:
    """(what is wrong, hint with the nearest match) for a name that is not among `known`."""
    error = NotFound.nearest(what, name, sorted(known))
    return error.message, error.hint or ""
