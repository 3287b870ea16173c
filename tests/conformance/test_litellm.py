"""Conformance: LiteLLM's SDK (`litellm.completion`), in an environment of its own."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from tests.conformance.vendor import CITIES, TEXT, WEATHER

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": SCHEMA}}
ERRORS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "BadRequestError",  # so LiteLLM calls OpenAI's own 403s: by the error's type; `status_code` is right
    404: "NotFoundError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def ask(litellm: Any, here: Any) -> Any:
    def send(app: str, prompt: str = "hello", *, key: str = "", history: Any = (), **more: Any) -> dict[str, Any]:
        what = {"api_base": here.url, "api_key": key or here.key, "max_retries": 0, **more}
        return litellm(model="openai/" + app, messages=[{"role": "user", "content": prompt}, *history], **what)

    return send


def test_plain(ask: Any) -> None:
    done = ask("chat")
    assert (done["text"], done["finish"], done["usage"]) == (TEXT, "stop", [12, 10, 22])


def test_stream(ask: Any) -> None:
    done = ask("chat", stream=True, stream_options={"include_usage": True})
    assert (done["text"], done["finish"], done["usage"]) == (TEXT, "stop", [12, 10, 22])
    assert done["pieces"] >= 10


@BOTH
def test_tools(ask: Any, stream: bool) -> None:
    done = ask("tools", tools=TOOLS, stream=stream)
    assert [(name, json.loads(arguments)["city"]) for _, name, arguments in done["calls"]] == [
        ("get_weather", city) for city in CITIES
    ]
    assert done["finish"] == "tool_calls"
    results = [
        {"role": "tool", "tool_call_id": call, "content": "21 in " + json.loads(arguments)["city"]}
        for call, _, arguments in done["calls"]
    ]
    after = ask("tools", tools=TOOLS, history=[done["message"], *results], stream=stream)
    assert after["text"] == "21 in Chengdu and 21 in Oslo"


@BOTH
def test_schema(ask: Any, stream: bool) -> None:
    assert json.loads(ask("schema", response_format=FORM, stream=stream)["text"]) == WEATHER


@pytest.mark.parametrize("status", ERRORS)
def test_errors(ask: Any, asks: Any, status: int) -> None:
    app, key, _ = asks[status]
    for _ in range(3):  # the key for 429 may ask once a minute
        done = ask(app, key=key)
        if "error" in done:
            break
    assert (done["error"], done["status"]) == (ERRORS[status], status)
    words = {
        400: "too hot",
        401: "Incorrect API key",
        403: "may not use",
        404: "Did you mean 'chat'",
        429: "minute",
        503: "not running",
    }
    assert words[status] in done["message"]


def test_errors_within_a_stream(ask: Any) -> None:
    done = ask("cut", stream=True)
    assert done["error"]
    assert "Hello, 世".startswith(done["text"])
    assert "broke off" in done["message"]


def test_retry_headers(ask: Any, vendor: Any, waited: Any) -> None:
    prompt = uuid.uuid4().hex
    assert ask("wait", prompt, max_retries=2)["text"] == TEXT
    waited(prompt)
    assert ask("dead", prompt + "2", max_retries=2)["error"]
    assert len(vendor.of(prompt + "2")) == 2, "Noria has tried twice, nobody again"


def test_disconnect(ask: Any, stopped: Any) -> None:
    stopped(lambda: ask("endless", stream=True, leave=2)["left"])
