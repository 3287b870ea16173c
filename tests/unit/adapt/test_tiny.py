"""The trainer without torch keeps the file contract: the same steps whoever is killed, and a word for every failure."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from noria.adapt import job as jobs
from noria.contracts.dataset import Row
from noria.contracts.training import Schedule, TrainingJob
from noria.kit.ngram import decode

WORDS = {"card": ["card", "visa", "chip"], "loan": ["loan", "credit", "interest"], "greet": ["hello", "hi", "morning"]}


def rows(count, seed=0):
    mixed = random.Random(seed)
    made = []
    for n in range(count):
        label = mixed.choice(list(WORDS))
        text = f"please {mixed.choice(WORDS[label])} number {mixed.randrange(10)}"
        made.append((f"r{n}", Row(({"role": "user", "content": text},), label=label)))
    return made


def make(folder, *, steps=12, train=None, seed=3):
    job = TrainingJob(
        id=folder.name, method="tiny", base="", weights="", weights_sha256="", dataset="d1:0", train="train.jsonl",
        validation="validation.jsonl", seed=seed, schedule=Schedule(steps=steps, batch=8, checkpoint_every=4),
    )  # fmt: skip
    jobs.write(folder, job, {"train.jsonl": train or rows(60), "validation.jsonl": rows(30, seed=1)})
    return job


def argv(folder):
    return [sys.executable, "-m", "noria.adapt.trainer.tiny", str(folder)]


def run(folder):
    return subprocess.run(argv(folder), check=False, timeout=60).returncode


def test_a_job_ends_with_a_whole_result_and_a_model_that_works(tmp_path):
    make(tmp_path, steps=40)
    assert run(tmp_path) == 0
    result = jobs.result_of(tmp_path)
    assert (result.steps, len(result.loss), result.rows) == (40, 40, 60)
    assert result.loss[-1] < result.loss[0] / 2
    assert result.metrics["accuracy"] >= 0.9
    made = {m.role: m for m in result.made}
    assert set(made) == {"tiny_model", "answers"}
    assert decode((tmp_path / "tiny.model").read_bytes()).classify("hello there") == "greet"
    phases = [p.phase for p in jobs.progress_of(tmp_path)[0]]
    assert phases == ["load", *["train"] * 40, "export", "validate", "done"]


def test_a_trainer_killed_at_any_moment_goes_on_to_the_same_model(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make(whole, steps=400)
    assert run(whole) == 0
    make(broken, steps=400)
    kills = 0
    while jobs.result_of(broken) is None:
        process = subprocess.Popen(argv(broken))
        before = jobs.progress_of(broken)[1]
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            if kills < 4 and jobs.progress_of(broken)[1] > before + 3000:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
    first, second = jobs.result_of(whole), jobs.result_of(broken)
    assert kills >= 2
    assert first.loss == second.loss
    assert [m.sha256 for m in first.made] == [m.sha256 for m in second.made]


def test_two_trainers_never_share_a_folder(tmp_path):
    make(tmp_path, steps=20_000)
    first = subprocess.Popen(argv(tmp_path))
    try:
        deadline = time.monotonic() + 30
        while not jobs.progress_of(tmp_path)[0]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert run(tmp_path) == 1
        assert "Another trainer" in (tmp_path / "trainer.log").read_text()
        assert not (tmp_path / "failure.json").exists()  # the one that works there has not failed
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize(("line", "words"), [('{"id": "r9"}', "train.jsonl:2"), ("", "fewer than two"), (None, "is not in")])
def test_what_cannot_be_trained_on_is_told(tmp_path, line, words):
    make(tmp_path, train=rows(1))
    path = tmp_path / "train.jsonl"
    if line is None:
        path.unlink()
    elif line:
        path.write_text(path.read_text() + line + "\n")
    assert run(tmp_path) == 1
    assert words in jobs.reason_of(tmp_path).message


def test_rows_without_an_answer_are_left_out_by_name(tmp_path):
    make(tmp_path, train=[*rows(20), ("empty", Row(({"role": "user", "content": "?"},)))])
    assert run(tmp_path) == 0
    assert jobs.result_of(tmp_path).skipped == {"empty": "It has no answer."}


def test_nothing_heavy_is_loaded_to_watch_a_job():
    code = (
        "import sys, json, noria.adapt.job, noria.adapt.equivalence, noria.adapt.memory; print(json.dumps(sorted(sys.modules)))"
    )
    found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout)
    assert not {"torch", "transformers", "numpy", "xllamacpp", "gguf"} & set(found)


def test_the_contract_is_what_others_may_write(tmp_path):
    job = make(tmp_path)
    assert msgspec.json.decode((tmp_path / "job.json").read_bytes(), type=TrainingJob) == job
