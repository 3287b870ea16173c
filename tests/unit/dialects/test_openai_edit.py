import json
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import Blocked
from noria.dialects.openai_answer import edit_answer
from noria.dialects.openai_edit import StreamEditor
from noria.dialects.openai_stream import DONE, StreamReader, assemble, is_done, is_usage_only
from noria.dialects.sse import FrameSplitter, data_of, frame_end

TOP = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "gpt", "system_fingerprint": "fp"}


def frame(*choices, **top):
    return b"data: " + json.dumps(TOP | {"choices": list(choices)} | top, ensure_ascii=False).encode() + b"\n\n"


def choice(delta, index=0, finish=None, **more):
    return {"index": index, "delta": delta, "finish_reason": finish} | more


class Identity:
    held = 0

    def feed(self, text):
        return text

    def flush(self):
        return ""


class Replacer:
    """Replaces a word, holding back what may become it: any chunking gives the same text."""

    def __init__(self, word="Ada", by="XX"):
        self.word, self.by, self.kept = word, by, ""

    @property
    def held(self):
        return len(self.kept)

    def feed(self, text):
        whole = (self.kept + text).replace(self.word, self.by)
        keep = next((n for n in range(len(self.word) - 1, 0, -1) if whole.endswith(self.word[:n])), 0)
        self.kept = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def flush(self):
        kept, self.kept = self.kept, ""
        return kept


class Hoarder:
    """Holds everything until the end."""

    def __init__(self):
        self.kept = ""

    @property
    def held(self):
        return len(self.kept)

    def feed(self, text):
        self.kept += text
        return ""

    def flush(self):
        kept, self.kept = self.kept, ""
        return kept[::-1]


def run(stream, open, cuts=()):
    editor, splitter = StreamEditor(open), FrameSplitter()
    out = []
    last = 0
    for cut in [*sorted(c % (len(stream) + 1) for c in cuts), len(stream)]:
        block, at = splitter.block(stream[last:cut]), 0
        while at < len(block):
            start = at
            at, frames = editor.skim(block, start)
            if at == start:
                at = frame_end(block, start)
                frames = editor.edit(block[start:at])
            out += frames
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


def test_a_frame_waits_for_its_text_and_then_leaves_with_its_own_bytes():
    frames = [
        frame(choice({"role": "assistant", "content": "A"})),
        frame(choice({"content": "d"}, logprobs={"content": [{"token": "d"}]}), obfuscation="x9"),
        frame(choice({"content": "o"}), usage={"prompt_tokens": 1}),
        frame(choice({"content": 'be \\ "é" 好😀'})),
        frame(choice({"content": "."})),
    ]
    editor, left = StreamEditor(lambda i, c: Replacer()), []
    for each in frames:
        left.append(editor.edit(each))
    assert left == [[], [], frames[:3], [frames[3]], [frames[4]]]


def test_a_frame_that_still_says_who_speaks_or_counts_tokens_stays_when_its_text_goes():
    stream = frame(choice({"role": "assistant", "content": "A"})) + frame(choice({"content": "da"}), usage={"prompt_tokens": 1})
    first, second = run(stream, lambda i, c: Replacer(by=""))
    assert json.loads(data_of(first))["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert json.loads(data_of(second)) == TOP | {"choices": [choice({"content": ""})], "usage": {"prompt_tokens": 1}}


def test_only_the_frames_of_what_changed_lose_their_bytes():
    said = ["One", " two", " A", "da", "!", " three ", "Ad"]
    frames = [frame(choice({"content": text})) for text in said]
    out = run(b"".join(frames), lambda i, c: Replacer())
    assert out[:2] == frames[:2]
    assert out[3:] == frames[4:]
    assert json.loads(data_of(out[2]))["choices"] == [choice({"content": " XX"})]


def test_a_frame_of_which_a_part_may_leave_is_said_in_two():
    first, second, third = run(
        frame(choice({"content": "Hello A"})) + frame(choice({"content": "b"})), lambda i, c: Replacer(), [90]
    )
    assert [json.loads(data_of(f))["choices"][0]["delta"]["content"] for f in (first, second, third)] == ["Hello ", "A", "b"]


def test_the_reader_is_told_of_frames_that_are_taken_unread():
    reader = StreamReader()
    editor = StreamEditor(lambda i, c: Replacer(), reader)
    first, rest = frame(choice({"content": "a"})), frame(choice({"content": "b"})) * 3
    reader.read(first)
    editor.edit(first)
    assert editor.skim(rest + frame(choice({}, finish="stop")), 0) == (len(rest), [rest[: len(rest) // 3]] * 3)
    assert reader.content_frames == 4


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"choices":[{"index":0,"delta":{"content":"a","c\\u006fntent":"a"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"message":{"content":"a"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"a"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"a"}]}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":0,"function":{"arguments":"a"}}]}}]}\n\n',
        b'event: x\ndata: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n',
    ],
)
def test_a_frame_that_may_say_more_than_one_text_is_no_mould_for_others(odd):
    editor = StreamEditor(lambda i, c: Identity())
    editor.edit(odd)
    assert editor.skim(odd, 0) == (0, [])


def test_a_frame_that_only_looks_like_the_last_one_is_read_as_a_whole():
    like = frame(choice({"content": "a"}))
    editor = StreamEditor(lambda i, c: Identity())
    editor.edit(like)
    head, tail = like.split(b'"a"')
    for text in (b'a","content":"b', b"a\\", b"\xff", b"a\x01"):
        forged = head + b'"' + text + b'"' + tail
        assert editor.skim(forged + like, 0) == (0, []), text
    spoken = head + b'"\\u4f60\\ud83d\\ude00\\n\\""' + tail
    assert editor.skim(spoken + like, 0) == (len(spoken + like), [spoken, like])


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
