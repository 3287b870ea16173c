"""The four timeouts of an endpoint, each against an upstream that is slow in its own way, through router and provider."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter_ns
from types import SimpleNamespace

import msgspec
import pytest

from noria.contracts.error import UpstreamError
from noria.contracts.exchange import Exchange
from noria.contracts.release import Endpoint, Timeouts
from noria.contracts.routing import Routing
from noria.gateway.relay import Relay
from noria.gateway.router import Router
from noria.gateway.traffic import Traffic
from noria.kit.step import Stopwatch
from noria.observe.account import Account
from noria.providers.openai_compatible import OpenAICompatible

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def upstream(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            assert task is not None
            task.cancel()
        await asyncio.gather(*(t for t in tasks if t is not None), return_exceptions=True)
        await asyncio.sleep(0.01)


async def ask(port: int, *, stream: bool, **times: float) -> tuple[UpstreamError, float, SimpleNamespace]:
    """The error, seconds until it, and the account."""
    endpoint = Endpoint("e", "openai_compatible", "m", url=f"http://127.0.0.1:{port}/v1", timeouts=Timeouts(**times))
    provider = OpenAICompatible(endpoint, "", OpenAICompatible.Config())
    router = Router([endpoint], {"e": provider}, {}, routing=Routing(retries=0), traffic=Traffic(random.Random(1)))
    body = {"model": msgspec.Raw(b'"m"'), "messages": msgspec.Raw(b"[]")}
    x = Exchange("x", "a" * 32, "b" * 16, "local", "chat", "a", stream, body, 0)
    account = Account(Stopwatch())
    out = SimpleNamespace(backlog=0, head=lambda *a, **k: None, data=lambda data: None, end=lambda: None)
    relay = Relay(x, account, out)
    began = perf_counter_ns()
    try:
        with pytest.raises(UpstreamError) as caught:
            await relay.carry(router.send(x, relay, account, began))
    finally:
        await provider.close()
        await asyncio.sleep(0.01)
    return caught.value, (perf_counter_ns() - began) / 1e9, SimpleNamespace(account=account, relay=relay)


async def test_connect_bounds_the_wait_for_a_connection() -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = full.getsockname()[1]
        for _ in range(4):  # fill the queue of those who wait to be accepted: the kernel drops further SYNs
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        error, took, _ = await ask(port, stream=False, connect=0.2, first=30)
    assert error.code == "upstream_timeout"
    assert "did not accept the connection" in error.message
    assert 0.15 < took < 1.5


@pytest.mark.parametrize("stream", [False, True])
async def test_first_bounds_the_wait_for_the_head(stream: bool) -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    async with upstream(silent) as port:
        error, took, _ = await ask(port, stream=stream, first=0.2, idle=30)
    assert error.code == "upstream_timeout"
    assert 0.15 < took < 1.0


async def test_first_bounds_the_wait_for_the_first_content_of_a_stream_that_talks() -> None:
    async def chatter(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % b"text/event-stream" + chunk(ROLE))
        while not writer.transport.is_closing():
            writer.write(chunk(b": thinking\n\n"))
            await writer.drain()
            await asyncio.sleep(0.02)

    async with upstream(chatter) as port:
        error, took, made = await ask(port, stream=True, first=0.25, idle=30)
    assert error.code == "upstream_timeout"
    assert "no content within 0.25 s" in error.message
    assert 0.2 < took < 1.0
    assert not made.relay.committed


async def test_idle_bounds_a_pause_after_the_first_content() -> None:
    async def stalls(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % b"text/event-stream" + chunk(ROLE) + chunk(TOKEN))
        await writer.drain()

    async with upstream(stalls) as port:
        error, took, made = await ask(port, stream=True, first=30, idle=0.2)
    assert error.code == "upstream_timeout"
    assert "stopped sending" in error.message
    assert 0.15 < took < 1.0
    assert made.relay.committed


async def test_a_pause_shorter_than_idle_is_none_however_often() -> None:
    async def steady(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % b"application/json")
        for _ in range(100):
            writer.write(chunk(b" "))
            await writer.drain()
            await asyncio.sleep(0.05)

    async with upstream(steady) as port:
        error, took, _ = await ask(port, stream=False, first=30, idle=0.3, total=0.8)
    assert "did not finish in time" in error.message
    assert 0.7 < took < 1.8, "total bounds the whole"
