"""Feedback keeps its promises on every engine of records: once, the latest in force, sealed, tenants apart."""

import asyncio
from collections import defaultdict

import pytest
from tests.contracts.test_trace_store import row

from noria.app.feedback import FEEDBACK, OPEN, Feedbacks, refusal
from noria.contracts.error import Conflict, Unauthorized
from noria.contracts.feedback import Feedback, Giver, Statement
from noria.contracts.port import RecordStore

PORT = RecordStore
MS = 1_000_000
T0 = 1_780_000_000_000 * MS
ID = "0190b5a0-0000-7000-8000-0000000000{:02d}".format
FIRST = ID(1)
ME = Giver("local", "key_1", "acme")


class Traces:
    """Exchanges that are stored by now."""

    def __init__(self):
        self.rows = defaultdict(list)

    def add(self, *rows):
        for r in rows:
            self.rows[r.tenant].append(r)

    async def get(self, tenant, id):
        return next(((r, "", "") for r in self.rows[tenant] if r.id == id), None)

    async def list(self, tenant, query):
        (clause,) = query.clauses
        field = {"trace": "trace", "response": "upstream_id"}[clause.column]
        return [(r, "", "") for r in reversed(self.rows[tenant]) if getattr(r, field) == clause.value]


class Hands:
    """One Feedbacks with everything it stands on; `now` is its clock."""

    def __init__(self, records):
        self.now, self.keys, self.traces, self.records = T0, {}, Traces(), records
        self.feedback = Feedbacks(records, self.traces, self.key, self.key, self)

    def now_ns(self):
        self.now += MS
        return self.now

    async def key(self, tenant, subject):
        return self.keys.setdefault((tenant, subject), f"{tenant}/{subject}".encode().ljust(32, b"x")[:32])

    async def give(self, *statements, giver=ME):
        return await self.feedback.give(giver, statements)

    async def all(self, tenant="local"):
        return await self.feedback.listed(tenant, lambda _: True)


@pytest.fixture
def hands(make):
    return Hands(make(RecordStore))


def say(target=FIRST, value=1.0, *, kind="thumb", metric="thumbs_up", of="any", id="", at=T0, user="", **more):
    return Statement(Feedback(id, target, kind, at, metric=metric, value=value, **more), of, user, own_id=bool(id))


def exchange(n=1, **changes):
    return row(ID(n), T0 - 1000 * MS + n * MS, org="acme", upstream_id=f"chatcmpl-{n}", **changes)


async def test_what_is_said_of_a_stored_exchange_is_joined_at_once_by_any_of_its_names(hands):
    one = exchange(trace="a" * 32)
    hands.traces.add(one)
    for target, of in (
        (ID(1), "any"),
        ("a" * 32, "trace"),
        ("chatcmpl-1", "response"),
        ("resp_" + ID(1).replace("-", ""), "any"),
    ):
        (receipt,) = await hands.give(say(target, of=of))
        assert (receipt.state, receipt.exchange) == ("joined", ID(1)), target
    (told,) = await hands.all()  # one statement of one person, however the exchange was named
    assert (told.joined.app, told.joined.release, told.feedback.value) == ("support", "r1:aa", 1.0)


async def test_feedback_that_comes_first_waits_durably_and_is_joined_when_the_row_is_there(hands, make, shared):
    (receipt,) = await hands.give(say(comment="很好，谢谢"))
    assert receipt.state == "waiting"
    later = Hands(make(RecordStore))  # another process
    later.traces.add(exchange())
    await later.feedback.look("local")
    (told,) = await later.all()
    assert (told.joined.exchange, told.feedback.comment) == (ID(1), "很好，谢谢")
    assert await later.records.scan("local", OPEN) == []


async def test_the_row_that_is_stored_calls_what_waits_for_it(hands):
    await hands.give(say())
    assert await hands.feedback.join() == 0  # looked once more: the row is not there yet
    hands.traces.add(exchange())
    hands.feedback.see([exchange(2)])
    assert await hands.feedback.join() == 0
    hands.feedback.see([exchange()])
    assert await hands.feedback.join() == 1
    assert (await hands.all())[0].joined.exchange == ID(1)


async def test_a_later_statement_of_the_same_person_and_metric_replaces_an_earlier_one_whatever_comes_first(hands):
    hands.traces.add(exchange())
    await hands.give(say(value=1.0, at=T0 + 10), giver=ME)
    (late,) = await hands.give(say(value=0.0, at=T0 + 5))
    assert late.state == "superseded"
    await hands.give(say(value=0.0, at=T0 + 20))
    await hands.give(say(value=0.4, kind="score", metric="helpful"))
    await hands.give(say(value=1.0, user="ann"))
    assert sorted((t.feedback.metric, t.feedback.value) for t in await hands.all()) == [
        ("helpful", 0.4), ("thumbs_up", 0.0), ("thumbs_up", 1.0)
    ]  # fmt: skip
    assert len(await hands.feedback.of("local", ID(1))) == 3
    assert await hands.feedback.arms("local", "support", "thumbs_up", 0) == {"r1:aa": (2, 1.0)}


async def test_two_names_of_one_exchange_end_as_one_statement_the_later_one(hands):
    await hands.give(say("chatcmpl-1", 0.0, of="response", at=T0 + 10))
    await hands.give(say(ID(1), 1.0, at=T0 + 5))
    hands.traces.add(exchange())
    await hands.feedback.look("local")
    (told,) = await hands.all()
    assert (told.feedback.value, told.joined.exchange) == (0.0, ID(1))


async def test_the_callers_own_id_is_stored_once_even_after_something_later(hands):
    hands.traces.add(exchange())
    await hands.give(say(id="f-1", value=1.0))
    await hands.give(say(id="f-2", value=0.0, at=T0 + 1))
    (again,) = await hands.give(say(id="f-1", value=1.0, at=T0 + 2))
    assert again.state == "known"
    assert [t.feedback.value for t in await hands.all()] == [0.0]
    with pytest.raises(Conflict, match="f-1"):
        await hands.give(say(ID(2), id="f-1"))
    await hands.give(say(ID(2), id="f-1"), giver=Giver("local", "key_2", "acme"))  # ids are the key's own


async def test_a_list_is_stored_whole_or_not_at_all(hands):
    await hands.give(say(id="taken"))
    with pytest.raises(Conflict):
        await hands.give(say(ID(2)), say(ID(3), id="taken"))
    assert len(await hands.all()) == 1
    assert [r.state for r in await hands.give(say(ID(2)), say(ID(2), 0.0, at=T0 + 1))] == ["waiting", "waiting"]
    assert [t.feedback.value for t in await hands.all()] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("giver", "words"),
    [
        (Giver("local", "k", "other"), "own organisation"),
        (Giver("local", "k", ""), "own organisation"),
        (Giver("local", "k", "acme", ("sales",)), "own apps only: sales"),
    ],
)
async def test_a_key_may_not_speak_of_what_is_not_its_own_before_or_after(hands, giver, words):
    await hands.give(say(), giver=giver)  # nobody can know yet
    hands.traces.add(exchange())
    await hands.feedback.look("local")
    (told,) = await hands.all()
    assert told.joined is None
    assert words in told.refused
    (receipt,) = await hands.give(say(value=0.0), giver=giver)
    assert receipt.state == "refused"
    with pytest.raises(Unauthorized, match=words) as refused:
        refusal([receipt])
    assert refused.value.status == 403
    assert await hands.feedback.arms("local", "support", "thumbs_up", 0) == {}
    operator = Giver("local", "console", operator=True)
    assert (await hands.give(say(), giver=operator))[0].state == "joined"


async def test_of_several_exchanges_of_a_trace_the_last_answered_one_is_meant(hands):
    for n, outcome in ((1, "ok"), (2, "ok"), (3, "error")):
        hands.traces.add(exchange(n, trace="b" * 32, outcome=outcome))
    hands.traces.add(row(ID(4), T0 + 60_000 * MS, org="acme", trace="b" * 32))  # began after it was said
    (receipt,) = await hands.give(say("b" * 32, of="trace"))
    assert receipt.exchange == ID(2)
    assert "4 exchanges" in receipt.note


async def test_texts_are_sealed_and_go_with_the_key_of_either_person(hands):
    hands.traces.add(exchange(subject="s" * 32), exchange(2))
    await hands.give(
        say(kind="correction", metric="correction", value=None, text="密码在设置里改", user="ann", tags={"a": "b"})
    )
    await hands.give(say(ID(2), comment="plain"))
    raw = b"".join(r.value for r in await hands.records.scan("local", FEEDBACK))
    for secret in ("密码在设置里改", "ann", "plain"):
        assert secret.encode() not in raw
    by = await hands.feedback.hashed("local", "ann")
    corrected = lambda: next(t for t in told if t.feedback.kind == "correction")  # noqa: E731  reads better in place
    told = await hands.all()
    assert (corrected().feedback.text, corrected().feedback.tags) == ("密码在设置里改", {"a": "b"})
    for subject in (by, "s" * 32):
        kept, hands.keys["local", subject] = hands.keys["local", subject], b"y" * 32
        told = await hands.all()
        assert (corrected().erased, corrected().feedback.text, corrected().feedback.comment) == (True, "", "")
        assert [t.feedback.comment for t in told if not t.erased] == ["plain"]
        hands.keys["local", subject] = kept


async def test_arms_count_by_release_since_a_time_and_only_what_can_be_compared(hands):
    releases = {1: "r1:aa", 2: "r1:aa", 3: "r1:bb", 4: "r1:bb"}
    hands.traces.add(*(exchange(n, release=r) for n, r in releases.items()))
    await hands.give(*(say(ID(n), n % 2, metric="good") for n in releases))
    await hands.give(say(ID(3), 7.0, kind="score", metric="stars"), say(ID(9), metric="good"))
    assert await hands.feedback.arms("local", "support", "good", 0) == {"r1:aa": (2, 1.0), "r1:bb": (2, 1.0)}
    assert await hands.feedback.arms("local", "support", "good", T0 - 1000 * MS + 2 * MS) == {
        "r1:aa": (1, 0.0),
        "r1:bb": (2, 1.0),
    }
    assert await hands.feedback.arms("local", "support", "stars", 0) == {}
    hands.traces.add(exchange(5, release="r1:bb", tags={"noria.release": "pinned"}))
    await hands.give(say(ID(5), metric="good"))
    assert await hands.feedback.scores("support", "good", "r1:bb", 0) == (2, 1.0), "who asked for it by name does not count"
    await hands.give(say(ID(4), 1.0, metric="good", at=T0 + 1))
    assert await hands.feedback.scores("support", "good", "r1:bb", 0) == (2, 2.0)
    assert await hands.feedback.arms("local", "sales", "good", 0) == {}
    assert await hands.feedback.arms("local", "support", "good", T0 + 10**12) == {}


async def test_tenants_are_apart(hands):
    hands.traces.add(exchange(), exchange(2, tenant="b"))
    theirs = Giver("b", "key_1", "acme")
    (receipt,) = await hands.give(say(ID(1), id="x"), giver=theirs)
    assert receipt.state == "waiting", "B learns nothing of A's exchange"
    await hands.give(say(ID(1), id="x"))
    assert len(await hands.all("b")) == len(await hands.all("local")) == 1
    assert [t.joined for t in await hands.feedback.of("b", ID(1))] == [None], "its own statement, which waits"
    assert await hands.feedback.arms("b", "support", "thumbs_up", 0) == {}


async def test_the_list_is_newest_first_and_pages_miss_nothing(hands):
    for n in range(12):
        await hands.give(say(ID(n)))
    seen, after = [], ""
    while page := await hands.feedback.listed("local", lambda s: s.feedback.target != ID(5), after=after, limit=5):
        seen += [t.feedback.target for t in page]
        after = page[-1].cursor
    assert seen == [ID(n) for n in reversed(range(12)) if n != 5]
    middle = (await hands.all())[6].received_ns
    assert len(await hands.feedback.listed("local", lambda _: True, since_ns=middle)) == 7


async def test_many_at_once_are_each_stored_exactly_once(hands):
    hands.traces.add(*(exchange(n) for n in range(10)))
    jobs = [hands.give(say(ID(n % 10), user=f"u{n % 20}", id=f"i{n % 40}", at=T0)) for n in range(80)]  # each id twice
    done = await asyncio.gather(*jobs)
    assert sorted(r.state for (r,) in done) == ["joined"] * 40 + ["known"] * 40
    told = await hands.all()
    assert len({(t.joined.exchange, t.feedback.by) for t in told}) == len(told) == 20


async def test_what_is_old_is_forgotten_with_all_its_traces(hands):
    await hands.give(say(ID(1), id="old"))
    hands.now += 366 * 86_400_000 * MS
    await hands.give(say(ID(2), id="new"))
    assert await hands.feedback.expire("local", hands.now) == 1
    assert [t.feedback.id for t in await hands.all()] == ["new"]
    kept = {k: [r.id for r in await hands.records.scan("local", k)] for k in ("feedback-of", "feedback-id", OPEN)}
    assert {k: len(v) for k, v in kept.items()} == {"feedback-of": 1, "feedback-id": 1, OPEN: 1}
    assert kept["feedback-id"] == ["key_1/new"]
