"""What an exchange is estimated by where its endpoint did not tell: too high rather than too low."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.gateway.test_limits import ask

from noria.contracts.release import Endpoint
from noria.contracts.usage import Usage
from noria.dialects.native import reader_of
from noria.gateway.bound import DEFAULT_OUTPUT
from noria.gateway.untold import CALL, IMAGE, PICTURE, completed, counted, ran_unseen, thinks

PLAIN = Endpoint("m", "openai_compatible", "gpt-4.1", vendor="openai")


def frames(*deltas: Any, dialect: str = "openai") -> list[bytes]:
    made: list[dict[str, Any]] = []
    for d in deltas:
        if dialect == "openai":
            made.append({"choices": [{"index": 0, "delta": d, "finish_reason": None}]})
        elif dialect == "gemini":
            made.append({"candidates": [{"content": {"parts": [d]}, "index": 0}]})
        else:
            made.append(d)
    return [b"data: " + json.dumps(m).encode() + b"\n\n" for m in made]


def output(raw: list[bytes], dialect: Any = "openai", **more: Any) -> int:
    reader = reader_of(dialect)
    for frame in raw:
        reader.read(frame)
    told = counted(ask(stream=True, messages="x" * 300), dialect, raw, reader, **more)
    assert told.output is not None
    return told.output


def test_frames_with_many_words_count_by_their_words() -> None:
    assert output(frames(*[{"content": "a"}] * 9)) == 9, "a frame is a token at least"
    assert output(frames({"content": " lantern" * 30})) == 80
    assert output(frames({"content": "世界" * 15})) == 30
    assert output(frames({"reasoning_content": " lantern" * 30, "reasoning": " lantern" * 30})) == 80, (
        "one text under two names"
    )


def test_tool_calls_sound_and_images_count_too() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "weather", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"city": "x"}'}}
    assert output(frames({"tool_calls": [call]}, {"tool_calls": [more]})) == CALL + 7
    assert output(frames({"functionCall": {"name": "weather", "args": {"days": 3}}}, dialect="gemini"), "gemini") > CALL
    assert output(frames({"audio": {"id": "a", "data": "AAAA" * 8000}})) == 1 + 10, "a frame and 20 tokens a second of PCM16"
    assert output(frames({"inlineData": {"data": "A" * 9000}}, dialect="gemini"), "gemini") == 1 + PICTURE


def test_hidden_thoughts_may_be_as_long_as_the_limit() -> None:
    raw = frames({"content": "hi"})
    assert output(raw, hidden=True) == DEFAULT_OUTPUT
    reader = reader_of("openai")
    x = ask(stream=True, messages="x", max_tokens=77)
    assert counted(x, "openai", raw, reader, True).output == 77
    assert counted(x, "openai", [], reader).output == 77, "nothing came: all of it may have been made"


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        ("gpt-4.1", {}, False), ("gpt-5-mini", {}, True), ("openai/o3", {}, True), ("grok-4-fast", {}, True),
        ("gpt-5", {"reasoning_effort": "none"}, False), ("claude-x", {"thinking": {"type": "enabled"}}, True),
        ("gpt-4.1", {"reasoning": {"effort": "high"}}, True), ("claude-x", {"thinking": {"type": "disabled"}}, False),
    ],
)  # fmt: skip
def test_whether_a_model_thinks_unseen(model: str, body: dict[str, Any], said: bool) -> None:
    assert thinks(ask(**body), "openai", [], Endpoint("m", "openai_compatible", model)) is said


def test_a_summary_of_thoughts_is_a_sign_of_more() -> None:
    claude = Endpoint("m", "anthropic", "claude-x")
    assert thinks(ask(), "anthropic", [b'data: {"delta":{"type":"thinking_delta"}}'], claude)
    assert thinks(ask(), "openai", [b'{"delta":{"reasoning_content":"hm"}}'], claude)
    assert not thinks(ask(), "openai", [b'{"delta":{"reasoning_content":"hm"}}'], PLAIN), "which shows all of it"


def test_what_was_told_in_the_middle_is_completed() -> None:
    told = Usage(500, 1, cached=400, cache_write=50)
    assert completed(told, Usage(90, 30)) == Usage(500, 30, cached=400, cache_write=50)
    assert completed(Usage(500, 40, reasoning=35), Usage(90, 30)).output == 65
    assert completed(Usage(0, 0), Usage(90, 30)).input == 90


def test_pictures_in_a_request_count_by_the_piece_and_not_by_their_bytes() -> None:
    parts = json.dumps(
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}]}]
    )
    told = counted(ask(messages=json.loads(parts)), "openai", [], None)
    assert told.input is not None
    assert IMAGE <= told.input < IMAGE + 100


@pytest.mark.parametrize(
    ("body", "model", "said"),
    [
        ({}, "m", False), ({}, "m:online", True), ({"web_search_options": {}}, "m", True), ({"plugins": []}, "m", False),
        ({"tools": [{"type": "function"}]}, "m", False), ({"tools": [{"type": "web_search"}]}, "m", True),
        ({"search_parameters": None}, "m", False),
    ],
)  # fmt: skip
def test_tools_that_an_endpoint_runs_uncounted(body: dict[str, Any], model: str, said: bool) -> None:
    endpoint = Endpoint("m", "openai_compatible", model)
    assert ran_unseen(ask(**body), "openai", endpoint) is said
    assert not ran_unseen(ask(**body), "openai", Endpoint("m", "anthropic", model)), "which counts them"
