"""`noria demo` in full: a language model is tuned, gated, promoted; a damaged one is caught twice. Needs an interpreter with noria[train]."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from noria.contracts.error import NoriaError
from noria.demo.place import trainer

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(7200)]


def test_the_wheel_turns_once(models_home, tmp_path) -> None:
    python = os.environ.get("NORIA_TRAIN_PYTHON", sys.executable)
    try:
        trainer(python)
    except NoriaError as e:
        pytest.skip(f"{e.text} Name an interpreter that has them in NORIA_TRAIN_PYTHON.")
    argv = [
        sys.executable, "-m", "noria", "demo", "--json", "--data", str(tmp_path / "demo"), "--train-python", python,
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith("NORIA_")} | {"NORIA_HOME": str(models_home)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=7000)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    assert all(e["reached"] for e in events if e["event"] == "verdict")
    figures = {e["name"]: e["value"] for e in events if e["event"] == "figure"}
    before, after = figures["measured"]
    assert after["low"] > before["high"]
    assert after["low"] > figures["strict"]["high"], "better than the base that may say nothing but names"
