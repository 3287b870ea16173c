import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.release import Release
from noria.transform.normalize import Normalize, normalize

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)
ODD = st.sampled_from([*"\u200b\u200c\u200d\u200e\u202e\u2066\u2060\ufeff\u061c\u180e\u00ad\r\n\t \u2028\u0085", "\U000e0041", "\U000e007f", "\U0001f3f4", "\U0001f468", "\ufe0f", "क", "ष", "\u094d", "م", "e", "\u0301", "中"])  # fmt: skip


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a\u200bb\ufeffc", "abc"),
        ("e\u0301", "é"),
        ("x² ① ﬁ", "x² ① ﬁ"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("line  \t\nnext \n  indented   code  x\n", "line\nnext\n  indented   code  x\n"),
        ("end   ", "end"),
        ("safe\u202etxt.exe\u202c", "safetxt.exe"),
        ("hi\U000e0049\U000e0067\U000e006e", "hi"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
        ("\u2764\ufe0f\u200d\U0001f525", "\u2764\ufe0f\u200d\U0001f525"),
        ("a\u200db", "ab"),
        ("नमस्\u200dते", "नमस्\u200dते"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("م\u200b\u200c\u200bخ", "م\u200cخ"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"),
        ("\U0001f3f4\U000e0069\U000e0067\U000e006e\U000e006f\U000e0072\U000e0065\U000e007f", "\U0001f3f4"),
        ("", ""),
    ],
)  # fmt: skip
def test_text_is_normalised_and_scripts_keep_their_joiners(given, wanted):
    assert normalize(given) == wanted


@PROPERTY
@given(st.lists(st.one_of(ODD, st.characters(exclude_categories=["Cs"])), max_size=20).map("".join))
def test_normalising_twice_is_normalising_once(text):
    assert normalize(normalize(text)) == normalize(text)


@PROPERTY
@given(st.text(alphabet="abc {}()=:\n\t", max_size=40))
def test_spaces_inside_ascii_lines_are_never_touched(text):
    assert normalize(text) == "\n".join(line.rstrip(" \t") for line in text.split("\n"))


def test_only_what_users_and_tools_wrote_is_normalised(chat):
    x = Normalize()(
        chat(
            ("system", "s "),
            ("user", "u\u200b"),
            ("assistant", "a "),
            {"role": "tool", "content": "t\r\n", "tool_call_id": "1"},
        )
    )
    assert [m.text for m in x.messages] == ["s ", "u", "a ", "t\n"]
    assert x.edited


def test_an_exchange_in_which_nothing_changes_is_the_same_object(chat):
    for x in (
        chat(("user", "plain text\nof two lines")),
        chat(("user", "中文 é")),
        chat(("user", [{"type": "image_url", "image_url": {"url": "x "}}])),
    ):
        assert Normalize()(x) is x


def test_a_release_may_switch_it_off_and_other_kinds_pass(chat):
    off = chat(("user", "u "), release=Release("r1:x", "a", "app", (), normalize=False))
    assert Normalize()(off) is off
    x = chat(kind="embedding")
    del x.body["messages"]
    assert Normalize()(x) is x
