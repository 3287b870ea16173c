"""Museum 25: configuration that changes by itself, or reaches whom it should not.

LiteLLM 2026: a malformed price map fetched at import (01-27), access that was stale after a reload (02-23), beta headers
forwarded to another vendor (02-13), `encoding_format=None` (02-24 and after). Here: import calls nobody, one snapshot is
swapped whole, each upstream gets an allow-list of headers, and what the caller did not say is not said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading

CONFIG = """
models:
  fake: {provider: scripted, model: fake}
apps:
  %s
"""
NO_NETWORK = """
import socket, sys
def refuse(*args, **kwargs): raise SystemExit(f"network at import: {args[:1]}")
socket.socket.connect = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse
import noria, noria.settings, noria.app.house, noria.app.worker, noria.app.keeper, noria.app.stores
import noria.api.gateway, noria.api.manage, noria.cli.main, noria.providers.openai_compatible, noria.providers.anthropic
noria.settings.schema()
print("quiet")
"""
CALLERS = {
    "authorization": "Bearer caller",
    "x-api-key": "caller",
    "cookie": "session=caller",
    "anthropic-beta": "some-beta-2026",
    "openai-organization": "org-caller",
    "x-forwarded-for": "10.0.0.1",
    "x-unheard-of": "1",
}
ALLOWED = {
    "host",
    "content-type",
    "content-length",
    "accept",
    "accept-encoding",
    "user-agent",
    "authorization",
    "traceparent",
    "connection",
}


def test_importing_everything_calls_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", NO_NETWORK], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "quiet", done.stderr


def test_a_request_sees_one_whole_configuration_and_never_half_of_a_new_one(serve, http) -> None:
    """Two apps change together, again and again: whoever asks both with one hash gets answers of one version."""
    releases: dict[str, set[str]] = {}
    noria = serve(CONFIG % 'a: {model: fake, prompt: p}\n  b: {model: fake, prompt: p}\nprompts:\n  p: {text: "v0"}')
    stop = threading.Event()
    wrong: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            for app in ("a", "b"):
                status, headers, _ = http(
                    noria.url + "/v1/chat/completions", {"model": app, "messages": [{"role": "user", "content": "x"}]}
                )
                if status != 200:
                    wrong.append(str(status))
                releases.setdefault(headers["x-noria-config"], set()).add(headers["x-noria-release"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(1, 4):
        text = CONFIG % f'a: {{model: fake, prompt: p}}\n  b: {{model: fake, prompt: p}}\nprompts:\n  p: {{text: "v{n}"}}'
        (noria.home.parent / "noria.yaml").write_text(text)
        noria.json("apply", "--yes")
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(releases) >= 3
    assert all(len(found) == 1 for found in releases.values()), releases  # both apps are the same release content


def test_an_upstream_gets_an_allow_list_of_headers_and_no_key_of_the_caller(serve, http, upstream) -> None:
    config = f"""
models:
  m: {{provider: openai_compatible, url: "{upstream.url}", model: ok, key: env:MINE}}
apps:
  a: {{model: m}}
"""
    noria = serve(config, env={"MINE": "sk-mine"})
    upstream.seen.clear()
    key = noria.json("keys", "create", "--name", "k")["key"]
    for _ in range(100):
        status, _, _ = http(noria.url + "/v1/chat/completions", {"model": "a", "messages": [{"role": "user", "content": "x"}]},
                            {**CALLERS, "authorization": f"Bearer {key}"})  # fmt: skip
        if status == 200:
            break
    assert status == 200
    seen = upstream.seen[-1]
    assert set(seen["headers"]) <= ALLOWED
    assert seen["headers"]["authorization"] == "Bearer sk-mine"
    assert "caller" not in seen["head"].replace("sk-mine", "")
    assert key not in json.dumps(seen)


def test_what_the_caller_did_not_say_is_not_said(serve, http, upstream) -> None:
    config = f"""
models:
  m: {{provider: openai_compatible, url: "{upstream.url}", model: ok, kind: embedding}}
  c: {{provider: openai_compatible, url: "{upstream.url}", model: ok}}
apps:
  a: {{model: c}}
"""
    noria = serve(config)
    upstream.seen.clear()
    http(noria.url + "/v1/embeddings", {"model": "m", "input": "x"})
    http(noria.url + "/v1/chat/completions", {"model": "a", "messages": [{"role": "user", "content": "x"}]})
    # this upstream knows no embeddings, so that call may be made more than once
    assert {frozenset(s["body"]) for s in upstream.seen} == {frozenset(("model", "input")), frozenset(("model", "messages"))}
