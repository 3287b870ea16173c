"""The running account of one exchange: what its stages note on the way, and the row it becomes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from noria.contracts.error import Blocked, LimitExceeded, NoriaError, RequestError
from noria.contracts.exchange import Exchange, Usage
from noria.contracts.price import Price, cost_of, timed_only, untold
from noria.contracts.release import Endpoint
from noria.contracts.trace import Attempt, CacheUse, CostStatus, ExchangeRow, Outcome, StageTime
from noria.contracts.verdict import Ruling
from noria.kit.step import Stopwatch

EXACT: CostStatus = "exact"
ESTIMATED: CostStatus = "estimated"


class Account(msgspec.Struct):
    """Everything noted about one exchange. Mutable, short-lived, owned by its journey."""

    watch: Stopwatch
    began_ns: int = 0
    """When the exchange began (Unix ns): the price of that moment is paid. 0 = that of the endpoint's snapshot."""
    rulings: list[Ruling] = []
    attempts: list[Attempt] = []
    tries: int = 0
    """Attempts begun."""
    hedged: list[Endpoint] = []
    """Endpoints that had begun when another was faster: they may bill."""
    endpoint: Endpoint | None = None
    served_model: str = ""
    upstream_id: str = ""
    finish_reason: str = ""
    usage: Usage = Usage()
    counted: Usage | None = None
    """Tokens by our own count, where the endpoint told none."""
    heard: Usage | None = None
    """What an endpoint whose stream is translated told of its usage so far."""
    cut_short: bool = False
    """Whether `usage` is what was told before the answer's end, and our own count of the rest."""
    first_ns: int | None = None
    """From the beginning to the first content byte towards the caller."""
    model_ns: int = 0
    """Time spent waiting for models, failed attempts included."""
    status: int = 0
    error: BaseException | None = None
    request: bytes = b""
    answer: bytes = b""
    answer_is_sse: bool = False
    cut_tokens: int = 0
    reserved: int | None = None
    """Nano-dollars set aside under a budget."""
    cache: CacheUse = ""
    headers: list[tuple[str, str]] = []
    """What the head of the answer says besides."""
    warnings: list[str] = []
    """What an endpoint's protocol could not carry."""
    native: bool = False
    """Whether the bodies are in the caller's dialect, untranslated."""

    def hear(self, usage: Usage | None) -> None:
        """What the answer has used so far (`ModelCall.hear`)."""
        self.heard = usage or self.heard

    def cost(self) -> tuple[int | None, CostStatus]:
        """Nano-dollars and how they are known; an unknown price or count is unknown, never 0."""
        if self.cache:
            return 0, "exact"  # what was used once is not billed again
        if self.endpoint is None or unbilled(self.attempts):
            return 0, "exact"
        price = self._price(self.endpoint)
        timed = price is not None and timed_only(price)
        usage, status = self.usage, ESTIMATED if self.cut_short and not timed else EXACT
        if usage.input is None and not timed:
            if self.counted is None and self.reserved is not None:
                return self.reserved, "estimated"  # who began to answer may bill: what was set aside is paid
            usage, status = self.counted or usage, ESTIMATED
        if price is None or (usage.input is None and not price.compute_hour):
            return None, "unknown"
        worked = self._worked_ns() if price.compute_hour else 0
        own = cost_of(price, usage, model_ns=worked)
        if status == ESTIMATED and self.reserved is not None:
            # searches were counted, and nothing was set aside for them
            fees = own - cost_of(price, replace(usage, searches=0), model_ns=worked) if usage.searches else 0
            own = min(own - fees, self.reserved) + fees
        if untold(price, usage):
            status = ESTIMATED
        return self._with_hedges(own) if self.hedged else (own, status)

    def _price(self, endpoint: Endpoint) -> Price | None:
        return endpoint.price_at(self.began_ns) if self.began_ns else endpoint.price

    def _worked_ns(self) -> int:
        """How long the endpoint that answered was at work, for a price an hour of model time."""
        name = self.endpoint.name if self.endpoint else ""
        return sum(a.took_ns for a in self.attempts if a.endpoint == name)

    def _with_hedges(self, own: int) -> tuple[int | None, CostStatus]:
        """With what the slower endpoints of a race may bill: the same prompt, and of a whole answer the same answer too."""
        usage = self.usage if self.first_ns is None else Usage(input=self.usage.input, output=0)
        prices = [self._price(e) for e in self.hedged]
        if any(p is None for p in prices):
            return None, "unknown"
        return own + sum(cost_of(p, usage) for p in prices if p is not None), "estimated"

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
    for a in attempts:
        if (a.status or 0) < 400 and a.error != "upstream_refused" and a.took_ns:
            return False
    return bool(attempts)


def stage_times(times: Sequence[tuple[str, int, int]]) -> tuple[StageTime, ...]:
    """The stopwatch's times as the trace keeps them."""
    return tuple([StageTime(*time) for time in times])


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
