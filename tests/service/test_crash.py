"""What a running Noria keeps through kill -9, a full disk, a keeper that is away, and an orderly stop.

The proof with a scale runs with 4 kills in `make test` and with 200 in `make test-slow`; `NORIA_CRASH_SEED` repeats a
run's choices (not its timing). The last full result is in docs/reference/proofs.md.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from noria.contracts.trace import SpoolPosition
from noria.kit.spool import SpoolReader

NORIA = str(Path(sys.executable).with_name("noria"))
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello 你好 " * 8}]}
LOADED = """
models:
  fake: {provider: scripted, model: fake, options: {first_ms: 5, token_ms: 2}}
apps:
  echo: {model: fake}
"""
SLOW = """
models:
  fake: {provider: scripted, model: fake, options: {tokens: 25, token_ms: 100}}
apps:
  echo: {model: fake}
"""


@pytest.fixture(scope="module")
def standing(serve_once: Any) -> Any:
    """For tests after which a service is as it was before."""
    return serve_once()


def until(what: Callable[[], Any], within: float, why: str) -> Any:
    end = time.monotonic() + within
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, why
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def get(service: Any, path: str, within: float = 20.0) -> tuple[int, dict[str, str], bytes]:
    """A call with the admin token."""
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=within)
    try:
        connection.request(
            "GET", path, headers={"authorization": f"Bearer {(service.home / 'admin.token').read_text().strip()}"}
        )
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def metric(service: Any, name: str) -> float:
    lines = get(service, "/metrics")[2].decode().splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name + " ")), -1.0)


def recorded(service: Any, id: str) -> bool:
    return get(service, f"/api/traces/{id}")[0] == 200


def spooled(home: Path) -> dict[str, int]:
    """Bytes of each spool that the trace store has not taken; only where no keeper runs."""
    store = duckdb.connect(str(home / "traces" / "hot.duckdb"), read_only=True)
    try:
        taken = {n: SpoolPosition(n, s, o) for n, s, o in store.execute("SELECT * FROM spool_positions").fetchall()}
    finally:
        store.close()
    reader = SpoolReader(home / "spool")
    return {n: reader.behind(taken.get(n, SpoolPosition(n, 0, 0))) for n in reader.spools()}


def up(service: Any, *args: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A second `noria up` that is expected to end by itself."""
    where = ("-c", str(config)) if config else ()
    return subprocess.run(
        [NORIA, "up", *where, *args],
        env=service.env,
        cwd=service.home.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# -- kill -9 ---------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Clients that ask all the time; `answered` holds what arrived to the last byte."""

    port: int
    answered: list[tuple[str, int]] = field(default_factory=list)
    cut: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, clients: int, seed: int) -> None:
        self.threads = [threading.Thread(target=self._ask, args=(random.Random(seed + n),)) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join(60)

    def _ask(self, chance: random.Random) -> None:
        connection = None
        while not self.done.is_set():
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
                connection.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": chance.random() < 0.5}))
                answer = connection.getresponse()
                answer.read()  # raises unless content-length is satisfied, or the final chunk was there
                self.answered.append((answer.getheader("x-request-id", ""), answer.status))
                if chance.random() < 0.1:
                    raise ConnectionError("a client that opens a fresh connection now and then")
            except (OSError, http.client.HTTPException):
                self.cut += 1
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.02)
        if connection is not None:
            connection.close()


class Restarted:
    """`noria up` on the same home and port, again and again."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.port = int(service.url.rpartition(":")[2])
        self.restarts = 0
        self.slowest = 0.0

    def again(self) -> None:
        began = time.monotonic()
        self.service.process = process = subprocess.Popen(
            [NORIA, "up", "--port", str(self.port), "--workers", "2"],
            env=self.service.env, cwd=self.service.home.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Noria serves at "):
                break
        else:
            raise AssertionError("noria up did not come back:\n" + "".join(said))
        threading.Thread(target=drain, args=(process,), daemon=True).start()
        self.restarts += 1
        self.slowest = max(self.slowest, time.monotonic() - began)

    def kill_supervisor(self) -> None:
        children = list(self.service.pids().values())
        self.service.process.kill()
        self.service.process.wait()
        until(lambda: not any(map(alive, children)), 5.0, f"children outlived their supervisor: {children}")
        with (self.service.home / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.again()


def drain(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    with process.stdout as out:
        out.read()


@pytest.mark.parametrize(
    "kills", [4, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["short", "full"]
)
def test_no_answered_exchange_is_lost_by_kill_minus_nine(serve, kills: int) -> None:
    seed = int(os.environ.get("NORIA_CRASH_SEED", random.SystemRandom().randrange(1 << 30)))
    chance, killed = random.Random(seed), dict.fromkeys(("worker", "keeper", "supervisor"), 0)
    noria = Restarted(serve(LOADED, "--workers", "2"))
    load, began = Load(noria.port), time.monotonic()
    load.start(8, seed)
    try:
        while sum(killed.values()) < kills:
            time.sleep(chance.uniform(0.02, 1.5))
            kind = chance.choices(("worker", "keeper", "supervisor"), (40, 35, 25))[0]
            if kind == "supervisor":
                noria.kill_supervisor()
            else:
                there = [pid for name, pid in noria.service.pids().items() if name.startswith(kind)]
                if not there:
                    continue
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(there), signal.SIGKILL)
            killed[kind] += 1
        time.sleep(1.0)
    finally:
        load.stop()
    doctor = noria.service.cli("doctor", check=False)
    assert doctor.returncode == 0, doctor.stdout
    until(lambda: recorded(noria.service, load.answered[-1][0]), 20.0, "the last answer was not recorded")
    noria.service.stop()
    told = f"seed {seed}: {killed}, {noria.restarts} restarts (slowest {noria.slowest:.1f} s), {len(load.answered)} answered, "
    told += f"{load.cut} cut or reopened, {time.monotonic() - began:.0f} s"
    print(told)
    assert_kept(noria.service, load.answered, told)


def assert_kept(service: Any, answered: list[tuple[str, int]], told: str) -> None:
    """Each answered exchange is recorded exactly once with its status, and every store is whole."""
    assert service.process.returncode == 0, told
    assert len(answered) > 20, told
    assert len(set(answered)) == len(answered), told
    store = duckdb.connect(str(service.home / "traces" / "hot.duckdb"), read_only=True)
    rows = store.execute("SELECT id, count(*), max(status), max(outcome) FROM exchanges GROUP BY id").fetchall()
    store.close()
    found = {row[0]: row[1:] for row in rows}
    lost = [a for a in answered if a[0] not in found]
    assert not lost, f"{len(lost)} of {len(answered)} lost, e.g. {lost[:3]}; {told}"
    assert {n for n, _, _ in found.values()} == {1}, told
    assert [a for a in answered if found[a[0]][:2] != (1, a[1])] == [], told
    assert {status for _, status in answered} == {200}, told
    assert {found[a[0]][2] for a in answered} == {"ok"}, told
    assert set(spooled(service.home).values()) == {0}, told
    with closing(sqlite3.connect(service.home / "records.db")) as records:
        assert records.execute("PRAGMA integrity_check").fetchone() == ("ok",), told
    listed = service.json("trace", "list", "--limit", "1")
    assert listed, told


# -- the keeper is away ----------------------------------------------------------------------------------------------


def test_while_the_keeper_is_stopped_answers_go_on_and_its_own_pages_say_503(serve, http) -> None:
    noria = serve()
    ask = noria.url + "/v1/chat/completions"
    keeper = noria.pids()["keeper"]
    ids = [http(ask, HELLO)[1]["x-request-id"]]
    os.kill(keeper, signal.SIGSTOP)
    try:
        status, headers, _ = get(noria, "/api/status")
        assert (status, "retry-after" in headers) == (503, True)
        until(lambda: metric(noria, "noria_keeper_up") == 0.0, 8.0, "/metrics does not tell of the keeper")
        for path in ("/api/status", "/"):
            status, headers, _ = get(noria, path, within=1.0)
            assert (status, "retry-after" in headers) == (503, True)
        status, headers, _ = http(ask, HELLO)
        assert status == 200
        ids.append(headers["x-request-id"])
        doctor = noria.cli("doctor", check=False)
        assert doctor.returncode == 1
        assert "keeper does not answer" in doctor.stdout

        worker = noria.pids()["worker-0"]
        os.kill(worker, signal.SIGKILL)
        status, headers, _ = http(ask, HELLO)  # waits in the accept queue for the replacement
        assert status == 200
        ids.append(headers["x-request-id"])
        assert noria.pids()["worker-0"] != worker
        until(lambda: "the keeper is away" in (noria.home / "logs" / "worker-0.log").read_text(), 10.0, "nothing in the log")
    finally:
        os.kill(keeper, signal.SIGCONT)
    for one in ids:
        until(lambda one=one: recorded(noria, one), 10.0, "a trace is missing after the keeper came back")
    until(lambda: metric(noria, "noria_keeper_up") == 1.0, 5.0, "/metrics still says that the keeper is away")
    assert noria.cli("doctor", check=False).returncode == 0


def test_a_keeper_that_is_killed_again_and_again_costs_no_answer(serve, http) -> None:
    noria = serve()
    ids = []
    for _ in range(3):
        os.kill(until(lambda: noria.pids().get("keeper"), 10.0, "no keeper"), signal.SIGKILL)
        for _ in range(5):
            status, headers, _ = http(noria.url + "/v1/chat/completions", HELLO)
            assert status == 200
            ids.append(headers["x-request-id"])
    until(lambda: recorded(noria, ids[-1]), 20.0, "the keeper did not come back")
    assert all(recorded(noria, one) for one in ids)
    log = (noria.home / "logs" / "worker-0.log").read_text()
    assert log.count("WARNING") <= 3, log  # not one for each attempt to reach it


def test_an_answer_is_visible_soon_after_it_ended(standing, http) -> None:
    noria = standing
    took = []
    for _ in range(5):
        one = http(noria.url + "/v1/chat/completions", HELLO)[1]["x-request-id"]
        began = time.monotonic()
        until(lambda one=one: recorded(noria, one), 5.0, "not visible after 5 s")
        took.append(time.monotonic() - began)
    print("visible after", ", ".join(f"{t:.2f} s" for t in took))


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The home of the first service, on a file system of 48 MiB."""
    home = tmp_path / "service0" / "home"
    home.mkdir(parents=True, mode=0o700)
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs", str(home)], check=False).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0")


def test_on_a_full_disk_answers_go_on_with_an_alarm_and_it_mends_itself(small_disk, serve, http) -> None:
    noria = serve()
    ask, filler = noria.url + "/v1/chat/completions", small_disk / "filler"
    big = {"model": "echo", "messages": [{"role": "user", "content": random.Random(1).randbytes(600_000).hex()}]}
    assert http(ask, HELLO)[0] == 200
    fill(filler)
    kept = [http(ask, HELLO)[1]["x-request-id"] for _ in range(3)]
    until(lambda: fill(filler) or metric(noria, "noria_spool_alarm") == 1.0 or http(ask, HELLO)[0] != 200, 15.0, "no alarm")
    assert metric(noria, "noria_spool_dropped") == 0.0
    told = until(
        lambda: json.loads(get(noria, "/api/status")[2])["workers"][0]["spool"]["alarm"], 5.0, "no alarm in /api/status"
    )
    assert "cannot be written" in told
    assert told in [n["text"] for n in json.loads(get(noria, "/api/status")[2])["notices"]]
    doctor = noria.cli("doctor", check=False)
    assert doctor.returncode == 1
    assert "cannot be written" in doctor.stdout

    assert [http(ask, big)[0] for _ in range(16)] == [200] * 16  # more than may wait in memory
    until(lambda: metric(noria, "noria_spool_dropped") > 0, 5.0, "what was dropped is not counted")

    filler.unlink()
    until(lambda: metric(noria, "noria_spool_alarm") == 0.0, 10.0, "the alarm does not end")
    after = http(ask, HELLO)[1]["x-request-id"]
    for one in (*kept, after):
        until(lambda one=one: recorded(noria, one), 20.0, "a trace is missing after the disk had room again")
    assert metric(noria, "noria_spool_dropped") > 0


def test_a_worker_that_dies_while_the_disk_is_full_is_replaced(small_disk, serve, http) -> None:
    noria = serve()
    ask, filler = noria.url + "/v1/chat/completions", small_disk / "filler"
    assert http(ask, HELLO)[0] == 200
    fill(filler)
    for name in ("worker-0", "keeper"):
        os.kill(noria.pids()[name], signal.SIGKILL)
        until(lambda name=name: name in noria.pids(), 10.0, f"{name} was not started again")
        assert http(ask, HELLO)[0] == 200
    filler.unlink()
    after = http(ask, HELLO)[1]["x-request-id"]
    until(lambda: recorded(noria, after), 20.0, "a trace is missing after the disk had room again")


def test_a_file_size_limit_on_the_spool_is_a_full_disk_too(standing, http) -> None:
    noria = standing
    ask, worker = noria.url + "/v1/chat/completions", noria.pids()["worker-0"]
    http(ask, HELLO)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    status, headers, _ = http(ask, HELLO)
    assert status == 200
    until(lambda: metric(noria, "noria_spool_alarm") == 1.0, 5.0, "no alarm")
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    until(lambda: recorded(noria, headers["x-request-id"]), 10.0, "what waited in memory was not written")
    until(lambda: metric(noria, "noria_spool_alarm") == 0.0, 5.0, "the alarm does not end")


# -- orderly ends and refusals ---------------------------------------------------------------------------------------


def test_sigterm_lets_a_stream_finish_and_leaves_nothing_behind(serve) -> None:
    noria = serve(SLOW)
    address = ("127.0.0.1", int(noria.url.rpartition(":")[2]))
    children = list(noria.pids().values())
    live = http.client.HTTPConnection(*address, timeout=30)
    live.request(
        "GET", "/api/traces/live", headers={"authorization": f"Bearer {(noria.home / 'admin.token').read_text().strip()}"}
    )
    watched = live.getresponse()
    asked = http.client.HTTPConnection(*address, timeout=30)
    asked.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": True}))
    answer = asked.getresponse()
    assert answer.read(6) == b"data: "
    noria.process.send_signal(signal.SIGTERM)
    assert answer.read().endswith(b"data: [DONE]\n\n")
    began = time.monotonic()
    assert noria.process.wait(15) == 0  # a drain that waited for the live reader would take 25 s
    print(f"ended {time.monotonic() - began:.1f} s after the last answer")
    with suppress(http.client.HTTPException, OSError):
        watched.read()
    live.close()
    asked.close()
    assert not any(map(alive, children))
    with socket.socket() as s:
        assert s.connect_ex(address) != 0
    assert not (noria.home / "run" / "keeper.sock").exists()
    assert not (noria.home / "run" / "address.json").exists()
    assert spooled(noria.home)
    assert set(spooled(noria.home).values()) == {0}
    logs = {p.name: p.read_text() for p in (noria.home / "logs").glob("*.log")}
    assert not [name for name, text in logs.items() if "Traceback" in text or " ERROR " in text], logs


def test_the_keepers_end_ends_live_readers_at_once(standing) -> None:
    noria = standing
    live = http.client.HTTPConnection(noria.url.removeprefix("http://"), timeout=10)
    live.request(
        "GET", "/api/traces/live", headers={"authorization": f"Bearer {(noria.home / 'admin.token').read_text().strip()}"}
    )
    watched = live.getresponse()
    assert watched.read(8) == b": live\n\n"
    os.kill(noria.pids()["keeper"], signal.SIGTERM)
    began = time.monotonic()
    watched.read()
    assert time.monotonic() - began < 2.5  # uvicorn would cut it after 3 s
    live.close()
    until(lambda: get(noria, "/api/status")[0] == 200, 10.0, "the keeper did not come back")
    assert "Traceback" not in (noria.home / "logs" / "keeper.log").read_text()


def test_ctrl_c_reaches_the_supervisor_alone(serve) -> None:
    noria = serve()
    groups = {os.getpgid(pid) for pid in noria.pids().values()}
    assert os.getpgid(noria.process.pid) not in groups
    noria.process.send_signal(signal.SIGINT)
    assert noria.process.wait(20) == 0


def test_a_second_noria_refuses_the_same_home_the_same_port_and_too_long_a_home(standing, tmp_path) -> None:
    noria = replace(standing)
    second = up(noria, "--port", "0")
    assert second.returncode == 1
    assert f"process {noria.process.pid} " in second.stderr
    assert "noria" in second.stderr.partition("(")[2]
    noria.env = {**noria.env, "NORIA_HOME": str(tmp_path / "other")}
    third = up(noria, "--port", noria.url.rpartition(":")[2])
    assert third.returncode == 2
    assert "is in use" in third.stderr
    noria.env = {**noria.env, "NORIA_HOME": str(tmp_path / ("long" * 25))}
    fourth = up(noria, "--port", "0")
    assert (fourth.returncode, "sockets lie in it" in fourth.stderr) == (2, True), "and a home whose sockets could have no name"


def test_a_bad_configuration_starts_nothing(standing, tmp_path) -> None:
    noria = replace(standing)
    bad = tmp_path / "bad.yaml"
    bad.write_text("models:\n  fake: {provider: scripted, model: fake}\napps:\n  echo: {modle: fake}\n")
    noria.env = {**noria.env, "NORIA_HOME": str(tmp_path / "fresh")}
    refused = up(noria, "--port", "0", config=bad)
    assert refused.returncode == 2
    assert "modle" in refused.stderr
    assert "bad.yaml:4" in refused.stderr
    assert not (tmp_path / "fresh").exists()
