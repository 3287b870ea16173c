"""What a failure means, when the same endpoint is asked again, and how much may be retried at all."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noria.contracts.error import Unavailable, UpstreamError
from noria.gateway.retry import FLOOR, MOST_WAIT, SECOND_NS, SHARE, WINDOW_S, RetryBudget, classify, pause


def failed(status: int | None = None, code: str = "upstream_error", body: bytes = b"") -> UpstreamError:
    return UpstreamError("no", code=code, upstream_status=status, body=body)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (failed(401), "auth"),
        (failed(402), "auth"),
        (failed(403, "upstream_auth"), "auth"),
        (failed(408, "upstream_timeout"), "busy"),
        (failed(409), "busy"),
        (failed(429, "upstream_rate_limited"), "busy"),
        (failed(200, "upstream_rate_limited"), "busy"),
        (failed(500), "failed"),
        (failed(503), "failed"),
        (failed(529), "failed"),
        (failed(None, "upstream_refused"), "failed"),
        (failed(None, "upstream_cut"), "failed"),
        (failed(200, "bad_upstream_response"), "failed"),
        (failed(None, "upstream_timeout"), "late"),
        (failed(504, "upstream_timeout"), "late"),
        (failed(400), "caller"),
        (failed(404), "caller"),
        (failed(418), "caller"),
        (failed(451), "caller"),
        (failed(400, body=b'{"error":{"code":"context_length_exceeded"}}'), "window"),
        (failed(400, body=b'{"error":{"message":"prompt is too long: 210000 tokens > 200000 maximum"}}'), "window"),
        (failed(400, body=b'{"error":{"type":"exceed_context_size_error","n_ctx":512}}'), "window"),
        (failed(400, body=b"This model's maximum context length is 4096 tokens."), "window"),
        (failed(400, body=b'{"error":{"code":"content_filter","innererror":{}}}'), "policy"),
        (failed(500, body=b"context_length_exceeded"), "failed"),
        (Unavailable("gone"), "failed"),
    ],
)
def test_every_failure_has_its_kind(error, kind) -> None:
    assert classify(error) == kind


def test_pauses_double_with_jitter_up_to_a_bound() -> None:
    source = random.Random(1)
    for again, full in ((1, 0.2), (2, 0.4), (3, 0.8), (4, 1.6), (5, 2.0), (9, 2.0)):
        seen = {pause(again, "failed", None, source) for _ in range(200)}
        assert full / 2 <= min(seen) < max(seen) <= full
        assert max(seen) - min(seen) > full / 3, "callers who failed together do not come back together"


def test_a_wait_that_the_endpoint_asks_for_is_kept_or_not_waited_for_at_all() -> None:
    source = random.Random(1)
    assert pause(1, "busy", 1.5, source) == 1.5
    assert pause(3, "failed", 0.01, source) > 0.01
    assert pause(1, "busy", MOST_WAIT + 0.1, source) is None


@pytest.mark.parametrize("kind", ["auth", "late", "caller", "window", "policy"])
def test_the_same_endpoint_is_not_asked_again_for_what_will_not_pass(kind) -> None:
    assert pause(1, kind, None, random.Random(1)) is None


arrivals = st.lists(
    st.tuples(st.integers(0, 3 * SECOND_NS), st.sampled_from(["request", "retry"]), st.integers(1, 40)), max_size=60
)


@given(arrivals, st.integers(0, 10**15))
def test_retries_never_pass_the_floor_and_their_share_of_the_requests_whatever_arrives(steps, start) -> None:
    budget, now = RetryBudget(), start
    requests: Counter[int] = Counter()
    retries: Counter[int] = Counter()
    for gap, what, many in steps:
        now += gap
        second = now // SECOND_NS
        window = range(second - WINDOW_S + 1, second + 1)
        for _ in range(many):
            if what == "request":
                budget.request(now)
                requests[second] += 1
            else:
                before = sum(retries[s] for s in window)
                may = budget.allow(now)
                retries[second] += may
                most = FLOOR + SHARE * sum(requests[s] for s in window)
                assert sum(retries[s] for s in window) <= most
                assert may == (before + 1 <= most), "and none is denied that the bound allows"
    assert budget.granted == sum(retries.values())


def test_a_burst_of_failures_gets_a_tenth_and_the_floor_and_the_next_window_is_fresh() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.request(5 * SECOND_NS)
    assert sum(budget.allow(5 * SECOND_NS) for _ in range(1000)) == FLOOR + 100
    assert budget.denied == 1000 - FLOOR - 100
    assert sum(budget.allow(40 * SECOND_NS) for _ in range(1000)) == FLOOR
