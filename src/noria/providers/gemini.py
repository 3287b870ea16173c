"""Google's Gemini API itself (REST, `v1beta`): chat requests are translated there and back, streams as they flow.

A request that came in this dialect, and that nothing has to read or change, goes as it is; the model stands in the path.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, cast
from urllib.parse import quote

import msgspec

from noria.contracts.error import RequestError, UpstreamError
from noria.contracts.exchange import Dialect, Hear, ModelCall, ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.stage import Options, Provider, Relay, Sink
from noria.dialects.gemini import read_error, read_generate, write_generate_request
from noria.dialects.gemini_native import NativeTap, read_native
from noria.dialects.gemini_stream import GenerateStream
from noria.dialects.openai_answer import read_answer
from noria.dialects.upstream import Gate, Headers, garbled, kept_headers, refusal, transport_failure
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.http_endpoint import check_key, client_for

URL = "https://generativelanguage.googleapis.com"


class Gemini(Provider):
    """One model of Google's, or of an endpoint that speaks its dialect (`url` without `/v1beta`)."""

    id = "gemini"
    speaks: frozenset[Dialect] = frozenset({"openai", "gemini"})
    understands: ClassVar[frozenset[str]] = frozenset({"top_k", "thinking"})

    class Config(Options, frozen=True, forbid_unknown_fields=True):
        """Options of an endpoint. `version` is the API's, in the path; `headers` are added to each request."""

        version: str = "v1beta"
        headers: dict[str, str] = {}
        max_connections: int = 256

    def __init__(self, endpoint: Endpoint, secret: str, config: Options, *, relay: Relay | None = None) -> None:
        own = cast("Gemini.Config", config)
        self._who = f"The endpoint {endpoint.name!r}"
        self._model = endpoint.model
        self._path = f"/{own.version}/models/{quote(endpoint.model, safe='')}"
        self._headers = _headers(endpoint, secret, own.headers)
        self._client = None if relay is not None else client_for(endpoint, endpoint.url or URL, own.max_connections)
        self._relay: Relay = relay or cast("HttpClient", self._client)

    async def send(self, call: ModelCall, sink: Sink) -> ModelReply:
        """As `Provider.send`; chat only."""
        if call.kind != "chat":
            raise RequestError(f"{self._who} offers no {call.kind}s.", code="unsupported_feature", param="model")
        body, lost = self._body(call)
        headers = [*self._headers, ("traceparent", call.traceparent)] if call.traceparent else self._headers
        if call.stream:
            reply = await self._stream(headers, body, sink, native=call.dialect == "gemini", hear=call.hear)
        else:
            reply = await self._whole(headers, body, native=call.dialect == "gemini")
        return msgspec.structs.replace(reply, warnings=lost) if lost else reply

    async def count_request(self, call: ModelCall) -> int:
        """As `Provider.count_request`: by the endpoint's own count."""
        request = msgspec.json.decode(self._body(call)[0], type=dict[str, msgspec.Raw])
        kept = {
            name: value for name, value in request.items() if name in ("contents", "systemInstruction", "tools", "toolConfig")
        }
        whole = {"generateContentRequest": {"model": f"models/{self._model}", **kept}}
        try:
            got = await self._relay.send("POST", f"{self._path}:countTokens", self._headers, msgspec.json.encode(whole))
        except HttpCallError as e:
            raise transport_failure(e, who=self._who) from e
        if got[0] >= 400:
            raise self._refusal(*got)
        try:
            return int(msgspec.json.decode(got[2], type=dict[str, Any])["totalTokens"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            raise garbled("counted no tokens", who=self._who, status=got[0], body=got[2]) from None

    async def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            await self._client.close()

    def _body(self, call: ModelCall) -> tuple[bytes, tuple[str, ...]]:
        if call.dialect == "gemini":
            return msgspec.json.encode(call.body), ()
        return write_generate_request(call.body, self._model)

    async def _whole(self, headers: Headers, body: bytes, *, native: bool) -> ModelReply:
        try:
            status, got, answer = await self._relay.send("POST", f"{self._path}:generateContent", headers, body)
        except HttpCallError as e:
            raise transport_failure(e, who=self._who) from e
        if status >= 400:
            raise self._refusal(status, got, answer, native=native)
        try:
            if native:
                facts = read_native(answer)
                return ModelReply(status, answer, kept_headers(got), facts.id, facts)
            translated = read_generate(answer, int(time.time()))
        except ValueError as e:
            raise garbled(f"answered {status} with what is no answer: {e}", who=self._who, status=status, body=answer) from None
        facts = read_answer("chat", translated)
        return ModelReply(status, translated, kept_headers(got), facts.id, facts)

    async def _stream(self, headers: Headers, body: bytes, sink: Sink, *, native: bool, hear: Hear) -> ModelReply:
        tap = NativeTap(self._who) if native else GenerateStream(int(time.time()), who=self._who, hear=hear)
        gate = Gate(tap, sink, who=self._who)
        path = f"{self._path}:streamGenerateContent?alt=sse"
        try:
            status, got, answer = await self._relay.send("POST", path, headers, body, on_head=gate.head)
        except HttpCallError as e:
            raise gate.failure or transport_failure(e, who=self._who, started=gate.started) from e
        if status >= 400:
            raise self._refusal(status, got, answer, native=native)
        gate.close(status, got, answer, now=time.time())
        return ModelReply(status, b"", kept_headers(got), tap.id)

    def _refusal(self, status: int, headers: Headers, body: bytes, *, native: bool = False) -> UpstreamError:
        return refusal(status, headers, body if native else read_error(body), now=time.time(), who=self._who)


def _headers(endpoint: Endpoint, secret: str, own: dict[str, str]) -> Headers:
    check_key(endpoint, secret, "GEMINI_API_KEY")
    headers = [("content-type", "application/json"), ("user-agent", "noria")]
    if secret:
        headers.append(("x-goog-api-key", secret))
    return headers + [(name.lower(), value) for name, value in own.items()]
