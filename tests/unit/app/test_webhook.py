"""Telling somebody's URL of an event: tries, what counts as told, and that the URL, which may be a secret, is in no log."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from noria.app import webhook
from noria.app.webhook import Webhook

SECRET = "s3cret-path"


class Receiver:
    """Answers each request with the next status, the last one for ever; `got` are paths and bodies."""

    def __init__(self) -> None:
        self.statuses = [204]
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
            self.got.append((head.split()[1], json.loads(await reader.readexactly(length))))
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            writer.write(b"HTTP/1.1 %d X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n" % status)
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    monkeypatch.setattr(webhook, "PAUSES", (0.0, 0.0, 0.0))
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    await server.wait_closed()


async def told(hook: Webhook) -> None:
    """Send an event and wait for what becomes of it."""
    hook.send("budget.reached", {"budget": "b", "used_usd": 1.5})
    await asyncio.gather(*hook._tasks)


async def test_an_event_is_posted_as_json_to_the_whole_address(receiver: Receiver) -> None:
    hook = Webhook(f"http://127.0.0.1:{receiver.port}/{SECRET}?to=ops")
    await told(hook)
    ((path, body),) = receiver.got
    assert path == f"/{SECRET}?to=ops"
    assert set(body) == {"id", "kind", "detail"}
    assert (body["kind"], body["detail"]) == ("budget.reached", {"budget": "b", "used_usd": 1.5})
    assert (hook.sent, hook.failed) == (1, 0)


async def test_a_failure_is_tried_again_with_the_same_event(receiver: Receiver) -> None:
    receiver.statuses = [500, 429, 200]
    hook = Webhook(f"http://127.0.0.1:{receiver.port}/")
    await told(hook)
    assert len(receiver.got) == 3
    assert len({body["id"] for _, body in receiver.got}) == 1
    assert (hook.sent, hook.failed) == (1, 0)


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_what_is_not_taken_is_given_up_after_three_tries_and_said(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    receiver.statuses = [status]
    hook = Webhook(f"http://127.0.0.1:{receiver.port}/{SECRET}")
    with caplog.at_level(logging.INFO):
        await told(hook)
    assert len(receiver.got) == 3
    assert (hook.sent, hook.failed) == (0, 1), "an address that has moved was not told"
    assert f"it answered {status}" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@127.0.0.1:9/x",
        f"http://127.0.0.1:9/{SECRET} and more",
        f"ftp://127.0.0.1/{SECRET}",
        f"{SECRET}",
        f"http://127.0.0.1:9/{SECRET}",
    ],
)
async def test_no_part_of_an_address_that_cannot_be_used_is_logged(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    hook = Webhook(url)
    with caplog.at_level(logging.DEBUG):
        await told(hook)
    assert (hook.sent, hook.failed) == (0, 1)
    assert "the webhook was not told" in caplog.text
    assert SECRET not in caplog.text


async def test_the_address_is_looked_up_at_each_try_and_its_absence_is_said(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("HOOK_OF_TESTS", raising=False)
    hook = Webhook("env:HOOK_OF_TESTS")
    await told(hook)
    assert "HOOK_OF_TESTS" in caplog.text
    monkeypatch.setenv("HOOK_OF_TESTS", f"http://127.0.0.1:{receiver.port}/{SECRET}")
    await told(hook)
    assert (hook.sent, hook.failed, len(receiver.got)) == (1, 1, 1)


async def test_nobody_is_told_without_an_address_and_closing_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Webhook("")
    quiet.send("x", {})
    assert not quiet._tasks
    monkeypatch.setattr(webhook, "PAUSES", (3600.0,))
    hook = Webhook("http://127.0.0.1:9/x")
    hook.send("x", {})
    await asyncio.sleep(0)
    await asyncio.wait_for(hook.close(), 5)
    assert (hook.sent, hook.failed) == (0, 0)
