import json

import msgspec
import pytest

from noria.contracts.exchange import Answer, Usage
from noria.dialects import openai_answer as oa

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello Ada",
                "refusal": None,
                "reasoning_content": "think Ada",
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"who":"Ada"}'}},
                    {"id": "b", "type": "custom", "custom": {"name": "g", "input": "Ada"}},
                ],
            },
            "logprobs": {"content": [{"token": "Ada"}]},
            "finish_reason": "stop",
        },
        {"index": 1, "message": {"role": "assistant", "content": None, "refusal": "No, Ada"}, "finish_reason": "length"},
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 2}},
    "service_tier": "default",
}


def raw(value):
    return msgspec.json.encode(value)


def test_the_facts_of_a_chat_answer_are_read():
    got = oa.read_answer("chat", raw(CHAT))
    assert got == Answer("chatcmpl-1", "gpt", "stop", Usage(5, 7, 2, 0))


def test_the_finish_reason_is_that_of_the_first_choice_by_index():
    body = CHAT | {"choices": CHAT["choices"][::-1]}
    assert oa.read_answer("chat", raw(body)).finish_reason == "stop"
    odd = CHAT | {"id": 5, "choices": CHAT["choices"][::-1]}
    assert oa.read_answer("chat", raw(odd)).finish_reason == "stop"


def test_the_facts_of_the_other_kinds_are_read():
    legacy = {"id": "c", "model": "m", "choices": [{"index": 0, "text": "t", "finish_reason": "length"}]}
    assert oa.read_answer("completion", raw(legacy)) == Answer("c", "m", "length")
    vectors = {"model": "e", "data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    assert oa.read_answer("embedding", raw(vectors)) == Answer("", "e", "", Usage(4, 0))


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"choices":[]}', b'{"choices":5}', b'{"error":{"message":"x"}}']
)
@pytest.mark.parametrize("kind", ["chat", "embedding"])
def test_what_is_no_answer_is_refused(kind, body):
    with pytest.raises(ValueError, match="not an answer"):
        oa.read_answer(kind, body)


def test_odd_fields_are_taken_as_absent():
    body = {
        "id": 5,
        "model": None,
        "choices": [{"index": None, "message": {"content": 3}, "finish_reason": 1}],
        "usage": {"prompt_tokens": "x"},
    }
    assert oa.read_answer("chat", raw(body)) == Answer()


@pytest.mark.parametrize(
    ("wire", "usage"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, Usage(1, 2)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}}, Usage(9, 2, 0, 1)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "total_tokens": 15,
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
            Usage(9, 6, 0, 4),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 3}, Usage(9, 2, 3)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 3, "prompt_tokens_details": None}, Usage(9, 2, 3)),
        ({"total_tokens": 9}, None),
        ({}, None),
        (None, None),
    ],
)
def test_usage_means_the_same_for_every_vendor(wire, usage):
    assert oa.read_usage(raw(wire)) == usage


def test_an_answer_that_is_not_edited_keeps_its_very_bytes():
    body = json.dumps(CHAT, indent=2).encode()
    assert oa.edit_answer(body, lambda choice, channel, text: text) is body


def test_edits_reach_every_channel_and_nothing_else():
    seen = []

    def edit(choice, channel, text):
        seen.append((choice, channel))
        return text.replace("Ada", "X")

    got = json.loads(oa.edit_answer(raw(CHAT), edit))
    assert sorted(seen) == [(0, "content"), (0, "custom.1"), (0, "reasoning"), (0, "tool.0"), (1, "refusal")]
    expected = json.loads(
        raw(CHAT).replace(b"Hello Ada", b"Hello X").replace(b"think Ada", b"think X").replace(b"No, Ada", b"No, X")
    )
    expected["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = '{"who":"X"}'
    expected["choices"][0]["message"]["tool_calls"][1]["custom"]["input"] = "X"
    expected["choices"][0]["logprobs"] = None
    assert got == expected


def test_values_beside_an_edit_keep_their_spelling():
    body = b'{"big":123456789012345678901234567890,"choices":[{"index":0,"text":"a","score":1.50}]}'
    got = oa.edit_answer(body, lambda choice, channel, text: "b")
    assert got == b'{"big":123456789012345678901234567890,"choices":[{"index":0,"text":"b","score":1.50}]}'


def test_reasoning_sent_under_two_names_is_edited_once_in_both():
    message = {"reasoning": "Ada", "reasoning_content": "Ada", "reasoning_details": [{"text": "Ada"}], "content": "x"}
    seen = []

    def edit(choice, channel, text):
        seen.append(text)
        return text.replace("Ada", "X")

    got = json.loads(oa.edit_answer(raw({"choices": [{"message": message}]}), edit))
    assert got["choices"][0]["message"] == {"reasoning": "X", "reasoning_content": "X", "content": "x"}
    assert sorted(seen) == ["Ada", "x"]


def test_content_in_parts_is_one_text():
    parts = [{"type": "text", "text": "A"}, {"type": "reference", "ids": [1]}, {"type": "text", "text": "da"}]
    got = json.loads(
        oa.edit_answer(raw({"choices": [{"message": {"content": parts}}]}), lambda c, ch, t: t.replace("Ada", "X"))
    )
    assert got["choices"][0]["message"]["content"] == [parts[0] | {"text": "X"}, parts[1], parts[2] | {"text": ""}]


@pytest.mark.parametrize("said", ["Ada", "other"])
def test_reasoning_inside_the_content_is_reasoning(said):
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Ada?"}]}, {"type": "text", "text": said}]
    seen = []

    def edit(choice, channel, text):
        seen.append((channel, text))
        return text.replace("Ada", "X")

    got = json.loads(oa.edit_answer(raw({"choices": [{"message": {"content": parts}}]}), edit))
    assert sorted(seen) == [("content", said), ("reasoning", "Ada?")]
    assert got["choices"][0]["message"]["content"] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "X?"}]},
        {"type": "text", "text": said.replace("Ada", "X")},
    ]


def test_editing_what_is_no_answer_is_an_error():
    with pytest.raises(ValueError, match="not an answer"):
        oa.edit_answer(b"<html>", lambda c, ch, t: t)


def test_vectors_survive_base64_and_are_little_endian():
    assert oa.encode_vector([1.0]) == "AACAPw=="
    assert oa.decode_vector(oa.encode_vector([0.5, -2.0, 0.0])) == [0.5, -2.0, 0.0]
    with pytest.raises(ValueError, match="base64"):
        oa.decode_vector("AAA=")


def test_embeddings_are_written_in_both_formats():
    plain = json.loads(oa.write_embeddings([[1.0, 2.0]], "e", 3))
    assert plain["data"] == [{"object": "embedding", "index": 0, "embedding": [1.0, 2.0]}]
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    coded = json.loads(oa.write_embeddings([[1.0, 2.0]], "e", 3, as_base64=True))
    assert oa.decode_vector(coded["data"][0]["embedding"]) == [1.0, 2.0]


def test_models_have_the_shape_that_clients_read():
    one = {"id": "a/b", "object": "model", "created": 1, "owned_by": "noria"}
    assert json.loads(oa.write_model("a/b", 1)) == one
    assert json.loads(oa.write_models([("a/b", 1)])) == {"object": "list", "data": [one]}
