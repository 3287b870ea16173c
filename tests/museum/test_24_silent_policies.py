"""Museum 24: policies that silently did nothing.

In Envoy AI Gateway a cost limit charged too little (envoy#2248), and a token limit did nothing where there was a fallback
(envoy#1866); neither said so. Here every policy counts how often it was evaluated and how often it acted, and one that was never
evaluated while the traffic it names went by is reported.
"""

from __future__ import annotations

import json
import time

CONFIG = """
models:
  fake: {provider: scripted, model: fake, price: {input: 1, output: 1}}
guards:
  both: [secrets, {pii: {on: output, action: flag}}]
limits:
  mine: {scope: "app:echo", requests_per_minute: 100000}
  typo: {scope: "team:serach", requests_per_minute: 10}
budgets:
  all: {scope: tenant, usd: 100, window: day}
apps:
  echo: {model: fake, guard: both}
"""
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


def test_a_policy_that_never_ran_is_reported_and_those_that_ran_are_not(serve, http) -> None:
    noria = serve(CONFIG)
    for _ in range(30):
        assert http(noria.url + "/v1/chat/completions", HELLO)[0] == 200
    token = {"authorization": f"Bearer {(noria.home / 'admin.token').read_text().strip()}"}
    end = time.monotonic() + 5
    while True:
        status = json.loads(http(noria.url + "/api/status", b"", token, method="GET")[2])
        silent = [n["text"] for n in status["notices"] if n["code"] == "policy_silent"]
        if len(silent) == 1 or time.monotonic() > end:
            break
        time.sleep(0.2)  # limits are told once a second
    assert len(silent) == 1, silent
    assert "limit:typo" in silent[0]
    metrics = http(noria.url + "/metrics", b"", method="GET")[2].decode()
    for policy in ("guard:echo/secrets", "guard:echo/pii", "limit:mine", "budget:all"):
        assert f'noria_policy_total{{policy="{policy}",verb="evaluated"}} 30' in metrics, policy
    assert "limit:typo" in noria.cli("doctor", "--offline", check=False).stdout
