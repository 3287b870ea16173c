import json
import string

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from noria.contracts.error import RequestError
from noria.contracts.message import Message, Part
from noria.dialects import openai

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def head(kind="chat", **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"} | fields
    return openai.read_head(kind, openai.read_request(json.dumps(body).encode()))


def messages(*items):
    return Raw(json.dumps(items).encode())


@settings(max_examples=150, derandomize=True)
@given(st.dictionaries(st.text(max_size=6), JSON, max_size=6), st.sampled_from([None, 1]), st.booleans())
def test_a_request_is_read_and_written_with_its_values_untouched(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    if "\\ud" in text.decode():
        return
    body = openai.read_request(text)
    assert json.loads(openai.write_request(body)) == value
    assert all(bytes(raw) in text for raw in body.values())


def test_numbers_keep_their_spelling():
    assert openai.write_request(openai.read_request(b'{ "t" : 1.10e0, "n":123456789012345678901234567890 }')) == (
        b'{"t":1.10e0,"n":123456789012345678901234567890}'
    )


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":12,"a":1}',
        b'{"a":{"x":1},"b":2,"a":{"x":2}}',
        b'{ "a" : 1 , "\\u0061" : 2 }',
        b'{"a":"x","b":"\\"a\\":","a":"x"}',
    ],
)
def test_a_key_that_is_there_twice_is_refused_by_name(body):
    with pytest.raises(RequestError, match="'a' is there twice") as e:
        openai.read_request(body)
    assert e.value.code == "invalid_json"


def test_equal_keys_at_different_levels_are_fine():
    assert set(openai.read_request(b'{"a":{"a":1},"b":[{"a":2},{"a":3}]}')) == {"a", "b"}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'"x"', b'{"a":1', b'{"a":1}x', b'{"a":nul}', b'{"a":"\xff"}', b"{'a':1}", b'{"a":"\x01"}']
)
def test_what_is_not_one_json_object_is_refused(body):
    with pytest.raises(RequestError) as e:
        openai.read_request(body)
    assert (e.value.code, e.value.status) == ("invalid_json", 400)


def test_bad_json_is_refused_with_its_position():
    with pytest.raises(RequestError, match="byte 7"):
        openai.read_request(b'{"a":1 x}')


@pytest.mark.parametrize("depth", [openai.DEPTH_LIMIT, 1000, 2_000_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_bombs_are_refused(depth, opening, closing):
    end = b"0" + closing * depth
    with pytest.raises(RequestError, match="nested deeper"):
        openai.read_request(b'{"x":' + opening * depth + end + b"}")


def test_many_brackets_that_do_not_nest_pass():
    flat = b'{"x":"' + b"[{" * 5000 + b'","y":[' + b",".join([b"[[]]"] * 5000) + b"]}"
    deep = b'{"x":' + b"[" * (openai.DEPTH_LIMIT - 1) + b"]" * (openai.DEPTH_LIMIT - 1) + b"}"
    assert set(openai.read_request(flat)) == {"x", "y"}
    assert set(openai.read_request(deep)) == {"x"}


def test_the_head_is_read():
    got = head(
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        n=2,
        user="u",
        safety_identifier="s",
        conversation={"id": "c", "x": 1},
        variables={"name": "Ada"},
        max_tokens=3,
        max_completion_tokens=0,
    )
    assert got == openai.Head("m", True, True, 2, "s", "c", {"name": "Ada"}, 0)
    assert head(conversation="c", user="u", max_tokens=7) == openai.Head("m", conversation="c", user="u", max_tokens=7)


def test_nulls_mean_absent():
    nothing = dict.fromkeys(["stream", "stream_options", "n", "user", "conversation", "variables", "max_tokens"])
    assert head(**nothing) == openai.Head("m")


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("chat", {"model": 7}, "model"),
        ("chat", {"model": ""}, "model"),
        ("chat", {"model": None}, "model"),
        ("chat", {"stream": "yes"}, "stream"),
        ("chat", {"stream_options": {"include_usage": 1}}, "stream_options"),
        ("chat", {"n": 0}, "n"),
        ("chat", {"n": 1.5}, "n"),
        ("chat", {"user": 1}, "user"),
        ("chat", {"conversation": {}}, "conversation"),
        ("chat", {"variables": {"a": 1}}, "variables"),
        ("chat", {"max_tokens": -1}, "max_tokens"),
        ("chat", {"messages": None}, "messages"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": "hi"}, "messages"),
        ("completion", {"prompt": None}, "prompt"),
        ("embedding", {"input": None}, "input"),
    ],
)
def test_a_wrong_field_is_refused_by_name(kind, fields, param):
    with pytest.raises(RequestError) as e:
        head(kind, **fields)
    assert (e.value.param, e.value.status) == (param, 400)


def test_a_request_without_model_says_what_to_do():
    with pytest.raises(RequestError, match="must provide a model") as e:
        openai.read_head("chat", openai.read_request(b'{"messages":[]}'))
    assert "model" in (e.value.hint or "")


CHAT = [
    {"content": "You help.", "role": "system", "name": "s"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "你好", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": "x"}},
        ],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": ""},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    {"role": "assistant", "tool_calls": []},
    {"role": "user", "content": []},
]


def test_messages_are_read():
    got = openai.read_messages(messages(*CHAT))
    assert [m.text for m in got] == ["You help.", "你好", "", "", "no", "", ""]
    assert got[1].plain is False
    assert got[1].parts[1].text is None
    assert json.loads(bytes(got[2].rest["tool_calls"]))[0]["function"]["arguments"] == '{"a": 1}'
    assert got[3].parts == (Part(""),)


def test_messages_that_are_not_edited_mean_the_same_when_written():
    raw = messages(*CHAT)
    assert json.loads(bytes(openai.write_messages(openai.read_messages(raw)))) == CHAT


def test_beside_an_edited_message_the_others_keep_their_very_bytes():
    first = b'{ "content":"a\\u00e9" , "role":"system" }'
    raw = Raw(b"[ " + first + b', {"role":"user","content":"secret"}]')
    read = openai.read_messages(raw)
    edited = (read[0], replace(read[1], parts=(Part("[masked]"),)), Message.of("user", "new"))
    assert bytes(openai.write_messages(edited, raw)) == (
        b"[" + first + b',{"role":"user","content":"[masked]"},{"role":"user","content":"new"}]'
    )


def test_an_edited_part_keeps_its_other_keys_and_never_its_old_text():
    read = openai.read_messages(messages(CHAT[1]))
    part = replace(read[0].parts[0], text="hidden")
    [written] = json.loads(bytes(openai.write_messages((replace(read[0], parts=(part, read[0].parts[1])),))))
    assert written["content"] == [
        {"type": "text", "text": "hidden", "cache_control": {"type": "ephemeral"}},
        CHAT[1]["content"][1],
    ]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ("x", "messages[1]"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": 1}, "messages[1].role"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0]"),
    ],
)
def test_a_wrong_message_is_refused_by_place(item, param):
    with pytest.raises(RequestError) as e:
        openai.read_messages(messages(CHAT[0], item))
    assert e.value.param == param


@pytest.mark.parametrize(
    "raw",
    [b'[{"role":"user","content":"a","content":"b"}]', b'[{"role":"user","content":[{"type":"text","text":"a","text":"b"}]}]'],
)
def test_a_doubled_key_inside_a_message_is_refused_too(raw):
    with pytest.raises(RequestError, match="there twice"):
        openai.read_messages(Raw(raw))


@settings(max_examples=100, derandomize=True)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "system"]), "content": st.text(string.printable + "é你", max_size=20)}
        ),
        max_size=5,
    )
)
def test_messages_round_trip_byte_for_byte(items):
    raw = Raw(msgspec.json.encode(items))
    assert openai.write_messages(openai.read_messages(raw), raw) == raw


@pytest.mark.parametrize(
    ("raw", "texts"), [(b'"a"', ("a",)), (b'["a","b"]', ("a", "b")), (b"[1,2]", None), (b"[[1],[2]]", None)]
)
def test_prompts_and_inputs_are_read_as_texts(raw, texts):
    assert openai.read_texts(Raw(raw), "input") == texts


@pytest.mark.parametrize("raw", [b"[]", b"{}", b'["a",1]', b"7"])
def test_an_input_of_another_shape_is_refused(raw):
    with pytest.raises(RequestError, match="'input' must be"):
        openai.read_texts(Raw(raw), "input")


def test_texts_are_written_in_the_shape_they_came():
    assert bytes(openai.write_texts(("x",), Raw(b'"a"'))) == b'"x"'
    assert bytes(openai.write_texts(("x",), Raw(b'["a"]'))) == b'["x"]'


def test_more_choices_than_openai_allows_are_refused() -> None:
    body = openai.read_request(b'{"model": "a", "messages": [{"role": "user"}], "n": 1000000000}')
    with pytest.raises(RequestError, match="more than 128") as e:
        openai.read_head("chat", body)
    assert (e.value.param, e.value.code) == ("n", "integer_above_max_value")
