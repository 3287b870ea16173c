"""Conformance: LangChain's `ChatOpenAI`."""

from __future__ import annotations

import time
import uuid
from typing import Any

import openai
import pytest
from tests.conformance.langchain_story import calls_tools, gathered, keeps_a_schema
from tests.conformance.vendor import TEXT

langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
    503: openai.InternalServerError,
}


@pytest.fixture
def chat(here: Any) -> Any:
    def make(model: str, **more: Any) -> Any:
        return langchain.ChatOpenAI(**{"model": model, "base_url": here.url, "api_key": here.key, "max_retries": 0, **more})

    return make


def test_plain(chat: Any) -> None:
    said = chat("chat").invoke("hello")
    assert said.text == TEXT
    assert (said.usage_metadata["input_tokens"], said.usage_metadata["output_tokens"]) == (12, 10)


def test_stream(chat: Any) -> None:
    count, whole = gathered(chat("chat", stream_usage=True).stream("hello"))
    assert (count, whole.text) == (10, TEXT)
    assert (whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]) == (12, 10), "once, not twice"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_tools(chat: Any, streamed: bool) -> None:
    calls_tools(chat("tools"), streamed=streamed)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of LangChain's own making, with OpenAI too
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_schema(chat: Any, streamed: bool) -> None:
    keeps_a_schema(chat("schema"), streamed=streamed)


@pytest.mark.parametrize("status", ERRORS)
def test_errors(chat: Any, asks: Any, thrice: Any, status: int) -> None:
    app, key, code = asks[status]
    with pytest.raises(ERRORS[status]) as e:
        thrice(lambda: chat(app, api_key=key).invoke("hello"))
    assert (e.value.status_code, e.value.code) == (status, code)
    assert len(e.value.message) > 10


def test_errors_within_a_stream(chat: Any) -> None:
    pieces: list[str] = []
    with pytest.raises(openai.APIError) as e:
        pieces.extend(p.text for p in chat("cut").stream("hello"))
    assert e.value.code == "upstream_cut"
    assert "".join(pieces) == "Hello, 世"


def test_retry_headers(chat: Any, vendor: Any, waited: Any) -> None:
    prompt = uuid.uuid4().hex
    assert chat("wait", max_retries=2).invoke(prompt).text == TEXT
    waited(prompt)
    with pytest.raises(openai.InternalServerError):
        chat("dead", max_retries=2).invoke(prompt + "2")
    assert len(vendor.of(prompt + "2")) == 2, "Noria has tried twice, nobody again"


def test_disconnect(chat: Any, stopped: Any) -> None:
    def leave() -> float:
        pieces = chat("endless").stream("hello")
        next(pieces)
        next(pieces)
        left = time.monotonic()
        pieces.close()
        return left

    stopped(leave)
