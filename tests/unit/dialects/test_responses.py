"""Golden answers: the Response object of a chat completion."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from openai.types.responses import Response

from noria.contracts.exchange import Usage
from noria.dialects.responses import Shape, write_failure, write_response, write_usage
from noria.dialects.responses_items import unseal

ID = "01998a3c-0000-7000-8000-000000000000"
D = ID.replace("-", "")


def shape(**fields: Any) -> Shape:
    native = msgspec.json.decode(json.dumps({"model": "app"} | fields).encode(), type=dict[str, msgspec.Raw])
    return Shape(native, ID, 100)


def written(
    message: dict[str, Any], *, finish: str = "stop", more: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    chat = {"id": "c", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": finish}], **(more or {})}
    whole = json.loads(msgspec.json.encode(write_response(chat, shape(**fields), 107)))
    Response.model_validate(whole)  # every field that the client requires, in its type
    return whole


def test_a_whole_answer() -> None:
    message = {
        "role": "assistant",
        "content": "世界",
        "reasoning_content": "hm",
        "annotations": [{"type": "url_citation", "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1}}],
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    usage = {
        "prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip
    found = written(
        message, more={"usage": usage, "service_tier": "flex"}, store=False, temperature=1.5, reasoning={"effort": "low"}
    )
    assert found["output"] == [
        {
            "id": f"rs_{D}00", "type": "reasoning", "summary": [], "status": "completed",
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {
            "id": f"msg_{D}00", "type": "message", "status": "completed", "role": "assistant",
            "content": [
                {
                    "type": "output_text", "text": "世界", "logprobs": [],
                    "annotations": [{"type": "url_citation", "url": "u", "title": "t", "start_index": 0, "end_index": 1}],
                }
            ],
        },
        {"id": f"fc_{D}00", "type": "function_call", "status": "completed", "call_id": "c1", "name": "f", "arguments": "{}"},
    ]  # fmt: skip
    assert found["usage"] == {
        "input_tokens": 10, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 17,
    }  # fmt: skip
    assert {k: found[k] for k in ("id", "model", "status", "created_at", "completed_at", "store", "temperature", "service_tier")} == {
        "id": f"resp_{D}", "model": "m", "status": "completed", "created_at": 100, "completed_at": 107, "store": False,
        "temperature": 1.5, "service_tier": "flex",
    }  # fmt: skip
    assert found["reasoning"] == {"effort": "low", "summary": None}
    assert found["error"] is found["incomplete_details"] is None


def test_an_answer_that_ends_early_says_why() -> None:
    for finish, reason in (("length", "max_output_tokens"), ("content_filter", "content_filter")):
        found = written({"content": "x"}, finish=finish)
        assert (found["status"], found["incomplete_details"], found["output"][0]["status"]) == (
            "incomplete",
            {"reason": reason},
            "incomplete",
        )
        assert found["completed_at"] is None


def test_a_refusal_and_an_empty_answer_are_messages() -> None:
    assert written({"content": None, "refusal": "No."})["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]
    assert written({"content": ""})["output"][0]["content"][0]["text"] == ""
    assert [i["type"] for i in written({"tool_calls": [{"function": {"name": "f"}}]})["output"]] == ["function_call"]


def test_a_call_without_an_id_gets_one() -> None:
    assert written({"tool_calls": [{"function": {"name": "f"}}]})["output"][0]["call_id"] == f"call_{D}00"


def test_thinking_is_sealed_for_those_who_ask() -> None:
    message = {"content": "x", "reasoning_content": "hm", "thinking_blocks": [{"type": "thinking", "signature": "s"}]}
    assert "encrypted_content" not in written(message)["output"][0]
    asked = written(message, include=["reasoning.encrypted_content"])["output"][0]
    assert unseal(asked["encrypted_content"]) == message["thinking_blocks"]
    assert (
        written({"content": "x", "reasoning": "hm"}, include=["reasoning.encrypted_content"])["output"][0]["encrypted_content"]
        is None
    )


def test_parts_of_content_are_texts_and_thoughts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    output = written({"content": parts})["output"]
    assert (output[0]["content"][0]["text"], output[1]["content"][0]["text"]) == ("hm", "ab")


def test_odd_answers_are_taken_for_what_can_be_read_of_them() -> None:
    odd: list[dict[str, Any]] = [
        {}, {"content": 5, "tool_calls": [3]}, {"tool_calls": None}, {"tool_calls": [{"function": 5}]}, {"thinking_blocks": 5},
    ]  # fmt: skip
    for message in odd:
        assert written(message)["object"] == "response"
    assert json.loads(msgspec.json.encode(write_response({"choices": []}, shape(), 1)))["output"][0]["type"] == "message"


def test_counts_and_failures() -> None:
    found = write_usage(Usage(5, None, cached=1, cache_write=2, cache_write_long=3))
    assert (found["total_tokens"], found["input_tokens_details"]["cache_write_tokens"]) == (5, 5)
    assert write_failure({"code": "rate_limit_exceeded", "message": "m"}) == {"code": "rate_limit_exceeded", "message": "m"}
    assert write_failure({"code": "content_filter"})["code"] == "server_error"
