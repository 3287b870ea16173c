"""Museum 3: a gateway that asks whatever host its caller names.

In Portkey a caller could put the host into a header of a proxied request, and so reach machines inside the network (portkey#1718).
Here upstream hosts come from the configuration alone: no header, no field of a body, no target of a request and no redirect of an
upstream leads elsewhere. Paths of the passed-through surface:
`tests/service/test_other_endpoints.py::test_museum_03_no_path_reaches_another_place_than_the_configured_upstream`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest


class Trap:
    """Listens, and keeps what it was sent; `say` is its answer."""

    def __init__(self, say: bytes) -> None:
        self.got: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self._say = say
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.got.append(connection.recv(65536))
                connection.sendall(self._say)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    made = Trap(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def astray(trap: Trap) -> Iterator[Trap]:
    """An upstream that sends its callers to the trap."""
    to = f"http://127.0.0.1:{trap.port}/v1/chat/completions"
    made = Trap(f"HTTP/1.1 307 X\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
    yield made
    made.close()


@pytest.fixture(scope="module")
def noria(serve_once, upstream, astray: Trap):
    return serve_once(
        f"""
models:
  ok: {{provider: openai_compatible, url: "{upstream.url}", model: ok}}
  astray: {{provider: openai_compatible, url: "http://127.0.0.1:{astray.port}/v1", model: ok, key: env:UP_KEY}}
apps:
  echo: {{model: ok}}
  astray: {{model: astray, routing: {{retries: 0}}}}
""",
        env={"UP_KEY": "sk-of-the-upstream"},
    )


NAMES = (
    "x-portkey-custom-host",
    "x-custom-host",
    "x-upstream-url",
    "x-forwarded-host",
    "forwarded",
    "x-original-url",
    "x-host",
)
FIELDS = ("api_base", "base_url", "url", "endpoint", "custom_host", "provider", "proxy")


@pytest.mark.parametrize("path", ["chat/completions", "messages", "responses", "images/generations"])
def test_neither_headers_nor_fields_choose_the_host(noria, upstream, trap, http, path) -> None:
    there = f"http://127.0.0.1:{trap.port}"
    known = len(upstream.seen)
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    body = {"model": "echo", "input": "hello", "prompt": "hello"} if "messages" not in path and "chat" not in path else body
    for headers, more in [(dict.fromkeys(NAMES, there), {}), ({}, dict.fromkeys(FIELDS, there))]:
        status, _, answer = http(f"{noria.url}/v1/{path}", body | more, headers)
        assert status in (200, 400), answer
    assert trap.got == []
    assert len(upstream.seen) > known or path == "responses", "it went where the configuration says"
    sent = upstream.seen[-1]["headers"] if upstream.seen else {}
    assert not set(sent) & set(NAMES)


@pytest.mark.parametrize("stream", [False, True])
def test_a_redirect_of_an_upstream_is_not_followed(noria, astray, trap, http, stream) -> None:
    body = {"model": "astray", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    status, _, answer = http(noria.url + "/v1/chat/completions", body)
    assert status == 502, answer
    assert b"sk-of-the-upstream" in astray.got[-1], "it was asked with its own key"
    assert trap.got == [], "and nobody else with it"
    assert b"sk-of-the-upstream" not in answer


def test_no_path_names_a_host(noria, trap, http) -> None:
    here = f"127.0.0.1:{trap.port}"
    for path in (
        f"/v1/http://{here}/x",
        f"/v1/proxy?url=http://{here}/",
        f"/proxy/{here}",
        f"//{here}/v1/models",
        f"/v1/..//{here}/",
    ):
        http(noria.url + path, {"model": "echo", "url": f"http://{here}"})
    assert trap.got == []
