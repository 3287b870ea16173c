"""LoRA adapters of releases upon the real model: a second generation of its server takes over while callers are answered."""

from __future__ import annotations

import http.client
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from tests.conftest import start_service
from tests.service.conftest import Caller

CONFIG = """
models:
  small: {provider: local, model: smollm2-135m}
apps:
  support: {model: small, params: {temperature: 0, max_tokens: 12}}
"""
WIDTH, RANK = 576, 4


def lora(path: Path, strength: float) -> Path:
    """A LoRA adapter in GGUF, for one matrix of SmolLM2-135M: random, and at `strength` 1 impossible to overlook."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    keys = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    head = b"".join(text(k) + struct.pack("<I", 8) + text(v) for k, v in keys.items())
    head += text("adapter.lora.alpha") + struct.pack("<If", 6, RANK)
    rng = np.random.default_rng(1)
    tensors = {}
    for layer in range(30):
        tensors[f"blk.{layer}.attn_output.weight.lora_a"] = rng.normal(0, 0.5, (RANK, WIDTH)) * strength
        tensors[f"blk.{layer}.attn_output.weight.lora_b"] = rng.normal(0, 0.5, (WIDTH, RANK))
    infos, data = b"", b""
    for name, values in tensors.items():
        raw = values.astype("<f4").tobytes()
        infos += text(name) + struct.pack("<IQQIQ", 2, values.shape[1], values.shape[0], 0, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    whole = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys) + 1) + head + infos
    path.write_bytes(whole + b"\0" * (-len(whole) % 32) + data)
    return path


@pytest.fixture(scope="module")
def service(models_home: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("lora")
    home = folder / "home"
    home.mkdir()
    (home / "models").mkdir()
    for model in (models_home / "models").iterdir():
        (home / "models" / model.name).symlink_to(model.resolve())
    running = start_service(folder, CONFIG, "--workers", "2")
    try:
        yield Caller(running)
    finally:
        running.stop()


def until(what: Callable[[], Any], within: float, why: str) -> Any:
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, why
        time.sleep(0.1)
    return found


def said(on: Caller, model: str) -> str:
    answer = on.chat(model, "What is the capital of France?")
    return answer.text() if answer.status == 200 else ""


def stream(on: Caller, tokens: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(urlsplit(on.service.url).netloc, timeout=60)
    body = {
        "model": "support",
        "stream": True,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection, connection.getresponse()


def published(on: Caller, path: Path) -> str:
    return on.service.cli("release", "publish", "adapter_gguf", str(path)).stdout.strip()


@pytest.mark.model
def test_an_adapter_that_arrives_while_the_service_runs_is_served_beside_the_base_model(service, tmp_path) -> None:
    until(lambda: said(service, "support"), 60, "the model does not answer")
    before, pids = said(service, "support"), service.service.pids()
    connection, reading = stream(service, 300)
    first = reading.read(6)
    made_of = published(service, lora(tmp_path / "adapter.gguf", 1.0))
    made = service.service.json("release", "create", "support", "--name", "tuned", "--adapter", made_of)
    weak = service.service.json("release", "create", "support", "--name", "off", "--adapter", made_of, "--scale", "0")
    assert len({made["id"], weak["id"]}) == 2
    tuned = until(lambda: said(service, "support@tuned"), 180, "the adapter is not served")
    assert tuned != before, "it changes what the model says"
    assert said(service, "support") == before, "and nothing of what the base model says"
    assert said(service, "support@off") == before
    caller = service.chat("support", "What is the capital of France?", lora=[{"id": 0, "scale": 1.0}])
    assert caller.text() == before, "whoever calls does not choose adapters"
    assert (first + reading.read()).endswith(b"data: [DONE]\n\n"), "who was being answered is answered to the end"
    connection.close()
    after = service.service.pids()
    assert {n: p for n, p in after.items() if n != "model_server"} == {n: p for n, p in pids.items() if n != "model_server"}
    assert service.service.json("release", "verify", "support", "tuned")["ok"] is True
    for name in ("tuned", "off"):
        service.service.cli("release", "retire", "support", name)
    status = service.service.home / "run" / "models" / "smollm2-135m.json"
    until(
        lambda: json.loads(status.read_bytes())["facts"]["adapters"].keys() & {made_of} == set(), 60, "the adapter stays loaded"
    )
    assert said(service, "support") == before


@pytest.mark.model
def test_an_adapter_that_was_changed_is_not_loaded_and_keeps_nothing_else_from_being_served(service, tmp_path) -> None:
    until(lambda: said(service, "support"), 60, "the model does not answer")
    before = said(service, "support")
    made_of = published(service, lora(tmp_path / "adapter.gguf", 0.8))
    data = bytearray((service.service.home / "artifacts" / made_of / "adapter.gguf").read_bytes())
    service.service.json("release", "create", "support", "--name", "harmed", "--adapter", made_of)
    until(lambda: said(service, "support@harmed"), 60, "the adapter is not served")
    data[-1] ^= 1
    (service.service.home / "artifacts" / made_of / "adapter.gguf").write_bytes(data)
    other = published(service, lora(tmp_path / "other.gguf", 0.5))
    service.service.json("release", "create", "support", "--name", "second", "--adapter", other)

    def told() -> str:
        models = service.api("GET", "/api/status").json["models"]
        return next((m["detail"] for m in models if m.get("adapter") == made_of and m["state"] == "failed"), "")

    assert "adapter.gguf was changed" in until(told, 60, "nothing is said of it")
    assert until(lambda: said(service, "support@second"), 60, "the other adapter is not served") != before
    assert said(service, "support") == before
    gone = service.chat("support@harmed", "What is the capital of France?")
    assert (gone.status, gone.json["error"]["code"]) == (503, "model_failed")
    assert service.service.cli("release", "verify", "support", "harmed", check=False).returncode == 1
    begun = service.api("POST", "/api/rollouts", {"app": "support", "candidate": "harmed"}).json
    assert (begun["percent"], begun["state"]) == (0, "rejected")
    assert "was changed" in next(f["says"] for f in begun["findings"] if f["verdict"] == "fail")
    told = service.service.cli("release", "rollout", "support", "harmed", check=False)
    assert (told.returncode, "gate, signature: fail" in told.stdout) == (1, True)
    waived = service.service.json("release", "rollout", "support", "harmed", "--waive", "to see that it gets no traffic")
    assert (waived["percent"], waived["waived"]) == (0, "cli: to see that it gets no traffic")
    assert "was changed" in waived["decisions"][-1]["says"]
    service.service.cli("release", "rollback", "support", "--why", "seen")


@pytest.mark.model
def test_a_merged_model_that_is_an_artifact_is_installed_and_served(service) -> None:
    until(lambda: said(service, "support"), 60, "the model does not answer")
    home = service.service.home
    merged = service.service.cli(
        "release", "publish", "model_gguf", str(home / "models" / "smollm2-135m" / "model.gguf")
    ).stdout.strip()
    made = service.service.json("release", "create", "support", "--name", "merged", "--model", merged, "--param", "seed=1")
    assert made["model"] == f"a1-{merged[3:19]}"
    assert until(lambda: said(service, "support@merged"), 90, "it is not served") == said(service, "support")
    assert service.service.json("release", "verify", "support", "merged")["artifacts"] == {merged: ""}
