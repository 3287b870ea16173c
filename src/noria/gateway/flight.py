"""Single flight: identical requests that are under way at the same time share one call to the model.

The first to ask leads: its account gets the attempts and the bill. Whoever asks the same meanwhile follows: gets the
frames so far at once and the others as they come, each through outward stages of its own. A leader that is cancelled
stays until the call has ended while anybody follows, so that the call is paid exactly; with nobody left the call
is cancelled at once. A call that fails fails for all who had joined: the router has tried every endpoint by then, and a
second attempt of each follower would be the stampede that sharing is there to prevent (ADR 17).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from noria.contracts.error import NoriaError, Unavailable
from noria.contracts.exchange import Dialect, Exchange, ModelReply, Usage
from noria.dialects.openai_replay import Ending, as_stream, as_whole, ending

LARGEST = 4 * 1024 * 1024
"""Bytes of an answer that is kept or joined late; a longer one goes to those who are there."""


class Gate(Protocol):
    """Where an answer goes (`gateway.router.Gate`)."""

    committed: bool

    def speak(self, dialect: Dialect) -> None:
        """The dialect of the next attempt's answer."""
        ...

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        ...

    def restart(self) -> None:
        """Forget what a failed attempt sent."""
        ...


class Billed(Protocol):
    """The part of the leader's account that the call fills."""

    usage: Usage

    def cost(self) -> tuple[int | None, Any]:
        """Nano-dollars so far, and how they are known."""
        ...


Send = Callable[[Exchange, Any, Any, int], Coroutine[Any, Any, ModelReply]]
"""`Router.send`: (exchange, gate, account, began)."""


class Flight:
    """One call to a model, and who waits for its answer. It is the router's gate: what comes goes to every seat."""

    def __init__(self, *, stream: bool, shared: bool, tenant: str = "", subject: str = "", since: int = 0) -> None:
        self.stream = stream
        self.shared = shared
        self.tenant = tenant
        self.subject = subject
        """Whose question it is: the leader's."""
        self.since = since
        """The newest purge that was known when it began (`gateway.tier`)."""
        self.end: Ending | None = None
        """How the answer ended; None before, and where it failed."""
        self.cost: int | None = None
        self.stored = False
        """Whether the answer has been put on the shelf: one of those who got it does that."""
        self.upstream_id = ""
        self._dialect: Dialect | None = None
        self._raw: list[bytes] = []
        self._size = 0
        self._seats: list[Gate] = []
        self._committed = False
        self._late = 0
        self._aboard = 0
        self._task: asyncio.Task[ModelReply] | None = None
        self._led = True
        self._begun: bool | None = None
        self._landed = False
        self._reply: ModelReply | None = None
        self._error: NoriaError | None = None
        self._waiting: list[asyncio.Future[None]] = []

    # -- the router's gate --------------------------------------------------------------------------

    @property
    def committed(self) -> bool:
        """Whether content has left for anybody, after which no other endpoint may be asked."""
        self._committed = self._committed or any(seat.committed for seat in self._seats)
        return self._committed

    def speak(self, dialect: Dialect) -> None:
        """The dialect of the next attempt's answer: chat, for requests that the cache sees have no native form."""
        self._dialect = dialect
        for seat in self._seats:
            seat.speak(dialect)

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        if self._size <= LARGEST or self._late:
            self._raw.append(data)
        elif self._raw:
            self._raw.clear()
        self._size += len(data)
        for seat in self._seats:
            seat.feed(data)

    def restart(self) -> None:
        """Forget a failed attempt; nothing of it has left."""
        self._raw.clear()
        self._size = 0
        for seat in self._seats:
            seat.restart()

    # -- the leader ---------------------------------------------------------------------------------

    async def lead(self, send: Send, x: Exchange, gate: Gate, account: Any, began: int) -> ModelReply:
        """Call the model; the reply is the leader's own. Raises what the call raises."""
        self._seats.append(gate)
        self._begin()
        sending = self._fly(send(x, self, account, began), account)
        if not self.shared:
            return await sending
        task = self._task = asyncio.ensure_future(sending)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await self._stay(task, gate)
            raise

    async def _stay(self, task: asyncio.Task[ModelReply], gate: Gate) -> None:
        """The leader's caller is gone: wait for the end as long as anybody follows."""
        self._committed = self.committed
        if gate in self._seats:
            self._seats.remove(gate)
        self._led = False
        self._look()
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if not task.cancelled():
            task.exception()  # those who followed have it

    async def _fly(self, sending: Awaitable[ModelReply], account: Billed) -> ModelReply:
        try:
            reply = self._reply = await sending
            self.upstream_id = reply.upstream_id
            if self._size <= LARGEST:
                self.end = ending(self.body, stream=self.stream)
                if self.shared:  # known now for all, also where the leader's own relay was let go
                    account.usage = self.end.usage or account.usage
                    self.cost = account.cost()[0]
            return reply
        except NoriaError as e:
            self._error = e
            raise
        finally:
            self._landed = True
            self._wake()

    def abandon(self) -> None:
        """The leader will not call: whoever waited looks again."""
        if self._begun is None:
            self._begun = False
            self._wake()

    def _begin(self) -> None:
        self._begun = True
        self._wake()

    # -- those who follow ---------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether the answer can still be joined: it has not failed, and its beginning is held."""
        return self.shared and self._error is None and self._size <= LARGEST and not (self._landed and self._reply is None)

    def board(self) -> None:
        """Somebody will follow: from here to `leave` the call goes on."""
        self._aboard += 1

    def leave(self) -> None:
        """Somebody has got what it wanted, or does not want it any more."""
        self._aboard -= 1
        self._look()

    async def begun(self) -> bool:
        """Wait until the call is made; False where it never will be."""
        while self._begun is None:
            await self._wait()
        return self._begun

    async def follow(self, x: Exchange, gate: Gate) -> ModelReply:
        """The answer for one who boarded: live frames where it wants the form that comes, else converted at the end."""
        live = x.stream and self.stream
        if live:
            if self._dialect is not None:
                gate.speak(self._dialect)
            if self._raw:
                gate.feed(b"".join(self._raw))
            self._seats.append(gate)
        else:
            self._late += 1
        try:
            while not self._landed:
                await self._wait()
        finally:
            if live:
                self._seats.remove(gate)
            else:
                self._late -= 1
        reply = self._reply
        if reply is None:
            if self._error is not None:
                raise self._error.with_traceback(None)
            raise Unavailable("The call that this request had joined was given up.", code="joined_call_ended")
        if live:
            return reply
        return given(self.body, stream=self.stream, to=x, gate=gate, upstream_id=self.upstream_id)

    @property
    def body(self) -> bytes:
        """The model's answer: the whole one, or the frames of the stream."""
        return b"".join(self._raw) if self.stream else self._reply.body if self._reply else b""

    def _look(self) -> None:
        if not self._led and not self._aboard and self._task is not None:
            self._task.cancel()

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)


def given(body: bytes, *, stream: bool, to: Exchange, gate: Gate, upstream_id: str) -> ModelReply:
    """An answer that exists already, in the form that `to` wants: fed into its gate, or in the reply."""
    if not to.stream:
        return ModelReply(200, as_whole(body) if stream else body, (), upstream_id)
    gate.feed(body if stream else as_stream(body))
    return ModelReply(200, b"", (), upstream_id)
