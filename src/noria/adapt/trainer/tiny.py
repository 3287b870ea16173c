"""The trainer without torch: a classifier on hashed n-grams, by the same file contract as the others.

`python -m noria.adapt.trainer.tiny FOLDER`. The class of a row is its answer. Steps, checkpoints, resuming and progress
are those of a real trainer, in seconds: what proofs of the machinery run.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from noria.adapt.trainer.workplace import Line, TrainingFailed, Workplace, environment, run
from noria.contracts.training import Answered, TrainingJob, TrainingResult
from noria.kit.atomic import write_whole
from noria.kit.ngram import FORMAT, Ngram, encode, features, softmax_step

BUCKETS, LOW, HIGH = 1 << 14, 1, 4
RATE_SCALE = 8000.0
"""A language model's learning rate times this suits a linear one: 5e-4 becomes 4."""
MODEL, ANSWERS, CHECKPOINT = "tiny.model", "answers.jsonl", "checkpoint.msgpack"


class Checkpoint(msgspec.Struct, frozen=True):
    """Where a run stands after `step` steps."""

    step: int
    weights: bytes
    loss: tuple[float, ...]


def train(place: Workplace) -> TrainingResult:
    """Train, from the last checkpoint where there is one."""
    import numpy as np

    job = place.job
    place.tell("load")
    rows, skipped = _usable(place.rows(job.train), job)
    labels = tuple(sorted({row.answer for row in rows}))
    data = [features(asked(row), BUCKETS, LOW, HIGH) for row in rows]
    targets = [labels.index(row.answer) for row in rows]
    order = batches(len(rows), job)
    start = _checkpoint(place.folder / CHECKPOINT)
    weights: Any = np.zeros((BUCKETS + 1, len(labels)), dtype=np.float32)
    if start is not None:
        weights = np.frombuffer(start.weights, dtype=np.float32).reshape(weights.shape).copy()
    loss = list(start.loss) if start is not None else []
    for step in range(len(loss), len(order)):
        began = time.monotonic()
        picked = order[step]
        rate = job.schedule.learning_rate * RATE_SCALE
        loss.append(softmax_step(weights, [data[i] for i in picked], [targets[i] for i in picked], rate))
        took = time.monotonic() - began
        left = took * (len(order) - step - 1)
        place.tell("train", step=step + 1, steps=len(order), loss=loss[-1], seconds_per_step=took, eta_seconds=left)
        if (step + 1) % job.schedule.checkpoint_every == 0:
            state = Checkpoint(step + 1, weights.tobytes(), tuple(loss))
            write_whole(place.folder / CHECKPOINT, msgspec.msgpack.encode(state))
    model = Ngram(FORMAT, labels, BUCKETS, LOW, HIGH, weights.tobytes())
    return _result(place, model, loss, len(rows), skipped)


def _result(place: Workplace, model: Ngram, loss: list[float], rows: int, skipped: dict[str, str]) -> TrainingResult:
    place.tell("export")
    write_whole(place.folder / MODEL, encode(model))
    made = [place.made(MODEL, "tiny_model")]
    metrics: dict[str, Any] = {}
    if place.job.validation:
        place.tell("validate")
        tested = place.rows(place.job.validation)[: place.job.check_rows]
        answers = [Answered(row.id, model.classify(asked(row)), row.answer) for row in tested]
        write_whole(place.folder / ANSWERS, b"".join(msgspec.json.encode(a) + b"\n" for a in answers))
        made.append(place.made(ANSWERS, "answers"))
        metrics["accuracy"] = sum(a.answer == a.expected for a in answers) / len(answers) if answers else None
    return TrainingResult(
        job=place.job.id, made=tuple(made), steps=len(loss), loss=tuple(loss), rows=rows, skipped=skipped,
        environment=environment("numpy"), metrics=metrics, **place.spent(),
    )  # fmt: skip


def asked(row: Line) -> str:
    """What a row asks: its last user turn."""
    turns = [m.get("content") for m in row.messages if m.get("role") == "user"]
    return str(turns[-1]) if turns else ""


def batches(rows: int, job: TrainingJob) -> list[list[int]]:
    """Which rows each step takes, by index: decided by the seed alone, so that a resumed run goes on as it would have."""
    import numpy as np

    size = job.schedule.batch * job.schedule.accumulate
    a_round = -(-rows // size)
    steps = job.schedule.steps or max(1, round(a_round * job.schedule.epochs))
    order: list[list[int]] = []
    for epoch in range(-(-steps // a_round)):
        mixed = np.random.default_rng([job.seed, epoch]).permutation(rows).tolist()
        order += [mixed[at : at + size] for at in range(0, rows, size)]
    return order[:steps]


def _usable(rows: list[Line], job: TrainingJob) -> tuple[list[Line], dict[str, str]]:
    """(rows to train on, why the others are not)."""
    skipped = {row.id: "It has no answer." for row in rows if not row.answer}
    usable = [row for row in rows if row.answer]
    if len({row.answer for row in usable}) < 2:
        raise TrainingFailed(
            f"{job.train} holds fewer than two different answers.", code="rows_invalid",
            hint="A classifier needs two classes at least.",
        )  # fmt: skip
    return usable, skipped


def _checkpoint(path: Path) -> Checkpoint | None:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Checkpoint)
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(run(sys.argv, train))
