"""Active health probes: one process asks, all workers know, real traffic decides when an endpoint is back."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

CONFIG = """
models:
  a: {provider: openai_compatible, url: "%(a)s", model: a, price: {input: 1.0, output: 2.0}, health: {probe: /up, every: 1s, timeout: 1s, failures: 1}}
  b: {provider: openai_compatible, url: "%(b)s", model: b, price: {input: 1.0, output: 2.0}}
  c: {provider: openai_compatible, url: "%(c)s", model: c, price: {input: 1.0, output: 2.0}, health: {probe: completion, every: 1s}}
apps:
  pair: {model: [a, b]}
  alone: {model: a}
  priced: {model: c}
"""
ANSWER = {
    "id": "up-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}  # fmt: skip


class Endpoint:
    """An upstream whose list of models and whose answers can be told to fail, each by itself."""

    def __init__(self) -> None:
        self.get_status = self.post_status = 200
        self.gets: list[str] = []
        self.posts: list[dict] = []
        own = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                own.gets.append(self.path)
                self._say(own.get_status, b"{}")

            def do_POST(self) -> None:
                own.posts.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self._say(
                    own.post_status, json.dumps(ANSWER if own.post_status == 200 else {"error": {"message": "no"}}).encode()
                )

            def _say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def ends():
    made = {name: Endpoint() for name in "abc"}
    yield made
    for end in made.values():
        end.close()


@pytest.fixture(scope="module")
def noria(serve_once, ends, caller):
    return caller(serve_once(CONFIG % {name: end.url for name, end in ends.items()}, "--workers", "2"))


def until(what, within: float, why: str):
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, why
        time.sleep(0.05)
    return found


def status(noria) -> dict:
    return noria.api("GET", "/api/status").json


def states(noria, endpoint: str) -> list[str]:
    """How each worker that has it sees an endpoint."""
    return [s["state"] for w in status(noria)["workers"] for s in w["endpoints"] if s["endpoint"] == endpoint]


def probe(noria, endpoint: str) -> dict:
    return next(p for p in status(noria)["probes"] if p["endpoint"] == endpoint)


@pytest.fixture(autouse=True)
def well(noria, ends):
    """Tests come in any order: each finds an endpoint that answers its probes and that no worker holds out any more. One that
    fails them while it is still held out for its key stays `dead`, not `ejected`.
    """
    ends["a"].get_status = 200
    until(lambda: probe(noria, "a")["state"] == "ok", 20, "an earlier test has left it unwell")
    until(lambda: not {"dead", "ejected"}.intersection(states(noria, "a")), 20, "an earlier test has left it held out")


def test_one_process_asks_whatever_the_number_of_workers(noria, ends):
    until(lambda: len(ends["a"].gets) >= 2, 15, "no probe")
    before, began = len(ends["a"].gets), time.monotonic()
    time.sleep(3.0)
    asked = len(ends["a"].gets) - before
    assert 2 <= asked <= (time.monotonic() - began) / 0.9 + 1
    assert set(ends["a"].gets) == {"/up"}
    assert ends["b"].gets == [], "nobody asked for it there"
    now = probe(noria, "a")
    assert now["state"] == "ok"
    # tests come in any order: what an earlier one made it say is history, and none has been added while we looked
    assert now["last_error"] is None or now["last_error"]["seconds_ago"] >= 3.0


def test_an_endpoint_that_fails_its_probes_is_passed_over_in_every_worker_and_comes_back_by_real_traffic(noria, ends):
    a, b = ends["a"], ends["b"]
    a.get_status = 503
    until(lambda: states(noria, "a") == ["ejected", "ejected"], 10, "not every worker knows")
    before = len(a.posts), len(b.posts)
    answers = [noria.chat("pair", f"ask {n}") for n in range(8)]
    assert {x.headers["x-noria-endpoint"] for x in answers} == {"b"}
    assert (len(a.posts) - before[0], len(b.posts) - before[1]) == (0, 8), "no caller had to find out"
    assert noria.chat("alone").status == 200, "the last endpoint of a route is asked all the same"

    found = probe(noria, "a")
    assert (found["state"], found["probe"]) == ("out", "/up")
    assert "503" in found["last_error"]["text"]
    told = noria.service.cli("doctor", "--offline", check=False)
    assert "model a is passed over by its probes (/up): GET /up was answered with 503." in told.stdout
    metrics = noria.send("GET", "/metrics").body.decode()
    assert 'noria_probe_out{endpoint="a"} 1' in metrics
    assert 'noria_probes_total{endpoint="a",result="failed"}' in metrics

    a.get_status = 200
    until(lambda: states(noria, "a") == ["trial", "trial"], 15, "the deadline does not pass")
    assert probe(noria, "a")["state"] == "ok"

    def asked_again() -> bool:
        return noria.chat("pair", "again").status == 200 and states(noria, "a") == ["ok", "ok"]

    until(asked_again, 15, "no real request has brought it back")


def test_a_key_that_is_refused_is_an_alarm(noria, ends):
    ends["a"].get_status = 401
    until(lambda: states(noria, "a") == ["dead", "dead"], 10, "not told")
    assert any(n["code"] == "endpoint" and "'a' refuses its key" in n["text"] for n in status(noria)["notices"])


def test_a_probe_that_is_none_for_an_endpoint_says_so_and_holds_nothing_against_it(noria, ends):
    ends["a"].get_status = 404
    until(lambda: probe(noria, "a")["state"] == "unfit", 10, "not told")
    assert "choose another path" in probe(noria, "a")["last_error"]["text"]


def test_completions_are_recorded_and_priced_as_our_own(noria, ends):
    until(lambda: ends["c"].posts and probe(noria, "c")["state"] == "ok", 15, "no probe")
    sent = ends["c"].posts[0]
    assert (sent["max_tokens"], sent["messages"]) == (1, [{"role": "user", "content": "ping"}])
    rows = until(lambda: noria.api("GET", "/api/traces?filter=app=noria:probe").json["rows"], 10, "not recorded")
    assert (rows[0]["endpoint"], rows[0]["cost_usd"], rows[0]["cost_status"]) == ("c", pytest.approx(20e-6), "exact")
    assert probe(noria, "c")["cost_usd"] >= 20e-6
    assert "noria:probe" in {g["app"] for g in noria.api("GET", "/api/cost?by=app").json["groups"]}
