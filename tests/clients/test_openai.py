"""The official OpenAI client against a running Noria, as an application would use it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

ASK: Any = [{"role": "user", "content": "hello there 世界"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.fixture
def client(noria: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=noria.url, api_key=noria.key, max_retries=0) as made:
        yield made


@pytest.fixture
async def later(noria: Any) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=noria.url, api_key=noria.key, max_retries=0) as made:
        yield made


def attempts(noria: Any, key: str, model: str, retries: int, **more: Any) -> tuple[int, Exception]:
    """How many requests the client makes of one call that fails, and what it raises."""
    count = 0

    def counted(request: httpx.Request) -> None:
        nonlocal count
        count += 1

    with (
        openai.DefaultHttpxClient(event_hooks={"request": [counted]}) as http,
        OpenAI(base_url=noria.url, api_key=key, max_retries=retries, http_client=http, **more) as made,
        pytest.raises(openai.APIError) as e,
    ):
        made.chat.completions.create(model=model, messages=ASK)
    return count, e.value


# -- answers ------------------------------------------------------------------------------------------------


def test_a_chat_is_answered_and_its_exchange_can_be_found(client: OpenAI, noria: Any) -> None:
    answer = client.chat.completions.with_raw_response.create(model="echo", messages=ASK)
    done = answer.parse()
    assert done.choices[0].message.content == "hello there 世界"
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert answer.request_id == done._request_id == answer.headers["x-request-id"]
    assert noria.service.trace(answer.request_id)["row"]["trace"] == answer.headers["x-noria-trace"]


async def test_a_chat_is_answered_async(later: AsyncOpenAI) -> None:
    done = await later.chat.completions.create(model="echo", messages=ASK)
    assert done.choices[0].message.content == "hello there 世界"


@pytest.mark.parametrize("model", ["echo", "up"])
def test_a_stream_gives_the_whole_text(client: OpenAI, model: str) -> None:
    with client.chat.completions.create(model=model, messages=ASK, stream=True) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ("hello there 世界" if model == "echo" else "Hello, 世界! How are you?")
    assert all(c.choices for c in chunks), "nobody asked for the usage frame"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("model", ["echo", "up"])
def test_usage_ends_the_stream_of_those_who_ask(client: OpenAI, model: str) -> None:
    options: Any = {"include_usage": True}
    with client.chat.completions.create(model=model, messages=ASK, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_a_stream_is_read_async(later: AsyncOpenAI) -> None:
    stream = await later.chat.completions.create(model="up", messages=ASK, stream=True)
    async with stream:
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert text == "Hello, 世界! How are you?"


def test_the_event_helper_of_the_client_understands_our_streams(client: OpenAI) -> None:
    with client.chat.completions.stream(model="echo", messages=ASK) as stream:
        events = [e.type for e in stream]
        final = stream.get_final_completion()
    assert "content.delta" in events
    assert final.choices[0].message.content == "hello there 世界"


def test_several_choices_keep_their_places(client: OpenAI) -> None:
    done = client.chat.completions.create(model="echo", messages=ASK, n=3)
    assert [c.index for c in done.choices] == [0, 1, 2]


def test_a_tool_is_called(client: OpenAI) -> None:
    done = client.chat.completions.create(model="caller", messages=ASK, tools=TOOLS)
    (call,) = done.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Chengdu"})
    assert done.choices[0].finish_reason == "tool_calls"


def test_a_tool_call_comes_whole_out_of_a_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model="caller", messages=ASK, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Chengdu"}


def test_an_answer_is_parsed_into_the_callers_own_type(client: OpenAI) -> None:
    done = client.chat.completions.parse(model="json", messages=ASK, response_format=Weather)
    assert done.choices[0].message.parsed == Weather(city="Chengdu", degrees=21)


def test_the_schema_reaches_the_model_as_it_was_sent(client: OpenAI, noria: Any) -> None:
    sent: Any = {
        "type": "json_schema",
        "json_schema": {"name": "w", "strict": True, "schema": {"type": "object", "x-mine": 1.50}},
    }
    client.chat.completions.create(model="up", messages=ASK, response_format=sent, seed=7)
    body = noria.seen[-1]["body"]
    assert (body["response_format"], body["seed"], body["model"]) == (sent, 7, "ok")
    assert noria.key not in json.dumps(noria.seen[-1]["headers"]), "our key stays ours"


def test_the_old_completions_still_work(client: OpenAI) -> None:
    assert client.completions.create(model="echo", prompt="once upon").choices[0].text == "once upon"
    with client.completions.create(model="echo", prompt="once upon", stream=True) as stream:
        assert "".join(c.choices[0].text for c in stream) == "once upon"


# -- embeddings and models ----------------------------------------------------------------------------------


def test_embeddings_are_the_same_by_base64_and_by_numbers(client: OpenAI) -> None:
    packed = client.embeddings.create(model="vectors", input=["one", "two"])  # the client asks for base64 on its own
    plain = client.embeddings.create(model="vectors", input=["one", "two"], encoding_format="float")
    assert [d.index for d in packed.data] == [0, 1]
    assert len(packed.data[0].embedding) == 8
    for a, b in zip(packed.data, plain.data, strict=True):
        assert a.embedding == pytest.approx(b.embedding, rel=1e-6)
    assert packed.usage.prompt_tokens == 2


async def test_embeddings_are_given_async(later: AsyncOpenAI) -> None:
    found = await later.embeddings.create(model="vectors", input="one")
    assert len(found.data[0].embedding) == 8


def test_apps_and_embedders_are_listed(client: OpenAI) -> None:
    names = {m.id for m in client.models.list()}
    assert {"echo", "strict", "vectors"} <= names
    assert "fake" not in names, "an endpoint is not an app"
    assert client.models.retrieve("echo").object == "model"


# -- errors -------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_not_found_and_the_nearest_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as e:
        client.chat.completions.create(model="ecko", messages=ASK)
    assert e.value.code == "model_not_found"
    assert "'echo'" in e.value.message
    assert e.value.request_id


def test_a_wrong_key_is_an_authentication_error(noria: Any) -> None:
    with OpenAI(base_url=noria.url, api_key="nk-wrong") as stranger, pytest.raises(openai.AuthenticationError) as e:
        stranger.chat.completions.create(model="echo", messages=ASK)
    assert e.value.code == "invalid_api_key"
    assert e.value.request_id


@pytest.mark.parametrize(
    ("bad", "param"),
    [({"n": 0}, "n"), ({"stream": "yes"}, "stream"), ({"messages": []}, "messages"), ({"max_tokens": "many"}, "max_tokens")],
)
def test_a_bad_request_names_its_parameter(client: OpenAI, bad: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model="echo", messages=ASK, extra_body=bad)
    assert e.value.param == param
    assert e.value.request_id


def test_a_refusal_of_a_guard_is_a_bad_request_with_the_vendors_own_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as e:
        client.chat.completions.create(model="strict", messages=[{"role": "user", "content": "tell me of falcon"}])
    assert e.value.code == "content_filter"
    assert e.value.request_id


def test_the_endpoints_own_words_pass_through(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="upstream says no"):
        client.chat.completions.create(model="wrong", messages=ASK)


def test_an_error_within_a_stream_is_raised_where_it_happens(client: OpenAI) -> None:
    texts: list[str] = []
    with (
        pytest.raises(openai.APIError) as e,
        client.chat.completions.create(model="cutting", messages=ASK, stream=True) as stream,
    ):
        texts.extend(c.choices[0].delta.content or "" for c in stream)
    assert e.value.code == "upstream_cut"


async def test_an_error_within_an_async_stream_is_raised_too(later: AsyncOpenAI) -> None:
    async def read() -> None:
        async with await later.chat.completions.create(model="cutting", messages=ASK, stream=True) as stream:
            async for _ in stream:
                pass

    with pytest.raises(openai.APIError) as e:
        await read()
    assert e.value.code == "upstream_cut"


# -- retries and timeouts -----------------------------------------------------------------------------------


def test_what_was_retried_here_is_not_retried_by_the_client(noria: Any) -> None:
    count, error = attempts(noria, noria.key, "broken", 2)
    assert isinstance(error, openai.InternalServerError)
    assert error.response.headers["x-should-retry"] == "false"
    assert count == 1


def test_a_mistake_of_the_caller_is_not_retried(noria: Any) -> None:
    assert attempts(noria, noria.key, "wrong", 2)[0] == 1


def test_a_busy_upstream_says_how_long_to_wait(noria: Any) -> None:
    count, error = attempts(noria, noria.key, "busy", 0)
    assert isinstance(error, openai.RateLimitError)
    assert (count, error.response.headers["retry-after"]) == (1, "7")
    assert "x-should-retry" not in error.response.headers


def test_a_rate_limit_of_ours_is_a_rate_limit_error_with_the_time_to_wait(noria: Any) -> None:
    with OpenAI(base_url=noria.url, api_key=noria.tight, max_retries=0) as tight:

        def ask_thrice() -> None:  # one a minute: all pass only where two minutes turn in between
            for _ in range(3):
                tight.chat.completions.create(model="echo", messages=ASK)

        with pytest.raises(openai.RateLimitError) as e:
            ask_thrice()
        assert e.value.code == "rate_limit_exceeded"
        assert 1 <= int(e.value.response.headers["retry-after"]) <= 60
        assert 1 <= int(e.value.response.headers["retry-after-ms"]) <= 60_000
        assert e.value.request_id


def test_a_client_waits_as_it_is_told_and_asks_again(noria: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    count, error = attempts(noria, noria.key, "busy", 2)
    assert isinstance(error, openai.RateLimitError)
    assert count == 3
    assert waited == [pytest.approx(7, abs=0.1)] * 2


def test_a_client_that_gives_up_leaves_a_cancelled_exchange(noria: Any) -> None:
    with (
        OpenAI(base_url=noria.url, api_key=noria.key, max_retries=0, timeout=0.3) as hasty,
        pytest.raises(openai.APITimeoutError),
    ):
        hasty.chat.completions.create(model="slow", messages=ASK)
    with OpenAI(base_url=noria.url, api_key=noria.key, max_retries=0) as patient:
        assert patient.chat.completions.create(model="echo", messages=ASK).choices
