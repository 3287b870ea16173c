"""Conformance: LangChain's `ChatAnthropic`."""

from __future__ import annotations

import time
import uuid
from typing import Any

import anthropic
import pytest
from pydantic import BaseModel
from tests.conformance.vendor import CITIES, TEXT

langchain = pytest.importorskip("langchain_anthropic", reason="langchain-anthropic is not installed")
ERRORS = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    403: anthropic.PermissionDeniedError,
    404: anthropic.NotFoundError,
    429: anthropic.RateLimitError,
    503: anthropic.InternalServerError,
}
WORDS = {400: "too hot", 401: "not known", 403: "may not use", 404: "Did you mean 'chat'", 429: "minute", 503: "not running"}


class Weather(BaseModel):
    """The weather somewhere."""

    city: str
    degrees: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return city


@pytest.fixture
def chat(here: Any) -> Any:
    def make(model: str, **more: Any) -> Any:
        what = {"model": model, "base_url": here.root, "api_key": here.key, "max_retries": 0, "max_tokens": 50, **more}
        return langchain.ChatAnthropic(**what)

    return make


def gathered(stream: Any) -> tuple[int, Any]:
    """How many pieces with text there were, and their sum."""
    count, whole = 0, None
    for piece in stream:
        count += bool(piece.text)
        whole = piece if whole is None else whole + piece
    return count, whole


def test_plain(chat: Any) -> None:
    said = chat("chat").invoke("hello")
    assert said.text == TEXT
    assert (said.usage_metadata["input_tokens"], said.usage_metadata["output_tokens"]) == (12, 10)


def test_stream(chat: Any) -> None:
    count, whole = gathered(chat("chat").stream("hello"))
    assert (count, whole.text) == (10, TEXT)
    assert whole.usage_metadata["output_tokens"] == 10


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_tools(chat: Any, streamed: bool) -> None:
    model = chat("tools").bind_tools([get_weather])
    said = gathered(model.stream("hello"))[1] if streamed else model.invoke("hello")
    assert [(c["name"], c["args"]) for c in said.tool_calls] == [("get_weather", {"city": city}) for city in CITIES]
    results = [{"role": "tool", "tool_call_id": c["id"], "content": f"21 in {c['args']['city']}"} for c in said.tool_calls]
    after = model.invoke([{"role": "user", "content": "hello"}, said, *results])
    assert after.text == "21 in Chengdu and 21 in Oslo"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_schema(chat: Any, streamed: bool) -> None:
    model = chat("schema").with_structured_output(Weather, method="json_schema")
    parsed = list(model.stream("hello"))[-1] if streamed else model.invoke("hello")
    assert parsed == Weather(city="Chengdu", degrees=21)


@pytest.mark.parametrize("status", ERRORS)
def test_errors(chat: Any, asks: Any, thrice: Any, status: int) -> None:
    app, key, _ = asks[status]
    with pytest.raises(ERRORS[status], match=WORDS[status]) as e:
        thrice(lambda: chat(app, api_key=key).invoke("hello"))
    assert e.value.status_code == status


def test_errors_within_a_stream(chat: Any) -> None:
    pieces: list[str] = []
    with pytest.raises(anthropic.APIStatusError, match="broke off"):
        pieces.extend(p.text for p in chat("cut").stream("hello"))
    assert "".join(pieces) == "Hello, 世"


def test_retry_headers(chat: Any, vendor: Any, waited: Any) -> None:
    prompt = uuid.uuid4().hex
    assert chat("wait", max_retries=2).invoke(prompt).text == TEXT
    waited(prompt)
    with pytest.raises(anthropic.InternalServerError):
        chat("dead", max_retries=2).invoke(prompt + "2")
    assert len(vendor.of(prompt + "2")) == 2, "Noria has tried twice, nobody again"


def test_disconnect(chat: Any, stopped: Any) -> None:
    def leave() -> float:
        pieces = chat("endless").stream("hello")
        for piece in pieces:
            if piece.text:
                break
        left = time.monotonic()
        pieces.close()
        return left

    stopped(leave)
