"""A running Noria answers, streams, records."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def noria(serve_once):
    return serve_once()


def test_an_answer_is_recorded_with_its_stages(noria, http) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello 你好"}]}
    status, headers, raw = http(noria.url + "/v1/chat/completions", body)
    assert status == 200, raw
    answer = json.loads(raw)
    assert answer["choices"][0]["message"]["content"]
    found = noria.trace(headers["x-request-id"])
    assert found["row"]["trace"] == headers["x-noria-trace"]
    assert found["row"]["release"] == headers["x-noria-release"]
    assert [s["name"] for s in found["row"]["stages"]][:2] == ["admit", "normalize"]
    assert found["request"]["messages"] == body["messages"]
    assert found["answer"]["choices"][0]["message"]["content"] == answer["choices"][0]["message"]["content"]


def test_a_stream_ends_in_done_and_is_joined_in_the_trace(noria, http) -> None:
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "hello 你好"}]}
    status, headers, raw = http(noria.url + "/v1/chat/completions", body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert raw.endswith(b"data: [DONE]\n\n")
    found = noria.trace(headers["x-request-id"])
    assert found["answer_is_sse"]
    assert found["answer"]["choices"][0]["message"]["content"]
    assert found["row"]["ttft_ns"] > 0
