"""Push metrics to a collector by OTLP/HTTP: a task of the keeper, off every path that a caller waits on.

What is pushed counts from one start on (cumulative), so a push that fails costs nothing: the next one tells it all.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
import random
import socket
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from noria import __version__
from noria.contracts.error import ConfigError, Unavailable
from noria.dialects.otlp_metrics import CONTENT_TYPE, PATH, Scope, read_rejected, write_metrics
from noria.kit.atomic import write_whole
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.shared_metrics import magic, read_folder
from noria.observe.export import Starts, metrics, resource
from noria.observe.metrics import FAMILIES
from noria.settings import resolve_secret
from noria.settings.metrics import OtlpSettings

log = logging.getLogger("noria.otlp")

WITHIN = 10.0
"""Seconds that one try may take."""
TRIES = 4
FIRST_PAUSE = 1.0
"""Seconds after the first try, doubled after each that follows (OTLP: exponential back-off with jitter)."""
LAST_WORD = 2.0
"""Seconds for what is told at the end."""
RETRYABLE = (429, 502, 503, 504)
"""OTLP/HTTP: every other refusal is for good."""


class Refused(Exception):
    """The collector says no, and would say it again."""


class Push:
    """`trouble` says in words why the last push failed; empty while they succeed."""

    def __init__(self, home: Path, settings: OtlpSettings) -> None:
        self._folder = home / "metrics"
        self._settings = settings
        self._resource = resource(home, socket.gethostname(), __version__, settings.resource)
        self._starts: Starts | None = None
        self._task: asyncio.Task[None] | None = None
        self.pushed = 0
        self.trouble = ""

    def start(self) -> None:
        """Push from now on."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; where something was pushed before, what came since is told, if that takes no time."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self.pushed and not self.trouble:
            try:
                async with asyncio.timeout(LAST_WORD):
                    await self._once(tries=1)
            except TimeoutError:
                log.info("the last metrics were not taken in time")

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._settings.every):
                    await self._once(tries=TRIES)
            except TimeoutError:
                self._failed("it does not answer in time")
            await asyncio.sleep(max(0.0, self._settings.every - (time.monotonic() - began)))

    async def _once(self, *, tries: int) -> None:
        try:
            body = await asyncio.to_thread(self._written)
        except OSError as e:
            self._failed(f"the numbers cannot be read: {e.strerror}")
            return
        pause = FIRST_PAUSE
        for left in range(tries - 1, -1, -1):
            try:
                wait = await self._send(body)
            except (HttpCallError, Unavailable) as e:
                self._failed(str(e))
                wait = 0.0
            except (Refused, ConfigError, ValueError) as e:
                self._failed(str(e))
                return
            if wait is None:
                if self.trouble:
                    log.info("metrics are taken again")
                self.pushed, self.trouble = self.pushed + 1, ""
                return
            if left:
                await asyncio.sleep(max(wait, pause * random.uniform(0.8, 1.2)))  # noqa: S311  spread, not secrecy
                pause *= 2

    def _written(self) -> bytes:
        now = time.time_ns()
        numbers = read_folder(self._folder, FAMILIES)
        if self._starts is None:
            self._starts = Starts(_since(self._folder, now))
        self._starts.take(numbers, now)
        made = metrics(FAMILIES, numbers, self._starts, now_ns=now, names=self._settings.names)
        return gzip.compress(write_metrics(self._resource, Scope("noria.observe", __version__), made), 1)

    async def _send(self, body: bytes) -> float | None:
        """None where it was taken; else how many seconds to wait at least. Raises `Refused`, `HttpCallError`, `ConfigError`."""
        headers = [("content-type", CONTENT_TYPE), ("content-encoding", "gzip"), ("user-agent", f"noria/{__version__}")]
        headers += [(k.lower(), resolve_secret(v)) for k, v in self._settings.headers.items()]
        client = HttpClient(
            self._settings.url, connect_timeout=WITHIN, first_timeout=WITHIN, total_timeout=WITHIN, max_body=1 << 20
        )
        try:
            status, told, answer = await client.send("POST", PATH, headers, body)
        finally:
            await client.close()
        if status in RETRYABLE:
            self._failed(f"it answers {status}")
            return _seconds(dict(told).get("retry-after", ""))
        if not 200 <= status < 300:
            raise Refused(f"it answers {status}: {answer[:200].decode('utf-8', 'replace')}")
        try:
            rejected, why = read_rejected(answer)
        except ValueError:  # an answer of another kind, JSON for one, is an answer all the same
            return None
        if rejected:
            raise Refused(f"it has not taken {rejected} points: {why[:200]}")
        return None

    def _failed(self, why: str) -> None:
        """Said once, until it works again or fails in another way."""
        if why != self.trouble:
            log.warning("metrics cannot be pushed to %s: %s", self._settings.url, why)
        self.trouble = why


class _Mark(msgspec.Struct):
    families: str
    since_ns: int


def _since(folder: Path, now_ns: int) -> int:
    """When the counters in `folder` began: written down beside them, for they outlive the keeper."""
    folder.mkdir(mode=0o700, exist_ok=True)
    path, families = folder / "since.json", magic(FAMILIES).decode()
    try:
        mark = msgspec.json.decode(path.read_bytes(), type=_Mark)
    except (OSError, msgspec.DecodeError):
        mark = _Mark("", 0)
    if mark.families != families:
        with suppress(OSError):  # written when the service began, before any worker
            now_ns = min(now_ns, (folder.parent / "run" / "address.json").stat().st_mtime_ns)
        mark = _Mark(families, now_ns)
        write_whole(path, msgspec.json.encode(mark))
    return mark.since_ns


def _seconds(header: str) -> float:
    try:
        wait = float(header)
    except ValueError:
        return 0.0
    return wait if math.isfinite(wait) and wait > 0 else 0.0
