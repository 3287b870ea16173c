"""`n` and lists of prompts as single requests, and their answers as one."""

import msgspec
import pytest

from noria.contracts.error import RequestError
from noria.dialects.openai_choices import StreamMerger, Tally, merge, split


def body(**fields):
    return {k: msgspec.Raw(msgspec.json.encode(v)) for k, v in fields.items()}


def plain(single):
    return {k: msgspec.json.decode(v) for k, v in single.body.items()}


def test_one_choice_is_left_as_it_came():
    for fields in ({}, {"n": 1}, {"n": None}, {"prompt": "a"}, {"prompt": [1, 2, 3]}, {"prompt": []}):
        given = body(**fields)
        assert [s.body for s in split("completion", given)] == [given]
        assert split("completion", given)[0].body is given


def test_n_becomes_single_requests_with_seeds_of_their_own():
    singles = split("chat", body(n=3, seed=7, messages=[]))
    assert [plain(s) for s in singles] == [{"seed": 7 + i, "messages": []} for i in range(3)]
    assert [s.counts_prompt for s in singles] == [True, False, False]


@pytest.mark.parametrize("prompts", [["a", "b"], [[1, 2], [3]]])
def test_a_list_of_prompts_is_numbered_prompt_by_prompt(prompts):
    singles = split("completion", body(prompt=prompts, n=2))
    assert [plain(s)["prompt"] for s in singles] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    assert [s.counts_prompt for s in singles] == [True, False, True, False]


def test_a_single_prompt_in_a_list_is_counted_like_the_others():
    assert [plain(s) for s in split("completion", body(prompt=["a"]))] == [{"prompt": "a"}]


def test_embeddings_are_never_split():
    given = body(input=["a", "b"], n=5)
    assert [s.body for s in split("embedding", given)] == [given]


@pytest.mark.parametrize("n", [0, -1, 129, 1.5, "2", True])
def test_an_n_out_of_range_is_refused(n):
    with pytest.raises(RequestError) as refused:
        split("chat", body(n=n))
    assert refused.value.param == "n"


def test_too_many_choices_in_all_are_refused():
    with pytest.raises(RequestError, match="128"):
        split("completion", body(n=65, prompt=["a", "b"]))


def answer(text, prompt=10, made=3, cached=2, **more):
    usage = {"prompt_tokens": prompt, "completion_tokens": made, "prompt_tokens_details": {"cached_tokens": cached}}
    return msgspec.json.encode(
        {"id": "i-" + text, "choices": [{"index": 0, "text": text}], "usage": usage, "timings": {}, **more}
    )


def test_answers_merge_with_each_prompt_counted_once_and_every_answer():
    singles = split("completion", body(prompt=["p", "q"], n=2))
    got = msgspec.json.decode(
        merge(singles, [answer("a"), answer("b"), answer("c", prompt=5, cached=0), answer("d", prompt=5)])
    )
    assert [(c["index"], c["text"]) for c in got["choices"]] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    assert got["usage"] == {
        "prompt_tokens": 15,
        "completion_tokens": 12,
        "total_tokens": 27,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert got["id"] == "i-a"
    assert "timings" not in got


def test_an_unknown_usage_makes_the_sum_unknown_and_not_smaller():
    singles = split("chat", body(n=2))
    got = msgspec.json.decode(merge(singles, [answer("a"), msgspec.json.encode({"choices": [{}]})]))
    assert "usage" not in got


@pytest.mark.parametrize("garbage", [b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[1]}'])
def test_an_answer_without_a_choice_is_garbage(garbage):
    with pytest.raises(ValueError):
        merge(split("chat", body(n=2)), [answer("a"), garbage])


def frame(**chunk):
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def test_streams_interleave_under_one_id_with_one_usage_and_one_done():
    out = bytearray()
    merger = StreamMerger(split("chat", body(n=2, stream_options={"include_usage": True})), out.extend)
    first, second = merger.sink(0), merger.sink(1)
    usage = {"prompt_tokens": 4, "completion_tokens": 2}
    for sink, name in ((first, "x"), (second, "y")):
        data = (
            frame(id=name, choices=[{"index": 0, "delta": {"content": name}}])
            + frame(id=name, choices=[], usage=usage)
            + b"data: [DONE]\n\n"
        )
        assert not (merger.started and sink is first)
        sink(data[:25])  # split anywhere
        sink(data[25:])
    assert merger.started
    merger.end()
    frames = bytes(out).split(b"\n\n")
    chunks = [msgspec.json.decode(f.removeprefix(b"data: ")) for f in frames[:-2]]
    assert [(c["choices"][0]["index"], c["choices"][0]["delta"]["content"]) for c in chunks[:2]] == [(0, "x"), (1, "y")]
    assert {c["id"] for c in chunks} == {"x"}
    assert chunks[2]["choices"] == []
    assert chunks[2]["usage"]["completion_tokens"] == 4
    assert chunks[2]["usage"]["prompt_tokens"] == 4
    assert frames[-2:] == [b"data: [DONE]", b""]
    assert len(chunks) == 3


def test_without_asking_there_is_no_usage_frame_and_comments_pass():
    out = bytearray()
    merger = StreamMerger(split("chat", body(n=2)), out.extend)
    merger.sink(0)(b": keep-alive\n\n" + frame(id="x", choices=[], usage={"prompt_tokens": 1, "completion_tokens": 1}))
    merger.end()
    assert bytes(out) == b": keep-alive\n\ndata: [DONE]\n\n"


def test_a_tally_of_nothing_is_zero_and_complete():
    assert Tally().usage["total_tokens"] == 0
    assert Tally().complete
