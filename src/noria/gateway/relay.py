"""The way back: from the model's bytes to the caller's, with as little done to them as the release asks for.

With no outward stage every frame of a stream leaves with its own bytes, in order; what may differ is
said in DESIGN §3a.9. Frames before the first content are held until it comes (a failed endpoint can
still be replaced), and `[DONE]` is held until the exchange is recorded. Where nothing comes for long, a
comment tells the caller, and what lies between, that the answer is still being made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import perf_counter_ns
from typing import Any, Protocol

import msgspec

from noria.contracts.error import NoriaError, UpstreamError
from noria.contracts.exchange import Dialect, Exchange, ModelReply, Usage
from noria.contracts.release import Endpoint
from noria.contracts.stage import Outlet, Outward, Transducer
from noria.contracts.trace import ExchangeRow
from noria.contracts.verdict import Ruling
from noria.dialects.native import facts_of, reader_of
from noria.dialects.openai_answer import edit_answer
from noria.dialects.openai_edit import StreamEditor
from noria.dialects.openai_error import error_answer, error_frame
from noria.dialects.openai_stream import CONTENT, USAGE_ONLY, StreamReader, assemble
from noria.dialects.sse import FrameSplitter, frame_end
from noria.gateway.passage import Passage, Timed
from noria.gateway.untold import completed, counted, ran_unseen, thinks
from noria.kit.step import Stopwatch

MAX_HELD = 256 * 1024
"""Bytes of a stream held back before its first content; beyond it the stream is committed as it is."""
MAX_BACKLOG = 8 * 1024 * 1024
"""Bytes that a slow caller may leave unread before it is given up."""
STILL = 15.0
"""Seconds without a byte after which a stream's caller gets `KEEP_ALIVE`: proxies give up after 30 to 60 s of silence."""
KEEP_ALIVE = b": keep-alive\n\n"


class Noted(Protocol):
    """The part of the account that the way back fills."""

    watch: Stopwatch
    rulings: list[Ruling]
    error: BaseException | None
    tries: int
    endpoint: Endpoint | None
    usage: Usage
    counted: Usage | None
    heard: Usage | None
    cut_short: bool
    reserved: int | None
    served_model: str
    upstream_id: str
    finish_reason: str
    first_ns: int | None
    status: int
    headers: list[tuple[str, str]]
    answer: bytes
    answer_is_sse: bool


class Relay:
    """One answer on its way out. `feed` is the sink of the router's attempts; see `gateway.router.Gate`."""

    def __init__(self, x: Exchange, account: Noted, out: Outlet) -> None:
        self.committed = False
        self._x = x
        self._account = account
        self._out = out
        self._wire = out
        """Where the answer's bytes go: past the translation where they are in the caller's dialect already."""
        self._dialect: Dialect = "openai"
        self._outward: tuple[Outward, ...] = ()
        self._passages: dict[tuple[int, str], Passage] = {}
        self._spent: dict[str, int] = {}
        self._editor: StreamEditor | None = None
        self._raw: list[bytes] = []
        self._last: list[bytes] = []
        self._whole: bytes | None = None
        self._error: NoriaError | None = None
        self._task: asyncio.Task[Any] | None = None
        self._keep = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._headed = False
        self._moved = False
        self._begin()

    def open(self, x: Exchange, outward: tuple[Outward, ...], restore: Outward | None, *, keep: bool) -> None:
        """Before the model is asked: which stages the answer passes through, and whether it is recorded (`keep`)."""
        self._x = x
        self._keep = keep
        self._outward = (*outward, restore) if restore is not None and x.vault else outward
        self._begin()

    def _begin(self) -> None:
        if not self._x.stream:
            return
        self._splitter = FrameSplitter()
        reader = StreamReader()
        self._reader = reader if self._dialect == "openai" else reader_of(self._dialect)
        self._held = []
        self._held_bytes = 0
        if self._outward:
            self._passages.clear()
            self._editor = StreamEditor(self._passage, reader)

    async def carry(self, sending: Coroutine[Any, Any, ModelReply]) -> ModelReply:
        """Wait for the model; ends at once with the error that an outward stage raised meanwhile."""
        task = self._task = asyncio.current_task() if self._x.stream else None  # a whole answer is looked at once it is there
        if self._x.stream:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(STILL, self._still, loop)
        try:
            reply = await sending
            if self._error is not None:  # a model that never waited after it: the cancellation is still to come
                await asyncio.sleep(0)
            return reply
        except asyncio.CancelledError:
            if self._error is None:
                raise
            if task is not None:
                task.uncancel()
            raise self._error from None
        finally:
            self._task = None
            if self._x.stream:
                self._alarm.cancel()

    def _still(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say that the answer is still being made, where nothing has left since the last look; then look again later."""
        self._alarm = loop.call_later(STILL, self._still, loop)
        if not self._moved:
            if not self._headed:
                self._begin_stream()
            self._wire.data(KEEP_ALIVE)
        self._moved = False

    def speak(self, dialect: Dialect) -> None:
        """The dialect of the next attempt's answer: chat, or the caller's own, whose bytes then leave as they come."""
        if dialect != self._dialect:
            self._dialect = dialect
            self._wire = self._out if dialect == "openai" else getattr(self._out, "verbatim", self._out)
            self._begin()

    def restart(self) -> None:
        """Forget a failed attempt. Nothing of it has left."""
        self._raw.clear()
        self._begin()

    def feed(self, data: bytes) -> None:
        """The next bytes of a stream from the model."""
        if self._error is not None:
            return
        try:
            self._take(self._splitter.block(data))
        except NoriaError as e:
            self._fail(e)
        except ValueError as e:
            self._fail(UpstreamError(str(e), code="bad_upstream_response", started=self.committed))

    def _fail(self, error: NoriaError) -> None:
        self._error = error
        if self._task is not None:
            self._task.cancel()

    def _take(self, block: bytes) -> None:
        """A block of whole frames, split anywhere between two."""
        self._raw.append(block)
        leaving: list[bytes] = []
        try:
            self._sort(block, leaving)
        finally:  # what was let go before a refusal is the caller's
            if leaving:  # frames that came together leave together
                self._moved = True
                self._wire.data(leaving[0] if len(leaving) == 1 else b"".join(leaving))
        if self._out.backlog > MAX_BACKLOG:
            raise UpstreamError("The caller does not read its answer.", code="slow_caller", started=True)

    def _sort(self, block: bytes, leaving: list[bytes]) -> None:
        """The frames of a block to where they belong; those that leave now go to `leaving`."""
        reader = self._reader
        at, size = 0, len(block)
        while at < size:
            start = at
            if self.committed and (at := self._skim(block, at, leaving)) > start:
                continue
            at = frame_end(block, start)
            frame = block[start:at]
            kind = reader.read(frame)
            if reader.done:
                self._last.append(frame)
            elif kind == USAGE_ONLY and not self._x.usage_wanted:
                continue
            elif not self.committed:
                self._hold(frame, kind)
            else:
                leaving += self._edit(frame)

    def _skim(self, block: bytes, start: int, leaving: list[bytes]) -> int:
        """Frames from `start` on that say mere text go to `leaving`; where the first that must be read begins."""
        if self._editor is not None:
            stop, frames = self._editor.skim(block, start)
            leaving += frames
            return stop
        stop = self._reader.skim(block, start)
        if stop > start:
            leaving.append(block[start:stop])  # of bytes, a slice from end to end is the very object
        return stop

    def _edit(self, frame: bytes) -> list[bytes]:
        return [frame] if self._editor is None else self._editor.edit(frame)

    def _hold(self, frame: bytes, kind: int) -> None:
        self._held.append(frame)
        self._held_bytes += len(frame)
        if kind == CONTENT or self._held_bytes > MAX_HELD:
            self._commit()

    def _commit(self) -> None:
        self.committed = self._moved = True
        if not self._headed:
            self._begin_stream()
        self._account.first_ns = self._account.watch.elapsed()
        held, self._held = self._held, []
        for frame in held:
            for edited in self._edit(frame):
                self._wire.data(edited)

    def _begin_stream(self) -> None:
        """The head: from now on an error is told in the stream, though another endpoint may still give the answer."""
        self._headed = True
        self._head(
            200,
            [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"), ("x-accel-buffering", "no")],
            stream=True,
        )

    def _passage(self, choice: int, channel: str) -> Transducer:
        before: list[Transducer] = []
        after: list[Transducer] = []
        for stage in self._outward:
            inner = stage.open(self._x, choice, channel, self._account.rulings.append)
            if inner is not None:
                links = after if stage.name == "restore" else before
                links.append(Timed(inner, stage.name, self._spent))
        passage = self._passages[choice, channel] = Passage(before, after)
        return passage

    def close(self, reply: ModelReply) -> None:
        """The model has answered whole: finish the outward stages, know the facts. Raises `Blocked`, `UpstreamError`."""
        try:
            if self._x.stream:
                self._finish()
            else:
                self._whole = self._edited(reply)
        except ValueError as e:
            raise UpstreamError(str(e), code="bad_upstream_response", started=self.committed) from e
        account = self._account
        account.status = 200
        account.upstream_id = reply.upstream_id or account.upstream_id

    def _finish(self) -> None:
        self._take(self._splitter.rest())
        if not self.committed:
            self._commit()
        if self._editor is not None:
            for frame in self._editor.end():
                self._wire.data(frame)

    def _edited(self, reply: ModelReply) -> bytes:
        body = reply.body
        facts = reply.facts or facts_of(self._dialect, self._x.kind, body)
        account = self._account
        account.usage = facts.usage or account.usage
        account.served_model, account.upstream_id, account.finish_reason = facts.model, facts.id, facts.finish_reason
        self._raw.append(body)
        if not self._outward or self._x.kind == "embedding":
            return body

        def edit(choice: int, channel: str, text: str) -> str:
            link = self._passage(choice, channel)
            return link.feed(text) + link.flush()

        return edit_answer(body, edit)

    def settle(self, x: Exchange) -> None:
        """Write what is known into the account, however the exchange ended; never raises. `x` is as far as it came."""
        self._x = x
        account = self._account
        if self._x.stream:
            facts = self._reader
            account.served_model = facts.model or account.served_model
            account.upstream_id = facts.id or account.upstream_id
            account.finish_reason = facts.finish_reason or account.finish_reason
        self._count(x)
        for name, took in self._spent.items():
            account.watch.note(name, perf_counter_ns() - took, took)
        if isinstance(account.error, NoriaError):
            account.status = error_answer(account.error)[0] if not self._headed else 200
        elif account.error is not None:
            account.status = 499 if isinstance(account.error, asyncio.CancelledError) else 500
        account.answer, account.answer_is_sse = self._recorded()

    def _count(self, x: Exchange) -> None:
        """What was used: as the endpoint told it at its end, else by our own count of what came."""
        account, reader = self._account, self._reader if self._x.stream else None
        whole = account.usage.input is not None  # of a whole answer, or of a stream that went on for others
        told = account.usage if reader is None or whole else reader.usage or account.heard
        if told is not None and not (told.input or told.output):
            told = None  # no prompt has no tokens
        ended = whole or account.error is None
        ended = ended or reader is None or (reader.final if reader.usage else bool(reader.finish_reason))
        if told is not None and ended:
            account.usage = told
        elif account.endpoint is not None and (told or self._raw or account.reserved is None):
            hidden = not (told and account.endpoint.provider == "gemini")  # which tells its thoughts with every event
            hidden = hidden and thinks(x, self._dialect, self._raw, account.endpoint)
            own = counted(x, self._dialect, self._raw, reader, hidden)
            account.usage, account.counted = Usage(), own
            if told is not None:
                account.usage, account.cut_short = completed(told, own), True
        if account.endpoint is not None and not account.usage.searches and ran_unseen(x, self._dialect, account.endpoint):
            account.usage = msgspec.structs.replace(account.usage, apart=account.usage.apart + 1)

    def _recorded(self) -> tuple[bytes, bool]:
        if not self._keep or self._x.kind == "embedding":
            return b"", False
        raw = b"".join(self._raw)
        if not raw or not self._passages or (self._account.error is None and self._as_given()):
            return raw, self._x.stream
        whole = msgspec.json.encode(_joined(raw)) if self._x.stream else raw
        return edit_answer(whole, self._told), False

    def _told(self, choice: int, channel: str, _: str) -> str:
        """The text that the guards left, in place of the model's own; none where they did not come to judge it."""
        passage = self._passages.get((choice, channel))
        return passage.kept if passage else ""

    def _as_given(self) -> bool:
        return all(passage.unchanged for passage in self._passages.values())

    def text(self) -> str:
        """The answer's text (first choice) as it is recorded: masked values stay masked."""
        if self._passages:
            return self._told(0, "content", "")
        raw = b"".join(self._raw)
        answer = _joined(raw) if self._x.stream else msgspec.json.decode(raw)
        choice = (answer.get("choices") or [{}])[0]
        return str((choice.get("message") or {}).get("content") or choice.get("text") or "")

    def told(self) -> bytes:
        """The whole answer as it may be kept: as the guards left it, masked values stay masked."""
        raw = b"".join(self._raw)
        whole = msgspec.json.encode(_joined(raw)) if self._x.stream else raw
        return edit_answer(whole, self._told) if self._passages else whole

    def end(self, row: ExchangeRow) -> None:
        """The last bytes: the whole answer, the end of the stream, or the error. The exchange is recorded."""
        error = self._account.error
        if isinstance(error, NoriaError):
            self._refuse(error)
        elif self._whole is not None:
            headers = [("content-type", "application/json"), ("x-noria-overhead-ms", f"{row.overhead_ns / 1e6:.3f}")]
            if row.cost_nanousd is not None:
                headers.append(("x-noria-cost", f"{row.cost_nanousd / 1e9:.9f}"))
            self._head(200, headers, stream=False)
            self._wire.data(self._whole)
        else:
            if self._x.tail_wanted:
                cost = "null" if row.cost_nanousd is None else f"{row.cost_nanousd / 1e9:.9f}"
                self._wire.data(b': x-noria {"cost": %b, "overhead_ms": %.3f}\n\n' % (cost.encode(), row.overhead_ns / 1e6))
            for frame in self._last:
                self._wire.data(frame)
        self._out.end()

    def _refuse(self, error: NoriaError) -> None:
        if self._headed:
            self._out.data(error_frame(error))
            return
        status, headers, body = error_answer(error)
        source = "provider" if isinstance(error, UpstreamError) else "gateway"
        self._head(status, [("content-type", "application/json"), ("x-noria-error-source", source), *headers], stream=False)
        self._out.data(body)

    def _head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        x = self._x
        own = [("x-request-id", x.id), ("x-noria-trace", x.trace)]
        if x.release is not None:
            own.append(("x-noria-release", x.release.id))
        account = self._account
        if account.endpoint is not None and account.tries:
            own += (("x-noria-endpoint", account.endpoint.name), ("x-noria-attempts", str(account.tries)))
        self._out.head(status, own + headers + account.headers, stream=stream)


def _joined(raw: bytes) -> dict[str, Any]:
    """The whole answer that a stream amounts to; an empty one where its frames are too odd to be joined."""
    try:
        return assemble(raw)
    except (AttributeError, TypeError, ValueError):
        return {}
