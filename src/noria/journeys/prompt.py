"""Follow one prompt from its caller to a model and back. Read this first.

Each line is a stage; an absent one costs a comparison. Stages contain no telemetry: the stopwatch
times them, the account collects what they note, and the row that comes of it is in the page cache
before the last byte of the answer leaves (DESIGN §3a.7).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from msgspec import Raw, json
from msgspec.structs import replace

from noria.contracts.error import Blocked, NoriaError
from noria.contracts.exchange import Exchange
from noria.contracts.stage import Inward, InwardAsync, Outlet, Outward
from noria.contracts.trace import ExchangeRow
from noria.contracts.verdict import Ruling
from noria.dialects.native import recorded
from noria.dialects.openai import write_messages, write_request
from noria.gateway.cache import Recall
from noria.gateway.dialect import without_native
from noria.gateway.limits import Claim, Limits
from noria.gateway.relay import Relay
from noria.gateway.router import Router
from noria.observe.account import Account

NAMES_OF_USERS = frozenset({"user", "safety_identifier"})
"""Request fields that name a person."""

Masked = Callable[[Exchange, Iterable[Ruling]], Exchange]
"""A refused exchange with everything that was found in it erased: fit to be recorded."""


class Memory(InwardAsync, Protocol):
    """Conversation memory: adds what was said before, keeps what is said now."""

    async def remember(self, x: Exchange, answer: str, /) -> None:
        """Keep the caller's new messages and the answer, durably."""
        ...


class State(InwardAsync, Protocol):
    """Session state of the Responses API: the turns that a request names, the turn that comes of it."""

    async def keep(self, x: Exchange, told: Callable[[], bytes], out: Outlet, /) -> tuple[str, ...]:
        """Store the turn, durably; in a sentence, why it could not be. Never fails the answer."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The stages of one release; what it does not use is None."""

    router: Router
    normalize: Inward | None = None
    template: Inward | None = None
    state: State | None = None
    """For callers of the Responses API alone."""
    memory: Memory | None = None
    window: InwardAsync | None = None
    guard: Inward | None = None
    masked: Masked | None = None
    cache: Recall | None = None
    """Answers given again, and identical requests under way; behind the guard, before money."""
    outward: tuple[Outward, ...] = ()
    """Outward guards, in order."""
    restore: Outward | None = None
    """Puts back what the inward guard masked; needed only by exchanges with a vault."""
    record_bodies: bool = True


class House(Protocol):
    """One configuration snapshot, wired: what every exchange that began under it keeps to its end."""

    @property
    def admit(self) -> Inward:
        """Who may ask, for what."""
        ...

    @property
    def limits(self) -> Limits:
        """Rates and budgets, shared by all snapshots of a worker."""
        ...

    def open(self, x: Exchange, /) -> Account:
        """A fresh account that the stages' reports reach by the exchange's id."""
        ...

    def parts(self, x: Exchange, /) -> Parts:
        """The stages of the release that `x` was given."""
        ...

    def close(self, x: Exchange, account: Account, claim: Claim | None = None, /) -> ExchangeRow:
        """Append the exchange's row to the spool and count it; `claim` is settled once the row is there, so that a crash
        between loses nothing. Never raises, never waits.
        """
        ...


async def answer(x: Exchange, house: House, out: Outlet) -> None:
    """Take `x` through the whole journey and write its answer, or its error, into `out`.

    Cancelling (the caller left) cancels the model call; the exchange is settled and recorded all the same.
    """
    account = house.open(x)
    run, wait = account.watch.run, account.watch.wait
    relay = Relay(x, account, out)
    claim = turn = None
    try:
        x = run(house.admit, x)
        parts = house.parts(x)
        claim = await house.limits.enter(x, account.headers)
        x = run(parts.normalize, x)
        x = run(parts.template, x)
        state = parts.state if x.dialect == "responses" else None
        x = await wait(state, x)
        x = await wait(parts.memory, x)
        x = await wait(parts.window, x)  # after memory: what is remembered must fit too
        x = guarded(parts, x, account)
        # x keeps the caller's own body: memory must know what is new in it
        sent = written(x)
        as_chat = parts.outward or parts.cache is not None or parts.memory is not None  # they read the answer
        if as_chat or (state is not None and parts.guard is not None):  # it has not read what chat has no counterpart of
            sent = without_native(sent)
        turn = None if parts.cache is None else await parts.cache.find(sent, account)
        if turn is None or turn.asks:  # an answer that is there, or on its way to somebody else, costs nothing
            sent = await house.limits.reserve(claim, sent)
            account.reserved = claim.amount if claim else None
        if parts.record_bodies:
            account.request = recordable(sent)
        relay.open(x, parts.outward, parts.restore, keep=parts.record_bodies)
        send = parts.router.send if turn is None else turn.through(parts.router.send)
        reply = await relay.carry(send(sent, relay, account, account.watch.began))
        relay.close(reply)
        if parts.memory is not None:
            await parts.memory.remember(x, relay.text())
        if state is not None:
            account.warnings += await state.keep(x, relay.told, out)
    except NoriaError as e:
        account.error = e
    except BaseException as e:
        account.error = e
        raise
    finally:
        relay.settle(x)
        if account.native and account.request and sent.native:
            account.request = recorded(sent.dialect, sent.native, sent.subject)
        if turn is not None:
            turn.close(account)
        row = house.close(x, account, claim)
    relay.end(row)


def guarded(parts: Parts, x: Exchange, account: Account) -> Exchange:
    """The inward guard, and what may be kept of a request that it refuses: never the text that it refuses it for."""
    try:
        return account.watch.run(parts.guard, x)
    except Blocked:
        if parts.record_bodies and parts.masked is not None:
            account.request = recordable(written(parts.masked(x, account.rulings)))
        raise


def recordable(x: Exchange) -> bytes:
    """The request as it may be stored: who the caller's user is stands there as a keyed hash (DESIGN §3a.4)."""
    named = NAMES_OF_USERS.intersection(x.body)
    return write_request({**x.body, **dict.fromkeys(named, Raw(json.encode(x.subject)))} if named else x.body)


def written(x: Exchange) -> Exchange:
    """`x` with its edited messages written back into the body, once; then its native form is not what is meant any more."""
    if not x.edited or x.messages is None:
        return x
    return replace(x, body={**x.body, "messages": write_messages(x.messages, x.body["messages"])}, edited=False, native={})


def refuse(x: Exchange, house: House, out: Outlet, error: NoriaError) -> None:
    """Answer and record a request that could not even be read; nothing of its body is kept."""
    account = house.open(x)
    account.error = error
    relay = Relay(x, account, out)
    relay.settle(x)
    relay.end(house.close(x, account))
