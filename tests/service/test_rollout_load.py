"""Releases come and go under load: promoted and rolled back with streams open, no request fails, and a rollback acts within a second.

1/20 of the proof in `make test`, 20,000 requests in `make test-slow`; the last full result is in docs/reference/proofs.md.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.service.test_zero_loss import TOKENS, Load

CONFIG = """
models:
  fake: {{provider: scripted, model: fake, options: {{tokens: 5, first_ms: 2}}}}
  other: {{provider: scripted, model: other, options: {{tokens: 5, first_ms: 2}}}}
  slow: {{provider: scripted, model: slow, options: {{tokens: {tokens}, token_ms: {pause}}}}}
  slower: {{provider: scripted, model: slower, options: {{tokens: {tokens}, token_ms: {pause}}}}}
apps:
  echo: {{model: fake}}
  long: {{model: slow}}
"""
CANDIDATES = {"echo": "other", "long": "slower"}


@dataclass
class Watched(Load):
    """Remembers by which release each request was answered, and when it was asked."""

    asked: list[tuple[float, str]] = field(default_factory=list)

    async def _head(self, reader: Any, writer: Any, body: Any) -> dict[str, str]:
        began = time.monotonic()
        headers = await super()._head(reader, writer, body)
        self.asked.append((began, headers["x-noria-release"]))
        return headers

    def between(self, first: float, last: float) -> set[str]:
        return {release for at, release in self.asked if first <= at < last}


def operate(on: Any, load: Watched, ids: dict[str, str], log: list[float]) -> None:
    """Canary, promotion and rollback of both apps, again and again until the load has had its requests."""
    policy = {"steps": [50], "metric": "answered", "min_answers": 10**6}
    try:
        while not log or load.answered < load.wanted * 0.95:
            for app in CANDIDATES:
                begun = on.api("POST", "/api/rollouts", {"app": app, "candidate": "new", "policy": policy})
                assert (begun.status, begun.json["percent"]) == (201, 50), begun.body
            time.sleep(1.0)
            for app in CANDIDATES:
                told = on.api("POST", f"/api/rollouts/{app}", {"action": "promote", "why": "load test"})
                assert told.json["state"] == "promoted", told.body
            since = time.monotonic() + 1.0
            time.sleep(1.5)
            seen = load.between(since, time.monotonic())
            assert seen <= set(ids.values()), "a second after the promotion the old release still answers"
            for app in CANDIDATES:
                asked = time.monotonic()
                told = on.api("POST", f"/api/rollouts/{app}", {"action": "rollback", "why": "load test"})
                assert told.json["state"] == "rolled_back", told.body
                log.append(time.monotonic() - asked)
            since = asked + 1.0
            time.sleep(1.5)
            seen = load.between(since, time.monotonic())
            assert seen, "nobody asks"
            assert not seen & set(ids.values()), "a second after the rollback the candidate still answers"
    finally:
        load.busy.clear()


@pytest.mark.parametrize(
    ("requests", "askers", "readers", "pause"),
    [
        (1_000, 8, 6, 50),
        pytest.param(20_000, 32, 100, 300, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
    ids=["short", "full"],
)
def test_no_request_fails_while_releases_are_promoted_and_rolled_back(serve, caller, requests, askers, readers, pause) -> None:
    noria = serve(CONFIG.format(tokens=TOKENS, pause=pause), "--workers", "2")
    on, ids = caller(noria), {}
    for app, model in CANDIDATES.items():
        made = on.api("POST", "/api/releases", {"app": app, "parent": "main", "name": "new", "model": model})
        ids[app] = made.json["id"]
    load = Watched(int(noria.url.rpartition(":")[2]), requests, TOKENS * pause / 1000 / readers)
    load.busy.set()
    log: list[float] = []
    trouble: list[BaseException] = []

    def operator() -> None:
        try:
            time.sleep(1.0)
            operate(on, load, ids, log)
        except BaseException as e:  # noqa: BLE001  told to the test below
            trouble.append(e)

    thread = threading.Thread(target=operator)
    began = time.monotonic()
    thread.start()
    asyncio.run(load.run(askers, readers))
    thread.join(120)
    answered = {release for _, release in load.asked}
    told = f"{load.answered} answered ({load.streams} streams, at least {load.fewest_streams} open), {sum(load.failed.values())} failed, {len(log) // 2} rollouts of each app; slowest rollback {max(log, default=0.0):.2f} s, {time.monotonic() - began:.0f} s in all, load {os.getloadavg()[0]:.0f}"
    print(told)
    if trouble:
        raise trouble[0]
    assert not load.failed, (told, dict(load.failed), noria.lines[-30:])
    assert load.answered >= requests
    assert len(answered) == 4, "both releases of both apps have answered"
