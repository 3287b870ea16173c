from __future__ import annotations

import json

import pytest

from noria.dialects.openai_replay import as_stream, as_whole, ending
from noria.dialects.openai_stream import StreamReader
from noria.dialects.sse import FrameSplitter

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
]


def chat(*choices: dict, **more) -> bytes:
    top = {"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m"}
    return json.dumps({**top, "choices": list(choices), "usage": USAGE, **more}).encode()


def said(text: str | None, finish: str = "stop", index: int = 0, **more) -> dict:
    message = {"role": "assistant", "content": text, **more}
    return {"index": index, "message": message, "finish_reason": finish, "logprobs": None}


def chunk(finish: str | None = None, index: int = 0, **delta) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "s", "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "answer",
    [
        chat(said("Hello, 世界")),
        chat(said("a"), said("b", index=1)),
        chat(said(None, "tool_calls", tool_calls=CALLS)),
        chat(said("why", reasoning_content="because"), system_fingerprint="fp"),
    ],
    ids=["text", "two choices", "tool calls", "reasoning"],
)
def test_a_whole_answer_as_a_stream_and_back_is_the_same_answer(answer):
    back = json.loads(as_whole(as_stream(answer)))
    want = json.loads(answer)
    for choice in [*back["choices"], *want["choices"]]:
        choice.pop("logprobs", None)
    assert back == want


def test_a_legacy_completion_survives_too():
    body = {
        "id": "x",
        "object": "text_completion",
        "model": "m",
        "choices": [{"index": 0, "text": "t", "finish_reason": "stop"}],
    }
    back = json.loads(as_whole(as_stream(json.dumps(body).encode())))
    assert (back["object"], back["choices"][0]["text"], back["choices"][0]["finish_reason"]) == ("text_completion", "t", "stop")


def test_a_replayed_stream_has_the_usage_in_a_frame_of_its_own_and_ends_in_done():
    frames = FrameSplitter().feed(as_stream(chat(said("hi"))))
    reader = StreamReader()
    kinds = [reader.read(frame) for frame in frames]
    assert frames[-1] == DONE
    assert reader.done
    assert reader.usage is not None
    assert (reader.usage.input, reader.usage.output) == (3, 2)
    assert kinds[-2] == 2, "USAGE_ONLY, which is dropped for those who did not ask"
    assert reader.finish_reason == "stop"


@pytest.mark.parametrize("finish", ["stop", "tool_calls", "function_call"])
def test_an_answer_that_came_to_its_end_is_complete(finish):
    assert ending(chat(said("x", finish)), stream=False).complete
    assert ending(chunk(content="x") + chunk(finish) + DONE, stream=True).complete


@pytest.mark.parametrize("finish", ["length", "content_filter", "weird", None])
def test_one_that_was_cut_is_not(finish):
    assert not ending(chat(said("x", finish)), stream=False).complete
    assert not ending(chunk(content="x") + chunk(finish) + DONE, stream=True).complete


def test_one_choice_that_was_cut_makes_the_answer_incomplete():
    assert not ending(chat(said("x"), said("y", "length", 1)), stream=False).complete
    assert not ending(chunk("stop", content="x") + chunk(index=1, content="y") + DONE, stream=True).complete


@pytest.mark.parametrize(
    "raw",
    [
        chunk("stop", content="x"),
        chunk(content="x") + b'data: {"error": {"message": "no"}}\n\n' + chunk("stop") + DONE,
        b"data: {broken\n\n" + DONE,
        DONE,
        b"",
    ],
    ids=["no DONE", "error inside", "garbage", "nothing said", "empty"],
)
def test_a_stream_that_went_wrong_is_not_complete(raw):
    assert not ending(raw, stream=True).complete


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b'{"choices": []}', b'{"error": {}}', b"\xff"])
def test_what_is_no_answer_is_not_complete(raw):
    assert not ending(raw, stream=False).complete


def test_what_is_no_answer_cannot_be_streamed():
    with pytest.raises(ValueError, match="not an answer"):
        as_stream(b'{"choices": 3}')
