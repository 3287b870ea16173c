"""The two kinds of process of the money proof: `python money_parts.py keeper|worker HOME …`, killed at random steps.

Both are Noria's own parts: Treasury, Bank, sqlite counters and records, DuckDB traces on one side; Limits, slots and spool on
the other. Only the line between them is the test's (one msgpack message a call), and the model, which is a random pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import msgspec

from noria.app.clock import SystemClock
from noria.contracts.error import NoriaError, StoreError
from noria.contracts.exchange import Exchange, Usage
from noria.contracts.price import Price
from noria.contracts.release import Budget, Endpoint, Release, Snapshot
from noria.gateway.lease import Grant, Holding, Want

PRICE = Price(input=0.0, output=1.0)
RESERVED = 20_000
"""Nano-dollars that each exchange of the proof sets aside: 20 tokens."""


def budgets(count: int, seed: int) -> tuple[Budget, ...]:
    """From nothing at all to a little less than what will be asked for."""
    pace = random.Random(seed)
    return tuple(
        Budget(f"b{i}", f"app:a{i}", pace.choice([0, RESERVED, 3 * RESERVED, 5 * RESERVED, 12 * RESERVED]), "month", alerts=())
        for i in range(count)
    )


def snapshot(count: int, seed: int) -> Snapshot:
    return Snapshot("c1:x", "local", 1, {}, {}, budgets=budgets(count, seed))


class Dice:
    """Kills this process between two steps, once in so many."""

    def __init__(self, seed: int, once_in: int) -> None:
        self._pace = random.Random(seed)
        self._once_in = once_in

    def step(self) -> None:
        if self._once_in and self._pace.randrange(self._once_in) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async def pause(self) -> None:
        self.step()
        for _ in range(self._pace.randrange(4)):
            await asyncio.sleep(0)
        if self._pace.random() < 0.2:
            await asyncio.sleep(self._pace.random() * 0.003)
        self.step()


async def call(reader, writer, message):
    data = msgspec.msgpack.encode(message)
    writer.write(struct.pack("<I", len(data)) + data)
    await writer.drain()
    return await receive(reader)


async def receive(reader) -> bytes:
    (size,) = struct.unpack("<I", await reader.readexactly(4))
    return await reader.readexactly(size)


# -- keeper -------------------------------------------------------------------------------------------------


async def open_treasury(home: Path, count: int, seed: int):
    from noria.app.recording import Recording
    from noria.app.treasury import Treasury
    from noria.contracts.port import Counter, RecordStore
    from noria.engines.duckdb import DuckdbTraces
    from noria.engines.sqlite import ENGINE

    async def key(tenant: str, subject: str) -> bytes:
        return b"k" * 32

    traces = DuckdbTraces(f"duckdb:///{home}/traces")
    counters = ENGINE.serves[Counter](f"sqlite:///{home}/c.db")
    records = ENGINE.serves[RecordStore](f"sqlite:///{home}/r.db")
    recording = Recording(home / "spool", traces, key)
    treasury = Treasury(home, recording, tenant="local", records=records, traces=traces, counters=counters, clock=SystemClock())
    await treasury.adopt(snapshot(count, seed))
    return treasury, recording, counters, traces


async def keeper(home: Path, count: int, seed: int, once_in: int) -> None:
    treasury, recording, _, _ = await open_treasury(home, count, seed)
    dice = Dice(time.time_ns(), once_in)

    async def serve(reader, writer) -> None:
        try:
            while True:
                kind, *what = msgspec.msgpack.decode(await receive(reader))
                dice.step()
                if kind == "take":
                    answer = await treasury.bank.take(msgspec.convert(what[0], Want))
                else:
                    tenant, holder, holdings, full = what
                    answer = await treasury.bank.hold(tenant, holder, msgspec.convert(holdings, list[Holding]), full=full)
                dice.step()
                data = msgspec.msgpack.encode(answer)
                writer.write(struct.pack("<I", len(data)) + data)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
        except StoreError as e:
            if os.environ.get("MONEY_DEBUG"):
                print(e, treasury.holders(), treasury.bank._complete, file=sys.stderr, flush=True)
            writer.close()

    path = home / "keeper.sock"
    path.unlink(missing_ok=True)
    await asyncio.start_unix_server(serve, str(path))
    print("ready", flush=True)
    await asyncio.gather(recording.run(), treasury.run())


# -- worker -------------------------------------------------------------------------------------------------


class Line:
    """`gateway.lease.Leases` over the socket; a keeper that is away is a `StoreError`, as in `app.link`."""

    def __init__(self, home: Path, holder: str, dice: Dice) -> None:
        self.holder = holder
        self._path = str(home / "keeper.sock")
        self._dice = dice

    async def _call(self, message):
        await self._dice.pause()
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    return await call(reader, writer, message)
                finally:
                    writer.close()
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as e:
            raise StoreError("away", code="keeper_away") from e
        finally:
            await self._dice.pause()

    async def take(self, want: Want) -> Grant:
        return msgspec.msgpack.decode(await self._call(["take", want]), type=Grant)

    async def hold(self, tenant: str, holdings: list[Holding], *, full: bool) -> bool:
        return msgspec.msgpack.decode(await self._call(["hold", tenant, self.holder, holdings, full]), type=bool)


async def worker(home: Path, slot: int, count: int, seed: int, once_in: int) -> None:
    from noria.app.inflight import Inflight
    from noria.gateway.limits import Limits
    from noria.kit.spool import SpoolWriter

    name, clock = f"w{slot}", SystemClock()
    dice = Dice(time.time_ns() + slot, once_in)
    inflight = Inflight(home / "inflight", name, clock.now_ns())
    spool = SpoolWriter(home / "spool", name)
    limits = Limits(Line(home, inflight.holder, dice), clock, workers=3, journal=inflight)
    limits.adopt(snapshot(count, seed))

    async def tick() -> None:
        while True:
            with contextlib.suppress(StoreError):
                await limits.tick()
            await asyncio.sleep(0.2)

    ticking = asyncio.create_task(tick())
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)
    running: set[asyncio.Task] = set()
    while line := (await commands.readline()).split():
        task = asyncio.create_task(interleaving(int(line[0]), int(line[1]), limits, spool, dice))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)
    await limits.give_back()
    spool.close()
    inflight.close()


async def interleaving(i: int, asks: int, limits, spool, dice: Dice) -> None:
    results = await asyncio.gather(*(insist(i, limits, spool, dice) for _ in range(asks)))
    print("done", i, *results, flush=True)


async def insist(i: int, limits, spool, dice: Dice) -> str:
    """As a caller that comes again while the keeper is away."""
    for _ in range(30):
        if (said := await exchange(i, limits, spool, dice)) != "budget_unavailable":
            break
        await asyncio.sleep(0.1)
    return said


async def exchange(i: int, limits, spool, dice: Dice) -> str:
    from noria.kit.ids import uuid7
    from noria.kit.step import Stopwatch
    from noria.observe.account import Account
    from noria.observe.trace import encode

    endpoint = Endpoint("m", "scripted", "m", price=PRICE)
    x = Exchange(
        uuid7(), "t" * 32, "s" * 16, "local", "chat", f"a{i}", False, {"max_tokens": msgspec.Raw(b"20")}, time.time_ns(),
        release=Release("r1:x", "main", f"a{i}", (endpoint,)),
    )  # fmt: skip
    account = Account(Stopwatch())
    claim = None
    try:
        await dice.pause()
        claim = await limits.enter(x, [])
        await dice.pause()
        await limits.reserve(claim, x)
        account.reserved = claim.amount
        assert claim.amount == RESERVED
        await dice.pause()  # the model
        account.endpoint = endpoint
        account.usage = Usage(0, random.choice([0, 1, 7, 19, 20, 20]))
    except NoriaError as e:
        account.error = e
    finally:
        row = account.row(x, worker=spool.name, config="")
        dice.step()
        spool.append(encode(row))
        dice.step()
        if claim is not None:
            claim.settle(row.cost_nanousd, row.usage)
        dice.step()
    return account.error.code if account.error is not None else "paid"


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    place, *numbers = Path(given[0]), *map(int, given[1:])
    asyncio.run({"keeper": keeper, "worker": worker}[what](place, *numbers))
