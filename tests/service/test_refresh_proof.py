"""A refresh that is killed -9 at random moments ends with the same release as one that is left in peace, and nothing is damaged.

Killed are its process, the process that watches over it, its training and evaluations, the keeper, and everything at once. Three kills
in `make test`, 100 in `make test-slow`; `NORIA_REFRESH_SEED` repeats a run's choices (not its timing), `NORIA_REFRESH_KILLS` says how many. The last full result is in
docs/reference/proofs.md.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Service, start_service
from tests.service.conftest import Caller

from noria.contracts.refresh import STEPS

WORDS = {"card": ["card", "visa", "chip"], "loan": ["loan", "credit", "interest"], "greet": ["hello", "hi", "morning"]}
CONFIG = {
    "models": {"script": {"provider": "scripted", "model": "script", "options": {"reply": "card"}}},
    "suites": {"intents": {"dataset": "desk", "metrics": ["label"], "params": {"max_tokens": 8}}},
    "apps": {
        "desk": {
            "model": "script",
            "refresh": {
                "suite": "intents",
                "data": {"dataset": "desk"},
                "train": {"method": "tiny", "schedule": {"steps": 120, "checkpoint_every": 10}},
                "gate": {"margin": 0.1, "latency": None},
                "rollout": {
                    "steps": [40, 80], "metric": "answered", "max_regression": 0.4, "min_answers": 15, "alpha": 0.2, "error_rate": 0.6,
                },
            },
        }
    },
}  # fmt: skip
TARGETS = {"turn": 4, "watcher": 2, "work": 3, "keeper": 3, "machine": 2}
"""What is killed, and how often in proportion."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a dataset, traffic and corrections, at rest: every run begins from a copy of it."""
    folder = tmp_path_factory.mktemp("first")
    service = start_service(folder, json.dumps(CONFIG))
    noria, mixed = Caller(service), random.Random(0)

    def said(label: str) -> str:
        return f"please {mixed.choice(WORDS[label])} {mixed.randrange(10_000)} {mixed.choice(['now', 'today', 'soon'])}"

    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for n in range(90):
            label = "card" if n % 2 else "greet"
            row = {"text": said(label), "label": label, "split": ("test", "validation", "train")[n % 3]}
            file.write(json.dumps(row) + "\n")
    service.cli("data", "import", "desk", str(path))
    for n in range(45):
        answer = noria.chat("desk", said("loan"))
        assert noria.post("/v1/feedback", {"exchange_id": answer.id, "label": "loan", "id": f"c{n}"}).status in (200, 202)
    noria.row(answer.id)
    service.stop()
    return service.home


class Asking:
    """Somebody who asks all the time, whoever is being killed."""

    def __init__(self) -> None:
        self.noria: Caller | None = None
        self.over = threading.Event()
        self.answered = 0
        self.thread = threading.Thread(target=self._ask)
        self.thread.start()

    def _ask(self) -> None:
        mixed = random.Random(1)
        while not self.over.wait(0.02):
            if self.noria is not None:
                with suppress(OSError, ValueError):
                    text = f"please {mixed.choice(WORDS[mixed.choice(list(WORDS))])} {mixed.randrange(1000)} now"
                    self.answered += self.noria.chat("desk", text).status == 200

    def stop(self) -> None:
        self.over.set()
        self.thread.join(60)


@contextmanager
def run(home: Path, folder: Path) -> Iterator[tuple[Service, Asking]]:
    """A service on a copy of the home, with its callers."""
    folder.mkdir()
    shutil.copytree(home, folder / "home", symlinks=True, ignore=shutil.ignore_patterns("run", "lock"))
    service = start_service(folder, json.dumps(CONFIG))
    asking = Asking()
    asking.noria = Caller(service)
    try:
        yield service, asking
    finally:
        asking.stop()
        service.stop()


def shown(service: Service, path: str, method: str = "GET", body: Any = None) -> Any:
    """What the API says, as soon as it says something."""
    end = time.monotonic() + 60
    while True:
        with suppress(OSError):
            answer = Caller(service).api(method, path, body)
            if answer.status < 500:
                assert answer.status < 400, answer.body
                return answer.json
        assert time.monotonic() < end, path
        time.sleep(0.05)


def jobs(home: Path) -> dict[str, dict[str, int]]:
    """Jobs that run: id → the process that watches over it, and the job's own group."""
    found = {}
    for path in (home / "jobs" / "local").glob("*/running.json"):
        with suppress(OSError, ValueError):
            if not (path.parent / "exit.json").exists():
                found[path.parent.name] = json.loads(path.read_bytes())
    return {name: ids for name, ids in found.items() if all(ours(home, pid) for pid in ids.values())}


def ours(home: Path, pid: int) -> bool:
    """Whether a process is one of this home's: numbers of processes that died are given to strangers."""
    with suppress(OSError):
        return os.fsencode(home) in Path(f"/proc/{pid}/cmdline").read_bytes() or Path(
            f"/proc/{pid}/cwd"
        ).readlink().is_relative_to(home)
    return False


def kill(service: Service, what: str, chance: random.Random) -> str:
    """Kill -9 one of what runs; what it was, or nothing where there is none now."""
    running = jobs(service.home)
    turns = [ids for name, ids in running.items() if name.startswith("refresh_")]
    work = [ids for name, ids in running.items() if not name.startswith("refresh_")]
    with suppress(ProcessLookupError):
        if what == "turn" and turns:
            os.killpg(chance.choice(turns)["group"], signal.SIGKILL)
        elif what == "watcher" and running:
            os.kill(chance.choice(list(running.values()))["keeper"], signal.SIGKILL)
        elif what == "work" and work:
            os.killpg(chance.choice(work)["group"], signal.SIGKILL)
        elif what == "keeper" and (pid := service.pids().get("keeper")):
            os.kill(pid, signal.SIGKILL)
        elif what == "machine":
            unplug(service)
        else:
            return ""
        return what
    return ""


def unplug(service: Service) -> None:
    """Everything at once; then the service is started again, and nothing else."""
    everybody = [service.process.pid, *service.pids().values()]
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for ids in jobs(service.home).values():
        for pid in ids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    service.process.wait()
    for left in (2, 1, 0):  # a keeper that finds no processor for half a minute is given up, and so may be tried again
        try:
            again = start_service(service.home.parent, json.dumps(CONFIG))
        except AssertionError:
            if not left:
                raise
        else:
            service.url, service.process = again.url, again.process
            return


def turned(service: Service, kills: int, chance: random.Random, log: Counter[str]) -> dict[str, Any]:
    """One refresh to its end, with at most so many kills on its way: each at a step drawn beforehand, or as soon after it as can be."""
    made = shown(service, "/api/refreshes", "POST", {"app": "desk"})
    path, end = f"/api/refreshes/{made['id']}", time.monotonic() + 120 + 60 * kills
    places = sorted(chance.choices(range(len(STEPS)), k=kills))
    while (turn := shown(service, path))["state"] == "running":
        assert time.monotonic() < end, turn
        if not places or STEPS.index(turn["at"]) < places[0]:
            time.sleep(0.02 if places else 0.1)
            continue
        time.sleep(chance.uniform(0.0, 0.3))
        if what := kill(service, chance.choices(list(TARGETS), list(TARGETS.values()))[0], chance):
            log[f"{what} at {turn['at']}"] += 1
            places.pop(0)
    return dict(turn)


def whole(service: Service, turn: dict[str, Any]) -> None:
    """Nothing is damaged, and nothing was done twice."""
    assert turn["state"] == "promoted", turn["says"]
    assert {s["state"] for s in turn["steps"]} == {"done"}
    assert shown(service, "/api/releases/verify", "POST", {"app": "desk", "name": turn["release_name"]})["ok"]
    output = {s["name"]: s["output"] for s in turn["steps"]}
    assert service.json("data", "verify", output["leak"]["version"])["passed"]
    assert [r["state"] for r in shown(service, "/api/rollouts?app=desk")] == ["promoted"]
    assert [j["state"] for j in shown(service, "/api/jobs/training")] == ["done"]
    assert shown(service, "/api/evaluations")["total"] == 2
    shares = {r["name"]: r["percent"] for r in shown(service, "/api/releases?app=desk")}
    assert shares == {"main": 0.0, turn["release_name"]: 100.0}
    service.stop()
    for name in ("records.db", "datasets.db"):
        with closing(sqlite3.connect(service.home / name)) as c:
            assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    ("kills", "at_once"),
    [
        pytest.param(3, 3, marks=pytest.mark.timeout(300)),
        pytest.param(100, 10, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
    ids=["short", "full"],
)
def test_killed_anywhere_it_ends_with_the_same_release(home: Path, tmp_path: Path, kills: int, at_once: int) -> None:
    seed = int(os.environ.get("NORIA_REFRESH_SEED", "") or random.randrange(1 << 32))
    kills = int(os.environ.get("NORIA_REFRESH_KILLS", "") or kills)
    chance, log = random.Random(seed), Counter[str]()
    began = time.monotonic()
    with run(home, tmp_path / "peace") as (service, _):
        calm = turned(service, 0, chance, log)
        whole(service, calm)
    runs = 0
    while sum(log.values()) < kills:
        runs += 1
        with run(home, tmp_path / f"r{runs}") as (service, asking):
            turn = turned(service, min(at_once, kills - sum(log.values())), chance, log)
            asking.noria = None
            assert turn["state"] == "promoted", (turn["says"], turn["at"], seed, log)
            assert turn["release"] == calm["release"], (seed, log)
            whole(service, turn)
        shutil.rmtree(tmp_path / f"r{runs}")
    targets = Counter({what: sum(n for k, n in log.items() if k.startswith(what)) for what in TARGETS})
    steps = Counter({at: sum(n for k, n in log.items() if k.endswith(f" at {at}")) for at in {k.split(" at ")[1] for k in log}})
    print(
        f"seed {seed}: {sum(log.values())} kills {dict(targets)} in {runs} refreshes, at {dict(steps)}; "
        f"all {calm['release'][:15]}, {time.monotonic() - began:.0f} s"
    )
