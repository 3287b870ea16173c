"""Guards, memory, templates and the window, through the running service: what the model sees, what the caller sees,
and what is kept."""

from __future__ import annotations

import json

import pytest

EMAIL, PHONE = "li.wei@firm.example.com", "13812345678"
TEXT = f"我的邮箱是{EMAIL}，电话{PHONE}。Write to {EMAIL}!"
KEY = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"


@pytest.fixture(scope="module")
def noria(serve_once, mirror, caller):
    models = {
        name: {"provider": "openai_compatible", "url": mirror.url, "model": name, "timeouts": {"first": 10}}
        for name in ("echo", "tool", "custom")
    }
    models["narrow"] = models["echo"] | {"context": 400}
    guards = {
        "private": [{"pii": {"action": "mask"}}],
        "safe": ["secrets", "pii"],
        "quiet": [{"pii": {"action": "flag"}}],
        "polite": [
            {"denylist": {"on": "output", "action": "block", "terms": ["forbidden fruit", "禁果"], "message": "Not here."}}
        ],
        "tidy": [{"denylist": {"on": "output", "action": "mask", "terms": ["forbidden fruit", "禁果"]}}],
    }
    prompts = {"host": {"text": "You are {{ name }}, in {{city}}."}}
    apps = {
        "plain": {"model": "echo"},
        "masked": {"model": "echo", "guard": "private"},
        "masked-tool": {"model": "tool", "guard": "private"},
        "masked-custom": {"model": "custom", "guard": "private"},
        "tidy-custom": {"model": "custom", "guard": "tidy"},
        "polite-custom": {"model": "custom", "guard": "polite"},
        "safe": {"model": "echo", "guard": "safe"},
        "quiet": {"model": "echo", "guard": "quiet"},
        "polite": {"model": "echo", "guard": "polite"},
        "tidy": {"model": "echo", "guard": "tidy"},
        "remembers": {"model": "echo", "memory": 4, "guard": "private"},
        "hosted": {"model": "echo", "prompt": "host"},
        "narrow": {"model": "narrow"},
        "private": {"model": "echo", "record_bodies": False},
    }
    config = {"models": models, "guards": guards, "prompts": prompts, "apps": apps}
    made = caller(serve_once(json.dumps(config, ensure_ascii=False)))
    made.key = made.new_key(name="a")
    return made


def without(found, *texts):
    shown = json.dumps(found, ensure_ascii=False)
    return [t for t in texts if t in shown] == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_model_sees_placeholders_and_the_caller_originals(noria, mirror, stream) -> None:
    answer = noria.chat("masked", TEXT, stream=stream)
    assert answer.text() == TEXT
    assert without(mirror.last, EMAIL, PHONE)
    told = mirror.last["messages"][0]["content"]
    assert told.count("[EMAIL_1]") == 2, "the same original has the same placeholder"
    assert told.startswith("我的邮箱是[")
    found = noria.trace(answer.id)
    assert without(found, EMAIL, PHONE)
    assert found["request"]["messages"][0]["content"] == told
    assert found["answer"]["choices"][0]["message"]["content"] == told
    acted = {(r["verdict"]["check"], r["action"]) for r in found["row"]["rulings"] if not r["verdict"]["passed"]}
    assert acted == {("pii", "mask")}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_every_choice_is_restored(noria, mirror, stream) -> None:
    answer = noria.chat("masked", TEXT, stream=stream, n=2)
    assert (answer.text(0), answer.text(1)) == (TEXT, TEXT)
    assert mirror.last["n"] == 2
    assert without(noria.trace(answer.id), EMAIL, PHONE)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_arguments_of_a_tool_call_are_restored_as_valid_json(noria, mirror, stream) -> None:
    answer = noria.chat("masked-tool", TEXT, stream=stream)
    assert json.loads(answer.arguments()) == {"text": TEXT}
    assert without(mirror.last, EMAIL, PHONE)
    assert without(noria.trace(answer.id), EMAIL, PHONE)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_input_of_a_custom_tool_call_is_restored_masked_and_blocked_as_free_text(noria, mirror, stream) -> None:
    text = f'say "{TEXT}" to C:\\new'
    answer = noria.chat("masked-custom", text, stream=stream)
    assert answer.arguments() == text
    assert without(mirror.last, EMAIL, PHONE)
    assert without(noria.trace(answer.id), EMAIL, PHONE)
    tidy = noria.chat("tidy-custom", 'A "forbidden fruit" \\u7981果', stream=stream)
    assert tidy.arguments() == 'A "[TERM]" \\u7981果'
    refused = noria.chat("polite-custom", "no forbidden fruit here", stream=stream)
    assert b"forbidden" not in refused.body
    assert b"Not here." in refused.body


def test_the_input_of_an_earlier_custom_tool_call_is_masked_before_the_model(noria, mirror) -> None:
    call = {"id": "c1", "type": "custom", "custom": {"name": "find", "input": f"mail {EMAIL}"}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": f"found {PHONE}"},
        {"role": "user", "content": "go on"},
    ]
    answer = noria.post("/v1/chat/completions", {"model": "masked", "messages": messages})
    assert without(mirror.last, EMAIL, PHONE)
    assert mirror.last["messages"][0]["tool_calls"] == [call | {"custom": {"name": "find", "input": "mail [EMAIL_1]"}}]
    assert without(noria.trace(answer.id), EMAIL, PHONE)


def test_masks_reach_into_parts_and_earlier_tool_calls(noria, mirror) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": json.dumps({"mail": EMAIL})}}
    messages = [
        {"role": "system", "content": f"The owner is {EMAIL}."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": f"found {PHONE}"},
        {"role": "user", "content": [{"type": "text", "text": f"call {PHONE}", "cache_control": {"type": "ephemeral"}}]},
    ]
    noria.post("/v1/chat/completions", {"model": "masked", "messages": messages})
    assert without(mirror.last, EMAIL, PHONE)
    sent = mirror.last["messages"]
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == {"mail": "[EMAIL_1]"}
    assert sent[3]["content"][0]["cache_control"] == {"type": "ephemeral"}


def test_a_prompt_without_findings_goes_out_unchanged(noria, mirror) -> None:
    messages = [{"role": "user", "content": "nothing here", "name": "x", "odd": [1.0, "世"]}]
    answer = noria.post("/v1/chat/completions", {"model": "masked", "messages": messages})
    assert mirror.last["messages"] == messages
    rulings = noria.row(answer.id)["rulings"]
    assert [(r["verdict"]["check"], r["action"]) for r in rulings] == [("pii", "allow")], "a policy that ran says so"


def test_a_secret_is_refused_and_not_kept(noria, mirror) -> None:
    before = len(mirror.seen)
    answer = noria.chat("safe", f"use {KEY} and write {EMAIL}")
    error = answer.refuses(400, "content_filter")
    assert "secrets" in error["message"]
    assert KEY not in error["message"]
    assert len(mirror.seen) == before, "the model was not asked"
    found = noria.trace(answer.id)
    assert (found["row"]["outcome"], found["row"]["status"], found["row"]["error_code"]) == ("blocked", 400, "content_filter")
    assert found["request"]["messages"][0]["content"] == "use [GITHUB_TOKEN] and write [EMAIL]"
    assert without(found, KEY, EMAIL)


@pytest.mark.parametrize("term", ["forbidden fruit", "禁果"])
def test_an_answer_is_blocked_before_the_term_leaves(noria, term) -> None:
    text = f"Once there was a garden, and in it the {term} of all, and so on."
    whole = noria.chat("polite", text)
    assert whole.refuses(400, "content_filter")["message"] == "Not here."
    streamed = noria.chat("polite", text, stream=True)
    assert streamed.status == 200
    assert text.startswith(streamed.text())  # what came in one read with the term is held back with it
    assert term.encode() not in streamed.body
    assert streamed.frames[-1]["error"]["code"] == "content_filter"
    assert "[DONE]" not in streamed.frames
    for answer in (whole, streamed):
        found = noria.trace(answer.id)
        assert (found["row"]["outcome"], found["row"]["error_code"]) == ("blocked", "content_filter")
        assert term not in json.dumps(found["answer"], ensure_ascii=False)


def test_an_answer_is_masked_across_the_chunks_of_a_stream(noria) -> None:
    text = "A forbidden fruit, 一个禁果, and a fine one."
    answer = noria.chat("tidy", text, stream=True)
    assert answer.text() == "A [TERM], 一个[TERM], and a fine one."
    assert noria.chat("tidy", text).text() == answer.text()
    assert noria.trace(answer.id)["answer"]["choices"][0]["message"]["content"] == answer.text()


def test_an_answer_that_passes_loses_nothing(noria) -> None:
    text = "The fruit is not forbidden; 水果可以吃。"
    assert noria.chat("polite", text, stream=True).text() == text
    assert noria.chat("polite", text, stream=True).frames[-1] == "[DONE]"


def test_flag_only_notes(noria, mirror) -> None:
    answer = noria.chat("quiet", TEXT, stream=True)
    assert answer.text() == TEXT
    assert mirror.last["messages"][0]["content"] == TEXT
    rulings = noria.row(answer.id)["rulings"]
    assert {(r["verdict"]["check"], r["action"]) for r in rulings} == {("pii", "flag")}


def test_an_app_that_records_no_bodies_keeps_none(noria) -> None:
    for stream in (False, True):
        found = noria.trace(noria.chat("private", "unrepeatable", stream=stream).id)
        assert (found["request"], found["answer"]) == (None, None)
        assert found["row"]["outcome"] == "ok"
        assert found["row"]["tokens_out"] == 5
        assert "unrepeatable" not in json.dumps(found)


# -- memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_conversation_is_kept_on_the_server(noria, mirror, stream) -> None:
    name = f"talk-{stream}"
    noria.chat("remembers", "my name is Ada", conversation=name, stream=stream)
    answer = noria.chat("remembers", "what is it?", conversation={"id": name}, stream=stream)
    said = [(m["role"], m["content"]) for m in mirror.last["messages"]]
    assert said == [("user", "my name is Ada"), ("assistant", "my name is Ada"), ("user", "what is it?")]
    assert "conversation" not in mirror.last, "a field of ours does not go upstream"
    assert noria.row(answer.id)["conversation"] == name
    noria.chat("remembers", "third", conversation=name)
    said = [m["content"] for m in mirror.last["messages"]]
    assert said == ["my name is Ada", "my name is Ada", "what is it?", "what is it?", "third"], "four messages and the new one"


def test_a_conversation_belongs_to_its_key(noria, mirror, caller) -> None:
    noria.chat("remembers", "a secret of the first key", conversation="shared-name")
    other = caller(noria.service, noria.new_key())
    other.chat("remembers", "what was said?", conversation="shared-name")
    assert [m["content"] for m in mirror.last["messages"]] == ["what was said?"]


def test_memory_holds_placeholders_and_not_what_they_stand_for(noria, mirror) -> None:
    noria.chat("remembers", f"I am {EMAIL}", conversation="masked-talk")
    noria.chat("remembers", "and now?", conversation="masked-talk")
    assert without(mirror.last, EMAIL)
    assert "[EMAIL_1]" in mirror.last["messages"][0]["content"]


def test_a_failed_exchange_is_not_remembered(noria, mirror) -> None:
    noria.chat("remembers", "first", conversation="broken")
    noria.post("/v1/chat/completions", {"model": "remembers", "conversation": "broken", "messages": [{"role": "user"}, 7]})
    noria.chat("remembers", "second", conversation="broken")
    assert [m["content"] for m in mirror.last["messages"]] == ["first", "first", "second"]


# -- template and window --------------------------------------------------------------------------------


def test_variables_fill_the_prompt(noria, mirror) -> None:
    noria.chat("hosted", "hi", variables={"name": "Ada", "city": "{{name}} 北京"})
    assert mirror.last["messages"][0] == {"role": "system", "content": "You are Ada, in {{name}} 北京."}
    assert "variables" not in mirror.last


def test_a_missing_variable_is_named(noria) -> None:
    answer = noria.chat("hosted", "hi", variables={"name": "Ada"})
    answer.refuses(400, "undefined_variable", param="variables.city")


def test_old_turns_are_dropped_to_fit_the_window_and_reported(noria, mirror) -> None:
    turns = [
        {"role": r, "content": f"turn {i} " + "lorem ipsum " * 12 + "end"} for i in range(6) for r in ("user", "assistant")
    ]
    messages = [{"role": "system", "content": "Be kind."}, *turns, {"role": "user", "content": "the question"}]
    answer = noria.post("/v1/chat/completions", {"model": "narrow", "messages": messages, "max_tokens": 50})
    assert answer.status == 200
    kept = mirror.last["messages"]
    assert kept[0]["content"] == "Be kind."
    assert kept[-1]["content"] == "the question"
    assert 2 < len(kept) < len(messages)
    assert kept[1:] == messages[len(messages) - len(kept) + 1 :], "the oldest go first"
    assert kept[1]["role"] == "user", "whole turns go"
    assert noria.row(answer.id)["cut_tokens"] > 0
    assert noria.row(noria.chat("narrow", "short").id)["cut_tokens"] == 0


def test_a_question_that_cannot_fit_is_refused(noria, mirror) -> None:
    before = len(mirror.seen)
    answer = noria.chat("narrow", "word " * 3000)
    answer.refuses(400, "context_length_exceeded", param="messages")
    assert len(mirror.seen) == before
    assert noria.row(answer.id)["outcome"] == "refused"
