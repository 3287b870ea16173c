"""Golden streams: chat chunks as the events of the Responses API, however they are cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from noria.dialects.responses import Shape
from noria.dialects.responses_items import unseal
from noria.dialects.responses_stream import ResponseStream

ID = "01998a3c-0000-7000-8000-000000000000"
D = ID.replace("-", "")
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, **more.pop("choice", {})}]
    data = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more}
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **more, "function": {"arguments": arguments, **({"name": "f"} if more else {})}}]}


END = chunk(None, usage=USAGE) + b"data: [DONE]\n\n"
LONG = (
    chunk({"role": "assistant", "content": ""})
    + chunk({"reasoning_content": "想"})
    + chunk({"reasoning_content": "一想"})
    + b": a comment\n\n"
    + chunk({"content": "Hel"})
    + chunk({"content": 'lo "世界"\n'})
    + chunk({"refusal": "No."})
    + chunk(call(0, "", id="c0", type="function"))
    + chunk(call(1, '{"b"', id="c1"))
    + chunk(call(0, '{"a":'))
    + chunk(call(0, "1}"))
    + chunk(call(1, ":2}"))
    + chunk({}, "tool_calls")
    + END
)


def run(stream: bytes, sizes: list[int] | None = None, **fields: Any) -> bytes:
    native = msgspec.json.decode(json.dumps({"model": "app"} | fields).encode(), type=dict[str, msgspec.Raw])
    made = ResponseStream(Shape(native, ID, 100))
    out, at = b"", 0
    for size in sizes or [len(stream)]:
        out += made.feed(stream[at : at + size])
        at += size
    return out + made.feed(stream[at:]) + made.end(107)


def events(stream: bytes, **fields: Any) -> list[dict[str, Any]]:
    """The events, each under its own name, numbered without a gap."""
    found = []
    for frame in run(stream, **fields).decode().split("\n\n")[:-1]:
        if frame.startswith(":"):
            continue
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == "event: " + found[-1]["type"]
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    Response.model_validate(found[-1]["response"])
    return found


def short(event: dict[str, Any]) -> str:
    kind = event["type"].removeprefix("response.")
    place = "".join(f" {event[k]}" for k in ("output_index", "content_index") if k in event)
    what = next((event[k] for k in ("delta", "text", "refusal", "arguments") if k in event), None)
    return kind + place + ("" if what is None else f" {what!r}") + (f" {event['item']['type']}" if "item" in event else "")


def test_a_stream_with_everything() -> None:
    found = events(LONG)
    assert [short(e) for e in found] == [
        "created",
        "in_progress",
        "output_item.added 0 reasoning",
        "content_part.added 0 0",
        "reasoning_text.delta 0 0 '想'",
        "reasoning_text.delta 0 0 '一想'",
        "reasoning_text.done 0 0 '想一想'",
        "content_part.done 0 0",
        "output_item.done 0 reasoning",
        "output_item.added 1 message",
        "content_part.added 1 0",
        "output_text.delta 1 0 'Hel'",
        "output_text.delta 1 0 'lo \"世界\"\\n'",
        "output_text.done 1 0 'Hello \"世界\"\\n'",
        "content_part.done 1 0",
        "content_part.added 1 1",
        "refusal.delta 1 1 'No.'",
        "refusal.done 1 1 'No.'",
        "content_part.done 1 1",
        "output_item.done 1 message",
        "output_item.added 2 function_call",
        "output_item.added 3 function_call",
        "function_call_arguments.delta 3 '{\"b\"'",
        "function_call_arguments.delta 2 '{\"a\":'",
        "function_call_arguments.delta 2 '1}'",
        "function_call_arguments.delta 3 ':2}'",
        "function_call_arguments.done 2 '{\"a\":1}'",
        "output_item.done 2 function_call",
        "function_call_arguments.done 3 '{\"b\":2}'",
        "output_item.done 3 function_call",
        "completed",
    ]
    whole = found[-1]["response"]
    assert [i["id"] for i in whole["output"]] == [f"rs_{D}00", f"msg_{D}00", f"fc_{D}00", f"fc_{D}01"]
    assert whole["output"] == [e["item"] for e in found if e["type"] == "response.output_item.done"]
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"], whole["model"]) == (3, 4, "m")
    assert found[0]["response"]["status"] == "in_progress"
    assert (whole["status"], whole["completed_at"]) == ("completed", 107)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=40))
def test_the_events_do_not_depend_on_how_the_stream_was_cut(sizes: list[int]) -> None:
    assert run(LONG, sizes) == run(LONG)


def test_comments_pass_and_done_does_not() -> None:
    assert b": a comment\n\n" in run(LONG)
    assert b"[DONE]" not in run(LONG)


def test_an_answer_without_a_word_is_a_message_without_one() -> None:
    found = events(chunk({"role": "assistant", "content": ""}) + chunk({}, "stop") + END)
    assert [short(e) for e in found][2:] == [
        "output_item.added 0 message", "content_part.added 0 0", "output_text.done 0 0 ''", "content_part.done 0 0",
        "output_item.done 0 message", "completed",
    ]  # fmt: skip


def test_a_stream_that_ends_early_is_incomplete() -> None:
    for finish, reason in (("length", "max_output_tokens"), ("content_filter", "content_filter")):
        last = events(chunk({"content": "a"}) + chunk({}, finish) + END)[-1]
        assert (last["type"], last["response"]["incomplete_details"]["reason"]) == ("response.incomplete", reason)
        assert last["response"]["output"][0]["status"] == "incomplete"


def test_an_error_in_the_stream_is_told_twice_as_the_api_does() -> None:
    error = {"error": {"message": "broken", "type": "upstream_error", "param": None, "code": "upstream_cut"}}
    found = events(chunk({"content": "a"}) + b"data: " + json.dumps(error).encode() + b"\n\n")
    assert found[-2] == {"type": "error", "sequence_number": 5, "code": "upstream_cut", "message": "broken", "param": None}
    failed = found[-1]["response"]
    assert (found[-1]["type"], failed["status"], failed["error"]) == (
        "response.failed", "failed", {"code": "server_error", "message": "broken"},
    )  # fmt: skip
    assert (failed["output"][0]["status"], failed["output"][0]["content"][0]["text"]) == ("incomplete", "a")


def test_text_after_a_call_is_a_message_of_its_own() -> None:
    found = events(
        chunk({"content": "a"}) + chunk(call(0, "{}", id="c")) + chunk({"content": "b"}) + chunk({}, "tool_calls") + END
    )
    output = found[-1]["response"]["output"]
    assert [(i["type"], i["id"][-2:]) for i in output] == [("message", "00"), ("function_call", "00"), ("message", "01")]


def test_thinking_blocks_go_to_their_reasoning_and_are_sealed_on_demand() -> None:
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "s"}]
    stream = chunk({"reasoning_content": "hm"}) + chunk({"thinking_blocks": blocks}) + chunk({"content": "a"}, "stop") + END
    assert "encrypted_content" not in events(stream)[-1]["response"]["output"][0]
    item = events(stream, include=["reasoning.encrypted_content"])[-1]["response"]["output"][0]
    assert unseal(item["encrypted_content"]) == blocks
    redacted = chunk({"thinking_blocks": [{"type": "redacted_thinking", "data": "x"}]}) + chunk({"content": "a"}, "stop") + END
    assert [i["type"] for i in events(redacted)[-1]["response"]["output"]] == ["reasoning", "message"]


def test_logprobs_and_annotations_come_along() -> None:
    token = {"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}
    note = {"type": "url_citation", "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1}}
    found = events(
        chunk({"content": "a"}, choice={"logprobs": {"content": [token], "refusal": None}})
        + chunk({"annotations": [note]})
        + chunk({}, "stop")
        + END
    )
    assert next(e for e in found if e["type"] == "response.output_text.delta")["logprobs"] == [token]
    part = found[-1]["response"]["output"][0]["content"][0]
    assert (part["logprobs"], part["annotations"][0]["url"]) == ([token], "u")
    assert next(e for e in found if "annotation" in e)["annotation"]["type"] == "url_citation"


def test_both_names_of_reasoning_are_one_and_parts_of_content_are_read() -> None:
    both = chunk({"reasoning": "hm", "reasoning_content": "hm"}) + chunk({"content": "a"}, "stop") + END
    assert events(both)[-1]["response"]["output"][0]["content"][0]["text"] == "hm"
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "世"}]
    output = events(chunk({"content": parts}, "stop") + END)[-1]["response"]["output"]
    assert [i["content"][0]["text"] for i in output] == ["hm", "世"]


def test_a_chunk_that_cannot_be_read_fails_the_answer_instead_of_leaving_a_hole() -> None:
    for broken in (b'{"choices": 5}', b'{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}', b'{"choices":[{"ind'):
        found = events(chunk({"content": "a"}) + b"data: " + broken + b"\n\n" + chunk({"content": "b"}, "stop") + END)
        assert (found[-1]["type"], found[-2]["code"]) == ("response.failed", "bad_upstream_response")


def test_garbage_and_other_choices_are_passed_over() -> None:
    odd = b'data: nonsense\n\ndata: [1]\n\nevent: x\n\ndata: {"choices":[{"index":1,"delta":{"content":"b"}}]}\n\n'
    odd += b'data: {"choices":[{"index":0,"delta":{"content":7,"tool_calls":[3],"refusal":[]}}]}\n\n'
    found = events(odd + chunk({"content": "a"}, "stop") + END)
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == "a"
    assert all(a["sequence_number"] < b["sequence_number"] for a, b in pairwise(found))
