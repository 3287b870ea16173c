"""Golden requests: what a Responses request is in chat, and what is said or refused of the rest."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from noria.contracts.error import RequestError
from noria.dialects.responses_items import item_id, read_items, response_of, seal, unseal, write_items
from noria.dialects.responses_request import read_response_request

SCHEMA = {"type": "object", "properties": {"城市": {"type": "string"}}}
MINIMAL = {"model": "m", "input": "hi"}
RESPONSE = "0199" * 8


def read(**fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    raws = msgspec.json.decode(json.dumps(MINIMAL | fields).encode(), type=dict[str, msgspec.Raw])
    chat, warnings = read_response_request(raws)
    return json.loads(msgspec.json.encode(chat)), warnings


def test_a_bare_question_is_a_user_message() -> None:
    assert read() == ({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, ())


def test_a_large_request_keeps_its_meaning() -> None:
    chat, warnings = read(
        instructions="Be kind.",
        stream=True,
        max_output_tokens=50,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=3,
        parallel_tool_calls=False,
        user="ada",
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="flex",
        metadata={"a": "b"},
        store=True,
        background=False,
        previous_response_id="resp_x",
        max_tool_calls=3,
        seed=7,
        a_vendors_own={"x": [1]},
        reasoning={"effort": "high", "summary": None},
        text={"verbosity": "low", "format": {"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}},
        tools=[{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": None}],
        tool_choice={"type": "function", "name": "f"},
    )
    assert warnings == ()
    assert chat == {
        "model": "m",
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "parallel_tool_calls": False,
        "user": "ada",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "seed": 7,
        "a_vendors_own": {"x": [1]},
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "verbosity": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
        "reasoning_effort": "high",
        "logprobs": True,
        "top_logprobs": 3,
        "max_completion_tokens": 50,
        "stream_options": {"include_usage": True},
    }


def test_values_that_pass_keep_their_very_bytes() -> None:
    raws = {"model": msgspec.Raw(b'"m"'), "input": msgspec.Raw(b'"x"'), "temperature": msgspec.Raw(b"1.00")}
    assert bytes(read_response_request(raws)[0]["temperature"]) == b"1.00"


CONVERSATION: list[Any] = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "看", "cache_control": {"type": "ephemeral"}},
            {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
        ],
    },
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": seal([{"type": "thinking", "signature": "s"}])},
    {
        "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
        "content": [{"type": "output_text", "text": "A moment.", "annotations": [], "logprobs": []}],
    },
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{"a":1}', "status": "completed"},
    {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "一"},
    {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    {"role": "user", "content": "Why?"},
]  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "rules"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "看", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        ],
    },
    {
        "role": "assistant",
        "content": "A moment.",
        "thinking_blocks": [{"type": "thinking", "signature": "s"}],
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "一"},
    {"role": "tool", "tool_call_id": "c2", "content": "2"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    {"role": "user", "content": "Why?"},
]


def test_a_conversation_of_items_is_one_of_messages() -> None:
    messages, warnings = read_items(CONVERSATION)
    assert messages == MESSAGES
    assert warnings == []


def test_messages_can_be_told_as_items_again() -> None:
    items = write_items(MESSAGES, lambda prefix: prefix + "_1")
    assert [i["type"] for i in items] == [
        "message", "message", "message", "function_call", "function_call", "function_call_output", "function_call_output",
        "message", "message",
    ]  # fmt: skip
    assert read_items(items)[0] == [{k: v for k, v in m.items() if k != "thinking_blocks"} for m in MESSAGES]


def test_text_after_a_call_joins_the_turn_so_that_results_follow_their_calls() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    said = {"role": "assistant", "content": "Done soon."}
    messages, _ = read_items([call, said, {"type": "function_call_output", "call_id": "c", "output": "1"}])
    assert [m["role"] for m in messages] == ["assistant", "tool"]
    assert messages[0]["content"] == "Done soon."
    messages, _ = read_items([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert [m["content"] for m in messages] == ["a", "b"]


def test_a_reference_waits_for_its_item() -> None:
    assert read_items([{"type": "item_reference", "id": "msg_1"}, {"id": "fc_2"}])[0] == [
        {"role": "item_reference", "id": "msg_1"},
        {"role": "item_reference", "id": "fc_2"},
    ]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"summary": "auto"}}, "own reasoning"),
        ({"reasoning": {"context": "all"}}, "reasoning.context"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "obfuscation"),
        (
            {"input": [{"role": "user", "content": "x"}, {"type": "reasoning", "id": "r", "encrypted_content": "gAAA"}]},
            "Reasoning",
        ),
        ({"input": [{"role": "assistant", "content": "x", "phase": "commentary"}]}, "phase"),
        (
            {"input": [{"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": [{"a": 1}]}]}]},
            "Annotations",
        ),
    ],
)
def test_what_is_lost_is_said(fields: dict[str, Any], word: str) -> None:
    _, warnings = read(**fields)
    assert len(warnings) == 1
    assert word in warnings[0]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]}, "tools[1]", "unsupported_feature"),
        ({"tools": [{"type": "custom", "name": "apply_patch"}]}, "tools[0]", "unsupported_feature"),
        ({"tools": {}}, None, None),
        ({"tools": "x"}, "tools", "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "invalid_type"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "unsupported_feature"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": ["x"]}, "input[0]", "invalid_type"),
        ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input", "invalid_value"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "invalid_type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0]", "unsupported_feature"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]}, "input[0].content[0]", "unsupported_feature"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", "invalid_type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments", "invalid_type"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "invalid_type"),
        ({"input": [{"type": "local_shell_call"}]}, "input[0]", "unsupported_feature"),
        ({"instructions": ["x"]}, "instructions", "invalid_type"),
        ({"background": True}, "background", "unsupported_feature"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_feature"),
        ({"context_management": [{}]}, "context_management", "unsupported_feature"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"messages": []}, "messages", "unsupported_parameter"),
        ({"max_tokens": 1}, "max_tokens", "unsupported_parameter"),
        ({"response_format": {}}, "response_format", "unsupported_parameter"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format", "unsupported_feature"),
        ({"text": []}, "text", "invalid_type"),
        ({"reasoning": "high"}, "reasoning", "invalid_type"),
        ({"include": ["everything"]}, "include", "invalid_value"),
        ({"include": "x"}, "include", "invalid_type"),
        ({"store": "yes"}, "store", "invalid_type"),
        ({"previous_response_id": 5}, "previous_response_id", "invalid_type"),
        ({"previous_response_id": "a", "conversation": "b"}, "previous_response_id", "mutually_exclusive_parameters"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_feature"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_name(fields: dict[str, Any], param: str | None, code: str | None) -> None:
    if param is None:
        read(**fields)
        return
    with pytest.raises(RequestError) as e:
        read(**fields)
    assert (e.value.param, e.value.code) == (param, code)


def test_what_asks_for_nothing_is_no_loss() -> None:
    fields = {
        "tools": [],
        "text": {"format": {"type": "text"}},
        "reasoning": {},
        "include": ["web_search_call.results"],
        "n": 1,
    }
    chat, warnings = read(**fields, max_tokens=None, prompt=None)
    assert warnings == ()
    assert chat == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "n": 1, "max_tokens": None, "prompt": None}


def test_allowed_tools_and_json_objects_have_their_chat_form() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    chat, _ = read(
        tool_choice=choice, text={"format": {"type": "json_object"}}, conversation="c", include=["message.output_text.logprobs"]
    )
    assert chat["tool_choice"]["allowed_tools"] == {
        "mode": "required",
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    assert chat["response_format"] == {"type": "json_object"}
    assert chat["conversation"] == "c"
    assert chat["logprobs"] is True


def test_a_coding_agents_turn_is_carried_whole_but_for_the_summary() -> None:
    """The shape of Codex: stateless, the whole history each time, with what it cannot know of us."""
    shell = {"type": "function", "name": "shell", "description": "Runs it.", "strict": False, "parameters": SCHEMA}
    chat, warnings = read(
        instructions="You are a coding agent.",
        input=[
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "列出文件"}]},
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
            {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": '{"output":"a.py"}'},
        ],
        tools=[shell],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="01998a3c",
        text={"verbosity": "low"},
        client_metadata={"x-codex-installation-id": "i"},
    )
    assert [m["role"] for m in chat.pop("messages")] == ["system", "system", "user", "user", "assistant", "tool"]
    lost = chat.pop("noria.responses")["lost"]
    assert (warnings, len(lost)) == ((), 1), "an endpoint that speaks the protocol loses nothing"
    assert chat == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {k: v for k, v in shell.items() if k != "type"}}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning_effort": "medium",
        "prompt_cache_key": "01998a3c",
        "verbosity": "low",
    }


def test_an_id_names_its_response() -> None:
    assert response_of(item_id("fc", RESPONSE, 12)) == response_of("resp_" + RESPONSE) == RESPONSE
    assert [response_of(i) for i in ("", "msg_", "msg_" + "g" * 34, "msg_1", "x" * 40)] == [""] * 5


def test_sealed_thinking_comes_back_and_anothers_does_not() -> None:
    blocks = [{"type": "thinking", "thinking": "想", "signature": "x"}]
    assert unseal(seal(blocks)) == blocks
    assert unseal("gAAAAB") == unseal(None) == unseal("noria1.%%%") == unseal("noria1.AAAA") == []
