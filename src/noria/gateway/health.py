"""How the endpoints stand, by what their answers say: nothing is sent to find out (museum 22), unless the configuration
asks for probes (`gateway.probed`).

Each worker has its own view. An endpoint is passed over while it is

- `cooling`: it said 408, 409 or 429; until its `retry-after`, else 1 s, doubled each time;
- `ejected`: it fails where others do not; 5 s, doubled each time up to 5 minutes;
- `dead`: it refuses our key; 5 minutes, and an alarm.

A deadline is never shortened (museum 20). When it has passed, one real request at a time is let through
(`trial`): its success ends the matter, its failure begins it anew, for longer. Ejection is our guess, so it is
bounded: at most half of a pool, and never the last endpoint of a route. What an endpoint says of itself is not a
guess: cooling and dead ones are passed over as long as another is left.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, Protocol, TypeVar

import msgspec

from noria.gateway.retry import SECOND_NS, Kind

State = Literal["ok", "cooling", "ejected", "dead", "trial"]

CALLERS: frozenset[Kind] = frozenset({"caller", "window", "policy"})
"""Failures that are the caller's own: the endpoint works."""
IN_A_ROW = 5
"""Failures one after the other that eject."""
LEAST_SEEN = 20
"""Answers that a failure rate needs to mean anything."""
FAILURE_RATE = 0.25
"""Share of failures among recent answers that ejects."""
RECENT_NS = 10 * SECOND_NS
"""Time constant in which old answers and latencies are forgotten."""
EJECT_NS, EJECT_MOST_NS = 5 * SECOND_NS, 300 * SECOND_NS
FORGIVE_NS = 120 * SECOND_NS
"""Time without trouble, for each time that it was out, after which the doubling starts from the beginning."""
COOL_NS, COOL_MOST_NS = 1 * SECOND_NS, 60 * SECOND_NS
DEAD_NS = 300 * SECOND_NS
WAITS = 128
"""Waits kept for the 95th percentile."""
FEWEST_WAITS = 20
LONGEST_ERROR = 300
"""Characters kept of an endpoint's last error."""


class Standing(msgspec.Struct, frozen=True):
    """How one endpoint stands with one worker, for `/metrics` and `/api/status`."""

    endpoint: str
    state: State
    seconds_left: float = 0.0
    in_flight: int = 0
    failures_in_a_row: int = 0
    latency_ms: float | None = None
    alarm: str = ""
    last_error: str = ""
    """What it, or the way to it, said when it last failed; of this worker's life."""
    last_error_ago: float | None = None
    """Seconds since then."""


class Health:
    """One endpoint as this worker knows it. All times are `perf_counter_ns` readings.

    The router does what `begin`, `succeeded` and `end` do for a well endpoint in place: three calls less an exchange.
    """

    __slots__ = (
        "_bad", "_counted", "_decayed_ns", "_error", "_error_ns", "_good", "_latency", "_latency_ns", "_since", "_strikes", "_until_ns", "_waits",
        "answered", "failures", "in_a_row", "in_flight", "name", "out", "trial",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.in_flight = 0
        self.in_a_row = 0
        self.answered = 0
        self._counted = 0
        self.failures: dict[Kind, int] = {}
        """How often it failed, by kind, since the worker's start."""
        self._good = 0.0
        self._bad = 0.0
        self._decayed_ns = 0
        self.out: State = "ok"
        self._since = 0
        self._until_ns = 0
        self._strikes = 0
        self.trial = False
        self._latency: float | None = None
        self._latency_ns = 0
        self._waits: list[int] = []
        self._error = ""
        self._error_ns = 0

    # -- what is asked ------------------------------------------------------------------------------

    @property
    def well(self) -> bool:
        """Whether nothing is held against it."""
        return self.out == "ok"

    @property
    def until_ns(self) -> int:
        """When what is held against it ends."""
        return self._until_ns

    def state(self, now: int) -> State:
        """How it stands. `trial`: its time is over and one request at a time may try it."""
        return "trial" if self.out != "ok" and now >= self._until_ns else self.out

    def open(self, now: int) -> bool:
        """Whether it may be given a request: well, or due for a trial that nobody makes yet."""
        return self.out == "ok" or (now >= self._until_ns and not self.trial)

    def load(self, now: int) -> float:
        """What one more request would have to reckon with: latency × requests under way, in ns.

        The latency fades with time, so that an endpoint that was slow once is tried again (peak EWMA as in
        Finagle's `p2cPeakEwma`).
        """
        latency = 0.0 if self._latency is None else self._latency * math.exp(-max(0, now - self._latency_ns) / RECENT_NS)
        return max(latency, 1e6) * (self.in_flight + 1)

    def p95(self) -> float | None:
        """Seconds within which 19 of 20 recent requests got their first content; None while too few are known."""
        if len(self._waits) < FEWEST_WAITS:
            return None
        return sorted(self._waits)[math.ceil(0.95 * len(self._waits)) - 1] / SECOND_NS

    # -- what happens -------------------------------------------------------------------------------

    def begin(self, now: int) -> bool:
        """A request is sent to it; whether as its trial."""
        self.in_flight += 1
        return self.out != "ok" and self.tries(now)

    def tries(self, now: int) -> bool:
        """A request is sent to it although something is held against it; whether that is its trial."""
        if now < self._until_ns or self.trial:
            return False
        self.trial = True
        return True

    def end(self, *, trial: bool = False) -> None:
        """The request is over, however."""
        self.in_flight -= 1
        if trial:
            self.trial = False

    def succeeded(self, began: int, now: int) -> bool:
        """It answered a request that `began` then; whether that ends what was held against it."""
        self.answered += 1
        self.in_a_row = 0
        return self.recovers(began, now)

    def recovers(self, began: int, now: int) -> bool:
        """As `succeeded`, for an answer that has been counted."""
        if self.out == "ok":
            return False
        if began < self._since or now < self._until_ns:
            return False  # sent before the trouble began, or the deadline stands
        self.out = "ok"
        return True

    def waited(self, took: int, now: int) -> None:
        """The first content, or the whole answer, came after `took` ns. Only routes that choose by it say so."""
        if self._latency is None:
            self._latency = float(took)
        else:
            keep = math.exp(-max(0, now - self._latency_ns) / RECENT_NS) if took < self._latency else 0.0
            # a peak counts at once, a recovery is believed gradually; many samples a second weigh as 1/8 each
            self._latency = took + (self._latency - took) * min(keep, 0.875)
        self._latency_ns = now
        if len(self._waits) >= WAITS:
            del self._waits[: WAITS // 4]
        self._waits.append(took)

    def failed(self, kind: Kind, began: int, now: int, retry_after: float | None = None) -> bool:
        """It failed a request that `began` then; whether it is out because of that (anew, or for longer)."""
        self.failures[kind] = self.failures.get(kind, 0) + 1
        if kind in CALLERS:  # it works
            self._good += 1
            self.in_a_row = 0
            self.recovers(began, now)
            return False
        if kind == "auth":
            return self._put_out("dead", now, DEAD_NS)
        if kind == "busy":
            wait = round(retry_after * SECOND_NS) if retry_after is not None else 0
            return self._put_out("cooling", now, wait or min(COOL_MOST_NS, COOL_NS << min(self._raise_strikes(began, now), 6)))
        self.in_a_row += 1
        self._decay(now)
        self._bad += 1
        if self.out == "ejected" and began < self._since:
            return False  # one of those that were under way when it was ejected
        seen = self._good + self._bad
        if self.out == "ok" and self.in_a_row < IN_A_ROW and not (seen >= LEAST_SEEN and self._bad / seen >= FAILURE_RATE):
            return False
        time = min(EJECT_MOST_NS, EJECT_NS << min(self._raise_strikes(began, now), 10))
        self._good = self._bad = 0.0
        return self._put_out(self.out if self.out in ("dead", "cooling") and now < self._until_ns else "ejected", now, time)

    def hold(self, state: State, now: int, time: int) -> None:
        """A probe says that it is out; for at least `time` more. Requests under way stay what they were."""
        since, well = self._since, self.well
        self._put_out(state, now, time)
        if not well:
            self._since = since

    def complained(self, message: str, now: int) -> None:
        """Keep what was said of a failure that may be its own, for people."""
        self._error, self._error_ns = message[:LONGEST_ERROR], now

    def _raise_strikes(self, began: int, now: int) -> int:
        """How often it was out before, lately: those of long ago do not count any more."""
        if now > self._until_ns + FORGIVE_NS * max(1, self._strikes):
            self._strikes = 0
        if self.out == "ok" or began >= self._since:
            self._strikes += 1
        return max(0, self._strikes - 1)

    def _put_out(self, state: State, now: int, time: int) -> bool:
        if self.out == "ok" or state == "dead" or now >= self._until_ns:
            self.out = state
        self._since = now
        self._until_ns = max(self._until_ns, now + time)
        return True

    def _decay(self, now: int) -> None:
        keep = math.exp(-(now - self._decayed_ns) / RECENT_NS) if self._decayed_ns else 1.0
        self._good = self._good * keep + self.answered - self._counted
        self._bad *= keep
        self._counted = self.answered
        self._decayed_ns = now

    def standing(self, now: int) -> Standing:
        """The state in words and numbers."""
        state = self.state(now)
        return Standing(
            endpoint=self.name,
            state=state,
            seconds_left=round(max(0, self._until_ns - now) / SECOND_NS, 1) if state not in ("ok", "trial") else 0.0,
            in_flight=self.in_flight,
            failures_in_a_row=self.in_a_row,
            latency_ms=None if self._latency is None else round(self._latency / 1e6, 1),
            alarm=f"The endpoint {self.name!r} refuses its key." if self.out == "dead" else "",
            last_error=self._error,
            last_error_ago=round((now - self._error_ns) / SECOND_NS, 1) if self._error else None,
        )


class Board:
    """The health of every endpoint of this worker; outlives configurations, as long as an endpoint stays the same."""

    def __init__(self) -> None:
        self._all: dict[Hashable, Health] = {}
        self.out = 0
        """Endpoints that something is held against. While it is 0 nobody needs to look."""
        self.counts = {"ejected": 0, "cooling": 0, "dead": 0, "recovered": 0}

    def of(self, key: Hashable, name: str) -> Health:
        """The health of the endpoint that `key` identifies."""
        found = self._all.get(key)
        if found is None:
            found = self._all[key] = Health(name)
        return found

    def named(self, name: str) -> list[Health]:
        """Those that the configuration, or the one before it, calls so."""
        return [h for h in self._all.values() if h.name == name]

    def keep_only(self, keys: Iterable[Hashable]) -> None:
        """Forget the endpoints that no configuration names any more."""
        wanted = set(keys)
        self._all = {k: h for k, h in self._all.items() if k in wanted}
        self.recount()

    def recount(self) -> None:
        """Count anew how many are out."""
        self.out = sum(not h.well for h in self._all.values())

    def note(self, health: Health, *, out: bool) -> None:
        """Something changed with `health`: it is out, or back."""
        self.recount()
        self.counts[str(health.state(0)) if out else "recovered"] += 1

    def attempts(self) -> dict[tuple[str, str], int]:
        """Attempts by (endpoint, result) since the worker's start; `ok`, or the kind of failure."""
        found: dict[tuple[str, str], int] = {}
        for health in self._all.values():
            for result, n in (("ok", health.answered), *health.failures.items()):
                found[health.name, result] = found.get((health.name, result), 0) + n
        return found

    def standings(self, now: int) -> tuple[Standing, ...]:
        """Every endpoint, by name."""
        return tuple(sorted((h.standing(now) for h in self._all.values()), key=lambda s: s.endpoint))


class Watched(Protocol):
    """What can be passed over."""

    @property
    def health(self) -> Health:
        """How it stands."""
        ...


W = TypeVar("W", bound=Watched)


def standing(pools: Sequence[Sequence[W]], now: int) -> tuple[Sequence[Sequence[W]], list[W]]:
    """The pools as they can be asked now, and those ejected, who are a last resort.

    At most half of a pool is ejected; the one whose time ends first returns before. A pool of one may be passed
    over, since other pools stand behind it. Where nobody would be left, the first to return is asked.
    """
    able: list[list[W]] = []
    ejected: list[W] = []
    for pool in pools:
        fit = [m for m in pool if m.health.open(now)]
        guessed = sorted((m for m in pool if _guessed(m.health, now)), key=lambda m: m.health.until_ns)
        most = len(pool) // 2 if len(pool) > 1 else 1
        back = guessed[: max(0, len(guessed) - most)]
        able.append([m for m in pool if m in fit or m in back])
        ejected += [m for m in guessed if m not in back]
    if not any(able) and any(pools):
        last = min((m for pool in pools for m in pool), key=lambda m: (m.health.state(now) == "dead", m.health.until_ns))
        able.append([last])
        ejected = [m for m in ejected if m is not last]
    return [pool for pool in able if pool], ejected


def _guessed(health: Health, now: int) -> bool:
    """Whether it is out by our guess: ejected, or in the trial that follows."""
    return not health.open(now) and health.state(now) in ("ejected", "trial")
