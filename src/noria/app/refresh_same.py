"""Whether what would be served is what was trained: the signed file of the artifact, asked the held-out rows."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from noria.adapt import equivalence
from noria.adapt.equivalence import TOLERANCE, Served
from noria.adapt.job import checked_of, job_of
from noria.adapt.trainer.tiny import ANSWERS, asked
from noria.adapt.trainer.workplace import Line
from noria.contracts.error import NoriaError, StoreError
from noria.contracts.evaluation import Estimate
from noria.contracts.refresh import Compared, Exported, Plan, Trained
from noria.contracts.training import Answered, TrainingJob
from noria.kit.ngram import decode
from noria.kit.stats import wilson
from noria.release import artifact


def compared(home: Path, plan: Plan, trained: Trained, exported: Exported) -> Compared:
    """The trained model's own answers to the rows that were held out, against those of the file that would be served."""
    folder = Path(trained.folder)
    job = job_of(folder)
    if job is None:
        raise StoreError(f"{folder} is gone.", code="training_gone", hint="Begin another refresh.")
    if not job.validation:
        return Compared(None, 0.0, 0.0, "", "No row was held out: there is nothing to compare.")
    file = artifact.path_of(home, exported.served)
    if exported.kind == "tiny_model":
        return _tiny(folder, job, file)
    served = Served(Path(job.weights), file) if exported.kind == "adapter_gguf" else Served(file)
    with suppress(NoriaError):  # what it found is in the job's folder
        equivalence.check(folder, served)
    found = next((c for c in checked_of(folder) if c.file == served.told.name), None)
    if found is None or found.agreement is None:
        code, says = (found.code, found.says) if found else ("not_checked", f"{file} could not be compared.")
        return Compared(None, 0.0, 0.0, code or "refused", says)
    before, after = found.trained_accuracy or 0.0, found.served_accuracy or 0.0
    lost = plan.policy.gate.equivalence is not None and after < before - TOLERANCE
    return _told(round(found.agreement * found.rows), found.rows, (before, after), "not_equivalent" if lost else "")


def _tiny(folder: Path, job: TrainingJob, file: Path) -> Compared:
    model = decode(file.read_bytes())
    answers = [msgspec.json.decode(line, type=Answered) for line in (folder / ANSWERS).read_bytes().splitlines()]
    lines = [msgspec.json.decode(line, type=Line) for line in (folder / job.validation).read_bytes().splitlines()]
    rows = {line.id: line for line in lines}
    said = [model.classify(asked(rows[a.id])) for a in answers]
    n = len(answers) or 1
    before = sum(a.answer == a.expected for a in answers) / n
    after = sum(text == a.expected for a, text in zip(answers, said, strict=True)) / n
    return _told(sum(a.answer == text for a, text in zip(answers, said, strict=True)), len(answers), (before, after), "")


def _told(agreed: int, rows: int, accuracy: tuple[float, float], fault: str) -> Compared:
    bounds = wilson(agreed, rows)
    says = (
        f"What is served agrees with what was trained on {agreed} of {rows} held-out rows; accuracy {accuracy[0]:.1%} trained, "
        f"{accuracy[1]:.1%} served."
    )
    if fault:
        says += f" More than {TOLERANCE:.0%} are lost."
    return Compared(Estimate(bounds.value, bounds.low, bounds.high, rows, "wilson"), *accuracy, fault, says)
