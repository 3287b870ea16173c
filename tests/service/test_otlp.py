"""Metrics pushed by a running service: what its workers count reaches a collector, and callers never wait for it."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

CONFIG = """
models:
  fake: {{provider: scripted, model: fake-1}}
apps:
  echo: {{model: fake}}
metrics: {{otlp: {{url: "http://127.0.0.1:{port}", every: 1s}}}}
"""


@pytest.fixture
def collector() -> Iterator[tuple[int, list[ExportMetricsServiceRequest]]]:
    got: list[ExportMetricsServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = gzip.decompress(self.rfile.read(int(self.headers["content-length"])))
            got.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], got
    server.shutdown()
    server.server_close()


def points(request: ExportMetricsServiceRequest, name: str) -> list[Any]:
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    return [p for m in metrics if m.name == name for p in getattr(m, m.WhichOneof("data")).data_points]


def test_what_two_workers_serve_is_pushed_as_one(
    serve: Callable[..., Any], caller: Any, collector: tuple[int, list[ExportMetricsServiceRequest]]
) -> None:
    port, got = collector
    noria = caller(serve(CONFIG.format(port=port), "--workers", "2"))
    began = time.time_ns()
    for i in range(20):
        assert noria.chat("echo", f"你好 {i}", stream=i % 2 == 0).status == 200
    end = time.monotonic() + 15
    while not got or sum(p.count for p in points(got[-1], "gen_ai.client.operation.duration")) < 20:
        assert time.monotonic() < end
        time.sleep(0.1)
    (took,) = points(got[-1], "gen_ai.client.operation.duration")
    named = {a.key: a.value.string_value for a in took.attributes}
    assert (named["gen_ai.operation.name"], named["noria.app"], took.count) == ("chat", "echo", 20)
    assert "error.type" not in named
    assert took.start_time_unix_nano < began < took.time_unix_nano
    (first,) = points(got[-1], "gen_ai.server.time_to_first_token")
    assert first.count == 10
    used = {a.value.string_value: p.sum for p in points(got[-1], "gen_ai.client.token.usage")
            for a in p.attributes if a.key == "gen_ai.token.type"}  # fmt: skip
    assert used["input"] > 0
    assert used["output"] > 0
    resource = {a.key: a.value.string_value for a in got[-1].resource_metrics[0].resource.attributes}
    assert resource["service.name"] == "noria"
    assert len({r.resource_metrics[0].resource.attributes[2].value.string_value for r in got}) == 1
