"""Operating a running service: plan and apply, reload, drain, a keeper that hangs, what doctor says."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

CONFIG = """
models:
  fake: {provider: scripted, model: fake}
prompts:
  short: {text: "Be short."}
guards:
  careful: [pii]
apps:
  echo: {model: fake}
"""
CHANGED = """
models:
  fake: {provider: scripted, model: fake}
prompts:
  short: {text: "Be very short."}
guards:
  careful: [pii, secrets]
apps:
  echo: {model: fake, prompt: short, guard: careful}
  more: {model: fake}
serve: {body_limit: 1MB, workers: 3}
"""
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


def until(what: Callable[[], Any], within: float, why: str) -> Any:
    end = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < end, why
        time.sleep(0.05)
    return found


def write(noria: Any, text: str) -> None:
    (noria.home.parent / "noria.yaml").write_text(text)


def status(noria: Any, http: Any) -> dict[str, Any]:
    token = (noria.home / "admin.token").read_text().strip()
    return json.loads(http(noria.url + "/api/status", b"", {"authorization": f"Bearer {token}"}, method="GET")[2])


@pytest.fixture(scope="module")
def standing(serve_once: Any) -> Any:
    return serve_once(CONFIG, "--workers", "2")


@pytest.fixture
def shared(standing: Any) -> Any:
    """A service that goes on after the test, with `CONFIG` in force; what the test writes into its file is taken back."""
    write(standing, CONFIG)
    return standing


# -- plan and apply ------------------------------------------------------------------------------------


def test_a_plan_names_every_difference_and_applying_it_is_in_force_everywhere_without_a_restart(serve, http) -> None:
    noria = serve(CONFIG, "--workers", "2")
    pids = noria.pids()
    before = http(noria.url + "/v1/chat/completions", HELLO)[1]["x-noria-config"]
    assert noria.cli("plan").stdout == "Nothing to apply.\n"
    write(noria, CHANGED)
    planned = noria.cli("plan", check=False)
    assert planned.returncode == 1
    lines = planned.stdout.splitlines()
    assert "+ prompt short" in lines
    assert "~ guard careful" in lines
    assert any(line.startswith("~ app echo, release main: r1:") and "prompt" in line for line in lines), lines
    assert any(line.startswith("+ app more: release main r1:") for line in lines), lines
    assert "~ body_limit: 16777216 → 1048576" in lines
    assert "! serve.workers: 1 → 3; needs a restart: run `noria upgrade`" in lines
    assert http(noria.url + "/v1/chat/completions", HELLO)[1]["x-noria-config"] == before, "a plan changes nothing"

    declined = noria.cli("apply", check=False, input="n\n")
    assert declined.returncode == 1
    assert http(noria.url + "/v1/chat/completions", HELLO)[1]["x-noria-config"] == before
    applied = noria.json("apply", "--yes")
    assert [w["in_force"] for w in applied["workers"]] == [True, True]
    for _ in range(8):
        answered = http(noria.url + "/v1/chat/completions", {**HELLO, "model": "more"})
        assert (answered[0], answered[1]["x-noria-config"]) == (200, applied["config"][:19])
    trace = noria.trace(answered[1]["x-request-id"])
    assert trace["row"]["config"].startswith(answered[1]["x-noria-config"])
    assert noria.pids() == pids
    assert noria.cli("plan").returncode == 0
    assert noria.json("apply", "--yes")["applied"] is False


def test_a_wrong_file_changes_nothing_and_every_mistake_has_its_place(shared, http) -> None:
    noria = shared
    before = http(noria.url + "/v1/chat/completions", HELLO)[1]["x-noria-config"]
    write(noria, CONFIG + "  bad: {modle: fake}\n")
    for command in (("plan",), ("apply", "--yes")):
        refused = noria.cli(*command, check=False)
        assert refused.returncode == 2
        assert "noria.yaml:10:9: apps.bad.modle" in refused.stderr
    reloaded = noria.cli("reload", check=False)
    assert reloaded.returncode == 1
    assert "apps.bad.modle" in reloaded.stdout
    upgraded = noria.cli("upgrade", check=False)
    assert upgraded.returncode == 1
    assert "nothing was changed" in upgraded.stdout
    os.kill(noria.pids()["keeper"], signal.SIGKILL)  # nor does a keeper that starts again trip over it
    until(lambda: _status_or_none(noria, http), 15.0, "the keeper did not come back")
    assert http(noria.url + "/v1/chat/completions", HELLO)[1]["x-noria-config"] == before


def _status_or_none(noria: Any, http: Any) -> Any:
    try:
        return status(noria, http).get("workers")
    except (ValueError, KeyError):
        return None


def test_a_keeper_that_starts_again_does_not_apply_what_nobody_asked_for(shared, http) -> None:
    noria = shared
    before = http(noria.url + "/v1/chat/completions", HELLO)[1]["x-noria-config"]
    write(noria, CHANGED)
    os.kill(noria.pids()["keeper"], signal.SIGKILL)
    until(lambda: _status_or_none(noria, http), 15.0, "the keeper did not come back")
    assert status(noria, http)["config"].startswith(before)
    assert noria.cli("plan", check=False).returncode == 1
    doctor = noria.cli("doctor", "--offline", check=False).stdout
    assert "noria.yaml is not what is in force" in doctor


def test_a_key_that_is_missing_from_the_environment_is_found_before_anything_changes(shared, http) -> None:
    noria = shared
    before = http(noria.url + "/v1/chat/completions", HELLO)[1]["x-noria-config"]
    write(noria, CONFIG + "  far: {model: gpt}\n")
    text = (noria.home.parent / "noria.yaml").read_text()
    write(noria, text.replace("models:\n", "models:\n  gpt: {provider: openai, model: gpt-5, key: env:NO_SUCH_VARIABLE}\n"))
    refused = noria.cli("apply", "--yes", check=False)
    assert refused.returncode in (1, 2)
    assert "NO_SUCH_VARIABLE" in refused.stderr
    assert http(noria.url + "/v1/chat/completions", HELLO)[1]["x-noria-config"] == before


def test_over_the_network_only_the_services_own_file_can_be_applied(shared, http) -> None:
    noria = shared
    token = {"authorization": f"Bearer {(noria.home / 'admin.token').read_text().strip()}"}
    code, _, body = http(noria.url + "/api/apply", {"file": "/etc/passwd"}, token)
    assert (code, json.loads(body)["error"]["code"]) == (403, "file_refused")
    assert http(noria.url + "/api/plan", {}, {})[0] == 401
    assert json.loads(http(noria.url + "/api/plan", {}, token)[2])["empty"] is True


# -- reload --------------------------------------------------------------------------------------------


def test_reload_replaces_each_worker_while_an_old_one_finishes_its_stream(serve) -> None:
    slow = CONFIG.replace("model: fake}", "model: fake, options: {tokens: 120, token_ms: 100}}", 1)
    noria = serve(slow, "--workers", "2")
    before = noria.pids()
    client = http.client.HTTPConnection(noria.url.removeprefix("http://"), timeout=30)
    client.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": True}))
    answer = client.getresponse()
    assert answer.read(6) == b"data: "
    assert noria.json("reload")["state"] == "done"
    after = noria.pids()
    assert after["worker-0"] != before["worker-0"]
    assert after["worker-1"] != before["worker-1"]
    assert after["keeper"] == before["keeper"]
    held = [p for p in (before["worker-0"], before["worker-1"]) if Path(f"/proc/{p}").exists()]
    assert len(held) == 1, "the worker with the stream lives on"
    assert answer.read().endswith(b"data: [DONE]\n\n")
    client.close()
    until(lambda: not Path(f"/proc/{held[0]}").exists(), 10.0, "the old worker does not end")
    log = (noria.home / "logs" / "worker-0.log").read_text() + (noria.home / "logs" / "worker-1.log").read_text()
    assert "replaced; " in log


def test_an_idle_connection_survives_a_reload(shared) -> None:
    noria = shared
    client = http.client.HTTPConnection(noria.url.removeprefix("http://"), timeout=10)
    for n in range(3):
        client.request("POST", "/v1/chat/completions", json.dumps(HELLO))
        answer = client.getresponse()
        assert (answer.status, answer.getheader("connection")) == (200, None)
        answer.read()
        sock = client.sock
        if n < 2:
            noria.json("reload")
            until(lambda: len(_workers(noria)) == 2, 10.0, "the old workers do not end")
        assert client.sock is sock, "the connection was not closed"
    client.close()


def _workers(noria: Any) -> list[str]:
    import subprocess

    out = subprocess.run(["ps", "-o", "args=", "--ppid", str(noria.process.pid)], capture_output=True, text=True, check=False)
    return [line for line in out.stdout.splitlines() if "process worker" in line]


def test_a_reload_succeeds_where_the_new_workers_spool_cannot_be_opened(serve, http) -> None:
    noria = serve(CONFIG)
    before = noria.pids()["worker-0"]
    blocker = noria.home / "spool" / "n0-w0b"
    blocker.write_text("not a folder")  # its spool cannot be opened: the new worker still serves, with an alarm
    assert noria.json("reload")["state"] == "done"
    assert noria.pids()["worker-0"] != before
    assert http(noria.url + "/v1/chat/completions", HELLO)[0] == 200


# -- drain ---------------------------------------------------------------------------------------------


def test_drainz_turns_readiness_off_at_every_worker_while_requests_are_served(shared, http) -> None:
    noria = shared
    assert noria.json("drain")["draining"] is True
    try:
        for _ in range(6):
            assert http(noria.url + "/readyz", b"", method="GET")[0] == 503
            assert http(noria.url + "/v1/chat/completions", HELLO)[0] == 200
        assert json.loads(http(noria.url + "/drainz", b"", method="GET")[2])["draining"] is True
        assert http(noria.url + "/drainz", b"", {"x-forwarded-for": "1.2.3.4"}, method="POST")[0] == 401
        assert http(noria.url + "/drainz", b"", {"origin": "http://evil.example"}, method="DELETE")[0] == 403
    finally:
        noria.cli("drain", "--undo")
    assert http(noria.url + "/readyz", b"", method="GET")[0] == 200


def test_on_sigterm_readiness_goes_before_the_sockets_close(serve, http) -> None:
    noria = serve(CONFIG + "operate: {notice: 2s}\n")
    noria.process.send_signal(signal.SIGTERM)
    until(lambda: http(noria.url + "/readyz", b"", method="GET")[0] == 503, 1.5, "readiness stays")
    assert http(noria.url + "/v1/chat/completions", HELLO)[0] == 200
    assert noria.process.wait(15) == 0


def test_a_drain_tells_what_it_waits_for(serve) -> None:
    slow = CONFIG.replace("model: fake}", "model: fake, options: {tokens: 80, token_ms: 100}}", 1)
    noria = serve(slow + "operate: {stop: 6s}\n")
    client = http.client.HTTPConnection(noria.url.removeprefix("http://"), timeout=30)
    client.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": True}))
    assert client.getresponse().read(6) == b"data: "
    began = time.monotonic()
    noria.process.send_signal(signal.SIGTERM)
    assert noria.process.wait(20) == 0
    assert time.monotonic() - began < 6 + 5
    log = (noria.home / "logs" / "worker-0.log").read_text()
    assert "draining: 1 /v1/chat/completions" in log
    assert "1 requests were cut short after 6 s" in log
    client.close()


# -- a keeper that hangs -------------------------------------------------------------------------------


def test_a_keeper_that_hangs_is_started_again_and_no_answer_is_lost(serve, http) -> None:
    noria = serve(CONFIG + "operate: {keeper_silent: 2s}\n")
    keeper = noria.pids()["keeper"]
    os.kill(keeper, signal.SIGSTOP)
    ids = []
    end = time.monotonic() + 30
    while noria.pids().get("keeper") in (None, keeper):
        assert time.monotonic() < end, "the keeper is left hanging"
        code, headers, _ = http(noria.url + "/v1/chat/completions", HELLO)
        assert code == 200
        ids.append(headers["x-request-id"])
        time.sleep(0.1)
    until(lambda: "stopped by a signal" in "\n".join(noria.lines), 5.0, "nothing is said of why")
    until(lambda: _status_or_none(noria, http), 15.0, "the new keeper does not answer")
    noria.trace(ids[-1], within=15.0)
    noria.stop()
    store = duckdb.connect(str(noria.home / "traces" / "hot.duckdb"), read_only=True)
    recorded = {row[0] for row in store.execute("SELECT id FROM exchanges").fetchall()}
    store.close()
    assert set(ids) <= recorded


def test_a_conversation_waits_for_a_keeper_that_is_started_again(serve, http) -> None:
    noria = serve(CONFIG.replace("echo: {model: fake}", "echo: {model: fake, memory: 20}"))
    ask = {**HELLO, "conversation": "c1"}
    assert http(noria.url + "/v1/chat/completions", ask)[0] == 200
    statuses = []
    for _ in range(2):
        os.kill(until(lambda: noria.pids().get("keeper"), 10.0, "no keeper"), signal.SIGKILL)
        statuses.append(http(noria.url + "/v1/chat/completions", ask)[0])
        until(lambda: _status_or_none(noria, http), 15.0, "the keeper did not come back")
    assert statuses == [200, 200]


# -- doctor --------------------------------------------------------------------------------------------


@pytest.fixture
def answering():
    """A server that answers every request with one status and body."""
    sockets = []

    def start(answer: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return listener.getsockname()[1]

    yield start
    for s in sockets:
        s.shutdown(socket.SHUT_RDWR)
        s.close()


def test_doctor_says_in_words_what_is_wrong_with_each_endpoint(serve, answering, monkeypatch) -> None:
    refusing = answering(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}")
    listing = b'{"data": [{"id": "other"}]}'
    late = answering(
        b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\ncontent-length: %d\r\n\r\n%b" % (len(listing), listing)
    )
    broken = answering(b"SSH-2.0-OpenSSH_9.6\r\n\r\n\r\n")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    text = "models:\n" + "".join(
        f'  {name}: {{provider: openai_compatible, url: "{scheme}://127.0.0.1:{port}/v1", model: m, key: env:SOME_KEY}}\n'
        for name, scheme, port in (
            ("wrongkey", "http", refusing), ("late", "http", late), ("closed", "http", closed), ("tls", "https", late),
            ("ssh", "http", broken),
        )
    )  # fmt: skip
    noria = serve(text + "apps:\n  a: {model: [wrongkey, late, closed, tls, ssh]}\n", env={"SOME_KEY": "sk-something"})
    done = noria.cli("doctor", check=False)
    assert done.returncode == 1
    said = done.stdout
    assert "model wrongkey" in said
    assert "refuses the API key (401)" in said
    assert "Look at env:SOME_KEY." in said
    assert "does not list the model 'm'" in said
    assert "this machine's clock is" in said
    assert "ahead of" in said
    assert "model closed" in said
    assert "refuses connections" in said
    assert "TLS fails" in said
    assert "model ssh" in said
    assert "does not speak HTTP as it should" in said
    assert "sk-something" not in said
    assert "127.0.0.1" not in noria.cli("doctor", "--offline", check=False).stdout


def test_doctor_names_the_program_that_has_the_port(shared, tmp_path) -> None:
    port = shared.url.rpartition(":")[2]
    noria = replace(shared, env={**shared.env, "NORIA_HOME": str(tmp_path / "other")})
    write(noria, CONFIG + f"serve: {{port: {port}}}\n")
    done = noria.cli("doctor", "--offline", check=False)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use by process" in done.stdout
