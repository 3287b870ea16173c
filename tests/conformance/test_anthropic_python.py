"""Conformance: the official Anthropic client for Python, whose `/v1/messages` an endpoint of OpenAI's kind answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from pydantic import BaseModel
from tests.conformance.vendor import CITIES, TEXT

ASK: Any = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}]
ERRORS = {
    400: (anthropic.BadRequestError, "invalid_request_error"),
    401: (anthropic.AuthenticationError, "authentication_error"),
    403: (anthropic.PermissionDeniedError, "permission_error"),
    404: (anthropic.NotFoundError, "not_found_error"),
    429: (anthropic.RateLimitError, "rate_limit_error"),
    503: (anthropic.InternalServerError, "api_error"),
}
WORDS = {400: "too hot", 401: "not known", 403: "may not use", 404: "Did you mean 'chat'", 429: "minute", 503: "not running"}


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.fixture
def client(here: Any) -> Iterator[Anthropic]:
    with Anthropic(base_url=here.root, api_key=here.key, max_retries=0) as made:
        yield made


def test_plain(client: Anthropic) -> None:
    done = client.messages.create(model="chat", max_tokens=50, messages=ASK)
    assert [(b.type, b.text) for b in done.content] == [("text", TEXT)]
    assert (done.stop_reason, done.usage.input_tokens, done.usage.output_tokens) == ("end_turn", 12, 10)
    assert done._request_id


def test_stream(client: Anthropic) -> None:
    with client.messages.stream(model="chat", max_tokens=50, messages=ASK) as stream:
        pieces = list(stream.text_stream)
        done = stream.get_final_message()
    assert (len(pieces), "".join(pieces)) == (10, TEXT)
    assert (done.stop_reason, done.usage.output_tokens) == ("end_turn", 10)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_tools(client: Anthropic, streamed: bool) -> None:
    what: Any = {"model": "tools", "max_tokens": 50, "messages": ASK, "tools": TOOLS}
    if streamed:
        with client.messages.stream(**what) as stream:
            done: Any = stream.get_final_message()
    else:
        done = client.messages.create(**what)
    uses = [b for b in done.content if b.type == "tool_use"]
    assert [(u.name, u.input) for u in uses] == [("get_weather", {"city": city}) for city in CITIES]
    assert done.stop_reason == "tool_use"
    results = [{"type": "tool_result", "tool_use_id": u.id, "content": f"21 in {u.input['city']}"} for u in uses]
    turns: Any = [*ASK, {"role": "assistant", "content": done.content}, {"role": "user", "content": results}]
    after: Any = client.messages.create(model="tools", max_tokens=50, messages=turns, tools=TOOLS)
    assert after.content[0].text == "21 in Chengdu and 21 in Oslo"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_schema(client: Anthropic, streamed: bool) -> None:
    if streamed:
        with client.messages.stream(model="schema", max_tokens=50, messages=ASK, output_format=Weather) as stream:
            done = stream.get_final_message()
    else:
        done = client.messages.parse(model="schema", max_tokens=50, messages=ASK, output_format=Weather)
    assert done.parsed_output == Weather(city="Chengdu", degrees=21)


@pytest.mark.parametrize("status", ERRORS)
def test_errors(here: Any, asks: Any, thrice: Any, status: int) -> None:
    app, key, _ = asks[status]
    raised, kind = ERRORS[status]
    with Anthropic(base_url=here.root, api_key=key, max_retries=0) as client, pytest.raises(raised) as e:
        thrice(lambda: client.messages.create(model=app, max_tokens=50, messages=ASK))
    body: Any = e.value.body
    assert (e.value.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert WORDS[status] in body["error"]["message"]
    assert e.value.request_id


def test_errors_within_a_stream(client: Anthropic) -> None:
    pieces: list[str] = []
    with (
        client.messages.stream(model="cut", max_tokens=50, messages=ASK) as stream,
        pytest.raises(anthropic.APIStatusError, match="broke off") as e,
    ):
        pieces.extend(stream.text_stream)
    assert "".join(pieces) == "Hello, 世"
    assert e.value.body["type"] == "error"


def test_retry_headers(here: Any, vendor: Any, waited: Any) -> None:
    prompt = uuid.uuid4().hex
    with Anthropic(base_url=here.root, api_key=here.key) as client:  # two retries of its own
        done: Any = client.messages.create(model="wait", max_tokens=50, messages=[{"role": "user", "content": prompt}])
        assert done.content[0].text == TEXT
        waited(prompt)
        with pytest.raises(anthropic.InternalServerError) as e:
            client.messages.create(model="dead", max_tokens=50, messages=[{"role": "user", "content": prompt + "2"}])
    assert e.value.response.headers["x-should-retry"] == "false"
    assert len(vendor.of(prompt + "2")) == 2, "Noria has tried twice, nobody again"


def test_disconnect(client: Anthropic, stopped: Any) -> None:
    def leave() -> float:
        with client.messages.stream(model="endless", max_tokens=50, messages=ASK) as stream:
            next(iter(stream.text_stream))
            return time.monotonic()

    stopped(leave)
