import json

from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.verdict import Finding
from noria.guard.json_text import JsonText, escape, is_json, replace_json, splice, view

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)
RAW = st.lists(
    st.sampled_from(["\\", "u", "d83d", "de00", "\\ud83d", "\\ude00", "\\n", "0", "4e2d", "a", '"', "\\\\", "中"]), max_size=10
).map("".join)


@PROPERTY
@given(st.text())
def test_the_view_of_an_encoded_text_is_the_text(text):
    lone = any("\ud800" <= c <= "\udfff" for c in text)
    if not lone:
        assert view(json.dumps(text)) == f'"{text}"'


@PROPERTY
@given(RAW, st.data())
def test_any_chunking_gives_the_same_units_and_all_of_the_raw_text(raw, data):
    whole = JsonText().feed(raw, last=True)
    places = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    decoder = JsonText()
    units = [u for a, b in zip([0, *places], [*places, len(raw)], strict=True) for u in decoder.feed(raw[a:b])] + decoder.feed(
        "", last=True
    )
    assert units == whole
    assert "".join(piece for _, piece in whole) == raw


def test_a_lone_surrogate_is_one_replacement_character():
    assert view("\\ud83dx") == "\ufffdx"


def test_what_lies_inside_strings_is_replaced_and_their_quotes_stay():
    assert splice(list("abc"), "[X]", inside=True) == "[X]"
    assert splice(list("123"), "[X]", inside=False) == '"[X]"'
    assert splice(list('ab", "cd'), "[X]", inside=True) == '[X]", "[X]'


def test_replacing_keeps_the_document_json():
    raw = '{"n": 13812345678, "s": "\\n13812345678"}'
    assert json.loads(replace_json(raw, [Finding("p", 6, 17), Finding("p", 26, 37)], lambda *_: "[P]")) == {
        "n": "[P]",
        "s": "\n[P]",
    }


def test_json_is_told_from_other_text():
    assert is_json('{"a": 1}')
    assert not is_json("{a: 1}")
    assert not is_json("[" * 100_000)


def test_escaping_is_that_of_a_json_string():
    assert json.loads(f'"{escape(chr(10) + chr(34) + "中")}"') == '\n"中'
