"""Conversation memory: what was said before goes in front of what the caller says now.

Stored is what the model saw, after masking: a placeholder in it (`[EMAIL_1]`) stays one, as the originals
live only as long as their exchange. A conversation belongs to one key of one tenant.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from noria.contracts.exchange import Exchange
from noria.contracts.message import Message
from noria.dialects.openai import read_messages

_ALWAYS = frozenset({"system", "developer"})


class Sessions(Protocol):
    """Where conversations are kept, in order."""

    async def load(self, tenant: str, key_id: str, conversation: str) -> tuple[Message, ...]:
        """All that is kept of the conversation, oldest first; empty for one never seen."""
        ...

    async def append(self, tenant: str, key_id: str, conversation: str, new: tuple[Message, ...]) -> None:
        """Add messages at its end, all or none."""
        ...


class Memory:
    """Brings the last `release.memory` messages of a conversation; await `remember` before the final frame leaves."""

    name = "memory"
    behaviour = 1

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def __call__(self, x: Exchange, /) -> Exchange:
        """As `InwardAsync`."""
        if not _remembers(x):
            return x
        history = _last(await self._sessions.load(x.tenant, _key(x), x.conversation), x.release.memory if x.release else 0)
        if not history:
            return x
        messages = x.messages if x.messages is not None else read_messages(x.body["messages"])
        first = next((i for i, m in enumerate(messages) if m.role not in _ALWAYS), len(messages))
        return msgspec.structs.replace(x, messages=(*messages[:first], *history, *messages[first:]), edited=True)

    async def remember(self, x: Exchange, answer_text: str) -> None:
        """Store what is new: the caller's own messages as `x` carries them (after the guard), and the answer.

        `answer_text` is the answer before originals were put back into it; an empty one is not stored.
        """
        if not _remembers(x):
            return
        sent = read_messages(x.body["messages"])
        count = sum(m.role not in _ALWAYS for m in sent)
        carried = [m for m in (x.messages if x.messages is not None else sent) if m.role not in _ALWAYS]
        new = carried[max(0, len(carried) - count) :]  # memory stands before them, and a window drops from the front
        answer = [Message.of("assistant", answer_text)] if answer_text else []
        await self._sessions.append(x.tenant, _key(x), x.conversation, (*new, *answer))


def _remembers(x: Exchange) -> bool:
    return x.kind == "chat" and bool(x.conversation) and x.release is not None and x.release.memory > 0


def _key(x: Exchange) -> str:
    return x.key.id if x.key is not None else ""


def _last(history: tuple[Message, ...], keep: int) -> tuple[Message, ...]:
    """The last `keep` messages, from the first user message on: no tool result without its call."""
    kept = history[-keep:]
    first = next((i for i, m in enumerate(kept) if m.role == "user"), len(kept))
    return kept[first:]
