"""Three workers and a keeper, each killed between any two steps: no budget is ever passed, nothing stays reserved.

`make test` runs a hundredth; `-m slow` all 10,000 interleavings (one: three processes that spend one budget at once).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from noria.contracts.trace import Clause
from noria.gateway.budget import account_of
from noria.gateway.window import window_of

PARTS = Path(__file__).with_name("money_parts.py")
AT_ONCE = 25
WORKERS = 3


class Child:
    """A process that is started again, as a new one, whenever it has died."""

    def __init__(self, *argv: object) -> None:
        self.argv = [sys.executable, str(PARTS), *map(str, argv)]
        self.deaths = -1
        self.start()

    def start(self) -> None:
        self.deaths += 1
        self.read = b""
        self.process = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        if self.line(30) != "ready":
            assert self.process.wait(10) == -9, "only a kill may end it"
            self.close()
            self.start()

    def line(self, within: float) -> str | None:
        """The next line; "" at its end, None where none came in time."""
        while b"\n" not in self.read:
            ready, _, _ = select.select([self.process.stdout], [], [], within)
            if not ready:
                return None
            if not (data := os.read(self.process.stdout.fileno(), 65536)):
                return ""
            self.read += data
        line, _, self.read = self.read.partition(b"\n")
        return line.decode()

    def revive(self) -> None:
        """Start anew where it was killed."""
        if self.process.poll() is not None:
            assert self.process.returncode == -9, f"it failed by itself: {self.process.returncode}"
            self.close()
            self.start()

    def close(self) -> None:
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def tell(self, text: str) -> bool:
        try:
            self.process.stdin.write(text.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.close()


def run_round(keeper: Child, workers: list[Child], first: int, outcomes: Counter) -> None:
    """Every worker spends the budgets `first…` at once; one that dies is started again and what it had left is not done."""
    for worker in workers:
        for i in range(first, first + AT_ONCE):
            worker.tell(f"{i} {2 + i % 3}")
    for worker in workers:
        waiting, end = AT_ONCE, time.monotonic() + 60
        while waiting:
            line = worker.line(0.2)
            keeper.revive()
            assert time.monotonic() < end, "a worker hangs"
            if line == "":
                worker.process.wait(10)
                worker.revive()
                waiting = 0
            elif line is not None:
                outcomes.update(line.split()[2:])
                waiting -= 1


async def check(home: Path, count: int, seed: int) -> tuple[int, int, int]:
    """After everything has ended: (budgets passed, accounts with anything leaked, exchanges orphaned)."""
    sys.path.insert(0, str(PARTS.parent))
    from money_parts import budgets, open_treasury

    treasury, recording, counters, traces = await open_treasury(home, count, seed)
    task = asyncio.create_task(recording.run())
    await treasury.bury()
    treasury.bank._sound |= {("local", account_of(b, window_of(b, time.time_ns()))): 0 for b in budgets(count, seed)}
    treasury.bank.suspect("local")
    while await treasury.bank.mend():
        pass
    passed = leaked = 0
    for budget in budgets(count, seed):
        window = window_of(budget, time.time_ns())
        spent = await treasury.used(budget, window)
        there = await counters.read("local", account_of(budget, window), now_ns=time.time_ns())
        passed += spent > budget.nanousd
        leaked += there != spent
    orphans = await traces.totals("local", [Clause("error", "=", "orphaned")])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for store in (traces, counters, treasury._records):
        await store.close()
    return passed, leaked, orphans[0].exchanges if orphans else 0


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("interleavings", "worker_kill", "keeper_kill"),
    [pytest.param(100, 600, 600, id="1/100"), pytest.param(10_000, 2000, 6000, id="full", marks=pytest.mark.slow)],
)
def test_no_interleaving_of_three_processes_passes_a_budget_or_leaks(tmp_path, interleavings, worker_kill, keeper_kill) -> None:
    seed, outcomes = 20261122, Counter()
    keeper = Child("keeper", tmp_path, interleavings, seed, keeper_kill)
    workers = [Child("worker", tmp_path, i, interleavings, seed, worker_kill) for i in range(WORKERS)]
    try:
        for first in range(0, interleavings, AT_ONCE):
            run_round(keeper, workers, first, outcomes)
    finally:
        for worker in workers:
            worker.end()
        keeper.process.kill()
        keeper.end()
    passed, leaked, orphans = asyncio.run(check(tmp_path, interleavings, seed))
    killed = sum(w.deaths for w in workers)
    print(
        f"{interleavings} interleavings, {killed} workers and {keeper.deaths} keepers killed, {dict(outcomes)}, {orphans} orphans"
    )
    assert outcomes["paid"] >= interleavings // 4, "the proof must spend"
    assert outcomes["insufficient_quota"] >= interleavings // 4, "and refuse"
    assert killed >= 3
    assert (passed, leaked) == (0, 0)
