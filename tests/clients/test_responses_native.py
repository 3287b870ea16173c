"""The official OpenAI client's Responses API at an endpoint that speaks it itself: bytes pass, facts are recorded."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

USAGE = {
    "input_tokens": 40, "input_tokens_details": {"cached_tokens": 8}, "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 5}, "total_tokens": 52,
}  # fmt: skip
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "水车"}}
SHELL = {
    "type": "local_shell_call", "id": "lsh_1", "call_id": "call_1", "status": "completed",
    "action": {"type": "exec", "command": ["ls"], "env": {}},
}  # fmt: skip
PATCH = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "apply_patch", "input": "*** Begin\n"}
SAID = {
    "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
    "content": [{"type": "output_text", "text": '你好 "error"', "annotations": [], "logprobs": []}],
}  # fmt: skip
TOOLS: Any = [{"type": "web_search"}, {"type": "local_shell"}, {"type": "custom", "name": "apply_patch"}]


def response(status: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_up", "object": "response", "created_at": 1, "status": status, "model": "gpt-real", "error": None,
        "incomplete_details": None, "output": [SEARCH, SAID, SHELL, PATCH], "parallel_tool_calls": True, "tool_choice": "auto",
        "tools": [], "usage": USAGE, "store": False, **more,
    }  # fmt: skip


def events(end: str = "completed") -> bytes:
    """A stream as OpenAI sends it, with odd spacing that must survive."""
    begun = response("in_progress", output=[], usage=None)
    told: list[tuple[str, dict[str, Any]]] = [
        ("created", {"response": begun}),
        ("in_progress", {"response": begun}),
        ("output_item.added", {"output_index": 0, "item": SEARCH | {"status": "in_progress"}}),
        ("output_item.done", {"output_index": 0, "item": SEARCH}),
        ("output_item.added", {"output_index": 1, "item": SAID | {"content": []}}),
        *(("output_text.delta", {"item_id": "msg_1", "output_index": 1, "content_index": 0, "delta": d}) for d in ("你", "好")),
        ("output_item.done", {"output_index": 2, "item": SHELL}),
        ("output_item.done", {"output_index": 3, "item": PATCH}),
    ]
    if end == "completed":
        told.append(("completed", {"response": response()}))
    elif end == "failed":
        told.append(("failed", {"response": response("failed", error={"code": "server_error", "message": "it broke"})}))
    frames = [
        f"event: response.{name}\ndata:  {json.dumps({'type': f'response.{name}', 'sequence_number': n, **what}, ensure_ascii=False)}\n\n"
        for n, (name, what) in enumerate(told)
    ]
    return "".join(frames).encode()


class Fake:
    """An upstream that speaks /v1/responses, and chat."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.raw = b""
        self.end = "completed"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.raw = self.rfile.read(int(self.headers.get("content-length", "0")))
                asked = json.loads(outer.raw)
                outer.seen.append((self.path, asked))
                status, kind, body = outer.answer(self.path, asked)
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                for at in range(0, len(body), 97):
                    self.wfile.write(body[at : at + 97])

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, asked: dict[str, Any]) -> tuple[int, str, bytes]:
        if self.end == "busy":
            return 503, "application/json", b'{"error": {"message": "busy"}}'
        if path == "/v1/responses":
            if asked.get("stream"):
                return 200, "text/event-stream", events(self.end)
            return 200, "application/json", json.dumps(response(), indent=1, ensure_ascii=False).encode()
        message = {"role": "assistant", "content": "from chat"}
        chat = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-chat",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
        return 200, "application/json", json.dumps(chat).encode()


@pytest.fixture(scope="module")
def fakes() -> Iterator[dict[str, Fake]]:
    made = {"own": Fake(), "chat": Fake()}
    yield made
    for fake in made.values():
        fake.server.shutdown()
        fake.server.server_close()


@pytest.fixture(scope="module")
def here(start_service: Any, fakes: dict[str, Fake], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    price = {"input": 1.0, "output": 2.0}
    models = {
        "own": {
            "provider": "openai_compatible",
            "url": fakes["own"].url,
            "model": "up-1",
            "options": {"responses": True},
            "price": price,
        },
        "vendor": {"provider": "openai", "url": fakes["own"].url, "model": "up-1", "key": "env:UP_KEY"},
        "not": {
            "provider": "openai",
            "url": fakes["own"].url,
            "model": "up-1",
            "key": "env:UP_KEY",
            "options": {"responses": False},
        },
        "chat": {"provider": "openai_compatible", "url": fakes["chat"].url, "model": "chat-1"},
    }
    apps = {
        **{name: {"model": name} for name in models},
        "mixed": {"model": ["chat", "own"], "routing": {"retries": 0, "health": False}},
        "behind": {"model": ["own", "chat"], "routing": {"health": False}},
        "inward": {"model": "own", "guard": "inward"},
        "outward": {"model": "own", "guard": "outward"},
        "prompted": {"model": "own", "prompt": "kind"},
        "cached": {"model": "own", "cache": True},
        "warm": {"model": "own", "params": {"temperature": 0.25, "max_tokens": 99}},
    }
    guards = {f"{way}ward": [{"denylist": {"terms": ["falcon"], "action": "block", "on": [side]}}]
              for way, side in (("in", "input"), ("out", "output"))}  # fmt: skip
    config = {"models": models, "apps": apps, "guards": guards, "prompts": {"kind": {"text": "Be kind."}}}
    service = start_service(Path(tmp_path_factory.mktemp("n")), json.dumps(config), "--workers", "1", env={"UP_KEY": "sk-up"})
    try:
        key = service.json("keys", "create", "--name", "clients")["key"]
        yield SimpleNamespace(url=service.url + "/v1", key=key, service=service)
    finally:
        service.stop()


@pytest.fixture
def client(here: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=here.url, api_key=here.key, max_retries=0) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(fakes: dict[str, Fake]) -> None:
    for fake in fakes.values():
        fake.seen.clear()
        fake.end = "completed"


def trace(here: Any, id: str) -> dict[str, Any]:
    token = (here.service.home / "admin.token").read_text().strip()
    end = time.monotonic() + 15
    while True:
        found = httpx.get(f"{here.service.url}/api/traces/{id}", headers={"authorization": f"Bearer {token}"})
        if found.status_code == 200:
            return found.json()
        assert time.monotonic() < end, found.text
        time.sleep(0.05)


@pytest.mark.parametrize("app", ["own", "vendor"])
def test_a_request_goes_as_it_came_and_its_answer_comes_with_its_bytes(here: Any, fakes: dict[str, Fake], app: str) -> None:
    body = {"model": app, "input": "水车?", "store": False, "tools": TOOLS, "tool_choice": {"type": "web_search"},
            "include": ["web_search_call.results"], "metadata": {"a": "b"}, "user": "lovelace", "truncation": "auto",
            "text": {"format": {"type": "grammar"}}, "max_output_tokens": 77}  # fmt: skip
    answer = httpx.post(here.url + "/responses", json=body, headers={"authorization": f"Bearer {here.key}"})
    assert answer.content == json.dumps(response(), indent=1, ensure_ascii=False).encode()
    assert fakes["own"].seen == [("/v1/responses", body | {"model": "up-1"})]
    found = trace(here, answer.headers["x-request-id"])
    row = found["row"]
    assert (row["dialect"], row["native"], row["served_model"], row["upstream_id"]) == (
        "responses",
        True,
        "gpt-real",
        "resp_up",
    )
    assert (row["usage"]["input"], row["usage"]["output"], row["finish_reason"], row["warnings"]) == (40, 12, "tool_calls", [])
    assert "lovelace" not in json.dumps(found), "who the caller's user is stands there as a keyed hash"
    if app == "own":
        assert row["cost_usd"] == pytest.approx((40 * 1.0 + 12 * 2.0) / 1e6)


def test_a_stream_keeps_every_byte(here: Any, fakes: dict[str, Fake]) -> None:
    body = {"model": "own", "input": [{"role": "user", "content": "水车?"}], "store": False, "stream": True, "tools": TOOLS}
    answer = httpx.post(here.url + "/responses", json=body, headers={"authorization": f"Bearer {here.key}"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content == events()
    assert fakes["own"].seen == [("/v1/responses", body | {"model": "up-1"})]
    found = trace(here, answer.headers["x-request-id"])
    row = found["row"]
    assert (row["usage"]["input"], row["usage"]["output"], row["usage"]["cached"]) == (40, 12, 8)
    assert (row["served_model"], row["upstream_id"], row["finish_reason"]) == ("gpt-real", "resp_up", "tool_calls")
    assert row["ttft_ns"] > 0
    assert found["answer"]["output"][0]["type"] == "web_search_call"


def test_the_client_reads_hosted_and_custom_calls(client: OpenAI) -> None:
    whole = client.responses.create(model="own", input="x", store=False, tools=TOOLS)
    assert [item.type for item in whole.output] == ["web_search_call", "message", "local_shell_call", "custom_tool_call"]
    assert whole.output[3].input == "*** Begin\n"
    streamed = list(client.responses.create(model="own", input="x", store=False, tools=TOOLS, stream=True))
    assert streamed[-1].type == "response.completed"
    assert "".join(e.delta for e in streamed if e.type == "response.output_text.delta") == "你好"
    again: Any = [
        {"role": "user", "content": "x"},
        SHELL,
        {"type": "local_shell_call_output", "call_id": "call_1", "output": "a"},
    ]
    assert client.responses.create(model="own", input=again, store=False, tools=TOOLS).id == "resp_up"


@pytest.mark.parametrize("app", ["chat", "not", "inward", "outward", "prompted", "cached"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_where_it_must_be_translated_a_hosted_tool_is_refused_by_its_name(
    client: OpenAI, fakes: dict[str, Fake], app: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=r"web_search.*endpoint that speaks /v1/responses") as e:
        client.responses.create(model=app, input="x", store=False, tools=TOOLS, stream=stream)
    assert (e.value.code, e.value.param) == ("unsupported_feature", "tools[0]")
    with pytest.raises(openai.BadRequestError) as e:
        client.responses.create(model=app, input=[SHELL], store=False)  # type: ignore[list-item]
    assert (e.value.code, e.value.param) == ("unsupported_feature", "input[0]")
    assert not fakes["own"].seen
    assert not fakes["chat"].seen


def test_behind_a_guard_an_ordinary_request_is_translated(client: OpenAI, fakes: dict[str, Fake]) -> None:
    for app in ("inward", "outward", "not", "cached"):
        assert client.responses.create(model=app, input=f"x {app}", store=False).output_text == "from chat"
    assert [path for path, _ in fakes["own"].seen] == ["/v1/chat/completions"] * 4
    assert not any("noria.responses" in asked for _, asked in fakes["own"].seen)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"store": True},
        {"store": False, "tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
        {"store": False, "tools": [{"type": "mcp", "server_label": "x", "server_url": "http://10.0.0.1"}]},
        {"store": False, "tools": [{"type": "code_interpreter", "container": "cntr_1"}]},
        {"store": False, "tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]},
        {"store": False, "tools": [{"type": "new_thing"}]},
        {"store": False, "input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
        {"store": False, "input": [{"role": "user", "content": "x"}, {"type": "item_reference", "id": "msg_up"}]},
        {"store": False, "input": [{"role": "user", "content": "x"}, {"id": "msg_up"}]},
        {"store": False, "previous_response_id": "resp_up"},
        {"store": False, "background": True},
    ],
    ids=lambda more: json.dumps(more)[:60],
)
def test_nothing_reaches_what_another_key_may_have_in_the_operators_account(
    here: Any, fakes: dict[str, Fake], more: dict[str, Any]
) -> None:
    body = {"model": "own", "input": "x"} | more
    answer = httpx.post(here.url + "/responses", json=body, headers={"authorization": f"Bearer {here.key}"})
    assert "/v1/responses" not in [path for path, _ in fakes["own"].seen]
    assert answer.status_code == (
        200 if set(more) <= {"store"} else 404 if "msg_up" in answer.text or "resp_up" in answer.text else 400
    )


def test_a_route_of_both_kinds_asks_each_in_what_it_speaks(client: OpenAI, fakes: dict[str, Fake]) -> None:
    assert client.responses.create(model="mixed", input="x", store=False, tools=TOOLS).id == "resp_up", "the other would refuse"
    assert not fakes["chat"].seen
    fakes["own"].end = "busy"
    done = client.responses.create(model="behind", input="x", store=False)
    assert (done.output_text, fakes["chat"].seen[0][0]) == ("from chat", "/v1/chat/completions")
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="behind", input="x", store=False, tools=TOOLS)


@pytest.mark.parametrize("end", ["failed", "cut"])
def test_a_failure_after_the_first_event_ends_the_stream_with_an_error(here: Any, fakes: dict[str, Fake], end: str) -> None:
    fakes["own"].end = end
    body = {"model": "own", "input": "x", "store": False, "stream": True}
    answer = httpx.post(here.url + "/responses", json=body, headers={"authorization": f"Bearer {here.key}"})
    whole = events("cut")
    assert answer.content.startswith(whole)
    (last,) = answer.content[len(whole) :].decode().strip().split("\n\n")
    name, data = last.split("\n")
    error = json.loads(data.removeprefix("data: "))
    assert (name, error["type"], error["sequence_number"]) == ("event: error", "error", 9)
    assert ("it broke" if end == "failed" else "broke off") in error["message"]
    assert trace(here, answer.headers["x-request-id"])["row"]["error_code"] == (
        "upstream_error" if end == "failed" else "upstream_cut"
    )


def test_parameters_of_the_release_fill_in_what_the_caller_left_out(client: OpenAI, fakes: dict[str, Fake]) -> None:
    client.responses.create(model="warm", input="x", store=False, temperature=1.0)
    ((_, asked),) = fakes["own"].seen
    assert (asked["temperature"], asked["max_output_tokens"]) == (1.0, 99)
