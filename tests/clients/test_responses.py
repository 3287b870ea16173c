"""The official OpenAI client's Responses API against a running Noria, as an application or an agent would use it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

TOOLS: Any = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
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
def other(noria: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=noria.url, api_key=noria.tight, max_retries=0) as made:
        yield made


@pytest.fixture
async def later(noria: Any) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=noria.url, api_key=noria.key, max_retries=0) as made:
        yield made


def valid(response: Response) -> Response:
    """The response, checked against the client's own types: it builds them without looking."""
    Response.model_validate(response.model_dump(by_alias=True, warnings=False))
    return response


def test_an_answer_has_every_field_that_the_client_knows_as_required(client: OpenAI) -> None:
    r = valid(
        client.responses.create(
            model="echo",
            input="hello there 世界",
            instructions="Be kind.",
            metadata={"k": "v"},
            temperature=0.5,
            max_output_tokens=99,
        )
    )
    assert (r.output_text, r.status, r.object, r.model) == ("hello there 世界", "completed", "response", "fake")
    assert r.id.startswith("resp_")
    assert r.output[0].id
    assert (r.instructions, r.metadata, r.temperature, r.max_output_tokens) == ("Be kind.", {"k": "v"}, 0.5, 99)
    assert (r.tools, r.tool_choice, r.parallel_tool_calls, r.store) == ([], "auto", True, True)
    assert r.usage is not None
    assert r.usage.total_tokens == r.usage.input_tokens + r.usage.output_tokens == 10
    assert r.usage.input_tokens_details.cached_tokens == r.usage.output_tokens_details.reasoning_tokens == 0
    assert r._request_id


def test_a_stream_is_named_events_that_count_up_and_end_without_done(noria: Any, client: OpenAI) -> None:
    events = list(client.responses.create(model="echo", input="你好 a b", stream=True))
    assert [e.type for e in events][:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert [e.type for e in events][-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "你好 a b"
    assert valid(events[-1].response).output_text == "你好 a b"
    assert events[-1].response.usage.output_tokens == 4
    raw = httpx.post(
        noria.url + "/responses",
        json={"model": "echo", "input": "x", "stream": True},
        headers={"authorization": f"Bearer {noria.key}"},
    )
    assert "[DONE]" not in raw.text
    frames = [f.split("\n") for f in raw.text.strip().split("\n\n")]
    assert all(f[0] == "event: " + json.loads(f[1][6:])["type"] for f in frames)


def test_a_request_that_is_spread_over_lines_does_not_break_its_own_events(noria: Any) -> None:
    body = json.dumps({"model": "echo", "input": "x", "stream": True, "metadata": {"a": "b"}, "tools": TOOLS}, indent=2)
    answer = httpx.post(noria.url + "/responses", content=body, headers={"authorization": f"Bearer {noria.key}"})
    frames = [f.split("\n") for f in answer.text.strip().split("\n\n")]
    assert all(len(f) == 2 for f in frames)
    assert json.loads(frames[-1][1][6:])["response"]["metadata"] == {"a": "b"}


def test_the_stream_helper_follows(client: OpenAI) -> None:
    with client.responses.stream(model="echo", input="one two three") as stream:
        kinds = [event.type for event in stream]
        assert valid(stream.get_final_response()).output_text == "one two three"
    assert "response.output_text.delta" in kinds


def test_an_answer_is_parsed_into_a_type(client: OpenAI) -> None:
    r = client.responses.parse(model="json", input="the weather?", text_format=Weather)
    assert r.output_parsed == Weather(city="Chengdu", degrees=21)
    with client.responses.stream(model="json", input="the weather?", text_format=Weather) as stream:
        assert stream.until_done().get_final_response().output_parsed == Weather(city="Chengdu", degrees=21)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_tool_is_called_and_its_result_sent_back(client: OpenAI, stream: bool) -> None:
    if stream:
        with client.responses.stream(model="caller", input="weather?", tools=TOOLS, tool_choice="required") as s:
            s.until_done()
            first: Any = s.get_final_response()
    else:
        first = client.responses.create(model="caller", input="weather?", tools=TOOLS, tool_choice="required")
    call = valid(first).output[0]
    assert (call.type, call.name, json.loads(call.arguments), call.call_id) == (
        "function_call", "get_weather", {"city": "Chengdu"}, "call_0",
    )  # fmt: skip
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "21 °C"}
    history: Any = [{"role": "user", "content": "weather?"}, *(o.model_dump(exclude_none=True) for o in first.output), result]
    assert client.responses.create(model="echo", input=history, tools=TOOLS).output_text == "weather?"
    assert client.responses.create(model="echo", input=[result], previous_response_id=first.id).output_text == "weather?"


def test_the_model_gets_what_was_said_before(noria: Any, client: OpenAI) -> None:
    first = client.responses.create(model="up", input="My name is 李雷.", instructions="Be brief.")
    second = client.responses.create(model="up", input="Who am I?", previous_response_id=first.id, stream=True)
    third_from = next(e.response.id for e in second if e.type == "response.completed")
    client.responses.create(model="up", input="And now?", previous_response_id=third_from, instructions="Be long.")
    seen = [m["content"] for m in noria.seen[-1]["body"]["messages"]]
    said = "Hello, 世界! How are you?"
    assert seen == ["Be long.", "My name is 李雷.", said, "Who am I?", said, "And now?"]
    assert [m["role"] for m in noria.seen[-1]["body"]["messages"]] == ["system", *["user", "assistant"] * 2, "user"]
    assert noria.seen[-1]["body"].keys() == {"model", "messages"}


def test_an_item_can_be_referenced(noria: Any, client: OpenAI) -> None:
    first = client.responses.create(model="caller", input="weather?", tools=TOOLS)
    call: Any = first.output[0]
    client.responses.create(
        model="up",
        input=[
            {"role": "user", "content": "weather?"},
            {"type": "item_reference", "id": call.id},
            {"type": "function_call_output", "call_id": call.call_id, "output": "21"},
        ],
    )
    messages = noria.seen[-1]["body"]["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool"]
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == "call_0"
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.create(model="up", input=[{"type": "item_reference", "id": "msg_" + "0" * 34}])


def test_a_stored_response_is_found_listed_and_deleted(client: OpenAI) -> None:
    made = client.responses.create(
        model="echo", input=[{"role": "user", "content": "one"}, {"role": "user", "content": "two 二"}]
    )
    found = valid(client.responses.retrieve(made.id))
    assert (found.id, found.output_text, found.output[0].id) == (made.id, "two 二", made.output[0].id)
    items = client.responses.input_items.list(made.id, order="asc", limit=1)
    assert [i.content[0].text for i in items] == ["one", "two 二"], "the client asks for the next page"
    assert [i.content[0].text for i in client.responses.input_items.list(made.id)] == ["two 二", "one"]
    client.responses.delete(made.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            gone(made.id)
    with pytest.raises(openai.NotFoundError) as e:
        client.responses.create(model="echo", input="x", previous_response_id=made.id)
    assert (e.value.code, e.value.param) == ("previous_response_not_found", "previous_response_id")


def test_what_is_not_to_be_stored_is_not(client: OpenAI) -> None:
    made = client.responses.create(model="echo", input="x", store=False, include=["reasoning.encrypted_content"])
    assert made.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_one_key_does_not_see_the_responses_of_another(noria: Any, client: OpenAI) -> None:
    mine = client.responses.create(model="echo", input="secret")
    key = noria.service.json("keys", "create", "--name", "another")["key"]
    with OpenAI(base_url=noria.url, api_key=key, max_retries=3) as theirs:
        for ask in (
            lambda: theirs.responses.retrieve(mine.id),
            lambda: theirs.responses.delete(mine.id),
            lambda: theirs.responses.input_items.list(mine.id),
            lambda: theirs.responses.create(model="echo", input="x", previous_response_id=mine.id),
            lambda: theirs.responses.create(model="echo", input=[{"type": "item_reference", "id": mine.output[0].id}]),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
    with OpenAI(base_url=noria.url, api_key="sk-wrong", max_retries=0) as nobody, pytest.raises(openai.AuthenticationError):
        nobody.responses.retrieve(mine.id)
    assert client.responses.retrieve(mine.id).output_text == "secret"


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "web_search.*endpoint that speaks /v1/responses"),
        ({"tools": [{"type": "custom", "name": "apply_patch"}]}, "tools[0]", "custom.*apply_patch"),
        ({"background": True}, "background", "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "prompts"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens", "max_output_tokens"),
        ({"input": []}, "input", "Missing"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]", "web_search_call"),
        ({"previous_response_id": "a", "extra_body": {"conversation": "b"}}, "previous_response_id", "exclude"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: OpenAI, more: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as e:
        client.responses.create(**{"model": "echo", "input": "x"} | more)
    assert e.value.param == param


def test_errors_before_a_stream_are_openais(noria: Any, client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="ecko", input="x", stream=stream)
        with pytest.raises(openai.RateLimitError) as e:
            client.responses.create(model="busy", input="x", stream=stream)
        assert e.value.response.headers["retry-after"] == "7"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.responses.create(model="wrong", input="x", stream=stream)
        assert wrong.value.response.headers["x-should-retry"] == "false"


def test_what_breaks_after_the_beginning_is_told_by_events(client: OpenAI) -> None:
    events = list(client.responses.create(model="cutting", input="a b c d", stream=True))
    assert [e.type for e in events][-2:] == ["error", "response.failed"]
    assert events[-2].code == "upstream_cut"
    failed = valid(events[-1].response)
    assert (failed.status, failed.error.code, failed.output_text) == ("failed", "server_error", "a b")
    assert [e.sequence_number for e in events] == list(range(len(events)))


def test_an_answer_that_was_too_long_is_incomplete(client: OpenAI) -> None:
    r = valid(client.responses.create(model="echo", input="a b c d", max_output_tokens=2))
    assert (r.status, r.incomplete_details.reason, r.output_text, r.output[0].status) == (
        "incomplete", "max_output_tokens", "a b", "incomplete",
    )  # fmt: skip
    last = list(client.responses.create(model="echo", input="a b c d", max_output_tokens=2, stream=True))[-1]
    assert (last.type, last.response.incomplete_details.reason) == ("response.incomplete", "max_output_tokens")


def test_guards_judge_the_whole_conversation(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as e:
        client.responses.create(model="strict", input="a falcon")
    assert e.value.code == "content_filter"
    first = client.responses.create(model="echo", input="a falcon")
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="strict", input="go on", previous_response_id=first.id)


async def test_the_asynchronous_client_works_too(later: AsyncOpenAI) -> None:
    first = await later.responses.create(model="echo", input="hello 世界")
    assert first.output_text == "hello 世界"
    texts = [e.delta async for e in await later.responses.create(model="echo", input="a b", stream=True, previous_response_id=first.id)
             if e.type == "response.output_text.delta"]  # fmt: skip
    assert "".join(texts) == "a b"


def test_the_trace_says_which_protocol_it_was_and_what_was_lost(noria: Any, client: OpenAI) -> None:
    made = client.responses.create(model="echo", input="x", reasoning={"effort": "low", "summary": "auto"}, truncation="auto")
    row = noria.service.trace(made._request_id)["row"]
    assert row["dialect"] == "responses"
    assert len(row["warnings"]) == 2


def test_langchain_speaks_it_too(noria: Any) -> None:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI
    made = chat(model="echo", base_url=noria.url, api_key=noria.key, use_responses_api=True, max_retries=0)
    assert made.invoke("hello 世界").text == "hello 世界"
    assert "".join(piece.text for piece in made.stream("a b c")) == "a b c"
    caller = chat(model="caller", base_url=noria.url, api_key=noria.key, use_responses_api=True).bind_tools([Weather])
    assert caller.invoke("weather?").tool_calls[0]["args"] == {"city": "Chengdu"}
