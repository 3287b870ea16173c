"""A YAML 1.2 (or JSON) text as plain data that remembers where each key and value stood.

ruamel.yaml composes the nodes; the data is built here, because a loader's dictionaries forget values'
positions, and because three rules are ours: keys are their own text (`on:` and `1:` are strings), a key
that occurs twice is a mistake, and dates stay text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from noria.settings.problem import Path, Problem

_TAG = "tag:yaml.org,2002:"
_TYPED = {_TAG + t for t in ("int", "float", "bool", "null")}
_TEXT = {_TAG + t for t in ("str", "timestamp", "value", "merge")}
_QUOTED = re.compile(r"'(?!<)[^']{2,}'")
"""What the parser repeats of the text: it may be a password that begins with * or &."""
_MAX_NODES = 100_000
"""Aliases multiply: nine lines of them can mean 10⁹ values ("billion laughs")."""


class Document:
    """The data of one file. `problems` holds what was wrong with the text itself; `fatal` ones leave no data."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.unread: set[Path] = set()
        """Values that could not be read (None in the data), each with its problem."""
        self.data: Any = None
        self._keys: dict[Path, tuple[int, int]] = {}
        self._values: dict[Path, tuple[int, int]] = {(): (0, 0)}
        self._blocks: set[Path] = set()
        self._open: list[int] = []
        self._count = 0
        self._load(text)

    def problem(self, path: Path, what: str, hint: str = "", *, key: bool = False) -> Problem:
        """A Problem at `path`, placed at its value, or at its key (`key`, or where the value begins a block).

        A path that is not in the text (a missing key, say) is placed at its nearest ancestor that is.
        """
        known = path
        while known and known not in self._values:
            known = known[:-1]
        at_key = known in self._keys and (key or known != path or known in self._blocks)
        return self._at(self._keys[known] if at_key else self._values[known], path, what, hint)

    def at(self, path: Path) -> Any:
        """The value at a path that is in the text."""
        value = self.data
        for step in path:
            value = value[step]
        return value

    def locate(self, loc: Path) -> Path:
        """The path meant by a validator's location, which may hold steps that the text lacks (`[key]`, index 0
        of what was written as one value).
        """
        found: Path = ()
        for step in loc:
            if (*found, step) in self._values:
                found = (*found, step)
        return found

    def entries(self, *path: str | int) -> Iterator[tuple[str, Any, Path]]:
        """(key, value, path) of the mapping at `path`; nothing where there is none."""
        value = self.at(path) if path in self._values else None
        if isinstance(value, dict):
            for key, child in value.items():
                yield key, child, (*path, key)

    def items(self, path: Path) -> Iterator[tuple[Any, Path]]:
        """(value, path) of each item of the list at `path`; of the value itself where it stands alone."""
        value = self.at(path) if path in self._values else None
        if isinstance(value, list):
            for i, item in enumerate(value):
                yield item, (*path, i)
        elif value is not None:
            yield value, path

    def _load(self, text: str) -> None:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError
        from ruamel.yaml.reader import ReaderError

        yaml = YAML(typ="safe", pure=True)
        self._constructor = yaml.constructor
        try:
            root = yaml.compose(text)
        except MarkedYAMLError as e:
            mark = e.problem_mark or e.context_mark
            what = " ".join(filter(None, (e.context, e.problem)))
            self._fatal(f"This is not YAML: {_QUOTED.sub('a name', what)}.", (mark.line, mark.column) if mark else (0, 0))
        except ReaderError as e:
            before = text[: e.position]
            mark_of = (before.count("\n"), len(before) - before.rfind("\n") - 1)
            self._fatal("This is not YAML: it holds a control character.", mark_of)
        except (YAMLError, RecursionError) as e:
            self._fatal(f"This is not YAML: {type(e).__name__}.", (0, 0))
        else:
            self.data = None if root is None else self._build(root, ())

    def _fatal(self, what: str, mark: tuple[int, int]) -> None:
        self._values[()] = mark
        self.problems.append(self.problem((), what))

    def _build(self, node: Any, path: Path) -> Any:
        self._values[path] = (node.start_mark.line, node.start_mark.column)
        self._count += 1
        if id(node) in self._open or self._count > _MAX_NODES:
            if self._count <= _MAX_NODES + 1:
                self._wrong(path, "Aliases (*name) must not repeat without end.")
            return None
        if node.id == "scalar":
            return self._scalar(node, path)
        self._blocks.add(path)
        self._open.append(id(node))
        built = self._mapping(node, path) if node.id == "mapping" else self._sequence(node, path)
        self._open.pop()
        return built

    def _sequence(self, node: Any, path: Path) -> list[Any]:
        return [self._build(child, (*path, i)) for i, child in enumerate(node.value)]

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key, child in node.value:
            mark = (key.start_mark.line, key.start_mark.column)
            if key.id != "scalar":
                self._values[(*path, "?")] = mark
                self._wrong((*path, "?"), "A key must be text.")
                continue
            step = (*path, _whole(key.value))
            if step[-1] in built:
                first = self._keys[step][0] + 1
                self.problems.append(self._at(mark, step, f"The key {step[-1]!r} occurs twice; it is on line {first} already."))
                continue
            self._keys[step] = mark
            if str(key.tag) == _TAG + "merge":
                self._values[step] = mark
                self._wrong(step, "Merge keys (<<) are not part of YAML 1.2.", "Write the keys out.")
                continue
            built[str(step[-1])] = self._build(child, step)
        return built

    def _scalar(self, node: Any, path: Path) -> Any:
        tag = str(node.tag)
        if tag in _TEXT:
            return _whole(node.value)
        if tag not in _TYPED:
            self._wrong(
                path, "YAML tags (!name) are not supported.", "Write the plain value, in quotes where it begins with !."
            )
            return None
        try:
            return self._constructor.construct_object(node, deep=True)
        except ValueError:
            self._wrong(path, f"This is not of the type that its tag says ({tag.removeprefix(_TAG)}).")
            return None

    def _at(self, mark: tuple[int, int], path: Path, what: str, hint: str = "") -> Problem:
        return Problem(self.file, mark[0] + 1, mark[1] + 1, ".".join(map(str, path)), what, hint)

    def _wrong(self, path: Path, what: str, hint: str = "") -> None:
        self.unread.add(path)
        self.problems.append(self.problem(path, what, hint))


def _whole(text: str) -> str:
    """`text` with surrogate pairs joined: JSON escapes 😀 as two halves, which YAML reads one by one."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
