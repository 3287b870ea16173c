"""What a measurement is made with: the C mock and load generator, the mock behind TLS, and where everything runs."""

from __future__ import annotations

import datetime as dt
import http.client
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

Enter = Callable[[], None]
"""Runs in a child before its program: places it on its cores."""


class Failed(Exception):
    """Something that makes the measurement worthless."""


@dataclass(frozen=True)
class Cores:
    """Which cores the load (upstream and generator) and what is measured run on; empty = wherever the kernel puts them."""

    load: tuple[int, ...] = ()
    measured: tuple[int, ...] = ()

    @classmethod
    def split(cls) -> Cores:
        """The first core for the load, the others for what is measured; nothing pinned on a single core."""
        every = sorted(os.sched_getaffinity(0))
        return cls(tuple(every[:1]), tuple(every[1:])) if len(every) > 1 else cls()


def placed(cores: tuple[int, ...]) -> Enter | None:
    """Runs in a child between fork and exec; the benchmark has one thread."""
    return (lambda: os.sched_setaffinity(0, cores)) if cores else None


def compiler() -> str | None:
    """A C compiler, or None."""
    return next((found for name in ("gcc", "cc", "clang") if (found := shutil.which(name))), None)


def build(folder: Path) -> None:
    """Compile the mock and the load generator into `folder`. Raises `Failed`."""
    made_by = compiler()
    if made_by is None:
        raise Failed("The mock and the load generator are C programs: install a C compiler (gcc, cc or clang).")
    for name in ("mock_upstream", "load"):
        command = [made_by, "-O2", "-w", "-o", str(folder / name), str(HERE / f"{name}.c"), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise Failed(f"{name}.c does not compile:\n{done.stderr}")


@contextmanager
def served(command: Sequence[str], enter: Enter | None = None) -> Iterator[int]:
    """A program that prints "listening PORT" and serves until it is killed; its port."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=enter)  # noqa: PLW1509  one thread
    try:
        assert process.stdout is not None
        word, _, port = process.stdout.readline().partition(" ")
        if word != "listening":
            raise Failed(f"{Path(command[0]).name} did not start.")
        yield int(port)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def upstream(folder: Path, enter: Enter | None = None) -> Any:
    """The mock; see `served`."""
    return served([str(folder / "mock_upstream"), "0"], enter)


def told_by(port: int) -> dict[str, Any]:
    """What the mock tells of itself: `requests`, and `cancelled`, the latest times (CLOCK_MONOTONIC, ns)."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return json.loads(answer.read())


@contextmanager
def behind_tls(folder: Path, port: int, enter: Enter | None = None) -> Iterator[tuple[int, Path]]:
    """A TLS terminator before the mock; its port and the file of the authority to trust."""
    certificate = folder / "upstream.pem"
    certify(certificate)
    command = [sys.executable, str(HERE / "tls_front.py"), str(certificate), str(port)]
    with served(command, enter) as outer:
        yield outer, certificate


def certify(path: Path) -> None:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)


@dataclass(frozen=True)
class Ask:
    """How requests are sent: see `load.c`."""

    connections: int
    seconds: float | None = None
    requests: int | None = None
    rate: float = 0.0
    ramp_ms: int = 0
    tokens: int = 0
    seed: int = 1


def arguments(ask: Ask) -> list[str]:
    """The options of the load generator."""
    found = ["-c", str(ask.connections), "-s", str(ask.seed)]
    for option, value in (
        ("-d", ask.seconds), ("-n", ask.requests), ("-r", ask.rate), ("-w", ask.ramp_ms), ("-t", ask.tokens),
    ):  # fmt: skip
        if value:
            found += [option, str(value)]
    return found


class Load:
    """The load generator."""

    def __init__(self, folder: Path, enter: Enter | None = None) -> None:
        self._folder = folder
        self._enter = enter

    def fire(
        self, port: int, request: bytes, ask: Ask, *, meanwhile: Callable[[], None] | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Send; its counts, and the samples (see `figures.read_samples`). `meanwhile` is called twice a second."""
        what, samples = self._folder / "request", self._folder / "samples"
        what.write_bytes(request)
        command = [str(self._folder / "load"), "-p", str(port), "-f", str(what), "-o", str(samples), *arguments(ask)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=self._enter  # noqa: PLW1509  one thread
        )  # fmt: skip
        end = time.monotonic() + 900
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=0.5 if meanwhile else 900)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > end or meanwhile is None:
                        raise Failed("The load generator did not end within 15 minutes.") from None
                    meanwhile()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            raise Failed(f"The load generator ended with {process.returncode}: {err}")
        return json.loads(out), samples.read_bytes()


def leave(port: int, request: bytes, tokens: int, within: float = 20.0) -> int:
    """Ask for a stream, close the connection once `tokens` tokens are there; when (CLOCK_MONOTONIC, ns). Raises `Failed`."""
    with socket.create_connection(("127.0.0.1", port), timeout=within) as s:
        s.sendall(request)
        got = b""
        while got.count(b"~") < tokens:
            part = s.recv(65536)
            if not part:
                raise Failed(f"The stream ended early: {got[:300]!r}")
            got += part
            if not got.startswith(b"HTTP/1.1 200"):
                raise Failed(f"No stream: {got[:300]!r}")
        return time.monotonic_ns()


def status(port: int, path: str, headers: dict[str, str] | None = None, timeout: float = 2.0) -> int:
    """The status of a GET; 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers=headers or {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
