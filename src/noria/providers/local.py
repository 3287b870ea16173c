"""Models that run on this machine: the model servers that `noria up` supervises (`noria.app.model_server`).

A server is found by its status file `<home>/run/models/<model>.json` (`kit.service`), which is looked at at
most every 100 ms: after a crash or a replacement the next call goes to the new process.

llama.cpp's server speaks OpenAI's form, with gaps that are closed here: usage of several choices (it counts
one), error codes as numbers, tools that a model's template cannot express (it drops them in silence).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from noria.contracts.error import NoriaError, RequestError, Unavailable, UpstreamError
from noria.contracts.exchange import ModelCall, ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.stage import Options, Provider, Sink
from noria.dialects.openai import asking_for_usage, write_request
from noria.dialects.openai_choices import Single, StreamMerger, merge, split
from noria.dialects.openai_error import error_body
from noria.dialects.upstream import Gate, Headers, OpenAITap, garbled, kept_headers, message_of, refusal, transport_failure
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.service import Service, Watch

PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "embedding": "/v1/embeddings"}
POOL_IS_FULL = "Context size has been exceeded"
"""What llama.cpp says when the prompts in flight have outgrown its KV pool; it drops all of them (26-10)."""
_CODE_IS_A_NUMBER = re.compile(rb'"code"\s*:\s*\d')
RETRY = 1.0
"""Seconds after which a loading or restarting model is worth another try."""


class LocalOptions(Options, frozen=True):
    """`home` is NORIA_HOME, filled in by the wiring."""

    home: str = ".noria"
    adapter: str = ""
    """A LoRA adapter upon the model: the id of an artifact (`noria release artifacts`)."""
    scale: float = 1.0
    """How strongly it acts; 0 = not at all."""


class Local(Provider):
    """One local model. Calls in flight end with the server that they began with."""

    Config = LocalOptions

    def __init__(self, endpoint: Endpoint, secret: str, config: LocalOptions) -> None:
        del secret  # the server's own key is in its status file
        self._endpoint = endpoint
        self._adapter, self._scale = config.adapter, config.scale
        self._who = f"The local model {endpoint.model!r}"
        self._watch = Watch(Path(config.home) / "run" / "models" / f"{endpoint.model}.json")
        self._server: Service | None = None
        self._client: HttpClient | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> NoriaError | None:
        """None, or why not: still loading, failed with its reason, or not running at all."""
        now = self._watch.read()
        if now is not None and now.state == "ready":
            return None if not self._adapter or self._adapter in now.facts.get("adapters", {}) else self._unadapted(now)
        if now is None:
            hint = f"Is it installed (noria models add {self._endpoint.model}), and is noria up running?"
            return Unavailable(f"{self._who} is not running.", code="model_not_running", retry_after=RETRY, hint=hint)
        if now.state == "failed":
            return Unavailable(f"{self._who} could not be loaded: {now.detail}", code="model_failed", retry_after=10.0)
        seconds = max(0, time.time_ns() - now.since_ns) // 1_000_000_000
        message = f"{self._who} is loading ({seconds} s so far); try again in {RETRY:.0f} s."
        return Unavailable(message, code="model_loading", retry_after=RETRY)

    def _unadapted(self, now: Service) -> Unavailable:
        """The model is there, its adapter is not: it was refused, or a server that has it is being started, or could not be."""
        if why := now.facts.get("refused", {}).get(self._adapter):
            message = f"{self._who} is served without the adapter {self._adapter[:15]}: {why}"
            return Unavailable(message, code="model_failed", retry_after=10.0)
        message = f"{self._who} is being loaded with the adapter {self._adapter[:15]}; try again in {RETRY:.0f} s."
        return Unavailable(message, code="adapter_loading", retry_after=RETRY, hint="`noria doctor` says what keeps it.")

    async def send(self, call: ModelCall, sink: Sink) -> ModelReply:
        """As `Provider.send`. Raises `RequestError` for tools that the model cannot take, `Unavailable` as `ready`."""
        server, client = self._connect()
        self._refuse_tools(call, server)
        singles = split(call.kind, self._with_adapter(call.body, server))
        one = _Calls(client, server.secret, self._who, call)
        try:
            if len(singles) > 1:
                return await (_stream_many if call.stream else _ask_many)(one, singles, sink)
            return await (one.stream(singles[0].body, sink) if call.stream else one.ask(singles[0].body))
        except UpstreamError as e:
            if e.code in ("upstream_refused", "upstream_cut"):
                self._watch.forget()
            raise _in_openai_words(e, self._who) from e

    async def count(self, text: str) -> int:
        """By the server's own tokenizer."""
        server, client = self._connect()
        try:
            body = msgspec.json.encode({"content": text})
            status, headers, data = await client.send("POST", "/tokenize", _headers(server.secret), body)
        except HttpCallError as e:
            raise transport_failure(e, who=self._who) from e
        if status != 200:
            raise refusal(status, headers, data, now=time.time(), who=self._who)
        said: dict[str, Any] = msgspec.json.decode(data)
        return int(said["count"]) if "count" in said else len(said["tokens"])

    async def count_request(self, call: ModelCall) -> int:
        """As `Provider.count_request`: the prompt that the model's chat template makes, by its tokenizer.

        Raises `NotImplementedError` where the template cannot take the request.
        """
        server, client = self._connect()
        kept = {name: raw for name, raw in call.body.items() if name in ("messages", "tools", "tool_choice")}
        try:
            status, _, made = await client.send("POST", "/apply-template", _headers(server.secret), write_request(kept))
            if status != 200:
                raise NotImplementedError(f"{self._who} has no template for this request")
            prompt = msgspec.json.decode(made, type=dict[str, Any])["prompt"]
            body = msgspec.json.encode({"content": prompt, "add_special": True, "parse_special": True})
            status, headers, data = await client.send("POST", "/tokenize", _headers(server.secret), body)
        except HttpCallError as e:
            raise transport_failure(e, who=self._who) from e
        if status != 200:
            raise refusal(status, headers, data, now=time.time(), who=self._who)
        said: dict[str, Any] = msgspec.json.decode(data)
        return int(said["count"]) if "count" in said else len(said["tokens"])

    async def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            await self._client.close()
        await asyncio.gather(*self._closing)

    def _with_adapter(self, body: dict[str, msgspec.Raw], server: Service) -> dict[str, msgspec.Raw]:
        """The request with the adapter that answers it: the release's, never the caller's choice.

        Each adapter that is loaded is named: for llama.cpp an empty list means those of its start (26-10).
        """
        here = server.facts.get("adapters", {})
        if not here:
            return {k: v for k, v in body.items() if k != "lora"} if "lora" in body else body
        chosen = [{"id": n, "scale": self._scale if name == self._adapter else 0.0} for name, n in here.items()]
        return {**body, "lora": msgspec.Raw(msgspec.json.encode(chosen))}

    def _connect(self) -> tuple[Service, HttpClient]:
        """The server as it is now and a client for it; a new one when the server is another than before."""
        unready = self.ready
        now = self._watch.read()
        if unready is not None or now is None:
            raise unready or Unavailable(f"{self._who} is not running.", code="model_not_running", retry_after=RETRY)
        if self._client is None or self._server is not now:
            if self._client is not None:
                self._retire(self._client)
            self._server, self._client = now, self._open(now)
        return now, self._client

    def _open(self, server: Service) -> HttpClient:
        t = self._endpoint.timeouts
        return HttpClient(
            f"http://127.0.0.1:{server.port}" if server.port else "http://localhost",
            connect_timeout=t.connect,
            first_timeout=t.first,
            idle_timeout=t.idle,
            total_timeout=t.total,
            uds=server.uds or None,
        )

    def _retire(self, client: HttpClient) -> None:
        task = asyncio.ensure_future(client.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _refuse_tools(self, call: ModelCall, server: Service) -> None:
        """llama.cpp leaves tools out without a word where the chat template has no place for them."""
        if call.kind != "chat" or "tools" not in call.body or server.facts.get("tools"):
            return
        if msgspec.json.decode(call.body["tools"]) and call.body.get("tool_choice") != msgspec.Raw(b'"none"'):
            raise RequestError(
                f"{self._who} cannot call tools: its chat template has no place for them.",
                code="unsupported_parameter",
                param="tools",
                hint="Leave tools out, or choose a model with tool use.",
            )


class _Calls:
    """Single calls to one server, on behalf of one exchange."""

    def __init__(self, client: HttpClient, secret: str, who: str, call: ModelCall) -> None:
        self._client = client
        self._headers = _headers(secret, call.traceparent)
        self._path = PATHS[call.kind]
        self._who = who

    async def ask(self, body: dict[str, msgspec.Raw]) -> ModelReply:
        """A whole answer."""
        try:
            status, headers, data = await self._client.send("POST", self._path, self._headers, write_request(body))
        except HttpCallError as e:
            raise transport_failure(e, who=self._who) from e
        if status != 200:
            raise refusal(status, headers, data, now=time.time(), who=self._who)
        return ModelReply(status, data, kept_headers(headers), _id_of(data))

    async def stream(self, body: dict[str, msgspec.Raw], sink: Sink) -> ModelReply:
        """A streamed answer, relayed into `sink`."""
        tap = OpenAITap(self._who)
        gate = Gate(tap, sink, who=self._who)
        request = write_request(asking_for_usage(body))
        try:
            got = await self._client.send("POST", self._path, self._headers, request, on_head=gate.head)
        except HttpCallError as e:
            raise transport_failure(e, who=self._who, started=gate.started) from e
        gate.close(*got, now=time.time())
        return ModelReply(got[0], b"", kept_headers(got[1]), tap.id)


async def _ask_many(calls: _Calls, singles: list[Single], sink: Sink) -> ModelReply:
    del sink
    replies = await _all([calls.ask(s.body) for s in singles])
    try:
        body = merge(singles, [r.body for r in replies])
    except ValueError as e:
        raise garbled(f"sent an answer that cannot be read: {e}", who="The local model") from e
    return ModelReply(200, body, replies[0].headers, replies[0].upstream_id)


async def _stream_many(calls: _Calls, singles: list[Single], sink: Sink) -> ModelReply:
    merger = StreamMerger(singles, sink)
    try:
        replies = await _all([calls.stream(s.body, merger.sink(n)) for n, s in enumerate(singles)])
    except UpstreamError as e:
        e.started = e.started or merger.started  # by a sibling
        raise
    merger.end()
    return replies[0]


async def _all(work: list[Coroutine[Any, Any, ModelReply]]) -> list[ModelReply]:
    """All results; the first failure, or being cancelled, cancels the others."""
    tasks = [asyncio.ensure_future(w) for w in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _headers(secret: str, traceparent: str = "") -> Headers:
    headers = [("authorization", f"Bearer {secret}"), ("content-type", "application/json")]
    return [*headers, ("traceparent", traceparent)] if traceparent else headers


class _Named(msgspec.Struct):
    id: str = ""


def _id_of(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Named).id
    except msgspec.DecodeError:
        return ""


def _in_openai_words(error: UpstreamError, who: str) -> UpstreamError:
    """llama.cpp's refusals with the codes that clients of OpenAI act on; other errors as they are."""
    said = message_of(error.body)
    if POOL_IS_FULL in said:
        busy = f"{who} has longer prompts in flight than its memory holds; try again in {RETRY:.0f} s."
        return UpstreamError(busy, code="upstream_overloaded", upstream_status=503, retry_after=RETRY, started=error.started)
    if error.upstream_status == 500 and "input is not supported" in said:
        return _refused(f"{who} takes text only.", "messages", "unsupported_content")
    if error.callers_fault and _CODE_IS_A_NUMBER.search(error.body):
        long = b"exceed_context_size_error" in error.body
        return _refused(
            said or error.message, "messages" if long else None, "context_length_exceeded" if long else "invalid_value"
        )
    return error


def _refused(message: str, param: str | None, code: str) -> UpstreamError:
    body = error_body(message, "invalid_request_error", param, code)
    return UpstreamError(message, code="upstream_error", upstream_status=400, body=body)
