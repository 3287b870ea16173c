"""Pushes to a collector on loopback that decodes what it gets with the official classes."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from noria.app import otlp as module
from noria.app.otlp import Push
from noria.kit.shared_metrics import Counts
from noria.observe.metrics import FAMILIES
from noria.settings.metrics import OtlpSettings


class Collector:
    """`answers` are what the next pushes get; then 200. `got` are the heads and requests that came."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.got: list[tuple[str, ExportMetricsServiceRequest]] = []
        self.came = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
        request = ExportMetricsServiceRequest.FromString(gzip.decompress(await reader.readexactly(size)))
        self.got.append((head, request))
        writer.write(self.answers.pop(0) if self.answers else answer(200))
        self.came.set()
        await writer.drain()
        writer.close()

    async def pushes(self, many: int) -> None:
        async with asyncio.timeout(10):
            while len(self.got) < many:
                self.came.clear()
                await self.came.wait()

    def points(self, push: int, name: str) -> list[Any]:
        (whole,) = self.got[push][1].resource_metrics
        (scoped,) = whole.scope_metrics
        (metric,) = [m for m in scoped.metrics if m.name == name]
        return list(getattr(metric, metric.WhichOneof("data")).data_points)


def answer(status: int, body: bytes = b"", more: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()
    await server.wait_closed()


@pytest.fixture
def counts(tmp_path: Path) -> Counts:
    return Counts(FAMILIES, tmp_path / "metrics" / "0.counts")


@pytest.fixture
async def push(tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Push]]:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("OTLP_AUTH", "Bearer s3cret")
    made: list[Push] = []

    def start(**more: Any) -> Push:
        settings = OtlpSettings(url=collector.url, headers={"Authorization": "env:OTLP_AUTH"}, **more)
        made.append(Push(tmp_path, settings))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        await one.close()


async def test_a_collector_is_told_what_all_workers_counted(
    tmp_path: Path, collector: Collector, counts: Counts, push: Any
) -> None:
    second = Counts(FAMILIES, tmp_path / "metrics" / "1.counts")
    counts.add("noria_exchanges", 2, "support", "chat", "ok", "200")
    second.add("noria_exchanges", 3, "support", "chat", "ok", "200")
    push(resource={"deployment.environment.name": "测试"})
    await collector.pushes(1)
    head, request = collector.got[0]
    assert head.startswith("POST /v1/metrics HTTP/1.1\r\n")
    assert "authorization: Bearer s3cret" in head
    assert "content-type: application/x-protobuf" in head
    (point,) = collector.points(0, "noria.exchanges")
    assert point.as_int == 5
    assert 0 < point.start_time_unix_nano <= point.time_unix_nano
    named = {a.key: a.value.string_value for a in request.resource_metrics[0].resource.attributes}
    assert (named["service.name"], named["deployment.environment.name"]) == ("noria", "测试")


async def test_a_collector_that_is_busy_is_asked_again_and_told_the_same_start(
    collector: Collector, counts: Counts, push: Any
) -> None:
    collector.answers = [answer(503), answer(429, more="retry-after: 0.05\r\n")]
    counts.add("noria_exchanges", 1, "a", "chat", "ok", "200")
    told = push()
    await collector.pushes(3)
    while not told.pushed:
        await asyncio.sleep(0.01)
    assert told.trouble == ""
    assert len({collector.points(i, "noria.exchanges")[0].start_time_unix_nano for i in range(3)}) == 1


async def test_a_keeper_that_is_started_again_goes_on_from_the_same_start(
    collector: Collector, counts: Counts, push: Any
) -> None:
    counts.add("noria_exchanges", 1, "a", "chat", "ok", "200")
    push()
    await collector.pushes(1)
    push()
    await collector.pushes(2)
    starts = [collector.points(i, "noria.exchanges")[0].start_time_unix_nano for i in (0, -1)]
    assert starts[0] == starts[1]


async def test_what_came_since_is_told_at_the_end(collector: Collector, counts: Counts, push: Any) -> None:
    counts.add("noria_exchanges", 1, "a", "chat", "ok", "200")
    told = push(every=3600.0)
    await collector.pushes(1)
    while not told.pushed:
        await asyncio.sleep(0.01)
    counts.add("noria_exchanges", 1, "a", "chat", "ok", "200")
    await told.close()
    assert [collector.points(i, "noria.exchanges")[0].as_int for i in (0, 1)] == [1, 2]


PARTIAL = ExportMetricsServiceResponse(
    partial_success=ExportMetricsPartialSuccess(rejected_data_points=7, error_message="too old")
).SerializeToString()


@pytest.mark.parametrize(
    ("answers", "words", "tries"),
    [
        ([answer(400, b"no such tenant")], "no such tenant", 1),
        ([answer(200, PARTIAL)], "7 points: too old", 1),
        ([answer(503)] * 9, "answers 503", module.TRIES),
    ],
)
async def test_refusals_are_told_and_tries_are_bounded(
    collector: Collector, counts: Counts, push: Any, answers: list[bytes], words: str, tries: int
) -> None:
    collector.answers = answers
    told = push(every=3600.0)
    await collector.pushes(tries)
    await asyncio.sleep(0.2)
    assert len(collector.got) == tries
    assert words in told.trouble
    assert told.pushed == 0


async def test_a_collector_that_is_away_is_told_of_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    told = Push(tmp_path, OtlpSettings(url="http://127.0.0.1:9", headers={}))
    told.start()
    while not told.trouble:
        await asyncio.sleep(0.01)
    assert "no connection" in told.trouble
    await told.close()
    missing = Push(tmp_path, OtlpSettings(url="http://127.0.0.1:9", headers={"a": "env:NOT_THERE"}))
    missing.start()
    while not missing.trouble:
        await asyncio.sleep(0.01)
    assert "NOT_THERE" in missing.trouble
    await missing.close()
