"""Turns of the wheel in the running service: from corrections to a promoted release, a gate that says no, a person who is asked."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from noria.contracts.event import Event
from noria.contracts.refresh import STEPS
from noria.kit.ids import uuid7

TURN = {
    "suite": "intents",
    "data": {"dataset": "desk"},
    "train": {"method": "tiny", "schedule": {"steps": 80}},
    "gate": {"margin": 0.1, "latency": None},
    "rollout": {"steps": [50], "metric": "answered", "max_regression": 0.4, "min_answers": 20, "alpha": 0.2},
}
CONFIG = {
    "models": {"script": {"provider": "scripted", "model": "script", "options": {"reply": "card"}}},
    "suites": {"intents": {"dataset": "desk", "metrics": ["label"], "params": {"max_tokens": 8}}},
    "apps": {
        "desk": {"model": "script", "refresh": TURN},
        "asked": {"model": "script", "refresh": TURN | {"ask": ["train"]}},
        "third": {"model": "script", "refresh": TURN},
    },
}
WORDS = {"card": ["card", "visa", "chip"], "loan": ["loan", "credit", "interest"], "greet": ["hello", "hi", "morning"]}


def said(mixed: random.Random, label: str) -> str:
    return f"please {mixed.choice(WORDS[label])} {mixed.randrange(10_000)} {mixed.choice(['now', 'today', 'soon'])}"


@pytest.fixture(scope="module")
def noria(serve_once: Any, caller: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    service = serve_once(json.dumps(CONFIG))
    mixed = random.Random(0)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w") as file:
        for n in range(120):
            label = "card" if n % 2 else "greet"
            split = "test" if n % 3 == 0 else "validation" if n % 3 == 1 else "train"
            file.write(json.dumps({"text": said(mixed, label), "label": label, "split": split}) + "\n")
    service.cli("data", "import", "desk", str(path))
    return caller(service)


def correct(noria: Any, app: str, count: int, seed: int = 1) -> None:
    """Callers ask about loans, and people say that it was about loans."""
    mixed = random.Random(seed)
    for n in range(count):
        answer = noria.chat(app, said(mixed, "loan"))
        given = {"exchange_id": answer.id, "label": "loan", "id": f"{app}-{seed}-{n}"}
        assert noria.post("/v1/feedback", given).status in (200, 202)
    noria.row(answer.id)


@contextmanager
def traffic(noria: Any, app: str) -> Iterator[None]:
    """Somebody asks all the time."""
    over = threading.Event()

    def ask() -> None:
        mixed = random.Random(2)
        while not over.is_set():
            noria.chat(app, said(mixed, mixed.choice(list(WORDS))))
            over.wait(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


def until(noria: Any, id: str, *states: str, within: float = 60.0) -> dict[str, Any]:
    end = time.monotonic() + within
    while (found := noria.api("GET", f"/api/refreshes/{id}").json)["state"] not in states:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def events(noria: Any, app: str) -> list[Event]:
    with sqlite3.connect(noria.service.home / "records.db") as c:
        rows = c.execute("SELECT value FROM records WHERE kind = 'event' ORDER BY id").fetchall()
    found = [msgspec.msgpack.decode(r, type=Event) for (r,) in rows]
    return [e for e in found if e.target == app and e.kind.startswith("refresh.")]


@pytest.mark.timeout(150)
def test_corrections_become_the_promoted_release(noria: Any) -> None:
    correct(noria, "desk", 60)
    with traffic(noria, "desk"):
        done = noria.service.cli("refresh", "run", "desk", "--follow", "--json", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    turn = json.loads(done.stdout)
    assert (turn["state"], turn["cause"], turn["by"], turn["attempt"]) == ("promoted", "person", "cli", 1)
    assert [s["name"] for s in turn["steps"]] == list(STEPS)
    assert {s["state"] for s in turn["steps"]} == {"done"}
    assert all(s["says"] and len(s["inputs"]) == 64 for s in turn["steps"])
    step = {s["name"]: s["output"] for s in turn["steps"]}
    assert step["harvest"]["new"] == 60
    assert sum(step["version"]["splits"].values()) + sum(step["version"]["rejected"].values()) == 180
    current, candidate = step["evaluate"]["figures"]["label"]
    assert candidate["value"] > 0.9 > 0.6 > current["value"], "the classifier has learned what people said"
    assert {f["verdict"] for f in step["gate"]["findings"]} == {"pass"}
    releases = {r["name"]: r for r in noria.api("GET", "/api/releases?app=desk").json}
    made = releases[turn["release_name"]]
    assert (made["percent"], made["id"], made["from"]) == (100.0, turn["release"], f"refresh:{turn['id']}")
    assert noria.chat("desk", "please credit 7 now").text() == "loan"
    (rollout,) = noria.api("GET", "/api/rollouts?app=desk").json
    assert (rollout["by"], rollout["state"]) == (f"refresh:{turn['id']}", "promoted")
    kinds = [e.kind for e in events(noria, "desk")]
    assert kinds == ["refresh.started", *["refresh.step_done"] * len(STEPS), "refresh.promoted"]
    gate = next(e.detail for e in events(noria, "desk") if e.detail.get("step") == "gate")
    assert gate["output"]["findings"]
    written_back(noria, turn)
    told = noria.service.cli("refresh", "explain", "desk").stdout
    assert "ended promoted" in told
    assert "quality: pass." in told
    assert turn["release"][:11] in told


def written_back(noria: Any, turn: dict[str, Any]) -> None:
    """The file has the release now, as the same one, with the traffic that it had."""
    service = noria.service
    told = service.json("release", "export", "desk")
    assert (told["name"], told["id"]) == (turn["release_name"], turn["release"])
    service.cli("release", "export", "desk", "--write")
    applied = service.json("apply", "--yes")
    assert not any(c["verb"] in "-!" for c in applied["changes"]), applied
    made = next(r for r in noria.api("GET", "/api/releases?app=desk").json if r["name"] == turn["release_name"])
    assert (made["from"], made["percent"], made["id"]) == ("file", 100.0, turn["release"])
    assert service.cli("release", "export", "desk", check=False).returncode == 1, "there is nothing to write any more"


@pytest.mark.timeout(150)
def test_a_person_is_asked_a_gate_says_no_and_is_waived(noria: Any) -> None:
    asked = {"settings": {"gate": {"cost": 1.0}, "data": {"harvest": "none"}}, "app": "asked"}
    begun = noria.api("POST", "/api/refreshes", asked)
    assert begun.status == 201, begun.body
    name = begun.json["id"]
    noria.api("POST", "/api/refreshes", asked).refuses(409, "refresh_under_way")
    turn = until(noria, name, "asks")
    assert turn["at"] == "train"
    path = f"/api/refreshes/{name}"
    noria.api("POST", f"{path}/waive", {"why": "because"}).refuses(409, "wrong_state")
    assert noria.api("POST", f"{path}/approve", {}).json["state"] == "running"
    turn = until(noria, name, "rejected", "failed")
    assert (turn["state"], turn["at"]) == ("rejected", "gate")
    assert "no evidence: cost_usd" in turn["says"]
    shares = {r["name"]: r["percent"] for r in noria.api("GET", "/api/releases?app=asked").json}
    assert shares == {"main": 100.0, turn["release_name"]: 0.0}, "it never saw traffic"
    assert noria.api("GET", "/api/rollouts?app=asked").json == []
    assert noria.service.cli("refresh", "watch", "asked", check=False).returncode == 1
    noria.api("POST", f"{path}/waive", {}).refuses(400, "reason_missing", param="why")
    noria.api("POST", f"{path}/waive", {"why": "prices are not known"})
    end = time.monotonic() + 60
    while noria.api("GET", path).json["progress"].get("state") != "running":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert noria.api("POST", f"{path}/stop", {"why": "lunch"}).json["state"] == "stopped"
    (rollout,) = noria.api("GET", "/api/rollouts?app=asked").json
    assert (rollout["state"], rollout["waived"]) == ("paused", "admin: prices are not known")
    noria.api("POST", f"{path}/resume", {})
    with traffic(noria, "asked"):
        turn = until(noria, name, "promoted", "failed", "inconclusive")
    assert turn["state"] == "promoted", turn["says"]
    assert [w["action"] for w in turn["words"]] == ["approve", "waive", "stop", "resume"]
    assert {s["attempt"] for s in turn["steps"] if s["name"] != "rollout"} == {1}, "what is done is not done again"
    kinds = [e.kind for e in events(noria, "asked") if e.kind != "refresh.step_done"]
    assert kinds == [
        "refresh.started", "refresh.asks", "refresh.approved", "refresh.rejected", "refresh.waived", "refresh.stopped",
        "refresh.resumed", "refresh.promoted",
    ]  # fmt: skip


def test_mistakes_are_named_before_anything_begins(noria: Any) -> None:
    def refused(status: int, code: str, param: str, **settings: Any) -> str:
        answer = noria.api("POST", "/api/refreshes", {"app": "third", "settings": settings})
        return str(answer.refuses(status, code, param=param)["message"])

    noria.api("POST", "/api/refreshes", {"app": "tird"}).refuses(404, "app_not_found", param="app")
    assert "Did you mean 'intents'" in refused(404, "suite_not_found", "suite", suite="intent")
    assert "Did you mean 'desk'" in refused(404, "dataset_not_found", "dataset", data={"dataset": "deskk"})
    refused(400, "invalid_value", "train.stps", train={"stps": 3})
    refused(400, "no_local_model", "train.base", train={"method": "sft"})
    noria.api("POST", "/api/refreshes/nobody/stop", {}).refuses(404, "refresh_not_found", param=None)
    assert noria.service.cli("refresh", "run", "third", "--set", "ask", check=False).returncode == 2


def test_what_is_begun_twice_with_one_id_is_there_once(noria: Any) -> None:
    """A call whose answer was lost may be repeated, also while the first is under way."""
    name, wish = uuid7(), {"dataset": "desk", "method": "tiny", "schedule": {"steps": 5}}
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda _: noria.api("POST", "/api/jobs/training", wish | {"id": name}), range(4)))
        asked = {"suite": "intents", "app": "third", "release": "main", "limit": 2, "id": name}
        found = list(pool.map(lambda _: noria.api("POST", "/api/evaluations", asked), range(4)))
    assert {(j.status, j.json["id"]) for j in jobs} == {(200, f"train_{name}")}
    assert {(e.status, e.json["id"]) for e in found} == {(201, f"eval_{name}")}
    assert sum(j["id"] == f"train_{name}" for j in noria.api("GET", "/api/jobs/training").json) == 1
    assert noria.api("POST", "/api/jobs/training", wish | {"id": "x"}).json["error"]["param"] == "id"
