"""`suites:` of `noria.yaml`: what releases are measured by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from noria.contracts.evaluation import Suite
from noria.settings.shape import Strict


def _spelt_out(value: object) -> object:
    """`exact` and `{f1: {articles: true}}` alike as mappings of one entry."""
    if not isinstance(value, list):
        return value
    return [{item: {}} if isinstance(item, str) else item for item in value]


def _single(value: list[dict[str, dict[str, Any]]]) -> list[dict[str, dict[str, Any]]]:
    names = [name for item in value for name in item]
    if any(len(item) != 1 for item in value):
        raise ValueError("Each metric is its id, or `{id: options}`")
    if len(set(names)) != len(names):
        raise ValueError("Each metric stands once")
    return value


Metrics = Annotated[
    list[dict[str, dict[str, Any]]],
    BeforeValidator(_spelt_out, json_schema_input_type=list[str | dict[str, dict[str, Any]]]),
    AfterValidator(_single),
]


class SuiteSettings(Strict):
    """A dataset, how its items are asked, and what judges the answers."""

    dataset: str = Field(min_length=1)
    """A dataset's name, which means its latest version when the suite is run, or `name@d1:…`."""
    split: str = Field(default="test", min_length=1)
    """The part of it that is asked."""
    metrics: Metrics = Field(default=[{"exact": {}}], min_length=1)
    """Checks that score answers, each by its id or as `{id: options}`."""
    params: dict[str, Any] = {}
    """Request parameters (`max_tokens`, …); `temperature` is 0 unless given."""
    limit: int = Field(default=0, ge=0)
    """At most so many items, the same ones every time; 0 = all."""

    def suite(self, name: str) -> Suite:
        """The suite, its dataset not yet resolved."""
        options = {metric: given for item in self.metrics for metric, given in item.items() if given}
        metrics = tuple(metric for item in self.metrics for metric in item)
        return Suite(name, self.dataset, self.split, metrics, options, self.params, self.limit)


def suites(declared: Mapping[str, SuiteSettings]) -> dict[str, Suite]:
    """What the file declares, by name."""
    return {name: s.suite(name) for name, s in declared.items()}
