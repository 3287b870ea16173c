"""Labels: short `name=value` pairs for attribution, in one grammar wherever they are written.

A name is made of letters, digits and `. _ -`, a value of printable ASCII without commas and spaces; neither is longer than
64 characters, and at most 16 are carried together, so that whatever counts by label stays bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MOST = 16
LONGEST = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_VALUE = re.compile(r"[!-+\--~]{1,64}\Z")


def read(text: str) -> dict[str, str]:
    """The labels of a header value. Raises `ValueError` in words for its sender.

    >>> read("env=prod, feature=a=b")
    {'env': 'prod', 'feature': 'a=b'}
    """
    found: dict[str, str] = {}
    for part in text.split(",", MOST + 1):
        name, equals, value = part.partition("=")
        name, value = name.strip(), value.strip()
        if not equals:
            raise ValueError(f"{part.strip()[:LONGEST]!r} is no name=value pair")
        if name in found:
            raise ValueError(f"{name[:LONGEST]!r} is given twice")
        found[name] = value
    check(found)
    return found


def check(labels: Mapping[str, str]) -> None:
    """Raise `ValueError` where a name, a value or the number of them is out of bounds."""
    if len(labels) > MOST:
        raise ValueError(f"there are more than {MOST}")
    for name, value in labels.items():
        if not _NAME.match(name):
            raise ValueError(
                f"the name {name[:LONGEST]!r} is not 1 to {LONGEST} letters, digits or . _ - (first a letter or digit)"
            )
        if not _VALUE.match(value):
            raise ValueError(
                f"the value of {name!r} is not 1 to {LONGEST} printable ASCII characters without commas and spaces"
            )
