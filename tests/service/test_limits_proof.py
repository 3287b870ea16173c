"""Limits over real processes: three workers of a node, and two nodes over Redis, hammered by more clients than they let in, with
workers (at full scale a whole node, too) killed -9 meanwhile.

What counts is what the model's endpoint sees: how many exchanges begin in a minute, how many are under way at once. The bounds
are those of docs/explanation/limits.md. In `make test` for some seconds; at full scale over several minutes of the clock
(`make test-slow`); the last full result is in docs/reference/proofs.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
import urllib.request
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import start_service
from tests.loopback import listening

from noria.gateway.lease import IDLE_SHARE
from noria.gateway.tenure import SKEW_NS, TERM_NS

RPM, TPM, PLACES = 240, 4800, 6
USED, ASIDE = 17, 50
"""Tokens that an answer reports; more than a request of the proof sets aside."""
CLIENTS = {"rate": 5, "tokens": 5, "places": 10}
BACK = 2 * TERM_NS / 1e9 + SKEW_NS / 1e9
"""Seconds until the places of a node that died are free."""


def config(url: str, counters: str = "") -> str:
    model = {"provider": "openai_compatible", "url": url}
    return json.dumps({
        "models": {n: model | {"model": n} for n in CLIENTS},
        "apps": {n: {"model": n} for n in CLIENTS},
        "limits": {
            "rate": {"scope": "app:rate", "requests_per_minute": RPM},
            "tokens": {"scope": "app:tokens", "tokens_per_minute": TPM},
            "places": {"scope": "app:places", "concurrent": PLACES},
        },
        **({"stores": {"counters": counters}} if counters else {}),
    })  # fmt: skip


@dataclass
class Endpoint:
    """The model: notes when each exchange was sent and when it came, and how many are under way."""

    begun: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    inside: Counter[str] = field(default_factory=Counter)
    peaks: list[tuple[float, int]] = field(default_factory=list)
    hold: float = 0.0
    """Seconds for which an exchange stays, where it is no random moment."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        body = json.loads(await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0])))
        app = body["model"]
        self.begun[app].append((float(body["messages"][0]["content"]), time.time()))
        self.inside[app] += 1
        try:
            if app == "places":
                self.peaks.append((time.time(), self.inside[app]))
                async with asyncio.timeout(self.hold or random.uniform(0.02, 0.12)):
                    await reader.read(1)
                raise ConnectionError("the caller is gone")
        except TimeoutError:
            pass
        finally:
            self.inside[app] -= 1
        choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": USED}
        top = {"id": "c", "object": "chat.completion", "created": 1, "model": app, "choices": [choice], "usage": usage}
        data = json.dumps(top).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data)


@dataclass
class Hammer:
    """Clients that ask again as soon as they are answered."""

    hosts: list[tuple[str, int]]
    until: float
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    refused: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    waited: list[float] = field(default_factory=list)

    async def client(self, app: str, seed: int) -> None:
        pace = random.Random(seed)
        while time.time() < self.until:
            try:
                reader, writer = await asyncio.open_connection(*self.hosts[(seed + pace.randrange(2)) % len(self.hosts)])
            except OSError:
                await asyncio.sleep(0.05)
                continue
            with suppress(OSError, asyncio.IncompleteReadError):
                for _ in range(20):
                    if time.time() >= self.until:
                        break
                    status = await self._ask(app, reader, writer)
                    self.answers[app, status] += 1
                    if status == 429:
                        self.refused[app].append(time.time())
                        await asyncio.sleep(pace.uniform(0.02, 0.06))
            writer.close()

    async def _ask(self, app: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        began = time.time()
        message = {"role": "user", "content": f"{began:.6f}"}
        data = json.dumps({"model": app, "messages": [message], "max_tokens": 20}).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(data) + data
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        self.waited.append(time.time() - began)
        return int(head.split(" ", 2)[1])

    async def run(self) -> None:
        await asyncio.gather(*(self.client(app, 100 * n + i) for app, n in CLIENTS.items() for i in range(n)))


def minutes(pairs: list[tuple[float, float]]) -> tuple[Counter[int], int]:
    """Exchanges by the minute in which they were let in, and how many may be of either of two."""
    sure = Counter(int(sent // 60) for sent, came in pairs if sent // 60 == came // 60)
    return sure, len(pairs) - sum(sure.values())


@dataclass
class Proof:
    """One run: who was killed when, and what was seen."""

    nodes: list[Any]
    endpoint: Endpoint
    workers: int
    seed: int
    kills: list[float] = field(default_factory=list)
    node_killed: float = 0.0

    async def run(self, seconds: float, every: float) -> Hammer:
        pace = random.Random(self.seed)
        hosts = [("127.0.0.1", int(n.url.rpartition(":")[2])) for n in self.nodes]
        hammer = Hammer(hosts, time.time() + seconds)
        running = asyncio.create_task(hammer.run())
        began = time.time()
        while (left := hammer.until - time.time()) > 3.0:
            await asyncio.sleep(min(left - 3.0, every * pace.uniform(0.7, 1.2)))
            if hammer.until - time.time() <= 3.0 or time.time() - began < 1.0:
                continue
            node = pace.choice([n for n in self.nodes if n.process.poll() is None])
            workers = [pid for name, pid in (await asyncio.to_thread(node.pids)).items() if name.startswith("worker")]
            if workers:
                os.kill(pace.choice(workers), signal.SIGKILL)
                self.kills.append(time.time())
        await running
        return hammer

    def excused(self) -> tuple[int, bool]:
        """What a machine that is too busy does: requests let in while a keeper was away, and whether Redis was (each is counted or
        logged by Noria itself; none is expected on a machine with a core to spare).
        """
        unchecked, away = 0, False
        for node in self.nodes:
            with suppress(OSError):
                lines = urllib.request.urlopen(f"{node.url}/metrics", timeout=10).read().decode().splitlines()
                found = [line for line in lines if line.startswith("noria_limits") and 'event="unchecked"' in line]
                unchecked += sum(int(float(line.split()[-1])) for line in found)
            away |= any("shared counters are away" in p.read_text() for p in (node.home / "logs").glob("*.log"))
        return unchecked, away

    def check(self, hammer: Hammer, seconds: float, per_node: int) -> dict[str, Any]:
        """The bounds of docs/explanation/limits.md."""
        began, told = hammer.until - seconds, {}
        unchecked, away = self.excused()
        many = len(self.nodes) if away else 1
        for app, limit, cost, aside in (("rate", RPM, 1, 1), ("tokens", TPM, USED, ASIDE)):
            sure, unsure = minutes(self.endpoint.begun[app])
            share = limit // (IDLE_SHARE * per_node)
            windows = range(int(began // 60), int(hammer.until // 60) + 1)
            assert sum(sure.values()) + unsure <= len(windows) * many * limit // cost + unchecked
            for minute in windows:
                assert sure[minute] * cost <= many * limit + unchecked * cost, (app, minute)
                first, last = max(began, minute * 60), min(hammer.until, minute * 60 + 60)
                if last - first < 4.0 or not any(last - 2.0 < at < last for at in hammer.refused[app]):
                    continue  # not asked for enough
                lost = sum(first < at < last for at in self.kills) * (share + CLIENTS[app] * aside)
                least = limit - aside - (self.workers - 1) * share - lost
                got = (sure[minute] + unsure) * cost
                told.setdefault(app, []).append(got)
                assert got >= least, (app, minute, got, least)
        peak = max(n for _, n in self.endpoint.peaks)
        assert peak <= many * PLACES + unchecked
        assert self.kills
        assert not {status for _, status in hammer.answers} - {200, 429, 502, 503}, hammer.answers
        waited = sorted(hammer.waited)
        return told | {
            "unchecked": unchecked, "redis_away": away, "peak": peak, "kills": len(self.kills), "p50_ms": round(1e3 * waited[len(waited) // 2], 1),
            "p99_ms": round(1e3 * waited[len(waited) * 99 // 100], 1), "answers": {f"{a} {s}": n for (a, s), n in hammer.answers.items()},
        }  # fmt: skip


async def places_are_back(node: Any, door: Endpoint) -> None:
    """Nobody is under way, so every place can be taken at once again, those of dead workers too."""
    await at_rest(node, 20)
    door.hold, door.peaks = 3.0, []
    hammer = Hammer([("127.0.0.1", int(node.url.rpartition(":")[2]))], time.time() + 1.0)
    await asyncio.gather(*(hammer.client("places", i) for i in range(3 * PLACES)))
    door.hold = 0.0
    assert max(n for _, n in door.peaks) == PLACES


async def at_rest(node: Any, within: float) -> None:
    """Nobody is under way, by the command line."""
    end = time.monotonic() + within
    while True:
        (limit,) = await asyncio.to_thread(node.json, "limits", "show", "app:places")
        (use,) = limit["use"]
        if use["used"] == 0 and use["leased"] <= PLACES:
            return
        assert time.monotonic() < end, use
        await asyncio.sleep(0.2)


@pytest.fixture
def endpoint() -> Iterator[tuple[Endpoint, str]]:
    made = Endpoint()
    with listening(made.serve) as port:
        yield made, f"http://127.0.0.1:{port}/v1"


SCALES = [
    pytest.param(9.0, 4.0, id="1/25"),
    pytest.param(225.0, 9.0, id="full", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


@pytest.mark.parametrize(("seconds", "every"), SCALES)
async def test_three_workers_keep_every_limit_while_workers_are_killed(tmp_path, endpoint, seconds, every) -> None:
    seed = int(os.environ.get("NORIA_LIMITS_SEED", time.time_ns() % 10**9))
    door, url = endpoint
    node = await asyncio.to_thread(start_service, tmp_path / "n", config(url), "--workers", "3")
    try:
        proof = Proof([node], door, 3, seed)
        hammer = await proof.run(seconds, every)
        await asyncio.sleep(1.5)  # the workers' numbers are told each second
        print(f"3 workers, seed {seed}:", await asyncio.to_thread(proof.check, hammer, seconds, 3))
        await places_are_back(node, door)
    finally:
        node.stop()


@pytest.mark.parametrize(("seconds", "every"), SCALES)
async def test_two_nodes_over_redis_keep_every_limit_while_workers_are_killed(
    tmp_path, endpoint, counters, seconds, every
) -> None:
    seed = int(os.environ.get("NORIA_LIMITS_SEED", time.time_ns() % 10**9))
    door, url = endpoint
    nodes = await asyncio.gather(*(
        asyncio.to_thread(start_service, tmp_path / f"n{i}", config(url, counters), "--workers", "2") for i in range(2)
    ))  # fmt: skip
    try:
        proof = Proof(nodes, door, 4, seed)
        hammer = await proof.run(seconds, every)
        await asyncio.sleep(1.5)
        print(f"2 nodes of 2 workers, seed {seed}:", await asyncio.to_thread(proof.check, hammer, seconds, 2))
        if seconds > 60:
            await one_node_is_gone(nodes, door)
        for node in nodes:
            if node.process.poll() is None:
                await places_are_back(node, door)
    finally:
        for node in nodes:
            node.stop()


async def one_node_is_gone(nodes: list[Any], door: Endpoint) -> None:
    """kill -9 of all processes of a node under load: the other has all places once two terms are over, and never more."""
    hammer = Hammer([("127.0.0.1", int(nodes[1].url.rpartition(":")[2]))], time.time() + BACK + 5)
    both = Hammer([("127.0.0.1", int(n.url.rpartition(":")[2])) for n in nodes], time.time() + 4)
    await asyncio.sleep(0)
    running = asyncio.gather(both.run(), hammer.run())
    await asyncio.sleep(3)
    for pid in [nodes[0].process.pid, *nodes[0].pids().values()]:
        os.kill(pid, signal.SIGKILL)
    await running
    assert max(n for _, n in door.peaks) <= PLACES
    assert max(n for at, n in door.peaks if at > hammer.until - 3) == PLACES


@pytest.fixture
def counters() -> Iterator[str]:
    """A prefix of its own in a Redis that answers."""
    import redis

    server, prefix = os.environ.get("NORIA_TEST_REDIS", "redis://127.0.0.1:6379/0"), f"t-{uuid.uuid4().hex}"
    with redis.Redis.from_url(server) as admin:
        try:
            admin.ping()
        except redis.RedisError as e:
            if os.environ.get("CI"):
                pytest.fail(f"no Redis: {e}")
            pytest.skip(f"no Redis (set NORIA_TEST_REDIS): {e}")
        yield f"{server}?prefix={prefix}"
        for key in admin.scan_iter(f"{prefix}:*", count=1000):
            admin.delete(key)


# -- Redis goes away ----------------------------------------------------------------------------------------


@dataclass
class Redis:
    """A Redis of the test's own, to be stopped."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", str(self.folder)],
            stdout=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path) -> Iterator[Redis]:
    import shutil
    import socket

    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    made = Redis(tmp_path, port)
    made.start()
    yield made
    made.stop()


def test_without_redis_each_node_keeps_rates_by_itself_money_is_503_and_nothing_hangs(serve, caller, redis, mirror) -> None:
    counters = f"redis://127.0.0.1:{redis.port}/0"
    model = {"provider": "openai_compatible", "url": mirror.url, "model": "echo", "price": {"input": 1, "output": 1}}
    text = json.dumps({"models": {"m": model}, "apps": {"m": {"model": "m"}}, "stores": {"counters": counters}})
    noria = caller(serve(text))
    limited, rich = caller(noria.service, noria.new_key(rpm=100)), caller(noria.service, noria.new_key(budget_usd=5))
    assert limited.chat("m").status == 200
    assert rich.chat("m", max_tokens=5).status == 200
    os.kill(redis.process.pid, signal.SIGSTOP)  # silent: worse than gone
    slow, statuses = 0, Counter()
    for _ in range(130):
        began = time.monotonic()
        answer = limited.chat("m")
        slow += time.monotonic() - began > 0.25
        statuses[answer.status] += 1
    assert slow <= 2, "one call finds out"
    minute = time.time() // 60
    assert statuses[200] <= 200
    assert statuses[200] + statuses[429] == 130
    assert statuses[429] or time.time() // 60 > minute - 1
    big = rich.new_key(budget_usd=1)
    began = time.monotonic()
    caller(noria.service, big).chat("m", max_tokens=5).refuses(503, "budget_unavailable", type="service_unavailable")
    assert time.monotonic() - began < 2.0
    redis.process.send_signal(signal.SIGCONT)
    end = time.monotonic() + 10
    while caller(noria.service, big).chat("m", max_tokens=5).status != 200:
        assert time.monotonic() < end, "it goes on once Redis is back"
        time.sleep(0.1)
