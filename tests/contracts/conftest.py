"""Runs each contract suite over every engine that serves its port, found by listing `noria.engines`.

A suite names its port once, `PORT = Queue`, and asks for fixtures:

- `engine`  the engine's id (= module = URL scheme); the test runs once for each engine that serves PORT
- `url`     a fresh, empty place of that engine, removed after the test
- `make`    `make(Queue)` opens an instance at `url`; called again, a second one at the same place; all are closed
- `crowd`   `crowd(Queue, 4)` gives four callers at `url`: instances of their own where instances share
- `shared`  asks that a second instance at `url`, maybe in another process, sees the same data; skips where it cannot
- `spawn`   `spawn(code)` runs Python in another process with `URL` and `make(port)` at hand; killed after the test

A new engine joins by existing. One that needs a server is skipped where none answers, and fails where `CI` is set;
`NORIA_TEST_<ENGINE>` names the server's URL.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import subprocess
import sys
import textwrap
import uuid
from importlib import import_module
from inspect import isawaitable

import pytest

import noria.engines

PRIVATE = {"memory"}
"""Engines whose instances share nothing: what they hold ends with them."""

PRELUDE = """
import asyncio, os, signal, sys
from importlib import import_module
URL = {url!r}
def make(port):
    return import_module("noria.engines.{engine}").ENGINE.serves[port](URL)
def say(*words):
    print(*words, flush=True)
"""


def serving(port: type) -> list[str]:
    """The ids of the engines that serve a port."""
    names = sorted(m.name for m in pkgutil.iter_modules(noria.engines.__path__) if not m.name.startswith("_"))
    return [name for name in names if port in import_module(f"noria.engines.{name}").ENGINE.serves]


def pytest_generate_tests(metafunc):
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", serving(metafunc.module.PORT))


def absent(why: str):
    """Skip on a developer's machine; a CI run without its servers proves nothing and fails."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def postgres_server() -> str:
    """The URL of a Postgres that answers."""
    import psycopg

    url = os.environ.get("NORIA_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
    try:
        psycopg.connect(url, connect_timeout=3).close()
    except psycopg.OperationalError as e:
        absent(f"no Postgres at {url.rpartition('@')[2]} (set NORIA_TEST_POSTGRES): {e}")
    return url


@pytest.fixture
def postgres_url(postgres_server):
    """A schema of its own for one test."""
    import psycopg

    schema = f"t_{uuid.uuid4().hex}"
    yield f"{postgres_server}{'&' if '?' in postgres_server else '?'}schema={schema}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        # A process that the test killed may still be rolling back.
        admin.execute("SET lock_timeout = '20s'")
        admin.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


@pytest.fixture
def redis_url():
    """A prefix of its own for one test, in a Redis that answers; its keys are removed afterwards."""
    from redis import Redis
    from redis.exceptions import RedisError

    server = os.environ.get("NORIA_TEST_REDIS", "redis://127.0.0.1:6379/0")
    prefix = f"t-{uuid.uuid4().hex}"
    with Redis.from_url(server) as admin:
        try:
            admin.ping()
        except RedisError as e:
            absent(f"no Redis at {server.rpartition('@')[2]} (set NORIA_TEST_REDIS): {e}")
        yield f"{server}?prefix={prefix}"
        for key in admin.scan_iter(f"{prefix}:*", count=1000):
            admin.delete(key)


@pytest.fixture
def url(engine, tmp_path, request) -> str:
    """An empty place of this engine."""
    if engine in {"postgres", "redis"}:
        return request.getfixturevalue(f"{engine}_url")
    if engine == "memory":
        return "memory://"
    if given := os.environ.get(f"NORIA_TEST_{engine.upper()}"):
        return given
    place = tmp_path / ("noria.db" if engine == "sqlite" else engine)
    return f"{engine}://{place}" if engine in {"files", "process"} else f"{engine}:///{place}"


@pytest.fixture
async def make(engine, url):
    """Open instances of a port at `url`; all are closed after the test."""
    opened = []

    def open_one(port: type):
        instance = import_module(f"noria.engines.{engine}").ENGINE.serves[port](url)
        opened.append(instance)
        return instance

    yield open_one
    for instance in reversed(opened):
        if close := getattr(instance, "close", None):
            ended = close()
            if isawaitable(ended):
                await ended


@pytest.fixture
def shared(engine) -> None:
    """This test needs a second instance, or a second process, at the same place."""
    if engine in PRIVATE:
        pytest.skip(f"{engine} keeps its data inside one instance")


@pytest.fixture
def crowd(make, engine):
    """`crowd(port, n)`: n callers at the same place, each with an instance of its own where instances share."""

    def call(port: type, n: int) -> list:
        return [make(port)] * n if engine in PRIVATE else [make(port) for _ in range(n)]

    return call


class Spawned:
    """Another process that prints one word or line at a time."""

    def __init__(self, code: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        """The next line it prints; "" at its end."""
        return self._process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def kill(self) -> list[str]:
        """kill -9, as a crash would; the lines it had still printed."""
        self._process.send_signal(signal.SIGKILL)
        return self.end()[0]

    def end(self) -> tuple[list[str], int, str]:
        """Its remaining lines, exit code and errors."""
        out = self._process.stdout.read()  # communicate() would miss what readline() has read ahead
        _, err = self._process.communicate(timeout=60)
        return out.split("\n")[:-1], self._process.returncode, err

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@pytest.fixture
def spawn(engine, url, shared):
    """Run Python code (with `make`, `say`, `URL`) in another process."""
    running: list[Spawned] = []

    def start(code: str) -> Spawned:
        running.append(Spawned(PRELUDE.format(url=url, engine=engine) + textwrap.dedent(code)))
        return running[-1]

    yield start
    for process in running:
        process.close()
