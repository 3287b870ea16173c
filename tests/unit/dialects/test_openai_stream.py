import json
import random

import pytest

from noria.contracts.exchange import Usage
from noria.dialects.openai_stream import DONE, StreamReader, assemble, error_of, is_content, is_usage_only
from noria.dialects.sse import NEAR_END, FrameSplitter, frame_end

TOP = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "gpt", "system_fingerprint": "fp"}


def frame(*choices, **top):
    return b"data: " + json.dumps(TOP | {"choices": list(choices)} | top, ensure_ascii=False).encode() + b"\n\n"


def choice(delta, index=0, finish=None, **more):
    return {"index": index, "delta": delta, "finish_reason": finish} | more


@pytest.mark.parametrize(
    ("made", "content"),
    [
        (frame(choice({"role": "assistant", "content": ""})), False),
        (frame(choice({"role": "assistant"})), False),
        (frame(choice({"content": "a"})), True),
        (frame(choice({"reasoning_content": "a"})), True),
        (frame(choice({"reasoning": "a"})), True),
        (frame(choice({"refusal": "a"})), True),
        (frame(choice({"tool_calls": [{"index": 0}]})), True),
        (frame(choice({"function_call": {"name": "f"}})), True),
        (frame(choice({}, finish="stop")), True),
        (frame({"index": 0, "text": "a", "finish_reason": None}), True),
        (frame({"index": 0, "text": "", "finish_reason": None}), False),
        (frame(usage={"prompt_tokens": 1}), False),
        (b'data: {"error":{"message":"\\"content\\":\\"x\\""}}\n\n', False),
        (b": ping\n\n", False),
        (DONE, False),
        (b"data: {garbage\n\n", False),
    ],
)
def test_content_is_told_from_the_rest(made, content):
    assert is_content(made) is content


def test_the_usage_frame_is_told_from_frames_that_also_have_usage():
    assert is_usage_only(frame(usage={"prompt_tokens": 1}))
    assert not is_usage_only(frame(usage=None))
    assert not is_usage_only(frame(choice({"content": '"usage"'}), usage={"prompt_tokens": 1}))


def test_error_frames_are_recognised():
    assert json.loads(error_of(b'data: {"error":{"message":"x"}}\n\n')) == {"message": "x"}
    assert error_of(frame(choice({"content": '"error"'}), error=None)) is None


def test_the_reader_collects_the_facts():
    reader = StreamReader()
    stream = [
        b": ping\n\n",
        frame(choice({"role": "assistant", "content": ""})),
        frame(choice({"content": "a"}), usage=None),
        frame(choice({"content": "b"})),
        frame(choice({}, finish="stop")),
        frame(usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}),
    ]
    for each in stream[:2]:
        reader.read(each)
    assert not reader.started
    for each in stream[2:]:
        reader.read(each)
    assert (reader.id, reader.model, reader.finish_reason) == ("c1", "gpt", "stop")
    assert (reader.usage, reader.content_frames, reader.done) == (Usage(3, 2), 3, False)
    reader.read(DONE)
    assert reader.done


def passed(block):
    """A reader that passed over what says mere text, as a relay does, and the frames that it read."""
    reader, at, read = StreamReader(), 0, []
    while at < len(block):
        if reader.started and (stop := reader.skim(block, at)) > at:
            at = stop
            continue
        end = frame_end(block, at)
        reader.read(block[at:end])
        read.append(block[at:end])
        at = end
    return reader, read


def read_all(block):
    reader = StreamReader()
    for each in FrameSplitter().feed(block):
        reader.read(each)
    return reader


def facts(reader):
    return reader.id, reader.model, reader.finish_reason, reader.usage, reader.final, reader.done


FRAMES = [
    *[frame(choice({"content": text})) for text in ("a", '"usage":{"prompt_tokens":', "DONE]", 'finish_reason":"stop"')],
    frame(choice({"content": "b"}, index=1), usage=None),
    frame(choice({}, finish="stop")),
    frame(choice({}, index=1, finish="length")),
    frame(choice({"content": "c"}, finish="")),
    frame(choice({"content": "c"}), usage={"prompt_tokens": 3, "completion_tokens": 1}),
    frame(choice({}, finish="tool_calls"), usage={"completion_tokens": 7}),
    frame(usage={"prompt_tokens": 3, "completion_tokens": 2}),
    b": keep-alive\n\n",
]
DENSE = [b"data: " + json.dumps(json.loads(f[6:]), separators=(",", ":")).encode() + b"\n\n" for f in FRAMES[:-1]]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_passing_over_frames_finds_the_same_facts_as_reading_each(end):
    chance = random.Random(7)
    for _ in range(300):
        frames = chance.choice([FRAMES, DENSE])
        stream = b"".join(chance.choices(frames, k=chance.randint(1, 12))) + chance.choice([b"", DONE])
        block = stream.replace(b"\n", end)
        assert facts(passed(block)[0]) == facts(read_all(block)), block


def test_what_says_mere_text_is_not_read_and_the_end_of_a_choice_is_found_all_the_same():
    text, stop, usage = frame(choice({"content": "a"})), frame(choice({}, finish="stop")), frame(usage={"prompt_tokens": 1})
    reader, read = passed(text * 50 + stop + usage + DONE)
    assert read == [text, usage, DONE]
    assert (reader.finish_reason, reader.content_frames) == ("stop", 51)


def test_the_end_of_a_stream_is_looked_for_near_the_end_of_what_came():
    text = frame(choice({"content": "a"}))
    far = b": " + b"x" * NEAR_END + b"\n\n"
    assert passed(text + DONE + b": bye\n\n")[0].done
    assert not passed(text + DONE + far)[0].done


def test_the_reader_takes_garbage_calmly():
    reader = StreamReader()
    for each in (b"data: {x\n\n", b"data: 5\n\n", b'data: {"choices":5}\n\n', b"\n\n", b'data: {"id":3,"choices":null}\n\n'):
        reader.read(each)
    assert (reader.id, reader.content_frames, reader.usage) == ("", 0, None)


def test_a_recorded_stream_is_joined_into_the_whole_answer():
    stream = (
        frame(choice({"role": "assistant", "content": "", "reasoning_content": "hm"}))
        + frame(choice({"content": "Hi"}, logprobs={"content": [{"token": "Hi"}]}))
        + frame(choice({"content": "!"}, logprobs={"content": [{"token": "!"}]}))
        + frame(
            choice({"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}]})
        )
        + frame(choice({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}))
        + frame(choice({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}))
        + frame(choice({}, finish="tool_calls"))
        + frame(usage={"prompt_tokens": 1})
        + DONE
    )
    assert assemble(stream) == TOP | {
        "object": "chat.completion",
        "usage": {"prompt_tokens": 1},
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": "Hi!",
                    "reasoning_content": "hm",
                    "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
                },
                "logprobs": {"content": [{"token": "Hi"}, {"token": "!"}]},
            }
        ],
    }


def test_joining_keeps_an_error_and_survives_garbage():
    got = assemble(frame(choice({"content": "a"})) + b"data: {x\n\n" + b'data: {"error":{"message":"cut"}}\n\n')
    assert got["error"] == {"message": "cut"}
    assert got["choices"][0]["message"]["content"] == "a"
    assert assemble(b"")["choices"] == []


def test_a_stream_with_odd_choices_is_joined_without_them() -> None:
    stream = b'data: {"choices":[1,{"index":"x","delta":{"content":"a"}}]}\n\ndata: {"choices":7}\n\n'
    assert assemble(stream)["choices"] == [
        {"index": 0, "finish_reason": None, "message": {"role": "assistant", "content": "a"}}
    ]
