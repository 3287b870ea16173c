"""Several upstreams behind one app: killed, slow, rate limited, broken; the caller gets an answer as long as there is one."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


class Fake:
    """One upstream on loopback that does what `mode` says; `calls` are the bodies it got."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mode = "ok"
        self.calls: list[dict[str, Any]] = []
        self.left: list[float] = []
        """When (monotonic) callers hung up."""
        self.loop = asyncio.new_event_loop()
        self.server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self.server.sockets[0].getsockname()[1]
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def reset(self, mode: str = "ok") -> None:
        self.mode = mode
        self.calls.clear()
        self.left.clear()

    def kill(self) -> None:
        """No listener, no connections."""

        def down() -> None:
            self.server.close()
            for writer in self._writers:
                writer.transport.abort()

        self.loop.call_soon_threadsafe(down)
        time.sleep(0.05)

    def stop(self) -> None:
        async def end() -> None:
            self.server.close()
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.calls.append(body)
                await self._answer(reader, writer, body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.append(time.monotonic())
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        kind, _, value = self.mode.partition(":")
        if kind == "slow":
            gone = asyncio.ensure_future(reader.read(1))
            await asyncio.wait([gone], timeout=float(value))
            if gone.done():
                raise ConnectionError
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        elif kind == "status":
            code, _, extra = value.partition(",")
            said = {"message": f"{self.name} says no", "type": "t", "param": None, "code": None}
            self._json(writer, int(code), {"error": said}, extra)
            return
        elif kind == "window":
            said = {
                "message": "too long",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
            self._json(writer, 400, {"error": said})
            return
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": self.name}, "finish_reason": "stop"}
            self._json(
                writer,
                200,
                {"id": "c", "object": "chat.completion", "created": 1, "model": self.name, "choices": [choice], "usage": usage},
            )
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await self._stream(reader, writer, kind, usage)

    async def _stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, usage: dict[str, int]
    ) -> None:
        top = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": self.name}

        def send(data: bytes) -> None:
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))

        def chunk(delta: dict[str, Any], finish: str | None = None) -> None:
            choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
            send(b"data: " + json.dumps(top | {"choices": choices}).encode() + b"\n\n")

        chunk({"role": "assistant", "content": ""})
        if kind in ("error-frame", "error-later"):
            if kind == "error-later":
                chunk({"content": "half"})
            send(b'data: {"error":{"message":"Overloaded","type":"overloaded_error","code":529}}\n\n')
            await self._until_left(reader)
        elif kind == "long-frame":
            piece = b"data: " + b"x" * 65536
            send(piece)
            for _ in range(100):
                send(b"y" * 65536)
                await writer.drain()
            await self._until_left(reader)
        elif kind == "chatter":
            gone = asyncio.ensure_future(reader.read(1))
            while not gone.done():
                send(b": still thinking\n\n")
                await asyncio.wait([gone], timeout=0.05)
            raise ConnectionError
        chunk({"content": self.name})
        chunk({}, "stop")
        send(b"data: " + json.dumps(top | {"choices": [], "usage": usage}).encode() + b"\n\n")
        send(b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    async def _until_left(self, reader: asyncio.StreamReader) -> None:
        """A broken upstream need not have the manners to hang up."""
        await reader.read(1)
        raise ConnectionError

    @staticmethod
    def _json(writer: asyncio.StreamWriter, status: int, value: Any, extra: str = "") -> None:
        data = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
        writer.write((head + (extra + "\r\n" if extra else "") + "\r\n").encode() + data)


@pytest.fixture(scope="module")
def fakes():
    made = {name: Fake(name) for name in ("a", "b", "c")}
    yield made
    for fake in made.values():
        fake.stop()


APPS: dict[str, Any] = {
    "chain": {"model": ["a", "b"], "routing": {"health": False}},
    "alone": {"model": "a", "routing": {"health": False}},
    "capped": {"model": ["a", "b", "c"], "routing": {"retries": 1, "health": False}},
    "hedged": {"model": ["a", "b"], "routing": {"health": False, "hedge": {"after": "100ms"}}},
    "weighted": {"model": ["a", "b"], "routing": {"strategy": "weighted", "weights": {"a": 3}, "health": False}},
    "sticky": {"model": ["a", "b", "c"], "routing": {"strategy": "sticky", "sticky": "tag:customer", "health": False}},
    "ruled": {
        "model": ["a", "b", "c"],
        "routing": {
            "health": False,
            "rules": [
                {"when": {"language": "zh"}, "use": "b"},
                {"when": {"tools": True}, "use": ["c", "a"]},
                {"when": {"tags": {"tier": "gold"}}, "use": [["b", "c"]]},
            ],
        },
    },
    "topical": {
        "model": ["a", "b"],
        "routing": {
            "health": False,
            "semantic": {
                "embedder": "vectors",
                "within": "5s",
                "topics": {
                    "billing": {"use": "a", "examples": ["my invoice is wrong", "my invoice is wrong"]},
                    "code": {"use": "b", "examples": ["my code is wrong", "my code is wrong"]},
                },
            },
        },
    },
    "european": {"model": ["a", "b"], "regions": "eu", "routing": {"health": False}},
    "anywhere": {"model": ["b", "a"], "routing": {"health": False}},
}


@pytest.fixture(scope="module")
def noria(serve_once, caller, fakes):
    """Models a (eu), b (us), c; for tests of health each its own copy, since endpoints share what is known of them."""
    times = {"connect": 1, "first": "600ms", "idle": "700ms", "total": 20}
    price = {"input": 1.0, "output": 2.0}
    regions = {"a": "eu-west-1", "b": "us", "c": ""}
    models = {
        name: {
            "provider": "openai_compatible", "url": fake.url, "model": name, "timeouts": times,
            "region": regions[name], "price": price, "context": {"a": 4000, "b": 8000}.get(name, 2000),
        }
        for name, fake in fakes.items()
    }  # fmt: skip
    models["vectors"] = {"provider": "scripted", "model": "v", "kind": "embedding"}  # equal texts have equal vectors
    apps = dict(APPS)
    for test in ("cool", "eject", "dead"):
        for name in ("a", "b"):
            models[f"{test}-{name}"] = models[name]
        apps[test] = {"model": [f"{test}-a", f"{test}-b"], "routing": {"retries": 1}}
    return caller(serve_once(json.dumps({"models": models, "apps": apps})))


@pytest.fixture(autouse=True)
def fresh(fakes):
    for fake in fakes.values():
        fake.reset()


def test_the_head_says_which_endpoint_answered_after_how_many_attempts(noria, fakes) -> None:
    for stream in (False, True):
        first = noria.chat("chain", stream=stream)
        assert (first.headers["x-noria-endpoint"], first.headers["x-noria-attempts"]) == ("a", "1")
        fakes["a"].mode = "status:503"
        second = noria.chat("chain", stream=stream)
        assert (second.headers["x-noria-endpoint"], second.headers["x-noria-attempts"]) == ("b", "2")
        fakes["a"].mode = "ok"


def test_one_endpoint_is_tried_three_times_and_the_sdk_told_not_to(noria, fakes) -> None:
    fakes["a"].mode = "status:500"
    answer = noria.chat("alone")
    answer.refuses(502, "upstream_error", type="upstream_error")
    assert len(fakes["a"].calls) == 3
    assert (answer.headers["x-should-retry"], answer.headers["x-noria-attempts"]) == ("false", "3")
    assert [a["status"] for a in noria.row(answer.id)["attempts"]] == [500, 500, 500]


def test_a_rate_limit_that_we_have_tried_to_mend_is_not_the_sdks_to_retry(noria, fakes) -> None:
    fakes["a"].mode = fakes["b"].mode = "status:429,retry-after: 9"
    answer = noria.chat("chain")
    answer.refuses(429, "upstream_rate_limited", type="upstream_error")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("9", "false")
    assert [len(fakes[n].calls) for n in "ab"] == [1, 1], "9 s are not waited for"


def test_the_attempt_cap_holds_over_the_whole_route(noria, fakes) -> None:
    for fake in fakes.values():
        fake.mode = "status:500"
    noria.chat("capped")
    assert [len(fakes[n].calls) for n in "abc"] == [1, 1, 0]


@pytest.mark.parametrize("mode", ["error-frame", "long-frame", "chatter", "slow:5"])
def test_a_stream_without_content_is_left_for_another_endpoint(noria, fakes, mode) -> None:
    """An error frame, a frame without end, comments for ever, silence: none of them hangs up by itself."""
    fakes["a"].mode = mode
    began = time.monotonic()
    answer = noria.chat("chain", stream=True)
    assert (answer.status, answer.text()) == (200, "b")
    assert answer.frames[-1] == "[DONE]"
    assert {f["model"] for f in answer.frames[:-1]} == {"b"}
    assert time.monotonic() - began < (1.6 if mode in ("chatter", "slow:5") else 0.6)
    assert [a["endpoint"] for a in noria.row(answer.id)["attempts"]] == ["a", "b"]
    wait_for(lambda: fakes["a"].left, "the connection to the broken upstream is closed")


def test_an_error_frame_after_content_ends_the_stream_with_an_error(noria, fakes) -> None:
    fakes["a"].mode = "error-later"
    began = time.monotonic()
    answer = noria.chat("chain", stream=True)
    assert time.monotonic() - began < 0.5, "though the upstream does not hang up"
    assert answer.text() == "half"
    assert "Overloaded" in answer.frames[-1]["error"]["message"]
    row = noria.row(answer.id)
    assert (row["outcome"], [a["endpoint"] for a in row["attempts"]]) == ("error", ["a"])
    assert fakes["b"].calls == []


def test_a_prompt_too_long_for_one_model_goes_to_a_larger_one(noria, fakes) -> None:
    fakes["a"].mode = "window"
    answer = noria.chat("chain")
    assert answer.text() == "b"
    small = noria.chat("anywhere")
    assert small.text() == "b"
    fakes["b"].mode = "window"
    refused = noria.chat("anywhere")
    assert refused.status == 400
    assert refused.json["error"]["code"] == "context_length_exceeded"


def test_a_late_endpoint_is_hedged_and_the_loser_let_go_and_paid(noria, fakes) -> None:
    fakes["a"].mode = "slow:5"
    began = time.monotonic()
    answer = noria.chat("hedged")
    took = time.monotonic() - began
    assert answer.text() == "b"
    assert 0.1 <= took < 0.5
    assert answer.headers["x-noria-endpoint"] == "b"
    wait_for(lambda: fakes["a"].left, "the loser is cancelled")
    assert fakes["a"].left[0] - began < 0.1 + 0.25
    row = noria.row(answer.id)
    assert {(a["endpoint"], a["error"]) for a in row["attempts"]} == {("a", "hedge_lost"), ("b", "")}
    assert (row["endpoint"], row["cost_status"]) == ("b", "estimated")
    assert row["cost_usd"] == pytest.approx(2 * (10 * 1.0 + 5 * 2.0) / 1e6), "both attempts"


def test_a_hedged_stream_has_one_voice(noria, fakes) -> None:
    fakes["a"].mode = "chatter"
    answer = noria.chat("hedged", stream=True)
    assert {f["model"] for f in answer.frames[:-1]} == {"b"}
    assert answer.text() == "b"
    row = noria.row(answer.id)
    assert row["cost_usd"] == pytest.approx((2 * 10 * 1.0 + 5 * 2.0) / 1e6), "of the loser the prompt"


def test_weights_share_the_load_and_a_dead_one_loses_no_request(noria, fakes) -> None:
    with ThreadPoolExecutor(4) as pool:
        texts = Counter(pool.map(lambda _: noria.chat("weighted").text(), range(80)))
    assert texts["a"] + texts["b"] == 80
    assert texts["a"] > texts["b"] > 4


def test_a_tag_keeps_a_customer_at_one_endpoint(noria) -> None:
    homes = {}
    for customer in range(12):
        headers = {"x-noria-tags": f"customer={customer}"}
        homes[customer] = {noria.chat("sticky", headers=headers).text() for _ in range(3)}
    assert all(len(home) == 1 for home in homes.values())
    assert len({next(iter(home)) for home in homes.values()}) == 3


def test_rules_send_requests_where_they_belong(noria, fakes) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert noria.chat("ruled").text() == "a"
    assert noria.chat("ruled", "怎么重置我的密码？").text() == "b"
    assert noria.chat("ruled", tools=[tool]).text() == "c"
    fakes["c"].mode = "status:500"
    assert noria.chat("ruled", tools=[tool]).text() == "a"
    gold = noria.chat("ruled", headers={"x-noria-tags": "tier=gold"})
    assert gold.text() == "b"


def test_a_topic_sends_a_prompt_where_it_belongs(noria, fakes) -> None:
    def chosen() -> int:
        lines = noria.send("GET", "/metrics").body.decode().splitlines()
        return next((int(n.split()[-1]) for n in lines if n.startswith('noria_routing_total{event="semantic_chosen"}')), 0)

    before = chosen()
    assert noria.chat("topical", "my code is wrong").text() == "b"
    assert noria.chat("topical", "my invoice is wrong").text() == "a"
    wait_for(lambda: chosen() == before + 2, "it is counted")


def test_data_stays_in_its_region_whatever_fails(noria, fakes) -> None:
    fakes["a"].mode = "status:500"
    answer = noria.chat("european")
    answer.refuses(502, "upstream_error", type="upstream_error")
    assert fakes["b"].calls == []
    fakes["a"].mode = "ok"
    assert noria.chat("anywhere").text() == "b"
    assert noria.chat("anywhere", headers={"x-noria-tags": "regions=eu"}).text() == "a"
    refused = noria.chat("anywhere", headers={"x-noria-tags": "regions=ap"})
    error = refused.refuses(400, "no_model_qualifies", param="model")
    assert "regions [ap]" in error["message"]


# -- health ---------------------------------------------------------------------------------------------


def endpoints(noria: Any) -> dict[str, Any]:
    workers = noria.api("GET", "/api/status").json["workers"]
    return {e["endpoint"]: e for w in workers for e in w["endpoints"]}


def wait_for(what: Any, why: str, within: float = 5.0) -> Any:
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, why
        time.sleep(0.05)
    return found


def test_a_failing_endpoint_is_passed_over_and_shown(noria, fakes) -> None:
    fakes["a"].mode = "status:500"
    for _ in range(10):
        assert noria.chat("eject").text() == "b"
    assert len(fakes["a"].calls) == 5, "five failures in a row, then it is left alone"
    wait_for(lambda: endpoints(noria).get("eject-a", {}).get("state") == "ejected", "/api/status shows it")

    def metrics() -> str:
        return noria.send("GET", "/metrics").body.decode()

    wait_for(lambda: 'noria_endpoint_state{endpoint="eject-a"} 3' in metrics(), "/metrics shows it")
    assert 'noria_endpoint_attempts_total{endpoint="eject-a",result="failed"} 5' in metrics()
    assert 'noria_routing_total{event="ejected"}' in metrics()
    fakes["a"].reset()
    wait_for(lambda: noria.chat("eject").text() == "a", "one real request finds that it is well", within=8)
    assert noria.chat("eject").text() == "a"
    wait_for(lambda: endpoints(noria)["eject-a"]["state"] == "ok", "and that is shown")


def test_a_rate_limited_endpoint_is_left_alone_for_as_long_as_it_says(noria, fakes) -> None:
    fakes["a"].mode = "status:429,retry-after-ms: 1500"
    began = time.monotonic()
    assert noria.chat("cool").text() == "b"
    fakes["a"].mode = "ok"
    while time.monotonic() - began < 1.2:
        assert noria.chat("cool").text() == "b"
    assert len(fakes["a"].calls) == 1
    wait_for(lambda: noria.chat("cool").text() == "a", "and then it is asked again")
    assert time.monotonic() - began > 1.5


def test_a_refused_key_raises_an_alarm(noria, fakes) -> None:
    fakes["a"].mode = "status:401"
    for _ in range(3):
        assert noria.chat("dead").text() == "b"
    assert len(fakes["a"].calls) == 1

    def told() -> bool:
        notices = noria.api("GET", "/api/status").json["notices"]
        return any(n["code"] == "endpoint" and "dead-a" in n["text"] for n in notices)

    wait_for(told, "the operator is told")


def test_killing_an_upstream_under_load_costs_no_request(serve, caller, fakes) -> None:
    extra = Fake("extra")
    model = {"provider": "openai_compatible"}
    models = {"x": model | {"url": extra.url, "model": "x"}, "y": model | {"url": fakes["b"].url, "model": "y"}}
    apps = {"app": {"model": [["x", "y"]], "routing": {"strategy": "least_latency"}}}
    noria = caller(serve(json.dumps({"models": models, "apps": apps})))
    answers: list[tuple[int, str]] = []

    def ask(n: int) -> None:
        answer = noria.chat("app", stream=n % 2 == 0)
        answers.append((answer.status, answer.text()))
        if n == 60:
            extra.kill()

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(240)))
        assert Counter(status for status, _ in answers) == {200: 240}
        assert Counter(text for _, text in answers[120:]) == {"b": 120}
        assert "extra" in {text for _, text in answers}
    finally:
        extra.stop()
