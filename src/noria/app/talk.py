"""A conversation with a running service, from the outside: what `noria chat` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from noria.contracts.error import NotFound, UpstreamError
from noria.dialects.sse import FrameSplitter, data_of
from noria.kit.http_client import HttpClient


class Talk:
    """Keeps the messages of one conversation on the client's side."""

    def __init__(self, url: str, key: str, params: dict[str, Any]) -> None:
        self._url = url
        self._key = key
        self._params = params
        self._messages: list[dict[str, str]] = []

    def _client(self) -> HttpClient:
        return HttpClient(self._url, connect_timeout=5.0, first_timeout=600.0, idle_timeout=120.0, total_timeout=1200.0)

    @property
    def _headers(self) -> list[tuple[str, str]]:
        return [("content-type", "application/json"), ("authorization", f"Bearer {self._key}")]

    async def first_app(self) -> str:
        """The first app that may be used. Raises `NotFound` where there is none."""
        client = self._client()
        try:
            _, _, body = await client.send("GET", "/v1/models", self._headers, b"")
        finally:
            await client.close()
        names = [m["id"] for m in msgspec.json.decode(body).get("data", [])]
        if not names:
            raise NotFound("No app is configured.", hint="Run `noria models add smollm2-135m`, or write a noria.yaml.")
        return str(names[0])

    async def say(self, app: str, text: str, show: Callable[[str], None]) -> str:
        """Ask, showing the answer as it comes; the whole answer. Raises `UpstreamError` with the service's words."""
        asked = [*self._messages, {"role": "user", "content": text}]
        body = {"model": app, "messages": asked, "stream": True, **self._params}
        client = self._client()
        splitter, answer = FrameSplitter(), []

        def take(data: bytes) -> None:
            for frame in splitter.feed(data):
                piece = _piece(frame)
                answer.append(piece)
                show(piece)

        try:
            status, _, raw = await client.send(
                "POST", "/v1/chat/completions", self._headers, msgspec.json.encode(body),
                on_head=lambda status, _: take if status == 200 else None,
            )  # fmt: skip
        finally:
            await client.close()
        if status != 200:
            raise UpstreamError(_message(raw) or f"HTTP {status}", code="refused", upstream_status=status)
        whole = "".join(answer)
        self._messages = [*asked, {"role": "assistant", "content": whole}]
        return whole


def _piece(frame: bytes) -> str:
    data = data_of(frame)
    if data is None or data.startswith(b"[DONE]"):
        return ""
    event = msgspec.json.decode(data)
    if "error" in event:
        raise UpstreamError(str(event["error"].get("message")), code="refused", started=True)
    choices = event.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


def _message(raw: bytes) -> str:
    try:
        return str(msgspec.json.decode(raw)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
