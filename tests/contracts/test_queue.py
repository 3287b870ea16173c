"""The guarantees of `Queue`, on every engine that serves it. Times are the test's own: a second is 10**9."""

import asyncio

import pytest

from noria.contracts.error import Conflict
from noria.contracts.port import Queue

PORT = Queue
S = 1_000_000_000
T0 = 1_800_000_000 * S


@pytest.fixture
async def queue(make):
    return make(Queue)


async def put(queue, *ids, tenant="a", name="work", at=T0, ready=0):
    return [await queue.put(tenant, name, i, i.encode(), now_ns=at, ready_ns=ready) for i in ids]


async def lease(queue, *, tenant="a", name="work", at=T0, lease_ns=60 * S, limit=1):
    return await queue.lease(tenant, name, now_ns=at, lease_ns=lease_ns, limit=limit)


async def test_a_job_is_leased_with_its_body_attempt_and_end(queue):
    assert await queue.put("a", "work", "j1", b"\x00\xff", now_ns=T0)
    (job,) = await lease(queue)
    assert (job.queue, job.id, job.body, job.attempt, job.lease_until_ns) == ("work", "j1", b"\x00\xff", 1, T0 + 60 * S)
    assert job.token


async def test_an_empty_queue_leases_nothing(queue):
    assert await lease(queue, limit=10) == []
    assert await queue.depth("a", "work") == (0, 0, 0)


async def test_put_is_idempotent_while_the_id_is_queued_leased_or_dead(queue):
    assert await put(queue, "j") == [True]
    assert await queue.put("a", "work", "j", b"other", now_ns=T0 + S, ready_ns=T0 + 99 * S) is False
    (job,) = await lease(queue)
    assert job.body == b"j"
    assert await put(queue, "j") == [False]
    await queue.retry("a", job, ready_ns=0, dead=True)
    assert await put(queue, "j") == [False]
    assert await queue.depth("a", "work") == (0, 0, 1)


async def test_the_id_of_a_finished_job_is_free_again(queue):
    await put(queue, "j")
    await queue.done("a", (await lease(queue))[0])
    assert await queue.depth("a", "work") == (0, 0, 0)
    assert await put(queue, "j") == [True]
    assert (await lease(queue))[0].attempt == 1


async def test_jobs_come_oldest_first_and_no_more_than_asked_for(queue):
    await put(queue, "late", at=T0 + 2)
    await put(queue, "early", at=T0)
    await put(queue, "middle", "middle-b", at=T0 + 1)
    assert await lease(queue, limit=0) == []
    assert [j.id for j in await lease(queue, limit=3)] == ["early", "middle", "middle-b"]
    assert [j.id for j in await lease(queue, limit=3)] == ["late"]


async def test_a_job_waits_until_it_is_ready(queue):
    await put(queue, "j", ready=T0 + 10 * S)
    assert await lease(queue, at=T0 + 10 * S - 1) == []
    assert await queue.depth("a", "work") == (1, 0, 0)
    assert [j.id for j in await lease(queue, at=T0 + 10 * S)] == ["j"]


async def test_queues_of_a_tenant_are_apart(queue):
    await put(queue, "j", name="one")
    assert await put(queue, "j", name="two") == [True]
    (job,) = await lease(queue, name="one")
    assert await queue.depth("a", "one") == (0, 1, 0)
    assert await queue.depth("a", "two") == (1, 0, 0)
    await queue.done("a", job)
    assert [j.id for j in await lease(queue, name="two")] == ["j"]


async def test_a_leased_job_is_invisible_until_its_lease_ends(queue):
    await put(queue, "j")
    (first,) = await lease(queue)
    assert await lease(queue, at=T0 + 60 * S - 1) == []
    (second,) = await lease(queue, at=T0 + 60 * S)
    assert (second.id, second.attempt) == ("j", 2)
    assert second.token != first.token


async def test_a_lost_lease_can_neither_finish_nor_return_nor_prolong_the_job(queue):
    await put(queue, "j")
    (lost,) = await lease(queue)
    (held,) = await lease(queue, at=T0 + 61 * S)
    for late in (
        queue.done("a", lost),
        queue.retry("a", lost, ready_ns=0),
        queue.retry("a", lost, ready_ns=0, dead=True),
        queue.extend("a", lost, now_ns=T0 + 62 * S, lease_ns=60 * S),
        queue.extend("a", lost, now_ns=T0, lease_ns=60 * S),
    ):
        with pytest.raises(Conflict):
            await late
    assert await queue.depth("a", "work") == (0, 1, 0)
    await queue.done("a", held)
    assert await queue.depth("a", "work") == (0, 0, 0)


async def test_a_job_given_back_or_finished_is_no_longer_held(queue):
    await put(queue, "j")
    (job,) = await lease(queue)
    await queue.retry("a", job, ready_ns=0)
    with pytest.raises(Conflict):
        await queue.done("a", job)
    (job,) = await lease(queue)
    await queue.done("a", job)
    for again in (queue.done("a", job), queue.retry("a", job, ready_ns=0), queue.extend("a", job, now_ns=T0, lease_ns=S)):
        with pytest.raises(Conflict):
            await again


async def test_an_old_token_stays_lost_when_the_id_is_put_again(queue):
    await put(queue, "j")
    (old,) = await lease(queue)
    await queue.done("a", old)
    await put(queue, "j")
    with pytest.raises(Conflict):
        await queue.done("a", old)
    assert await queue.depth("a", "work") == (1, 0, 0)


async def test_an_extended_lease_keeps_the_job_away_from_others(queue):
    await put(queue, "j")
    (job,) = await lease(queue)
    longer = await queue.extend("a", job, now_ns=T0 + 50 * S, lease_ns=60 * S)
    assert longer.lease_until_ns == T0 + 110 * S
    assert (longer.id, longer.body, longer.attempt) == (job.id, job.body, 1)
    assert await lease(queue, at=T0 + 110 * S - 1) == []
    await queue.done("a", longer)


async def test_extending_never_shortens_a_lease(queue):
    await put(queue, "j")
    (job,) = await lease(queue)
    assert (await queue.extend("a", job, now_ns=T0 + S, lease_ns=S)).lease_until_ns == T0 + 60 * S
    assert await lease(queue, at=T0 + 3 * S) == []


async def test_a_lease_that_ran_out_cannot_be_extended_even_if_nobody_took_the_job(queue):
    await put(queue, "j")
    (job,) = await lease(queue)
    with pytest.raises(Conflict):
        await queue.extend("a", job, now_ns=T0 + 60 * S, lease_ns=60 * S)
    assert [j.id for j in await lease(queue, at=T0 + 60 * S)] == ["j"]


async def test_a_job_given_back_waits_for_its_new_time_and_counts_the_attempt(queue):
    await put(queue, "j")
    (job,) = await lease(queue)
    await queue.retry("a", job, ready_ns=T0 + 5 * S)
    assert await queue.depth("a", "work") == (1, 0, 0)
    assert await lease(queue, at=T0 + 5 * S - 1) == []
    (job,) = await lease(queue, at=T0 + 5 * S)
    assert job.attempt == 2


async def test_a_dead_job_is_counted_and_never_leased(queue):
    await put(queue, "bad", "good")
    (job,) = await lease(queue)
    await queue.retry("a", job, ready_ns=0, dead=True)
    assert await queue.depth("a", "work") == (1, 0, 1)
    assert [j.id for j in await lease(queue, at=T0 + 10**6 * S, limit=10)] == ["good"]
    with pytest.raises(Conflict):
        await queue.done("a", job)


async def test_depth_counts_expired_leases_as_leased(queue):
    await put(queue, "a", "b", "c", "d")
    (dead, *_) = await lease(queue, limit=3)
    await queue.retry("a", dead, ready_ns=0, dead=True)
    assert await queue.depth("a", "work") == (1, 2, 1)


@pytest.mark.parametrize("skew", [-60 * S + 1, -S, 0, S, 60 * S - 1])
async def test_callers_whose_clocks_differ_by_less_than_the_lease_never_take_one_job_together(crowd, skew):
    right, wrong = crowd(Queue, 2)
    await put(right, "j", ready=T0 - 60 * S, at=T0 - 60 * S)
    taken = await asyncio.gather(lease(right), lease(wrong, at=T0 + skew), lease(right), lease(wrong, at=T0 + skew))
    assert sum(len(jobs) for jobs in taken) == 1
    (holder,) = [job for jobs in taken for job in jobs]
    await right.done("a", holder)


async def test_eight_concurrent_leasers_never_share_a_job(crowd):
    queues = crowd(Queue, 4)
    ids = [f"j{n:03}" for n in range(60)]
    await put(queues[0], *ids)

    async def drain(queue):
        mine = []
        while jobs := await lease(queue, limit=3):
            assert len(jobs) <= 3
            mine += [j.id for j in jobs]
            for job in jobs[:-1]:
                await queue.done("a", job)
        return mine

    taken = await asyncio.gather(*(drain(q) for q in queues * 2))
    assert sorted(i for mine in taken for i in mine) == ids


async def test_leasers_in_other_processes_never_share_a_job(make, spawn):
    queue = make(Queue)
    ids = [f"j{n:03}" for n in range(80)]
    await put(queue, *ids)
    code = f"""
        from noria.contracts.port import Queue
        say("up")
        sys.stdin.readline()
        async def main():
            queue = make(Queue)
            while jobs := await queue.lease("a", "work", now_ns={T0}, lease_ns={S}, limit=2):
                for job in jobs:
                    say(job.id)
                    await queue.done("a", job)
            await queue.close()
        asyncio.run(main())
    """
    workers = [spawn(code) for _ in range(4)]
    for w in workers:
        assert w.line() == "up"
    for w in workers:
        w.tell("go")
    ends = [w.end() for w in workers]
    assert [code for _, code, _ in ends] == [0] * 4, ends
    assert sorted(line for lines, _, _ in ends for line in lines) == ids
    assert await queue.depth("a", "work") == (0, 0, 0)


async def test_of_concurrent_puts_of_one_id_one_is_new(crowd):
    queues = crowd(Queue, 4)
    together = await asyncio.gather(*(q.put("a", "work", "k", b"", now_ns=T0) for q in queues * 2))
    assert sum(together) == 1
    assert await queues[0].depth("a", "work") == (1, 0, 0)


async def test_the_job_of_a_worker_that_died_comes_back_when_its_lease_ends(make, spawn):
    queue = make(Queue)
    await put(queue, "j")
    worker = spawn(f"""
        from noria.contracts.port import Queue
        async def main():
            (job,) = await make(Queue).lease("a", "work", now_ns={T0}, lease_ns={60 * S})
            say(job.token)
            await asyncio.sleep(600)
        asyncio.run(main())
    """)
    token = worker.line()
    worker.kill()
    assert token
    assert await queue.depth("a", "work") == (0, 1, 0)
    assert await lease(queue, at=T0 + 60 * S - 1) == []
    (job,) = await lease(queue, at=T0 + 60 * S)
    assert (job.id, job.body, job.attempt) == ("j", b"j", 2)
    assert job.token != token


async def test_every_job_that_put_answered_for_survives_kill_9(make, spawn):
    writer = spawn(f"""
        from noria.contracts.port import Queue
        async def main():
            queue, n = make(Queue), 0
            while True:
                n += 1
                await queue.put("a", "work", f"j{{n:06}}", b"", now_ns={T0})
                say(f"j{{n:06}}")
        asyncio.run(main())
    """)
    answered = [writer.line() for _ in range(20)]
    answered += [line for line in writer.kill() if len(line) == 7]
    there = [j.id for j in await lease(make(Queue), limit=100_000)]
    assert set(answered) <= set(there)
    assert len(there) - len(answered) <= 1


async def test_buried_jobs_are_listed_and_revived_once(queue):
    await put(queue, "first", "second", "well")
    await put(queue, "other", name="elsewhere", at=T0 - 1)
    for job in [*(await lease(queue, limit=2)), *(await lease(queue, name="elsewhere"))]:
        await queue.retry("a", job, ready_ns=T0, dead=True)
    found = await queue.dead("a")
    assert [(j.queue, j.id, j.body, j.attempt, j.put_ns) for j in found] == [
        ("elsewhere", "other", b"other", 1, T0 - 1), ("work", "first", b"first", 1, T0), ("work", "second", b"second", 1, T0),
    ]  # fmt: skip
    assert [j.id for j in await queue.dead("a", limit=1)] == ["other"]
    twice = await asyncio.gather(*(queue.revive("a", "work", "second", now_ns=T0 + 5 * S) for _ in range(2)))
    assert sorted(twice) == [False, True]
    assert not await queue.revive("a", "work", "well", now_ns=T0), "it is not dead"
    assert not await queue.revive("a", "elsewhere", "second", now_ns=T0)
    assert [j.id for j in await queue.dead("a")] == ["other", "first"]
    assert [j.id for j in await lease(queue, limit=9, at=T0 + 5 * S - 1)] == ["well"]
    (again,) = await lease(queue, limit=9, at=T0 + 5 * S)
    assert (again.id, again.attempt) == ("second", 2)
    await queue.done("a", again)


async def test_tenant_b_cannot_lease_end_count_or_infer_the_jobs_of_a(queue):
    await put(queue, "held", "only-a", "waiting", "dead")
    dead, held = await lease(queue, limit=2)
    await queue.retry("a", dead, ready_ns=0, dead=True)
    for other in ("b", "", "A", "a ", "a%", "_"):
        assert await lease(queue, tenant=other, at=T0 + 10**6 * S, limit=100) == []
        assert await queue.depth(other, "work") == (0, 0, 0)
        assert await queue.dead(other) == []
        assert not await queue.revive(other, "work", dead.id, now_ns=T0)
        for stolen in (
            queue.done(other, held),
            queue.retry(other, held, ready_ns=0),
            queue.retry(other, held, ready_ns=0, dead=True),
            queue.extend(other, held, now_ns=T0, lease_ns=S),
        ):
            with pytest.raises(Conflict):
                await stolen
    # The same ids are free to B, and ending B's jobs leaves A's alone.
    assert await put(queue, "held", "waiting", "dead", tenant="b", at=T0 + 1) == [True] * 3
    # A's older jobs do not stand in B's way.
    (first,) = await lease(queue, tenant="b", at=T0 + 1)
    await queue.done("b", first)
    for job in await lease(queue, tenant="b", limit=10):
        await queue.done("b", job)
    assert await queue.depth("a", "work") == (2, 1, 1)
    await queue.done("a", held)
