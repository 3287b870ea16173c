"""The watch over an app's traffic in the running service: real exchanges, a job beside it, an alert, its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

OLD = [
    "how do i reset my {} password",
    "my {} router does not connect",
    "where can i download the {} app",
    "我的{}密码忘记了怎么办",
]
NEW = ["which {} flights go to lisbon tomorrow", "book a {} hotel room near the beach", "我想预订{}去北京的机票"]
KINDS = ["old", "new", "work", "home", "office", "spare", "second", "first", "main", "backup", "tablet", "phone", "laptop"]


@pytest.fixture(scope="module")
def noria(serve_once, caller, mirror):
    model = {"provider": "openai_compatible", "url": mirror.url, "model": "echo", "price": {"input": 0, "output": 0}}
    apps = {"echo": {"model": "echo"}, "quiet": {"model": "echo", "drift": {"every": "1h", "recent": "1h", "reference": "2h"}}}
    return caller(serve_once(json.dumps({"models": {"echo": model}, "apps": apps})))


def ask_all(noria, texts, app="echo", n=60):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: noria.chat(app, texts[i % len(texts)].format(KINDS[i % len(KINDS)])), range(n)))
    assert {a.status for a in answers} == {200}
    noria.row(answers[-1].id)
    return [a.id for a in answers]


def now():
    return datetime.now(UTC).isoformat()


def drift(noria, *args, ok=(0, 1)):
    env = os.environ | {"NORIA_HOME": str(noria.service.home)}
    done = subprocess.run(
        [sys.executable, "-m", "noria", "drift", *args, "--json"], env=env, capture_output=True, text=True, timeout=90
    )
    assert done.returncode in ok, done.stderr
    return json.loads(done.stdout), done.returncode


def again(noria, begin, split, until):
    """A comparison by the API; its report."""
    started = noria.api("POST", "/api/drift/echo/run", {"from_": begin, "split": split, "until": until})
    assert started.status == 202, started.body
    end = time.monotonic() + 60
    while (found := noria.api("GET", f"/api/drift/echo/jobs/{started.json['id']}").json)["state"] != "done":
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found["report"]


@pytest.mark.timeout(240)
def test_new_questions_raise_one_alert_with_evidence_and_calm_ends_it(noria) -> None:
    begin = now()
    ask_all(noria, OLD)
    middle = now()
    new = ask_all(noria, NEW)
    end = now()
    report, code = drift(noria, "echo", "--from", begin, "--split", middle, "--until", end)
    assert (report["standing"], code) == ("drifted", 1)
    inputs = next(s for s in report["signals"] if s["name"] == "inputs")
    assert (inputs["n_reference"], inputs["n_recent"], inputs["standing"]) == (60, 60, "drifted")
    assert {"flights", "hotel"} & {t["term"] for t in report["more"]}
    assert {"password", "密码"} & {t["term"] for t in report["less"]}
    assert 1 <= len(report["examples"]) <= 10
    assert set(report["examples"]) <= set(new), "the examples are of the recent window"
    again(noria, begin, middle, end)
    (standing,) = [a for a in noria.api("GET", "/api/drift").json if a["app"] == "echo"]
    assert standing["firing"]
    ask_all(noria, NEW)
    half = now()
    ask_all(noria, NEW)
    for firing in (True, False):  # two in a row are needed
        report = again(noria, end, half, now())
        assert report["standing"] == "steady", report["says"]
        assert noria.api("GET", "/api/drift/echo").json["firing"] is firing
    kinds = events(noria)
    assert [k for k, _ in kinds if k.startswith("drift.")] == ["drift.detected", "drift.resolved"]
    detected = dict(kinds)["drift.detected"]
    assert detected["examples"]
    assert "inputs" in {s["name"] for s in detected["signals"]}


def events(noria):
    """(kind, detail) of every event, as stored."""
    import sqlite3

    import msgspec

    from noria.contracts.event import Event

    with sqlite3.connect(noria.service.home / "records.db") as c:
        rows = c.execute("SELECT value FROM records WHERE kind = 'event' ORDER BY id").fetchall()
    return [(e.kind, e.detail) for e in (msgspec.msgpack.decode(r, type=Event) for (r,) in rows)]


@pytest.mark.timeout(120)
def test_a_watched_app_is_compared_by_itself_and_little_traffic_is_no_verdict(noria) -> None:
    ask_all(noria, OLD, "quiet", 5)
    end = time.monotonic() + 60
    while not (found := noria.api("GET", "/api/drift/quiet").json)["reports"]:
        assert time.monotonic() < end, found
        time.sleep(0.2)
    assert (found["standing"], found["firing"]) == ("insufficient", False)
    assert "50 are needed" in found["says"]


def test_mistakes_are_named(noria) -> None:
    noria.api("GET", "/api/drift/ecko").refuses(404, "app_not_found", param="app")
    assert (
        "must follow each other"
        in noria.api("POST", "/api/drift/echo/run", {"from_": "2026-01-02", "split": "2026-01-01", "until": "2026-01-03"}).json[
            "error"
        ]["message"]
    )
    assert noria.api("POST", "/api/drift/echo/reports", {"app": "echo"}).json["error"]["code"] == "invalid_report"
