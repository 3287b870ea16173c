"""The process that serves one GGUF model: llama.cpp's own server, inside this process (`xllamacpp`).

Every slot may use the model's whole window, but the KV cache is one pool of twice that (`kv_unified`), not
one window a slot: 521 MB resident against 890 MB for SmolLM2 with 4 slots of 8192. Where prompts in flight
together outgrow the pool, llama.cpp fails all of them; the provider reports that as overload, not as a fault.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from noria.app.model_process import Adapter, Launch, Listening, main
from noria.contracts.error import MissingDependency, NoriaError
from noria.release import catalogue

PROMPT_CACHE_MB = 128
"""Prompts kept in memory for reuse; llama.cpp's own default is 8 GiB."""
WARNINGS = 2
"""llama.cpp's verbosity; prompts appear in its log from 3 on."""


@contextmanager
def serve(launch: Launch) -> Iterator[Listening]:
    """Load, listen, answer one token; stop at the end."""
    if launch.manifest.format != "gguf":
        raise NoriaError(
            f"{launch.model} is a {launch.manifest.format} model; llama.cpp serves GGUF files.",
            code="wrong_format",
            hint="Convert it to GGUF, or serve it with vLLM and use the provider openai_compatible.",
        )
    # spinning OpenMP threads would take the cores from the gateway; read once, when libgomp is loaded
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    server = _server(launch)
    try:
        listening = _warm(launch, str(server.listening_address))
        yield listening | {"busy": partial(_busy, launch, listening["port"])}
    finally:
        del server  # its destructor ends the answers in flight and joins the threads
        if launch.uds:
            with suppress(FileNotFoundError):
                Path(launch.uds).unlink()


def _server(launch: Launch) -> Any:
    try:
        import xllamacpp
    except ImportError as e:
        raise MissingDependency(f"xllamacpp cannot be loaded: {e}.", hint="Run: pip install xllamacpp") from e
    return xllamacpp.Server(_parameters(xllamacpp, launch))


def _parameters(xllamacpp: Any, launch: Launch) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(catalogue.weights(launch.home, launch.model))
    params.model_alias = {launch.model}
    params.hostnames = [launch.uds or "127.0.0.1"]
    params.port = 0
    params.api_keys = [launch.secret]
    params.n_parallel = launch.parallel
    params.kv_unified = True
    if launch.context:
        params.n_ctx = launch.context * min(2, launch.parallel)
        params.kv_unified_per_slot = launch.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = launch.threads
    params.cache_ram_mib = PROMPT_CACHE_MB
    params.ui = params.endpoint_slots = False  # slots would show one caller's prompt to another
    params.endpoint_metrics = True  # numbers only: whether somebody is being answered
    params.verbosity = WARNINGS
    params.use_jinja = True
    params.lora_init_without_apply = True  # a request says by which adapter it is answered, and how strongly; else by none
    params.lora_adapters = [_adapter(xllamacpp, a) for a in launch.adapters]
    if launch.manifest.kind == "embedding":
        params.embedding = True
        params.n_ubatch = params.n_batch  # an embedded text must fit one batch
    return params


def _adapter(xllamacpp: Any, adapter: Adapter) -> Any:
    made = xllamacpp.CommonAdapterLoraInfo()
    made.path, made.scale = str(adapter.path), 0.0
    return made


def _warm(launch: Launch, address: str) -> Listening:
    """Prove that it answers, over the wire, and learn what the model can do."""
    port = int(address.rpartition(":")[2]) if not launch.uds else 0
    props = _ask(launch, port, "GET", "/props")
    if launch.manifest.kind == "embedding":
        _ask(launch, port, "POST", "/v1/embeddings", {"input": "a"})
    else:
        _ask(launch, port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})
        for n in range(len(launch.adapters)):
            _ask(launch, port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, "lora": [{"id": n, "scale": 1.0}]})
    caps = props.get("chat_template_caps") or {}
    return {
        "port": port,
        "context": (props.get("default_generation_settings") or {}).get("n_ctx"),
        "slots": props.get("total_slots"),
        "tools": bool(caps.get("supports_tools")),
        "images": bool((props.get("modalities") or {}).get("vision")),
        "adapters": {a.id: n for n, a in enumerate(launch.adapters)},
    }


def _busy(launch: Launch, port: int) -> bool:
    """Whether it answers anybody, or has somebody waiting."""
    try:
        text = _call(launch, port, "GET", "/metrics", None).decode()
    except (OSError, http.client.HTTPException, NoriaError):
        return False
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return any(float(numbers.get(f"llamacpp:requests_{what}", 0)) > 0 for what in ("processing", "deferred"))


def _ask(launch: Launch, port: int, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(_call(launch, port, method, path, body))
    return decoded


def _call(launch: Launch, port: int, method: str, path: str, body: dict[str, Any] | None) -> bytes:
    connection = _UnixConnection(launch.uds) if launch.uds else http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {launch.secret}", "content-type": "application/json"}
    try:
        connection.request(method, path, msgspec.json.encode(body) if body else None, headers)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise NoriaError(f"llama.cpp answers {path} with {answer.status}: {data[:300]!r}.", code="model_failed")
    return data


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket, which the standard library lacks."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


if __name__ == "__main__":
    sys.exit(main(None, serve))
