"""Files that are larger than any other request: through the disk, within bounds, out again at their reader's pace."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

MB = 1024 * 1024
CONFIG = """
models:
  fake: {provider: scripted, model: fake}
apps:
  echo: {model: fake}
files: {max_size: 120MB, quota: 200MB}
batches: {max_input: 1MB}
"""


SALT = os.urandom(MB - 8)


def block(number: int) -> bytes:
    """A megabyte that no compressor shrinks and no other block equals."""
    return number.to_bytes(8) + SALT


def parts(megabytes: int, purpose: str = "user_data") -> Iterator[bytes]:
    """A form, its purpose behind its file."""
    yield b'--mark\r\ncontent-disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'
    yield from (block(i) for i in range(megabytes))
    yield b'\r\n--mark\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n%b\r\n--mark--\r\n' % purpose.encode()


def peak(pid: int) -> int:
    """The most resident memory that a process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@contextmanager
def connected(service: Any, key: str, method: str, path: str, body: Any = None, length: int = 0) -> Iterator[HTTPConnection]:
    """A request on its way; `length` announces more than is sent."""
    connection = HTTPConnection(urlsplit(service.url).netloc, timeout=60)
    headers = {"content-type": "multipart/form-data; boundary=mark", "authorization": f"Bearer {key}"}
    if length:
        headers["content-length"] = str(length)
    try:
        connection.request(method, path, body, headers, encode_chunked=body is not None and not isinstance(body, bytes))
        yield connection
    finally:
        connection.close()


def upload(service: Any, key: str, megabytes: int, **more: Any) -> tuple[int, dict[str, Any]]:
    with connected(service, key, "POST", "/v1/files", parts(megabytes, **more)) as connection:
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def service(serve_once: Callable[..., Any]) -> Any:
    return serve_once(CONFIG)


@pytest.fixture(scope="module")
def key(service: Any, caller: Any) -> str:
    return caller(service).new_key(name="uploader")


def spilled(service: Any) -> list[Path]:
    return list((service.home / "uploads").glob("*"))


@pytest.mark.parametrize("many", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_a_large_file_passes_without_filling_anybodys_memory(service: Any, key: str, many: int) -> None:
    upload(service, key, 1)
    before = {name: peak(pid) for name, pid in service.pids().items()}
    status, file = upload(service, key, many)
    assert (status, file["bytes"], file["filename"]) == (200, many * MB, "big.bin")
    with connected(service, key, "GET", f"/v1/files/{file['id']}/content") as connection:
        answer = connection.getresponse()
        assert int(answer.headers["content-length"]) == many * MB
        time.sleep(0.5)  # a reader that dawdles: what is sent to it meanwhile must lie somewhere
        for i in range(many):
            assert answer.read(MB) == block(i)
        assert answer.read() == b""
    grown = {name: (peak(pid) - before[name]) / MB for name, pid in service.pids().items()}
    assert grown["worker-0"] < 20, grown
    assert grown["keeper"] < 64, grown
    assert spilled(service) == []


@pytest.mark.parametrize("announced", [True, False])
def test_what_is_too_large_is_refused_in_words(service: Any, key: str, caller: Any, announced: bool) -> None:
    with connected(
        service, key, "POST", "/v1/files", b"--mark" if announced else parts(120), 121 * MB if announced else 0
    ) as connection:
        answer = connection.getresponse()
        status, said = answer.status, answer.read().decode()
    assert status == 413
    assert "125,829,120" in said
    assert "files.max_size" in said
    assert spilled(service) == []


def test_a_stranger_fills_no_disk(service: Any, key: str) -> None:
    with connected(service, "nk-wrong", "POST", "/v1/files", b"--mark", 100 * MB) as connection:
        assert connection.getresponse().status == 401
    assert spilled(service) == []


def test_nobody_names_an_upload_from_outside(service: Any, key: str, caller: Any) -> None:
    named = {
        "authorization": f"Bearer {key}",
        "x-noria-upload": "../admin.token",
        "content-type": "multipart/form-data; boundary=x",
    }
    assert caller(service).send("POST", "/v1/files", b"nonsense", named).refuses(400, "invalid_multipart")
    assert caller(service).send("POST", "/v1/files", b"", named).refuses(400, "invalid_multipart")


def test_a_caller_that_leaves_in_the_middle_leaves_nothing(service: Any, key: str) -> None:
    with connected(service, key, "POST", "/v1/files", block(1), 50 * MB):
        end = time.monotonic() + 10
        while not spilled(service):
            assert time.monotonic() < end
    while spilled(service):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_input_that_no_keeper_could_hold_makes_no_batch(service: Any, key: str, caller: Any) -> None:
    status, file = upload(service, key, 2, purpose="batch")
    assert status == 200
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    refused = caller(service, key).post("/v1/batches", asked)
    assert "batches.max_input" in refused.refuses(413, "file_too_large", param="input_file_id")["message"]


def test_a_keeper_that_dies_while_it_stores_leaves_no_half_file(service: Any, key: str, caller: Any) -> None:
    asks = {"authorization": f"Bearer {key}"}
    before = caller(service).send("GET", "/v1/files", None, asks).json["data"]
    blobs = service.home / "blobs"
    end = time.monotonic() + 10
    known = set(blobs.rglob("*.blob"))
    with connected(service, key, "POST", "/v1/files", parts(30)) as connection:
        while not set(blobs.rglob("*.blob")) - known:
            assert time.monotonic() < end
        os.kill(service.pids()["keeper"], signal.SIGKILL)
        assert connection.getresponse().status == 503
    while (now := caller(service).send("GET", "/v1/files", None, asks)).status != 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert now.json["data"] == before
    assert spilled(service) == []
