import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import Blocked
from noria.contracts.stage import Sample
from noria.guard.action import scrub
from noria.guard.stream import OutwardGuard, _last_place

PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)


def opened(kit, rules, channel="content", report=lambda r: None):
    return OutwardGuard(rules).open(kit.exchange(messages=[{"role": "user", "content": "hi"}]), 0, channel, report)


def everything(kit):
    return [kit.rule(kit.pii), kit.rule(kit.secrets), kit.rule(kit.denylist)]


@PROPERTY
@given(data=st.data())
def test_any_chunking_gives_the_same_answer_and_the_same_rulings(kit, data):
    text = data.draw(kit.texts)
    whole, pieces = [], []
    expected = kit.run(opened(kit, everything(kit), report=whole.append), [text])
    assert kit.run(opened(kit, everything(kit), report=pieces.append), kit.chunks(text, data)) == expected
    assert [(r.verdict, r.action) for r in whole] == [(r.verdict, r.action) for r in pieces]
    assert kit.run(opened(kit, everything(kit)), text) == expected


@PROPERTY
@given(data=st.data())
def test_any_chunking_of_tool_arguments_gives_the_same_json(kit, data):
    text = data.draw(kit.texts)
    raw = data.draw(st.sampled_from([json.dumps({"a": text}), json.dumps({"a": text}, ensure_ascii=False), text]))
    expected = kit.run(opened(kit, everything(kit), "tool.0"), [raw])
    assert kit.run(opened(kit, everything(kit), "tool.0"), kit.chunks(raw, data)) == expected
    if raw is not text:
        json.loads(expected)


@PROPERTY
@given(data=st.data())
def test_any_chunking_agrees_for_checks_that_say_nothing_about_cuts_and_for_sentences(kit, data):
    text = data.draw(kit.texts) * data.draw(st.integers(1, 6))
    rules = [kit.rule(kit.every_digit), kit.rule(kit.shouting), kit.rule(kit.pii)]
    expected = kit.run(opened(kit, rules), [text])
    assert kit.run(opened(kit, rules), kit.chunks(text, data)) == expected
    assert not any(c in expected for c in "0123456789")


@PROPERTY
@given(data=st.data())
def test_what_whole_text_judging_finds_in_a_streamed_text_is_masked(kit, data):
    words = data.draw(st.lists(st.sampled_from(
        ["mail", "bob@example.com", "call", "415-555-2671", "the", "13812345678", "机密", "在", "4111 1111 1111 1111", "and", "project falcon", "ghp_" + "a1B2" * 9]
    ), max_size=12))  # fmt: skip
    text = data.draw(st.sampled_from([" , ", "\n", " word "])).join(words)
    found = [f for c in (kit.pii, kit.secrets, kit.denylist) for f in c.judge(Sample(output=text)).findings]
    assert kit.run(opened(kit, everything(kit)), text) == scrub(text, found)


@PROPERTY
@given(data=st.data())
def test_a_quiet_text_holds_no_finding_and_begins_none_before_its_last_place(kit, data):
    text, more = data.draw(kit.texts), data.draw(kit.texts)
    text = text[: data.draw(st.integers(0, len(text)))]
    for check in (kit.pii, kit.secrets, kit.denylist):
        if check.quiet(text):
            assert not check.suspects(text)
            assert all(check.quiet(text[:i]) and check.quiet(text[i:]) for i in range(len(text)))
            last = _last_place(text)
            assert all(f.start >= last for f in check.judge(Sample(output=text + more)).findings)


@PROPERTY
@given(data=st.data())
def test_the_fast_way_through_quiet_text_and_the_wary_one_agree(kit, data):
    text = " ".join(data.draw(st.lists(kit.texts, max_size=4)))
    fast, wary = [], []
    expected = kit.run(opened(kit, everything(kit), report=fast.append), kit.chunks(text, data))
    slow = opened(kit, everything(kit), report=wary.append)
    slow._is_quiet = lambda: False
    assert kit.run(slow, kit.chunks(text, data)) == expected
    assert [(r.verdict, r.action) for r in fast] == [(r.verdict, r.action) for r in wary]


@PROPERTY
@given(data=st.data())
def test_what_is_said_to_be_held_is_what_has_not_left(kit, data):
    text = data.draw(kit.texts)
    t = opened(
        kit, [kit.rule(kit.pii, "flag"), kit.rule(kit.secrets, "flag")], data.draw(st.sampled_from(["content", "tool.0"]))
    )
    fed = left = ""
    for chunk in kit.chunks(text, data):
        fed += chunk
        left += t.feed(chunk)
        assert left + fed[len(fed) - t.held :] == fed
    assert left + t.flush() == fed


def test_prose_is_held_back_by_a_word_and_chinese_not_at_all(kit):
    english = opened(kit, everything(kit))
    assert [english.feed(t) for t in ["The", " quick", " brown", " fox"]] == ["", "The", " quick", " brown"]
    chinese = opened(kit, everything(kit))
    assert [chinese.feed(t) for t in "今天天气，是机密。"] == ["今", "天", "天", "气", "，", "是", "", "", "[TERM]。"]
    lines = opened(kit, everything(kit))
    assert [lines.feed(t) for t in ["Dear", " Bob", ":\n", "\n", "Yes"]] == ["", "Dear", " Bob:\n", "\n", ""]


def test_a_finding_cut_anywhere_is_masked_and_not_restored(kit):
    for text, masked in [
        ("Write to bob@example.com now", "Write to [EMAIL] now"),
        ("电话13812345678谢谢", "电话[PHONE]谢谢"),
        ("pay 4111 1111 1111 1111 now", "pay [CARD] now"),
        ("this is project falcon ok", "this is [TERM] ok"),
        (f"a {kit.pem} b", "a [PRIVATE_KEY] b"),
    ]:
        assert kit.run(opened(kit, everything(kit)), text) == masked


def test_a_mention_of_a_key_header_does_not_hold_the_answer(kit):
    t = opened(kit, everything(kit))
    out = t.feed("A PEM file begins with -----BEGIN PRIVATE KEY----- and then comes the body, which is long. ")
    assert out.endswith("which is long.")


def test_a_long_run_without_spaces_flows(kit):
    t = opened(kit, everything(kit))
    out = "".join(t.feed("abcdefgh") for _ in range(200))
    assert 1600 - len(out) <= 256


def test_a_block_ends_the_stream_before_the_finding_leaves(kit):
    rulings = []
    t = opened(kit, [kit.rule(kit.pii, "block")], report=rulings.append)
    assert t.feed("All is well so far ") == "All is well so far"
    with pytest.raises(Blocked) as refused:
        t.feed("bob@example.com and ")
    assert "pii" in refused.value.message
    assert "bob" not in refused.value.message
    assert rulings[0].action == "block"
    assert rulings[0].verdict.findings[0].start == 19


def test_a_flag_reports_with_offsets_of_the_whole_channel_and_changes_nothing(kit):
    rulings = []
    t = opened(kit, [kit.rule(kit.pii, "flag")], report=rulings.append)
    text = "Hello there, bob@example.com. Or ann@example.com."
    assert kit.run(t, text) == text
    assert [text[f.start : f.end] for r in rulings for f in r.verdict.findings] == ["bob@example.com", "ann@example.com"]
    assert {r.place for r in rulings} == {"output.0.content"}


def test_a_check_that_finds_nothing_still_reports_that_it_ran(kit):
    rulings = []
    kit.run(opened(kit, everything(kit), report=rulings.append), ["fine"])
    assert [(r.verdict.check, r.action) for r in rulings] == [("pii", "allow"), ("secrets", "allow"), ("denylist", "allow")]


def test_an_answer_scoped_check_holds_all_or_flags_after(kit):
    hold = opened(kit, [kit.rule(kit.rude, "block")])
    assert hold.feed("well, damn it") == ""
    with pytest.raises(Blocked):
        hold.flush()
    rulings = []
    after = opened(kit, [kit.rule(kit.rude, "flag", stream="after"), kit.rule(kit.pii)], report=rulings.append)
    assert after.feed("well, damn it ") == "well, damn it"
    assert after.flush() == " "
    assert [r.action for r in rulings] == ["flag", "allow"]
    masked = opened(kit, [kit.rule(kit.rude), kit.rule(kit.pii)])
    assert kit.run(masked, ["damn bob@example.com"]) == "[RUDE]"


def test_a_number_in_tool_arguments_becomes_a_string_so_that_they_stay_json(kit):
    raw = '{"card": 4111111111111111, "to": "a\\n13812345678", "zh": "\\u673a\\u5bc6"}'
    out = kit.run(opened(kit, everything(kit), "tool.0"), raw)
    assert json.loads(out) == {"card": "[CARD]", "to": "a\n[PHONE]", "zh": "[TERM]"}


def test_tool_arguments_without_findings_leave_with_their_escapes(kit):
    raw = '{"a": "\\u4f60\\u597d \\ud83d\\ude00 \\/ \\n", "b": [1, 2]}'
    assert kit.run(opened(kit, everything(kit), "tool.0"), raw) == raw


def test_without_rules_for_answers_no_transducer_is_opened(kit):
    assert opened(kit, [kit.rule(kit.pii, on=("input",))]) is None


def test_the_input_of_a_custom_tool_call_is_free_text_and_keeps_its_backslashes(kit):
    raw = 'dir C:\\new\\ "bob@example.com" then C:\\u0062@example.com 4111111111111111'
    expected = 'dir C:\\new\\ "[EMAIL]" then C:\\[EMAIL] [CARD]'
    assert kit.run(opened(kit, everything(kit), "custom.0"), [raw]) == expected
    assert kit.run(opened(kit, everything(kit), "custom.0"), raw) == expected
