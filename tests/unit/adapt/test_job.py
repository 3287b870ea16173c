"""A job is a folder: written whole, read while it grows, and its end told with a reason."""

import sys
from pathlib import Path

import msgspec
import pytest

from noria.adapt import job as jobs
from noria.contracts.dataset import Row
from noria.contracts.error import RequestError
from noria.contracts.training import Failure, Progress, Schedule, TrainingJob

JOB = TrainingJob(
    id="t", method="tiny", base="", weights="", weights_sha256="", dataset="d1:0", train="train.jsonl", schedule=Schedule()
)


def row(text, label):
    return Row(({"role": "user", "content": text},), label=label)


def test_the_folder_holds_the_job_and_the_rows_with_their_ids(tmp_path):
    jobs.write(tmp_path, JOB, {"train.jsonl": [("r1", row("hi", "greet"))]})
    assert jobs.job_of(tmp_path) == JOB
    line = msgspec.json.decode((tmp_path / "train.jsonl").read_bytes())
    assert line == {"id": "r1", "messages": [{"role": "user", "content": "hi"}], "answer": "greet"}


def test_a_job_without_rows_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no rows"):
        jobs.write(tmp_path, JOB, {"train.jsonl": []})
    assert jobs.job_of(tmp_path) is None


def test_progress_is_read_as_it_grows_and_half_a_line_waits(tmp_path):
    assert jobs.progress_of(tmp_path) == ([], 0)
    lines = [msgspec.json.encode(Progress(n, "train", step=n, loss=0.5)) + b"\n" for n in (1, 2)]
    path = tmp_path / "progress.jsonl"
    path.write_bytes(lines[0] + lines[1][:10])
    first, place = jobs.progress_of(tmp_path)
    assert [p.step for p in first] == [1]
    path.write_bytes(b"".join(lines))
    second, place = jobs.progress_of(tmp_path, place)
    assert [p.step for p in second] == [2]
    assert jobs.progress_of(tmp_path, place) == ([], len(b"".join(lines)))
    assert jobs.latest_of(tmp_path) == second[-1]


def test_the_reason_is_the_trainers_own_else_the_end_of_its_log(tmp_path):
    assert "killed" in jobs.reason_of(tmp_path).message
    (tmp_path / "trainer.log").write_text("step 1\nRuntimeError: out of memory\n")
    assert jobs.reason_of(tmp_path).message == "RuntimeError: out of memory"
    said = Failure("No row can be trained on.", "Look at the rows.", "rows_invalid")
    (tmp_path / "failure.json").write_bytes(msgspec.json.encode(said))
    assert jobs.reason_of(tmp_path) == said


def test_another_interpreter_gets_this_package_and_nothing_beside_it(tmp_path):
    root = jobs.linked(tmp_path / "trainer")
    assert [p.name for p in root.iterdir()] == ["noria"]
    assert jobs.linked(root) == root
    argv = jobs.argv(JOB, tmp_path, "/other/python", root)
    assert argv == ("/usr/bin/env", f"PYTHONPATH={root}", "/other/python", "-m", "noria.adapt.trainer.tiny", str(tmp_path))
    assert jobs.argv(JOB, tmp_path, sys.executable, None)[0] == sys.executable
    assert (root / "noria").samefile(Path(sys.modules["noria"].__file__).parent)
