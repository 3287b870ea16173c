import json

import msgspec
import pytest

from noria.contracts.error import Blocked
from noria.contracts.release import Prompt, Release
from noria.guard.chain import InwardGuard, masked_copy


def guard(rules, rulings=None):
    return InwardGuard(rules, report=lambda x, r: None if rulings is None else rulings.append(r))


def user(text):
    return {"role": "user", "content": text}


def test_a_mask_edits_the_message_and_fills_the_vault(kit):
    rulings = []
    x = guard([kit.rule(kit.pii)], rulings)(kit.exchange(messages=[user("I am bob@example.com, 13812345678")]))
    assert x.messages[0].text == "I am [EMAIL_1], [PHONE_1]"
    assert x.edited
    assert x.vault == (("[EMAIL_1]", "bob@example.com"), ("[PHONE_1]", "13812345678"))
    assert [(r.action, r.place, len(r.verdict.findings)) for r in rulings] == [("mask", "input.0.0", 2)]


def test_what_an_assistant_said_before_is_masked_by_the_same_placeholder(kit):
    x = guard([kit.rule(kit.pii)])(
        kit.exchange(
            messages=[user("mail bob@example.com"), {"role": "assistant", "content": "bob@example.com, sure"}, user("go")]
        )
    )
    assert [m.text for m in x.messages] == ["mail [EMAIL_1]", "[EMAIL_1], sure", "go"]


def test_a_list_of_parts_keeps_images_and_other_keys(kit):
    image = {"type": "image_url", "image_url": {"url": "data:bob@example.com"}}
    x = guard([kit.rule(kit.pii)])(kit.exchange(messages=[user([{"type": "text", "text": "to bob@example.com"}, image])]))
    assert x.messages[0].parts[0].text == "to [EMAIL_1]"
    assert json.loads(bytes(x.messages[0].parts[1].raw)) == image


def test_nothing_found_leaves_the_exchange_unedited_and_reports_once_a_check(kit):
    rulings = []
    x = guard([kit.rule(kit.pii), kit.rule(kit.secrets)], rulings)(kit.exchange(messages=[user("hello"), user("world")]))
    assert not x.edited
    assert x.vault == ()
    assert [(r.verdict.check, r.action, r.place) for r in rulings] == [("pii", "allow", "input"), ("secrets", "allow", "input")]


def test_a_block_is_raised_after_every_ruling_is_out(kit):
    rulings = []
    x = kit.exchange(messages=[user("bob@example.com knows 机密")])
    with pytest.raises(Blocked) as refused:
        guard([kit.rule(kit.denylist, "block", message="Not here."), kit.rule(kit.pii)], rulings)(x)
    assert refused.value.message == "Not here."
    assert [r.action for r in rulings] == ["block", "mask"]
    copy = masked_copy(x, rulings)
    assert copy.messages[0].text == "[EMAIL] knows [TERM]"
    assert copy.vault == ()


def test_a_flag_changes_nothing(kit):
    rulings = []
    x = guard([kit.rule(kit.pii, "flag")], rulings)(kit.exchange(messages=[user("bob@example.com")]))
    assert x.messages[0].text == "bob@example.com"
    assert not x.edited
    assert rulings[0].action == "flag"


def test_the_releases_own_prompt_is_not_judged_but_a_callers_system_message_is(kit):
    release = Release("r1:x", "a", "app", (), prompt=Prompt("p", "mail help@example.com", "d"))
    system = {"role": "system", "content": "mail help@example.com"}
    messages = [system, {"role": "system", "content": "bob@example.com"}, user("hi")]
    x = guard([kit.rule(kit.pii)])(kit.exchange(messages=messages, release=release))
    assert [m.text for m in x.messages] == ["mail help@example.com", "[EMAIL_1]", "hi"]
    alone = guard([kit.rule(kit.pii)])(kit.exchange(messages=[system]))
    assert alone.messages[0].text == "mail [EMAIL_1]"
    varied = guard([kit.rule(kit.pii)])(kit.exchange(messages=messages, release=release, variables={"a": "b"}))
    assert varied.messages[0].text == "mail [EMAIL_1]"


def test_tool_results_and_tool_arguments_are_judged_as_the_characters_they_stand_for(kit):
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a":"\\n13812345678","n":4111111111111111}'},
    }
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "bob@example.com"},
    ]
    x = guard([kit.rule(kit.pii)])(kit.exchange(messages=messages))
    arguments = json.loads(bytes(x.messages[0].rest["tool_calls"]))[0]["function"]["arguments"]
    assert json.loads(arguments) == {"a": "\n[PHONE_1]", "n": "[CARD_1]"}
    assert x.messages[1].text == "[EMAIL_1]"
    assert bytes(x.messages[1].rest["tool_call_id"]) == b'"1"'


def test_arguments_that_are_no_json_and_legacy_calls_are_judged_too(kit):
    messages = [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "to \\ bob@example.com"}}]
    x = guard([kit.rule(kit.pii)])(kit.exchange(messages=messages))
    assert json.loads(bytes(x.messages[0].rest["function_call"])) == {"name": "f", "arguments": "to \\ [EMAIL_1]"}


@pytest.mark.parametrize(("kind", "param"), [("completion", "prompt"), ("embedding", "input")])
@pytest.mark.parametrize(
    ("given", "masked"),
    [("a bob@example.com", "a [EMAIL_1]"), (["x", "bob@example.com"], ["x", "[EMAIL_1]"]), ([1, 2], [1, 2])],
)
def test_prompts_and_embedding_inputs_are_masked_in_their_own_shape(kit, kind, param, given, masked):
    x = guard([kit.rule(kit.pii)])(kit.exchange(kind, **{param: given}))
    assert json.loads(bytes(x.body[param])) == masked
    assert x.edited == (given != masked)


def test_rules_for_answers_only_do_not_judge_prompts(kit):
    x = kit.exchange(messages=[user("bob@example.com")])
    assert guard([kit.rule(kit.pii, on=("output",))])(x) is x


def test_messages_decoded_before_are_not_read_again_from_the_body(kit):
    x = guard([kit.rule(kit.pii)])(kit.exchange(messages=[user("bob@example.com")]))
    again = guard([kit.rule(kit.pii)])(msgspec.structs.replace(x, edited=False))
    assert again.messages[0].text == "[EMAIL_1]"
    assert again.vault == x.vault


def test_the_input_of_a_custom_tool_call_is_judged_masked_and_refused_as_any_text(kit):
    calls = [
        {"id": "1", "type": "custom", "custom": {"name": "sql", "input": 'mail "bob@example.com" at \\n13812345678'}},
        {"id": "2", "type": "function", "function": {"name": "f", "arguments": '{"a":"bob@example.com"}'}},
        {"id": "3", "type": "custom", "custom": {"name": "run", "input": '{"to":"\\n13812345678","n":4111111111111111}'}},
        {"id": "4", "type": "custom", "custom": {"name": "run", "input": "4111111111111111"}},
    ]
    x = kit.exchange(messages=[user("hi"), {"role": "assistant", "content": None, "tool_calls": calls}])
    masked = json.loads(bytes(guard([kit.rule(kit.pii)])(x).messages[1].rest["tool_calls"]))
    assert masked[0]["custom"] == {"name": "sql", "input": 'mail "[EMAIL_1]" at \\n13812345678'}, "free text is no JSON"
    assert json.loads(masked[1]["function"]["arguments"]) == {"a": "[EMAIL_1]"}
    assert json.loads(masked[2]["custom"]["input"]) == {"to": "\n[PHONE_1]", "n": "[CARD_1]"}
    assert masked[3]["custom"]["input"] == "[CARD_1]", "and nothing is quoted that was not"
    rulings = []
    with pytest.raises(Blocked):
        guard([kit.rule(kit.pii, "block")], rulings)(x)
    assert [r.place for r in rulings] == ["input.1.custom.0", "input.1.tool.1", "input.1.custom.2", "input.1.custom.3"]
    copy = masked_copy(x, rulings)
    assert json.loads(bytes(copy.messages[1].rest["tool_calls"]))[3]["custom"]["input"] == "[CARD]"


@pytest.mark.parametrize("custom", [None, [], "bob@example.com", {}, {"input": None}, {"input": {"a": "bob@example.com"}}])
def test_a_custom_call_without_text_is_left_as_it_is(kit, custom):
    calls = [{"id": "1", "type": "custom", "custom": custom}]
    x = guard([kit.rule(kit.pii)])(kit.exchange(messages=[{"role": "assistant", "tool_calls": calls}]))
    assert json.loads(bytes(x.messages[0].rest["tool_calls"])) == calls
