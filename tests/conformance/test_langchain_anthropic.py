"""Conformance: LangChain's `ChatAnthropic`."""

from __future__ import annotations

import time
import uuid
from typing import Any

import anthropic
import pytest
from tests.conformance.langchain_story import calls_tools, gathered, keeps_a_schema
from tests.conformance.vendor import TEXT

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


@pytest.fixture
def chat(here: Any) -> Any:
    def make(model: str, **more: Any) -> Any:
        what = {"model": model, "base_url": here.root, "api_key": here.key, "max_retries": 0, "max_tokens": 50, **more}
        return langchain.ChatAnthropic(**what)

    return make


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
    calls_tools(chat("tools"), streamed=streamed)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_schema(chat: Any, streamed: bool) -> None:
    keeps_a_schema(chat("schema"), streamed=streamed)


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
