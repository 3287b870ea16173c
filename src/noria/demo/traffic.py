"""The customers at work: each message goes to `/v1/chat/completions` like any client's, and what is thought of the answer to `/v1/feedback`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from noria.contracts.stage import Check, Sample
from noria.demo.customers import Message
from noria.kit import extension
from noria.kit.http_client import HttpCallError, HttpClient

AT_ONCE = 8
"""Customers who wait for an answer at the same time, at most."""
METRIC = "thumbs_up"


class Heard(NamedTuple):
    """What one customer got."""

    message: Message
    exchange: str
    release: str
    """Its id, empty where the request failed."""
    answer: str
    said: str
    """The intent that the answer names, or empty."""
    ms: float
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether it names the intent of the message."""
        return self.said == self.message.intent


class Round(NamedTuple):
    """What came of many of them."""

    heard: tuple[Heard, ...]
    seconds: float

    @property
    def failed(self) -> int:
        """Requests that got no answer."""
        return sum(bool(h.error) for h in self.heard)

    def arms(self) -> dict[str, tuple[int, int]]:
        """Release id → (answers, right ones)."""
        found: dict[str, tuple[int, int]] = {}
        for h in self.heard:
            if not h.error:
                n, right = found.get(h.release, (0, 0))
                found[h.release] = (n + 1, right + h.right)
        return found

    def facts(self) -> dict[str, Any]:
        """For events and the report."""
        good = sorted(h.ms for h in self.heard if not h.error)
        return {
            "sent": len(self.heard), "failed": self.failed, "right": sum(h.right for h in self.heard), "seconds": round(self.seconds, 1),
            "p50_ms": round(good[len(good) // 2], 1) if good else None,
            "p95_ms": round(good[int(len(good) * 0.95)], 1) if good else None,
            "arms": {release: list(counts) for release, counts in self.arms().items()},
        }  # fmt: skip


class Customers:
    """Sends messages to one app and judges the answers by the labels of the messages."""

    def __init__(self, client: HttpClient, app: str, intents: Iterable[str], *, seed: int = 0) -> None:
        self._client = client
        self._app = app
        self._pace = random.Random(seed)  # noqa: S311  arrival times, no secrets
        cls = extension.load("checks", "label", Check)
        self._label = cls(msgspec.convert({"labels": sorted(intents)}, cls.Config))

    async def write(
        self, messages: Iterable[Message], *, rate: float, correct: bool, tell: Callable[[list[Heard]], bool]
    ) -> Round:
        """One customer after the other (Poisson, `rate` a second), until the messages or `tell`'s patience end.

        With each answer goes a thumb; where `correct`, with each wrong one what it should have been. `tell` gets what was heard so
        far and says whether to go on.
        """
        heard: list[Heard] = []
        gate = asyncio.Semaphore(AT_ONCE)
        tasks: set[asyncio.Task[None]] = set()
        began = due = time.monotonic()
        going = True

        async def one(message: Message) -> None:
            nonlocal going
            try:
                found = await self._ask(message)
                heard.append(found if found.error else await self._judged(found, correct=correct))
                going = tell(heard) and going
            finally:
                gate.release()

        for message in messages:
            due += self._pace.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await gate.acquire()
            if not going:
                break
            task = asyncio.create_task(one(message))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return Round(tuple(heard), time.monotonic() - began)

    async def _ask(self, message: Message) -> Heard:
        body = {"model": self._app, "messages": [{"role": "user", "content": message.text}], "user": message.group}
        began = time.monotonic()
        try:
            status, headers, answer = await self._post("/v1/chat/completions", body)
        except HttpCallError as e:
            return Heard(message, "", "", "", "", 0.0, str(e) or type(e).__name__)
        took = (time.monotonic() - began) * 1000
        named = dict(headers)
        if status != 200:
            return Heard(
                message, named.get("x-request-id", ""), "", "", "", took, f"{status} {answer[:200].decode(errors='replace')}"
            )
        text = str(msgspec.json.decode(answer)["choices"][0]["message"]["content"] or "")
        verdict = self._label.judge(Sample(output=text, expected=message.intent, label=message.intent))
        said = verdict.findings[0].label if verdict.findings else ""
        return Heard(message, named["x-request-id"], named["x-noria-release"], text, said, took)

    async def _judged(self, heard: Heard, *, correct: bool) -> Heard:
        """Say what the customer thinks, and what the help desk's people file the message under."""
        about = {"exchange_id": heard.exchange, "user": heard.message.group}
        told = [{**about, "metric": METRIC, "thumb": "up" if heard.right else "down"}]
        if correct and not heard.right:
            told += [{**about, "label": heard.message.intent}, {**about, "correction": heard.message.intent}]
        try:
            status, _, answer = await self._post("/v1/feedback", told)
        except HttpCallError as e:
            return heard._replace(error=f"feedback: {e}")
        return heard if status < 400 else heard._replace(error=f"feedback: {status} {answer[:200].decode(errors='replace')}")

    async def _post(self, path: str, body: Any) -> Any:
        return await self._client.send("POST", path, [("content-type", "application/json")], msgspec.json.encode(body))
