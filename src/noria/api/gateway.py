"""The data plane's HTTP surface: `/v1/*`, health, metrics; everything else is the keeper's, and is relayed."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any
from urllib.parse import unquote

from msgspec.structs import replace

from noria.api import beside, protocols, stored
from noria.api.drain import drain
from noria.api.origin import admitted
from noria.api.owner import OWNER, UPLOAD
from noria.app.house import SHORT_HASH, WiredHouse
from noria.app.worker import Worker
from noria.contracts.batch import Ticket
from noria.contracts.error import NoriaError, NotFound, RequestError, Unavailable
from noria.contracts.evaluation import TAGS as EVALUATION
from noria.contracts.exchange import Exchange, Kind, Priority
from noria.contracts.stage import Ingress, Outlet
from noria.dialects.gemini_ingress import Generate
from noria.dialects.openai import read_head, read_request
from noria.dialects.openai_answer import write_model, write_models
from noria.dialects.openai_error import error_answer, error_body
from noria.dialects.responses_ingress import ResponsesIngress
from noria.gateway.admit import PINNED
from noria.gateway.ticket import HEADER
from noria.govern.access import cookie
from noria.journeys.prompt import House, answer, refuse
from noria.kit import labels
from noria.kit.http_client import Flow, HttpCallError
from noria.kit.http_head import CODING, FRAMING
from noria.kit.http_request import Limits, Refusal, Request, Spill
from noria.kit.http_response import Response
from noria.kit.ids import parse_traceparent, uuid7
from noria.kit.upload import Upload, Uploads
from noria.observe.metrics import CONTENT_TYPE

log = logging.getLogger("noria.gateway")

KINDS: dict[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/embeddings": "embedding",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
}
INGRESS: dict[str, Ingress] = {"/v1/responses": ResponsesIngress(), **protocols.PATHS}
"""Paths that speak another protocol than OpenAI's chat; their exchanges are of kind `chat`."""
NOT_RELAYED = FRAMING | {"te", "trailer", "upgrade", "proxy-connection", "expect", "x-noria-relayed", OWNER, UPLOAD, HEADER}
PROBES = frozenset({"/livez", "/readyz"})
"""Asked by orchestrators under whatever address the machine has; they tell nothing but a word."""
PRIORITIES: dict[str, Priority] = {p: p for p in ("high", "normal", "low")}
JSON = ("content-type", "application/json")
TAGS = "x-noria-tags"
RESERVED = frozenset({*EVALUATION, PINNED[0]})
"""Tags by which traffic is left out of statistics: nobody puts them on by himself."""
LONGEST_NAME = 512
"""Characters of a conversation's name."""
AWAY = "The console and the management API are away for a moment; answers go on."
INTERNAL = error_body("Noria made a mistake with this request.", "server_error", None, "internal_error")


class HttpOutlet:
    """`contracts.stage.Outlet` over one HTTP response."""

    __slots__ = ("_head", "_parts", "_response", "_stream", "_unread")

    def __init__(self, response: Response) -> None:
        self._response = response
        self._stream = False
        self._head: tuple[int, list[tuple[str, str]]] = (500, [])
        self._parts: list[bytes] = []
        self._unread = -1
        response.on_pause = self._paused
        response.on_resume = self._resumed

    @property
    def backlog(self) -> int:
        """Bytes written since the caller stopped reading; 0 while it reads."""
        return max(0, self._unread)

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        """See `contracts.stage.Outlet`."""
        self._stream = stream
        if stream:
            self._response.start(status, headers, length=None)
        else:
            self._parts = []
            self._head = (status, headers)

    def data(self, data: bytes) -> None:
        """See `contracts.stage.Outlet`."""
        if not self._stream:
            self._parts.append(data)
            return
        if self._unread >= 0:
            self._unread += len(data)
        self._response.write(data)

    def end(self) -> None:
        """See `contracts.stage.Outlet`."""
        if self._stream:
            self._response.end()
        else:
            self._response.promise(*self._head, b"".join(self._parts))

    def _paused(self) -> None:
        self._unread = 0

    def _resumed(self) -> None:
        self._unread = -1


class Nowhere:
    """An outlet for exchanges whose answer the HTTP layer writes itself."""

    backlog = 0

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:
        """Nothing."""

    def data(self, data: bytes) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Gateway:
    """Turns requests into exchanges. `handle` is the HTTP server's handler; it never raises and never waits."""

    def __init__(self, worker: Worker, bound_hosts: tuple[str, ...] = ()) -> None:
        self.worker = worker
        self._hosts = bound_hosts
        self._tasks: set[asyncio.Task[None]] = set()
        self._endless: set[asyncio.Future[Any]] = set()
        self._uploads = Uploads(worker.home)

    def leave(self) -> None:
        """End the live streams that are relayed from the keeper: a drain would wait for them in vain."""
        for sending in self._endless:
            sending.cancel()

    def handle(self, request: Request) -> None:
        """One request, complete."""
        try:
            self._route(request)
        except NoriaError as e:
            if request.spill is not None:
                request.spill.close()
            _refuse(request, e)

    def divert(self, request: Request) -> Spill | Refusal | None:
        """Files that callers store pass through the disk, once it is known that the caller may store any."""
        house = self.worker.house
        if request.path != beside.FILES or request.method != "POST" or house is None or not self._admitted(request):
            return None
        try:
            beside.owner(self._bare(request, "passthrough"), house)
        except NoriaError as e:
            return Refusal(e.status, e.code or "unauthorized", e.text)
        most = house.snapshot.file_limit
        larger = f"A file has at most {most:,} bytes, its form included. Raise `files.max_size` in noria.yaml."
        return self._uploads.begin(most, larger)

    def _admitted(self, request: Request) -> bool:
        house = self.worker.house
        return admitted(request.headers, (*self._hosts, *(house.snapshot.hosts if house else ())))

    def _route(self, request: Request) -> None:
        path = request.path
        if path not in PROBES and not self._admitted(request):
            raise RequestError(
                "This Host or Origin is not served here.", code="foreign_host", status=403,
                hint="Add the name to `serve.hosts` in noria.yaml.",
            )  # fmt: skip
        kind = KINDS.get(path)
        if kind is not None:
            if request.method != "POST":
                _wrong_method(request, "POST")
                return
            if HEADER in request.headers and (ticket := self.worker.ticket(request.headers[HEADER])):
                self._start_line(request, ticket, self._answer(request, kind, INGRESS.get(path), ticket))
                return
            self._start(request, self._answer(request, kind, INGRESS.get(path)))
        elif path.startswith(stored.PREFIX) and (allowed := stored.methods(path)):
            if request.method not in allowed.split(", "):
                _wrong_method(request, allowed)
                return
            self._start(request, self._stored(request))
        elif path == protocols.COUNT or path.startswith(protocols.GEMINI):
            self._other(request)
        elif path.startswith("/v1"):
            self._beside(request)
        elif path in HEALTH:
            HEALTH[path](self, request.response)
        elif path == "/drainz":
            request.response.send(200, [JSON], drain(self.worker, request, credential(request.headers)))
        else:
            self._start(request, self._relay(request))

    def _start(self, request: Request, what: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._guarded(request, what))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        request.response.on_close = lambda: _cancel(task)
        return task

    def _start_line(self, request: Request, ticket: Ticket, what: object) -> None:
        """A line of a batch is finished even where the keeper dies meanwhile: its answer is kept here (`app.lane`)."""
        name = f"{ticket.batch}/{ticket.line}"
        self.worker.lines.add(name)
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._guarded(request, what))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: self.worker.lines.discard(name))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a request failed by a mistake of ours", exc_info=task.exception())

    async def _guarded(self, request: Request, what: object) -> None:
        response = request.response
        try:
            await what  # type: ignore[misc]  # one of this class's coroutines
        except NoriaError as e:
            _refuse(request, e)
        except asyncio.CancelledError:
            return
        finally:
            if response.promised:
                pass
            elif not response.started and not response.closed:
                log.error("a request ended without an answer")
                response.send(500, [JSON, ("x-request-id", uuid7())], INTERNAL)
            elif not response.ended:
                response.abort()

    def limits(self) -> Limits:
        """Bounds of the HTTP server; the body limit of the configuration, where one is known already."""
        house = self.worker.house
        return Limits(max_body=house.snapshot.body_limit) if house else Limits()

    def refused(self, status: int, code: str, message: str) -> tuple[list[tuple[str, str]], bytes]:
        """Headers and body for a request that the HTTP layer refuses; one that was too large is recorded like any other."""
        error = RequestError(message, code=code, status=status)
        x = self._exchange("chat", {}, "")
        if code == "body_too_large" and self.worker.house is not None:
            refuse(x, self.worker.house, Nowhere(), error)
        return [("x-request-id", x.id)], error_answer(error)[2]

    # -- /v1 ----------------------------------------------------------------------------------------

    async def _answer(self, request: Request, kind: Kind, ingress: Ingress | None, ticket: Ticket | None = None) -> None:
        house = self.worker.house
        if house is None:
            raise Unavailable("Noria is starting.", code="starting")
        x = self._bare(request, kind)
        out: Outlet = HttpOutlet(request.response)
        story: House = house
        body = request.body
        if ticket is not None:
            x, story, out, body = beside.lined(x, request, ticket, self.worker, house=house, out=out)
        if ingress is not None:
            x = protocols.along(replace(x, dialect=ingress.dialect), request.headers)
        try:
            x = self._read(tagged(x, request.headers), body, ingress)
        except RequestError as e:
            refuse(x, story, ingress.outlet(x, out) if ingress is not None else out, e)
            return
        await answer(x, story, ingress.outlet(x, out) if ingress is not None else out)

    def _bare(self, request: Request, kind: Kind) -> Exchange:
        """What is known of an exchange before its body is read."""
        x = self._exchange(kind, request.headers, request.peer, request.path)
        return x if x.authorization else replace(x, authorization=protocols.google_key(request.headers, request))

    def _exchange(self, kind: Kind, headers: dict[str, str], peer: str, path: str = "") -> Exchange:
        now = time.time_ns()
        outer = parse_traceparent(headers["traceparent"]) if "traceparent" in headers else None
        name = uuid7(now)
        return Exchange(
            id=name,
            trace=outer[0] if outer else name.replace("-", ""),  # a UUIDv7 is what our trace ids are: milliseconds, then chance
            span=name[19:23] + name[24:],
            parent_span=outer[1] if outer else "",
            tenant="local",
            kind=kind,
            model="",
            stream=False,
            body={},
            started_ns=now,
            authorization=credential(headers),
            peer_is_loopback=peer in ("", "::1") or peer.startswith(("127.", "::ffff:127.")),
            tail_wanted=headers.get("x-noria-tail") == "1",
            priority=PRIORITIES.get(headers.get("x-noria-priority", ""), "normal"),
            cache_control=headers.get("cache-control", ""),
            path=path,
            pin=headers.get("x-noria-release", ""),
        )

    def _read(self, x: Exchange, body: bytes, ingress: Ingress | None = None) -> Exchange:
        fields = read_request(body)
        if ingress is not None:
            native = fields
            fields, warnings = ingress.read(native)
            x = replace(x, native=native, warnings=warnings)
        head = read_head(x.kind, fields)
        if len(head.conversation) > LONGEST_NAME or "\0" in head.conversation:
            raise RequestError(
                f"'conversation' must have at most {LONGEST_NAME} characters and no NUL.",
                code="invalid_value",
                param="conversation",
            )
        return replace(
            x,
            model=head.model,
            stream=head.stream and x.kind != "embedding",  # there is nothing to stream; the endpoints ignore it too
            body=fields,
            subject=self.worker.subject(head.user),
            conversation=head.conversation,
            variables=head.variables,
            usage_wanted=head.include_usage,
        )

    async def _stored(self, request: Request) -> None:
        """A stored Response of the caller's key."""
        house = self.worker.house
        if house is None:
            raise Unavailable("Noria is starting.", code="starting")
        x = self._bare(request, "chat")
        body = await stored.answer_stored(request, replace(x, key=house.admit.caller(x)), self.worker.link)
        request.response.send(200, [JSON, ("x-request-id", x.id)], body)

    def _beside(self, request: Request) -> None:
        """What is under `/v1` beside the journey of a prompt."""
        house, path = self.worker.house, request.path
        if house is None:
            raise Unavailable("Noria is starting.", code="starting")
        if path == "/v1/models" or path.startswith("/v1/models/"):
            self._listing(request)
            return
        allowed = beside.methods(path)
        if allowed and request.method not in allowed.split(", "):
            _wrong_method(request, allowed)
            return
        x, out = self._bare(request, "passthrough"), HttpOutlet(request.response)
        if not allowed:
            self._start(request, beside.through(tagged(x, request.headers), house, out, request))
        elif path == beside.FEEDBACK:
            self._start(request, beside.held(tagged(x, request.headers), house, partial(self._relay, request)))
        elif path != beside.MODERATIONS:
            self._kept(request, beside.owner(x, house))
        elif HEADER in request.headers and (ticket := self.worker.ticket(request.headers[HEADER])):
            x, _, kept, _ = beside.lined(x, request, ticket, self.worker, house=house, out=out)
            self._start_line(request, ticket, beside.moderated(x, house, kept, request.body))
        else:
            self._start(request, beside.moderated(tagged(x, request.headers), house, out, request.body))

    def _kept(self, request: Request, owner: tuple[str, str]) -> None:
        """Files and batches: the keeper's, who is told whose they are, and where the body lies that is no part of the call."""
        spill = request.spill
        if not isinstance(spill, Upload):
            self._start(request, self._relay(request, owner))
            return
        task = self._start(request, self._relay(request, owner, (UPLOAD, spill.name)))
        task.add_done_callback(lambda _: spill.close())

    def _other(self, request: Request) -> None:
        """Paths of other protocols beside `/v1/messages`."""
        if self.worker.house is None:
            raise Unavailable("Noria is starting.", code="starting")
        asked = protocols.generate(request)
        if asked is None and request.path != protocols.COUNT:
            self._listing(request, protocols.GEMINI)
        elif request.method != "POST":
            _wrong_method(request, "POST")
        elif asked is None or asked[0] == "countTokens":
            self._start(request, self._count(request, None if asked is None else asked[1]))
        else:
            self._start(request, self._answer(request, "chat", asked[1]))

    async def _count(self, request: Request, ingress: Generate | None) -> None:
        """How many tokens a request has, and whether the number is exact (`x-noria-count`)."""
        house = self.worker.house
        assert house is not None, "_other has looked"
        x = tagged(self._bare(request, "chat"), request.headers)
        body, (_, exact) = await protocols.counted(x, request, house, ingress, self.worker.subject)
        headers = [JSON, ("x-request-id", x.id), ("x-noria-count", "exact" if exact else "estimated")]
        request.response.send(200, [*headers, ("request-id", x.id)] if ingress is None else headers, body)

    def _listing(self, request: Request, prefix: str = "/v1/models") -> None:
        house = self.worker.house
        if house is None:
            raise Unavailable("Noria is starting.", code="starting")
        if request.method not in ("GET", "HEAD"):
            _wrong_method(request, "GET, HEAD")
            return
        names = self._visible(request, house)
        created = self.worker.started_s
        name = unquote(request.path.removeprefix(prefix).strip("/"))
        if name and name not in names:
            raise NotFound.nearest("model", name, names, code="model_not_found")
        if prefix == protocols.GEMINI:
            body = protocols.google_listed(names, name)
        elif protocols.anthropic(request):
            body = protocols.listed(names, name, created)
        elif not name:
            body = write_models([(n, created) for n in names])
        else:
            body = write_model(name, created)
        config = ("x-noria-config", house.snapshot.hash[:SHORT_HASH])
        request.response.send(200, [JSON, ("x-request-id", uuid7()), config], body)

    def _visible(self, request: Request, house: WiredHouse) -> list[str]:
        """The apps and embedders that the caller's key may use."""
        key = house.admit.caller(self._bare(request, "chat"))
        every = [*house.snapshot.apps, *house.snapshot.embedders]
        return [n for n in every if n in key.apps] if key is not None and key.apps else every

    # -- health -------------------------------------------------------------------------------------

    def live(self, response: Response) -> None:
        """The process serves."""
        response.send(200, [JSON], b'{"status":"ok"}')

    def ready(self, response: Response) -> None:
        """It has a configuration and at least one model to ask, and is not draining."""
        house = self.worker.house
        draining = self.worker.draining or self.worker.drain_asked
        why = "draining" if draining else "starting" if house is None else "" if house.ready else "models are loading"
        if why:
            response.send(503, [JSON, ("retry-after", "1")], b'{"status":"%b"}' % why.encode())
        else:
            response.send(200, [JSON], b'{"status":"ready"}')

    def metrics(self, response: Response) -> None:
        """Prometheus text."""
        response.send(200, [("content-type", CONTENT_TYPE)], self.worker.metrics.text())

    # -- the keeper's side --------------------------------------------------------------------------

    async def _relay(self, request: Request, *own: tuple[str, str]) -> None:
        """Pass a request to the keeper; 503 for it alone while the keeper is away."""
        response = request.response
        headers = [(k, v) for k, v in request.headers.items() if k not in NOT_RELAYED and k != CODING]
        headers += [("x-noria-relayed", "1"), (CODING, request.headers.get("accept-encoding", "")), *own]
        target = request.path + ("?" + request.query if request.query else "")
        length: list[int] = []

        def begin(status: int, upstream: list[tuple[str, str]]) -> object:
            length.extend(int(v) for k, v in upstream if k.lower() == "content-length")
            if any(k.lower() == "content-type" and v.startswith("text/event-stream") for k, v in upstream):
                self._endless.add(sending)
            kept = [("content-encoding" if k == CODING else k, v) for k, v in upstream if k.lower() not in NOT_RELAYED]
            response.start(status, kept, length=length[0] if length else None)
            return response.write

        link, valve = self.worker.link, Flow()
        response.on_pause, response.on_resume = valve.pause, valve.resume  # files may be long: their reader sets the pace
        sending = asyncio.ensure_future(
            link.client.send(request.method, target, headers, request.body, on_head=begin, flow=valve)  # type: ignore[arg-type]  # begin gives a sink
        )
        lost = asyncio.ensure_future(link.lost.wait())
        try:
            await asyncio.wait((sending, lost), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and not response.started:
                raise Unavailable(AWAY, code="keeper_away", retry_after=2.0)
            await asyncio.wait((sending,))
            if not sending.cancelled():  # else by `leave`
                sending.result()
        except HttpCallError as e:
            if response.started:
                response.abort()
                return
            raise Unavailable(AWAY, code="keeper_away", retry_after=2.0, hint=str(e)) from e
        finally:
            self._endless.discard(sending)
            sending.cancel()
            lost.cancel()
        response.end()


def _refuse(request: Request, error: NoriaError, *more: tuple[str, str]) -> None:
    """An error before there is an exchange, in the caller's protocol, with `more` headers."""
    name = uuid7()
    status, headers, body = protocols.refused(request, error, name)
    request.response.send(status, [JSON, ("x-request-id", name), *more, *headers], body)


def _wrong_method(request: Request, allowed: str) -> None:
    """405 with the `allow` that RFC 9110 §15.5.6 asks for."""
    wrong = f"{request.path} takes {allowed}, not {request.method}."
    _refuse(request, RequestError(wrong, code="method_not_allowed", status=405), ("allow", allowed))


def _cancel(task: asyncio.Task[None]) -> None:
    """The caller has left."""
    task.cancel()


HEALTH = {"/livez": Gateway.live, "/readyz": Gateway.ready, "/metrics": Gateway.metrics}


def tagged(x: Exchange, headers: dict[str, str]) -> Exchange:
    """`x` with the tags of `x-noria-tags: env=prod,feature=search`. Raises `RequestError` where they are out of bounds."""
    if TAGS not in headers:
        return x
    try:
        tags = labels.read(headers[TAGS])
        if not RESERVED.isdisjoint(tags):
            raise ValueError(f"{', '.join(sorted(RESERVED & tags.keys()))} is set by Noria alone")
        return replace(x, tags=tags)
    except ValueError as e:
        raise RequestError(f"The header {TAGS} is wrong: {e}.", code="invalid_tags", param=TAGS) from None


def credential(headers: dict[str, str]) -> str:
    """The caller's key from whichever header its client uses, else its console session."""
    bearer = headers.get("authorization", "")
    if bearer[:7].lower() == "bearer ":
        return bearer[7:].strip()
    given = headers.get("x-api-key") or headers.get("api-key") or ""
    if given:
        return given
    if "cookie" in headers and headers.get("sec-fetch-site", "same-origin") == "same-origin":
        return cookie(headers["cookie"])
    return ""
