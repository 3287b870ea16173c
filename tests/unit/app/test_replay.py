"""Prompts through a service, against a tiny one of the test's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noria.app.replay import Result, ResultFile, Target, percentiles, run, summary
from noria.contracts.error import ConfigError
from noria.data.collect import Prompt

STREAM = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hel"}}]}\n\n'
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
)
WHOLE = (
    b'{"choices":[{"message":{"content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
)


@pytest.fixture
async def service() -> AsyncIterator[SimpleNamespace]:
    """Does what the prompt says: `status 429`, `cut`, `garbage`, else answers; counts who is inside at once."""
    state = SimpleNamespace(url="", seen=[], inside=0, most=0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                size = int(head.split("content-length: ")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(size))
                state.seen.append((head, body))
                state.inside += 1
                state.most = max(state.most, state.inside)
                await asyncio.sleep(0.005)
                state.inside -= 1
                status, answer = behave(body)
                names = "x-request-id: x1\r\nx-noria-trace: t1\r\ncontent-type: application/json\r\n"
                writer.write(f"HTTP/1.1 {status} X\r\n{names}content-length: {len(answer)}\r\n\r\n".encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def behave(body: dict[str, Any]) -> tuple[int, bytes]:
        text = body["messages"][-1]["content"]
        if text.startswith("status"):
            return int(text.split()[1]), b'{"error":{"message":"no","type":"t","code":"limited"}}'
        if text == "garbage":
            return 200, b"<html>"
        if not body.get("stream"):
            return 200, WHOLE
        return 200, STREAM if text == "cut" else STREAM + b"data: [DONE]\n\n"

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield state
    server.close()
    await server.wait_closed()


async def replay(service: SimpleNamespace, *texts: str, **target: Any) -> list[Result]:
    prompts = [Prompt(i, [{"role": "user", "content": t}], f"id{i}") for i, t in enumerate(texts, 1)]
    results: list[Result] = []
    assert await run(prompts, Target(service.url, "nk-1", "support", **target), results.append) > 0
    return sorted(results, key=lambda r: r.line)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_measured_and_kept(service: SimpleNamespace, stream: bool) -> None:
    (found,) = await replay(service, "hi", stream=stream, params={"max_tokens": 5})
    assert (found.line, found.id, found.status, found.error) == (1, "id1", 200, "")
    assert (found.answer, found.finish_reason, found.input_tokens, found.output_tokens) == ("hello", "stop", 3, 2)
    assert (found.exchange, found.trace) == ("x1", "t1")
    assert (found.first_ms is not None) is stream
    assert found.duration_ms >= (found.first_ms or 0)
    head, body = service.seen[0]
    assert "authorization: bearer nk-1" in head
    assert (body["model"], body["max_tokens"], body.get("stream", False)) == ("support", 5, stream)


@pytest.mark.parametrize(
    ("text", "stream", "error"),
    [("status 429", True, "limited: no"), ("status 500", False, "limited: no"), ("cut", True, "stream ended early")],
)
async def test_a_failure_is_a_result_with_its_reason(service: SimpleNamespace, text: str, stream: bool, error: str) -> None:
    (found,) = await replay(service, text, stream=stream)
    assert found.error == error


async def test_an_answer_that_is_none_is_a_failure(service: SimpleNamespace) -> None:
    (found,) = await replay(service, "garbage", stream=False)
    assert found.error.startswith("unreadable answer")


async def test_a_service_that_is_away_fails_each_prompt_and_not_the_run(service: SimpleNamespace) -> None:
    found = await replay(SimpleNamespace(url="http://127.0.0.1:9"), "a", "b")
    assert [r.status for r in found] == [0, 0]
    assert all(r.error for r in found)


async def test_no_more_are_asked_at_once_than_were_allowed(service: SimpleNamespace) -> None:
    found = await replay(service, *["hi"] * 12, concurrency=3)
    assert len(found) == 12
    assert service.most == 3


async def test_with_a_rate_latency_counts_from_the_time_that_was_due(service: SimpleNamespace) -> None:
    found = await replay(service, *["hi"] * 10, rate=10_000.0, concurrency=1)
    assert found[-1].duration_ms > 5 * 5, "the last one waited for the nine before it"


# -- the result file ----------------------------------------------------------------------------------------


def results(path: Path, **what: Any) -> ResultFile:
    return ResultFile(path, **({"source": "p.jsonl", "app": "support"} | what))


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "out" / "r.jsonl"
    first = results(path)
    first.add(Result(1, answer="a"))
    first.add(Result(2, error="limited"))
    first.close()
    again = results(path)
    assert set(again.done) == {1}, "what failed is asked again"
    again.add(Result(2, answer="b"))
    again.close()
    last = results(path)
    last.close()
    assert set(last.done) == {1, 2}
    assert path.read_text().count("noria_replay") == 1


def test_a_line_that_was_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    first = results(path)
    first.add(Result(1))
    first.close()
    with path.open("ab") as f:
        f.write(b'{"line":2,"ans')
    again = results(path)
    assert set(again.done) == {1}
    again.add(Result(2))
    again.close()
    assert [json.loads(line).get("line") for line in path.read_text().splitlines()] == [None, 1, 2]


@pytest.mark.parametrize(
    "content", [b'{"noria_replay":1,"source":"other","app":"support"}\n', b"my diary\n", b"no line end", b"[]\n"]
)
def test_a_file_of_something_else_is_not_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="something else"):
        results(path)
    assert path.read_bytes() == content


# -- figures ------------------------------------------------------------------------------------------------


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentiles([float(i) for i in range(1, 101)]) == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
    assert percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p95": 7.0, "p99": 7.0, "max": 7.0}
    assert percentiles([2.0, 1.0])["p50"] == 1.0
    assert percentiles([]) == {}


def test_failures_are_counted_and_kept_out_of_the_times() -> None:
    found = summary(
        [
            Result(1, duration_ms=10, first_ms=4, input_tokens=5, output_tokens=20),
            Result(2, duration_ms=30, first_ms=6, input_tokens=5, output_tokens=None),
            Result(3, duration_ms=9999, error="limited"),
            Result(4, duration_ms=9999, error="limited"),
        ],
        2.0,
    )
    assert (found["prompts"], found["ok"], found["failed"], found["failures"]) == (4, 2, 2, {"limited": 2})
    assert (found["prompts_per_s"], found["output_tokens_per_s"], found["input_tokens"]) == (1.0, 10.0, 10)
    assert (found["duration_ms"]["max"], found["first_token_ms"]["p50"]) == (30, 4)
    assert summary([], 0.0)["prompts_per_s"] == 0.0
