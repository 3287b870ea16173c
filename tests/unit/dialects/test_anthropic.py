import json

import msgspec
import pytest

from noria.contracts.error import RequestError
from noria.contracts.exchange import Usage
from noria.dialects.anthropic import read_error, read_message, write_messages_request
from noria.dialects.anthropic_stream import MessagesStream
from noria.dialects.openai_answer import read_answer
from noria.dialects.openai_stream import DONE, assemble


def translate(stream=False, system_turns=False, **fields):
    body = {"model": "x", "messages": [{"role": "user", "content": "hi"}]} | fields
    raws = msgspec.json.decode(json.dumps(body).encode(), type=dict[str, msgspec.Raw])
    return json.loads(write_messages_request(raws, "claude", stream=stream, max_tokens=4096, system_turns=system_turns))


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}


def test_a_small_request_is_small_there_too():
    assert translate() == {
        "model": "claude",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }


def test_a_large_request_keeps_its_meaning():
    got = translate(
        stream=True,
        system_turns=True,
        temperature=0.5,
        top_p=0.9,
        stop=["a", "b"],
        max_tokens=5,
        max_completion_tokens=7,
        user="ada@example.org",
        metadata={"k": "v"},
        n=1,
        logprobs=False,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        reasoning_effort="minimal",
        response_format={"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "object"}}},
        messages=[
            {"role": "system", "content": "Be kind."},
            {"role": "developer", "content": [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "这是什么?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://host/i.jpg"}},
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}],
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}},
                    {"id": "t2", "type": "function", "function": {"name": "weather", "arguments": ""}},
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "t2", "content": ""},
            {"role": "user", "content": "And now?"},
            {"role": "system", "content": "Hurry."},
        ],
    )
    assert got == {
        "model": "claude",
        "max_tokens": 7,
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_sequences": ["a", "b"],
        "system": [
            {"type": "text", "text": "Be kind."},
            {"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}},
        ],
        "tools": [{"name": "weather", "description": "d", "input_schema": TOOL["function"]["parameters"], "strict": True}],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "这是什么?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                    {"type": "image", "source": {"type": "url", "url": "https://host/i.jpg"}},
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
                        "title": "a.pdf",
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}},
                    {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                    {"type": "tool_result", "tool_use_id": "t2", "content": []},
                    {"type": "text", "text": "And now?"},
                ],
            },
            {"role": "system", "content": [{"type": "text", "text": "Hurry."}]},
        ],
    }


@pytest.mark.parametrize(
    ("choice", "there"), [("auto", {"type": "auto"}), ("none", {"type": "none"}), ("required", {"type": "any"})]
)
def test_tool_choices_have_their_counterparts(choice, there):
    assert translate(tools=[TOOL], tool_choice=choice)["tool_choice"] == there


def test_a_late_system_message_joins_the_system_prompt_for_models_that_take_it_nowhere_else():
    turns = [{"role": "user", "content": "a"}, {"role": "system", "content": "Hurry."}, {"role": "user", "content": "b"}]
    got = translate(messages=turns)
    assert got["system"] == [{"type": "text", "text": "Hurry."}]
    assert got["messages"] == [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]


def test_one_tool_at_a_time_needs_a_tool_choice_there():
    assert translate(tools=[TOOL], parallel_tool_calls=False)["tool_choice"] == {
        "type": "auto",
        "disable_parallel_tool_use": True,
    }


def test_no_reasoning_means_no_thinking():
    assert translate(reasoning_effort="none")["thinking"] == {"type": "disabled"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"seed": 1}, "seed"),
        ({"temperature": 1.5}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"functions": []}, "functions"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/bmp;base64,AA"}]}]},
            "messages[0].content[0]",
        ),
    ],
)
def test_what_cannot_be_said_there_is_refused_by_name(fields, param):
    with pytest.raises(RequestError) as e:
        translate(**fields)
    assert (e.value.code, e.value.param) == ("unsupported_feature", param)


def test_arguments_that_are_no_object_are_the_callers_mistake():
    calls = [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "[1]"}}]
    with pytest.raises(RequestError, match="must be a JSON object") as e:
        translate(messages=[{"role": "assistant", "tool_calls": calls}])
    assert e.value.param == "messages[0].tool_calls[0].function.arguments"


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "It is "},
        {"type": "text", "text": "sunny."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 2,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 3},
    },
}


def test_a_message_becomes_a_chat_completion():
    body = read_message(json.dumps(MESSAGE).encode(), 9)
    assert json.loads(body) == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 9,
        "model": "claude-x",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "It is sunny.",
                    "refusal": None,
                    "reasoning_content": "hm",
                    "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}],
                    "tool_calls": [
                        {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
                    ],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {
            "prompt_tokens": 17,
            "completion_tokens": 7,
            "total_tokens": 24,
            "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
    }
    assert read_answer("chat", body).usage == Usage(17, 7, 5, 3, cache_write=2)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
        ("something_new", "stop"),
    ],
)
def test_each_stop_reason_has_its_finish_reason(reason, finish):
    answer = json.loads(read_message(json.dumps(MESSAGE | {"stop_reason": reason}).encode(), 0))
    assert answer["choices"][0]["finish_reason"] == finish


def test_a_refusal_says_why():
    message = MESSAGE | {"content": [], "stop_reason": "refusal", "stop_details": {"type": "refusal", "explanation": "bio"}}
    said = json.loads(read_message(json.dumps(message).encode(), 0))["choices"][0]["message"]
    assert said == {"role": "assistant", "content": None, "refusal": "bio"}


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"type":"error","error":{}}', b'{"type":"message"}'])
def test_what_is_no_message_is_refused(body):
    with pytest.raises(ValueError, match="not a Messages answer"):
        read_message(body, 0)


def test_errors_take_openais_shape():
    got = read_error(b'{"type":"error","error":{"type":"overloaded_error","message":"busy"},"request_id":"r"}')
    assert json.loads(got) == {
        "error": {"message": "busy", "type": "overloaded_error", "param": None, "code": "overloaded_error"}
    }
    assert read_error(b"<html>") == b"<html>"


def event(type, **fields):
    return f"event: {type}\ndata: {json.dumps({'type': type} | fields)}\n\n".encode()


def block(index, kind, **fields):
    return event("content_block_start", index=index, content_block={"type": kind} | fields)


def delta(index, kind, **fields):
    return event("content_block_delta", index=index, delta={"type": kind} | fields)


STREAM = [
    event(
        "message_start",
        message=MESSAGE | {"content": [], "stop_reason": None, "usage": MESSAGE["usage"] | {"output_tokens": 1}},
    ),
    event("ping"),
    block(0, "thinking", thinking="", signature=""),
    delta(0, "thinking_delta", thinking="hm"),
    delta(0, "signature_delta", signature="s"),
    event("content_block_stop", index=0),
    block(1, "text", text=""),
    delta(1, "text_delta", text="It is "),
    delta(1, "text_delta", text="sunny."),
    event("content_block_stop", index=1),
    block(2, "tool_use", id="t1", name="weather", input={}),
    delta(2, "input_json_delta", partial_json=""),
    delta(2, "input_json_delta", partial_json='{"city":'),
    delta(2, "input_json_delta", partial_json='"Paris"}'),
    event("content_block_stop", index=2),
    event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 7, "input_tokens": None}),
    event("something_new", x=1),
    event("message_stop"),
]


@pytest.mark.parametrize("size", [1, 13, 100_000])
def test_a_stream_says_what_the_whole_message_says(size):
    raw = b"".join(STREAM)
    stream = MessagesStream(9)
    made = b"".join(stream.feed(raw[i : i + size]) for i in range(0, len(raw), size)) + stream.end()
    whole = json.loads(read_message(json.dumps(MESSAGE).encode(), 9))
    whole["choices"][0]["message"].pop("refusal")
    assert made.endswith(DONE)
    joined = assemble(made)
    assert joined["choices"][0].pop("finish_reason") == whole["choices"][0].pop("finish_reason")
    whole["choices"][0].pop("logprobs")
    assert joined == whole
    assert (stream.id, stream.model, stream.started, stream.complete, stream.failure) == ("msg_1", "claude-x", True, True, None)


def test_tool_calls_are_numbered_from_zero_and_named_once():
    made = MessagesStream(9).feed(b"".join([STREAM[0], *STREAM[10:14]]))
    calls = [json.loads(f[6:])["choices"][0]["delta"].get("tool_calls") for f in made.split(b"\n\n")[:-1]]
    assert [call[0]["index"] for call in calls[1:]] == [0, 0, 0]
    assert calls[1][0]["function"] == {"name": "weather", "arguments": ""}
    assert "id" not in calls[2][0]


@pytest.mark.parametrize(("upto", "started"), [(1, False), (8, True)])
def test_an_error_event_ends_the_stream(upto, started):
    stream = MessagesStream(9)
    stream.feed(b"".join(STREAM[:upto]))
    after = stream.feed(event("error", error={"type": "overloaded_error", "message": "busy"}) + STREAM[7])
    assert after == b""
    assert (stream.failure.code, stream.failure.started, stream.complete) == ("upstream_overloaded", started, False)
    assert "busy" in stream.failure.message


def test_garbage_is_an_error():
    with pytest.raises(ValueError, match="not JSON"):
        MessagesStream(9).feed(b"event: x\ndata: {oops\n\n")
