import json
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import Blocked
from noria.contracts.exchange import Usage
from noria.dialects.openai_answer import edit_answer
from noria.dialects.openai_stream import (
    DONE,
    StreamEditor,
    StreamReader,
    assemble,
    error_of,
    is_content,
    is_done,
    is_usage_only,
)
from noria.dialects.sse import FrameSplitter, data_of

TOP = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "gpt", "system_fingerprint": "fp"}


def frame(*choices, **top):
    return b"data: " + json.dumps(TOP | {"choices": list(choices)} | top, ensure_ascii=False).encode() + b"\n\n"


def choice(delta, index=0, finish=None, **more):
    return {"index": index, "delta": delta, "finish_reason": finish} | more


class Identity:
    def feed(self, text):
        return text

    def flush(self):
        return ""


class Replacer:
    """Replaces a word, holding back what may become it: any chunking gives the same text."""

    def __init__(self, word="Ada", by="XX"):
        self.word, self.by, self.held = word, by, ""

    def feed(self, text):
        whole = (self.held + text).replace(self.word, self.by)
        keep = next((n for n in range(len(self.word) - 1, 0, -1) if whole.endswith(self.word[:n])), 0)
        self.held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def flush(self):
        held, self.held = self.held, ""
        return held


class Hoarder:
    """Holds everything until the end."""

    def __init__(self):
        self.held = ""

    def feed(self, text):
        self.held += text
        return ""

    def flush(self):
        held, self.held = self.held, ""
        return held[::-1]


def run(stream, open, cuts=()):
    editor, splitter = StreamEditor(open), FrameSplitter()
    out = []
    last = 0
    for cut in [*sorted(c % (len(stream) + 1) for c in cuts), len(stream)]:
        for each in splitter.feed(stream[last:cut]):
            out += editor.edit(each)
        last = cut
    assert splitter.rest() == b""
    return out + editor.end()


def texts(frames):
    """Concatenated text per (choice, channel)."""
    got = defaultdict(str)
    for each in frames:
        data = data_of(each)
        if not data or data == b"[DONE]":
            continue
        for c in json.loads(data)["choices"]:
            delta = c.get("delta") or {"content": c.get("text")}
            for key, channel in (("content", "content"), ("refusal", "refusal"), ("reasoning_content", "reasoning")):
                got[c["index"], channel] += delta.get(key) or ""
            for call in delta.get("tool_calls") or ():
                for place, key, inner in (("tool", "function", "arguments"), ("custom", "custom", "input")):
                    got[c["index"], f"{place}.{call['index']}"] += call.get(key, {}).get(inner) or ""
    return {key: text for key, text in got.items() if text}


def stream_of(answer, seed):
    """A stream that says `answer` ((choice, channel) → text) in random pieces, channels interleaved."""
    rng = random.Random(seed)
    frames = [frame(choice({"role": "assistant", "content": ""}, i)) for i in sorted({i for i, _ in answer})]
    left = dict(answer)
    while left:
        key = rng.choice(sorted(left))
        size = rng.randint(1, 4)
        piece, rest = left[key][:size], left[key][size:]
        index, channel = key
        if channel.startswith("tool."):
            delta = {"tool_calls": [{"index": int(channel[5:]), "function": {"arguments": piece}}]}
        elif channel.startswith("custom."):
            delta = {"tool_calls": [{"index": int(channel[7:]), "type": "custom", "custom": {"input": piece}}]}
        else:
            delta = {"reasoning_content" if channel == "reasoning" else channel: piece}
        if rest:
            left[key] = rest
        else:
            del left[key]
        done = not any(i == index for i, _ in left)
        together = done and rng.random() < 0.5
        frames.append(frame(choice(delta, index, "stop" if together else None, logprobs={"content": []})))
        if done and not together:
            frames.append(frame(choice({}, index, "stop")))
        if rng.random() < 0.2:
            frames.append(b": keep-alive\n\n")
    return b"".join(frames) + frame(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}) + DONE


ANSWERS = st.dictionaries(
    st.tuples(st.integers(0, 1), st.sampled_from(["content", "reasoning", "refusal", "tool.0", "tool.1", "custom.2"])),
    st.text(st.sampled_from('Ada é你\\"'), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


@settings(max_examples=120, derandomize=True, deadline=None)
@given(ANSWERS, st.integers(0, 10_000), st.lists(st.integers(0, 5000), max_size=8), st.sampled_from([Replacer, Hoarder]))
def test_any_chunking_gives_the_texts_that_editing_the_whole_answer_gives(answer, seed, cuts, kind):
    stream = stream_of(answer, seed)
    transducers = {}

    def whole(text):
        transducer = kind()
        return transducer.feed(text) + transducer.flush()

    frames = run(stream, lambda i, channel: transducers.setdefault((i, channel), kind()), cuts)
    assert texts(frames) == {key: whole(text) for key, text in answer.items()}
    assert frames[-1] == DONE
    assert is_usage_only(frames[-2])
    for index in {i for i, _ in answer}:
        finished = [
            bool(c["finish_reason"])
            for f in frames
            if data_of(f) and not is_done(f)
            for c in json.loads(data_of(f))["choices"]
            if c["index"] == index
        ]
        assert finished.count(True) == 1
        assert finished[-1], "nothing of a choice follows its finish_reason"


@settings(max_examples=80, derandomize=True, deadline=None)
@given(ANSWERS, st.integers(0, 10_000), st.lists(st.integers(0, 5000), max_size=8))
def test_identity_transducers_keep_every_byte(answer, seed, cuts):
    stream = stream_of(answer, seed)
    assert b"".join(run(stream, lambda i, channel: Identity(), cuts)) == stream
    assert b"".join(run(stream, lambda i, channel: None, cuts)) == stream


def test_an_edited_stream_agrees_with_the_edited_whole_answer():
    stream = (
        frame(choice({"role": "assistant", "content": "I am A"}))
        + frame(choice({"content": "da."}))
        + frame(choice({}, finish="stop"))
        + DONE
    )

    def edit(index, channel, text):
        one = Replacer()
        return one.feed(text) + one.flush()

    whole = json.loads(edit_answer(json.dumps(assemble(stream)).encode(), edit))
    streamed = assemble(b"".join(run(stream, lambda i, channel: Replacer())))
    assert streamed == whole
    assert streamed["choices"][0]["message"]["content"] == "I am XX."


def test_only_the_text_of_an_edited_frame_changes():
    before = frame(
        choice({"role": "assistant", "content": "Ada!"}, logprobs={"content": [{"token": "Ada"}]}, x=[1.0]), extra={"k": 1}
    )
    [after] = run(before, lambda i, channel: Replacer())
    expected = TOP | {"choices": [choice({"role": "assistant", "content": "XX!"}, logprobs=None, x=[1.0])], "extra": {"k": 1}}
    assert json.loads(data_of(after)) == expected


def test_held_back_text_leaves_before_the_finish_reason_in_a_chunk_like_the_others():
    stream = frame(choice({"content": "Ad"}), usage=None) + frame(choice({}, finish="length"), usage=None) + DONE
    extra, last, done = run(stream, lambda i, channel: Replacer())
    assert json.loads(data_of(extra)) == TOP | {"choices": [choice({"content": "Ad"})], "usage": None}
    assert last == frame(choice({}, finish="length"), usage=None)
    assert done == DONE


def test_nothing_leaves_after_done():
    frames = run(frame(choice({"content": "Ad"})) + DONE, lambda i, channel: Replacer())
    assert frames[-1] == DONE


def test_the_end_of_a_choice_stays_even_where_its_text_goes():
    [last] = run(frame(choice({"content": "Ada"}, finish="stop")), lambda i, channel: Replacer(by=""))
    assert json.loads(data_of(last))["choices"] == [choice({"content": ""}, finish="stop")]


def test_held_back_text_leaves_at_done_and_at_the_end_of_a_cut_stream():
    assert texts(run(frame(choice({"content": "Ad"})) + DONE, lambda i, c: Replacer())) == {(0, "content"): "Ad"}
    assert texts(run(frame(choice({"content": "Ad"})), lambda i, c: Replacer())) == {(0, "content"): "Ad"}


def test_frames_with_nothing_left_to_say_are_dropped():
    stream = (
        frame(choice({"content": "A"}))
        + frame(choice({"content": "d", "refusal": None}))
        + frame(choice({"content": "a"}, finish="stop"))
    )
    assert len(run(stream, lambda i, channel: Replacer())) == 1


def test_a_frame_that_still_says_who_speaks_or_counts_tokens_stays():
    role = run(frame(choice({"role": "assistant", "content": "A"})), lambda i, c: Replacer())
    assert json.loads(data_of(role[0]))["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    used = run(frame(choice({"content": "A"}), usage={"prompt_tokens": 1}), lambda i, c: Replacer())
    assert json.loads(data_of(used[0]))["usage"] == {"prompt_tokens": 1}


def test_legacy_completions_are_edited_too():
    stream = b"".join(
        frame({"index": 0, "text": t, "logprobs": None, "finish_reason": f})
        for t, f in [("A", None), ("da", None), ("A", "stop")]
    )
    frames = run(stream + DONE, lambda i, channel: Replacer())
    assert texts(frames) == {(0, "content"): "XXA"}
    assert assemble(b"".join(frames))["choices"] == [{"index": 0, "finish_reason": "stop", "text": "XXA"}]


def test_a_cumulative_message_beside_the_delta_does_not_betray_what_was_edited():
    stream = frame(choice({"content": "Ada"}, message={"content": "Ada"})) + frame(
        choice({"content": "!"}, message={"content": "Ada!"})
    )
    assert b"Ada" not in b"".join(run(stream, lambda i, channel: Replacer()))


def test_reasoning_blocks_do_not_betray_edited_reasoning():
    stream = frame(choice({"reasoning": "Ada", "reasoning_details": [{"text": "Ada"}]})) + frame(
        choice({"thinking_blocks": [{"thinking": "Ada"}]})
    )
    assert b"Ada" not in b"".join(run(stream, lambda i, channel: Replacer()))


def test_a_block_passes_through_to_the_caller():
    class Blocker(Identity):
        def feed(self, text):
            raise Blocked("no", check="x", side="output")

    with pytest.raises(Blocked):
        run(frame(choice({"content": "a"})), lambda i, channel: Blocker())


@pytest.mark.parametrize("data", [b"data: {nonsense\n\n", b"data: []\n\n", b'data: {"choices":[5]}\n\n'])
def test_a_frame_that_cannot_be_judged_is_an_error(data):
    with pytest.raises(ValueError, match="no chunk"):
        StreamEditor(lambda i, channel: Identity()).edit(data)


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
