"""Every TraceStore keeps each exchange once, with its position, and one tenant's rows from another."""

import msgspec
import pytest

from noria.contracts.error import RequestError, StoreError
from noria.contracts.exchange import Usage
from noria.contracts.port import Body, TraceStore
from noria.contracts.trace import Attempt, Clause, ExchangeRow, SpoolPosition, StageTime, TraceQuery
from noria.contracts.verdict import Finding, Ruling, Verdict

PORT = TraceStore
DAY = 86_400_000_000_000
T0 = 20_400 * DAY  # 2025-11-08


def row(id: str, at: int = T0, tenant: str = "local", **changes) -> ExchangeRow:
    base = ExchangeRow(
        tenant=tenant, id=id, trace=f"trace-{id}", span="s" * 16, parent_span="", started_ns=at, kind="chat", app="support",
        release="r1:aa", release_name="a", config="c1", outcome="ok", status=200, stream=True, duration_ns=150_000_000,
        ttft_ns=20_000_000, overhead_ns=900_000, endpoint="small", provider="local", served_model="smollm2",
        upstream_id="up-1", finish_reason="stop", error_code="", error_message='a "quoted" \n 出错 \x00', key="k1", subject="",
        conversation="", usage=Usage(12, 7, 3, 1), cost_nanousd=42_000_000, cost_status="exact",
        stages=(StageTime("admit", 1, 2),), attempts=(Attempt("small", 3, 4, 200),),
        rulings=(Ruling(Verdict("pii", False, 0.9, (Finding("email", 1, 5),)), "mask", "input.0.0", 8),),
        request=b"", answer=b"", answer_is_sse=True, worker="w0", cut_tokens=5,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def plain(*rows: ExchangeRow):
    return [(r, "", "") for r in rows]


def ask(*clauses, **options) -> TraceQuery:
    return TraceQuery(tuple(Clause(*c) for c in clauses), **options)


async def ids(store, tenant, query) -> list[str]:
    return [r.id for r, _, _ in await store.list(tenant, query)]


@pytest.fixture
def store(make):
    return make(TraceStore)


async def test_a_row_comes_back_as_it_was(store):
    await store.append("local", [(row("e1"), "b1", "b2")], [Body("b1", "s", b"\x00\xff"), Body("b2", "", b"")], None)
    assert await store.get("local", "e1") == (row("e1"), "b1", "b2")
    assert await store.get("local", "trace-e1") == (row("e1"), "b1", "b2")
    assert await store.list("local", ask()) == [(row("e1"), "b1", "b2")]
    assert await store.body("local", "b1") == Body("b1", "s", b"\x00\xff")
    assert await store.body("local", "b2") == Body("b2", "", b"")


async def test_many_bodies_come_in_one_question_each_once_over_hot_and_sealed_days(store):
    named = [(row(f"e{i}", T0 + i % 3 * DAY), f"q{i}", "shared") for i in range(300)]
    kept = {f"q{i}": Body(f"q{i}", f"s{i % 7}", f"text {i} \x00".encode()) for i in range(300)}
    kept["shared"] = Body("shared", "", b"the same on every day")
    await store.append("local", named, list(kept.values()), None)
    for sealed in ("2025-11-08", "2025-11-10", "2026-01-01"):
        await store.seal("local", sealed)
        found = await store.bodies("local", [*kept, "nobody's", "", "shared", "' OR 1=1 --"])
        assert len(found) == 301
        assert {b.id: b for b in found} == kept
    assert await store.bodies("local", []) == []
    assert await store.bodies("local", [""]) == []


async def test_absent_values_stay_absent(store):
    bare = row("e1", ttft_ns=None, cost_nanousd=None, usage=Usage(), rulings=(), stages=(), attempts=())
    await store.append("local", plain(bare), [], None)
    assert await store.list("local", ask()) == plain(bare)


async def test_the_same_exchange_twice_is_kept_once_as_it_came_first(store):
    assert await store.append("local", plain(row("e1"), row("e1", status=500)), [], None) == 1
    assert await store.append("local", plain(row("e1", status=500), row("e2")), [], None) == 1
    assert await store.count("local", ask()) == 2
    assert (await store.get("local", "e1"))[0].status == 200


async def test_the_position_comes_with_the_rows(store):
    assert await store.positions() == []
    await store.append("local", plain(row("e1")), [], SpoolPosition("w0", 1, 10))
    await store.append("local", plain(row("e2")), [], SpoolPosition("w1", 7, 0))
    await store.append("local", [], [], SpoolPosition("w0", 2, 2**40))
    assert await store.positions() == [SpoolPosition("w0", 2, 2**40), SpoolPosition("w1", 7, 0)]


async def test_a_refused_append_leaves_nothing(store):
    rows = plain(*(row(f"e{i}") for i in range(store.max_batch + 1)))
    with pytest.raises(StoreError):
        await store.append("local", rows, [], SpoolPosition("w0", 1, 1))
    assert await store.count("local", ask()) == 0
    assert await store.positions() == []


async def test_pages_are_newest_first_and_miss_nothing(store):
    at = {f"e{i:02}": T0 + (i // 2) * DAY // 4 for i in range(20)}  # pairs at one time, over several days
    await store.append("local", plain(*(row(k, v) for k, v in at.items())), [], None)
    await store.seal("local", "2025-11-09")
    seen: list[ExchangeRow] = []
    before = ""
    while page := await store.list("local", ask(before=before, limit=3)):
        seen += [r for r, _, _ in page]
        before = f"{seen[-1].started_ns}.{seen[-1].id}"
    assert [r.id for r in seen] == sorted(at, key=lambda k: (at[k], k), reverse=True)


@pytest.mark.parametrize(
    ("clause", "found"),
    [
        (("app", "=", "support"), {"e1", "e2"}),
        (("status", ">=", "500"), {"e2"}),
        (("outcome", "!=", "ok"), {"e2"}),
        (("duration_ms", ">", "149.9"), {"e1"}),
        (("ttft_ms", "<", "21"), {"e1"}),
        (("ttft_ms", "!=", "20"), {"e2"}),
        (("model", "~", "ollm"), {"e1", "e2"}),
        (("stream", "=", "false"), {"e2"}),
        (("cost_usd", ">=", "0.042"), {"e1"}),
        (("tokens_in", "=", "12"), {"e1", "e2"}),
        (("tokens_out", "=", "7"), {"e1", "e2"}),
        (("check", "=", "pii"), {"e1"}),
        (("check", "!=", "pii"), {"e2"}),
        (("action", "~", "as"), {"e1"}),
        (("release", "=", "a"), {"e1", "e2"}),
        (("release", "=", "r1:aa"), {"e1", "e2"}),
        (("error", "=", "timeout"), {"e2"}),
        (("error", "=", "' OR 1=1 --"), set()),
        (("time", ">", "2025-11-08T00:00:00"), {"e2"}),
        (("time", "<=", str(T0)), {"e1"}),
        (("id", "=", "e1"), {"e1"}),
        (("trace", "=", "trace-e2"), {"e2"}),
        (("response", "=", "up-1"), {"e1"}),
    ],
)
async def test_a_clause_finds_what_it_says(store, clause, found):
    other = {"status": 502, "outcome": "error", "duration_ns": 1, "ttft_ns": None, "stream": False, "cost_nanousd": None}
    two = row("e2", T0 + 3 * DAY, rulings=(), error_code="timeout", upstream_id="up-2", **other)
    await store.append("local", plain(row("e1"), two), [], None)
    assert set(await ids(store, "local", ask(clause))) == found
    assert await store.count("local", ask(clause)) == len(found)


@pytest.mark.parametrize(
    ("clauses", "found"),
    [
        ([("check", "=", "pii")], {"flagged", "both"}),
        ([("check", "!=", "pii")], {"passed", "none"}),
        ([("check", "~", "secr")], {"both"}),
        ([("check", "=", "secrets")], {"both"}),
        ([("check", "=", "allow")], set()),
        ([("action", "=", "allow")], {"passed", "flagged"}),
        ([("check", "=", "pii"), ("action", "=", "block")], {"both"}),
    ],
)
async def test_a_check_is_found_where_it_found_something_not_where_it_only_judged(store, clauses, found):
    bad = lambda check, action: Ruling(Verdict(check, False, 1.0, (Finding("x", 0, 1),)), action, "input.0.0", 1)  # noqa: E731
    good = lambda check: Ruling(Verdict(check, True), "allow", "input", 1)  # noqa: E731
    rulings = {
        "passed": (good("pii"), good("secrets")),
        "flagged": (good("secrets"), bad("pii", "flag")),
        "both": (bad("pii", "mask"), bad("pii", "mask"), bad("secrets", "block")),
        "none": (),
    }
    await store.append("local", plain(*(row(name, rulings=r) for name, r in rulings.items())), [], None)
    for _ in range(2):
        assert set(await ids(store, "local", ask(*clauses))) == found
        await store.seal("local", "2026-01-01")


async def test_an_unknown_column_names_the_nearest(store):
    with pytest.raises(RequestError, match="durationms") as e:
        await store.list("local", ask(("durationms", ">", "1")))
    assert "'duration_ms'" in e.value.text


@pytest.mark.parametrize("query", [ask(before="x"), ask(limit=0), ask(limit=10**9), ask(("stream", "=", "maybe"))])
async def test_a_question_that_makes_no_sense_is_refused(store, query):
    with pytest.raises(RequestError):
        await store.list("local", query)


async def test_a_trace_of_several_exchanges_is_not_taken_for_one(store):
    await store.append("local", plain(row("e1", trace="t"), row("e2", trace="t")), [], None)
    assert await store.get("local", "t") is None


async def test_sealing_moves_whole_days_and_changes_no_answer(store):
    rows = [row(f"e{i}", T0 + i * DAY // 2) for i in range(6)]
    bodies = [Body("b0", "", b"zero"), Body("b5", "", b"five")]
    await store.append("local", [(r, f"b{i}" if i in (0, 5) else "", "") for i, r in enumerate(rows)], bodies, None)

    async def everything():
        listed = await store.list("local", ask())
        got = [await store.get("local", r.id) for r in rows]
        many = await store.bodies("local", [r for _, r, _ in listed])
        assert sorted(many, key=lambda b: b.id) == bodies
        return listed, got, [await store.body("local", b.id) for b in bodies], await store.count("local", ask())

    before = await everything()
    assert before[2] == bodies
    assert await store.seal("local", "2025-11-10") == 4
    assert await everything() == before
    assert await store.seal("local", "2025-11-10") == 0
    assert await store.append("local", plain(*rows), [], None) == 0
    late = row("late", T0 + 1)
    assert await store.append("local", plain(late), [], None) == 1
    assert await store.seal("local", "2025-11-10") == 1
    assert await store.count("local", ask()) == 7
    assert await store.get("local", "late") == (late, "", "")


async def test_dropping_forgets_sealed_days_and_nothing_else(store):
    await store.append("local", [(row("old"), "b", ""), (row("new", T0 + DAY), "b", "")], [Body("b", "", b"shared")], None)
    assert await store.drop("local", "2025-11-09") == 0
    await store.seal("local", "2025-11-10")
    assert await store.drop("local", "2025-11-09") == 1
    assert await ids(store, "local", ask()) == ["new"]
    assert await store.body("local", "b") == Body("b", "", b"shared")
    assert await store.bodies("local", ["b"]) == [Body("b", "", b"shared")]
    assert await store.drop("local", "2025-11-10") == 1
    assert await store.body("local", "b") is None


async def test_bodies_that_were_sealed_together_are_found_by_each_of_their_ids_hot_and_sealed(store):
    together = Body("b1", "s", b"three", ("b2", "b3"))
    alone = Body("b4", "", b"one")
    both = row("both", T0 + DAY)
    await store.append("local", [(row("e1"), "b1", "b2"), (both, "b3", "b4")], [together, alone], None)
    for _ in range(2):
        for name in ("b1", "b2", "b3"):
            assert await store.body("local", name) == together
        assert sorted(await store.bodies("local", ["b3", "b4", "b1", "+b1"]), key=lambda b: b.id) == [together, alone]
        assert await store.body("other", "b2") is None
        await store.seal("local", "2025-11-09")
    assert await store.append("local", [(row("e1"), "b1", "b2")], [together], None) == 0, "a replay"
    assert await store.bodies("local", ["b2"]) == [together]
    await store.drop("local", "2025-11-09")
    assert await store.body("local", "b2") == together, "the second day names one of them, and keeps them"
    await store.seal("local", "2025-11-10")
    assert await store.body("local", "b3") == together
    await store.drop("local", "2025-11-10")
    assert await store.bodies("local", ["b1", "b2", "b3", "b4"]) == []


async def test_tenants_cannot_read_count_or_infer_each_other(store):
    for tenant in ("a", "b"):
        mine = [(row("same", tenant=tenant, app=tenant), f"body-{tenant}", "")]
        await store.append(tenant, mine, [Body(f"body-{tenant}", "", tenant.encode())], None)
    for _ in range(2):
        assert [(r.app, asked) for r, asked, _ in await store.list("a", ask())] == [("a", "body-a")]
        assert await store.count("a", ask(("app", "=", "b"))) == 0
        assert (await store.get("a", "same"))[0].app == "a"
        assert await store.body("a", "body-b") is None
        assert [b.data for b in await store.bodies("a", ["body-a", "body-b"])] == [b"a"]
        assert await store.list("../a", ask()) == await store.list("", ask()) == []
        await store.seal("a", "2026-01-01")
        assert await store.count("b", ask()) == 1
    assert await store.drop("a", "2026-01-01") == 1
    assert await ids(store, "b", ask()) == ["same"]
    with pytest.raises(StoreError):
        await store.append("a", plain(row("x", tenant="b")), [], None)


async def test_what_was_appended_is_there_after_reopening(store, make, shared):
    await store.append("local", plain(row("e1"), row("e2", T0 + DAY)), [], SpoolPosition("w0", 1, 2))
    await store.seal("local", "2025-11-09")
    await store.close()
    await store.close()
    again = make(TraceStore)
    assert await ids(again, "local", ask()) == ["e2", "e1"]
    assert await again.positions() == [SpoolPosition("w0", 1, 2)]


async def test_totals_sum_what_matches_by_group_over_hot_and_sealed_days(store):
    rows = [
        row("e1", cost_nanousd=5, app="a", tags={"env": "prod", "x": "1"}),
        row("e2", T0 + DAY, cost_nanousd=7, app="b", usage=Usage(1, 2, 0, 0, 4)),
        row("e3", T0 + DAY, cost_nanousd=None, cost_status="unknown", app="b"),
        row("e4", T0 + DAY, cost_nanousd=0, app="b", cost_status="estimated"),
    ]
    await store.append("local", plain(*rows), [], None)
    for _ in range(2):
        (whole,) = await store.totals("local", [])
        assert (whole.group, whole.exchanges, whole.cost_nanousd) == ((), 4, 12)
        assert (whole.unknown, whole.estimated, whole.zero) == (1, 1, 1)
        assert whole.usage == Usage(12 * 3 + 1, 7 * 3 + 2, 3 * 3, 1 * 3, 4)
        b, a = await store.totals("local", [], ("app",))
        assert [(t.group, t.exchanges, t.cost_nanousd) for t in (b, a)] == [(("b",), 3, 7), (("a",), 1, 5)]
        assert [t.group for t in await store.totals("local", [Clause("app", "=", "b")], ("day", "app"))] == [
            ("2025-11-09", "b")
        ]
        tags = {t.group[0]: t.cost_nanousd for t in await store.totals("local", [], ("tag",))}
        assert tags == {"env=prod": 5, "x=1": 5, "": 7}
        later = [Clause("time", ">=", str(T0 + DAY)), Clause("time", "<", str(T0 + 2 * DAY))]
        assert [t.cost_nanousd for t in await store.totals("local", later, quality=False)] == [7]
        await store.seal("local", "2025-11-09")


async def test_totals_of_nothing_and_of_another_tenant_are_none(store):
    await store.append("local", plain(row("e1")), [], None)
    assert await store.totals("other", []) == []
    assert await store.totals("local", [Clause("app", "=", "nobody")], ("app",)) == []
    with pytest.raises(RequestError, match="'modle'"):
        await store.totals("local", [], ("modle",))
