"""The running account of one exchange: what its stages note on the way, and the row it becomes."""

from __future__ import annotations

from collections.abc import Sequence

from noria.contracts.error import Blocked, LimitExceeded, NoriaError, RequestError
from noria.contracts.exchange import Exchange, Usage
from noria.contracts.release import Endpoint, Price
from noria.contracts.trace import Attempt, CacheUse, CostStatus, ExchangeRow, Outcome, StageTime
from noria.contracts.verdict import Ruling
from noria.kit.step import Stopwatch


class Account:
    """Everything noted about one exchange. Mutable, short-lived, owned by its journey."""

    __slots__ = (
        "answer",
        "answer_is_sse",
        "attempts",
        "cache",
        "cut_tokens",
        "endpoint",
        "error",
        "finish_reason",
        "first_ns",
        "model_ns",
        "native",
        "request",
        "reserved",
        "rulings",
        "served_model",
        "status",
        "upstream_id",
        "usage",
        "warnings",
        "watch",
    )  # fmt: skip

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self.rulings: list[Ruling] = []
        self.attempts: list[Attempt] = []
        self.endpoint: Endpoint | None = None
        self.served_model = ""
        self.upstream_id = ""
        self.finish_reason = ""
        self.usage = Usage()
        self.first_ns: int | None = None
        """From the beginning to the first content byte towards the caller."""
        self.model_ns = 0
        """Time spent waiting for models, failed attempts included."""
        self.status = 0
        self.error: BaseException | None = None
        self.request = b""
        self.answer = b""
        self.answer_is_sse = False
        self.cut_tokens = 0
        self.reserved: int | None = None
        """Nano-dollars set aside under a budget."""
        self.cache: CacheUse = ""
        self.warnings: list[str] = []
        """What an endpoint's protocol could not carry."""
        self.native = False
        """Whether the bodies are in the caller's dialect, untranslated."""

    def cost(self) -> tuple[int | None, CostStatus]:
        """Nano-dollars and how they are known; an unknown price or count is unknown, never 0."""
        price = self.endpoint.price if self.endpoint else None
        if (self.endpoint is None and self.error is not None) or unbilled(self.attempts):
            return 0, "exact"
        if self.usage.input is None and self.reserved is not None:
            return self.reserved, "estimated"  # who began to answer may bill: the key pays what was set aside
        if price is None or self.usage.input is None:
            return None, "unknown"
        return price_of(price, self.usage), "exact"

    def row(self, x: Exchange, *, worker: str, config: str) -> ExchangeRow:
        """The wide row."""
        duration = self.watch.elapsed()
        cost, cost_status = self.cost()
        release = x.release
        return ExchangeRow(
            tenant=x.tenant,
            id=x.id,
            trace=x.trace,
            span=x.span,
            parent_span=x.parent_span,
            started_ns=x.started_ns,
            kind=x.kind,
            app=release.app if release else x.model[:200],
            release=release.id if release else "",
            release_name=release.name if release else "",
            config=config,
            outcome=outcome(self.error),
            status=self.status,
            stream=x.stream,
            duration_ns=duration,
            ttft_ns=self.first_ns,
            overhead_ns=max(0, duration - self.model_ns),
            endpoint=self.endpoint.name if self.endpoint else "",
            provider=(self.endpoint.vendor or self.endpoint.provider) if self.endpoint else "",
            served_model=self.served_model,
            upstream_id=self.upstream_id,
            finish_reason=self.finish_reason,
            error_code=error_code(self.error),
            error_message=str(self.error)[:500] if self.error else "",
            key=x.key.id if x.key else "",
            subject=x.subject,
            conversation=x.conversation,
            usage=self.usage,
            cost_nanousd=cost,
            cost_status=cost_status,
            stages=stage_times(self.watch.times),
            attempts=tuple(self.attempts),
            rulings=tuple(self.rulings),
            request=self.request,
            answer=self.answer,
            answer_is_sse=self.answer_is_sse,
            worker=worker,
            cut_tokens=self.cut_tokens,
            dialect=x.dialect,
            org=x.key.org if x.key else "",
            team=x.key.team if x.key else "",
            user=x.key.user if x.key else "",
            tags=x.tags,
            cache=self.cache,
            warnings=(*x.warnings, *self.warnings),
            native=self.native,
        )


def unbilled(attempts: Sequence[Attempt]) -> bool:
    """Whether no endpoint did any work: each refused the call, or could not be reached."""
    return bool(attempts) and all((a.status or 0) >= 400 or a.error == "upstream_refused" or not a.took_ns for a in attempts)


def stage_times(times: Sequence[tuple[str, int, int]]) -> tuple[StageTime, ...]:
    """The stopwatch's times as the trace keeps them."""
    return tuple(StageTime(name, offset, took) for name, offset, took in times)


def price_of(price: Price, usage: Usage) -> int:
    """Cost of `usage` in nano-dollars; dollars per million tokens are 1,000 nano-dollars per token."""
    plain = max(0, (usage.input or 0) - usage.cached)
    cached = price.input if price.cached is None else price.cached
    return round((plain * price.input + usage.cached * cached + (usage.output or 0) * price.output) * 1000)


def outcome(error: BaseException | None) -> Outcome:
    """How an exchange ended, in one word."""
    if error is None:
        return "ok"
    if isinstance(error, Blocked):
        return "blocked"
    if isinstance(error, (RequestError, LimitExceeded)):
        return "refused"
    return "error" if isinstance(error, Exception) else "cancelled"


def error_code(error: BaseException | None) -> str:
    """The stable code of an error: ours where it has one, else the name of its type."""
    if error is None:
        return ""
    if isinstance(error, NoriaError):
        return error.code or type(error).__name__
    return "cancelled" if not isinstance(error, Exception) else type(error).__name__
