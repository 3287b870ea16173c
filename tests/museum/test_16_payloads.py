"""Museum 16: latency that collapses under real payloads, and clients closed while they were in use.

litellm#13546, #13541: base64 images took a gateway of 20 pods from milliseconds to minutes; a cache of HTTP clients that
expired by time closed connections under running requests for six days; fields vanished where a shortcut wrote the answer (#38907). Here 100 KB and 10 MB bodies
reach the endpoint byte for byte at a cost that grows no faster than they do, also while guards look at them, and a connection lives as
long as the exchange that uses it, whatever the configuration does meanwhile.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import statistics
import threading
import time

import pytest

CONFIG = """
models:
  ok: {{provider: openai_compatible, url: "{up}", model: ok}}
  slow: {{provider: openai_compatible, url: "{up}", model: pause-0.15}}
guards:
  pii: [{{pii: {{action: mask}}}}]
apps:
  echo: {{model: ok}}
  guarded: {{model: ok, guard: pii}}
  slow: {{model: slow}}
"""


def asked(app: str, size: int) -> dict:
    """A question about an image of about `size` bytes in base64, with fields that Noria does not know."""
    raw = random.Random(size).randbytes(size * 3 // 4)
    url = "data:image/png;base64," + base64.b64encode(raw).decode()
    parts = [
        {"type": "text", "text": "What is this? 这是什么"},
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
    ]
    return {"model": app, "messages": [{"role": "user", "content": parts}], "x_unknown": {"kept": [1.50, None]}}


def digest(body: dict) -> str:
    return hashlib.sha256(json.dumps({k: v for k, v in body.items() if k != "model"}).encode()).hexdigest()


@pytest.fixture(scope="module")
def noria(serve_once, upstream):
    return serve_once(CONFIG.format(up=upstream.url), "--workers", "1")


@pytest.mark.parametrize("app", ["echo", "guarded"])
def test_images_arrive_whole_and_cost_grows_no_faster_than_they_do(noria, upstream, http, app) -> None:
    took = {}
    for size in (1_000, 100_000, 1_000_000, 10_000_000):
        body = asked(app, size)
        data, times = json.dumps(body).encode(), []
        for _ in range(3):
            begun = time.perf_counter()
            status, _, answer = http(noria.url + "/v1/chat/completions", data)
            times.append(time.perf_counter() - begun)
            assert status == 200, answer[:300]
            assert digest(upstream.seen.pop()["body"]) == digest(body), f"{size} bytes did not arrive as they were sent"
        took[size] = min(times)  # the others wait for a processor, too
    assert took[100_000] < 0.25, took
    assert took[10_000_000] <= 0.1 + 25 * took[1_000_000], f"ten times the bytes cost more than ten times the time: {took}"
    assert took[10_000_000] < 6, took


def test_too_large_is_refused_and_others_are_served(noria, http) -> None:
    status, _, body = http(noria.url + "/v1/chat/completions", b" " * (17 * 1024 * 1024))
    assert status == 413
    assert json.loads(body)["error"]["code"]
    assert http(noria.url + "/v1/chat/completions", asked("echo", 1000))[0] == 200


def test_small_requests_are_served_while_large_ones_are_read(noria, http) -> None:
    large, url = json.dumps(asked("echo", 5_000_000)).encode(), noria.url + "/v1/chat/completions"
    done: list[int] = []
    threads = [threading.Thread(target=lambda: done.append(http(url, large)[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    times = []
    while any(t.is_alive() for t in threads) or len(times) < 5:
        begun = time.perf_counter()
        assert http(url, asked("echo", 500))[0] == 200
        times.append(time.perf_counter() - begun)
    assert done == [200] * 6
    assert statistics.median(times) < 1.0, times


def test_a_client_in_use_outlives_a_change_of_configuration(noria, http) -> None:
    stream = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(http(noria.url + "/v1/chat/completions", stream)[2]))
    thread.start()
    time.sleep(0.3)
    file = noria.home.parent / "noria.yaml"
    for n in range(2):  # generations of clients come and go
        file.write_text(file.read_text() + f"  more{n}: {{model: ok}}\n")
        noria.cli("apply", "--yes")
        assert http(noria.url + "/v1/chat/completions", asked(f"more{n}", 500))[0] == 200
    thread.join(30)
    assert got[0].endswith(b"data: [DONE]\n\n")
    assert got[0].count(b'"content"') == 11
