"""Shared by the whole tree: a running Noria, and an upstream that fails on demand."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tests.loopback import DONE, begin, frame, listening, put

settings.register_profile("noria", settings(deadline=None, suppress_health_check=[HealthCheck.too_slow]))
settings.load_profile("noria")  # how long an example takes says how many others want the processor

NORIA = str(Path(sys.executable).with_name("noria"))
DATA = Path(os.environ.get("NORIA_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

SCRIPTED = """
models:
  fake: {provider: scripted, model: fake}
apps:
  echo: {model: fake}
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who runs what, with `--dist loadscope`."""
    if config.getvalue("dist") != "loadscope":
        return None
    from tests.spread import Spread

    return Spread(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # of pytest-xdist
        from tests.spread import order

        order(items)


@dataclass
class Service:
    """A Noria that runs in its own home, with the command line pointed at it."""

    home: Path
    url: str
    process: subprocess.Popen[str]
    env: dict[str, str]
    lines: list[str] = field(default_factory=list)

    def cli(self, *args: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [NORIA, *args],
            env=self.env,
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
            **kwargs,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def json(self, *args: str) -> Any:
        return json.loads(self.cli(*args, "--json").stdout)

    def pids(self) -> dict[str, int]:
        """Process id of every child, by its last arguments (`keeper`, `worker`, `model_server`)."""
        out = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        ).stdout
        found = {}
        for line in out.splitlines():
            pid, _, args = line.strip().partition(" ")
            name = next((n for n in ("keeper", "model_server", "embed_server") if n in args), None)
            if name is None and "worker" in args:
                name = "worker-" + args.split("--slot ")[1].split()[0]
            if name:
                found[name] = int(pid)
        return found

    def trace(self, id: str, within: float = 10.0) -> dict[str, Any]:
        """The recorded exchange, as soon as it is there."""
        end = time.monotonic() + within
        while True:
            done = self.cli("trace", "show", id, "--json", check=False)
            if done.returncode == 0:
                return json.loads(done.stdout)
            assert time.monotonic() < end, done.stderr
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def start_service(folder: Path, config: str | None = SCRIPTED, *args: str, env: dict[str, str] | None = None) -> Service:
    """`noria up` on a free port in `folder`; returns when it serves."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {k: v for k, v in os.environ.items() if not k.startswith("NORIA_") and k != "PYTHONDONTWRITEBYTECODE"}
    whole |= {"NORIA_HOME": str(folder / "home"), "COLUMNS": "200", **(env or {})}
    if config is not None:
        (folder / "noria.yaml").write_text(config)
    process = subprocess.Popen(
        [NORIA, "up", "--port", "0", *args], env=whole, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith("Noria serves at "):
            break
    else:
        process.stdout.close()
        process.wait()  # else its remains fail whichever test runs when they are collected
        raise AssertionError("noria up ended:\n" + "\n".join(lines))
    url = lines[-1].split()[3].removesuffix("/v1")
    service = Service(folder / "home", url, process, whole, lines)
    threading.Thread(target=_drain, args=(process, lines), daemon=True).start()
    _configured(service, 20.0)
    return service


def _configured(service: Service, within: float) -> None:
    """Wait until every worker has a configuration: where the processor is wanted by many they serve before that."""
    token = {"authorization": f"Bearer {(Path(service.env['NORIA_HOME']) / 'admin.token').read_text().strip()}"}
    end = time.monotonic() + within
    while time.monotonic() < end:
        status, _, body = post(service.url + "/api/status", b"", token, method="GET")
        if status == 200 and all(w["config"] for w in json.loads(body)["workers"]):
            return
        time.sleep(0.05)


def _drain(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    with process.stdout as out:
        lines.extend(line.rstrip() for line in out)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pytest's own, under a shorter name: below it, and below pytest-xdist's folder, lie unix sockets, whose paths have at most 107 bytes."""
    return tmp_path_factory.mktemp(re.sub(r"\W", "_", request.node.name.removeprefix("test_"))[:12])


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """`serve(config, *args, env=…)` starts a Noria of its own; ended after the test."""
    started: list[Service] = []

    def start(config: str | None = SCRIPTED, *args: str, env: dict[str, str] | None = None) -> Service:
        service = start_service(tmp_path / f"service{len(started)}", config, *args, env=env)
        started.append(service)
        return service

    yield start
    for service in started:
        service.stop()


@pytest.fixture(scope="module")
def serve_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """As `serve`, ended after the module: for tests that share a running service."""
    started: list[Service] = []

    def start(config: str | None = SCRIPTED, *args: str, env: dict[str, str] | None = None) -> Service:
        service = start_service(tmp_path_factory.mktemp("service"), config, *args, env=env)
        started.append(service)
        return service

    yield start
    for service in started:
        service.stop()


@dataclass
class Upstream:
    """A model endpoint on loopback that does what the model's name says; `seen` holds the requests it got."""

    port: int
    seen: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """Model names: `ok`, `slow-SECONDS`, `status-CODE`, `retry-after`, `cut`, `cut-json`, `garbage`, `hang-up`, `trickle`."""
    seen: list[dict[str, Any]] = []
    with listening(lambda r, w: _serve(r, w, seen)) as port:
        yield Upstream(port, seen)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[dict[str, Any]]) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:] if ": " in line)
            headers = {k.lower(): v for k, v in headers.items()}
            body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
            seen.append({"head": head.decode("latin-1"), "headers": headers, "body": body})
            if not await _behave(writer, str(body.get("model", "ok")), body):
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


TOKENS = ["Hel", "lo", ", ", "世", "界", "! ", "How ", "are ", "you", "?"]
ERROR = {"error": {"message": "upstream says no", "type": "server_error", "param": None, "code": None}}


async def _behave(writer: asyncio.StreamWriter, model: str, body: dict[str, Any]) -> bool:
    """One answer; whether the connection goes on."""
    kind, _, value = model.partition("-")
    if kind == "slow":
        await asyncio.sleep(float(value))
    if kind == "hang":
        return False
    if kind == "garbage":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n<nonsense")
    elif kind == "status":
        _json(writer, int(value), ERROR)
    elif kind == "retry":
        _json(writer, 429, ERROR, "retry-after: 7\r\n")
    elif body.get("stream"):
        return await _stream(writer, kind, value, body)
    elif kind == "cut":
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"id": "x", "cho')
        await writer.drain()
        return False
    else:
        message = {"role": "assistant", "content": "".join(TOKENS)}
        usage = {"prompt_tokens": 12, "completion_tokens": len(TOKENS), "total_tokens": 12 + len(TOKENS)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
        _json(
            writer,
            200,
            {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": choices, "usage": usage},
        )
    await writer.drain()
    return True


def _json(writer: asyncio.StreamWriter, status: int, value: Any, extra: str = "") -> None:
    data = json.dumps(value).encode()
    writer.write(
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n{extra}\r\n".encode() + data
    )


async def _stream(writer: asyncio.StreamWriter, kind: str, value: str, body: dict[str, Any]) -> bool:
    begin(writer)
    top = {"id": "chatcmpl-2", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    async def send(data: bytes) -> None:
        pieces = [data[i : i + 3] for i in range(0, len(data), 3)] if kind == "trickle" else [data]
        for piece in pieces:
            put(writer, piece)
            await writer.drain()

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return frame(top | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    await send(chunk({"role": "assistant", "content": ""}))
    for i, token in enumerate(TOKENS):
        if kind == "cut" and i == 4:
            return False
        if kind == "pause":
            await asyncio.sleep(float(value))
        await send(chunk({"content": token}))
    await send(chunk({}, "stop"))
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 12, "completion_tokens": len(TOKENS), "total_tokens": 12 + len(TOKENS)}
        await send(frame(top | {"choices": [], "usage": usage}))
    await send(DONE)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"real data sets are not at {DATA}")
    return DATA


def post(
    url: str, body: bytes | dict[str, Any], headers: dict[str, str] | None = None, *, method: str = "POST"
) -> tuple[int, dict[str, str], bytes]:
    """One plain HTTP call, for tests that look at the wire: status, lower-case headers, body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data or None, {"content-type": "application/json", **(headers or {})}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, {k.lower(): v for k, v in e.headers.items()}, e.read()


@pytest.fixture(scope="session")
def http() -> Callable[..., tuple[int, dict[str, str], bytes]]:
    return post
