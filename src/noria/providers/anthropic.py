"""Anthropic's native Messages API: chat requests are translated there and back, streams as they flow.

A request that came in this dialect, and that nothing has to read or change, goes as it is (`ModelCall.dialect`): only its
`model` is replaced, and its answer comes back with its own bytes.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, cast

import msgspec

from noria.contracts.error import RequestError, UpstreamError
from noria.contracts.exchange import Dialect, Hear, ModelCall, ModelReply
from noria.contracts.release import Endpoint
from noria.contracts.stage import Options, Provider, Relay, Sink
from noria.dialects.anthropic import read_error, read_message, write_messages_request
from noria.dialects.anthropic_native import NativeTap, allowed_betas, read_native
from noria.dialects.anthropic_stream import MessagesStream
from noria.dialects.openai_answer import read_answer
from noria.dialects.upstream import Gate, Headers, garbled, kept_headers, refusal, transport_failure
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.http_endpoint import check_key, client_for

URL = "https://api.anthropic.com"
PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
_NOT_COUNTED = frozenset(
    {"max_tokens", "stream", "temperature", "top_p", "top_k", "stop_sequences", "metadata", "service_tier"}
)
"""Fields that the counting endpoint does not take."""
_BETA = "anthropic-beta"


class Anthropic(Provider):
    """One model of Anthropic, or of an endpoint that speaks its dialect (`url` without `/v1`)."""

    id = "anthropic"
    behaviour = 2
    speaks: frozenset[Dialect] = frozenset({"openai", "anthropic"})
    understands: ClassVar[frozenset[str]] = frozenset({"top_k", "thinking"})

    class Config(Options, frozen=True, forbid_unknown_fields=True):
        """Options of an endpoint.

        `version` is `anthropic-version`: from 2026-10-21 on, `temperature` and `top_p` are refused by the
        endpoint. `max_tokens` stands in where the caller gives no limit, because the API requires one.
        """

        version: str = "2023-06-01"
        beta: tuple[str, ...] = ()
        """Beta features that are turned on in every request."""
        allow_beta: tuple[str, ...] = ()
        """Beginnings of further beta features that callers may turn on (`dialects.anthropic_native.BETAS` has the list)."""
        max_tokens: int = 4096
        system_turns: bool = False
        """For models from Opus 4.8 on: system messages keep their place in a conversation."""
        headers: dict[str, str] = {}
        max_connections: int = 256

    def __init__(self, endpoint: Endpoint, secret: str, config: Options, *, relay: Relay | None = None) -> None:
        self._own = cast("Anthropic.Config", config)
        self._who = f"The endpoint {endpoint.name!r}"
        self._model = endpoint.model
        self._headers = _headers(endpoint, secret, self._own)
        self._client = None if relay is not None else client_for(endpoint, endpoint.url or URL, self._own.max_connections)
        self._relay: Relay = relay or cast("HttpClient", self._client)

    async def send(self, call: ModelCall, sink: Sink) -> ModelReply:
        """As `Provider.send`; chat only."""
        if call.kind != "chat":
            raise RequestError(f"{self._who} offers no {call.kind}s.", code="unsupported_feature", param="model")
        body, native = self._body(call), call.dialect == "anthropic"
        headers, lost = self._headers_of(call)
        if call.stream:
            reply = await self._stream(headers, body, sink, native=native, hear=call.hear)
        else:
            reply = await self._whole(headers, body, native=native)
        return msgspec.structs.replace(reply, warnings=lost) if lost else reply

    async def count_request(self, call: ModelCall) -> int:
        """As `Provider.count_request`: by the endpoint's own count."""
        fields: dict[str, Any] = msgspec.json.decode(self._body(call), type=dict[str, msgspec.Raw])
        body = msgspec.json.encode({name: value for name, value in fields.items() if name not in _NOT_COUNTED})
        try:
            status, got, answer = await self._relay.send("POST", COUNT, self._headers_of(call)[0], body)
        except HttpCallError as e:
            raise transport_failure(e, who=self._who) from e
        if status >= 400:
            raise self._refusal(status, got, answer, native=call.dialect == "anthropic")
        try:
            return int(msgspec.json.decode(answer, type=dict[str, Any])["input_tokens"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            raise garbled("counted no tokens", who=self._who, status=status, body=answer) from None

    async def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            await self._client.close()

    def _body(self, call: ModelCall) -> bytes:
        if call.dialect == "anthropic":
            return msgspec.json.encode(call.body | {"model": self._model})
        return write_messages_request(
            call.body, self._model, stream=call.stream, max_tokens=self._own.max_tokens, system_turns=self._own.system_turns
        )

    def _headers_of(self, call: ModelCall) -> tuple[Headers, tuple[str, ...]]:
        """The headers of one call, and a sentence for each beta feature that was not asked for."""
        headers = [*self._headers, ("traceparent", call.traceparent)] if call.traceparent else self._headers
        wanted = ",".join(value for name, value in call.headers if name == _BETA)
        if not wanted:
            return headers, ()
        allowed, others = allowed_betas(wanted, self._own.allow_beta)
        headers = [pair for pair in headers if pair[0] != _BETA]
        if names := list(dict.fromkeys((*self._own.beta, *allowed))):
            headers.append((_BETA, ",".join(names)))
        return headers, tuple(f"The beta feature {name[:100]!r} was not forwarded: it is not on the list." for name in others)

    async def _whole(self, headers: Headers, body: bytes, *, native: bool) -> ModelReply:
        try:
            status, got, answer = await self._relay.send("POST", PATH, headers, body)
        except HttpCallError as e:
            raise transport_failure(e, who=self._who) from e
        if status >= 400:
            raise self._refusal(status, got, answer, native=native)
        try:
            if native:
                facts = read_native(answer)
                return ModelReply(status, answer, kept_headers(got), facts.id, facts)
            translated = read_message(answer, int(time.time()))
        except ValueError as e:
            raise garbled(f"answered {status} with what is no answer: {e}", who=self._who, status=status, body=answer) from None
        return ModelReply(status, translated, kept_headers(got), read_answer("chat", translated).id)

    async def _stream(self, headers: Headers, body: bytes, sink: Sink, *, native: bool, hear: Hear) -> ModelReply:
        tap = NativeTap(self._who) if native else MessagesStream(int(time.time()), who=self._who, hear=hear)
        gate = Gate(tap, sink, who=self._who)
        try:
            status, got, answer = await self._relay.send("POST", PATH, headers, body, on_head=gate.head)
        except HttpCallError as e:
            raise gate.failure or transport_failure(e, who=self._who, started=gate.started) from e
        if status >= 400:
            raise self._refusal(status, got, answer, native=native)
        gate.close(status, got, answer, now=time.time())
        return ModelReply(status, b"", kept_headers(got), tap.id)

    def _refusal(self, status: int, headers: Headers, body: bytes, *, native: bool) -> UpstreamError:
        return refusal(status, headers, body if native else read_error(body), now=time.time(), who=self._who)


def _headers(endpoint: Endpoint, secret: str, own: Anthropic.Config) -> Headers:
    check_key(endpoint, secret, "ANTHROPIC_API_KEY")
    headers = [("content-type", "application/json"), ("user-agent", "noria"), ("anthropic-version", own.version)]
    if secret:
        headers.append(("x-api-key", secret))
    if own.beta:
        headers.append(("anthropic-beta", ",".join(own.beta)))
    return headers + [(name.lower(), value) for name, value in own.headers.items()]
