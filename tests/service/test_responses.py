"""The Responses API through the running service: guards in both modes, what is stored of a turn, a keeper that is away."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

EMAIL = "li.wei@firm.example.com"
TEXT = f"我的邮箱是{EMAIL}。Write to {EMAIL}!"


@pytest.fixture(scope="module")
def noria(serve_once: Any, mirror: Any, caller: Any) -> Any:
    models = {
        name: {"provider": "openai_compatible", "url": mirror.url, "model": name, "timeouts": {"first": 10}}
        for name in ("echo", "tool", "endless")
    }
    guards = {
        "private": [{"pii": {"action": "mask"}}],
        "polite": [{"denylist": {"on": "output", "action": "block", "terms": ["禁果"], "message": "Not here."}}],
        "tidy": [{"denylist": {"on": "output", "action": "mask", "terms": ["禁果"]}}],
    }
    apps = {
        "plain": {"model": "echo"},
        "endless": {"model": "endless"},
        "masked": {"model": "echo", "guard": "private"},
        "masked-tool": {"model": "tool", "guard": "private"},
        "polite": {"model": "echo", "guard": "polite"},
        "tidy": {"model": "echo", "guard": "tidy"},
        "remembers": {"model": "echo", "memory": 10},
    }
    config = {"models": models, "guards": guards, "apps": apps}
    made = caller(serve_once(json.dumps(config, ensure_ascii=False), "--workers", "1"))
    made.key = made.new_key(name="a")
    return made


def ask(noria: Any, model: str, said: Any, **more: Any) -> Any:
    return noria.post("/v1/responses", {"model": model, "input": said, **more})


def whole(answer: Any) -> dict[str, Any]:
    """The Response of an answer, or of the last event of a stream."""
    assert answer.status == 200, answer.body
    if answer.headers["content-type"] == "application/json":
        return answer.json
    events = [json.loads(f.split("\n")[1][6:]) for f in answer.body.decode().split("\n\n")[:-1]]
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert text == text_of(events[-1]["response"])
    return events[-1]["response"]


def text_of(response: dict[str, Any]) -> str:
    return "".join(p["text"] for i in response["output"] if i["type"] == "message" for p in i["content"])


def fetched(noria: Any, response: dict[str, Any], what: str = "") -> Any:
    return noria.send("GET", f"/v1/responses/{response['id']}{what}", headers={"authorization": f"Bearer {noria.key}"})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_caller_sees_originals_and_the_model_and_the_store_placeholders(noria: Any, mirror: Any, stream: bool) -> None:
    first = whole(ask(noria, "masked", TEXT, instructions=f"Ask {EMAIL}", stream=stream))
    assert text_of(first) == TEXT
    assert first["instructions"] == f"Ask {EMAIL}"
    second = whole(ask(noria, "masked", "And?", previous_response_id=first["id"], stream=stream))
    assert [m["role"] for m in mirror.last["messages"]] == ["user", "assistant", "user"]
    stored = [fetched(noria, r, what).body.decode() for r in (first, second) for what in ("", "/input_items")]
    for shown in (json.dumps(mirror.last, ensure_ascii=False), *stored):
        assert EMAIL not in shown
        assert "firm.example" not in shown
    assert "[EMAIL_1]" in stored[0]
    assert "[EMAIL_1]" in stored[1]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_masks_go_in_and_out_of_the_arguments_of_a_call(noria: Any, mirror: Any, stream: bool) -> None:
    first = whole(ask(noria, "masked-tool", TEXT, stream=stream))
    (call,) = first["output"]
    assert json.loads(call["arguments"]) == {"text": TEXT}
    assert EMAIL not in fetched(noria, first).body.decode()
    result = [{"type": "function_call_output", "call_id": call["call_id"], "output": f"sent to {EMAIL}"}]
    whole(ask(noria, "masked", [{"role": "user", "content": "x"}, *result], previous_response_id=first["id"]))
    assert EMAIL not in json.dumps(mirror.last)
    assert mirror.last["messages"][1]["tool_calls"][0]["id"] == call["call_id"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_mask_on_the_way_out_is_there_for_all(noria: Any, stream: bool) -> None:
    made = whole(ask(noria, "tidy", "this is 禁果 here", stream=stream))
    assert "禁果" not in text_of(made)
    assert text_of(fetched(noria, made).json) == text_of(made)


def test_a_block_on_the_way_out_is_an_error_before_and_events_after_the_beginning(noria: Any) -> None:
    refused = ask(noria, "polite", "this is 禁果 here")
    refused.refuses(400, "content_filter")
    answer = ask(noria, "polite", "this is a long way to 禁果 here", stream=True)
    kinds = [f.split("\n")[0] for f in answer.body.decode().split("\n\n")[:-1]]
    assert kinds[-2:] == ["event: error", "event: response.failed"]
    assert "禁果" not in answer.body.decode()
    failed = json.loads(answer.body.decode().split("\n\n")[-2].split("\n")[1][6:])["response"]
    assert fetched(noria, failed).status == 404, "a refused answer is not kept"


def test_a_guard_sees_what_was_said_under_another_app(noria: Any, mirror: Any) -> None:
    first = whole(ask(noria, "plain", TEXT))
    whole(ask(noria, "masked", "Go on.", previous_response_id=first["id"]))
    assert EMAIL not in json.dumps(mirror.last)


def test_a_conversation_is_the_apps_memory(noria: Any, mirror: Any) -> None:
    whole(ask(noria, "remembers", "one", conversation="c1", store=False))
    made = whole(ask(noria, "remembers", "two", conversation={"id": "c1"}))
    assert [m["content"] for m in mirror.last["messages"]] == ["one", "one", "two"]
    assert made["conversation"] == {"id": "c1"}


def test_a_conversation_with_an_app_that_has_no_memory_is_refused(noria: Any) -> None:
    ask(noria, "plain", "one", conversation="c1").refuses(400, "unsupported_feature", param="conversation")


def test_no_user_is_stored(noria: Any, mirror: Any) -> None:
    made = whole(ask(noria, "plain", "x", user="ada-lovelace", safety_identifier="ada-lovelace"))
    assert made["user"] == made["safety_identifier"] == "ada-lovelace"
    assert "ada-lovelace" not in fetched(noria, made).body.decode()


def test_paths_and_methods_that_are_none(noria: Any) -> None:
    bearer = {"authorization": f"Bearer {noria.key}"}
    for method, path, status in (
        ("GET", "/v1/responses", 405), ("POST", "/v1/responses/resp_1", 405), ("GET", "/v1/responses/resp_1/nothing", 404),
        ("GET", "/v1/responses/resp_1", 404), ("POST", "/v1/responses/resp_1/cancel", 400), ("GET", "/v1/responses/compact", 404),
    ):  # fmt: skip
        answer = noria.send(method, path, headers=bearer)
        assert answer.status == status, (path, answer.body)
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    made = whole(ask(noria, "plain", "x"))
    for query in ("limit=0", "limit=x", "order=up", "after=msg_1"):
        assert fetched(noria, made, f"/input_items?{query}").status == 400
    assert fetched(noria, made, "?stream=true").status == 400
    assert noria.send("GET", f"/v1/responses/{made['id']}").status == 401


def test_a_caller_that_leaves_ends_the_model_call(noria: Any, mirror: Any) -> None:
    before = len(mirror.gone)
    connection = http.client.HTTPConnection(urlsplit(noria.service.url).netloc, timeout=10)
    body = json.dumps({"model": "endless", "input": "x", "stream": True})
    connection.request("POST", "/v1/responses", body, {"authorization": f"Bearer {noria.key}"})
    answer = connection.getresponse()
    seen = b""
    while b"output_text.delta" not in seen:
        seen += answer.read1(4096)
    left = time.monotonic()
    connection.sock.close()
    answer.close()
    while len(mirror.gone) == before:
        assert time.monotonic() - left < 5
        time.sleep(0.01)
    assert mirror.gone[-1] - left < 1.0
    row = noria.row(answer.headers["x-request-id"])
    assert (row["outcome"], row["dialect"]) == ("cancelled", "responses")


def test_a_keeper_that_is_away_costs_the_state_and_not_the_answer(noria: Any) -> None:
    keeper = noria.service.pids()["keeper"]
    first = whole(ask(noria, "plain", "x"))
    os.kill(keeper, signal.SIGSTOP)
    try:
        time.sleep(4.5)  # until a heartbeat has failed
        for stream in (False, True):
            made = whole(ask(noria, "plain", "hello", stream=stream))
            assert (text_of(made), made["store"]) == ("hello", False)
        away = ask(noria, "plain", "y", previous_response_id=first["id"])
        assert (away.status, away.json["error"]["code"]) == (503, "keeper_away")
        assert "retry-after" in away.headers
    finally:
        os.kill(keeper, signal.SIGCONT)
        for _ in range(100):  # until the next heartbeat
            if fetched(noria, first).status == 200:
                break
            time.sleep(0.1)
    assert text_of(fetched(noria, first).json) == "x"


def test_an_installation_that_keeps_none_says_so(serve: Any, caller: Any) -> None:
    models = {"fake": {"provider": "scripted", "model": "fake"}}
    config = {"models": models, "apps": {"plain": {"model": "fake"}}, "retention": {"responses_days": 0}}
    bare = caller(serve(json.dumps(config), "--workers", "1"))
    made = whole(bare.post("/v1/responses", {"model": "plain", "input": "x"}))
    assert made["store"] is False
    assert "responses_days" in bare.row(bare.post("/v1/responses", {"model": "plain", "input": "x"}).id)["warnings"][0]
    assert bare.send("GET", f"/v1/responses/{made['id']}").status == 404
