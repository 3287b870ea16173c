"""Museum 17: a gateway that sends the same request in another order each time defeats the provider's prompt cache.

bifrost#2347: the order of tools was not deterministic, so no prefix was ever found again. Here: the same request twice,
through every stage that edits, gives the same bytes upstream, tools stand in the caller's order, and the marks
of prompt caching (`cache_control`, `prompt_cache_key`) arrive.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

CONFIG = """
models:
  openai: {{provider: openai_compatible, url: "{url}/v1", model: gpt}}
  claude: {{provider: anthropic, url: "{url}", model: claude, key: env:ANTHROPIC_API_KEY}}
prompts:
  host: {{text: "You are {{{{ name }}}}, the host."}}
guards:
  masking: [{{pii: {{action: mask}}}}]
apps:
  openai: {{model: openai, prompt: host, guard: masking, params: {{temperature: 0.0, max_tokens: 50, seed: 3}}}}
  claude: {{model: claude, prompt: host, guard: masking, params: {{temperature: 0.0, max_tokens: 50}}}}
"""
NAMES = ["zeta", "alpha", "mid", "beta"]
TOOLS = [
    {
        "type": "function",
        "function": {"name": n, "description": n, "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}},
    }
    for n in NAMES
]
MARK = {"type": "ephemeral"}


class Capture(BaseHTTPRequestHandler):
    """Keeps each body as it came."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        if self.path.endswith("/messages"):
            usage = {"input_tokens": 1, "output_tokens": 1}
            said = {"content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn", "usage": usage}
            answer = {"id": "m", "type": "message", "role": "assistant", "model": "claude", **said}
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
            answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt", "choices": [choice]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def bodies():
    class Mine(Capture):
        bodies: list[bytes] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Mine.bodies, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(5)
    server.server_close()


@pytest.fixture(scope="module")
def noria(serve_once, bodies):
    return serve_once(CONFIG.format(url=bodies[1]), env={"ANTHROPIC_API_KEY": "sk-test"})


@pytest.mark.parametrize("app", ["openai", "claude"])
def test_the_same_request_is_the_same_bytes_upstream(noria, bodies, http, app):
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": MARK}]}
    user = {"role": "user", "content": "write to ann.miller@example.com and bob@example.org"}
    ask = {"model": app, "messages": [system, user], "tools": TOOLS, "variables": {"name": "Ann", "other": "x"}, "user": "u1"}
    if app == "openai":
        ask["prompt_cache_key"] = "tenant-7"
    seen = bodies[0]
    for _ in range(5):
        status, _, body = http(noria.url + "/v1/chat/completions", ask)
        assert status == 200, body
    assert len(set(seen[-5:])) == 1, "a prefix that changes is paid anew each time"
    sent = json.loads(seen[-1])
    names = [t["function"]["name"] if "function" in t else t["name"] for t in sent["tools"]]
    assert names == NAMES, "as the caller sent them"
    first = sent["tools"][0].get("function", {}).get("parameters") or sent["tools"][0]["input_schema"]
    assert list(first["properties"]) == ["z", "a"]
    assert b'"cache_control":{"type":"ephemeral"}' in seen[-1].replace(b" ", b"")
    assert b"ann.miller" not in seen[-1]
    if app == "openai":
        assert sent["prompt_cache_key"] == "tenant-7"


def test_a_longer_conversation_begins_with_the_bytes_of_the_shorter_one(noria, bodies, http):
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "second"},
    ]
    for n in (1, 3):
        ask = {"model": "openai", "messages": turns[:n], "variables": {"name": "Ann"}}
        assert http(noria.url + "/v1/chat/completions", ask)[0] == 200
    short, long = ([json.dumps(m) for m in json.loads(b)["messages"]] for b in bodies[0][-2:])
    assert long[: len(short)] == short, "what was said stays the prefix of what is said"
