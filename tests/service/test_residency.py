"""A prompt that must stay in a region stays there on every way out of the house, not on the router's alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai import OpenAI

ASKED = [{"role": "user", "content": "secret of Europe"}]
EU = {"x-noria-tags": "regions=eu"}
NOWHERE = {"x-noria-tags": "regions=ap"}


class Fake:
    """An upstream that keeps the paths it is asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", "0")))
                outer.seen.append(self.path)
                answer = json.dumps({"input_tokens": 7, "totalTokens": 7}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST  # noqa: N815  the base class's names

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def fakes() -> Iterator[dict[str, Fake]]:
    made = {"far": Fake(), "near": Fake()}
    yield made
    for fake in made.values():
        fake.server.shutdown()
        fake.server.server_close()


@pytest.fixture(scope="module")
def service(serve_once: Callable[..., Any], fakes: dict[str, Fake]) -> Any:
    regions = {"far": "us-east-1", "near": "eu-west-1"}
    models: dict[str, Any] = {"vectors": {"provider": "scripted", "model": "v", "kind": "embedding", "region": "us"}}
    for name, fake in fakes.items():
        for provider, path in (("anthropic", ""), ("gemini", "/v1beta"), ("openai_compatible", "/v1")):
            models[f"{provider}-{name}"] = {
                "provider": provider, "model": "m", "url": fake.url + path, "region": regions[name], "key": "env:UP_KEY",
            }  # fmt: skip
        models[f"script-{name}"] = {"provider": "scripted", "model": name, "region": regions[name]}
    models["openai_compatible-far"]["options"] = {"batch": True}
    apps: dict[str, Any] = {
        f"{kind}-{of}": {"model": [f"{provider}-far", f"{provider}-near"], "regions": ["eu"] if of == "eu" else []}
        for kind, provider in (("claude", "anthropic"), ("gem", "gemini"), ("gpt", "openai_compatible"))
        for of in ("eu", "any")
    }
    apps["batched"] = {"model": "openai_compatible-far"}
    apps["alike"] = {"model": "script-near", "cache": {"semantic": "vectors"}}
    text = json.dumps({"models": models, "apps": apps, "serve": {"passthrough": "openai_compatible-far"}})
    return serve_once(text, env={"UP_KEY": "sk-upstream"})


@pytest.fixture(scope="module")
def noria(service: Any, caller: Any) -> Any:
    return caller(service, caller(service).new_key(name="any"))


@pytest.fixture(scope="module")
def european(service: Any, caller: Any) -> Any:
    return caller(service, caller(service).new_key(name="eu", tags={"regions": "eu"}))


@pytest.fixture(autouse=True)
def fresh(fakes: dict[str, Fake]) -> None:
    for fake in fakes.values():
        fake.seen.clear()


def count(noria: Any, app: str, headers: dict[str, str] | None = None) -> Any:
    if app.startswith("claude"):
        return noria.post("/v1/messages/count_tokens", {"model": app, "messages": ASKED}, headers)
    contents = {"contents": [{"role": "user", "parts": [{"text": "secret of Europe"}]}]}
    return noria.post(f"/v1beta/models/{app}:countTokens", contents, headers)


@pytest.mark.parametrize("kind", ["claude", "gem"])
def test_tokens_are_counted_within_the_regions(noria: Any, european: Any, fakes: dict[str, Fake], kind: str) -> None:
    for who, app, headers in ((noria, f"{kind}-eu", {}), (noria, f"{kind}-any", EU), (european, f"{kind}-any", {})):
        answer = count(who, app, headers)
        assert (answer.status, answer.headers["x-noria-count"]) == (200, "exact"), answer.body
    assert (len(fakes["near"].seen), fakes["far"].seen) == (3, [])
    assert count(noria, f"{kind}-any").status == 200
    assert len(fakes["far"].seen) == 1, "without a constraint the first of the route counts"
    refused = count(noria, f"{kind}-any", NOWHERE)
    assert (refused.status, b"regions [ap]" in refused.body) == (400, True), refused.body
    assert count(noria, f"{kind}-eu", {"x-noria-tags": "regions=us"}).status == 400
    assert (len(fakes["near"].seen), len(fakes["far"].seen)) == (3, 1)


def test_what_passes_verbatim_stays_within_the_regions(noria: Any, european: Any, fakes: dict[str, Fake]) -> None:
    for who, app, headers in ((noria, "gpt-eu", {}), (noria, "gpt-any", EU), (european, "gpt-any", {})):
        assert who.post("/v1/rerank", {"model": app, "query": "q"}, headers).status == 200
    assert (len(fakes["near"].seen), fakes["far"].seen) == (3, [])
    error = noria.post("/v1/rerank", {"model": "gpt-eu"}, NOWHERE).refuses(400, "no_model_qualifies", param="model")
    assert "regions [eu] and [ap]" in error["message"]
    error = european.post("/v1/threads", {"q": "names no model"}).refuses(400, "no_model_qualifies", param="model")
    assert "regions [eu]: openai_compatible-far computes in 'us-east-1'" in error["message"].replace(")", "").replace("(", "")
    assert fakes["far"].seen == []
    assert noria.post("/v1/threads", {"q": "names no model"}).status == 200
    assert len(fakes["far"].seen) == 1


def test_a_batch_is_not_sent_to_an_endpoint_outside_of_its_keys_regions(
    service: Any, european: Any, fakes: dict[str, Fake]
) -> None:
    line = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "batched", "messages": ASKED}}
    with OpenAI(base_url=service.url + "/v1", api_key=european.key, max_retries=0) as client:
        file = client.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        end = time.monotonic() + 20
        while batch.status not in ("completed", "failed") and time.monotonic() < end:
            time.sleep(0.05)
            batch = client.batches.retrieve(batch.id)
        assert batch.error_file_id, batch
        (failed,) = client.files.content(batch.error_file_id).text.splitlines()
    error = json.loads(failed)["response"]["body"]["error"]
    assert (error["code"], "regions [eu]" in error["message"]) == ("no_model_qualifies", True)
    assert fakes["far"].seen == []


def test_a_batch_that_could_not_keep_a_callers_own_regions_is_refused(noria: Any) -> None:
    asked = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    error = noria.post("/v1/batches", asked, EU).refuses(400, "invalid_tags", param="x-noria-tags")
    assert "regions=eu" in error["message"]
    noria.post("/v1/batches", asked, {"x-noria-tags": "env=prod"}).refuses(404, "file_not_found", param="id")


def test_a_question_of_another_region_is_not_embedded(noria: Any, european: Any) -> None:
    def away(at_least: int) -> int:
        end = time.monotonic() + 10
        while True:
            lines = dict(line.rsplit(" ", 1) for line in noria.send("GET", "/metrics").body.decode().splitlines())
            found = int(float(lines.get('noria_cache_total{event="embedder_away"}', 0)))
            if found >= at_least or time.monotonic() > end:
                return found
            time.sleep(0.05)

    assert noria.chat("alike", "what is a noria?").headers["x-noria-cache"] == "miss"
    assert european.chat("alike", "what is a wheel?").headers["x-noria-cache"] == "miss"
    assert away(1) == 1, "only the question that may not leave Europe was not embedded"
