"""Batches by an endpoint's own batch API, at its batch price: upload, create, follow, download, record line by line.

Only where that is sure to be the same thing: all lines name one app, which one release with one such endpoint answers,
and no budget has to set money aside before the model is asked (hours may lie between). Every line makes the journey of a
prompt all the same, in two halves (`app.line_house`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from noria.app.batch_run import Change, Take
from noria.app.house import make_provider
from noria.app.lane import Calls
from noria.app.line_house import Prepared, place
from noria.contracts.batch import Batch, Envelope, Lane, Line, LineResult
from noria.contracts.error import NoriaError, Unavailable, UpstreamError
from noria.contracts.exchange import RawCall
from noria.contracts.release import Endpoint, Snapshot
from noria.contracts.stage import Provider
from noria.dialects.openai_batch import read_results, upstream_lines
from noria.gateway.batch import Reply

log = logging.getLogger("noria.batches")

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MARK = "noria_batch"
"""Key of the upstream batch's metadata by which a batch finds its own again."""
OVER = ("completed", "failed", "expired", "cancelled")
AT_ONCE = 8
LOOK = 0.2
TRIES = 5
_FAILED = "upstream_batch_failed"
_FOR_GOOD = frozenset({400, 404, 413, 422})
"""What an endpoint answers to a batch that it will not take the next time either."""


class _Model(msgspec.Struct):
    model: str


class _Batch(msgspec.Struct):
    id: str
    status: str = ""
    output_file_id: str | None = None
    error_file_id: str | None = None
    input_file_id: str | None = None
    metadata: dict[str, Any] | None = None
    errors: dict[str, Any] | None = None


class _Page(msgspec.Struct):
    data: list[_Batch] = []


class UpstreamBatches:
    """`app.batch_run.Upstream`."""

    def __init__(self, home: Path, calls: Calls, snapshot: Callable[[], Snapshot | None], *, poll: float) -> None:
        self._home = home
        self._calls = calls
        self._snapshot = snapshot
        self._poll = poll
        self._providers: dict[bytes, Provider] = {}

    async def lane(self, batch: Batch, lines: Sequence[Line]) -> Lane:
        """`upstream` where the endpoint's batch API may serve the batch, else `own`."""
        if batch.endpoint not in ENDPOINTS or self._endpoint(batch, lines) is None:
            return "own"
        first = await self._calls.ask(batch, lines[0], mode="prepare")
        prepared = _prepared(first)
        return "own" if prepared is not None and prepared.bounded else "upstream"

    async def run(
        self, batch: Batch, lines: Sequence[Line], take: Take, *, change: Change, stopped: Callable[[], bool]
    ) -> None:
        """See `app.batch_run.Upstream`. Raises `NoriaError` where the endpoint cannot be reached: it is tried again later."""
        endpoint = self._endpoint(batch, lines) if lines else None
        if endpoint is None:
            for line in lines:
                take(LineResult(line.number, code=_FAILED, message="The app's endpoint offers no batches any more."))
            return
        provider = self._provider(endpoint)
        if not batch.upstream:
            begun = await self._begun(batch, lines, take, endpoint=endpoint, change=change, stopped=stopped)
            if begun is None:
                return
            batch, lines = begun
        ended = await self._followed(batch, provider, stopped)
        await self._finished(batch, lines, take, provider=provider, ended=ended, stopped=stopped)
        for id in (ended.input_file_id, ended.output_file_id, ended.error_file_id):  # noqa: A001  the field's word
            if id:
                await self._tidy(provider, id)

    async def close(self) -> None:
        """Let go of connections."""
        while self._providers:
            await self._providers.popitem()[1].close()

    # -- which endpoint -----------------------------------------------------------------------------

    def _endpoint(self, batch: Batch, lines: Sequence[Line]) -> Endpoint | None:
        """The one endpoint that answers every line, where it has a batch API."""
        snapshot = self._snapshot()
        try:
            models = {msgspec.json.decode(line.body, type=_Model).model for line in lines}
        except msgspec.DecodeError:
            return None
        if snapshot is None or len(models) != 1:
            return None
        name = models.pop()
        if batch.endpoint == "/v1/embeddings":
            route: tuple[Endpoint, ...] = (snapshot.embedders[name],) if name in snapshot.embedders else ()
        else:
            app = snapshot.apps.get(name)
            live = [r for n, r in app.releases.items() if app.weights.get(n, 0) > 0] if app else []
            route = live[0].route if len(live) == 1 and not live[0].memory else ()
        return route[0] if len(route) == 1 and _offers(route[0]) else None

    def _provider(self, endpoint: Endpoint) -> Provider:
        key = msgspec.msgpack.encode(endpoint)
        if key not in self._providers:
            self._providers[key] = make_provider(endpoint, self._home)
        return self._providers[key]

    # -- the steps ----------------------------------------------------------------------------------

    async def _begun(
        self,
        batch: Batch,
        lines: Sequence[Line],
        take: Take,
        *,
        endpoint: Endpoint,
        change: Change,
        stopped: Callable[[], bool],
    ) -> tuple[Batch, Sequence[Line]] | None:
        """Our batch with the id of the endpoint's, and the lines in it; None where there is none to follow.

        That one is about to be made is written down first: a predecessor that was killed between the two may have made
        one, which costs money and is followed, or cancelled, all the same.
        """
        provider = self._provider(endpoint)
        refused: set[int] = set()

        def refuse(result: LineResult) -> None:
            refused.add(result.line)
            take(result)

        bodies = await self._prepared(batch, lines, refuse, endpoint=endpoint, stopped=stopped)
        lines = [line for line in lines if line.number not in refused]
        found = await self._known(batch, provider) if batch.upstream_endpoint else ""
        if not found:
            if not bodies or stopped():
                return None
            batch = await change(lambda b: replace(b, upstream_endpoint=endpoint.name))
            try:
                found = await self._created(batch, bodies, provider)
            except UpstreamError as e:
                if e.upstream_status not in _FOR_GOOD:
                    raise
                for line in lines:
                    take(LineResult(line.number, code=_FAILED, message=f"The endpoint refuses the batch: {e.text[:400]}"))
                return None
        return await change(lambda b: replace(b, upstream=found, upstream_endpoint=endpoint.name)), lines

    async def _prepared(
        self, batch: Batch, lines: Sequence[Line], take: Take, *, endpoint: Endpoint, stopped: Callable[[], bool]
    ) -> dict[int, bytes]:
        """What the endpoint is to be sent, by line; a line that is refused on the way there ends here.

        Raises `Unavailable` where a line was prepared for another endpoint, one that the configuration has named meanwhile:
        who may see it was asked of that one.
        """
        found: dict[int, bytes] = {}
        elsewhere = False
        places = asyncio.Semaphore(AT_ONCE)

        async def one(line: Line) -> None:
            nonlocal elsewhere
            async with places:
                reply = await self._asked(batch, line, "prepare", None, stopped=stopped)
                if reply is None:
                    return
                prepared = _prepared(reply)
                if prepared is None:
                    take(reply.result)
                elif prepared.bounded:  # a budget came to be meanwhile
                    if (whole := await self._asked(batch, line, "run", None, stopped=stopped)) is not None:
                        take(whole.result)
                else:
                    elsewhere |= prepared.place != place(endpoint)
                    found[line.number] = bytes(prepared.body)

        async with asyncio.TaskGroup() as group:
            for line in lines:
                group.create_task(one(line))
        if elsewhere:
            raise Unavailable("The app's endpoint was changed while the batch was prepared.", code="endpoint_changed")
        return found

    async def _asked(
        self, batch: Batch, line: Line, mode: Any, body: bytes | None, *, stopped: Callable[[], bool]
    ) -> Reply | None:
        """As `Calls.ask`, until there is an answer that stands; None where the batch has ended meanwhile."""
        while not stopped():
            reply = await self._calls.ask(batch, line, mode=mode, body=body)
            if reply.result.status not in (429, 503) or reply.final:
                return reply
            await asyncio.sleep(min(reply.retry_after or 1.0, 30.0))
        return None

    async def _known(self, batch: Batch, provider: Provider) -> str:
        """The id of the batch that a killed predecessor made; empty where it came to none."""
        page = msgspec.json.decode(await self._call(provider, "GET", "/batches?limit=100"), type=_Page)
        return next((old.id for old in page.data if (old.metadata or {}).get(MARK) == batch.id), "")

    async def _created(self, batch: Batch, bodies: dict[int, bytes], provider: Provider) -> str:
        """The id of a new batch at the endpoint."""
        ordered = sorted(bodies.items())
        content = await asyncio.to_thread(upstream_lines, ordered, batch.endpoint)
        kind, form = _form(f"{batch.id}.jsonl", content)
        uploaded = await self._call(provider, "POST", "/files", form, kind)
        asked: dict[str, Any] = {
            "input_file_id": msgspec.json.decode(uploaded, type=_Batch).id,
            "endpoint": batch.endpoint,
            "completion_window": "24h",
            "metadata": {MARK: batch.id},
        }
        try:
            made = await self._call(provider, "POST", "/batches", msgspec.json.encode(asked), "application/json")
        except UpstreamError as e:
            if e.upstream_status in _FOR_GOOD:
                await self._tidy(provider, asked["input_file_id"])
            raise
        return msgspec.json.decode(made, type=_Batch).id

    async def _followed(self, batch: Batch, provider: Provider, stopped: Callable[[], bool]) -> _Batch:
        """The endpoint's batch when it is over; cancelled where ours has been, or has run out of time."""
        told = False
        while True:
            state = msgspec.json.decode(await self._call(provider, "GET", f"/batches/{batch.upstream}"), type=_Batch)
            if state.status in OVER:
                return state
            if stopped() and not told:
                told = True
                await self._call(provider, "POST", f"/batches/{batch.upstream}/cancel")
                continue
            for _ in range(max(1, round(self._poll / LOOK))):
                await asyncio.sleep(min(LOOK, self._poll))
                if stopped() and not told:
                    break

    async def _finished(
        self, batch: Batch, lines: Sequence[Line], take: Take, *, provider: Provider, ended: _Batch, stopped: Callable[[], bool]
    ) -> None:
        """Every line that the endpoint answered, through the second half of its journey, however its batch ended."""
        answers: dict[int, LineResult] = {}
        for name in (ended.output_file_id, ended.error_file_id):
            if name:
                content = await self._call(provider, "GET", f"/files/{name}/content")
                found = await asyncio.to_thread(lambda data: list(read_results(data)), content)
                answers |= {int(number): result for number, result in found if number.isdigit()}
        places = asyncio.Semaphore(AT_ONCE)

        async def one(line: Line, got: LineResult) -> None:
            async with places:
                envelope = msgspec.msgpack.encode(Envelope(bytes(line.body), got.status, got.body))
                reply = await self._asked(batch, line, "finish", envelope, stopped=lambda: False)
                if reply is not None:
                    take(reply.result)

        async with asyncio.TaskGroup() as group:
            for line in lines:
                got = answers.get(line.number)
                if got is not None and got.status:
                    group.create_task(one(line, got))
                elif got is not None and not got.code.startswith("batch_"):
                    take(LineResult(line.number, code=got.code, message=got.message))
                elif ended.status in ("completed", "failed") or (ended.status == "cancelled" and not stopped()):
                    why = msgspec.json.encode(ended.errors).decode()[:500] if ended.errors else "it gave no result"
                    take(LineResult(line.number, code=_FAILED, message=f"The endpoint's batch ended as {ended.status}: {why}"))

    async def _tidy(self, provider: Provider, file: str) -> None:
        try:
            await self._call(provider, "DELETE", f"/files/{file}", tries=1)
        except NoriaError as e:
            log.info("a file of a batch stays at its endpoint: %s", e.text)

    async def _call(
        self, provider: Provider, method: str, path: str, body: bytes = b"", kind: str = "", *, tries: int = TRIES
    ) -> bytes:
        """One call to the endpoint. Raises `UpstreamError` where it refuses, or fails `tries` times."""
        headers = (("content-type", kind),) if kind else ()
        for attempt in range(1, tries + 1):
            try:
                status, _, answer = await provider.raw(RawCall(method, path, headers, body))
                if status < 400:
                    return answer
                said = answer[:300].decode("utf-8", "replace")
                error = UpstreamError(
                    f"{method} {path} answered {status}: {said}", code="upstream_error", upstream_status=status
                )
                if status < 500 and status != 429:
                    raise error
            except UpstreamError as e:
                if e.callers_fault or attempt == tries:
                    raise
                error = e
            if attempt == tries or (method == "POST" and path == "/batches"):  # it may have been made all the same
                raise error
            await asyncio.sleep(min(0.5 * 2**attempt, 10.0))
        raise AssertionError("unreachable")


def _offers(endpoint: Endpoint) -> bool:
    if endpoint.provider != "openai_compatible" or endpoint.options.get("api_version"):
        return False
    return bool(endpoint.options.get("batch", endpoint.vendor == "openai"))


def _prepared(reply: Reply) -> Prepared | None:
    if reply.result.status != 200:
        return None
    try:
        return msgspec.json.decode(reply.result.body, type=Prepared)
    except msgspec.DecodeError:
        return None


def _form(filename: str, content: bytes) -> tuple[str, bytes]:
    """multipart/form-data with the purpose and the file: content type and body."""
    mark = secrets.token_hex(16)
    head = (
        f'--{mark}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{mark}\r\ncontent-disposition: form-data; name="file"; filename="{filename}"\r\n'
        "content-type: application/jsonl\r\n\r\n"
    )
    return f"multipart/form-data; boundary={mark}", head.encode() + content + f"\r\n--{mark}--\r\n".encode()
