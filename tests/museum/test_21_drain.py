"""Museum 21: SIGTERM that kills streams.

litellm#14334, PR#28714. Here the order is: readiness off, notice, no new connections, open streams finish, budgets are
settled, the spool is flushed, exit 0 within the limit. Under load, and without a gap when workers are merely replaced,
it is `tests/service/test_zero_loss.py`.
"""

from __future__ import annotations

import json
import signal
import time
from http.client import HTTPConnection

import duckdb

CONFIG = """
models:
  fake: {provider: scripted, model: fake, options: {tokens: 20, token_ms: 100}, price: {input: 1, output: 2}}
apps:
  echo: {model: fake}
operate: {notice: 1s, stop: 20s}
"""
HELLO = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "hello"}]}


def test_readiness_goes_first_and_the_stream_is_finished_and_paid_for(serve, http) -> None:
    noria = serve(CONFIG)
    key = noria.json("keys", "create", "--name", "k", "--budget", "1")["key"]
    connection = _asking(noria, key)
    answer = connection.getresponse()
    exchange = answer.getheader("x-request-id")
    assert answer.read(6) == b"data: "
    noria.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 0.9
    while http(noria.url + "/readyz", b"", method="GET")[0] != 503:
        assert time.monotonic() < end, "readiness stays until the sockets close"
    assert http(noria.url + "/livez", b"", method="GET")[0] == 200
    assert answer.read().endswith(b"data: [DONE]\n\n")
    ended = time.monotonic()
    assert noria.process.wait(15) == 0
    assert time.monotonic() - ended < 5
    connection.close()
    store = duckdb.connect(str(noria.home / "traces" / "hot.duckdb"), read_only=True)
    row = store.execute("SELECT outcome, cost_nanousd FROM exchanges WHERE id = ?", [exchange]).fetchone()
    store.close()
    assert row == ("ok", 1 * 1000 + 20 * 2000)


def _asking(noria, key: str) -> HTTPConnection:
    end = time.monotonic() + 10
    while True:
        connection = HTTPConnection(noria.url.removeprefix("http://"), timeout=30)
        connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
        if connection.getresponse().status == 200:
            connection.close()
            break
        assert time.monotonic() < end
        time.sleep(0.05)
    connection = HTTPConnection(noria.url.removeprefix("http://"), timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps(HELLO), {"authorization": f"Bearer {key}"})
    return connection
