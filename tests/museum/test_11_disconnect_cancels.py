"""Museum 11: a caller who leaves must not hold a model.

Gateways noticed too late or never that a client had gone (litellm#13774), least of all while it waited for the first token
(litellm PR#31499), and the model went on working for nobody. Here: whole and stream, before and after the first token, the
upstream connection is closed within 100 ms of the client's leaving (on a machine at rest; the test allows for a busy one).
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import pytest

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DELTA = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
FRAME = (
    b"data: "
    + json.dumps(DELTA | {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}).encode()
    + b"\n\n"
)
WITHIN = 0.1
ALLOWED = 0.6
"""Seconds: 0.1 is what Noria promises, the rest is what a busy machine may take to run three processes."""


class Holding:
    """An upstream that takes a request and never ends its answer; `asked` and `gone` are moments (monotonic)."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.asked = threading.Event()
        self.gone: list[float] = []
        self.talk = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._hold, args=(connection,), daemon=True).start()

    def _hold(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(1 << 16)
            if self.talk:
                connection.sendall(HEAD + b"%x\r\n%b\r\n" % (len(FRAME), FRAME))
            self.asked.set()
            try:
                while connection.recv(1 << 16):
                    continue
            except OSError:
                pass
            self.gone.append(time.monotonic())


@pytest.fixture(scope="module")
def holding():
    made = Holding()
    yield made
    made.listener.close()


@pytest.fixture(scope="module")
def noria(serve_once, holding):
    port = holding.listener.getsockname()[1]
    return serve_once(
        f'models:\n  m: {{provider: openai_compatible, url: "http://127.0.0.1:{port}/v1", model: m}}\napps:\n  a: {{model: m}}\n'
    )


@pytest.mark.parametrize(
    ("stream", "talk"),
    [(False, False), (True, False), (True, True)],
    ids=["whole", "stream before its first token", "stream after its first token"],
)
def test_the_upstream_call_ends_within_100_ms_of_the_callers_leaving(noria, holding, stream, talk) -> None:
    took = []
    for _ in range(5):
        holding.asked.clear()
        holding.gone.clear()
        holding.talk = talk
        client = http.client.HTTPConnection(noria.url.removeprefix("http://"), timeout=20)
        client.request(
            "POST",
            "/v1/chat/completions",
            json.dumps({"model": "a", "stream": stream, "messages": [{"role": "user", "content": "x"}]}),
        )
        assert holding.asked.wait(10)
        if talk:
            assert client.getresponse().read(6) == b"data: "
        left = time.monotonic()
        if client.sock is not None:
            client.sock.shutdown(socket.SHUT_RDWR)
        client.close()
        while not holding.gone:
            assert time.monotonic() - left < 5, "the upstream is held"
            time.sleep(0.001)
        took.append(holding.gone[0] - left)
    print(", ".join(f"{t * 1e3:.1f} ms" for t in took))
    assert min(took) < WITHIN
    assert max(took) < ALLOWED
