"""Limits over real processes: three workers of a node, and two nodes over Redis, hammered by more clients than they let in, with
workers (at full scale a whole node, too) killed -9 meanwhile.

What counts is what the model's endpoint sees: how many exchanges begin in a minute, how many are under way at once. The bounds
are those of docs/explanation/limits.md. Where the machine is so busy that a keeper does not answer, exchanges pass unchecked: Noria
says so in each one's trace, and those alone are left out. In `make test` for some seconds; at full scale over several minutes of the clock
(`make test-slow`); the last full result is in docs/reference/proofs.md.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
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

from noria.contracts.trace import Clause, SpoolPosition, TraceQuery
from noria.engines.duckdb import DuckdbTraces
from noria.gateway.lease import AWAY, IDLE_SHARE
from noria.gateway.tenure import SKEW_NS, TERM_NS
from noria.kit.spool import SpoolReader
from noria.observe.trace import cursor, decode

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
class Call:
    """An exchange as the model's endpoint sees it: when it was sent, when it came and left."""

    trace: str
    sent: float
    came: float
    left: float = math.inf


@dataclass
class Endpoint:
    """The model: notes each exchange, and how many are under way."""

    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
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
        trace = head.split("traceparent: ")[1].split("-")[1]
        call = Call(trace, float(body["messages"][0]["content"]), time.time())
        self.calls[app].append(call)
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
            call.left = time.time()
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


def minutes(calls: list[Call]) -> tuple[Counter[int], int]:
    """Exchanges by the minute in which they were let in, and how many may be of either of two."""
    sure = Counter(int(c.sent // 60) for c in calls if c.sent // 60 == c.came // 60)
    return sure, len(calls) - sum(sure.values())


def peaks(calls: list[Call], lost: set[str], kills: list[float]) -> Iterator[tuple[float, int]]:
    """How many were under way whenever one came. Those that were lost had no place any more since their worker was killed, which
    the endpoint may see later.
    """
    steps = []
    for c in calls:
        ended = min((at for at in kills if c.came <= at <= c.left), default=c.left) if c.trace in lost else c.left
        steps += [(c.came, 1), (ended, -1)]
    inside = 0
    for at, step in sorted(steps):
        inside += step
        if step > 0:
            yield at, inside


async def recorded_of(home: Path) -> tuple[set[str], set[str]]:
    """Of the exchanges that a node recorded as not refused: the traces of all, and of those it let through without a check."""
    traces, rows, before = DuckdbTraces(f"duckdb:///{home}/traces"), [], ""
    try:
        while page := await traces.list("local", TraceQuery((Clause("outcome", "!=", "refused"),), before, 10_000)):
            rows += [row for row, _, _ in page]
            before = cursor(rows[-1])
    finally:
        await traces.close()
    reader = SpoolReader(home / "spool")
    for spool in reader.spools():  # what a node that was killed had not stored yet
        at = SpoolPosition(spool, 0, 0)
        while (read := reader.read(at))[0]:
            rows += [row for row in (decode(r.payload) for r in read[0]) if row.outcome != "refused"]
            at = read[1]
    return {r.trace for r in rows}, {r.trace for r in rows if any("was not checked" in w for w in r.warnings)}


@dataclass
class Proof:
    """One run: who was killed when, and what was seen."""

    nodes: list[Any]
    endpoint: Endpoint
    workers: int
    seed: int
    kills: list[float] = field(default_factory=list)

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

    async def level(self) -> None:
        """Returns when every node has recorded what it answered."""
        for node in self.nodes:
            token = (node.home / "admin.token").read_text().strip()
            ask = urllib.request.Request(f"{node.url}/api/status", headers={"authorization": f"Bearer {token}"})
            end = time.monotonic() + 30
            while json.loads((await asyncio.to_thread(urllib.request.urlopen, ask, None, 10)).read())["recorder"][
                "lag_records"
            ]:
                assert time.monotonic() < end, "the recorder does not come to an end"
                await asyncio.sleep(0.1)

    async def recorded(self) -> tuple[set[str], set[str]]:
        """After the nodes' end: the traces of exchanges without a row, whose workers were killed, and of those that were let through
        unchecked. A lost one counts as unchecked only where others of its app were, in the seconds around it for which nobody waits for a keeper.
        """
        rows, said = set[str](), set[str]()
        for node in self.nodes:
            all_, named = await recorded_of(node.home)
            rows, said = rows | all_, said | named
        lost, unchecked = set[str](), set(said)
        for calls in self.endpoint.calls.values():
            near = [c.came for c in calls if c.trace in said]
            gone = [c for c in calls if c.trace not in rows]
            lost |= {c.trace for c in gone}
            unchecked |= {c.trace for c in gone if any(abs(c.came - at) < AWAY + 1 for at in near)}
        return lost, unchecked

    def away(self) -> set[int]:
        """The minutes in which a node kept rates by itself, because Redis did not answer: its log says so."""
        found = set[int]()
        for path in (p for node in self.nodes for p in (node.home / "logs").glob("*.log")):
            since = math.nan
            for line in path.read_text().splitlines():
                if "the shared counters are" in line:
                    at = dt.datetime.fromisoformat(line[:23].replace(",", ".")).timestamp()
                    since = min(since, at) if since == since else at
                    if "are back" in line:
                        found |= set(range(int(since // 60), int(at // 60) + 1))
                        since = math.nan
            if since == since:
                found |= set(range(int(since // 60), int(time.time() // 60) + 1))
        return found

    async def check(self, hammer: Hammer, seconds: float, per_node: int) -> dict[str, Any]:
        """The bounds of docs/explanation/limits.md."""
        began, told = hammer.until - seconds, {}
        (lost, unchecked), away = await self.recorded(), self.away()
        checked = {app: [c for c in calls if c.trace not in unchecked] for app, calls in self.endpoint.calls.items()}
        windows = range(int(began // 60), int(hammer.until // 60) + 1)
        most = {minute: len(self.nodes) if minute in away else 1 for minute in windows}
        for app, limit, cost, aside in (("rate", RPM, 1, 1), ("tokens", TPM, USED, ASIDE)):
            seen = [c for c in self.endpoint.calls[app] if c.sent < hammer.until]
            (sure, unsure), (all_, either) = minutes([c for c in seen if c.trace not in unchecked]), minutes(seen)
            share = limit // (IDLE_SHARE * per_node)
            assert sum(sure.values()) + unsure <= sum(most.values()) * limit // cost
            for minute in windows:
                assert sure[minute] * cost <= most[minute] * limit, (app, minute)
                first, last = max(began, minute * 60), min(hammer.until, minute * 60 + 60)
                if last - first < 4.0 or not any(last - 2.0 < at < last for at in hammer.refused[app]):
                    continue  # not asked for enough
                taken = sum(first < at < last for at in self.kills) * (share + CLIENTS[app] * aside)
                least = limit - aside - (self.workers - 1) * share - taken
                got = (all_[minute] + either) * cost
                told.setdefault(app, []).append(got)
                assert got >= least, (app, minute, got, least)
        peak = 0
        for at, inside in peaks(checked["places"], lost, self.kills):
            assert inside <= PLACES * (len(self.nodes) if int(at // 60) in away else 1), at
            peak = max(peak, inside)
        assert self.kills
        assert not {status for _, status in hammer.answers} - {200, 429, 502, 503}, hammer.answers
        waited = sorted(hammer.waited)
        return told | {
            "unchecked": {app: len(calls) - len(checked[app]) for app, calls in self.endpoint.calls.items()}, "redis_away": len(away), "peak": peak, "kills": len(self.kills),
            "p50_ms": round(1e3 * waited[len(waited) // 2], 1), "p99_ms": round(1e3 * waited[len(waited) * 99 // 100], 1),
            "answers": {f"{a} {s}": n for (a, s), n in hammer.answers.items()},
        }  # fmt: skip


async def places_are_back(node: Any, door: Endpoint) -> None:
    """Nobody is under way, so every place can be taken at once again, those of dead workers too."""
    await at_rest(node, 20)
    door.hold, door.peaks = 3.0, []
    hammer = Hammer([("127.0.0.1", int(node.url.rpartition(":")[2]))], time.time() + 1.0)
    await asyncio.gather(*(hammer.client("places", i) for i in range(3 * PLACES)))
    door.hold = 0.0
    assert max(n for _, n in door.peaks) >= PLACES, "`Proof.check` sees to it that it is no more"


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
        await places_are_back(node, door)
        await proof.level()
    finally:
        node.stop()
    print(f"3 workers, seed {seed}:", await proof.check(hammer, seconds, 3))


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
        await proof.level()
        if seconds > 60:
            await one_node_is_gone(proof)
        for node in nodes:
            if node.process.poll() is None:
                await places_are_back(node, door)
    finally:
        for node in nodes:
            node.stop()
    print(f"2 nodes of 2 workers, seed {seed}:", await proof.check(hammer, seconds, 2))


async def one_node_is_gone(proof: Proof) -> None:
    """kill -9 of all processes of a node under load: the other has all places once two terms are over (`Proof.check`: and never more)."""
    dying, other = proof.nodes
    hammer = Hammer([("127.0.0.1", int(other.url.rpartition(":")[2]))], time.time() + BACK + 5)
    both = Hammer([("127.0.0.1", int(n.url.rpartition(":")[2])) for n in proof.nodes], time.time() + 4)
    await asyncio.sleep(0)
    running = asyncio.gather(both.run(), hammer.run())
    await asyncio.sleep(3)
    for pid in [dying.process.pid, *dying.pids().values()]:
        os.kill(pid, signal.SIGKILL)
    proof.kills.append(time.time())
    await running
    assert max(n for at, n in proof.endpoint.peaks if at > hammer.until - 3) >= PLACES


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
