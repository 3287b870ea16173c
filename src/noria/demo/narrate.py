"""What the demo says while it runs: to a terminal with a live line, or as JSON, one event a line. Everything said is kept.

An event is a mapping with `event` and `at_s` (seconds since the beginning): `phase` (name, title, budget_s), `say` (text),
`figure` (name, value), `verdict` (name, reached, says), `phase_end` (name, seconds, budget_s), `end`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec


class Narrator:
    """Tells and keeps events. `show` gets each of them; `live` a line that replaces the one before."""

    def __init__(self, show: Callable[[dict[str, Any]], None], live: Callable[[str], None], kept: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._show = show
        self._live = live
        self._kept = kept
        self._began = time.monotonic()
        kept.write_bytes(b"")

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    @contextmanager
    def phase(self, name: str, title: str, budget_s: float) -> Iterator[None]:
        """One act with its time budget; how long it took is told when it ends well."""
        self._tell("phase", name=name, title=title, budget_s=budget_s)
        began = time.monotonic()
        yield
        self._live("")
        self._tell("phase_end", name=name, seconds=round(time.monotonic() - began, 1), budget_s=budget_s)

    def say(self, text: str) -> None:
        """A sentence."""
        self._live("")
        self._tell("say", text=text)

    def live(self, text: str) -> None:
        """How far it is; not kept."""
        self._live(text)

    def figure(self, name: str, value: Any) -> None:
        """What was measured, for the report."""
        self._tell("figure", name=name, value=value)

    def verdict(self, name: str, says: str, *, reached: bool) -> None:
        """A verdict that the demo is about, and whether it was reached by measurement."""
        self._live("")
        self._tell("verdict", name=name, reached=reached, says=says)

    def end(self, **facts: Any) -> None:
        """The last event."""
        self._live("")
        self._tell("end", **facts)

    def figures(self) -> dict[str, Any]:
        """Everything that was measured, by name; the latest where a name came twice."""
        return {e["name"]: e["value"] for e in self.events if e["event"] == "figure"}

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [e for e in self.events if e["event"] == kind]

    def _tell(self, event: str, **facts: Any) -> None:
        told = {"event": event, "at_s": round(self.seconds, 1), **facts}
        self.events.append(told)
        with self._kept.open("ab") as file:
            file.write(msgspec.json.encode(told) + b"\n")
        self._show(told)


def as_json(kept: Path) -> Narrator:
    """Events as lines of JSON on stdout, nothing else."""

    def show(event: dict[str, Any]) -> None:
        sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        sys.stdout.flush()

    return Narrator(show, lambda _: None, kept)


class Terminal:
    """Events for people. The live line is on terminals alone."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._status: Any = None

    def narrator(self, kept: Path) -> Narrator:
        """Who tells them here."""
        return Narrator(self.show, self.live, kept)

    def show(self, event: dict[str, Any]) -> None:
        """One event."""
        from rich.markup import escape

        kind, clock = event["event"], f"{int(event['at_s'] // 60):2d}:{int(event['at_s'] % 60):02d}"
        if kind == "phase":
            self._print(f"\n[bold]{clock}  {escape(event['title'])}[/]  [dim]about {event['budget_s']:.0f} s[/]", 0)
        elif kind == "say":
            self._print(escape(event["text"]), 7)
        elif kind == "verdict":
            mark = "[green]✓[/]" if event["reached"] else "[red]✗[/]"
            self._print(f"{mark} [bold]{escape(event['name'])}[/]: {escape(event['says'])}", 5)
        elif kind == "phase_end":
            self._print(f"[dim]{event['seconds']:.0f} s of {event['budget_s']:.0f} s[/]", 7)

    def _print(self, markup: str, indent: int) -> None:
        from rich.padding import Padding

        if self._console.is_terminal:
            self._console.print(Padding(markup, (0, 0, 0, indent)))
        else:  # in a file, a sentence is a line
            self._console.print(" " * indent + markup, soft_wrap=True)

    def live(self, text: str) -> None:
        """Replace the live line."""
        from rich.markup import escape

        if not self._console.is_terminal:
            return
        if not text:
            if self._status is not None:
                self._status.stop()
                self._status = None
            return
        if self._status is None:
            self._status = self._console.status("")
            self._status.start()
        self._status.update(escape(text))
