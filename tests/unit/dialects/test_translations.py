"""OpenAI, Anthropic and Gemini, each into each other: fixtures of our own, and the same stream in any chunking."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import RequestError
from noria.contracts.exchange import Exchange, Usage
from noria.dialects.anthropic import write_messages_request
from noria.dialects.anthropic_answer import MessagesWriter, error_status, usage_of, write_error, write_message
from noria.dialects.anthropic_ingress import MESSAGES
from noria.dialects.anthropic_native import NativeReader, allowed_betas, assemble_native
from noria.dialects.anthropic_request import read_messages_request
from noria.dialects.anthropic_stream import MessagesStream
from noria.dialects.gemini import read_error, read_generate, write_generate_request
from noria.dialects.gemini_answer import write_error as write_google_error
from noria.dialects.gemini_answer import write_generate
from noria.dialects.gemini_ingress import Generate
from noria.dialects.gemini_native import assemble_native as assemble_gemini
from noria.dialects.gemini_request import read_generate_request
from noria.dialects.gemini_stream import GenerateStream
from noria.dialects.lower import lower
from noria.dialects.openai_answer import read_answer
from noria.dialects.openai_stream import assemble
from noria.dialects.responses_ingress import ResponsesIngress

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANTHROPIC: dict[str, Any] = {
    "model": "app",
    "max_tokens": 4000,
    "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
    "stop_sequences": ["END"],
    "top_k": 5,
    "temperature": 0.5,
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "metadata": {"user_id": "u1"},
    "context_management": {"edits": []},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": CITY}, "new": 1},
    "tools": [
        {
            "name": "weather",
            "description": "d",
            "input_schema": CITY,
            "cache_control": {"type": "ephemeral"},
            "defer_loading": True,
        },
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
    ],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                {"type": "document", "title": "t", "source": {"type": "base64", "media_type": "application/pdf", "data": "BB"}},
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": "plain"},
                    "citations": {"enabled": True},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}},
                {"type": "thinking", "thinking": "more", "signature": "s2"},
                {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}], "is_error": True},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "content": [{"type": "image", "source": {"type": "url", "url": "https://h/i"}}],
                },
                {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ],
}


def raws(value: dict[str, Any]) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(json.dumps(value).encode(), type=dict[str, msgspec.Raw])


def plain(value: dict[str, msgspec.Raw]) -> dict[str, Any]:
    return {k: json.loads(bytes(v)) for k, v in value.items()}


def collected(ingress: Any, chunks: list[bytes], stream: bool = True, status: int = 200) -> bytes:
    class Out:
        backlog = 0
        body = b""

        def head(self, status: int, headers: Any, *, stream: bool) -> None: ...

        def data(self, data: bytes) -> None:
            self.body += data

        def end(self) -> None: ...

    out = Out()
    outlet = ingress.outlet(Exchange("x1", "t", "s", "local", "chat", "a", stream, {}, 0), out)
    outlet.head(status, [], stream=stream)
    for chunk in chunks:
        outlet.data(chunk)
    outlet.end()
    return out.body


# -- requests -----------------------------------------------------------------------------------------------


def test_what_came_as_anthropic_goes_back_as_anthropic():
    chat = read_messages_request(raws(ANTHROPIC))
    back = json.loads(write_messages_request(chat, "app", stream=False, max_tokens=1))
    assert back == ANTHROPIC | {"metadata": {"user_id": "u1"}}


def test_what_a_guard_has_edited_never_comes_back():
    chat = read_messages_request(raws(ANTHROPIC))
    edited = chat | {"messages": msgspec.Raw(bytes(chat["messages"]).replace(b'"text":"plain"', b'"text":"[masked]"'))}
    back = write_messages_request(edited, "app", stream=False, max_tokens=1)
    assert b"[masked]" in back
    assert b'"plain"' not in back


def test_what_came_as_anthropic_is_plain_chat_for_others_and_says_what_it_lost():
    request = {k: v for k, v in ANTHROPIC.items() if k != "tools"} | {"tools": ANTHROPIC["tools"][:1]}
    chat, lost = lower(read_messages_request(raws(request)), "hash")
    got = plain(chat)
    assert [m["role"] for m in got["messages"]] == ["system", "user", "assistant", "tool", "tool", "user", "user"]
    assert got["messages"][1]["content"][3] == {"type": "text", "text": "plain"}
    assert got["messages"][2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Paris"}'}
    assert got["messages"][5]["content"] == [{"type": "image_url", "image_url": {"url": "https://h/i"}}]
    assert got["reasoning_effort"] == "high"
    assert got["max_completion_tokens"] == 4000
    assert (got["stop"], got["tool_choice"], got["parallel_tool_calls"], got["user"]) == (["END"], "required", False, "u1")
    assert got["response_format"]["json_schema"]["schema"] == CITY
    text = json.dumps(got)
    for word in ("cache_control", "thinking", "anthropic", "top_k", "is_error", "context_management"):
        assert word not in text
    for word in ("cache_control", "thinking", "top_k", "is_error", "context_management", "defer_loading", "output_config"):
        assert any(word in sentence for sentence in lost), word


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": ANTHROPIC["tools"]}, "web_search_20250305"),
        ({"container": "c"}, "container"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]}, "image"),
    ],
)
def test_what_the_answer_depends_on_is_refused_by_others(change, param):
    request = {"model": "a", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]} | change
    chat = read_messages_request(raws(request))
    with pytest.raises(RequestError) as e:
        lower(chat, "")
    assert (e.value.code, e.value.param) == ("unsupported_feature", param)


@pytest.mark.parametrize("name", ["mcp_servers", "workspace_id"])
def test_denied_fields_are_refused_everywhere(name):
    with pytest.raises(RequestError) as e:
        read_messages_request(raws({"model": "a", "max_tokens": 1, "messages": [], name: "x"}))
    assert e.value.param == name


def test_only_beta_features_of_the_list_pass():
    assert allowed_betas("context-1m-2025-08-07, mcp-client-2025-04-04,oauth-2025-04-20") == (
        ["context-1m-2025-08-07"],
        ["mcp-client-2025-04-04", "oauth-2025-04-20"],
    )
    assert allowed_betas("my-feature-1", ("my-",)) == (["my-feature-1"], [])


GEMINI: dict[str, Any] = {
    "systemInstruction": {"parts": [{"text": "Be kind."}]},
    "contents": [
        {"role": "user", "parts": [{"text": "What is this?"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
        {
            "role": "model",
            "parts": [
                {"functionCall": {"name": "weather", "args": {"city": "Paris"}}, "thoughtSignature": "sig"},
                {"functionCall": {"name": "weather", "args": {"city": "Rome"}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "weather", "response": {"sky": "blue"}}},
                {"functionResponse": {"name": "weather", "response": {"sky": "grey"}}},
                {"text": "go on"},
            ],
        },
    ],
    "tools": [
        {
            "functionDeclarations": [
                {"name": "weather", "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}
            ]
        }
    ],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}},
    "generationConfig": {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 5,
        "maxOutputTokens": 9,
        "stopSequences": ["END"],
        "seed": 3,
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}},
        "thinkingConfig": {"thinkingBudget": 1024, "includeThoughts": True},
    },
    "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
}


def test_what_came_as_gemini_goes_back_as_gemini():
    chat = read_generate_request(raws(GEMINI), "app", stream=False)
    body, lost = write_generate_request(chat, "gemini-2.5-flash")
    assert json.loads(body) == GEMINI
    assert lost == ()


def test_what_came_as_gemini_is_plain_chat_for_others():
    chat, lost = lower(read_generate_request(raws(GEMINI), "app", stream=True), "")
    got = plain(chat)
    assert [m["role"] for m in got["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    ids = [c["id"] for c in got["messages"][2]["tool_calls"]]
    assert [m["tool_call_id"] for m in got["messages"][3:5]] == ids
    assert len(set(ids)) == 2
    assert (got["stream"], got["seed"], got["reasoning_effort"]) == (True, 3, "low")
    assert "extra_content" not in json.dumps(got)
    assert "gemini" not in got
    assert any("safetySettings" in sentence for sentence in lost)


def test_both_spellings_of_googles_keys_are_read():
    snake = {
        "system_instruction": GEMINI["systemInstruction"],
        "contents": [{"parts": [{"inline_data": {"mime_type": "image/png", "data": "A"}}]}],
    }
    chat = plain(read_generate_request(raws(snake), "app", stream=False))
    assert chat["messages"][0] == {"role": "system", "content": "Be kind."}
    assert chat["messages"][1]["content"][0]["image_url"]["url"] == "data:image/png;base64,A"


def test_a_schema_loses_only_what_it_says_it_lost():
    schema = {
        "$defs": {"c": {"type": "string", "const": "x"}},
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "a": {"$ref": "#/$defs/c"},
            "b": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "c": {"type": ["string", "null"]},
        },
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body, lost = write_generate_request(raws({"messages": [{"role": "user", "content": "hi"}], "response_format": form}), "g")
    assert json.loads(body)["generationConfig"]["responseSchema"] == {
        "type": "OBJECT",
        "properties": {
            "a": {"type": "STRING", "enum": ["x"]},
            "b": {"type": "INTEGER", "nullable": True},
            "c": {"type": "STRING", "nullable": True},
        },
    }
    assert len(lost) == 1
    assert "additionalProperties" in lost[0]


def test_a_schema_that_refers_to_itself_is_refused_for_gemini():
    schema = {"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    with pytest.raises(RequestError, match="refers to itself"):
        write_generate_request(raws({"messages": [], "response_format": form}), "g")


# -- answers ------------------------------------------------------------------------------------------------

CHAT: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": "Let me see.",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}},
                    {"id": "t2", "type": "function", "function": {"name": "weather", "arguments": "{bad"}},
                ],
            },
        }
    ],
    "usage": {
        "prompt_tokens": 20,
        "completion_tokens": 9,
        "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 4},
    },
}


def test_a_chat_completion_becomes_a_message():
    got = json.loads(write_message(json.dumps(CHAT).encode()))
    assert [b["type"] for b in got["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert got["content"][2] == {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}
    assert got["content"][3]["input"] == {"invalid_json": "{bad"}
    assert (got["stop_reason"], got["id"], got["model"]) == ("tool_use", "c1", "m")
    assert (got["usage"]["input_tokens"], got["usage"]["cache_read_input_tokens"], got["usage"]["output_tokens"]) == (15, 5, 9)


def test_a_chat_completion_becomes_an_answer_of_gemini():
    got = json.loads(write_generate(json.dumps(CHAT).encode()))
    parts = got["candidates"][0]["content"]["parts"]
    assert parts[:2] == [{"text": "hm", "thought": True}, {"text": "Let me see."}]
    assert parts[2]["functionCall"] == {"name": "weather", "args": {"city": "Paris"}, "id": "t1"}
    assert got["usageMetadata"] == {
        "promptTokenCount": 20,
        "totalTokenCount": 29,
        "candidatesTokenCount": 5,
        "thoughtsTokenCount": 4,
        "cachedContentTokenCount": 5,
    }


GENERATED: dict[str, Any] = {
    "candidates": [
        {
            "index": 0,
            "finishReason": "STOP",
            "content": {
                "role": "model",
                "parts": [
                    {"text": "hm", "thought": True},
                    {"text": "Hi"},
                    {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "s"},
                ],
            },
        }
    ],
    "responseId": "r1",
    "modelVersion": "gemini-2.5-flash",
    "usageMetadata": {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 30,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 5,
        "totalTokenCount": 112,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 60},
            {"modality": "IMAGE", "tokenCount": 25},
            {"modality": "AUDIO", "tokenCount": 15},
        ],
    },
}


def test_an_answer_of_gemini_becomes_a_chat_completion():
    body = read_generate(json.dumps(GENERATED).encode(), 1)
    choice = json.loads(body)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("hm", "Hi")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert choice["message"]["tool_calls"][0]["extra_content"] == {"google": {"thought_signature": "s"}}
    assert read_answer("chat", body).usage == Usage(100, 12, 30, 5, audio_input=15, image_input=25)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("OTHER", "stop"),
    ],
)
def test_each_reason_of_gemini_has_its_finish_reason(reason, finish):
    answer = {"candidates": [{"finishReason": reason, "content": {"parts": [{"text": "x"}]}}]}
    assert json.loads(read_generate(json.dumps(answer).encode(), 1))["choices"][0]["finish_reason"] == finish


def test_a_blocked_prompt_is_a_refusal():
    choice = json.loads(read_generate(b'{"promptFeedback":{"blockReason":"SAFETY"}}', 1))["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert "SAFETY" in choice["message"]["refusal"]


def test_usage_that_is_not_told_is_not_nought():
    assert read_answer("chat", read_generate(json.dumps(GENERATED | {"usageMetadata": {}}).encode(), 1)).usage is None
    reader = NativeReader()
    reader.read(b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{}}}\n\n')
    assert reader.usage is None
    assert usage_of(None) == {"input_tokens": 0, "output_tokens": 0}


# -- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
        (504, "timeout_error"),
    ],
)
def test_each_status_has_its_type_of_error(status, kind):
    body = b'{"error":{"message":"no","type":"x","param":null,"code":"c"}}'
    assert json.loads(write_error(status, body, "r")) == {
        "type": "error",
        "error": {"type": kind, "message": "no", "details": {"error_code": "c"}},
        "request_id": "r",
    }


def test_an_overloaded_endpoint_is_529():
    body = b'{"error":{"message":"no","type":"upstream_error","param":null,"code":"upstream_overloaded"}}'
    assert error_status(502, body) == 529
    assert json.loads(write_error(529, body, "r"))["error"]["type"] == "overloaded_error"


def test_errors_of_google_come_and_go_in_its_shape():
    own = b'{"error":{"code":429,"message":"quota","status":"RESOURCE_EXHAUSTED"}}'
    assert json.loads(read_error(own))["error"]["message"] == "quota"
    assert write_google_error(429, own) == own
    made = json.loads(write_google_error(404, b'{"error":{"message":"no","type":"x","param":null,"code":"model_not_found"}}'))
    assert (made["error"]["code"], made["error"]["status"], made["error"]["details"][0]["reason"]) == (
        404,
        "NOT_FOUND",
        "model_not_found",
    )


# -- streams ------------------------------------------------------------------------------------------------


def frame(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish} | more]
    return (
        b"data: "
        + json.dumps({"id": "c1", "model": "m", "choices": choices} | (CHAT_USAGE if delta is None else {})).encode()
        + b"\n\n"
    )


def call(index: int, **function: Any) -> dict[str, Any]:
    named = {"id": f"t{index}"} if "name" in function else {}
    return {"tool_calls": [{"index": index, "type": "function", "function": function} | named]}


CHAT_USAGE = {"usage": CHAT["usage"]}
FRAMES = [
    frame({"role": "assistant", "content": ""}),
    frame({"reasoning_content": "h"}),
    frame({"reasoning_content": "m"}),
    frame({"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "sig"}]}),
    b": ping\n\n",
    frame({"content": "Let me"}),
    frame({"content": " see. 世界"}),
    frame(call(0, name="weather", arguments="")),
    frame(call(0, arguments='{"city":')),
    frame(call(1, name="weather", arguments='{"city"')),  # another call begins before the first is whole
    frame(call(0, arguments='"Paris"}')),
    frame(call(1, arguments=':"Rome"}')),
    frame({}, "tool_calls"),
    frame(None),
    b"data: [DONE]\n\n",
]


def torn(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({c % (len(data) + 1) for c in cuts}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


CUTS = st.lists(st.integers(0, 10_000), max_size=40)


@settings(max_examples=60, deadline=None)
@given(CUTS)
def test_any_chunking_of_a_chat_stream_gives_the_same_message(cuts):
    whole = collected(MESSAGES, torn(b"".join(FRAMES), cuts))
    assert whole == collected(MESSAGES, FRAMES)
    got = assemble_native(whole)
    assert got["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "text", "text": "Let me see. 世界"},
        {"type": "tool_use", "id": "t0", "name": "weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
    ]
    assert (got["stop_reason"], got["usage"]["input_tokens"], got["usage"]["output_tokens"]) == ("tool_use", 15, 9)


def test_blocks_of_a_message_follow_each_other():
    events = [json.loads(f.split(b"data: ")[1]) for f in collected(MESSAGES, FRAMES).split(b"\n\n")[:-1]]
    open_block, seen = None, 0
    for event in events:
        if event["type"] == "content_block_start":
            assert (open_block, event["index"]) == (None, seen)
            open_block, seen = seen, seen + 1
        elif event["type"] == "content_block_delta":
            assert event["index"] == open_block
        elif event["type"] == "content_block_stop":
            assert event["index"] == open_block
            open_block = None
    assert open_block is None
    assert [e["type"] for e in events][-2:] == ["message_delta", "message_stop"]
    assert "ping" in [e["type"] for e in events]


def test_calls_that_share_an_index_are_told_apart_by_their_ids():
    calls = [{"tool_calls": [{"index": 0, "id": i, "function": {"name": "f", "arguments": "{}"}}]} for i in ("a", "b")]
    got = assemble_native(collected(MESSAGES, [frame(calls[0]), frame(calls[1]), frame({}, "tool_calls"), FRAMES[-1]]))
    assert [b["id"] for b in got["content"]] == ["a", "b"]


def test_an_error_inside_a_stream_is_an_error_event():
    writer = MessagesWriter("r1")
    writer.frame(FRAMES[5])
    out = writer.frame(
        b'data: {"error":{"message":"busy","type":"upstream_error","param":null,"code":"upstream_overloaded"}}\n\n'
    )
    assert out.startswith(b"event: error\n")
    assert json.loads(out.split(b"data: ")[1])["error"]["type"] == "overloaded_error"
    assert writer.end() == b"", "nothing follows it"


@settings(max_examples=60, deadline=None)
@given(CUTS)
def test_any_chunking_of_a_chat_stream_gives_the_same_answer_of_gemini(cuts):
    ingress = Generate("app", stream=True, sse=True)
    whole = collected(ingress, torn(b"".join(FRAMES), cuts))
    assert whole == collected(ingress, FRAMES)
    got = assemble_gemini(whole)
    parts = got["candidates"][0]["content"]["parts"]
    assert parts[:2] == [{"text": "hm", "thought": True}, {"text": "Let me see. 世界"}]
    assert [p["functionCall"]["args"]["city"] for p in parts[2:]] == ["Paris", "Rome"]
    assert got["candidates"][0]["finishReason"] == "STOP"
    assert got["usageMetadata"]["promptTokenCount"] == 20


def test_a_stream_without_sse_is_one_json_array():
    got = json.loads(collected(Generate("app", stream=True, sse=False), FRAMES))
    assert isinstance(got, list)
    assert (
        "".join(p.get("text", "") for e in got for c in e["candidates"] for p in c["content"]["parts"] if not p.get("thought"))
        == "Let me see. 世界"
    )
    assert got[-1]["candidates"][0]["finishReason"] == "STOP"


GEMINI_STREAM = b"".join(
    b"data: " + json.dumps({"responseId": "r1", "modelVersion": "g"} | event, ensure_ascii=False).encode() + b"\r\n\r\n"
    for event in (
        {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}]}}], "usageMetadata": {"promptTokenCount": 10}},
        {"candidates": [{"content": {"parts": [{"text": "Grüß"}]}}]},
        {
            "candidates": [
                {"content": {"parts": [{"functionCall": {"name": "f", "args": {"a": 1}}}, {"functionCall": {"name": "g"}}]}}
            ]
        },
        {
            "candidates": [{"content": {"parts": []}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 4, "thoughtsTokenCount": 2},
        },
    )
)


@settings(max_examples=60, deadline=None)
@given(CUTS)
def test_any_chunking_of_a_gemini_stream_gives_the_same_chat(cuts):
    stream = GenerateStream(1)
    out = b"".join([*(stream.feed(piece) for piece in torn(GEMINI_STREAM, cuts)), stream.end()])
    got = assemble(out)
    message = got["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Grüß")
    assert [c["function"]["name"] for c in message["tool_calls"]] == ["f", "g"]
    assert len({c["id"] for c in message["tool_calls"]}) == 2
    assert got["choices"][0]["finish_reason"] == "tool_calls"
    assert (got["usage"]["prompt_tokens"], got["usage"]["completion_tokens"]) == (10, 6)
    assert stream.complete
    assert out.endswith(b"data: [DONE]\n\n")


def test_a_gemini_stream_that_is_cut_has_no_end():
    stream = GenerateStream(1)
    out = stream.feed(GEMINI_STREAM[:300]) + stream.end()
    assert b"[DONE]" not in out
    assert not stream.complete


def test_a_message_that_goes_through_chat_and_back_is_the_same():
    message = {
        "id": "m1", "type": "message", "role": "assistant", "model": "c",
        "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}],
        "stop_reason": "stop_sequence", "stop_sequence": "END",
    }  # fmt: skip
    stream = MessagesStream(1)
    events = [
        (
            "message_start",
            {
                "message": message
                | {"content": [], "stop_reason": None, "usage": {"input_tokens": 3, "cache_read_input_tokens": 2}}
            },
        )
    ]
    for i, block in enumerate(message["content"]):
        empty = {"thinking": {"type": "thinking", "thinking": "", "signature": ""}, "text": {"type": "text", "text": ""}}
        events.append(("content_block_start", {"index": i, "content_block": empty.get(block["type"], block | {"input": {}})}))
        deltas = {
            "thinking": [{"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": "s"}],
            "text": [{"type": "text_delta", "text": "Hi"}],
            "tool_use": [{"type": "input_json_delta", "partial_json": '{"a":1}'}],
        }[block["type"]]
        events += [("content_block_delta", {"index": i, "delta": d}) for d in deltas] + [("content_block_stop", {"index": i})]
    events.append(
        ("message_delta", {"delta": {"stop_reason": "stop_sequence", "stop_sequence": "END"}, "usage": {"output_tokens": 7}})
    )
    events.append(("message_stop", {}))
    wire = b"".join(f"event: {n}\ndata: {json.dumps({'type': n} | d)}\n\n".encode() for n, d in events)
    got = assemble_native(collected(MESSAGES, [stream.feed(wire)]))
    assert {k: got[k] for k in message} == message
    assert (got["usage"]["input_tokens"], got["usage"]["cache_read_input_tokens"], got["usage"]["output_tokens"]) == (3, 2, 7)


@pytest.mark.parametrize(
    "ingress",
    [MESSAGES, ResponsesIngress(), Generate("a", stream=True, sse=True), Generate("a", stream=True, sse=False)],
    ids=["messages", "responses", "gemini", "gemini-array"],
)
def test_a_comment_before_the_answer_and_inside_it_changes_nothing_of_what_is_said(ingress):
    comment, ping = b": keep-alive\n\n", b'event: ping\ndata: {"type": "ping"}\n\n'
    commented = collected(ingress, [comment, FRAMES[0], comment, *FRAMES[1:]])
    stamped = re.compile(rb'"(created_at|completed_at)":\d+')
    heard, plain_ = (
        stamped.sub(b"", t.replace(comment, b"").replace(ping, b"")) for t in (commented, collected(ingress, FRAMES))
    )
    assert heard == plain_
