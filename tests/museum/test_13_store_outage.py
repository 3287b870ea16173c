"""Museum 13: the store's outage must not look like a wrong key.

litellm#34479: an exhausted database answered 401 to every key, and clients threw their keys away. Here the worker
knows the keys: it goes on from its last configuration, also when it is started anew meanwhile; with none at all it says 503
and when to come again.
"""

from __future__ import annotations

import os
import signal
import time

CONFIG = """
models:
  fake: {provider: scripted, model: fake}
apps:
  echo: {model: fake}
"""
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


def test_while_the_store_is_away_keys_work_and_nobody_is_told_401(serve, http) -> None:
    noria = serve(CONFIG)
    made = noria.json("keys", "create", "--name", "k")
    bearer = {"authorization": f"Bearer {made['key']}"}
    ask = noria.url + "/v1/chat/completions"
    end = time.monotonic() + 10
    while http(ask, HELLO, bearer)[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    keeper, worker = noria.pids()["keeper"], noria.pids()["worker-0"]
    os.kill(keeper, signal.SIGSTOP)
    try:
        assert [http(ask, HELLO, bearer)[0] for _ in range(5)] == [200] * 5
        assert http(ask, HELLO, {"authorization": "Bearer nk-not-a-key"})[0] == 401, "who is unknown stays unknown"
        os.kill(worker, signal.SIGKILL)
        assert http(ask, HELLO, bearer)[0] == 200, "the new worker serves by the configuration on disk"
        os.kill(noria.pids()["worker-0"], signal.SIGKILL)
        (noria.home / "run" / "snapshot.msgpack").unlink()
        status, headers, _ = http(ask, HELLO, bearer)
        assert (status, "retry-after" in headers) == (503, True)
    finally:
        os.kill(keeper, signal.SIGCONT)
    end = time.monotonic() + 15
    while (status := http(ask, HELLO, bearer)[0]) != 200:
        assert status == 503, "an outage of ours is never 401"
        assert time.monotonic() < end
        time.sleep(0.1)
