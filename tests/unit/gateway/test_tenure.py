"""Places and rates of several nodes in one counter: what a dead node held comes back, a cut-off one is bounded, nothing hangs."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noria.contracts.error import StoreError
from noria.engines.memory import MemoryCounter
from noria.gateway import tenure
from noria.gateway.bank import Bank
from noria.gateway.lease import Holding, Want
from noria.gateway.tenure import SKEW_NS, TERM_NS, SharedCounter

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
S = 1_000_000_000
PLACES, RATE, MONEY = "permits:l", "rate:l:r:10", "budget:b|tenant@0"


class Server:
    """A counter that other nodes use too; `away`: it refuses, `silent`: it does not answer at all."""

    def __init__(self, seed: int = 0) -> None:
        self.counter = MemoryCounter("memory://")
        self.away = self.silent = False
        self._pace = random.Random(seed)

    async def _pass(self) -> None:
        for _ in range(self._pace.randrange(3)):
            await asyncio.sleep(0)
        if self.silent:
            await asyncio.sleep(60)
        if self.away:
            raise StoreError("connection refused")

    async def take(self, *args, **kwargs):
        await self._pass()
        return await self.counter.take(*args, **kwargs)

    async def give(self, *args, **kwargs):
        await self._pass()
        return await self.counter.give(*args, **kwargs)

    async def read(self, *args, **kwargs):
        await self._pass()
        return await self.counter.read(*args, **kwargs)

    async def close(self) -> None:
        return


class Node:
    """A keeper with two workers that know what they hold; `skew`: how far its clock is ahead."""

    def __init__(self, name: str, server: Server, clock, skew: int = 0) -> None:
        self.name, self.server = name, server
        self.clock = SimpleNamespace(now_ns=lambda: clock.now + skew)
        self.held = {f"{name}-w{i}.0": [0, 0] for i in range(2)}
        self.vouched = 0
        self.start()

    def start(self) -> None:
        """Begin anew, as a keeper that was killed."""
        self.counter = SharedCounter(self.server, MemoryCounter("memory://"), self.clock, node=self.name)
        self.bank = Bank(self.counter, self, self.clock, tenure=self.counter)

    @property
    def term(self) -> int:
        return self.clock.now_ns() // TERM_NS

    @property
    def taken(self) -> int:
        return sum(taken for taken, _ in self.held.values())

    def holders(self) -> set[str]:
        return set(self.held)

    async def level(self) -> None:
        return

    async def spent(self, tenant: str, account: str) -> int | None:
        return 0 if account.startswith("budget:") else None

    async def take(self, amount: int = 1, *, ceiling: int, least: int = 0, worker: int = 0) -> int:
        name = list(self.held)[worker]
        held = self.held[name]
        held[1] += 1
        grant = await self.bank.take(Want(name, "local", PLACES, held[1], held[0], 0, amount, least or amount, ceiling, 0))
        held[0] += grant.amount
        return grant.amount

    async def put_back(self, amount: int, worker: int = 0) -> None:
        name = list(self.held)[worker]
        held = self.held[name]
        held[1] += 1
        held[0] -= min(amount, held[0])
        await self.tell(worker)

    async def tell(self, worker: int) -> None:
        name = list(self.held)[worker]
        taken, op = self.held[name]
        await self.bank.hold("local", name, [Holding(PLACES, op, taken, 0)], full=True)

    async def vouch(self) -> None:
        await self.bank.vouch()
        self.vouched = self.term

    def kill_workers(self) -> None:
        dead, self.held = self.held, {}
        for name in dead:
            self.bank.ended(name)


async def back(node: Node) -> None:
    while node.counter.away:
        await asyncio.sleep(0.001)


class Cluster:
    """Three nodes, each of which vouches at least once a term."""

    def __init__(self, seed: int, skews: list[int], ceiling: int) -> None:
        self.clock, self.server = SimpleNamespace(now=1000 * TERM_NS), Server(seed)
        self.skews, self.ceiling = skews, ceiling
        self.nodes = [Node(f"n{i}", self.server, self.clock, skews[i]) for i in range(3)]

    async def go_on(self, to: int) -> None:
        for node in self.nodes:
            if (to + SKEW_NS) // TERM_NS > node.vouched + 1 or not node.vouched:
                await node.vouch()
        self.clock.now = to

    async def act(self, n: int, who: int, what: str, amount: int) -> None:
        node, other = self.nodes[who], self.nodes[(who + 1) % 3]
        if what == "take":
            await asyncio.gather(
                node.take(amount, ceiling=self.ceiling, least=1, worker=amount % 2), other.take(1, ceiling=self.ceiling)
            )
        elif what == "give":
            await node.put_back(amount, amount % 2)
        elif what == "time":
            await self.go_on(self.clock.now + amount * S)
        elif what == "edge":
            await self.go_on(((self.clock.now + SKEW_NS) // TERM_NS + 1) * TERM_NS - SKEW_NS // 2)
        elif what == "vouch":
            await node.vouch()
        elif what == "restart":
            node.start()
            for worker in range(2):
                await node.tell(worker)
                await node.vouch()
                await other.take(1, ceiling=self.ceiling)
        else:
            self.nodes[who] = Node(f"m{n}", self.server, self.clock, self.skews[who])


ACTS = ["take"] * 6 + ["give", "vouch", "time", "time", "edge", "edge", "restart", "die"]


@PROPERTY
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(10, 80))
def test_nodes_together_never_pass_a_number_of_places_and_the_dead_ones_come_back(seed, ceiling, length) -> None:
    pace = random.Random(seed)

    async def run() -> None:
        cluster = Cluster(seed, [pace.randrange(SKEW_NS) for _ in range(3)], ceiling)
        for n in range(length):
            await cluster.act(n, pace.randrange(3), pace.choice(ACTS), pace.randint(1, 5))
            assert sum(each.taken for each in cluster.nodes) <= ceiling
        for each in cluster.nodes:
            for worker in range(2):
                await each.put_back(ceiling, worker)
        for _ in range(7):  # the terms in which the dead ones had noted something
            cluster.clock.now += 5 * S
            for each in cluster.nodes:
                await each.vouch()
        assert await cluster.nodes[0].take(ceiling, ceiling=ceiling) == ceiling

    asyncio.run(run())


async def test_a_keeper_that_begins_anew_knows_what_its_forerunner_noted() -> None:
    clock, server = SimpleNamespace(now=1000 * TERM_NS + 5 * S), Server()
    here, there = Node("here", server, clock), Node("there", server, clock)
    await here.take(3, ceiling=3)
    here.start()
    for worker in range(2):
        await here.tell(worker)
    await here.vouch()
    assert await there.take(1, ceiling=3) == 0
    await here.put_back(2)
    assert await there.take(2, ceiling=3) == 2


async def test_a_worker_that_dies_on_a_living_node_frees_its_places_at_the_next_look() -> None:
    clock, server = SimpleNamespace(now=1000 * TERM_NS + 5 * S), Server()
    here, there = Node("here", server, clock), Node("there", server, clock)
    for worker in range(2):
        await here.tell(worker)
    assert await here.take(3, ceiling=3) == 3
    assert await there.take(1, ceiling=3) == 0
    here.kill_workers()
    await here.vouch()
    assert await there.take(3, ceiling=3) == 3


async def test_a_node_that_is_silent_for_a_whole_term_keeps_its_places() -> None:
    clock, server = SimpleNamespace(now=1000 * TERM_NS), Server()
    here, there = Node("here", server, clock), Node("there", server, clock)
    await here.take(2, ceiling=2)
    for _ in range(2):
        clock.now += TERM_NS - 1
        assert await there.take(1, ceiling=2) == 0
        clock.now += 1
    clock.now += SKEW_NS
    assert await there.take(2, ceiling=2) == 2, "after that its places are others'"


async def test_while_the_server_is_away_each_node_keeps_rates_and_places_by_itself_and_money_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(tenure, "AGAIN", 0.001)
    clock, server = SimpleNamespace(now=1000 * TERM_NS), Server()
    here, there = Node("here", server, clock), Node("there", server, clock)
    end = clock.now + 60 * S
    assert await here.counter.take("local", RATE, want=4, least=1, ceiling=10, expires_ns=end, now_ns=clock.now) == 4
    server.away = True
    grants = [
        await node.counter.take("local", RATE, want=20, least=1, ceiling=10, expires_ns=end, now_ns=clock.now)
        for node in (here, there)
    ]
    assert grants == [6, 10], "what a node took before counts, what others took does not"
    assert await here.take(3, ceiling=3) == 3
    with pytest.raises(StoreError):
        await here.counter.take("local", MONEY, want=1, least=1, ceiling=10, expires_ns=0, now_ns=clock.now)
    await there.counter.give("local", RATE, 3, now_ns=clock.now)
    server.away = False
    for node in (here, there):
        await back(node)
        await node.vouch()
    assert await server.counter.read("local", RATE, now_ns=clock.now) == 4 + 6 + 10 - 3, "made up for"
    assert await there.take(1, ceiling=3) == 0
    assert (here.counter.outages, here.counter.away) == (1, False)


async def test_a_server_that_does_not_answer_holds_up_one_call_and_no_other(monkeypatch) -> None:
    monkeypatch.setattr(tenure, "WITHIN", 0.05)
    clock, server = SimpleNamespace(now=1000 * TERM_NS), Server()
    node = Node("here", server, clock)
    server.silent = True
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await node.take(1, ceiling=9) == 1
    assert loop.time() - began >= 0.05
    began = loop.time()
    for _ in range(20):
        await node.take(1, ceiling=9)
    assert loop.time() - began < 0.05
    await node.counter.close()


async def test_a_server_that_comes_back_empty_is_told_what_is_held(monkeypatch) -> None:
    monkeypatch.setattr(tenure, "AGAIN", 0.001)
    clock, server = SimpleNamespace(now=1000 * TERM_NS + 5 * S), Server()
    here, there = Node("here", server, clock), Node("there", server, clock)
    for worker in range(2):
        await here.tell(worker)
    await here.take(3, ceiling=3)
    server.away = True
    with pytest.raises(StoreError):
        await here.counter.read("local", MONEY, now_ns=clock.now)
    server.counter, server.away = MemoryCounter("memory://"), False
    await back(here)
    await here.vouch()
    assert await there.take(1, ceiling=3) == 0
