"""Museum 7 to 10: costs that are zero, wrong, doubled, or never charged.

7, nothing charged: most requests of one deployment were booked at $0, and a bill of hundreds of euros was reported as $1.47
(litellm#37923). Here an answer that says nothing of its usage is estimated and marked so, a missing price gives no cost instead
of 0, and a large share of exchanges without a cost raises an alarm.

8, wrong rate: tokens read from the provider's cache were charged at the full rate too (litellm#34801). Here each token is in one
class and is paid once, whether a provider counts cached tokens as part of its input or apart.

9, streams: usage was dropped where it came along with text (litellm#36168), added up where it came twice, and a real zero was
replaced (litellm#37992). Here the last usage that a stream tells replaces those before it; `null` tells nothing.

10, broken-off streams: callers who left paid nothing (litellm PR#33736). Here they pay for what had come by then, and never
more than what was reserved for them.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tests.unit.gateway.test_limits import ask

from noria.app.treasury import Treasury
from noria.contracts.price import Price, cost_of
from noria.contracts.release import App, Endpoint, Release, Snapshot
from noria.contracts.trace import Attempt, Total
from noria.contracts.usage import Usage
from noria.dialects.openai_stream import StreamReader
from noria.gateway.untold import counted
from noria.kit.step import Stopwatch
from noria.observe.account import Account

PRICED = Endpoint("m", "p", "m", price=Price(1.0, 2.0))


NOTHING = Usage()


def heard(many: int) -> tuple[StreamReader, list[bytes]]:
    """A stream of so many frames, and its reader."""
    reader, frames = StreamReader(), [chunk(..., DELTA)] * many
    for frame in frames:
        reader.read(frame)
    return reader, frames


def account(endpoint=PRICED, usage=NOTHING, *, counted=None, reserved=None) -> Account:
    made = Account(Stopwatch())
    made.endpoint, made.usage, made.counted, made.reserved = endpoint, usage, counted, reserved
    made.attempts = [Attempt("m", 0, 10, 200)]
    return made


def test_07_a_missing_usage_is_estimated_and_never_zero() -> None:
    reader, frames = heard(8)
    told = counted(ask(stream=True, messages="x" * 400), "openai", frames, reader)
    cost, status = account(counted=told).cost()
    assert status == "estimated"
    assert cost is not None
    assert cost > 0


def test_07_an_unknown_price_is_none() -> None:
    assert account(Endpoint("m", "p", "m"), Usage(5, 5)).cost() == (None, "unknown")


@pytest.mark.parametrize(
    ("zero", "unknown", "price", "alarmed"),
    [
        (50, 0, Price(1, 1), True),
        (0, 50, None, True),
        (0, 0, Price(1, 1), False),
        (50, 0, Price(0, 0), False),
    ],
)
async def test_07_a_share_of_exchanges_without_cost_raises_an_alarm(tmp_path, zero, unknown, price, alarmed) -> None:
    async def totals(*_, **__):
        return [Total(("m",), 100, 5, unknown, 0, zero, Usage(1, 1))]

    traces = SimpleNamespace(totals=totals, max_batch=100)
    parts = dict.fromkeys(("records", "counters"))
    clock = SimpleNamespace(now_ns=lambda: 10**18)
    treasury = Treasury(tmp_path, SimpleNamespace(), tenant="local", traces=traces, clock=clock, **parts)
    app = App("a", {"main": Release("r", "main", "a", (Endpoint("m", "openai_compatible", "m", price=price),))}, {"main": 1.0})
    await treasury.adopt(Snapshot("c", "local", 1, {"a": app}, {}))
    await treasury.review()
    assert bool(treasury.notices()) is alarmed


def test_08_cached_tokens_are_not_paid_twice() -> None:
    gpt = Price(2.5, 10.0, cached=1.25)
    assert cost_of(gpt, Usage(2006, 300, cached=1920)) == 86 * 2500 + 1920 * 1250 + 300 * 10_000
    claude = Price(3.0, 15.0, cached=0.3, cache_write=3.75)  # normalised: input includes what was read and written
    assert cost_of(claude, Usage(21 + 188_086, 393, cached=188_086)) == 21 * 3000 + 188_086 * 300 + 393 * 15_000


def chunk(usage, choices) -> bytes:
    whole = {"id": "1", "object": "chat.completion.chunk", "model": "m", "choices": choices}
    return b"data: " + json.dumps(whole | ({"usage": usage} if usage is not ... else {})).encode() + b"\n\n"


DELTA = [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]


def used(prompt, completion):
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ([chunk(used(9, 1), DELTA), chunk(used(9, 4), DELTA)], (9, 4)),  # both beside text; the second replaces the first
        ([chunk(used(9, 4), DELTA), chunk(None, [])], (9, 4)),  # null tells nothing
        ([chunk(used(9, 4), []), chunk(used(9, 4), [])], (9, 4)),  # told twice, counted once
        ([chunk(used(9, 4), DELTA), chunk(used(9, 0), [])], (9, 0)),  # an explicit zero is meant
    ],
)
def test_09_the_last_usage_of_a_stream_counts(chunks, told) -> None:
    reader = StreamReader()
    for c in chunks:
        reader.read(c)
    assert reader.usage is not None
    assert (reader.usage.input, reader.usage.output) == told


def test_10_a_caller_who_leaves_pays_for_what_was_sent_and_at_most_what_was_reserved() -> None:
    reader, frames = heard(40)
    told = counted(ask(messages="x" * 4000), "openai", frames, reader)
    assert told.output == 40
    assert counted(ask(messages="x"), "openai", [b"".join(frames)], reader).output == 40, "frames that came at once are as many"
    left = account(counted=told)
    left.error = None
    cost, status = left.cost()
    assert status == "estimated"
    assert cost == told.input * 1000 + 40 * 2000
    assert account(counted=told, reserved=7).cost() == (7, "estimated")
    assert account(reserved=7).cost() == (7, "estimated"), "nothing was seen of it: what was set aside is paid"
