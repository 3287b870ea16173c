"""From rows to a model that answers through the gateway, by the command line alone: the loop's machinery without torch."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

CONFIG = """
models: {{script: {{provider: scripted, model: script, options: {{reply: dull}}}}{more}}}
apps:
  first: {{model: script}}
{apps}
"""
WORDS = {"card": ["card", "visa", "chip"], "loan": ["loan", "credit", "interest"], "greet": ["hello", "hi", "morning"]}


def rows(path: Any, count: int = 120) -> None:
    mixed = random.Random(0)
    with path.open("w") as file:
        for n in range(count):
            label = mixed.choice(list(WORDS))
            said = f"please {mixed.choice(WORDS[label])} {mixed.randrange(1000)}"
            file.write(json.dumps({"text": said, "label": label, "split": "validation" if n % 4 == 0 else "train"}) + "\n")


@pytest.fixture(scope="module")
def service(serve_once: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with a dataset of three intents."""
    made = serve_once(CONFIG.format(more="", apps=""))
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows(path)
    made.cli("data", "import", "desk", str(path), "--text", "text", "--label", "label")
    return made


def test_a_dataset_becomes_a_model_that_answers_through_the_gateway(
    serve: Callable[..., Any], caller: Any, tmp_path: Any
) -> None:
    rows(tmp_path / "rows.jsonl")
    service = serve(CONFIG.format(more="", apps=""))
    service.cli("data", "import", "desk", str(tmp_path / "rows.jsonl"), "--text", "text", "--label", "label")
    job = service.json("adapt", "tiny", "--dataset", "desk", "--steps", "60")
    assert job["state"] == "done"
    assert job["job"]["dataset"].startswith("d1:")
    assert job["result"]["metrics"]["accuracy"] > 0.9
    assert job["id"] in [j["id"] for j in service.json("adapt", "list")]
    made = next(m for m in job["result"]["made"] if m["role"] == "tiny_model")
    options = f"{{file: '{job['folder']}/{made['name']}', sha256: {made['sha256']}}}"
    more = f", tuned: {{provider: tiny, model: intents, options: {options}}}"
    (service.home.parent / "noria.yaml").write_text(CONFIG.format(more=more, apps="  second: {model: tuned}"))
    service.cli("apply", "--yes")
    speaks = caller(service)
    end = time.monotonic() + 20
    while (answer := speaks.chat("second", "hi, which visa?")).status != 200:
        assert time.monotonic() < end, answer.body
        time.sleep(0.05)
    assert answer.text() == "card"
    assert speaks.chat("second", "good morning", stream=True).text() == "greet"
    assert speaks.chat("first").text() == "dull"


def test_jobs_are_stopped_resumed_and_fail_with_their_reason(service: Any, caller: Any) -> None:
    api = caller(service).api
    wrong = api("POST", "/api/jobs/training", {"dataset": "dek", "method": "tiny"})
    assert "Did you mean 'desk'" in wrong.json["error"]["message"]
    none = api("POST", "/api/jobs/training", {"dataset": "desk", "method": "tiny", "train": "other"})
    assert "It has: train (" in none.refuses(400, "no_rows", param="train")["message"]
    small = api("POST", "/api/jobs/training", {"dataset": "desk", "base": "gone"})
    assert small.status == 404
    assert "gone" in small.json["error"]["message"]
    job = api("POST", "/api/jobs/training", {"dataset": "desk", "method": "tiny", "schedule": {"steps": 1_000_000}}).json
    path = f"/api/jobs/training/{job['id']}"
    place, steps, end = 0, [], time.monotonic() + 30
    while len(steps) < 50:
        shown = api("GET", f"{path}?after={place}").json
        place = shown["next"]
        steps += [line["step"] for line in shown["progress"] if line["phase"] == "train"]
        assert time.monotonic() < end, shown
    assert steps == list(range(1, len(steps) + 1))  # each line once, in order
    stopped = api("POST", f"{path}/stop").json
    assert stopped["state"] == "stopped"
    assert api("POST", f"{path}/stop").json["state"] == "stopped"
    resumed = api("POST", f"{path}/resume").json
    assert (resumed["attempt"], resumed["state"]) in [(2, "waiting"), (2, "running")]
    api("POST", f"{path}/resume").refuses(409, "not_resumable")
    api("POST", f"{path}/stop")
    last = api("GET", path).json["now"]["step"]
    assert last >= stopped["now"]["step"] - 20  # it went on from its last checkpoint
    (service.home / "training" / "local" / job["id"] / "train.jsonl").unlink()
    api("POST", f"{path}/resume")
    while (failed := api("GET", path).json)["state"] in ("waiting", "running"):
        assert time.monotonic() < end + 30, failed
        time.sleep(0.02)
    assert failed["state"] == "failed"
    assert "train.jsonl is not in" in failed["reason"]
