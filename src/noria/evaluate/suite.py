"""A suite, ready: its metrics loaded, its items chosen, and hashes that say when two runs may be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from noria.contracts.dataset import Row
from noria.contracts.error import ConfigError, RequestError
from noria.contracts.evaluation import Pooled, Scored, Suite
from noria.contracts.stage import Check, Sample
from noria.kit.ids import canonical, digest

Load = Callable[[str], type[Check]]
"""The class of a metric, by its id. Raises `NotFound`."""
REFUSED_PARAMS = frozenset({"model", "messages", "stream", "stream_options", "user", "safety_identifier", "conversation", "n"})
"""Request parameters that an evaluation sets itself, or that would make an item something else than one question."""


class Item(msgspec.Struct, frozen=True):
    """One row of the suite's split."""

    id: str
    row: Row


class Judge:
    """The metrics of a suite."""

    def __init__(self, suite: Suite, load: Load) -> None:
        if not suite.metrics:
            raise ConfigError("A suite needs a metric.", where=suite.name, hint="Such as `exact`, `label`, `f1`.")
        strange = sorted(set(suite.options) - set(suite.metrics))
        if strange:
            raise ConfigError(f"Options are given for {strange[0]!r}, which is no metric of the suite.", where=suite.name)
        self.suite = suite
        self.checks = {name: _made(load(name), suite, name) for name in suite.metrics}

    @property
    def hash(self) -> str:
        """How an item is asked and judged: two runs with this in common can share answers. Names, dataset and limit are left out."""
        content = {
            "metrics": {
                n: {"behaviour": c.behaviour, "options": self.suite.options.get(n, {})} for n, c in self.checks.items()
            },
            "params": self.suite.params,
        }
        return "q1:" + digest(canonical(content))

    @property
    def suite_hash(self) -> str:
        """`s1:` + the hash of everything that the suite is, but its name."""
        return "s1:" + digest(canonical([self.hash, self.suite.dataset, self.suite.split, self.suite.limit]))

    def score(self, item: Item, answer: str) -> Scored:
        """An answer, judged; what is known of the request is the caller's to add."""
        row = item.row
        expected = row.answer or row.label
        sample = Sample(input=_said(row), output=answer, expected=expected, label=row.label)
        scores: dict[str, float] = {}
        counts: dict[str, tuple[float, ...]] = {}
        said = ""
        for name, check in self.checks.items():
            verdict = check.judge(sample)
            scores[name] = verdict.score
            if isinstance(check, Pooled):
                counts[name] = check.counts(sample)
            if name == "label" and verdict.findings:
                said = verdict.findings[0].label
        kept, wanted = ("", "") if row.subject else (answer, expected)  # text of a person stays where it can be erased
        return Scored(item.id, "", kept, wanted, row.label, scores, 0.0, said=said, counts=counts)

    def failed(self, item: Item, error: str) -> Scored:
        """An item that was not answered: 0 everywhere, and counts as if nothing had been said."""
        empty = self.score(item, "")
        return replace(empty, answer="", said="", scores=dict.fromkeys(empty.scores, 0.0), error=error)


def completed(suite: Suite, labels: Iterable[str]) -> Suite:
    """`suite` with the set of classes that its dataset has, where it judges classes and names none."""
    if "label" not in suite.metrics or "labels" in suite.options.get("label", {}):
        return suite
    known = sorted({label for label in labels if label})
    if not known:
        raise RequestError(
            "The metric `label` needs classes, and no row of the split has one.", code="no_labels", param="metrics",
            hint="Give `options: {label: {labels: […]}}`, or another metric.",
        )  # fmt: skip
    return replace(suite, options={**suite.options, "label": {**suite.options.get("label", {}), "labels": known}})


def chosen(items: Sequence[Item], limit: int) -> list[Item]:
    """The items of a run, by row id. A row id is a keyed hash, so that the first ones are as good as drawn by lot, and the same ones
    every time: a larger limit keeps them.
    """
    ordered = sorted(items, key=lambda item: item.id)
    return ordered[:limit] if limit else ordered


def checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Request parameters as they are sent; `temperature` is 0 unless said. Raises `ConfigError`."""
    wrong = sorted(REFUSED_PARAMS & params.keys())
    if wrong:
        raise ConfigError(f"A suite cannot set {wrong[0]!r}.", where="params", hint="The evaluation sets it itself.")
    return {"temperature": 0, **params}


def _made(cls: type[Check], suite: Suite, name: str) -> Check:
    if cls.either or "output" not in cls.needs:
        raise ConfigError(f"The check {name!r} scores no answers.", where=suite.name, hint="It is a guard's.")
    try:
        return cls(msgspec.convert(suite.options.get(name, {}), cls.Config))
    except msgspec.ValidationError as e:
        raise ConfigError(f"The options of {name!r} are wrong: {e}", where=suite.name) from e


def _said(row: Row) -> str:
    """What the user said last."""
    content = row.messages[-1].get("content") if row.messages else ""
    return content if isinstance(content, str) else ""
