"""Two endpoints, one answer."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import ModelCall, ModelReply
from noria.gateway.hedge import Race, begins, idempotent

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'


def token(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


class Gate:
    def __init__(self) -> None:
        self.data = b""

    @property
    def committed(self) -> bool:
        return b"content" in self.data

    @committed.setter
    def committed(self, value: bool) -> None: ...

    def feed(self, data: bytes) -> None:
        self.data += data


class Play:
    """Attempts as told: numbers are pauses in seconds, bytes are sent, an exception is raised, the last is the reply."""

    def __init__(self) -> None:
        self.cancelled_at: dict[str, float] = {}
        self.begun: list[str] = []

    def attempt(self, name: str, *steps: Any) -> Any:
        async def run(lane: Any) -> ModelReply:
            self.begun.append(name)
            try:
                for step in steps:
                    if isinstance(step, bytes):
                        lane.feed(step)
                    elif isinstance(step, BaseException):
                        raise step
                    else:
                        await asyncio.sleep(step)
            except asyncio.CancelledError:
                self.cancelled_at[name] = asyncio.get_running_loop().time()
                raise
            return ModelReply(200, name.encode())

        return run


def call(**body: Any) -> ModelCall:
    return ModelCall("x", "chat", True, {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in body.items()})


async def race(*attempts: Any, after: float = 0.03, may: bool = True) -> tuple[Gate, Any, list[int]]:
    gate, won = Gate(), list[int]()
    reply = await Race(gate, call(), won.append).run(list(attempts), after, lambda: may)
    return gate, reply.body.decode(), won


async def test_an_endpoint_in_time_is_not_hedged() -> None:
    play = Play()
    gate, name, won = await race(play.attempt("a", ROLE, token("a"), 0.1, token("b")), play.attempt("b", token("x")))
    assert (name, won, play.begun) == ("a", [0], ["a"]), "content came before the hedge was due, the rest may take longer"
    assert gate.data == ROLE + token("a") + token("b")


async def test_a_late_endpoint_is_overtaken_and_cancelled_at_once() -> None:
    play = Play()
    loop = asyncio.get_running_loop()
    began = loop.time()
    gate, name, won = await race(play.attempt("a", ROLE, 5.0, token("late")), play.attempt("b", ROLE, token("quick"), 0.05))
    assert (name, won) == ("b", [1])
    assert gate.data == ROLE + token("quick"), "nothing of the loser"
    assert play.cancelled_at["a"] - began < 0.13, "within 100 ms of the first content"


async def test_the_loser_is_cancelled_with_the_winners_first_content_not_with_its_last() -> None:
    play = Play()
    began = asyncio.get_running_loop().time()
    await race(play.attempt("a", 5.0), play.attempt("b", token("quick"), 0.4, token("at last")))
    assert play.cancelled_at["a"] - began < 0.13


async def test_a_late_endpoint_may_still_win() -> None:
    play = Play()
    gate, name, won = await race(play.attempt("a", 0.06, token("a")), play.attempt("b", 5.0, token("b")))
    assert (name, won, gate.data) == ("a", [0], token("a"))
    assert "b" in play.cancelled_at


async def test_a_role_alone_does_not_win() -> None:
    play = Play()
    _, name, _ = await race(play.attempt("a", ROLE, ROLE, 5.0), play.attempt("b", 0.02, token("b")))
    assert name == "b"


async def test_whole_answers_race_too() -> None:
    play = Play()
    gate, name, won = await race(play.attempt("a", 5.0), play.attempt("b", 0.01))
    assert (name, won, gate.data) == ("b", [1], b"")


async def test_the_failure_of_one_leaves_the_other() -> None:
    play = Play()
    _, name, _ = await race(
        play.attempt("a", 0.05, UpstreamError("no", code="upstream_cut")), play.attempt("b", 0.1, token("b"))
    )
    assert name == "b"


async def test_a_failure_before_the_hedge_is_the_callers_business() -> None:
    play, error = Play(), UpstreamError("no", code="upstream_refused")
    with pytest.raises(UpstreamError):
        await race(play.attempt("a", error), play.attempt("b", token("b")))
    assert play.begun == ["a"]


async def test_where_the_budget_is_spent_nobody_is_asked_twice() -> None:
    play = Play()
    _, name, _ = await race(play.attempt("a", 0.1, token("a")), play.attempt("b", token("b")), may=False)
    assert (name, play.begun) == ("a", ["a"])


async def test_the_winners_failure_after_content_is_told() -> None:
    play, error = Play(), UpstreamError("cut", code="upstream_cut", started=True)
    with pytest.raises(UpstreamError, match="cut"):
        await race(play.attempt("a", 5.0), play.attempt("b", token("b"), 0.01, error))


async def test_when_the_caller_leaves_both_are_cancelled() -> None:
    play = Play()
    task = asyncio.ensure_future(race(play.attempt("a", 5.0), play.attempt("b", 5.0)))
    await asyncio.sleep(0.08)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(play.cancelled_at) == {"a", "b"}


def test_content_is_known_in_every_dialect() -> None:
    assert not begins(ROLE, "openai")
    assert begins(token("x"), "openai")
    assert begins(b"event: content_block_delta\ndata: {}\n\n", "anthropic")
    assert not begins(b"event: message_start\ndata: {}\n\n", "anthropic")
    assert begins(b"event: response.output_text.delta\ndata: {}\n\n", "responses")


def test_what_stores_something_is_not_asked_twice() -> None:
    assert idempotent(call(messages=[]))
    assert idempotent(call(store=False))
    assert not idempotent(call(store=True))
    assert not idempotent(call(background=True))
