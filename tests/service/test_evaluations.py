"""Releases measured through the gateway: any release, resumable, apart from what callers do."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

CONFIG = """
models:
  good: {provider: scripted, model: good, price: {input: 1.0, output: 2.0},
         options: {reply: {refund: "I would say: refund", parcel: parcel, "*": other}}}
  bad: {provider: scripted, model: bad, options: {reply: {refund: refund, "*": "no idea"}}}
  slow: {provider: scripted, model: slow, options: {first_ms: 60, reply: {refund: refund, parcel: parcel, "*": other}}}
apps:
  desk:
    releases:
      good: {model: good, cache: true}
      bad: {model: bad}
      slow: {model: slow}
limits:
  callers: {scope: "app:desk", requests_per_minute: 2}
suites:
  intents: {dataset: desk, metrics: [label, {f1: {pass_at: 0.9}}], params: {max_tokens: 20}}
serve: {port: 0}
"""
ROWS = 48


@pytest.fixture(scope="module")
def noria(serve_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    service = serve_once(CONFIG)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    kinds = ["refund", "parcel", "other"]
    with path.open("w") as file:
        for n in range(ROWS):
            kind = kinds[n % 3]
            text = f"question {n} about my {kind if kind != 'other' else 'shoes'}"
            who = {"user": f"person-{n}"} if n < 3 else {}
            file.write(json.dumps({"text": text, "label": kind, "answer": kind, "split": "test", **who}) + "\n")
    service.cli("data", "import", "desk", str(path), "--user", "user")
    return service


def begin(call: Any, release: str, **more: Any) -> dict[str, Any]:
    answer = call("POST", "/api/evaluations", {"suite": "intents", "app": "desk", "release": release, **more})
    assert answer.status == 201, answer.body
    return answer.json


def ended(call: Any, id: str, within: float = 60.0) -> dict[str, Any]:
    end = time.monotonic() + within
    while (found := call("GET", f"/api/evaluations/{id}?items=true").json)["state"] == "running":
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def run(call: Any, release: str, **more: Any) -> dict[str, Any]:
    return ended(call, begin(call, release, **more)["id"])


@pytest.fixture(scope="module")
def call(noria: Any, caller: Any) -> Any:
    """One call of the management API."""
    return caller(noria).api


@pytest.fixture(scope="module")
def good(call: Any) -> dict[str, Any]:
    return run(call, "good")


def test_a_suite_measures_a_release_with_intervals(noria: Any, good: dict[str, Any]) -> None:
    assert good["state"] == "done"
    found = good["report"]["estimates"]
    assert (found["label"]["value"], found["label"]["n"], found["label"]["method"]) == (1.0, ROWS, "wilson")
    assert found["label"]["low"] < 1.0
    assert found["macro_f1"]["value"] == 1.0
    assert 0 < found["f1"]["value"] < 1, "one answer has words besides the class"
    assert found["cost_usd"]["value"] > 0
    assert found["errors"]["value"] == 0
    assert good["report"]["by_label"]["refund"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 16.0}
    assert not (noria.home / "evaluations" / good["id"]).exists(), "the job's folder is taken in"


def test_its_traffic_is_apart_from_callers(noria: Any, good: dict[str, Any]) -> None:
    items = good["report"]["items"]
    found = noria.trace(items[0]["exchange"])
    row = found["row"]
    assert row["tags"] | {"noria": "eval", "evaluation": good["id"], "noria.release": "pinned"} == row["tags"]
    assert (row["key"], row["release"]) == ("evaluation", good["release"])
    assert found["request"] is None, "the dataset has the text already, sealed"
    assert len(items) == ROWS, "the app's limit of 2 a minute is its callers'"
    people = [i for i in items if not i["answer"]]
    assert len(people) == 3, "what a person said is in the dataset alone"
    assert all(i["expected"] == "" and i["said"] for i in people)


def test_what_was_answered_is_not_asked_again(noria: Any, call: Any, good: dict[str, Any]) -> None:
    again = noria.json("eval", "run", "intents", "--release", "desk@good")
    assert again["report"]["cached"] == ROWS
    assert again["report"]["estimates"] == good["report"]["estimates"]
    some = run(call, "good", limit=10)
    assert (some["report"]["cached"], some["report"]["estimates"]["label"]["n"]) == (10, 10)
    fresh = run(call, "good", limit=10, fresh=True)
    assert fresh["report"]["cached"] == 0, "and no cache of the gateway answers for the model"
    ids = {i["exchange"] for e in (some, fresh) for i in e["report"]["items"]}
    assert len(ids) == 20
    row = noria.trace(fresh["report"]["items"][0]["exchange"])["row"]
    assert (row["cache"], row["endpoint"], len(row["attempts"])) == ("", "good", 1)


def test_a_release_without_traffic_is_compared_and_reported(
    noria: Any, call: Any, good: dict[str, Any], tmp_path: Path
) -> None:
    bad = run(call, "bad")
    assert bad["report"]["estimates"]["label"]["value"] == pytest.approx(1 / 3)
    done = noria.cli("eval", "compare", good["id"], bad["id"], "--margin", "label=0.05", "--json", check=False)
    assert done.returncode == 1
    told = {c["metric"]: c for c in json.loads(done.stdout)["comparisons"]}
    assert (told["label"]["verdict"], told["label"]["test"], told["label"]["margin"]) == ("worse", "mcnemar", 0.05)
    assert told["label"]["difference"]["high"] < -0.05
    back = call("POST", "/api/evaluations/compare", {"first": bad["id"], "second": good["id"]}).json["comparisons"]
    assert [c["verdict"] for c in back if c["metric"] == "label"] == ["better"]
    for lang, word in (("en", "Scores"), ("zh", "得分")):
        page = tmp_path / f"{lang}.html"
        noria.cli("eval", "report", good["id"], bad["id"], "--out", str(page), "--lang", lang)
        text = page.read_text()
        assert f"<h2>{word}</h2>" in text
        assert text.count("<svg") == 5
        assert "<script" not in text
        assert "http://" not in text
    noria.cli("eval", "report", good["id"], "--out", str(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text())[0]["release"] == good["release"]


def test_a_job_that_was_killed_goes_on_where_it_was(noria: Any, call: Any, good: dict[str, Any]) -> None:
    name = begin(call, "slow", concurrency=2)["id"]
    end = time.monotonic() + 40
    while (done := call("GET", f"/api/evaluations/{name}").json["progress"].get("done", 0)) < 6:
        assert time.monotonic() < end
        time.sleep(0.05)
    running = json.loads((noria.home / "jobs" / "local" / f"{name}%2E1" / "running.json").read_bytes())
    os.killpg(running["group"], signal.SIGKILL)
    now = ended(call, name)
    assert now["state"] == "failed"
    assert "signal 9" in now["says"]
    kept = sum(
        1
        for f in (noria.home / "evaluations" / "answers").glob(f"*/{name}.jsonl")
        for line in f.read_text().split("\n")
        if line
    )
    assert done <= kept < ROWS
    after = noria.json("eval", "resume", name)
    assert after["report"]["cached"] == kept
    assert after["report"]["estimates"]["label"] == good["report"]["estimates"]["label"]
    assert after["attempts"] == 2


def test_a_running_evaluation_can_be_stopped(noria: Any, call: Any) -> None:
    name = begin(call, "slow", concurrency=1, fresh=True)["id"]
    assert call("POST", f"/api/evaluations/{name}/stop").json["state"] == "stopped"
    assert call("GET", f"/api/evaluations/{name}").json["says"] == "Stopped by admin."
    done = noria.cli("eval", "report", name, check=False)
    assert done.returncode == 1
    assert "no report" in done.stderr
    assert call("DELETE", f"/api/evaluations/{name}").json["removed"]
    assert call("GET", f"/api/evaluations/{name}").status == 404


DESK = {"dataset": "desk"}


@pytest.mark.parametrize(
    ("suite", "release", "says"),
    [
        ("intent", "good", "Did you mean 'intents'"),
        ("intents", "god", "Did you mean 'good'"),
        ({"dataset": "dsk"}, "good", "Did you mean 'desk'"),
        ({"dataset": "desk@d1:00"}, "good", "no version"),
        (DESK | {"split": "tset"}, "good", "Did you mean 'test'"),
        (DESK | {"metrics": ["exakt"]}, "good", "Did you mean 'exact'"),
        (DESK | {"metrics": ["pii"]}, "good", "scores no answers"),
        (DESK | {"metrics": ["f1"], "options": {"f1": {"pass": 1}}}, "good", "unknown field `pass`"),
        (DESK | {"params": {"stream": True}}, "good", "cannot set 'stream'"),
        (DESK | {"metric": "f1"}, "good", "metric"),
    ],
)
def test_what_cannot_be_run_says_why(call: Any, suite: Any, release: str, says: str) -> None:
    what = {"suite": suite} if isinstance(suite, str) else {"definition": suite}
    answer = call("POST", "/api/evaluations", {**what, "app": "desk", "release": release})
    assert 400 <= answer.status < 500, answer.body
    assert says in answer.body.decode()


def test_only_an_operator_names_a_release(noria: Any, caller: Any) -> None:
    anybody = caller(noria)
    anybody.chat("desk", headers={"x-noria-release": "bad"}).refuses(403, "release_not_allowed")
    anybody.chat("desk", headers={"x-noria-tags": "noria=eval"}).refuses(400, "invalid_tags", param="x-noria-tags")
    anybody.chat("desk", headers={"authorization": "Bearer np-abc.def", "x-noria-release": "bad"}).refuses(401, "invalid_pass")
    login = anybody.send("POST", "/api/login", {"token": anybody.token})
    cookie = login.headers["set-cookie"].partition(";")[0].partition("=")[2]
    found = anybody.chat("desk", "a parcel", headers={"authorization": f"Bearer {cookie}", "x-noria-release": "bad"})
    assert found.text() == "no idea"
    unknown = anybody.chat("desk", headers={"authorization": f"Bearer {cookie}", "x-noria-release": "god"})
    assert unknown.status == 404
