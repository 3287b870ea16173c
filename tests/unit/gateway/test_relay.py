"""The way back, piece by piece; whole journeys are in tests/journeys/test_prompt.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from noria.contracts.error import Blocked, LimitExceeded, RequestError, UpstreamError
from noria.contracts.exchange import Exchange, ModelReply
from noria.contracts.release import Release
from noria.gateway.passage import Passage, Timed
from noria.gateway.relay import KEEP_ALIVE, MAX_BACKLOG, MAX_HELD, Relay
from noria.kit.step import Stopwatch
from noria.observe.account import Account

X = Exchange("x1", "t1", "s", "local", "chat", "a", True, {}, 0, release=Release("r1:x", "main", "a", ()))
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
SAY = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Out:
    def __init__(self) -> None:
        self.heads: list[tuple[int, dict[str, str], bool]] = []
        self.body = b""
        self.ended = False
        self.backlog = 0

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        self.heads.append((status, dict(headers), stream))

    def data(self, data: bytes) -> None:
        self.body += data

    def end(self) -> None:
        self.ended = True


def relay(x: Exchange = X, *outward: Any, keep: bool = True) -> tuple[Relay, Out, Account]:
    out, account = Out(), Account(Stopwatch())
    made = Relay(x, account, out)
    made.open(x, outward, None, keep=keep)
    return made, out, account


def row(account: Account, x: Exchange = X) -> Any:
    return account.row(x, worker="w", config="c")


class Rot:
    """Holds back one character; the last one leaves at the flush."""

    def __init__(self) -> None:
        self.kept = ""

    @property
    def held(self) -> int:
        return len(self.kept)

    def feed(self, text: str) -> str:
        text = self.kept + text
        self.kept = text[-1:]
        return text[:-1].upper()

    def flush(self) -> str:
        kept, self.kept = self.kept, ""
        return kept.upper()


class Stage:
    behaviour = 1

    def __init__(self, make: Any = Rot, name: str = "rot") -> None:
        self.make, self.name = make, name

    def open(self, x: Any, choice: int, channel: str, report: Any) -> Any:
        return self.make()


def test_nothing_leaves_before_content() -> None:
    way, out, _ = relay()
    way.feed(ROLE)
    assert (out.heads, out.body, way.committed) == ([], b"", False)
    way.feed(SAY)
    assert way.committed
    assert out.heads[0][0] == 200
    assert out.body == ROLE + SAY


def test_a_restart_forgets_what_was_held() -> None:
    way, out, account = relay()
    way.feed(ROLE + b"data: half a fr")
    way.restart()
    way.feed(SAY + DONE)
    way.close(ModelReply(200))
    way.settle(way._x)
    way.end(row(account))
    assert out.body == SAY + DONE == account.answer


def test_a_long_preamble_is_not_held_for_ever() -> None:
    way, _, _ = relay()
    way.feed((b": " + b"x" * 1000 + b"\n\n") * (MAX_HELD // 1000 + 1))
    assert way.committed


def test_a_caller_who_does_not_read_is_given_up() -> None:
    way, out, _ = relay()
    way.feed(SAY)
    out.backlog = MAX_BACKLOG + 1
    way.feed(SAY)
    assert way._error.code == "slow_caller"
    before = out.body
    way.feed(SAY)
    assert out.body == before, "nothing is added any more"


async def test_an_error_of_the_way_back_ends_the_wait_for_the_model() -> None:
    def refusing() -> Any:
        def feed(text: str) -> str:
            raise Blocked("no", check="c", side="answer")

        return SimpleNamespace(feed=feed, flush=lambda: "", held=0)

    way, _, _ = relay(X, Stage(refusing))

    async def model() -> ModelReply:
        asyncio.get_running_loop().call_soon(way.feed, SAY)
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Blocked):
        await way.carry(model())
    assert asyncio.current_task().cancelling() == 0


async def test_a_model_that_never_waits_cannot_outrun_a_refusal() -> None:
    def refusing() -> Any:
        def feed(text: str) -> str:
            raise Blocked("no", check="c", side="answer")

        return SimpleNamespace(feed=feed, flush=lambda: "", held=0)

    way, _, _ = relay(X, Stage(refusing))

    async def model() -> ModelReply:
        way.feed(SAY)
        return ModelReply(200)

    with pytest.raises(Blocked):
        await way.carry(model())
    await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0


async def test_a_cancellation_from_outside_stays_one() -> None:
    way, _, _ = relay()
    task = asyncio.create_task(way.carry(asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_what_stages_hold_back_leaves_at_the_end() -> None:
    way, out, account = relay(X, Stage())
    way.feed(b'data: {"choices":[{"index":0,"delta":{"content":"abc"}}]}\n\n')
    way.close(ModelReply(200))
    assert b'"AB"' in out.body
    assert b'"C"' in out.body
    way.settle(way._x)
    assert [name for name, _, _ in account.watch.times] == ["rot"], "many small runs are one time"
    assert b"ABC" in account.answer
    assert way.text() == "ABC"


def test_a_whole_answer_passes_the_same_stages() -> None:
    way, out, account = relay(replace(X, stream=False), Stage())
    way.close(ModelReply(200, b'{"choices":[{"message":{"content":"abc"}}]}', upstream_id="up1"))
    way.settle(way._x)
    way.end(row(account))
    assert b'"ABC"' in out.body
    assert account.upstream_id == "up1"
    assert out.ended


def test_embeddings_pass_untouched_and_unrecorded() -> None:
    body = b'{"data":[{"embedding":[1]}],"model":"nano","usage":{"prompt_tokens":3,"total_tokens":3}}'
    way, out, account = relay(replace(X, stream=False, kind="embedding"), Stage())
    way.close(ModelReply(200, body))
    way.settle(way._x)
    way.end(row(account))
    assert (out.body, account.answer, account.usage.input) == (body, b"", 3)


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_kept_where_nothing_may_be_kept(stream: bool) -> None:
    way, _, account = relay(replace(X, stream=stream), keep=False)
    if stream:
        way.feed(SAY)
    way.close(ModelReply(200, b'{"choices":[{"message":{"content":"abc"}}]}'))
    way.settle(way._x)
    assert account.answer == b""


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("no", code="bad"), 400, "bad"),
        (LimitExceeded("slow down", code="rate_limit_exceeded", retry_after=2), 429, "rate_limit_exceeded"),
        (UpstreamError("gone", code="upstream_timeout"), 504, "upstream_timeout"),
    ],
)
def test_an_error_before_content_has_its_own_status(error: Any, status: int, code: str) -> None:
    way, out, account = relay()
    account.error = error
    way.settle(way._x)
    way.end(row(account))
    assert out.heads[0][0] == status == account.status
    assert out.heads[0][1]["content-type"] == "application/json"
    assert out.heads[0][1]["x-request-id"] == "x1"
    assert code.encode() in out.body


def test_an_error_after_content_is_a_frame_and_the_status_stays() -> None:
    way, out, account = relay()
    way.feed(SAY)
    account.error = UpstreamError("cut", code="upstream_cut", started=True)
    way.settle(way._x)
    way.end(row(account))
    assert len(out.heads) == 1
    assert out.body.startswith(SAY + b'data: {"error":')
    assert out.body.endswith(b"\n\n")
    assert account.status == 200


def test_frames_that_cannot_be_joined_do_not_keep_an_exchange_from_being_recorded() -> None:
    way, _, account = relay(X, Stage())
    way.feed(SAY + b'data: {"choices":[1]}\n\n')
    assert way._error.code == "bad_upstream_response"
    way.settle(way._x)
    assert account.answer.startswith(b"{"), "joined as far as may be"


def test_a_chain_flushes_each_link_through_the_ones_behind_it() -> None:
    chain = Passage([Rot()], [Rot()])
    assert chain.feed("abcd") == "AB"
    assert chain.flush() == "CD"
    assert chain.kept == "ABCD"
    assert not chain.unchanged


def test_a_chain_counts_what_it_holds_and_more_while_a_later_link_holds_some() -> None:
    one, two = Passage([Rot()]), Passage([Rot()], [Rot()])
    one.feed("abc")
    assert one.held == 1
    two.feed("abc")
    two.feed("d")
    assert two.held == 4, "which of them its second link holds is not known"
    two.flush()
    assert two.held == 0


class Silent:
    """Lets all pass but holds the last word, as a guard does; refuses a word."""

    def __init__(self) -> None:
        self.kept = ""

    @property
    def held(self) -> int:
        return len(self.kept)

    def feed(self, text: str) -> str:
        text = self.kept + text
        if "bad" in text:
            raise Blocked("no", check="c", side="answer")
        cut = max(0, text.rfind(" "))
        self.kept = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        kept, self.kept = self.kept, ""
        return kept


def say(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text.encode()


END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize("together", [True, False])
def test_a_stream_that_its_guards_leave_alone_keeps_its_bytes_and_is_recorded_as_it_came(together: bool) -> None:
    frames = [ROLE, say("a"), say(" b"), say("c"), b": ping\n\n", say(" d"), END, DONE]
    way, out, account = relay(X, Stage(Silent))
    for data in [b"".join(frames)] if together else frames:
        way.feed(data)
    way.close(ModelReply(200))
    way.settle(way._x)
    way.end(row(account))
    said = [f for f in frames if f != b": ping\n\n"]
    assert out.body.replace(b": ping\n\n", b"") == b"".join(said)
    assert (account.answer, account.answer_is_sse) == (b"".join(frames), True)
    assert way.text() == "a bc d"


def test_what_was_let_go_before_a_refusal_in_the_same_bytes_leaves() -> None:
    way, out, _ = relay(X, Stage(Silent))
    way.feed(SAY)
    way.feed(say(" there") + b": ping\n\n" + say(" bad"))
    assert isinstance(way._error, Blocked)
    assert out.body == SAY + b": ping\n\n"


def test_time_is_added_up_even_when_a_stage_fails() -> None:
    spent: dict[str, int] = {}

    def fail(text: str) -> str:
        raise ValueError

    timed = Timed(SimpleNamespace(feed=fail, flush=lambda: "", held=0), "guard.out", spent)
    with pytest.raises(ValueError):
        timed.feed("a")
    first = spent["guard.out"]
    timed.flush()
    assert spent["guard.out"] > first


async def silent(made: Relay, *, then: Any = None) -> ModelReply:
    """A model that says nothing for five looks, then `then`."""
    await asyncio.sleep(0.05)
    if isinstance(then, Exception):
        raise then
    made.feed(then)
    return ModelReply(200)


async def test_a_silent_stream_is_kept_alive_by_comments_before_its_first_content(monkeypatch) -> None:
    monkeypatch.setattr("noria.gateway.relay.STILL", 0.01)
    made, out, account = relay()
    made.close(await made.carry(silent(made, then=SAY + DONE)))
    assert [(status, stream) for status, _, stream in out.heads] == [(200, True)], "one head"
    assert made._alarm.cancelled()
    made.settle(X)
    made.end(row(account))
    comments = out.body.count(KEEP_ALIVE)
    assert comments >= 2
    assert out.body == KEEP_ALIVE * comments + SAY + DONE


async def test_a_stream_that_moves_gets_no_comments(monkeypatch) -> None:
    monkeypatch.setattr("noria.gateway.relay.STILL", 0.05)
    made, out, _ = relay()

    async def steady() -> ModelReply:
        for _ in range(20):
            made.feed(SAY)
            await asyncio.sleep(0.01)
        return ModelReply(200)

    await made.carry(steady())
    assert KEEP_ALIVE not in out.body


async def test_after_a_comment_another_endpoint_may_still_answer_and_an_error_is_told_in_the_stream(monkeypatch) -> None:
    monkeypatch.setattr("noria.gateway.relay.STILL", 0.01)
    made, out, account = relay()
    error = UpstreamError("gone", code="upstream_refused")

    async def second() -> ModelReply:
        with pytest.raises(UpstreamError):
            await silent(made, then=error)
        assert out.heads
        assert not made.committed, "so the router may try the next one"
        made.restart()
        raise error

    with pytest.raises(UpstreamError):
        await made.carry(second())
    account.error = error
    made.settle(X)
    assert account.status == 200, "what the caller saw"
    made.end(row(account))
    assert len(out.heads) == 1
    assert b'"error"' in out.body.removeprefix(KEEP_ALIVE)
    assert out.ended
