"""Native Responses: what is read of them as they pass, and which requests may."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from noria.dialects.responses_native import NativeReader, NativeTap, assemble_native, own_request, read_native, text_of_native
from noria.dialects.sse import frame_end

USAGE = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 3, "total_tokens": 12}


def stream(last: str = "response.completed", **more: Any) -> bytes:
    begun = {"id": "resp_1", "object": "response", "model": "m", "status": "in_progress", "output": [], "error": None}
    ended = begun | {"status": last.rpartition(".")[2], "usage": USAGE, "output": [{"type": "message"}]} | more
    told: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "item": {"type": "message"}},
        *({"type": "response.output_text.delta", "delta": d} for d in ("世", ' "response.completed" ', "界")),
        {"type": last, "response": ended},
    ]
    return b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e, ensure_ascii=False).encode()) for e in told)


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_bytes_pass_in_any_chunking_and_facts_are_known(size: int) -> None:
    data, tap, reader = stream(), NativeTap("up"), NativeReader()
    passed = b"".join(tap.feed(data[i : i + size]) for i in range(0, len(data), size)) + tap.end()
    assert (passed, tap.complete, tap.failure, tap.id) == (data, True, None, "resp_1")
    at = 0
    while at < len(passed):
        if reader.started and (end := reader.skim(passed, at)) > at:
            at = end
            continue
        end = frame_end(passed, at)
        reader.read(passed[at:end])
        at = end
    assert (reader.id, reader.model, reader.finish_reason, reader.done, reader.content_frames) == (
        "resp_1",
        "m",
        "stop",
        True,
        3,
    )
    assert reader.usage is not None
    assert (reader.usage.input, reader.usage.output, reader.usage.cached) == (9, 3, 4)


@pytest.mark.parametrize(
    ("last", "more", "finish"),
    [
        ("response.incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ("response.incomplete", {"incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ("response.completed", {"output": [{"type": "message"}, {"type": "custom_tool_call"}]}, "tool_calls"),
    ],
)
def test_why_it_ended_is_said_in_chats_words(last: str, more: dict[str, Any], finish: str) -> None:
    data = stream(last, **more)
    reader = NativeReader()
    for frame in data.split(b"\n\n"):
        reader.read(frame + b"\n\n")
    assert reader.finish_reason == finish
    whole = json.dumps(assemble_native(data)).encode()
    assert (read_native(whole).finish_reason, read_native(whole).id) == (finish, "resp_1")


@pytest.mark.parametrize(
    "frame",
    [
        b'event: error\ndata: {"type":"error","code":"rate_limit_exceeded","message":"slow down","sequence_number":3}\n\n',
        b'data: {"type":"error","error":{"code":"rate_limit_exceeded","message":"slow down"}}\n\n',
        b'data: {"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"slow down"}}}\n\n',
    ],
)
def test_an_error_ends_it_and_does_not_pass(frame: bytes) -> None:
    tap = NativeTap("up")
    before = stream().partition(b"event: response.completed")[0]
    assert tap.feed(before + frame) == before
    assert tap.failure is not None
    assert (tap.failure.code, tap.failure.started) == ("upstream_rate_limited", True)
    assert "slow down" in tap.failure.text


@pytest.mark.parametrize(
    "body", [b"x", b"{}", b'{"object":"response","output":[],"status":"failed","error":{"message":"it broke"}}']
)
def test_what_is_no_answer_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"Response"):
        read_native(body)


def test_of_a_cut_stream_there_is_what_came() -> None:
    cut = stream().partition(b"event: response.completed")[0]
    assert text_of_native(assemble_native(cut)) == '世 "response.completed" 界'


def raws(**fields: Any) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(json.dumps(fields, ensure_ascii=False), type=dict[str, msgspec.Raw])


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, True),
        ({"tools": [{"type": "web_search_2025_08_26"}, {"type": "custom", "name": "x"}]}, True),
        ({"input": 'say "file_id": "item_reference"'}, True),
        ({"input": [{"type": "local_shell_call", "id": "x"}], "previous_response_id": None, "background": False}, True),
        ({"store": True}, False),
        ({"store": None}, False),
        ({"previous_response_id": "r"}, False),
        ({"conversation": {"id": "c"}}, False),
        ({"prompt": {"id": "p"}}, False),
        ({"tools": [{"type": "mcp"}]}, False),
        ({"tools": [{"type": "file_search"}]}, False),
        ({"tools": [{"name": "no type"}]}, False),
        ({"tools": {"type": "web_search"}}, False),
        ({"input": [{"type": "item_reference", "id": "x"}]}, False),
        ({"input": [{"id": "x"}]}, False),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, False),
    ],
)
def test_only_what_reaches_nothing_of_the_account_passes(fields: dict[str, Any], passes: bool) -> None:
    native = raws(**({"model": "a", "input": "x", "store": False} | fields))
    assert own_request(native, {}) == (native if passes else None)


def test_a_key_that_is_spelt_with_escapes_is_no_way_around() -> None:
    native = raws(model="a", store=False) | {"input": msgspec.Raw(b'[{"type":"input_file","\\u0066ile_id":"f"}]')}
    assert own_request(native, {}) is None


def test_parameters_that_need_translating_are_translated() -> None:
    native = raws(model="a", input="x", store=False, temperature=1)
    assert own_request(native, raws(temperature=0, max_tokens=5)) == native | raws(max_output_tokens=5)
    assert own_request(native, raws(reasoning_effort="low")) is None
