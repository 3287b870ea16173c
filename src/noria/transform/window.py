"""Fit a chat into the model's context window: the oldest turns go first, whole, and never the question.

Kept always: system and developer messages, the last user message, and the last tool round behind it.
A call and its results go together. Tokens are counted by the model's own tokenizer, but only where it
could matter: a byte-level tokenizer gives at most one token a byte (so does SentencePiece with byte
fallback, but for its leading space, which the overhead covers), so what fits in bytes fits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from noria.contracts.error import RequestError
from noria.contracts.exchange import Exchange
from noria.contracts.message import Message
from noria.dialects.openai import read_messages

Count = Callable[[str], Awaitable[int]]
ReportCut = Callable[[Exchange, int, int], None]
"""(exchange, tokens dropped, messages dropped)."""

MESSAGE_OVERHEAD = 8
"""Tokens that a chat template may add a message (role, separators), and once for the answer's opening."""

_ALWAYS = frozenset({"system", "developer"})
_PROMPT_KEYS = ("tools", "functions", "response_format")
"""Parts of the request besides messages that the template writes into the prompt."""


class Window:
    """Fits the prompt into `context` tokens, less the room for the answer.

    That room is the caller's output limit, else the release's, else `share` of the window. A part that
    is no text counts `part_tokens`. Counts are upper bounds up to the tokenizer's own exactness.
    """

    name = "window"
    behaviour = 1

    def __init__(self, context: int, count: Count, *, report: ReportCut, share: float = 0.25, part_tokens: int = 1024) -> None:
        self._context = context
        self._count = count
        self._report = report
        self._share = share
        self._part_tokens = part_tokens

    async def __call__(self, x: Exchange, /) -> Exchange:
        """As `InwardAsync`. Raises `RequestError` (`context_length_exceeded`) where the rest does not fit either."""
        if x.kind != "chat" or (x.release is not None and not x.release.fit):
            return x
        messages = x.messages if x.messages is not None else read_messages(x.body["messages"])
        budget = self._context - self._reserved(x)
        fixed = "".join(bytes(x.body[k]).decode() for k in _PROMPT_KEYS if k in x.body)
        if len(fixed.encode()) + MESSAGE_OVERHEAD + sum(map(self._bound, messages)) <= budget:
            return x
        room = budget - MESSAGE_OVERHEAD - (await self._count(fixed) if fixed else 0)
        sizes = [await self.size(m) for m in messages]
        dropped = _to_drop(messages, sizes, room)
        left = sum(sizes) - sum(sizes[i] for i in dropped)
        if left > room:
            raise self._too_long(left + budget - room, budget)
        if not dropped:
            return x
        self._report(x, sum(sizes[i] for i in dropped), len(dropped))
        kept = tuple(m for i, m in enumerate(messages) if i not in dropped)
        return msgspec.structs.replace(x, messages=kept, edited=True)

    async def size(self, message: Message) -> int:
        """Tokens that a message takes."""
        return await self._count(_text(message)) + self._overhead(message)

    def _bound(self, message: Message) -> int:
        return len(_text(message).encode("utf-8", "replace")) + self._overhead(message)

    def _overhead(self, message: Message) -> int:
        return MESSAGE_OVERHEAD + self._part_tokens * sum(p.text is None for p in message.parts)

    def _reserved(self, x: Exchange) -> int:
        for key in ("max_completion_tokens", "max_tokens"):
            value = msgspec.json.decode(x.body[key]) if key in x.body else None
            if value is None and x.release is not None:
                value = x.release.params.get(key)
            if isinstance(value, int):
                return value
        return int(self._context * self._share)

    def _too_long(self, needed: int, budget: int) -> RequestError:
        return RequestError(
            f"The prompt needs {needed} tokens even without its earlier turns; the model's context of {self._context} tokens "
            f"leaves {max(0, budget)} for it, besides {self._context - budget} for the answer.",
            code="context_length_exceeded",
            param="messages",
            hint="Shorten the last message or lower max_tokens.",
        )


def _text(message: Message) -> str:
    """All that a template may write of a message: its texts, and the rest (calls, name, ids) as JSON."""
    rest = (bytes(raw).decode() for raw in message.rest.values())
    return "\n".join([*(p.text for p in message.parts if p.text), *rest])


def _to_drop(messages: Sequence[Message], sizes: Sequence[int], room: int) -> frozenset[int]:
    """Indices of the oldest turns that must go; all that may go where that is not enough."""
    over = sum(sizes) - room
    dropped: list[int] = []
    for turn in _turns(messages):
        if over <= 0:
            break
        dropped += turn
        over -= sum(sizes[i] for i in turn)
    return frozenset(dropped)


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """What may be dropped together, oldest first: turns before the last question, then tool rounds after it."""
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    turns: list[list[int]] = []
    rounds: list[list[int]] = []
    for i, m in enumerate(messages):
        if m.role in _ALWAYS or i == last_user:
            continue
        groups, opens = (turns, m.role == "user") if i < last_user else (rounds, m.role not in {"tool", "function"})
        if opens or not groups:
            groups.append([])
        groups[-1].append(i)
    return turns + rounds[:-1]
