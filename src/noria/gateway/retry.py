"""Who is asked again, when, and how often: the one retry owner's rules (`gateway.router`).

| what came                                            | kind      | what follows                                             |
|------------------------------------------------------|-----------|----------------------------------------------------------|
| 401, 402, 403                                        | `auth`    | the next endpoint; this one is out for long, an alarm     |
| 408, 409, 429, a rate limit told inside a stream     | `busy`    | the next endpoint; this one cools for its `retry-after`   |
| no connection, broken off, 5xx, an unusable answer   | `failed`  | the next endpoint, else the same after a pause            |
| too late (connect, first content, idle, total)       | `late`    | the next endpoint, never the same                        |
| 400 and the like that say the prompt is too long     | `window`  | an endpoint with a larger window, else the caller         |
| 400 and the like of a content policy                 | `policy`  | the caller, or the next endpoint where configured         |
| any other 4xx                                        | `caller`  | the caller: another endpoint would refuse it too          |

The SDKs' own retries multiply with ours (museum 20), hence the cap an exchange, the budget a worker, and
`x-should-retry: false` on what we have retried.
"""

from __future__ import annotations

import random
import re
from typing import Literal

from noria.contracts.error import NoriaError, UpstreamError

Kind = Literal["auth", "busy", "failed", "late", "window", "policy", "caller"]

SECOND_NS = 1_000_000_000
WINDOW_S = 10
"""Seconds over which the budget is counted."""
SHARE = 0.1
"""Retries that the requests of the window pay for."""
FLOOR = 30
"""Retries that a window allows however few requests it had."""
FIRST_PAUSE, LAST_PAUSE = 0.2, 2.0
"""Seconds before the same endpoint is asked again: doubled each time, with jitter of ±50 %."""
MOST_WAIT = 2.0
"""A longer `retry-after` is not waited for: the caller is told it instead."""

# OpenAI and look-alikes, Anthropic, Gemini, llama.cpp, vLLM, Mistral
_WINDOW = re.compile(
    rb"context_length_exceeded|exceed_context_size|maximum context length|context (?:window|size|length)|prompt is too long"
    rb"|input token count .{0,40}exceeds|too many tokens|input is too long|too large for model with",
    re.IGNORECASE,
)
_POLICY = re.compile(
    rb"content_filter|content_policy|content management policy|responsibleaipolicy|moderation_blocked", re.IGNORECASE
)


def classify(error: NoriaError) -> Kind:
    """What kind of failure `error` is; see the table above."""
    if not isinstance(error, UpstreamError):
        return "failed"  # a local model that went away between the look and the call
    status = error.upstream_status
    if status in (401, 402, 403) or error.code == "upstream_auth":
        return "auth"
    if status in (408, 409, 425, 429) or error.code == "upstream_rate_limited":
        return "busy"
    if error.callers_fault:
        if _WINDOW.search(error.body):
            return "window"
        return "policy" if _POLICY.search(error.body) else "caller"
    return "late" if error.code == "upstream_timeout" else "failed"


def pause(again: int, kind: Kind, retry_after: float | None, source: random.Random) -> float | None:
    """Seconds before the same endpoint may be asked for the `again`-th time after the first; None = not at all.

    Exponential with jitter, so that callers who failed together do not come back together.
    """
    if kind not in ("failed", "busy"):
        return None
    own = min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** (again - 1)) * source.uniform(0.5, 1.0)
    if retry_after is None:
        return own
    return None if retry_after > MOST_WAIT else max(own, retry_after)


class RetryBudget:
    """Retries of one worker: at any moment at most `FLOOR` + `SHARE` of the requests of the last 10 s.

    A storm of failures can therefore not become a storm of retries: without it, three attempts a request
    are three times the load at the very moment when the endpoints can bear it least. Counted in buckets of a
    second, so the window is 9 to 10 s long.
    """

    __slots__ = ("_requests", "_retries", "_second", "denied", "edge_ns", "granted", "requests")

    def __init__(self) -> None:
        self._requests = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S
        self._second = 0
        self.requests = 0
        """Of the current second. Whoever adds to it looks at `edge_ns` first: a call less in each exchange."""
        self.edge_ns = 0
        """When the current second is over and `turn` is due."""
        self.granted = 0
        self.denied = 0

    def request(self, now_ns: int) -> None:
        """Count a request."""
        if now_ns >= self.edge_ns:
            self.turn(now_ns)
        self.requests += 1

    def allow(self, now_ns: int) -> bool:
        """Whether one more attempt may be made; counts it if so."""
        if now_ns >= self.edge_ns:
            self.turn(now_ns)
        if sum(self._retries) + 1 > FLOOR + SHARE * (sum(self._requests) + self.requests):
            self.denied += 1
            return False
        self._retries[self._second % WINDOW_S] += 1
        self.granted += 1
        return True

    def turn(self, now_ns: int) -> None:
        """Begin the second of `now_ns`: the seconds that have passed since the last one had no requests."""
        second = now_ns // SECOND_NS
        self._requests[self._second % WINDOW_S] = self.requests
        for passed in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
            self._requests[passed % WINDOW_S] = self._retries[passed % WINDOW_S] = 0
        self._second, self.requests = second, 0
        self.edge_ns = (second + 1) * SECOND_NS
