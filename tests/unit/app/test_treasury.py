"""The keeper's treasury: who is dead, and who only began while the dead were buried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from noria.app.recording import Recording
from noria.app.treasury import Treasury
from noria.contracts.port import TraceStore
from noria.engines.memory import MemoryCounter, MemoryRecords
from noria.gateway.lease import Want
from noria.kit.slots import Slots

ACCOUNT = "permits:l"


class Clock:
    def now_ns(self) -> int:
        return 100


class Recorded:
    """A recording that has nothing more to store; something happens while it looks."""

    def __init__(self, meanwhile: Callable[[], Any]) -> None:
        self.meanwhile = meanwhile

    async def level(self) -> None:
        await self.meanwhile()


def want(holder: str) -> Want:
    return Want(holder, "local", ACCOUNT, 1, 0, 0, want=1, least=1, ceiling=6, expires_ns=0)


async def test_a_worker_that_begins_while_another_is_buried_keeps_what_it_has_taken(tmp_path: Path) -> None:
    """A killed worker is replaced within a second, and the recorder may be that far behind."""
    folder = tmp_path / "inflight"
    began: list[Slots] = []

    async def another() -> None:
        if began:
            return
        began.append(Slots(folder, "w0", 102))
        assert (await treasury.bank.take(want("w0.102"))).amount == 1

    treasury = Treasury(
        tmp_path, cast("Recording", Recorded(another)), tenant="local", records=MemoryRecords("memory://"),
        traces=cast("TraceStore", None), counters=MemoryCounter("memory://"), clock=Clock(),
    )  # fmt: skip
    killed = Slots(folder, "w0", 101)
    assert (await treasury.bank.take(want("w0.101"))).amount == 1
    killed.close(keep=True)
    assert await treasury.bury() == 1
    await treasury.bank.hold("local", "w0.102", [], full=True)
    await treasury.bank.mend()
    assert treasury.bank.leases("local", ACCOUNT).keys() == {"w0.102"}
    assert await treasury.bank.taken("local", ACCOUNT) == 1
    began[0].close()
