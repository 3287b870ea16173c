import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.guard.chain import InwardGuard
from noria.guard.restore import Restore

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


def guard(kit):
    return InwardGuard([kit.rule(c) for c in (kit.pii, kit.secrets, kit.denylist)], report=lambda x, r: None)


@PROPERTY
@given(data=st.data())
def test_masking_then_an_echo_then_restoring_is_the_identity(kit, data):
    text, other = data.draw(kit.texts), data.draw(kit.texts)
    x = guard(kit)(kit.exchange(messages=[{"role": "user", "content": text}, {"role": "assistant", "content": other}]))
    for message, original in zip(x.messages, (text, other), strict=True):
        t = Restore().open(x, 0, "content", lambda r: None)
        assert message.text == original if t is None else kit.run(t, kit.chunks(message.text, data)) == original


@PROPERTY
@given(data=st.data())
def test_the_arguments_of_a_tool_call_come_back_as_the_same_json(kit, data):
    value = {"text": data.draw(kit.texts), "more": [data.draw(kit.texts)]}
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "f", "arguments": json.dumps(value, ensure_ascii=data.draw(st.booleans()))},
    }
    x = guard(kit)(kit.exchange(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}]))
    masked = json.loads(bytes(x.messages[0].rest["tool_calls"]))[0]["function"]["arguments"]
    t = Restore().open(x, 0, "tool.0", lambda r: None)
    assert json.loads(masked if t is None else kit.run(t, kit.chunks(masked, data))) == value


def test_originals_are_escaped_inside_tool_calls_only(kit):
    x = msgspec.structs.replace(kit.exchange(messages=[]), vault=(("[KEY_1]", 'a"\nb'),))
    assert kit.run(Restore().open(x, 0, "tool.1", lambda r: None), '{"k": "[KEY_1]"}') == '{"k": "a\\"\\nb"}'
    assert kit.run(Restore().open(x, 0, "reasoning", lambda r: None), "k [KEY_1]") == 'k a"\nb'


def test_only_what_may_become_a_placeholder_is_held_back(kit):
    x = msgspec.structs.replace(kit.exchange(messages=[]), vault=(("[EMAIL_1]", "a@b.io"), ("[EMAIL_12]", "c@d.io")))
    t = Restore().open(x, 0, "content", lambda r: None)
    assert [t.feed(s) for s in ["see [E", "MAIL_1", "2] or [x", "] [", "EMAIL_1]"]] == [
        "see ",
        "",
        "c@d.io or [x",
        "] ",
        "a@b.io",
    ]
    t.feed("end [EM")
    assert t.flush() == "[EM"


def test_an_exchange_without_masks_needs_no_transducer(kit):
    assert Restore().open(kit.exchange(messages=[]), 0, "content", lambda r: None) is None


def test_originals_stand_unescaped_in_the_free_text_of_a_custom_call(kit):
    x = msgspec.structs.replace(kit.exchange(messages=[]), vault=(("[KEY_1]", 'a"\nb'),))
    assert kit.run(Restore().open(x, 0, "custom.1", lambda r: None), "k = [KEY_1]") == 'k = a"\nb'
