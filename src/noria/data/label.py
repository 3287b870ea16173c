"""Labels from a file by row id, or by a rule that needs no model: a regular expression on what is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from noria.contracts.dataset import Row
from noria.contracts.error import ConfigError
from noria.data.row import prompt_of


class Rule(NamedTuple):
    """Rows whose prompt matches get the label. The first rule that matches wins."""

    label: str
    pattern: str
    matcher: Any
    """A compiled RE2 pattern: linear in the text, whatever is asked of it."""


def read_rule(text: str) -> Rule:
    """A rule written as `LABEL=PATTERN` (RE2 syntax, case ignored). Raises `ConfigError`."""
    import re2

    label, sign, pattern = text.partition("=")
    if not sign or not label or not pattern:
        raise ConfigError(f"{text!r} is no rule.", hint="Write LABEL=PATTERN.")
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    try:
        return Rule(label, pattern, re2.compile(pattern, options))
    except re2.error as e:
        raise ConfigError(f"The pattern {pattern!r} cannot be read: {e}") from e


def label_for(id: str, row: Row, given: Mapping[str, str], rules: Sequence[Rule], *, overwrite: bool) -> str | None:
    """The row's new label, or None where it stays as it is. The file goes before the rules, and always overwrites."""
    if id in given:
        return given[id]
    if row.label and not overwrite:
        return None
    prompt = prompt_of(row)
    return next((rule.label for rule in rules if rule.matcher.search(prompt)), None)
