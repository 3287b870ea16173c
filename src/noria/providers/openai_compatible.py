"""Any endpoint that speaks OpenAI's wire form. A vendor is a row in `VENDORS`: address, credentials, quirks.

On the request only `model`, `stream_options` and credentials are spliced (and the output limit renamed where
a vendor refuses the caller's name for it); everything else leaves as it came. Addresses as documented by the
vendors in 2026-11.
"""

from __future__ import annotations

import time
from typing import Literal, cast
from urllib.parse import quote

import msgspec

from noria.contracts.error import ConfigError, NotFound, RequestError
from noria.contracts.exchange import Kind, ModelCall, ModelReply, RawCall
from noria.contracts.release import Endpoint
from noria.contracts.stage import OnHead, Options, Provider, Relay, Sink, Valve
from noria.dialects.openai import asking_for_usage, write_request
from noria.dialects.openai_answer import read_answer
from noria.dialects.responses_native import NativeTap, read_native
from noria.dialects.upstream import Gate, Headers, OpenAITap, garbled, kept_headers, message_of, refusal, transport_failure
from noria.kit.http_client import Flow, HttpCallError, HttpClient
from noria.kit.http_endpoint import check_key, client_for


class Vendor(msgspec.Struct, frozen=True):
    """One vendor of the OpenAI wire form. Paths follow the URL; an empty one is not offered."""

    url: str = ""
    key: str = ""
    """Name of the environment variable where its key usually is; empty where none is needed."""
    chat: str = "/chat/completions"
    completion: str = ""
    embedding: str = "/embeddings"
    auth: Literal["bearer", "api-key"] = "bearer"
    headers: tuple[tuple[str, str], ...] = ()
    stream_usage: bool = True
    """Whether `stream_options.include_usage` is understood; where not, the usage comes by itself or never."""
    raw: str = ""
    """What stands between the URL and the paths of requests that pass through."""
    responses: str = "/responses"
    """Where the Responses API is, at endpoints that have it."""
    speaks_responses: bool = False
    """Whether endpoints of the vendor have it, where nothing is said."""
    max_tokens_field: str = ""
    """The only name of the output limit that it takes, where it does not take both."""


_BOTH = "/completions"

VENDORS: dict[str, Vendor] = {
    "openai_compatible": Vendor(completion=_BOTH),
    "openai": Vendor("https://api.openai.com/v1", "OPENAI_API_KEY", completion=_BOTH, speaks_responses=True),
    "azure": Vendor(
        "",
        "AZURE_OPENAI_API_KEY",
        chat="/openai/v1/chat/completions",
        completion="/openai/v1/completions",
        embedding="/openai/v1/embeddings",
        auth="api-key",
        raw="/openai/v1",
        responses="/openai/v1/responses",
        speaks_responses=True,
    ),
    "mistral": Vendor("https://api.mistral.ai/v1", "MISTRAL_API_KEY", stream_usage=False, max_tokens_field="max_tokens"),
    "groq": Vendor("https://api.groq.com/openai/v1", "GROQ_API_KEY", embedding=""),
    "together": Vendor("https://api.together.xyz/v1", "TOGETHER_API_KEY", completion=_BOTH, max_tokens_field="max_tokens"),
    "fireworks": Vendor("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", completion=_BOTH),
    "deepseek": Vendor("https://api.deepseek.com", "DEEPSEEK_API_KEY", embedding="", max_tokens_field="max_tokens"),
    "dashscope": Vendor("https://dashscope.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY", completion=_BOTH),
    "dashscope_intl": Vendor("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY", completion=_BOTH),
    "moonshot": Vendor("https://api.moonshot.cn/v1", "MOONSHOT_API_KEY", embedding=""),
    "moonshot_intl": Vendor("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY", embedding=""),
    "zhipu": Vendor("https://open.bigmodel.cn/api/paas/v4", "ZHIPUAI_API_KEY", max_tokens_field="max_tokens"),
    "siliconflow": Vendor("https://api.siliconflow.cn/v1", "SILICONFLOW_API_KEY", max_tokens_field="max_tokens"),
    "openrouter": Vendor("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", completion=_BOTH),
    "cohere": Vendor("https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY", max_tokens_field="max_tokens"),
    "ai21": Vendor(
        "https://api.ai21.com/studio/v1", "AI21_API_KEY", embedding="", stream_usage=False, max_tokens_field="max_tokens"
    ),
    "xai": Vendor("https://api.x.ai/v1", "XAI_API_KEY", embedding=""),
    "gemini_openai": Vendor("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "perplexity": Vendor(
        "https://api.perplexity.ai", "PERPLEXITY_API_KEY", embedding="", stream_usage=False, max_tokens_field="max_tokens"
    ),
    "cerebras": Vendor("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY", embedding=""),
    "nvidia": Vendor("https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY", max_tokens_field="max_tokens"),
    "deepinfra": Vendor("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY", completion=_BOTH),
    "ollama": Vendor("http://127.0.0.1:11434/v1", completion=_BOTH, max_tokens_field="max_tokens"),
    "vllm": Vendor("http://127.0.0.1:8000/v1", completion=_BOTH),
    "lmstudio": Vendor("http://127.0.0.1:1234/v1", completion=_BOTH, max_tokens_field="max_tokens"),
    "llamacpp": Vendor("http://127.0.0.1:8080/v1", completion=_BOTH),
}
"""Vendor id → its row. `provider: <vendor>` in `noria.yaml` means this module with `vendor` set."""

_CREDENTIALS = frozenset({"authorization", "api-key", "x-api-key", "cookie", "openai-organization", "openai-project"})
"""Request headers that only the configuration gives."""
_LIMITS = ("max_tokens", "max_completion_tokens")


class OpenAICompatible(Provider):
    """One endpoint of a vendor. Without an `endpoint.vendor` the row is `openai_compatible`, which needs a URL."""

    id = "openai_compatible"

    class Config(Options, frozen=True, forbid_unknown_fields=True):
        """Options of an endpoint. `headers` are added to each request; `api_version` chooses Azure's dated paths."""

        headers: dict[str, str] = {}
        api_version: str = ""
        batch: bool | None = None
        """Whether batches go through the endpoint's own batch API; when absent, only OpenAI's do."""
        responses: bool | None = None
        """Whether the endpoint speaks `/v1/responses` itself; when absent, OpenAI's and Azure's do."""
        stream_usage: bool | None = None
        """Overrides the vendor's row, for an endpoint that differs from its vendor."""
        max_connections: int = 256

    def __init__(self, endpoint: Endpoint, secret: str, config: Options, *, relay: Relay | None = None) -> None:
        own = cast("OpenAICompatible.Config", config)
        self._who = f"The endpoint {endpoint.name!r}"
        self._vendor = _vendor(endpoint)
        self._stream_usage = self._vendor.stream_usage if own.stream_usage is None else own.stream_usage
        self._dated = bool(own.api_version)
        if own.responses and own.api_version:
            raise ConfigError(
                f"The model {endpoint.name!r} cannot have both `responses: true` and an `api_version`.",
                where=f"models.{endpoint.name}.options.responses",
                hint="Leave api_version out: Azure's undated paths have the Responses API.",
            )
        if not own.api_version and (self._vendor.speaks_responses if own.responses is None else own.responses):
            self.speaks = frozenset({"openai", "responses"})
        self._paths = _paths(self._vendor, endpoint.model, own.api_version)
        self._headers = _headers(self._vendor, endpoint, secret, own.headers)
        self._model = msgspec.Raw(msgspec.json.encode(endpoint.model))
        url = endpoint.url or self._vendor.url
        if not url:
            raise ConfigError(
                f"The model {endpoint.name!r} has no url.", hint='Give one, for example url: "http://host:8000/v1".'
            )
        self._client = None if relay is not None else client_for(endpoint, url, own.max_connections)
        self._relay: Relay = relay or cast("HttpClient", self._client)

    async def send(self, call: ModelCall, sink: Sink) -> ModelReply:
        """As `Provider.send`."""
        path = self._paths[call.kind]
        if not path:
            raise RequestError(f"{self._who} offers no {call.kind}s.", code="unsupported_feature", param="model")
        headers = [*self._headers, ("traceparent", call.traceparent)] if call.traceparent else self._headers
        if call.dialect == "responses":
            return await self._respond(call, headers, sink)
        body = write_request(self._splice(call))
        if call.stream:
            return await self._stream(path, headers, body, sink)
        return await self._whole(call.kind, path, headers, body)

    async def raw(self, call: RawCall, on_head: OnHead | None = None, valve: Valve | None = None) -> tuple[int, Headers, bytes]:
        """As `Provider.raw`."""
        if self._dated:
            raise NotFound(f"{self._who} passes nothing through: its paths carry an api_version.", code="unknown_url")
        mine = [(k, v) for k, v in self._headers if k not in ("content-type", "accept")]
        headers = [*mine, *((k, v) for k, v in call.headers if k not in _CREDENTIALS)]
        if call.traceparent:
            headers.append(("traceparent", call.traceparent))
        path = self._vendor.raw + call.path
        known = (lambda s, h: None if s in (401, 403) else on_head(s, h)) if on_head is not None else None
        try:
            if self._client is not None:
                flow = cast("Flow | None", valve)
                answer = await self._client.send(call.method, path, headers, call.body, on_head=known, flow=flow)
            else:
                answer = await self._relay.send(call.method, path, headers, call.body, on_head=known)
        except HttpCallError as e:
            raise transport_failure(e, who=self._who) from e
        if answer[0] in (401, 403):
            raise refusal(answer[0], answer[1], answer[2], now=time.time(), who=self._who)
        return answer

    async def _respond(self, call: ModelCall, headers: Headers, sink: Sink) -> ModelReply:
        """A Responses request as it came, and its answer with its bytes."""
        path, body = self._vendor.responses, write_request({**call.body, "model": self._model})
        if call.stream:
            return await self._stream(path, headers, body, sink, native=True)
        return await self._whole(call.kind, path, headers, body, native=True)

    async def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            await self._client.close()

    async def _whole(self, kind: Kind, path: str, headers: Headers, body: bytes, *, native: bool = False) -> ModelReply:
        try:
            status, got, answer = await self._relay.send("POST", path, headers, body)
        except HttpCallError as e:
            raise transport_failure(e, who=self._who) from e
        if status >= 400:
            raise refusal(status, got, answer, now=time.time(), who=self._who)
        try:
            facts = read_native(answer) if native else read_answer(kind, answer)
        except ValueError as e:
            why = message_of(answer) or str(e)
            raise garbled(
                f"answered {status} with what is no answer: {why}", who=self._who, status=status, body=answer
            ) from None
        return ModelReply(status, answer, kept_headers(got), facts.id, facts)

    async def _stream(self, path: str, headers: Headers, body: bytes, sink: Sink, *, native: bool = False) -> ModelReply:
        tap = NativeTap(self._who) if native else OpenAITap(self._who)
        gate = Gate(tap, sink, who=self._who)
        try:
            status, got, answer = await self._relay.send("POST", path, headers, body, on_head=gate.head)
        except HttpCallError as e:
            raise gate.failure or transport_failure(e, who=self._who, started=gate.started) from e
        gate.close(status, got, answer, now=time.time())
        return ModelReply(status, b"", kept_headers(got), tap.id)

    def _splice(self, call: ModelCall) -> dict[str, msgspec.Raw]:
        body = dict(call.body)
        body["model"] = self._model
        if call.stream and self._stream_usage:
            body = asking_for_usage(body)
        else:
            body.pop("stream_options", None)
        name = self._vendor.max_tokens_field
        if name and call.kind == "chat":
            for other in _LIMITS:
                if other != name and other in body:
                    limit = body.pop(other)
                    body.setdefault(name, limit)
        return body


def _vendor(endpoint: Endpoint) -> Vendor:
    name = endpoint.vendor or "openai_compatible"
    if name not in VENDORS:
        known = NotFound.nearest("vendor", name, list(VENDORS))
        raise ConfigError(known.message, where=f"models.{endpoint.name}", hint=known.hint)
    return VENDORS[name]


def _paths(vendor: Vendor, model: str, api_version: str) -> dict[Kind, str]:
    if api_version:
        root = f"/openai/deployments/{quote(model, safe='')}"
        query = f"?api-version={quote(api_version, safe='')}"
        return {
            "chat": f"{root}/chat/completions{query}",
            "completion": f"{root}/completions{query}",
            "embedding": f"{root}/embeddings{query}",
        }
    return {"chat": vendor.chat, "completion": vendor.completion, "embedding": vendor.embedding}


def _headers(vendor: Vendor, endpoint: Endpoint, secret: str, own: dict[str, str]) -> Headers:
    check_key(endpoint, secret, vendor.key)
    headers = [("content-type", "application/json"), ("user-agent", "noria"), *vendor.headers]
    if secret:
        headers.append(("authorization", f"Bearer {secret}") if vendor.auth == "bearer" else ("api-key", secret))
    return headers + [(name.lower(), value) for name, value in own.items()]
