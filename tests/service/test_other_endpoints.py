"""Everything of OpenAI's surface beside prompts: passed through byte by byte, moderated, or batched by the upstream itself."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

SOUND = bytes(range(256)) * 9000  # 2.3 MB: longer than what is kept whole
PICTURE = b'{"created": 1,   "data":[{"b64_json":"5LiW55WM"}], "usage":{"input_tokens":9,"output_tokens":100}}'


@dataclass
class Fake:
    """An OpenAI that keeps what it is asked and has a batch API."""

    port: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    polls_until_done: int = 2
    done_when_cancelled: int = 0
    """Lines that a batch has answered when it is cancelled."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [s for s in self.seen if s["path"].startswith(path)]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        if path == "/v1/audio/speech":
            return 200, "audio/mpeg", SOUND
        if path == "/v1/images/generations":
            return 200, "application/json", PICTURE
        if path == "/v1/audio/transcriptions":
            return 200, "application/json", '{"text": "你好，世界"}'.encode()
        if path == "/v1/rerank":
            return 422, "application/json", b'{"error": {"message": "no documents", "type": "x", "param": null, "code": "y"}}'
        if path == "/v1/secret":
            return 401, "application/json", b'{"error": {"message": "Incorrect API key provided: sk-upstream"}}'
        if path.startswith("/v1/files"):
            return self._files(method, path, body)
        if path.startswith("/v1/batches"):
            return self._batches(method, path, body)
        return 200, "application/json", json.dumps({"method": method, "path": path}).encode()

    def _files(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        if method == "POST":
            name = f"file-up{len(self.files)}"
            self.files[name] = body.split(b"application/jsonl\r\n\r\n")[1].rsplit(b"\r\n--", 1)[0]
            return 200, "application/json", json.dumps({"id": name}).encode()
        name = path.split("/")[3]
        if method == "DELETE":
            return 200, "application/json", b"{}"
        return 200, "application/jsonl", self.files[name]

    def _batches(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        if method == "POST" and path == "/v1/batches":
            made = {"id": f"batch_up{len(self.batches)}", "status": "in_progress", "polls": 0, **json.loads(body)}
            self.batches[made["id"]] = made
            return 200, "application/json", json.dumps(made).encode()
        if path == "/v1/batches":
            return 200, "application/json", json.dumps({"data": list(self.batches.values())}).encode()
        batch = self.batches[path.split("/")[3]]
        if path.endswith("/cancel"):
            batch["status"] = "cancelling"
            return 200, "application/json", json.dumps(batch).encode()
        batch["polls"] += 1
        if batch["status"] == "cancelling" and batch["polls"] % 2:  # it takes its time
            self._work(batch, self.done_when_cancelled)
            batch["status"] = "cancelled"
        if batch["polls"] > self.polls_until_done and batch["status"] == "in_progress":
            self._work(batch)
        return 200, "application/json", json.dumps(batch).encode()

    def _work(self, batch: dict[str, Any], most: int | None = None) -> None:
        lines = []
        for raw in self.files[batch["input_file_id"]].splitlines()[:most]:
            asked = json.loads(raw)
            text = asked["body"]["messages"][-1]["content"]
            message = {"role": "assistant", "content": f"ja {text}"}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            body = {"id": "chatcmpl-b", "object": "chat.completion", "created": 1, "model": "up-1", "usage": usage,
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
            response = {"status_code": 200, "request_id": "r", "body": body}
            lines.append(json.dumps({"id": "x", "custom_id": asked["custom_id"], "response": response, "error": None}))
        self.files["file-out"] = "\n".join(lines).encode()
        batch |= {"status": "completed", "output_file_id": "file-out"}


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    made = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {k.lower(): v for k, v in self.headers.items()}
            path, _, query = self.path.partition("?")
            made.seen.append({"method": self.command, "path": path, "query": query, "headers": headers, "body": body})
            status, kind, answer = made.answer(self.command, path, body)
            self.send_response(status)
            for name, value in (
                ("content-type", kind),
                ("set-cookie", "a=b"),
                ("location", "http://evil/"),
                ("x-request-id", "up-1"),
            ):
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = handle_any  # noqa: N815  the base class's names

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def service(serve_once: Callable[..., Any], fake: Fake) -> Any:
    return serve_once(
        f"""
models:
  up: {{provider: openai_compatible, model: up-1, url: "{fake.url}", key: env:UP_KEY, options: {{batch: true}},
       price: {{input: 10, output: 20, batch: 0.5}}}}
  picture: {{provider: openai_compatible, model: dall-e, url: "{fake.url}", key: env:UP_KEY,
       price: {{input: 0, output: 0, request: 0.04}}}}
  fake: {{provider: scripted, model: fake}}
guards:
  strict: [secrets]
apps:
  chat: {{model: up}}
  painter: {{model: picture}}
  guarded: {{model: up, guard: strict}}
  own: {{model: fake}}
serve: {{passthrough: up}}
batches: {{poll: 100ms}}
""",
        env={"UP_KEY": "sk-upstream"},
    )


@pytest.fixture(scope="module")
def key(service: Any, caller: Any) -> str:
    return caller(service).new_key(name="all")


@pytest.fixture(scope="module")
def client(service: Any, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=service.url + "/v1", api_key=key, max_retries=0) as made:
        yield made


# -- pass-through -----------------------------------------------------------------------------------


def test_images_by_the_sdk_pass_with_only_the_model_replaced(client: OpenAI, fake: Fake, service: Any, caller: Any) -> None:
    done = client.images.with_raw_response.generate(model="painter", prompt="水墨山水", n=1)
    assert done.content == PICTURE
    seen = fake.asked("/v1/images")[-1]
    assert json.loads(seen["body"]) == {"model": "dall-e", "prompt": "水墨山水", "n": 1}
    assert seen["headers"]["authorization"] == "Bearer sk-upstream"
    row = caller(service).row(done.headers["x-request-id"])
    assert (row["kind"], row["status"], row["app"], row["upstream_id"]) == ("passthrough", 200, "painter", "up-1")
    assert row["cost_usd"] == pytest.approx(0.04)


def test_a_binary_answer_arrives_byte_by_byte(client: OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(model="chat", voice="alloy", input="你好") as answer:
        assert b"".join(answer.iter_bytes()) == SOUND
        assert answer.headers["content-type"] == "audio/mpeg"


def test_a_form_passes_with_its_file_untouched(client: OpenAI, fake: Fake) -> None:
    sound = b"\x00\r\n--not-a-boundary\r\nmodel\xff" * 100
    said = client.audio.transcriptions.create(model="chat", file=("录音.wav", io.BytesIO(sound)), language="zh")
    assert said.text == "你好，世界"
    body = fake.asked("/v1/audio/transcriptions")[-1]["body"]
    assert sound in body
    assert b'name="model"\r\n\r\nup-1\r\n' in body


def test_bytes_of_json_stay_as_they_came(service: Any, key: str, caller: Any, fake: Fake) -> None:
    raw = b'{ "a" : 1.0e1,\n\t"model":"chat", "x":{"model":"chat"}, "b":"\\u4e16" }'
    done = caller(service, key).send("POST", "/v1/anything/else?x=1&y[]=2", raw, {"authorization": f"Bearer {key}"})
    assert done.status == 200
    seen = fake.asked("/v1/anything")[-1]
    assert seen["body"] == raw.replace(b'"chat"', b'"up-1"', 1)
    assert seen["query"] == "x=1&y[]=2"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_names_no_model_goes_to_the_configured_one(service: Any, key: str, caller: Any, fake: Fake, method: str) -> None:
    done = caller(service).send(method, "/v1/fine_tuning/jobs/ft-1", None, {"authorization": f"Bearer {key}"})
    assert done.json == {"method": method, "path": "/v1/fine_tuning/jobs/ft-1"}
    assert "set-cookie" not in done.headers
    assert "location" not in done.headers


def test_errors_of_the_upstream_pass_but_not_its_words_about_our_key(service: Any, key: str, caller: Any) -> None:
    refused = caller(service, key).post("/v1/rerank", {"model": "chat"})
    assert (refused.status, refused.json["error"]["message"]) == (422, "no documents")
    unknown = caller(service, key).post("/v1/secret", {"model": "chat"})
    assert unknown.status == 502
    assert b"sk-upstream" not in unknown.body


def test_neither_credentials_nor_cookies_nor_addresses_of_the_caller_are_passed(
    service: Any, key: str, caller: Any, fake: Fake
) -> None:
    caller(service, key).post(
        "/v1/anything", {"model": "chat"},
        {"cookie": "a=b", "x-forwarded-for": "10.0.0.1", "x-api-key": "x", "openai-organization": "org-x", "te": "trailers",
         "x-noria-owner": "tenant=local", "openai-beta": "assistants=v2", "x-portkey-custom-host": "http://169.254.169.254"},
    )  # fmt: skip
    headers = fake.asked("/v1/anything")[-1]["headers"]
    assert key not in json.dumps(headers)
    assert set(headers) <= {"host", "accept-encoding", "content-length", "content-type", "user-agent", "authorization",
                            "traceparent", "openai-beta", "accept"}  # fmt: skip
    assert headers["openai-beta"] == "assistants=v2"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../admin", "/v1/images/../../admin", "/v1//images", "/v1/images//generations", "/v1/images%2f..%2fadmin", "/v1/%2e%2e/admin",
        "/v1/images/.", "/v1/.hidden/x", "/v1/http://169.254.169.254/latest", "/v1/@169.254.169.254/x/../y", "/v1/a\\..\\b",
        "/v1/organization/admin_api_keys",
    ],
)  # fmt: skip
def test_museum_03_no_path_reaches_another_place_than_the_configured_upstream(
    service: Any, key: str, caller: Any, fake: Fake, target: str
) -> None:
    """SSRF and path tricks (anchors: portkey#1718, portkey PR#1597): the host comes from the configuration alone."""
    before = len(fake.seen)
    done = caller(service).send("GET", target, None, {"authorization": f"Bearer {key}"})
    assert done.status in (400, 404, 501), done.body
    assert len(fake.seen) == before


def test_museum_03_an_absolute_target_changes_no_host(service: Any, key: str, fake: Fake) -> None:
    import socket

    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as s:
        s.sendall(
            f"GET http://169.254.169.254/v1/models/x HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode()
        )
        assert b" 400 " in s.recv(4096).split(b"\r\n")[0]


def test_a_guarded_app_is_not_passed_to(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as e:
        client.images.generate(model="guarded", prompt="x")
    assert e.value.code == "guarded_app"


def test_realtime_and_what_nobody_serves_are_refused_in_words(service: Any, key: str, caller: Any) -> None:
    assert caller(service, key).post("/v1/realtime/sessions", {"model": "chat"}).refuses(501, "unsupported_feature")
    assert caller(service, key).post("/v1/rerank", {"model": "own"}).refuses(404, "unknown_url")
    assert caller(service, key).post("/v1/rerank", {"model": "nobody"}).refuses(404, "model_not_found", param="model")


def test_keys_scopes_and_budgets_hold_for_what_passes(service: Any, caller: Any) -> None:
    operator = caller(service)
    narrow = operator.new_key(apps=["painter"])
    assert caller(service, narrow).post("/v1/anything", {"model": "chat"}).status == 403
    assert operator.send("POST", "/v1/anything", {"model": "chat"}).status == 401
    assert caller(service, narrow).send("GET", "/v1/threads", None, {"authorization": f"Bearer {narrow}"}).status == 403
    poor = operator.new_key(budget_usd=0.05)
    assert caller(service, poor).post("/v1/anything", {"model": "chat"}).json["error"]["code"] == "price_unknown"
    assert caller(service, poor).post("/v1/images/generations", {"model": "painter"}).status == 200
    assert caller(service, poor).post("/v1/images/generations", {"model": "painter"}).status == 429


# -- moderations ------------------------------------------------------------------------------------


def test_moderations_by_our_checks_in_openais_shape(client: OpenAI, service: Any, caller: Any) -> None:
    done = client.moderations.with_raw_response.create(input=["写信给 ann@example.com", "今天天气很好"])
    first, second = done.parse().results
    assert first.flagged
    assert first.categories.model_dump()["pii"] is True
    assert first.category_scores.model_dump()["pii/email"] == 1.0
    assert not second.flagged
    found = caller(service).trace(done.headers["x-request-id"])
    assert found["row"]["kind"] == "moderation"
    assert "ann@example.com" not in json.dumps(found, ensure_ascii=False)


def test_a_policy_or_an_app_named_as_model_moderates_alone(client: OpenAI) -> None:
    for name in ("strict", "guarded"):
        (one,) = client.moderations.create(model=name, input="mail ann@example.com").results
        assert not one.flagged
        assert set(one.categories.model_dump(exclude_none=True)) == {"secrets"}
    with pytest.raises(NotFoundError, match="strict"):
        client.moderations.create(model="strikt", input="x")
    with pytest.raises(BadRequestError):
        client.moderations.create(input=[])


# -- the upstream's own batches ---------------------------------------------------------------------


def test_a_batch_goes_through_the_upstreams_own_api_at_its_batch_price(
    client: OpenAI, fake: Fake, service: Any, caller: Any
) -> None:
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "chat", "messages": [{"role": "user", "content": f"第{i}"}]}} for i in range(20)
    ]  # fmt: skip
    lines[7]["body"]["messages"] = "nonsense"
    before, chats, fake.polls_until_done = len(fake.batches), len(fake.asked("/v1/chat/completions")), 2
    file = client.files.create(file=("b.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    end = time.monotonic() + 20
    while batch.status not in ("completed", "failed") and time.monotonic() < end:
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 19, 1)
    assert len(fake.batches) == before + 1
    assert len(fake.asked("/v1/chat/completions")) == chats
    rows = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [r["custom_id"] for r in rows] == [f"c{i}" for i in range(20) if i != 7]
    assert rows[3]["response"]["body"]["choices"][0]["message"]["content"] == "ja 第3"
    row = caller(service).row(rows[0]["response"]["request_id"])
    assert row["cost_usd"] == pytest.approx((100 * 10 + 10 * 20) / 1e6 / 2)
    (bad,) = client.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(bad)["custom_id"] == "c7"


def lines_of(many: int, model: str = "chat") -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    asked = [{"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": body} for i in range(many)]
    return "\n".join(map(json.dumps, asked)).encode()


def finished(client: OpenAI, batch: Any) -> Any:
    end = time.monotonic() + 30
    while batch.status not in ("completed", "failed", "cancelled", "expired") and time.monotonic() < end:
        time.sleep(0.05)
        batch = client.with_options(max_retries=20).batches.retrieve(batch.id)
    return batch


def test_a_keeper_that_dies_finds_its_upstream_batch_again(client: OpenAI, fake: Fake, service: Any) -> None:
    before, fake.polls_until_done = len(fake.batches), 20
    file = client.files.create(file=("b.jsonl", lines_of(10)), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    end = time.monotonic() + 10
    while len(fake.batches) == before and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(service.pids()["keeper"], signal.SIGKILL)
    batch = finished(client, batch)
    assert (batch.status, batch.request_counts.completed) == ("completed", 10)
    assert len(fake.batches) == before + 1, "no second batch was made, and paid for"
    ids = [json.loads(x)["response"]["request_id"] for x in client.files.content(batch.output_file_id).text.splitlines()]
    assert len(set(ids)) == 10


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
def test_a_batch_that_ends_early_delivers_and_prices_what_the_upstream_had_answered(
    client: OpenAI, fake: Fake, service: Any, caller: Any, ending: str
) -> None:
    before, fake.polls_until_done, fake.done_when_cancelled = len(fake.batches), 10_000, 4
    file = client.files.create(file=("b.jsonl", lines_of(10)), purpose="batch")
    window = "2s" if ending == "expired" else "24h"
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window=window)  # type: ignore[arg-type]
    end = time.monotonic() + 10
    while len(fake.batches) == before and time.monotonic() < end:
        time.sleep(0.01)
    if ending == "cancelled":
        assert client.batches.cancel(batch.id).status == "cancelling"
        os.kill(service.pids()["keeper"], signal.SIGKILL)  # who comes next knows that it was cancelled
    batch = finished(client, batch)
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == (ending, 4, 6)
    upstream = list(fake.batches)[before:]
    assert [fake.batches[u]["status"] for u in upstream] == ["cancelled"], "it would be worked on, and paid for"
    rows = [json.loads(x) for x in client.files.content(batch.output_file_id).text.splitlines()]
    assert [r["custom_id"] for r in rows] == ["c0", "c1", "c2", "c3"]
    for row in rows:
        assert caller(service).row(row["response"]["request_id"])["cost_usd"] == pytest.approx((100 * 10 + 10 * 20) / 1e6 / 2)
    bad = [json.loads(x) for x in client.files.content(batch.error_file_id).text.splitlines()]
    assert {b["error"]["code"] for b in bad} == {f"batch_{ending}"}
    assert len(bad) == 6


def test_a_key_with_a_hard_budget_is_served_line_by_line(fake: Fake, service: Any, caller: Any) -> None:
    before = len(fake.batches)
    key = caller(service).new_key(budget_usd=100)
    with OpenAI(base_url=service.url + "/v1", api_key=key, max_retries=0) as client:
        file = client.files.create(file=("b.jsonl", lines_of(3)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        assert finished(client, batch).request_counts.total == 3
    assert len(fake.batches) == before
    assert len(fake.asked("/v1/chat/completions")) >= 3
