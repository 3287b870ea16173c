"""The way of one channel's text through the outward stages: timed, and kept as the guards left it."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns

from noria.contracts.stage import Transducer


class Timed:
    """A transducer whose time is added up: it runs once a delta, so each run is too small to note."""

    __slots__ = ("_inner", "_name", "_spent")

    def __init__(self, inner: Transducer, name: str, spent: dict[str, int]) -> None:
        self._inner = inner
        self._name = name
        self._spent = spent

    @property
    def held(self) -> int:
        """As the inner one."""
        return self._inner.held

    def feed(self, text: str) -> str:
        """As the inner one."""
        start = perf_counter_ns()
        try:
            return self._inner.feed(text)
        finally:
            self._spent[self._name] = self._spent.get(self._name, 0) + perf_counter_ns() - start

    def flush(self) -> str:
        """As the inner one."""
        start = perf_counter_ns()
        try:
            return self._inner.flush()
        finally:
            self._spent[self._name] = self._spent.get(self._name, 0) + perf_counter_ns() - start


class Passage:
    """The transducers of one channel, one after the other: those that judge, then those that only the caller's text passes.

    What stands between the two is what may be recorded: as the guards left it, before masks are restored.
    """

    __slots__ = ("_after", "_before", "_first", "_given", "_held", "_kept", "_later")

    def __init__(self, before: Sequence[Transducer], after: Sequence[Transducer] = ()) -> None:
        self._before = before
        self._after = after
        links = (*before, *after)
        self._first, self._later = links[:1], links[1:]
        self._given: list[str] = []
        self._kept: list[str] = []
        self._held = 0

    @property
    def held(self) -> int:
        """Exact while only the first link holds text back; while a later one does, all since then counts as held."""
        return self._held

    @property
    def kept(self) -> str:
        """The text that the guards have let through."""
        return "".join(self._kept)

    @property
    def unchanged(self) -> bool:
        """Whether the guards have let through all that came, as it came."""
        return self.kept == "".join(self._given)

    def feed(self, text: str) -> str:
        """`text` through every link."""
        self._given.append(text)
        self._held += len(text)
        for link in self._before:
            text = link.feed(text)
        self._kept.append(text)
        for link in self._after:
            text = link.feed(text)
        if not any(link.held for link in self._later):
            self._held = sum(link.held for link in self._first)
        return text

    def flush(self) -> str:
        """What the links held back; each flush passes through the links behind it."""
        out = _flushed(self._before, "")
        self._kept.append(out)
        self._held = 0
        return _flushed(self._after, out)


def _flushed(links: Sequence[Transducer], out: str) -> str:
    for link in links:
        out = (link.feed(out) if out else "") + link.flush()
    return out
