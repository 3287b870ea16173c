"""Where the demo lives: a folder of its own with a home, a configuration and a report; and what must be there before it begins."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from noria.adapt import job as jobs
from noria.contracts.dataset import Row
from noria.contracts.error import ConfigError, MissingDependency, NotFound, Unavailable
from noria.contracts.training import Schedule, TrainingJob
from noria.data.split import Placed, Ratios, assign
from noria.demo.customers import Intent, Message
from noria.demo.size import APP, BASE, DATASET, FAST_SCHEDULE, FIRST, PROMPT, STRICT, SUITE, Size
from noria.kit.atomic import write_whole
from noria.kit.supervise import lock
from noria.release import catalogue

MARK, HOME, CONFIG, EVENTS, REPORT, HISTORY = "demo.json", "home", "noria.yaml", "events.jsonl", "report.html", "history.jsonl"
FIRST_FOLDER, DAMAGED = "first", "damaged-"
OURS = (HOME, CONFIG, EVENTS, HISTORY, FIRST_FOLDER, f"{DAMAGED}*", MARK)
"""What a demo removes of the one before."""
LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "gguf", "msgspec", "numpy")
INSTALL = "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu && pip install 'noria[train]'"


class Place:
    """The folder of one demo."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.home = self.root / HOME
        self.config = self.root / CONFIG
        self.report = self.root / REPORT

    def clear(self) -> str:
        """Make it empty for a new demo; a sentence about what was there before, or empty.

        Raises `ConfigError` for a folder that holds something else than a demo, `Unavailable` where its service runs.
        """
        there = sorted(p.name for p in self.root.iterdir()) if self.root.is_dir() else []
        if there and MARK not in there:
            raise ConfigError(
                f"{self.root} holds something else ({', '.join(there[:3])}).",
                hint="Name an empty or new folder with --data; a demo begins by clearing its own.",
            )
        said = ""
        if there:
            with lock(self.home / "lock"):
                said = self._removed()
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self.root / MARK, msgspec.json.encode({"demo": 1, "began_ns": time.time_ns()}))
        return said

    def _removed(self) -> str:
        kept = ""
        if self.report.exists():
            name = time.strftime("report-%Y%m%d-%H%M%S.html", time.gmtime(self.report.stat().st_mtime))
            self.report.rename(self.root / name)
            kept = f" Its report is kept as {name}."
        for path in (p for name in OURS for p in self.root.glob(name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return f"The demo that was in {self.root} is removed, and this one begins anew.{kept}"


def trainer(named: str) -> str:
    """The interpreter that trains: `named`, else this one. Raises `MissingDependency` with the line that installs what it lacks."""
    python = named or sys.executable
    code = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    try:
        done = subprocess.run([python, "-c", code, *LIBRARIES], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as e:
        raise ConfigError(f"{python} cannot be run: {e}", hint="Name an interpreter with --train-python.") from e
    if missing := done.stdout.split():
        raise MissingDependency(
            f"{python} lacks {', '.join(missing)}, without which no language model is trained.",
            hint=f"Run: {INSTALL} (or name an interpreter that has them with --train-python; or see the loop with a small "
            "classifier in place of the language model: noria demo --fast).",
        )
    return python


def installed_base(models_home: Path) -> Path:
    """The folder of the base model in `models_home`. Raises `NotFound` with the command that fetches it."""
    if BASE not in catalogue.installed(models_home):
        raise NotFound(
            f"The model {BASE} is not installed in {models_home}.", code="model_not_found", hint=f"Run: noria models add {BASE}"
        )
    return catalogue.folder(models_home, BASE).resolve()


def lend(model: Path, home: Path) -> None:
    """Let the demo's home use an installed model; its own ones lie beside it."""
    place = home / "models" / BASE
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.symlink_to(model)


def configuration(size: Size, known: tuple[Intent, ...], python: str, first: Path | None) -> dict[str, Any]:
    """`noria.yaml` of the help desk. `first`: the classifier that v1 is, where the demo is fast."""
    v1: dict[str, Any] = {"model": "small", "prompt": "sorter", "params": {"temperature": 0, **size.params}}
    releases = {FIRST: v1}
    prompts = {"sorter": {"text": PROMPT}}
    model: dict[str, Any] = {"provider": "local", "model": BASE}
    if first is not None:
        model = {"provider": "tiny", "model": "first", "options": {"file": str(first)}}
    else:
        names = [i.id for i in known]
        schema = {"name": "intent", "schema": {"type": "string", "enum": names}}
        prompts["names"] = {"text": f"Answer with one of these intents of a help desk and nothing else: {', '.join(names)}."}
        forced = {"response_format": {"type": "json_schema", "json_schema": schema}, "temperature": 0, **size.params}
        releases[STRICT] = {"model": "small", "prompt": "names", "params": forced}
    refresh = {
        "suite": SUITE, "start": "drift", "data": {"dataset": DATASET, "since": "1h", "splits": size.splits},
        "train": size.train, "gate": size.gate, "rollout": size.rollout,
    }  # fmt: skip
    app = {
        "description": "Tells what a message to the help desk of Brookwheel is about.", "releases": releases, "weights": {FIRST: 1},
        "drift": {"reference": "1h", "recent": "1h", "every": "1h"}, "refresh": refresh,
    }  # fmt: skip
    return {
        "models": {"small": model}, "prompts": prompts, "apps": {APP: app},
        "suites": {SUITE: {"dataset": DATASET, "split": "test", "metrics": ["label"], "params": size.params}},
        "train": {"python": python} if python and python != sys.executable else {},
    }  # fmt: skip


def write_history(path: Path, messages: Sequence[Message], shares: dict[str, float]) -> dict[str, str]:
    """The help desk's past as a file that `noria data import` reads, split already; message → its split."""
    of = assign([Placed(m.id, m.group, m.intent) for m in messages], Ratios(tuple(shares.items()), stratify=True))
    lines = [
        msgspec.json.encode(
            {"text": m.text, "answer": m.intent, "label": m.intent, "lang": m.lang, "group": m.group, "split": of[m.id]}
        )
        for m in messages
    ]
    write_whole(path, b"".join(line + b"\n" for line in lines))
    return of


def first_classifier(folder: Path, messages: Sequence[Message]) -> Path:
    """Train what v1 is where the demo is fast: a classifier on the help desk's past, by the contract of any training job."""
    rows = [(m.id, Row(({"role": "user", "content": m.text},), answer=m.intent, label=m.intent)) for m in messages]
    job = TrainingJob(
        "train_first", "tiny", "", "", "", "history", "train.jsonl", schedule=msgspec.convert(FAST_SCHEDULE, Schedule)
    )
    jobs.write(folder, job, {job.train: rows})
    done = subprocess.run(jobs.argv(job, folder, sys.executable, None), capture_output=True, timeout=300, check=False)
    if done.returncode:
        raise Unavailable(f"v1 could not be trained: {jobs.reason_of(folder).message}", hint=f"See {folder}.")
    return folder / "tiny.model"
