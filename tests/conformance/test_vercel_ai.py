"""Conformance: Vercel's AI SDK with its provider for OpenAI-compatible endpoints, under Node."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from tests.conformance.vendor import CITIES, TEXT, WEATHER

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def ask(node: Any, here: Any) -> Any:
    def send(model: str, prompt: str = "hello", *, key: str = "", **more: Any) -> dict[str, Any]:
        return node(url=here.url, key=key or here.key, model=model, prompt=prompt, **more)

    return send


def tokens(usage: dict[str, Any]) -> tuple[int, int, int]:
    return usage["inputTokens"], usage["outputTokens"], usage["totalTokens"]


def test_plain(ask: Any) -> None:
    done = ask("chat")
    assert (done["text"], done["finish"], tokens(done["usage"])) == (TEXT, "stop", (12, 10, 22))


def test_stream(ask: Any) -> None:
    done = ask("chat", stream=True)
    assert (done["text"], done["finish"], tokens(done["usage"]), done["pieces"]) == (TEXT, "stop", (12, 10, 22), 10)


@BOTH
def test_tools(ask: Any, stream: bool) -> None:
    done = ask("tools", tools=True, stream=stream)
    assert sorted(done["called"]) == sorted(CITIES)
    assert done["text"] == "21 in Chengdu and 21 in Oslo", "the SDK has sent the results back by itself"


@BOTH
def test_schema(ask: Any, stream: bool) -> None:
    assert ask("schema", schema=True, stream=stream)["object"] == WEATHER


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 503])
def test_errors(ask: Any, asks: Any, status: int) -> None:
    app, key, code = asks[status]
    for _ in range(3):  # the key for 429 may ask once a minute
        done = ask(app, key=key)
        if "error" in done:
            break
    assert (done["error"], done["status"], done["code"]) == ("AI_APICallError", status, code)
    assert done["retryable"] is (status >= 429)
    assert len(done["message"]) > 10


def test_errors_within_a_stream(ask: Any) -> None:
    done = ask("cut", stream=True)
    assert done["error"]
    assert done["text"] == "Hello, 世"
    assert "broke off" in done["message"]


def test_retry_headers(ask: Any, vendor: Any, waited: Any) -> None:
    prompt = uuid.uuid4().hex
    assert ask("wait", prompt, maxRetries=2)["text"] == TEXT
    waited(prompt)
    assert ask("dead", prompt + "2", maxRetries=0)["status"] == 502  # it does not know x-should-retry
    assert len(vendor.of(prompt + "2")) == 2, "Noria has tried twice, nobody again"


def test_disconnect(ask: Any, stopped: Any) -> None:
    stopped(lambda: ask("endless", stream=True, leave=2)["left"])
