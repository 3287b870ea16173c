"""Conformance: the official OpenAI client for Python."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from tests.conformance.vendor import CITIES, TEXT

ASK: Any = [{"role": "user", "content": "hello"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
    503: openai.InternalServerError,
}


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.fixture
def client(here: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=here.url, api_key=here.key, max_retries=0) as made:
        yield made


def test_plain(client: OpenAI) -> None:
    done = client.chat.completions.create(model="chat", messages=ASK)
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (TEXT, "stop")
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (12, 10, 22)
    assert done._request_id


@pytest.mark.parametrize("asked", [False, True], ids=["without usage", "with usage"])
def test_stream(client: OpenAI, asked: bool) -> None:
    more: Any = {"stream_options": {"include_usage": True}} if asked else {}
    with client.chat.completions.create(model="chat", messages=ASK, stream=True, **more) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) == 10
    assert [c.usage.total_tokens for c in chunks if c.usage] == ([22] if asked else [])
    assert all(c.choices for c in chunks) is not asked


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_tools(client: OpenAI, streamed: bool) -> None:
    if streamed:
        with client.chat.completions.stream(model="tools", messages=ASK, tools=TOOLS) as stream:
            made: Any = stream.get_final_completion()
    else:
        made = client.chat.completions.create(model="tools", messages=ASK, tools=TOOLS, parallel_tool_calls=True)
    message = made.choices[0].message
    assert made.choices[0].finish_reason == "tool_calls"
    assert [(c.function.name, json.loads(c.function.arguments)["city"]) for c in message.tool_calls] == [
        ("get_weather", city) for city in CITIES
    ]
    results: Any = [
        {"role": "tool", "tool_call_id": c.id, "content": "21 in " + json.loads(c.function.arguments)["city"]}
        for c in message.tool_calls
    ]
    said: Any = {k: v for k, v in message.model_dump(exclude_none=True).items() if k in ("role", "content", "tool_calls")}
    for call in said["tool_calls"]:
        call["function"].pop("parsed_arguments", None)
    after = client.chat.completions.create(model="tools", messages=[*ASK, said, *results], tools=TOOLS)
    assert after.choices[0].message.content == "21 in Chengdu and 21 in Oslo"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_schema(client: OpenAI, streamed: bool) -> None:
    if streamed:
        with client.chat.completions.stream(model="schema", messages=ASK, response_format=Weather) as stream:
            parsed = stream.get_final_completion().choices[0].message.parsed
    else:
        parsed = client.chat.completions.parse(model="schema", messages=ASK, response_format=Weather).choices[0].message.parsed
    assert parsed == Weather(city="Chengdu", degrees=21)


@pytest.mark.parametrize("status", ERRORS)
def test_errors(here: Any, asks: Any, thrice: Any, status: int) -> None:
    app, key, code = asks[status]
    with OpenAI(base_url=here.url, api_key=key, max_retries=0) as client, pytest.raises(ERRORS[status]) as e:
        thrice(lambda: client.chat.completions.create(model=app, messages=ASK))
    assert (e.value.status_code, e.value.code) == (status, code)
    assert len(e.value.message) > 10
    assert e.value.request_id
    if status == 400:
        assert (e.value.param, e.value.type) == ("temperature", "invalid_request_error")


def test_errors_within_a_stream(client: OpenAI) -> None:
    pieces: list[str] = []
    with client.chat.completions.create(model="cut", messages=ASK, stream=True) as stream, pytest.raises(openai.APIError) as e:
        pieces.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert ("".join(pieces), e.value.code) == ("Hello, 世", "upstream_cut")


def test_retry_headers(here: Any, vendor: Any, waited: Any) -> None:
    prompt = uuid.uuid4().hex
    with OpenAI(base_url=here.url, api_key=here.key) as client:  # two retries of its own
        done = client.chat.completions.create(model="wait", messages=[{"role": "user", "content": prompt}])
        assert done.choices[0].message.content == TEXT
        waited(prompt)
        with pytest.raises(openai.InternalServerError) as e:
            client.chat.completions.create(model="dead", messages=[{"role": "user", "content": prompt + "2"}])
    assert e.value.response.headers["x-should-retry"] == "false"
    assert len(vendor.of(prompt + "2")) == 2, "Noria has tried twice, nobody again"


def test_disconnect(client: OpenAI, stopped: Any) -> None:
    def leave() -> float:
        with client.chat.completions.create(model="endless", messages=ASK, stream=True) as stream:
            next(stream)
            next(stream)
            return time.monotonic()

    stopped(leave)
