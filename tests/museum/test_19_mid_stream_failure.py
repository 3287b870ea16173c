"""Museum 19: failures in the middle of a stream.

A provider that is overloaded may say so inside a stream that began with status 200. A gateway that looks at the status alone never
tries another endpoint and records a success; one did so 510 times in 80 minutes (litellm PR#24005).

Here nothing reaches the caller before there is content. If an endpoint fails until then, the next one answers and the caller sees
nothing of the first. If it fails later, the stream ends with the error, without `[DONE]`, and the exchange is recorded as one that
failed.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import Exchange
from noria.contracts.release import Endpoint
from noria.dialects.sse import FRAME_LIMIT
from noria.gateway.relay import Relay
from noria.gateway.router import Router
from noria.gateway.traffic import Traffic
from noria.kit.step import Stopwatch
from noria.observe.account import Account, outcome
from noria.providers.openai_compatible import OpenAICompatible

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
OVERLOADED = b'data: {"error":{"message":"Overloaded","type":"overloaded_error","code":529}}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
SSE = [("content-type", "text/event-stream")]


def token(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


class Pipe:
    """An upstream that streams these pieces; what its reader raises closes it, as `kit.http_client` does."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.sent = 0

    async def send(self, method: str, path: str, headers: Any, body: bytes, *, on_head: Any = None) -> Any:
        sink = on_head(200, SSE)
        for piece in self.pieces:
            self.sent += 1
            sink(piece)
        return 200, SSE, b""


class Out:
    backlog = 0

    def __init__(self) -> None:
        self.heads: list[int] = []
        self.sent = b""

    def head(self, status: int, headers: Any, *, stream: bool) -> None:
        self.heads.append(status)

    def data(self, data: bytes) -> None:
        self.sent += data

    def end(self) -> None: ...


async def through(*pipes: Pipe) -> tuple[Out, Account]:
    route = [Endpoint(f"e{i}", "openai_compatible", "m", url="http://x/v1") for i in range(len(pipes))]
    providers = {
        e.name: OpenAICompatible(e, "", OpenAICompatible.Config(), relay=pipe)  # type: ignore[arg-type]
        for e, pipe in zip(route, pipes, strict=True)
    }
    router = Router(route, providers, {}, traffic=Traffic(random.Random(1)))  # type: ignore[arg-type]
    body = {"model": msgspec.Raw(b'"m"'), "messages": msgspec.Raw(b"[]")}
    x = Exchange("x", "a" * 32, "b" * 16, "local", "chat", "app", True, body, 0)
    account, out = Account(Stopwatch()), Out()
    relay = Relay(x, account, out)
    try:
        reply = await relay.carry(router.send(x, relay, account, account.watch.began))
        relay.close(reply)
    except UpstreamError as e:
        account.error = e
    relay.settle(x)
    relay.end(account.row(x, worker="w", config="c"))
    return out, account


@pytest.mark.parametrize(
    "broken",
    [
        [OVERLOADED],
        [ROLE, OVERLOADED],
        [b": ping\n\n", ROLE, b": ping\n\n", OVERLOADED],
        [ROLE],
        [b"data: " + b"x" * (FRAME_LIMIT + 10)],
    ],
    ids=["at once", "after the role", "after comments", "an end without content", "a frame without end"],
)
async def test_before_content_another_endpoint_answers_and_nothing_of_the_first_is_seen(broken: list[bytes]) -> None:
    out, account = await through(Pipe(*broken), Pipe(ROLE, token("well"), END))
    assert out.heads == [200]
    assert out.sent == ROLE + token("well") + END
    assert [(a.endpoint, bool(a.error)) for a in account.attempts] == [("e0", True), ("e1", False)]
    assert outcome(account.error) == "ok"


async def test_after_content_there_is_an_error_in_the_stream_and_the_exchange_is_an_error() -> None:
    second = Pipe(token("never"), END)
    out, account = await through(Pipe(ROLE, token("half"), OVERLOADED, token("never")), second)
    assert second.sent == 0
    assert out.sent.startswith(ROLE + token("half"))
    assert b"Overloaded" in out.sent
    assert b"never" not in out.sent
    assert b"[DONE]" not in out.sent
    assert outcome(account.error) == "error"


async def test_an_upstream_that_goes_on_after_its_error_is_not_listened_to() -> None:
    endless = Pipe(OVERLOADED, *[b": ping\n\n"] * 1000)
    await through(endless, Pipe(token("well"), END))
    assert endless.sent == 1
