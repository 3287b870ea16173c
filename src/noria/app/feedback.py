"""Feedback at the keeper: stored durably before it is acknowledged, joined to its exchange whenever that is stored.

It lies in the RecordStore, as quiet records, not beside the exchanges in the trace store, for four reasons. Feedback is replaced
(a thumb is turned), which needs a record with an expected version, and sealed days cannot be changed. It must outlive the
traces' retention, for it decides about releases and becomes training data. It must be known on every node that shares the
registry. And its guarantees (all or nothing, durable, tenants apart) are those that the RecordStore's contract suite proves on
every engine; `tests/contracts/test_feedback.py` runs this module over them. Five kinds, written in one commit:

    feedback       <newest first>             what was said; text sealed
    feedback-of    <target>/<by>/<metric>     which one is in force; the target is the exchange as soon as it is known
    feedback-id    <key>/<caller's id>        which ids have been seen, and a digest of what they said
    feedback-open  <as feedback>              waits for its exchange

Texts (label, correction, comment, tags) are sealed like bodies: under the key of who said it, and, once joined, again under the
key of the exchange's subject. Destroying either key erases them.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from noria.contracts.error import Conflict, StoreError, Unauthorized
from noria.contracts.feedback import Feedback, Giver, Joined, Of, Receipt, Statement, Told
from noria.contracts.port import Clock, RecordStore, TraceStore, Write
from noria.contracts.trace import Clause, ExchangeRow, TraceQuery
from noria.gateway.admit import PINNED
from noria.kit.ids import digest, keyed, random_bytes
from noria.observe.feedback import choose
from noria.observe.trace import KeySource
from noria.observe.vault import Vault

log = logging.getLogger("noria.feedback")

FEEDBACK, OF, ID, OPEN = "feedback", "feedback-of", "feedback-id", "feedback-open"
DAY_NS = 86_400 * 1_000_000_000
SUBJECT_DIGITS = 32
MOST_OF_A_TRACE = 200
"""Exchanges of one trace or response id that are looked through."""
AGAIN_S = 60.0
"""Seconds between looks for feedback that other nodes have taken in."""
SETTLE_S = 0.5
COUNTED_NS = 5 * 1_000_000_000
"""How long scores are taken as counted where this node has heard of nothing new: other nodes take in feedback too."""
TRIES = 50
_MS = (1 << 48) - 1
_PAGE = 500
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_HEX = re.compile(r"[0-9a-f]{32}\Z")


class Stored(msgspec.Struct, frozen=True):
    """What a record holds. Of `feedback`, text, comment and tags are empty: they are in `sealed`."""

    feedback: Feedback
    of: Of
    giver: Giver
    received_ns: int
    place: str
    """Its id among `feedback-of`."""
    layers: tuple[str, ...]
    """Subjects whose keys seal `sealed`, the innermost first; empty text = the tenant's key."""
    sealed: bytes
    joined: Joined | None = None
    refused: str = ""


class _Secret(msgspec.Struct, frozen=True, array_like=True):
    text: str
    comment: str
    tags: dict[str, str]


class _InForce(msgspec.Struct, frozen=True, array_like=True):
    record: str
    at_ns: int


class _Seen(msgspec.Struct, frozen=True, array_like=True):
    digest: str
    received_ns: int


class Found(NamedTuple):
    """What a target turned out to be."""

    row: ExchangeRow | None
    note: str = ""
    refused: str = ""


class _Plan:
    """Reads and writes of one commit: what was read is what must still be there."""

    def __init__(self, records: RecordStore, tenant: str) -> None:
        self._records = records
        self._tenant = tenant
        self._versions: dict[tuple[str, str], int] = {}
        self._values: dict[tuple[str, str], bytes | None] = {}
        self._written: set[tuple[str, str]] = set()

    async def get(self, kind: str, id: str) -> bytes | None:
        name = (kind, id)
        if name not in self._values:
            record = await self._records.get(self._tenant, kind, id)
            self._versions[name] = record.version if record else 0
            self._values[name] = record.value if record else None
        return self._values[name]

    def put(self, kind: str, id: str, value: bytes | None) -> None:
        self._values[kind, id] = value
        self._written.add((kind, id))

    async def commit(self) -> None:
        """Raises `Conflict` where somebody else was faster."""
        writes = [Write(*n, self._values[n], expect=self._versions.get(n)) for n in sorted(self._written)]
        if writes:
            await self._records.commit(self._tenant, writes, quiet=True)


class Feedbacks:
    """What was said of answers: taken in, joined, listed, counted by release."""

    def __init__(self, records: RecordStore, traces: TraceStore, secret: KeySource, subjects: KeySource, clock: Clock) -> None:
        """`secret` gives the keys that texts are sealed under, `subjects` the key that names of users are hashed with."""
        self.days = 365
        self._records = records
        self._traces = traces
        self._secret = secret
        self._subjects = subjects
        self._clock = clock
        self._open: dict[str, dict[str, str]] = {}
        """By target: record → tenant of what waits for it."""
        self._due: dict[str, str] = {}
        self._wake = asyncio.Event()
        self.news: Callable[[], None] = _nobody
        """Told when an exchange has got feedback, or other feedback."""
        self._changes = 0
        self._arms: dict[tuple[str, str, str, int], tuple[int, int, dict[str, tuple[int, float]]]] = {}
        """What was counted: after how many changes, when."""

    # -- taking in ----------------------------------------------------------------------------------

    async def give(self, giver: Giver, statements: Sequence[Statement]) -> list[Receipt]:
        """Store statements, all or none, durably when this returns. Refused ones are not stored.

        Raises `Conflict` where an id was used for something else.
        """
        now = self._clock.now_ns()
        found = [await self.find(giver, s.feedback.target, s.of, s.feedback.at_ns) for s in statements]
        made = [await self._made(giver, s, f, now) for s, f in zip(statements, found, strict=True)]
        for _ in range(TRIES):
            plan = _Plan(self._records, giver.tenant)
            receipts = [await self._placed(plan, s, f, m) for s, f, m in zip(statements, found, made, strict=True)]
            try:
                await plan.commit()
            except Conflict:
                continue
            for (record, stored), receipt in zip(made, receipts, strict=True):
                if receipt.state == "waiting":
                    self._wait(record, stored)
            self._changed()
            return receipts
        raise StoreError("The feedback could not be stored: too many say something of the same answer at once.")

    async def _made(self, giver: Giver, s: Statement, found: Found, now: int) -> tuple[str, Stored]:
        f = s.feedback
        by = await self.hashed(giver.tenant, s.user) if s.user else ""
        record = newest_first(now // 1_000_000) + random_bytes(10).hex()
        bare = replace(f, id=f.id or record, by=by, key=giver.key, text="", comment="", tags={})
        sealed = await self._sealed(giver.tenant, by, record, msgspec.msgpack.encode(_Secret(f.text, f.comment, f.tags)))
        stored = Stored(bare, s.of, giver, now, "", (by,), sealed)
        if found.row is not None:
            stored = await self._with_row(record, stored, found.row, found.note)
        return record, replace(stored, place=_place(stored))

    async def _placed(self, plan: _Plan, s: Statement, found: Found, made: tuple[str, Stored]) -> Receipt:
        record, stored = made
        f = stored.feedback
        told = Receipt(f.id, f.target, "joined" if stored.joined else "waiting", _exchange(stored), found.note)
        if found.refused:
            return replace(told, state="refused", note=found.refused)
        if s.own_id:
            name, said = (
                f"{stored.giver.key}/{f.id}",
                digest(msgspec.msgpack.encode((s.feedback.target, s.of, s.user, _said(s)))),
            )
            seen = await plan.get(ID, name)
            if seen is not None:
                if msgspec.msgpack.decode(seen, type=_Seen).digest != said:
                    raise Conflict(f"The feedback id {f.id!r} was used for another statement.", code="id_reused")
                return replace(told, state="known", note="This id was stored before.")
            plan.put(ID, name, msgspec.msgpack.encode(_Seen(said, stored.received_ns)))
        if not await self._take_place(plan, record, stored):
            return replace(told, state="superseded", note="A later statement of the same person and metric is in force.")
        plan.put(FEEDBACK, record, msgspec.msgpack.encode(stored))
        if stored.joined is None:
            plan.put(OPEN, record, f.target.encode())
        return told

    async def _take_place(self, plan: _Plan, record: str, stored: Stored) -> bool:
        """Put a statement in force instead of an earlier one, which goes; False where a later one is there."""
        there = await plan.get(OF, stored.place)
        if there is not None:
            old = msgspec.msgpack.decode(there, type=_InForce)
            if old.at_ns > stored.feedback.at_ns:
                return False
            if old.record != record:
                plan.put(FEEDBACK, old.record, None)
                plan.put(OPEN, old.record, None)
        plan.put(OF, stored.place, msgspec.msgpack.encode(_InForce(record, stored.feedback.at_ns)))
        return True

    async def hashed(self, tenant: str, user: str) -> str:
        """The keyed hash that stands for a user, as in traces (DESIGN §3a.4). Raises `StoreError`."""
        secret = await self._subjects(tenant, "")
        if not secret:
            raise StoreError("The key of subjects is gone.")
        return keyed(secret, user.encode())[:SUBJECT_DIGITS]

    async def _sealed(self, tenant: str, subject: str, record: str, content: bytes) -> bytes:
        secret = await self._secret(tenant, subject)
        return Vault(secret).seal(tenant, record, content) if secret else b""

    # -- joining ------------------------------------------------------------------------------------

    async def find(self, giver: Giver, target: str, of: Of, at_ns: int) -> Found:
        """The exchange that a target means to this giver, among those that are stored."""
        rows: list[ExchangeRow] = []
        for what in _readings(target, of):
            rows = await self._rows(giver.tenant, target, what)
            if rows:
                break
        return Found(*choose(rows, giver, at_ns))

    async def _rows(self, tenant: str, target: str, of: Of) -> list[ExchangeRow]:
        if of == "response" and target.startswith("resp_") and _HEX.match(target[5:]):
            d = target[5:]  # our own Responses are named after their exchange
            target, of = f"{d[:8]}-{d[8:12]}-{d[12:16]}-{d[16:20]}-{d[20:]}", "exchange"
        if of == "exchange":
            found = await self._traces.get(tenant, target)
            return [found[0]] if found and found[0].id == target else []
        column = "trace" if of == "trace" else "response"
        named = await self._traces.list(tenant, TraceQuery((Clause(column, "=", target),), limit=MOST_OF_A_TRACE))
        return [row for row, _, _ in named]

    async def _with_row(self, record: str, stored: Stored, row: ExchangeRow, note: str) -> Stored:
        joined = Joined(row.id, row.app, row.release, row.release_name, row.started_ns, note, _pinned(row))
        if not row.subject or row.subject in stored.layers:
            return replace(stored, joined=joined)
        sealed = await self._sealed(stored.giver.tenant, row.subject, record, stored.sealed)
        return replace(stored, joined=joined, layers=(*stored.layers, row.subject), sealed=sealed)

    def see(self, rows: Iterable[ExchangeRow]) -> None:
        """Rows were stored: what waits for one of them is due."""
        if not self._open:
            return
        for row in rows:
            for name in (row.id, row.trace, row.upstream_id, "resp_" + row.id.replace("-", "")):
                waiting = self._open.get(name)
                if waiting:
                    self._due |= waiting
                    self._wake.set()

    def _wait(self, record: str, stored: Stored) -> None:
        self._open.setdefault(stored.feedback.target, {})[record] = stored.giver.tenant
        self._due[record] = stored.giver.tenant  # its row may have come between the look and now
        self._wake.set()

    async def run(self, tenant: str) -> None:
        """Join what waits, until cancelled."""
        while True:
            try:
                await self.look(tenant)
                async with asyncio.timeout(AGAIN_S):
                    while True:
                        await self._wake.wait()
                        await asyncio.sleep(SETTLE_S)  # rows and feedback come in bursts
                        await self.join()
            except TimeoutError:
                continue
            except StoreError as e:
                log.warning("feedback waits for its exchanges: %s", e)
                await asyncio.sleep(5.0)

    async def look(self, tenant: str) -> None:
        """Take up everything that waits in the store, whoever took it in, and join what can be."""
        after = ""
        while page := await self._records.scan(tenant, OPEN, after=after, limit=_PAGE):
            for r in page:
                self._open.setdefault(r.value.decode(), {})[r.id] = tenant
                self._due[r.id] = tenant
            after = page[-1].id
        await self.join()

    async def join(self) -> int:
        """Join what is due; how many found their exchange, or that they may not speak of it."""
        self._wake.clear()
        due, self._due = self._due, {}
        return sum([await self._join(tenant, record) for record, tenant in due.items()])

    async def _join(self, tenant: str, record: str) -> bool:
        for _ in range(TRIES):
            plan = _Plan(self._records, tenant)
            value = await plan.get(FEEDBACK, record)
            if value is None or (stored := msgspec.msgpack.decode(value, type=Stored)).joined or stored.refused:
                self._forget(record)
                return False
            found = await self.find(stored.giver, stored.feedback.target, stored.of, stored.feedback.at_ns)
            if found.row is None and not found.refused:
                return False
            fresh = replace(stored, refused=found.refused)
            if found.row is not None:
                fresh = await self._with_row(record, stored, found.row, found.note)
            await self._settle(plan, record, stored, fresh)
            try:
                await plan.commit()
            except Conflict:
                continue
            self._forget(record)
            self._changed()
            return True
        return False

    async def _settle(self, plan: _Plan, record: str, stored: Stored, fresh: Stored) -> None:
        """From now on it stands under its exchange, unless something later stands there."""
        fresh = replace(fresh, place=_place(fresh))
        plan.put(OPEN, record, None)
        kept = True
        if fresh.place != stored.place:
            plan.put(OF, stored.place, None)
            kept = await self._take_place(plan, record, fresh)
        plan.put(FEEDBACK, record, msgspec.msgpack.encode(fresh) if kept else None)

    def _changed(self) -> None:
        self._changes += 1
        self.news()

    def _forget(self, record: str) -> None:
        for target, waiting in list(self._open.items()):
            if waiting.pop(record, None) is not None and not waiting:
                del self._open[target]

    # -- telling ------------------------------------------------------------------------------------

    async def listed(
        self, tenant: str, wanted: Callable[[Stored], bool], *, since_ns: int = 0, after: str = "", limit: int = 100
    ) -> list[Told]:
        """Feedback that is wanted and was received since, newest first."""
        found: list[Told] = []
        last = newest_first(max(0, since_ns) // 1_000_000) + "~"
        while len(found) < limit:
            page = await self._records.scan(tenant, FEEDBACK, after=after, limit=_PAGE)
            for r in page:
                stored = msgspec.msgpack.decode(r.value, type=Stored)
                if r.id > last or len(found) == limit:
                    return found
                if wanted(stored):
                    found.append(await self._told(tenant, r.id, stored))
            if len(page) < _PAGE:
                return found
            after = page[-1].id
        return found

    async def of(self, tenant: str, exchange: str) -> list[Told]:
        """What was said of one exchange, in the order of people and metrics."""
        found: list[Told] = []
        after = prefix = f"{exchange}/"
        while page := await self._records.scan(tenant, OF, after=after, limit=_PAGE):
            for r in page:
                if not r.id.startswith(prefix):
                    return found
                name = msgspec.msgpack.decode(r.value, type=_InForce).record
                record = await self._records.get(tenant, FEEDBACK, name)
                if record is not None:
                    found.append(await self._told(tenant, name, msgspec.msgpack.decode(record.value, type=Stored)))
            after = page[-1].id
        return found

    async def arms(self, tenant: str, app: str, metric: str, since_ns: int) -> dict[str, tuple[int, float]]:
        """Release id → (how many scores in [0, 1], their sum), of exchanges of an app that began at `since_ns` or later.

        Other scores do not count: no always-valid comparison holds for them (`kit.sequential`); nor do exchanges that asked for
        their release by name.
        """
        found: dict[str, tuple[int, float]] = {}
        after, last = "", newest_first(max(0, since_ns) // 1_000_000) + "~"
        while page := await self._records.scan(tenant, FEEDBACK, after=after, limit=_PAGE):
            for r in page:
                if r.id > last:
                    return found
                s = msgspec.msgpack.decode(r.value, type=Stored)
                value, joined = s.feedback.value, s.joined
                if value is None or joined is None or not 0 <= value <= 1 or joined.pinned or joined.started_ns < since_ns:
                    continue
                if joined.app == app and s.feedback.metric == metric:
                    n, total = found.get(joined.release, (0, 0.0))
                    found[joined.release] = (n + 1, total + value)
            after = page[-1].id
        return found

    async def scores(self, app: str, metric: str, release: str, since_ns: int, *, tenant: str = "local") -> tuple[int, float]:
        """One release of `arms`; what nothing was added to is not counted again for `COUNTED_NS`."""
        asked, now = (tenant, app, metric, since_ns), self._clock.now_ns()
        known = self._arms.get(asked)
        if known is None or known[0] != self._changes or now - known[1] > COUNTED_NS:
            changes = self._changes
            if len(self._arms) > 100:
                self._arms.clear()
            known = self._arms[asked] = (changes, now, await self.arms(tenant, app, metric, since_ns))
        return known[2].get(release, (0, 0.0))

    async def _told(self, tenant: str, record: str, stored: Stored) -> Told:
        content: bytes | None = stored.sealed
        for subject in reversed(stored.layers):
            secret = await self._secret(tenant, subject) if content else None
            try:
                content = Vault(secret).open(tenant, record, content) if secret and content else None
            except StoreError:  # sealed under a key that is gone: a new one has taken its name
                content = None
        f = stored.feedback
        if content is not None:
            s = msgspec.msgpack.decode(content, type=_Secret)
            f = replace(f, text=s.text, comment=s.comment, tags=s.tags)
        return Told(f, stored.received_ns, record, stored.joined, stored.refused, content is None)

    async def expire(self, tenant: str, now_ns: int) -> int:
        """Delete what was received more than `days` ago; how many there were."""
        before_ns = max(0, now_ns - self.days * DAY_NS)
        count = 0
        while page := await self._records.scan(tenant, FEEDBACK, after=newest_first(before_ns // 1_000_000) + "~", limit=_PAGE):
            gone = [(r.id, msgspec.msgpack.decode(r.value, type=Stored)) for r in page]
            writes = [Write(kind, r, None) for r, _ in gone for kind in (FEEDBACK, OPEN)]
            await self._records.commit(tenant, [*writes, *(Write(OF, s.place, None) for _, s in gone)], quiet=True)
            count += len(gone)
        after = ""
        while page := await self._records.scan(tenant, ID, after=after, limit=_PAGE):
            old = [r.id for r in page if msgspec.msgpack.decode(r.value, type=_Seen).received_ns < before_ns]
            if old:
                await self._records.commit(tenant, [Write(ID, name, None) for name in old], quiet=True)
            after = page[-1].id
        return count


def newest_first(ms: int) -> str:
    """The first digits of a record's id: the later the time (Unix ms), the smaller."""
    return f"{_MS - ms:012x}"


def _nobody() -> None:
    """Nobody listens."""


def _pinned(row: ExchangeRow) -> bool:
    return row.tags.get(PINNED[0]) == PINNED[1]


def refusal(receipts: Sequence[Receipt]) -> None:
    """Raise `Unauthorized` (403) where the one statement of a request was refused."""
    if len(receipts) == 1 and receipts[0].state == "refused":
        raise Unauthorized(receipts[0].note, code="feedback_not_allowed", status=403)


def _readings(target: str, of: Of) -> tuple[Of, ...]:
    """As what a target is looked up, in order."""
    if of != "any":
        return (of,)
    if _UUID.match(target):
        return ("exchange", "response")
    return ("trace", "response") if _HEX.match(target) else ("response",)


def _place(stored: Stored) -> str:
    f = stored.feedback
    return f"{_exchange(stored) or f.target}/{f.by or 'key:' + f.key}/{f.metric}"


def _exchange(stored: Stored) -> str:
    return stored.joined.exchange if stored.joined else ""


def _said(s: Statement) -> tuple[object, ...]:
    f = s.feedback
    return (f.kind, f.metric, f.value, f.text, f.comment, sorted(f.tags.items()))
