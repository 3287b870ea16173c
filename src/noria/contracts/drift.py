"""Whether an app's traffic has changed: what is compared, what was found, and since when it stands.

A report compares a reference window with the recent one, signal by signal. What it was made of is not in it: ids, terms and
figures alone.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Standing = Literal["drifted", "steady", "insufficient"]


class DriftPolicy(msgspec.Struct, frozen=True):
    """How an app is watched (`apps.<app>.drift`)."""

    reference_seconds: float = 14 * 86_400.0
    """Length of the window that ends where the recent one begins."""
    recent_seconds: float = 86_400.0
    every_seconds: float = 3600.0
    """0 = only when somebody asks."""
    level: float = 0.01
    """False discovery rate over all signals of one report."""
    sensitivity: Literal["low", "normal", "high"] = "normal"
    """How large a change must be: `low` asks for twice the usual effect, `high` for half of it."""
    calm: int = 2
    """Reports in a row without drift after which an alert is over."""


class Windows(msgspec.Struct, frozen=True):
    """Two adjacent stretches of time, int64 ns UTC: [from, split) is compared with [split, until)."""

    from_ns: int
    split_ns: int
    until_ns: int


class DriftJob(msgspec.Struct, frozen=True):
    """`job.json` of `python -m noria.app.drift_job FOLDER`."""

    id: str
    home: str
    """Whose keeper is asked, and told the result."""
    app: str
    windows: Windows
    level: float = 0.01
    sensitivity: Literal["low", "normal", "high"] = "normal"
    sample: int = 1000
    """Exchanges looked at in each window."""
    seed: int = 0


class Sample(msgspec.Struct, frozen=True):
    """One exchange as it is compared. `length` is in characters of the last user turn, `text` may be cut."""

    id: str
    at_ns: int
    text: str
    length: int
    answer: str = ""
    outcome: str = "ok"
    judged: tuple[str, ...] = ()
    """Checks that looked at it."""
    found: tuple[str, ...] = ()
    """Those of them that found something."""
    label: str = ""
    """What feedback says it is, where it does."""
    conversation: str = ""


class Signal(msgspec.Struct, frozen=True):
    """One thing that may have changed."""

    name: str
    """`inputs`, `language`, `length`, `outcome`, `answers`, `labels`, `check:<id>`."""
    test: str
    standing: Standing
    effect: float = 0.0
    """What it measures depends on the test; 0 = no change."""
    least_effect: float = 0.0
    """Smaller ones are not called drift, whatever p says."""
    p: float = 1.0
    q: float = 1.0
    """p adjusted for all signals of the report (Benjamini-Hochberg)."""
    n_reference: int = 0
    n_recent: int = 0
    says: str = ""
    """For people, with the figures."""


class Term(msgspec.Struct, frozen=True):
    """A word (in Chinese a character or pair of them) whose share of the texts has changed."""

    term: str
    reference: float
    recent: float
    z: float


class DriftReport(msgspec.Struct, frozen=True):
    """One comparison."""

    id: str
    app: str
    at_ns: int
    windows: Windows
    standing: Standing
    signals: tuple[Signal, ...] = ()
    more: tuple[Term, ...] = ()
    less: tuple[Term, ...] = ()
    examples: tuple[str, ...] = ()
    """Recent exchanges that are least like the reference, unlike each other."""
    seconds: float = 0.0
    says: str = ""


class DriftState(msgspec.Struct, frozen=True):
    """How an app stands."""

    app: str
    firing: bool = False
    since_ns: int = 0
    calm: int = 0
    """Reports without drift since the last one with it."""
    report: str = ""
    """The latest."""
    checked_ns: int = 0
    standing: Standing = "insufficient"
