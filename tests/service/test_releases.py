"""Releases and rollouts of a running service: made, compared, rolled out by measurement, rolled back under load, retired."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

CONFIG = """
models:
  fake: {provider: scripted, model: fake, options: {tokens: 5}}
  better: {provider: scripted, model: better, options: {reply: "better"}}
  broken: {provider: scripted, model: broken, options: {fail_rate: 1.0}}
prompts:
  short: {text: "Be short."}
guards:
  careful: [pii]
apps:
  support: {model: fake}
"""
POLICY = {"steps": [20, 60], "metric": "answered", "min_answers": 20, "max_regression": 0.5, "alpha": 0.05}


def until(what: Callable[[], Any], within: float, why: str) -> Any:
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, why
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def service(serve_once, caller):
    return caller(serve_once(CONFIG, "--workers", "2"))


@pytest.fixture
def operator(serve, caller):
    """A service of its own."""
    return lambda config, *args: caller(serve(config, *args))


def created(on: Any, name: str, **what: Any) -> dict[str, Any]:
    made = on.api("POST", "/api/releases", {"app": "support", "parent": "main", "name": name, **what})
    assert made.status == 201, made.body
    return made.json


def served(on: Any, model: str = "support", n: int = 1) -> Counter[str]:
    found: Counter[str] = Counter()
    for i in range(n):
        answer = on.chat(model, f"hello {time.time_ns()} {i}")
        found[answer.headers["x-noria-release"]] += 1
    return found


def test_a_release_made_from_another_is_served_under_its_name_and_says_what_differs(service) -> None:
    made = created(service, "polite", prompt="Be polite.", params={"temperature": 0.1}, guard="careful")
    assert made["percent"] == 0
    assert created(service, "polite", prompt="Be polite.", params={"temperature": 0.1}, guard="careful")["id"] == made["id"]
    other = service.api("POST", "/api/releases", {"app": "support", "parent": "main", "name": "polite", "prompt": "Be rude."})
    other.refuses(409, "release_exists", "server_error")
    service.api("POST", "/api/releases", {"app": "support", "parent": "main", "name": "same"}).refuses(
        400, "same_release", param="name"
    )
    until(lambda: [service.chat("support@polite").status for _ in range(6)] == [200] * 6, 5, "it is not served")
    answer = service.chat("support@polite")
    assert answer.headers["x-noria-release"] == made["id"]
    row = service.row(answer.id)
    assert (row["app"], row["release_name"], row["tags"]) == ("support", "polite", {"noria.release": "pinned"})
    differs = service.api("GET", "/api/releases/compare?app=support&first=main&second=polite").json
    assert {d["part"] for d in differs} == {"prompt", "guard", "parameter temperature"}
    assert {"part": "parameter temperature", "first": "none", "second": "0.1"} in differs


def test_an_environment_is_a_name_for_a_release_and_production_is_what_has_the_traffic(service) -> None:
    made = created(service, "next", model="better")
    assert service.chat("support@staging").status == 404
    assert service.api("POST", "/api/releases/alias", {"app": "support", "alias": "staging", "release": "next"}).status == 200
    until(lambda: [service.chat("support@staging").status for _ in range(6)] == [200] * 6, 5, "the alias is not in force")
    assert served(service, "support@staging", 6) == {made["id"]: 6}
    main = service.chat("support@production").headers["x-noria-release"]
    assert set(served(service, n=6)) == {main}
    service.api("POST", "/api/releases/retire", {"app": "support", "name": "next"}).refuses(409, "release_in_use")
    service.api("POST", "/api/releases/alias", {"app": "support", "alias": "staging"})
    assert service.api("POST", "/api/releases/retire", {"app": "support", "name": "next"}).status == 200
    until(lambda: [service.chat("support@next").status for _ in range(6)] == [404] * 6, 5, "it is still served")
    rows = {r["name"]: r for r in service.api("GET", "/api/releases?app=support").json}
    assert rows["next"]["retired_ns"] is not None
    assert service.api("GET", "/api/releases/one?app=support&name=next").json["parts"]["route"][0]["name"] == "better"
    service.api("POST", "/api/releases/retire", {"app": "support", "name": "main"}).refuses(409, "release_in_use")


def test_a_good_candidate_is_promoted_by_what_its_answers_were_worth(operator) -> None:
    on = operator(CONFIG, "--workers", "2")
    made = created(on, "good", model="better")
    begun = on.api("POST", "/api/rollouts", {"app": "support", "candidate": "good", "policy": POLICY})
    assert (begun.status, begun.json["percent"]) == (201, 20)
    on.api("POST", "/api/rollouts", {"app": "support", "candidate": "good"}).refuses(409, "rollout_under_way")
    on.api("POST", "/api/releases/retire", {"app": "support", "name": "good"}).refuses(409, "release_in_use")

    def promoted() -> Any:
        assert not [a for a in (on.chat("support", f"{time.time_ns()}") for _ in range(20)) if a.status != 200]
        return on.api("GET", "/api/rollouts/support").json["state"] == "promoted"

    until(promoted, 60, "it is not promoted")
    told = on.api("GET", "/api/rollouts/support").json
    assert [d["action"] for d in told["decisions"]] == ["advance", "promote"]
    assert told["decisions"][1]["evidence"]["interval"][0] > -0.5
    assert served(on, n=20) == {made["id"]: 20}
    assert "Nothing to apply" in on.service.cli("plan").stdout


def test_a_candidate_that_fails_is_rolled_back_and_not_tried_again(operator) -> None:
    declared = CONFIG.replace(
        "support: {model: fake}",
        "support:\n    releases: {a: {model: fake}, b: {model: broken}}\n"
        "    rollout: {canary: b, steps: [50], metric: answered, min_answers: 20, alpha: 0.05}",
    )
    on = operator(declared)
    assert on.api("GET", "/api/rollouts/support").json["state"] == "running"

    def over() -> Any:
        for _ in range(10):
            on.chat("support", f"{time.time_ns()}")
        return on.api("GET", "/api/rollouts/support").json["state"] == "rolled_back"

    until(over, 30, "it is not rolled back")
    told = on.api("GET", "/api/rollouts/support").json
    assert "requests fail" in told["reason"]
    assert {on.chat("support", f"{i}").status for i in range(20)} == {200}
    on.service.cli("apply", "--yes")
    assert len(on.api("GET", "/api/rollouts").json) == 1
    on.api("POST", "/api/rollouts/support", {"action": "promote", "why": "x"}).refuses(409, "wrong_state")


def test_what_callers_say_of_the_answers_decides_and_the_gate_decides_before(operator) -> None:
    on = operator(CONFIG)
    made = created(on, "worse", model="better")
    rules = [{"kind": "signature"}, {"kind": "leak"}]
    policy = {"steps": [50], "metric": "thumbs_up", "min_answers": 500, "alpha": 0.05}
    asked = {"app": "support", "candidate": "worse", "rules": rules, "policy": policy}
    refused = on.api("POST", "/api/rollouts", asked).json
    assert (refused["state"], refused["percent"]) == ("rejected", 0)
    said = {f["rule"]["kind"]: f["verdict"] for f in refused["findings"]}
    assert said == {"signature": "pass", "leak": "fail", "files": "pass", "pins": "pass"}
    on.api("POST", "/api/rollouts", asked | {"waive": {"by": "ann", "why": ""}}).refuses(
        400, "waiver_incomplete", param="waive"
    )
    begun = on.api("POST", "/api/rollouts", asked | {"waive": {"by": "ann", "why": "a test"}}).json
    assert (begun["state"], begun["waived"]) == ("running", "ann: a test")

    def over() -> Any:
        for i in range(8):
            answer = on.chat("support", f"{time.time_ns()} {i}")
            liked = answer.headers["x-noria-release"] != made["id"]
            judged = on.post("/v1/feedback", {"target": answer.id, "thumb": liked})
            assert judged.status < 300, judged.body
        return on.api("GET", "/api/rollouts/support").json["state"] == "rolled_back"

    until(over, 40, "it is not rolled back")
    told = on.api("GET", "/api/rollouts/support").json
    assert "thumbs_up is 0.0 % against 100.0 %" in told["reason"]
    assert "rolled_back" in on.service.cli("release", "status", "support").stdout
