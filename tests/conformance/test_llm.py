"""Conformance: Simon Willison's `llm`, by its Python interface; leaving a stream by Ctrl-C at its command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from tests.conformance.vendor import CITIES, TEXT, WEATHER

llm = pytest.importorskip("llm", reason="llm is not installed")
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
    503: openai.InternalServerError,
}


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.fixture
def model(here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    from llm.default_plugins.openai_models import Chat

    def make(app: str, key: str = "") -> Any:
        return Chat(app, key=key or here.key, api_base=here.url, supports_schema=True, supports_tools=True)

    return make


def test_plain(model: Any) -> None:
    said = model("chat").prompt("hello", stream=False)
    assert said.text() == TEXT
    assert (said.usage().input, said.usage().output) == (12, 10)


def test_stream(model: Any) -> None:
    said = model("chat").prompt("hello")
    pieces = [p for p in said if p]
    assert (len(pieces), "".join(pieces)) == (10, TEXT)
    assert (said.usage().input, said.usage().output) == (12, 10)


@BOTH
def test_tools(model: Any, stream: bool) -> None:
    called: list[str] = []

    def get_weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return f"21 in {city}"

    said = model("tools").chain("hello", tools=[get_weather], stream=stream).text()
    assert (called, said) == (CITIES, "21 in Chengdu and 21 in Oslo")


@BOTH
def test_schema(model: Any, stream: bool) -> None:
    assert json.loads(model("schema").prompt("hello", schema=Weather, stream=stream).text()) == WEATHER


@pytest.mark.parametrize("status", ERRORS)
def test_errors(model: Any, asks: Any, thrice: Any, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    app, key, code = asks[status]
    monkeypatch.setattr("time.sleep", lambda _: None)  # it has no option for its retries; the 429 would have it wait a minute
    with pytest.raises(ERRORS[status]) as e:
        thrice(lambda: model(app, key).prompt("hello", stream=False).text())
    assert (e.value.status_code, e.value.code) == (status, code)


def test_errors_within_a_stream(model: Any) -> None:
    pieces: list[str] = []
    with pytest.raises(openai.APIError) as e:
        pieces.extend(model("cut").prompt("hello"))
    assert e.value.code == "upstream_cut"
    assert "".join(pieces) == "Hello, 世"


def test_retry_headers(model: Any, vendor: Any, waited: Any) -> None:
    prompt = uuid.uuid4().hex
    assert model("wait").prompt(prompt, stream=False).text() == TEXT
    waited(prompt)
    with pytest.raises(openai.InternalServerError):
        model("dead").prompt(prompt + "2", stream=False).text()
    assert len(vendor.of(prompt + "2")) == 2, "Noria has tried twice, nobody again"


def test_disconnect(here: Any, tmp_path: Path, stopped: Any) -> None:
    entry = {"model_id": "endless", "model_name": "endless", "api_base": here.url, "api_key_name": "noria"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))
    (tmp_path / "keys.json").write_text(json.dumps({"noria": here.key}))
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path)}

    def leave() -> float:
        argv = [sys.executable, "-m", "llm", "prompt", "--no-log", "-m", "endless", "hello"]
        with subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.read(1)
            left = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        return left

    stopped(leave)
