"""The Responses API's session state: what an earlier Response left goes in front of what the caller says now.

Stored is what the model saw and said, after masking: a placeholder stays one. A Response belongs to one key of one
tenant; another's is as unknown as one that never was. Each holds its own turn and the name of the one before it, so
that deleting one deletes its words wherever they would have been said again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from noria.contracts.error import NotFound, RequestError, StoreError
from noria.contracts.exchange import Exchange
from noria.contracts.message import Message
from noria.contracts.stage import Keeping, Outlet
from noria.dialects.openai import read_messages, write_messages
from noria.dialects.responses import Shape, write_response
from noria.dialects.responses_items import REFERENCE, join_turns, read_items, response_of

MAX_BYTES = 8 * 1024 * 1024
"""Bytes of one stored Response with its input; a larger one is not stored, and says so."""
MAX_REFERRED = 256
"""Responses whose items one request may refer to."""
_ALWAYS = frozenset({"system", "developer"})
_OF_PERSONS = frozenset({"user", "safety_identifier"})
_OWN_REASONING = frozenset({"reasoning_content", "reasoning", "annotations", "audio", "reasoning_details"})
"""Keys of an answer that no endpoint takes back."""


class Kept(msgspec.Struct, frozen=True):
    """One stored Response. The three texts are JSON: chat messages of its own input, of its answer, and the Response."""

    id: str
    """32 hex digits: those of the exchange."""
    key: str
    subject: str
    previous: str
    """The digits of the Response that it follows, or empty."""
    input: bytes
    answer: bytes
    response: bytes = b""


class ResponseStore(Protocol):
    """Where Responses are kept. Every failure is a `StoreError`."""

    async def recall(self, tenant: str, key_id: str, ids: tuple[str, ...], *, chain: bool = False) -> tuple[Kept, ...]:
        """Those of `ids` that this key has. `chain`: instead all that the one of `ids` follows, oldest first, itself last,
        without `response`; it begins with one that has a `previous` where that is gone (or the chain too long).
        """
        ...

    async def retain(self, tenant: str, kept: Kept) -> bool:
        """Store it, durably; False where nothing is stored by configuration."""
        ...


class ResponseState:
    """Brings the turns that `previous_response_id` and item references name; await `keep` before the final event leaves."""

    name = "state"
    behaviour = 1

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    async def __call__(self, x: Exchange, /) -> Exchange:
        """As `InwardAsync`. Raises `NotFound` for a Response or item that this key does not have, `RequestError` for a
        conversation where the app has no memory.
        """
        previous = _named(x)
        if x.conversation and not (x.release is not None and x.release.memory):
            raise RequestError(
                f"The app {x.model!r} keeps no conversations.", code="unsupported_feature", param="conversation",
                hint="Use 'previous_response_id', or give the app a memory (`memory: 20`).",
            )  # fmt: skip
        if not previous and REFERENCE.encode() not in bytes(x.body["messages"]):
            return x
        messages = x.messages if x.messages is not None else read_messages(x.body["messages"])
        at = len(messages) - _own_count(x)
        head, own, body = messages[:at], messages[at:], x.body
        if any(m.role == REFERENCE for m in own):
            own = await self._resolved(x, own)
            begun = read_messages(x.body["messages"])[: _instructed(x)]
            body = {**body, "messages": write_messages((*begun, *own))}
        earlier = await self._earlier(x, previous) if previous else ()
        return msgspec.structs.replace(x, body=body, messages=(*head, *earlier, *own), edited=True)

    async def _earlier(self, x: Exchange, previous: str) -> tuple[Message, ...]:
        digits = response_of(previous)
        chain = await self._store.recall(x.tenant, _key(x), (digits,), chain=True) if digits else ()
        if not chain or chain[0].previous:
            gone = previous if not chain else f"resp_{chain[0].previous}"
            raise NotFound(
                f"Previous response with id '{gone}' not found.",
                code="previous_response_not_found",
                param="previous_response_id",
                hint="It was not stored, is over its time, was deleted, belongs to another key, or lies too far back.",
            )
        return tuple(m for kept in chain for raw in (kept.input, kept.answer) for m in read_messages(msgspec.Raw(raw)))

    async def _resolved(self, x: Exchange, own: tuple[Message, ...]) -> tuple[Message, ...]:
        """`own` with the items in place of their references."""
        wanted = [msgspec.json.decode(m.rest["id"], type=str) for m in own if m.role == REFERENCE]
        digits = tuple(dict.fromkeys(d for d in map(response_of, wanted) if d))
        if len(digits) > MAX_REFERRED:
            raise RequestError(f"References to more than {MAX_REFERRED} responses.", code="invalid_value", param="input")
        found = {k.id: _output_of(k) for k in await self._store.recall(x.tenant, _key(x), digits)} if digits else {}
        messages: list[Any] = []
        for message in own:
            if message.role != REFERENCE:
                messages += msgspec.json.decode(write_messages((message,)))
                continue
            name = msgspec.json.decode(message.rest["id"], type=str)
            if response_of(name) not in found:
                raise NotFound(f"Item with id '{name}' not found.", code="item_not_found", param="input",
                               hint="Only items of stored responses can be referenced (`store: false` keeps none).")  # fmt: skip
            # An item that the stream gave apart is stored joined to the first of its kind: its words are there already.
            messages += read_items([item for item in found[response_of(name)] if item.get("id") == name])[0]
        joined = join_turns(messages)
        if not joined:
            raise RequestError("'input' holds nothing to answer.", code="invalid_value", param="input")
        return read_messages(msgspec.Raw(msgspec.json.encode(joined)))

    async def keep(self, x: Exchange, told: Callable[[], bytes], out: Outlet) -> tuple[str, ...]:
        """Store the turn; what went wrong with that, in a sentence. `told` gives the whole chat answer as it may be kept.

        The caller asked for an answer, not for a store: where storing fails the answer stands, and says `store: false`.
        """
        if bytes(x.native.get("store", b"")) == b"false":
            return ()
        try:
            kept = _kept(x, told())
            if len(kept.input) + len(kept.answer) + len(kept.response) > MAX_BYTES:
                lost = f"The response was not stored: it is larger than {MAX_BYTES} bytes."
            elif await self._store.retain(x.tenant, kept):
                return ()
            else:
                lost = "The response was not stored: 'retention.responses_days' is 0."
        except StoreError as e:
            lost = f"The response was not stored: {e.text}"
        if isinstance(out, Keeping):
            out.kept(stored=False)
        return (lost,)


def _kept(x: Exchange, answer: bytes) -> Kept:
    chat = msgspec.json.decode(answer)
    shape = Shape(_tellable(x), x.id, x.started_ns // 1_000_000_000)
    choice = (chat.get("choices") or [{}])[0]
    said = {k: v for k, v in (choice.get("message") or {}).items() if k not in _OWN_REASONING and v is not None}
    said = {"role": "assistant", "content": None} | said
    for n, call in enumerate(said.get("tool_calls") or ()):
        call["id"] = call.get("id") or shape.id("call", n)
    return Kept(
        id=shape.digits,
        key=_key(x),
        subject=x.subject,
        previous=response_of(_named(x)),
        input=bytes(write_messages(_own(x))),
        answer=msgspec.json.encode([said]),
        response=msgspec.json.encode(write_response(chat, shape, x.started_ns // 1_000_000_000)),
    )


def _own(x: Exchange) -> tuple[Message, ...]:
    """The messages of this request as `x` carries them (after the guard); a window drops from the front."""
    sent = read_messages(x.body["messages"])[_instructed(x) :]
    if x.messages is None:
        return sent
    always = sum(m.role in _ALWAYS for m in sent)
    others = len(sent) - always
    own: list[Message] = []
    for message in reversed(x.messages):
        if message.role in _ALWAYS:
            take, always = always > 0, always - 1
        else:
            take, others = others > 0, others - 1
        if take:
            own.append(message)
    return tuple(reversed(own))


def _tellable(x: Exchange) -> dict[str, msgspec.Raw]:
    """The request's fields that a stored Response repeats: without names of persons, instructions as the guard left them."""
    native = {k: v for k, v in x.native.items() if k not in _OF_PERSONS}
    if _instructed(x) and x.messages is not None:
        own_prompt = x.release is not None and x.release.prompt is not None
        native["instructions"] = msgspec.Raw(msgspec.json.encode(x.messages[1 if own_prompt else 0].text))
    return native


def _output_of(kept: Kept) -> list[dict[str, Any]]:
    return msgspec.json.decode(kept.response).get("output") or []


def _instructed(x: Exchange) -> int:
    """How many messages `instructions` made: 1 or 0."""
    return int(bytes(x.native.get("instructions", b"null")) not in (b"null", b'""'))


def _own_count(x: Exchange) -> int:
    return len(msgspec.json.decode(x.body["messages"], type=list[msgspec.Raw])) - _instructed(x)


def _named(x: Exchange) -> str:
    raw = x.native.get("previous_response_id")
    return msgspec.json.decode(raw) or "" if raw is not None else ""


def _key(x: Exchange) -> str:
    return x.key.id if x.key is not None else ""
