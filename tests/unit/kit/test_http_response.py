"""A finished answer is gone at once: nothing of it waits for the cyclic collector."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from noria.kit.http_response import Response


class Wire:
    """A connection that takes everything."""

    paused = draining = False
    date = "date: now\r\n"

    def __init__(self) -> None:
        self.transport = self.loop = self
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def later(self, flush: Any) -> None:
        flush()

    def finished(self, response: Response) -> None:
        """Nothing to go on with."""


class Owner:
    """What an outlet is: it holds the response, and the response calls it back."""

    def __init__(self, response: Response) -> None:
        self.response = response
        response.on_close = response.on_pause = response.on_resume = self.hear

    def hear(self) -> None:
        """The client is slow, or gone."""


@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_and_its_owner_do_not_outlive_the_end(whole: bool) -> None:
    owner = Owner(Response(Wire(), head_only=False, http10=False, last=False))  # type: ignore[arg-type]  # what it needs of a connection
    if whole:
        owner.response.send(200, [], b"ok")
    else:
        owner.response.start(200, [], length=None)
        owner.response.write(b"ok")
        owner.response.end()
    gone = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert gone() is None
    finally:
        gc.enable()
