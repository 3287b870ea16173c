"""No caller notices a rolling restart, a changed configuration or a new version: 0 failed requests under load.

The load is ours: asyncio sockets that keep their connections, ask again at once, and count everything that is not a whole
and correct answer as failed; nothing is retried. The proof runs at 1/100 in `make test` and whole in `make test-slow`
(100,000 requests with at least 200 streams open all the time). The last full result is in docs/reference/proofs.md.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import noria

TOKENS = 20
CONFIG = """
models:
  fake: {{provider: scripted, model: fake, options: {{tokens: 5, first_ms: 2}}}}
  slow: {{provider: scripted, model: slow, options: {{tokens: {tokens}, token_ms: {pause}}}}}
apps:
  echo: {{model: fake, description: "change {n}"}}
  long: {{model: slow}}
operate: {{drain: 120s}}
"""


@dataclass
class Load:
    """Clients that ask until `wanted` requests are answered; `failed` says how each failure looked."""

    port: int
    wanted: int
    spread: float
    """Seconds between the starts of two readers."""
    answered: int = 0
    streams: int = 0
    connections: int = 0
    open_streams: int = 0
    fewest_streams: int = 1 << 30
    failed: Counter[str] = field(default_factory=Counter)
    configs: Counter[str] = field(default_factory=Counter)
    busy: threading.Event = field(default_factory=threading.Event)
    """Set until the operations are over: the load goes on meanwhile, however many requests that takes."""

    @property
    def done(self) -> bool:
        return self.answered >= self.wanted and not self.busy.is_set()

    async def run(self, askers: int, readers: int) -> None:
        """All clients to their end."""
        await asyncio.gather(
            *(self._client(n, stream=False) for n in range(askers)),
            *(self._client(n, stream=True) for n in range(readers)),
            self._watch(readers),
        )

    async def _watch(self, readers: int) -> None:
        """How few streams were open at any moment, once all were."""
        while self.open_streams < readers and not self.done:
            await asyncio.sleep(0.02)
        while not self.done:
            self.fewest_streams = min(self.fewest_streams, self.open_streams)
            await asyncio.sleep(0.02)

    async def _client(self, n: int, *, stream: bool) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        if stream:
            await asyncio.sleep(n * self.spread)  # so that they do not all end at once
        while not self.done:
            if connection is None:
                self.connections += 1
                connection = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                async with asyncio.timeout(60):
                    goes_on = await (self._stream(*connection) if stream else self._ask(*connection, n))
                self.answered += 1
                self.streams += stream
            except (OSError, asyncio.IncompleteReadError, TimeoutError, AssertionError, ValueError) as e:
                self.failed[f"{'stream' if stream else 'whole'}: {type(e).__name__} {str(e)[:200]}"] += 1
                goes_on = False
            if not goes_on:
                connection[1].close()
                connection = None
            if not stream and (n % 4 == 3 or self.wanted < 10_000):
                await asyncio.sleep(0.02 * (n % 5 + (self.wanted < 10_000)))  # some are idle between two requests, as pools are
        if connection is not None:
            connection[1].close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, n: int) -> bool:
        headers = await self._head(reader, writer, {"model": "echo", "messages": [{"role": "user", "content": f"hello {n}"}]})
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        assert body["choices"][0]["finish_reason"] in ("stop", "length"), body
        return headers.get("connection") != "close"

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = {"model": "long", "stream": True, "messages": [{"role": "user", "content": "tell me more of it " * 10}]}
        self.open_streams += 1
        try:
            headers = await self._head(reader, writer, body)
            data = b""
            while size := int(await reader.readline(), 16):
                data += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        finally:
            self.open_streams -= 1
        frames = data.split(b"\n\n")
        assert frames[-2:] == [b"data: [DONE]", b""], data[-200:]
        said = [json.loads(f.removeprefix(b"data: ")) for f in frames[:-2]]
        assert sum(bool(f["choices"] and f["choices"][0]["delta"].get("content")) for f in said) == TOKENS, data
        return headers.get("connection") != "close"

    async def _head(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Any) -> dict[str, str]:
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 200 OK", lines[0]
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        self.configs[headers["x-noria-config"]] += 1
        return headers


@dataclass
class Installed:
    """Two versions of Noria in a folder, one of them installed."""

    folder: Path

    def make(self) -> Installed:
        source = Path(noria.__file__).parent
        for version in ("1.0.0", "2.0.0"):
            target = self.folder / version / "noria"
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            init = target / "__init__.py"
            init.write_text(re.sub(r'__version__ = "[^"]*"', f'__version__ = "{version}"', init.read_text()))
        self.install("1.0.0")
        return self

    def install(self, version: str) -> None:
        """As an installer does: another version under the same path."""
        aside = self.folder / "new"
        aside.symlink_to(self.folder / version)
        aside.replace(self.folder / "current")


def operate(noria: Any, installed: Installed, load: Load, pause: int, log: list[str]) -> None:
    """A rolling restart, a changed configuration, a new version, again and again until the load has had its requests."""
    n = 0
    try:
        while n == 0 or load.answered < load.wanted * 0.95:
            n += 1
            began = time.monotonic()
            (noria.home.parent / "noria.yaml").write_text(CONFIG.format(tokens=TOKENS, pause=pause, n=n))
            applied = noria.json("apply", "--yes")
            assert applied["applied"], applied
            assert all(w["in_force"] for w in applied["workers"]), applied
            log.append(f"apply {time.monotonic() - began:.1f} s")
            for what in ("reload", "upgrade"):
                installed.install("2.0.0" if n % 2 else "1.0.0")
                began = time.monotonic()
                done = noria.json(what)
                assert done["state"] == "done", done
                log.append(f"{what} {time.monotonic() - began:.1f} s")
            assert json.loads(_status(noria))["version"] == ("2.0.0" if n % 2 else "1.0.0")
            time.sleep(0.5)
    finally:
        load.busy.clear()


def _status(noria: Any) -> bytes:
    token = (noria.home / "admin.token").read_text().strip()
    request = urllib.request.Request(noria.url + "/api/status", headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read()


@pytest.mark.parametrize(
    ("requests", "askers", "readers", "pause"),
    [
        (1_000, 12, 6, 50),
        pytest.param(100_000, 48, 232, 500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
    ids=["short", "full"],
)
def test_no_request_fails_through_restarts_changes_and_upgrades(serve, tmp_path, requests, askers, readers, pause) -> None:
    installed = Installed(tmp_path / "installed")
    installed.folder.mkdir()
    installed.make()
    noria = serve(
        CONFIG.format(tokens=TOKENS, pause=pause, n=0), "--workers", "2", env={"PYTHONPATH": str(installed.folder / "current")}
    )
    pid, began, log = noria.process.pid, time.monotonic(), []
    load = Load(int(noria.url.rpartition(":")[2]), requests, TOKENS * pause / 1000 / readers)
    load.busy.set()
    trouble: list[BaseException] = []

    def operator() -> None:
        try:
            time.sleep(1.0)
            operate(noria, installed, load, pause, log)
        except BaseException as e:  # noqa: BLE001  told to the test below
            trouble.append(e)

    thread = threading.Thread(target=operator)
    thread.start()
    asyncio.run(load.run(askers, readers))
    thread.join(120)
    took = time.monotonic() - began
    told = (
        f"{load.answered} answered ({load.streams} streams, at least {load.fewest_streams} open at any moment), {sum(load.failed.values())} "
        f"failed, {load.connections} connections, {len(load.configs)} configurations, {took:.0f} s; {len(log)} operations: {', '.join(log[:6])} …"
    )
    print(told)
    if trouble:
        raise trouble[0]
    assert not load.failed, (told, dict(load.failed), noria.lines[-30:])
    assert load.answered >= requests
    assert load.fewest_streams >= readers * 0.8 >= min(requests / 500, 180)
    assert len(load.configs) >= 2
    assert noria.process.pid == pid
    assert noria.process.poll() is None
