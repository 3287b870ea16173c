"""What `noria.yaml` says of money and of rates: prices, budgets, limits, and who is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from noria.contracts.price import Price, Tier, begins, minutes_of
from noria.contracts.release import Budget, Limit
from noria.gateway.scope import KINDS
from noria.settings.shape import Duration, SecretReference, Strict

_TAG = re.compile(r"[^=\s]+=.+\Z")


def scope(value: str) -> str:
    """A scope as it is written. Raises `ValueError`."""
    kind, colon, name = value.partition(":")
    if kind not in KINDS or (kind == "tenant") == bool(colon) or (kind != "tenant" and not name.strip()):
        known = ", ".join(k if k == "tenant" else f"{k}:NAME" for k in KINDS if k != "tag")
        raise ValueError(f"A scope is one of {known}, tag:NAME=VALUE")
    if kind == "tag" and not _TAG.match(name):
        raise ValueError("A tag's scope is tag:NAME=VALUE")
    return value


def zone(value: str) -> str:
    """The name of a time zone. Raises `ValueError`."""
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{value!r} is not an IANA time zone such as Europe/Berlin") from None
    return value


def moment(value: str) -> str:
    """A `since` of a price. Raises `ValueError`."""
    try:
        if value and len(value) != len("2027-01-01") and datetime.fromisoformat(value).tzinfo is None:
            raise ValueError
        begins(value)
    except ValueError:
        raise ValueError(f"{value!r} is neither a day such as 2027-01-01 nor a moment such as 2027-01-01T00:00+08:00") from None
    return value


def hours_of_day(value: str) -> str:
    """The `hours` of a price. Raises `ValueError`."""
    try:
        first, last = minutes_of(value) if value else (0, 1)
    except ValueError:
        first = last = 0
    if first == last:
        raise ValueError(f"{value!r} are no hours such as 16:30-00:30")
    return value


Scope = Annotated[str, AfterValidator(scope)]
Zone = Annotated[str, AfterValidator(zone)]
Dollars = Annotated[float, Field(ge=0, le=1e9)]


class TierSettings(Strict):
    """Prices of exchanges with a long input; what is absent costs what it costs below."""

    above: int = Field(ge=0)
    """Tokens of the whole input above which these prices apply, to all of its tokens."""
    input: Dollars | None = None
    """As in the price."""
    output: Dollars | None = None
    """As in the price."""
    cached: Dollars | None = None
    """As in the price."""
    cache_write: Dollars | None = None
    """As in the price."""
    cache_write_long: Dollars | None = None
    """As in the price."""
    reasoning: Dollars | None = None
    """As in the price."""


class PriceSettings(Strict):
    """What a model costs, in US dollars per million tokens. It comes before every price table. Give `input` and `output`, or
    `compute_hour` for a model on your own machines, or all of them.
    """

    input: Dollars | None = None
    """A million tokens of the prompt."""
    output: Dollars | None = None
    """A million tokens of the answer."""
    cached: Dollars | None = None
    """A million prompt tokens that the vendor had cached; as `input` when absent."""
    cache_write: Dollars | None = None
    """A million prompt tokens written to the vendor's cache; as `input` when absent."""
    cache_write_long: Dollars | None = None
    """The same for an hour's cache; as `cache_write` when absent."""
    reasoning: Dollars | None = None
    """A million tokens of reasoning; as `output` when absent."""
    audio_input: Dollars | None = None
    """A million tokens of audio in the prompt; as `input` when absent."""
    audio_output: Dollars | None = None
    """A million tokens of audio in the answer; as `output` when absent."""
    image_input: Dollars | None = None
    """A million tokens of images in the prompt; as `input` when absent."""
    cached_audio: Dollars | None = None
    """A million tokens of audio that the vendor had cached; as `cached` when absent."""
    image_output: Dollars | None = None
    """A million tokens of images in the answer; as `output` when absent."""
    search: Dollars | None = None
    """A thousand web searches that the vendor runs; without it, what they cost is not known, and a cost is an estimate."""
    request: Dollars = 0.0
    """Each exchange, besides its tokens."""
    batch: float = Field(default=1.0, ge=0, le=1)
    """The share of all this that a batch costs: `0.5` = half."""
    compute_hour: Dollars = 0.0
    """An hour of model time, measured by Noria."""
    tiers: list[TierSettings] = []
    """Prices of long inputs."""
    since: Annotated[str, AfterValidator(moment)] = ""
    """When it begins: a day (YYYY-MM-DD, from midnight UTC) or a moment with its offset (2027-01-01T00:00+08:00). Only in a price
    file, where a model may have several.
    """
    hours: Annotated[str, AfterValidator(hours_of_day)] = ""
    """The hours of the day (UTC, such as 16:30-00:30) in which it comes before prices without hours; only in a price file."""

    @model_validator(mode="after")
    def _whole(self) -> PriceSettings:
        if (self.input is None) != (self.output is None) or (self.input is None and not self.compute_hour):
            raise ValueError("A price needs `input` and `output`, or `compute_hour`")
        return self

    def price(self, source: str) -> Price:
        """As the gateway has it."""
        plain = self.model_dump(exclude={"tiers", "input", "output"})
        tiers = tuple(Tier(**t.model_dump()) for t in sorted(self.tiers, key=lambda t: t.above))
        return Price(input=self.input or 0.0, output=self.output or 0.0, tiers=tiers, source=source, **plain)


def _always(price: PriceSettings) -> PriceSettings:
    if price.since or price.hours:
        raise ValueError("`since` and `hours` belong in a `price_file`, where a model has a list of prices")
    return price


OwnPrice = Annotated[PriceSettings, AfterValidator(_always)]
"""The one price that a model has in `noria.yaml`."""


class BudgetSettings(Strict):
    """Money that a scope may spend in a window."""

    scope: Scope
    """Who: `tenant`, `org:NAME`, `team:NAME`, `user:NAME`, `key:ID`, `app:NAME` or `tag:NAME=VALUE`."""
    usd: Dollars
    """How much, in US dollars."""
    window: Literal["day", "week", "month", "total"] = "total"
    """When it begins anew: at midnight of `zone`, on Monday, on the first of the month, or never."""
    zone: Zone = "UTC"
    """An IANA time zone."""
    hard: bool = True
    """Whether what does not fit is refused; otherwise it is only told."""
    alerts: list[Annotated[float, Field(gt=0, le=10)]] = [0.8, 1.0]
    """Shares of it at which an event is written and the webhook is told, once a window each."""


class LimitSettings(Strict):
    """How fast a scope may ask. What is absent is not limited."""

    scope: Scope
    """As in a budget."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Exchanges that begin in one minute (of UTC)."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens of prompts and answers in one minute."""
    concurrent: int | None = Field(default=None, ge=1)
    """Exchanges under way at once."""
    queue: Duration = Field(default=0.0, ge=0, le=300)
    """How long a request may wait for its turn instead of getting 429."""
    queue_size: int = Field(default=100, ge=1, le=10_000)
    """How many may wait at once, in each worker."""

    @model_validator(mode="after")
    def _some(self) -> LimitSettings:
        if self.requests_per_minute is self.tokens_per_minute is self.concurrent is None:
            raise ValueError("A limit needs `requests_per_minute`, `tokens_per_minute` or `concurrent`")
        return self


class AlertSettings(Strict):
    """Who is told when a budget reaches a threshold."""

    webhook: SecretReference | None = None
    """Where the URL is that gets a POST with JSON: `env:NAME` or `file:PATH`."""


def budgets(settings: Mapping[str, BudgetSettings]) -> tuple[Budget, ...]:
    """Budgets as the gateway has them; ids are their names."""
    return tuple(
        Budget(name, b.scope, round(b.usd * 1e9), b.window, b.zone, b.hard, tuple(sorted(b.alerts)))
        for name, b in settings.items()
    )


def limits(settings: Mapping[str, LimitSettings]) -> tuple[Limit, ...]:
    """Limits as the gateway has them; ids are their names."""
    return tuple(
        Limit(name, x.scope, x.requests_per_minute, x.tokens_per_minute, x.concurrent, x.queue, x.queue_size)
        for name, x in settings.items()
    )


def price_table(value: Any, source: str) -> dict[str, tuple[Price, ...]]:
    """A price file: `{"openai/gpt-5-mini": {…}}`, or a list of prices with `since`. Raises pydantic's `ValidationError`."""
    from pydantic import TypeAdapter

    made = TypeAdapter(dict[str, PriceSettings | list[PriceSettings]]).validate_python(value, strict=True)
    return {
        name: tuple(
            sorted((p.price(source) for p in (given if isinstance(given, list) else [given])), key=lambda p: begins(p.since))
        )
        for name, given in made.items()
    }
