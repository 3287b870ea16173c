"""The wheel turns twice on real data, through the service: CLINC150, half of its domains first, then the rest arrives as corrections.

Base and tuned are measured by the same suite on the same held-out rows. What customers and their feedback say comes from the labels of
the data; models, training, gates and canaries are real. The short form has 6 intents of each domain; the full one all 150 and twice the
rounds (`-k full`), for a machine that nobody else uses. Run it with `-s` to see the table; it is kept in tests/out, too.

Chinese (`zh_shopping_reviews`) is run upon a Qwen model, where one is installed: SmolLM2 was hardly taught any.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import start_service
from tests.models.conftest import models_home as models_home  # noqa: PLC0414  a fixture
from tests.models.test_training import LIBRARIES
from tests.service.conftest import Caller

from noria.kit.stats import wilson
from noria.release import catalogue

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.data, pytest.mark.timeout(6 * 3600)]
OUT = Path(__file__).resolve().parents[1] / "out"
Said = tuple[str, str]
"""What somebody says, and what was meant."""


@dataclass
class Form:
    """How much of the data there is. Counts are per intent."""

    intents: int
    """Of each domain."""
    train: int
    validation: int
    held: int
    corrected: int
    """Of each new intent: rows that arrive as traffic with a correction."""
    epochs: int


FORMS = {"short": Form(6, 16, 3, 6, 20, 1), "full": Form(15, 20, 1, 3, 24, 2)}


@dataclass
class Data:
    """Rows by intent, known and new; what is held out is never asked by a customer."""

    start: list[tuple[str, Said]] = field(default_factory=list)
    """(split, row) of what is there at the beginning."""
    held: list[Said] = field(default_factory=list)
    known: list[Said] = field(default_factory=list)
    """What customers ask about the intents that were there at the beginning."""
    new: list[Said] = field(default_factory=list)
    """What they ask about the others."""
    later: list[Said] = field(default_factory=list)
    """What they ask after the second turn has begun, about the others."""
    first: set[str] = field(default_factory=set)
    """Intents of the beginning."""


def clinc(folder: Path, form: Form) -> Data:
    by_intent: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    with gzip.open(folder / "classify" / "clinc150_train.jsonl.gz", "rt") as file:
        for row in map(json.loads, file):
            if row["domain"] != "oos":
                by_intent[row["domain"], row["label"]][row["split"]].append(row["text"])
    data, domains = Data(), sorted({domain for domain, _ in by_intent})
    for place, domain in enumerate(domains):
        for _, label in sorted(key for key in by_intent if key[0] == domain)[: form.intents]:
            train, val = by_intent[domain, label]["train"], by_intent[domain, label]["val"]
            name = label.replace("_", " ")
            data.held += [(text, name) for text in val[: form.held]]
            asked = [(text, name) for text in train[form.train :]]
            if place % 2:
                data.new += asked[: form.corrected]
                data.later += asked[form.corrected :]
            else:
                data.first.add(name)
                data.start += [("train", (text, name)) for text in train[: form.train]]
                data.start += [("validation", (text, name)) for text in val[form.held : form.held + form.validation]]
                data.known += asked
    for rows in (data.known, data.new, data.later):
        rows.sort(key=lambda said: said[0])  # intents in any order
    return data


@pytest.fixture
def python() -> str:
    found = os.environ.get("NORIA_TRAIN_PYTHON", sys.executable)
    code = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))"
    if subprocess.run([found, "-c", code, *LIBRARIES], check=False, timeout=60).returncode:
        pytest.skip(f"{found} lacks noria[train]; name an interpreter that has it in NORIA_TRAIN_PYTHON")
    return found


SFT = {"schedule": {"max_length": 96, "checkpoint_every": 20}}
TINY = {"method": "tiny", "schedule": {"epochs": 30, "batch": 16}}
"""The baseline that a language model has to beat."""


def config(python: str, model: str, prompt: str, train: dict[str, Any]) -> dict[str, Any]:
    turn = {
        "suite": "intents",
        "data": {"dataset": "desk", "splits": {"train": 0.85, "validation": 0.15}},
        "train": train,
        "gate": {"latency": None},  # others may use the machine
        "rollout": {"steps": [50], "metric": "thumbs_up", "max_regression": 0.1, "min_answers": 40, "alpha": 0.05},
    }
    return {
        "models": {"small": {"provider": "local", "model": model}},
        "prompts": {"desk": {"text": prompt}},
        "suites": {"intents": {"dataset": "held", "metrics": ["label"], "params": {"max_tokens": 10}}},
        "apps": {"desk": {
            "releases": {"base": {"model": "small", "prompt": "desk", "params": {"temperature": 0, "max_tokens": 10}}},
            "refresh": turn,
        }},
        "train": {"python": python, "threads": 2},
    }  # fmt: skip


@contextmanager
def serving(home: Path, models: Path, settings: dict[str, Any]) -> Iterator[Caller]:
    (home / "home" / "models").mkdir(parents=True)
    for model in (models / "models").iterdir():
        (home / "home" / "models" / model.name).symlink_to(model.resolve())
    running = start_service(home, json.dumps(settings))
    on = Caller(running)
    try:
        yield on
    finally:
        for turn in on.api("GET", "/api/refreshes").json["refreshes"]:
            if turn["state"] in ("running", "asks"):  # its jobs would go on without the service
                on.api("POST", f"/api/refreshes/{turn['id']}/stop", {})
        running.stop()


def imported(on: Caller, dataset: str, rows: list[tuple[str, Said]], path: Path) -> None:
    lines = ({"text": text, "label": label, "answer": label, "split": split} for split, (text, label) in rows)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    on.service.cli("data", "import", dataset, str(path))


def answered(on: Caller, said: Said) -> tuple[str, str]:
    """(exchange, answer) of one question, asked again while the model is being loaded."""
    end = time.monotonic() + 600
    while (got := on.chat("desk", said[0])).status != 200:
        assert got.status in (429, 503), got.body
        assert time.monotonic() < end, got.body
        time.sleep(0.5)
    return got.id, got.text().strip().casefold()


def corrected(on: Caller, rows: list[Said], clients: int = 4) -> None:
    """Customers ask, and somebody says what each had meant."""
    left, lock, trouble = list(enumerate(rows)), threading.Lock(), []

    def client() -> None:
        while not trouble:
            with lock:
                if not left:
                    return
                n, said = left.pop()
            try:
                exchange, _ = answered(on, said)
                told = on.post("/v1/feedback", {"exchange_id": exchange, "label": said[1], "id": f"correction-{n}"})
                assert told.status in (200, 202), told.body
            except (AssertionError, OSError) as e:
                trouble.append(e)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if trouble:
        raise trouble[0]


@contextmanager
def customers(on: Caller, rows: list[Said], waits: Callable[[], bool]) -> Iterator[None]:
    """Somebody asks as long as `waits` says that judgements are waited for, and gives each answer a thumb."""
    over = threading.Event()

    def ask() -> None:
        for said in cycle(rows):
            while not waits() and not over.is_set():
                over.wait(1.0)
            if over.is_set():
                return
            exchange, answer = answered(on, said)
            on.post("/v1/feedback", {"exchange_id": exchange, "thumb": "up" if answer == said[1] else "down"})

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(120)


def turned(on: Caller, asked: list[Said], settings: dict[str, Any]) -> dict[str, Any]:
    """One turn to its end, with traffic while its canary runs."""
    begun = on.api("POST", "/api/refreshes", {"app": "desk", "settings": settings})
    assert begun.status == 201, begun.body
    path, shown = f"/api/refreshes/{begun.json['id']}", begun.json
    with customers(on, asked, lambda: shown["at"] == "rollout"):
        while shown["state"] == "running":
            time.sleep(2.0)
            shown = on.api("GET", path).json
    assert shown["state"] == "promoted", shown["says"]
    return shown


def measured(on: Caller, evaluation: str, first: set[str]) -> dict[str, Any]:
    """Accuracy with Wilson's interval: rows of the first intents, of the others, all."""
    report = on.api("GET", f"/api/evaluations/{evaluation}?items=true").json["report"]
    parts = {"first": lambda i: i["label"] in first, "new": lambda i: i["label"] not in first, "all": lambda _: True}
    told = {}
    for name, belongs in parts.items():
        scores = [i["scores"]["label"] for i in report["items"] if belongs(i)]
        if scores:
            found = wilson(round(sum(scores)), len(scores))
            told[name] = {"value": found.value, "low": found.low, "high": found.high, "n": len(scores)}
    return {"release": report["release_name"], "rows": sorted(i["row"] for i in report["items"]), **told}


def minutes(turn: dict[str, Any]) -> dict[str, float]:
    return {s["name"]: round((int(s["ended_ns"]) - int(s["began_ns"])) / 60e9, 2) for s in turn["steps"]}


def table(name: str, releases: list[dict[str, Any]], turns: list[dict[str, Any]]) -> str:
    """In Markdown; kept as JSON beside."""
    parts = [p for p in ("first", "new", "all") if p in releases[0]]
    lines = [f"| {name} | " + " | ".join(f"{p} ({releases[0][p]['n']})" for p in parts) + " |", "|---|" + "---|" * len(parts)]
    for r in releases:
        cells = [f"{r[p]['value']:.1%} [{r[p]['low']:.1%}, {r[p]['high']:.1%}]" for p in parts]
        lines.append(f"| {r['release']} | " + " | ".join(cells) + " |")
    lines += ["", "| minutes | " + " | ".join(turns[0]) + " |", "|---|" + "---:|" * len(turns[0])]
    lines += [f"| turn {n} | " + " | ".join(f"{m:.1f}" for m in turn.values()) + " |" for n, turn in enumerate(turns, 1)]
    OUT.mkdir(exist_ok=True)
    kept = {
        "releases": [{k: v for k, v in r.items() if k != "rows"} for r in releases],
        "turns": turns,
        "load": os.getloadavg(),
    }
    (OUT / f"real-loop-{name}.json").write_text(json.dumps(kept, indent=1))
    return "\n".join(lines)


@pytest.mark.parametrize("size", FORMS)
@pytest.mark.parametrize("trainer", ["tiny", "sft"])
def test_half_of_clinc150_then_the_rest(
    trainer: str, size: str, request: pytest.FixtureRequest, models_home: Path, shared_data: Path, tmp_path: Path
) -> None:
    form = FORMS[size]
    data = clinc(shared_data, form)
    tiny = trainer == "tiny"
    python = sys.executable if tiny else request.getfixturevalue("python")
    train = TINY if tiny else SFT | {"schedule": SFT["schedule"] | {"epochs": form.epochs}}
    prompt = "Name the intent of the message in a few words."
    with serving(tmp_path, models_home, config(python, "smollm2-135m", prompt, train)) as on:
        imported(on, "desk", data.start, tmp_path / "start.jsonl")
        imported(on, "held", [("test", said) for said in data.held], tmp_path / "held.jsonl")
        first = turned(on, data.known, {"data": {"harvest": "none"}})
        corrected(on, data.new)
        second = turned(on, [said for pair in zip(data.known, data.later, strict=False) for said in pair], {})
        evaluated = [{s["name"]: s["output"] for s in turn["steps"]}["evaluate"] for turn in (first, second)]
        base, one = (measured(on, evaluated[0][which], data.first) for which in ("current", "candidate"))
        again, two = (measured(on, evaluated[1][which], data.first) for which in ("current", "candidate"))
    print("\n" + table(f"clinc150-{size}-{trainer}", [base, one, two], [minutes(first), minutes(second)]))
    assert base["rows"] == one["rows"] == two["rows"], "all are measured on the same rows"
    assert (again["release"], again["all"]) == (one["release"], one["all"])
    assert one["first"]["low"] > base["first"]["high"]
    assert two["new"]["low"] > one["new"]["high"]
    assert two["all"]["low"] > one["all"]["high"] > base["all"]["high"]


def test_chinese_reviews_upon_a_model_that_knows_chinese(
    python: str, models_home: Path, shared_data: Path, tmp_path: Path
) -> None:
    model = next((m for m in catalogue.installed(models_home) if m.startswith("qwen")), None)
    if model is None:
        pytest.skip(
            "no Qwen model is installed (noria models add qwen2.5-coder-0.5b --accept); SmolLM2-135M knows hardly any Chinese"
        )
    names = {0: "差评", 1: "好评"}
    rows: dict[str, list[Said]] = {"train": [], "validation": [], "test": [], "asked": []}
    with gzip.open(shared_data / "classify" / "zh_shopping_reviews.jsonl.gz", "rt") as file:
        found = [(row["text"], names[row["label"]]) for row in map(json.loads, file) if len(row["text"]) <= 80]
    for label in names.values():
        some = iter([said for said in found if said[1] == label])
        for split, count in (("train", 300), ("validation", 40), ("test", 150), ("asked", 200)):
            rows[split] += [next(some) for _ in range(count)]
    settings = config(python, model, "判断这条评论是好评还是差评，只回答“好评”或“差评”。", SFT)
    with serving(tmp_path, models_home, settings) as on:
        start = [(split, said) for split in ("train", "validation") for said in rows[split]]
        imported(on, "desk", start, tmp_path / "start.jsonl")
        imported(on, "held", [("test", said) for said in rows["test"]], tmp_path / "held.jsonl")
        turn = turned(on, sorted(rows["asked"]), {"data": {"harvest": "none"}})
        found_of = {s["name"]: s["output"] for s in turn["steps"]}["evaluate"]
        base, tuned = (measured(on, found_of[which], set(names.values())) for which in ("current", "candidate"))
    print("\n" + table("zh-reviews", [base, tuned], [minutes(turn)]))
    assert base["rows"] == tuned["rows"]
    assert tuned["all"]["low"] > base["all"]["value"] - 0.02
