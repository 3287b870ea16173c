"""Send prompts through a running service and measure: closed loop (N at a time) or open loop (R a second).

The result file has one JSON line a prompt, written as it ends, so an interrupted run goes on where it
stopped. With a rate, latency counts from the scheduled time, so that a slow service cannot hide its queue
(coordinated omission; wrk2, G. Tene).
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from noria.contracts.error import ConfigError
from noria.data.collect import Prompt
from noria.dialects.openai_error import error_said
from noria.dialects.openai_stream import StreamReader, is_content
from noria.dialects.sse import FrameSplitter
from noria.kit.http_client import HttpCallError, HttpClient


class Result(msgspec.Struct, omit_defaults=True):
    """One prompt's answer. Times in milliseconds; `error` empty where it succeeded."""

    line: int
    id: str = ""
    status: int = 0
    error: str = ""
    first_ms: float | None = None
    duration_ms: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    exchange: str = ""
    trace: str = ""
    finish_reason: str = ""
    answer: str = ""


class Target(msgspec.Struct, frozen=True):
    """Where to send, as whom, and how."""

    url: str
    key: str
    app: str
    stream: bool = True
    params: dict[str, Any] = {}
    concurrency: int = 4
    rate: float | None = None
    seed: int = 0


class ResultFile:
    """Appends results; knows which lines succeeded before."""

    def __init__(self, path: Path, *, source: str, app: str) -> None:
        self.path = path
        self.done: dict[int, Result] = {}
        head = {"noria_replay": 1, "source": source, "app": app}
        if path.exists() and path.stat().st_size:
            self._resume(head)
            self._file = path.open("ab")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            self._file.write(msgspec.json.encode(head) + b"\n")

    def _resume(self, head: dict[str, Any]) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = whole.splitlines()
        if not lines or _head_of(lines[0]) != head:
            raise ConfigError(f"{self.path} holds results of something else.", hint="Give another --out, or remove the file.")
        if len(whole) != len(raw):  # a run was killed in the middle of a line
            os.truncate(self.path, len(whole))
        for line in lines[1:]:
            result = msgspec.json.decode(line, type=Result)
            if not result.error:
                self.done[result.line] = result

    def add(self, result: Result) -> None:
        """Write one result."""
        self._file.write(msgspec.json.encode(result) + b"\n")
        self._file.flush()
        if not result.error:
            self.done[result.line] = result

    def close(self) -> None:
        """Sync and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _head_of(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def run(prompts: Iterable[Prompt], target: Target, tell: Callable[[Result], None]) -> float:
    """Send every prompt; `tell` gets each result as it ends. Returns the seconds it took."""
    client = HttpClient(
        target.url,
        connect_timeout=5.0,
        first_timeout=600.0,
        idle_timeout=120.0,
        total_timeout=1200.0,
        max_connections=max(64, target.concurrency),
    )
    began = time.perf_counter()
    gate = asyncio.Semaphore(target.concurrency)
    pace = random.Random(target.seed)  # noqa: S311  arrival times, not secrets
    due = began
    tasks: set[asyncio.Task[None]] = set()

    async def one(prompt: Prompt, scheduled: float) -> None:
        try:
            tell(await _ask(client, target, prompt, scheduled))
        finally:
            gate.release()

    for prompt in prompts:
        if target.rate is not None:
            due += pace.expovariate(target.rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await gate.acquire()
        task = asyncio.create_task(one(prompt, due if target.rate is not None else time.perf_counter()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    await client.close()
    return time.perf_counter() - began


async def _ask(client: HttpClient, target: Target, prompt: Prompt, scheduled: float) -> Result:
    body: dict[str, Any] = {"model": target.app, "messages": prompt.messages, **target.params}
    if target.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = [("content-type", "application/json"), ("authorization", f"Bearer {target.key}")]
    result = Result(prompt.line, prompt.id)
    splitter, reader, text = FrameSplitter(), StreamReader(), []

    def take(data: bytes) -> None:
        for frame in splitter.feed(data):
            if result.first_ms is None and is_content(frame):
                result.first_ms = (time.perf_counter() - scheduled) * 1000
            reader.read(frame)
            text.append(frame)

    def begin(status: int, _: list[tuple[str, str]]) -> Callable[[bytes], None] | None:
        return take if status == 200 and target.stream else None

    try:
        status, answered, raw = await client.send(
            "POST", "/v1/chat/completions", headers, msgspec.json.encode(body), on_head=begin
        )
    except HttpCallError as e:
        result.error = type(e).__name__
        result.duration_ms = (time.perf_counter() - scheduled) * 1000
        return result
    result.duration_ms = (time.perf_counter() - scheduled) * 1000
    result.status = status
    names = {k.lower(): v for k, v in answered}
    result.exchange, result.trace = names.get("x-request-id", ""), names.get("x-noria-trace", "")
    _facts(result, reader, b"".join(text), raw)
    return result


def _facts(result: Result, reader: StreamReader, streamed: bytes, raw: bytes) -> None:
    """Fill in what the answer says, whichever way it came."""
    from noria.dialects.openai_answer import read_answer, read_text
    from noria.dialects.openai_stream import assemble

    if result.status != 200:
        result.error = _error(raw) or f"HTTP {result.status}"
        return
    if streamed and not reader.done:
        result.error = "stream ended early"
    body = msgspec.json.encode(assemble(streamed)) if streamed else raw
    try:
        facts = read_answer("chat", body)
    except ValueError as e:
        result.error = result.error or f"unreadable answer: {e}"
        return
    usage = reader.usage if streamed else facts.usage
    if usage is not None:
        result.input_tokens, result.output_tokens = usage.input, usage.output
    result.finish_reason = facts.finish_reason
    result.answer = read_text(body)


def _error(raw: bytes) -> str:
    error = error_said(raw)
    return "" if error is None else f"{error.get('code') or error.get('type')}: {error.get('message')}"


def summary(results: list[Result], seconds: float) -> dict[str, Any]:
    """Throughput, percentiles, tokens and failures of a run."""
    good = [r for r in results if not r.error]
    failures = Counter(r.error for r in results if r.error)
    tokens_in = sum(r.input_tokens or 0 for r in good)
    tokens_out = sum(r.output_tokens or 0 for r in good)
    return {
        "prompts": len(results),
        "ok": len(good),
        "failed": len(results) - len(good),
        "failures": dict(failures.most_common()),
        "seconds": round(seconds, 3),
        "prompts_per_s": round(len(good) / seconds, 3) if seconds else 0.0,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "output_tokens_per_s": round(tokens_out / seconds, 2) if seconds else 0.0,
        "first_token_ms": percentiles([r.first_ms for r in good if r.first_ms is not None]),
        "duration_ms": percentiles([r.duration_ms for r in good]),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p95, p99 and max by the nearest-rank method; empty for no values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    ranks = {f"p{q}": ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] for q in (50, 90, 95, 99)}
    return {k: round(v, 2) for k, v in {**ranks, "max": ordered[-1]}.items()}
