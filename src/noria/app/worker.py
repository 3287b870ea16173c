"""A gateway worker's living parts: the snapshot in force, the spool, the line to the keeper."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from noria.app.clock import SystemClock
from noria.app.house import Bench, WiredHouse
from noria.app.inflight import Inflight
from noria.app.link import DRAINING, Heartbeat, Link
from noria.app.sharing import WARM_WITHIN, Sharing
from noria.contracts.batch import Ticket
from noria.contracts.error import ConfigError, NoriaError, StoreError
from noria.contracts.release import Snapshot
from noria.contracts.trace import ExchangeRow
from noria.gateway.limits import Claim, Limits
from noria.gateway.probed import apply
from noria.gateway.ticket import verify, verify_pass
from noria.govern.access import Sessions, admin_token
from noria.kit.atomic import write_whole
from noria.kit.ids import keyed
from noria.kit.journal import Journal
from noria.kit.spool import SpoolWriter
from noria.observe.metrics import Metrics
from noria.observe.trace import encode

log = logging.getLogger("noria.worker")

FIRST_RETRY, LAST_RETRY = 0.05, 0.2
"""Seconds between attempts to reach a keeper that is away: an attempt costs little, and whoever starts Noria waits for it."""
WORTH_A_WORD = 2.0
"""Seconds for which a keeper may be away without a line in the log: at a start, or a restart, it always is for a moment."""


class Worker:
    """One worker: `house` is replaced whole when the configuration changes (DESIGN §3a.3)."""

    def __init__(self, home: Path, slot: int, *, workers: int = 1, node: str = "n0", side: str = "") -> None:
        self.home = home
        self.name = f"{node}-w{slot}{side}"
        self.house: WiredHouse | None = None
        self.draining = False
        """Whether the service is being stopped; a worker that is merely replaced goes on being ready."""
        self.in_flight: Callable[[], Mapping[str, int]] = dict
        """Requests being answered, by path."""
        self.trouble = ""
        """Why the newest configuration is not in force here, in words."""
        self.started_s = int(time.time())
        self.link = Link(home)
        self.spool = SpoolWriter(home / "spool", self.name)
        self._rows: list[bytes] = []
        self._claims: list[tuple[Claim, ExchangeRow]] = []
        """What the exchanges of `_rows` have set aside."""
        self.lines: set[str] = set()
        """Lines of batches in work (`batch_…/7`)."""
        self.journal = Journal(home / "batches", self.name)
        self.metrics = Metrics(self._known_app, home / "metrics", f"{slot}{side}")
        if not self.metrics.shared:
            log.warning("no room for shared metrics in %s: /metrics tells of one worker a time", home / "metrics")
        self.sessions = Sessions(admin_token(home))
        self.clock = SystemClock()
        self.open = Inflight(home / "inflight", self.name, self.clock.now_ns())
        self.link.holder = self.open.holder
        self.limits = Limits(self.link, self.clock, workers=workers, journal=self.open)
        self._subject_key = b""
        self._unsaved: Snapshot | None = None
        self._configured = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._bench = Bench(
            home=home,
            worker=self.name,
            clock=self.clock,
            limits=self.limits,
            sessions=self.link,
            is_session=lambda text: self.sessions.valid(text, time.time_ns()),
            spool=self._record,
            metrics=self.metrics,
            passed=lambda text: verify_pass(text, self._subject_key, now_ns=self.clock.now_ns()),
        )
        self._sharing = Sharing(self._bench.cache, self.link.cache_key)

    async def start(self) -> None:
        """Serve by the snapshot on disk, if any, and follow the keeper's."""
        stored = self._stored()
        if stored is not None:
            self._adopt(stored)
        self._tasks = [
            asyncio.create_task(self._follow()),
            asyncio.create_task(self._tick()),
            asyncio.create_task(self._account()),
        ]

    async def configured(self, within: float) -> bool:
        """Wait until there is a configuration, at most `within` seconds; whether there is."""
        try:
            async with asyncio.timeout(within):
                await self._configured.wait()
        except TimeoutError:
            log.warning("no configuration after %.0f s", within)
        if self.house is not None and self.house.shares:
            with suppress(TimeoutError):
                async with asyncio.timeout(WARM_WITHIN):
                    await self._sharing.ready.wait()
        return self.house is not None

    async def stop(self) -> None:
        """Give back what is leased, flush the spool, say good-bye."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sharing.close()
        self._write()
        await self.limits.give_back()
        self._write()
        await asyncio.to_thread(self.spool.close)
        self.open.close()
        self.journal.close()
        with suppress(StoreError):
            await self.link.beat(Heartbeat(self.name, os.getpid(), leaving=True))
        await self._bench.keep_only([])

    @property
    def drain_asked(self) -> bool:
        """Whether an operator has asked the whole service to drain (`/drainz`)."""
        return self.drain_mark.exists()

    @property
    def drain_mark(self) -> Path:
        """The file that is there meanwhile: every worker of the node sees it."""
        return self.home / "run" / DRAINING

    def subject(self, user: str) -> str:
        """The keyed hash that stands for a caller's user (DESIGN §3a.4); empty while the key is unknown."""
        return keyed(self._subject_key, user.encode())[:32] if user and self._subject_key else ""

    def ticket(self, value: str) -> Ticket | None:
        """What the keeper signed for a line of a batch; None for anything else."""
        return verify(value, self._subject_key, now_ns=self.clock.now_ns())

    def _known_app(self, app: str) -> bool:
        return self.house is not None and (app in self.house.snapshot.apps or app in self.house.snapshot.embedders)

    def _record(self, row: ExchangeRow, claim: Claim | None) -> None:
        """Into the page cache before the last byte of the answer leaves: at once for a stream, whose bytes leave at any
        time; for a whole answer with all others of this turn of the event loop, behind which answers leave (`promise`).
        """
        self._rows.append(encode(row))
        if claim is not None:
            self._claims.append((claim, row))
        if row.stream:
            self._write()
        elif len(self._rows) == 1:
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            claims, self._claims = self._claims, []
            self.spool.extend(rows)
            for claim, row in claims:  # not before: what is paid must be in the ledger, or under way (`gateway.budget`)
                claim.settle(row.cost_nanousd, row.usage)

    async def _follow(self) -> None:
        """Take each new snapshot from the keeper; while it is away, ask again at growing intervals and say so once."""
        pause, said = FIRST_RETRY, ""
        while True:
            try:
                after = self.house.snapshot.hash if self.house and self._subject_key else ""
                found = await self.link.snapshot(after, 20.0, self.name)
                if found is not None:
                    self._subject_key = found.subject_key
                    tenants = dict.fromkeys(k.tenant for k in found.snapshot.keys.values())
                    await self._sharing.adopt(found.cache, found.subject_key, tenants or ("local",))
                    if self.house is None or found.snapshot.hash != self.house.snapshot.hash:
                        await self._change(found.snapshot)
                        self._unsaved = found.snapshot
                self._save()
                pause, said, self.trouble = FIRST_RETRY, "", ""
            except (StoreError, ConfigError, msgspec.MsgspecError, OSError) as e:
                # the heartbeat tells of a keeper that is away; here it is only worth a word where something else is wrong
                if str(e) != said and getattr(e, "code", "") != "keeper_away":
                    said = self.trouble = str(e)
                    log.warning("no new configuration, the one in force stays: %s", e)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_RETRY)

    def _save(self) -> None:
        """Keep the snapshot for a start without the keeper; tried again with the next one's arrival, or in 20 s."""
        if self._unsaved is not None:
            write_whole(self._path, msgspec.msgpack.encode(self._unsaved), mode=0o600)
            self._unsaved = None

    async def beat(self) -> None:
        """Tell the keeper each second that this worker lives; log when it has been away for a moment, and when it is back."""
        pause, gone, warned = FIRST_RETRY, 0.0, False
        while True:
            counts = self.spool.counts
            try:
                probed = await self.link.beat(
                    Heartbeat(
                        self.name,
                        os.getpid(),
                        counts.dropped,
                        counts.pending,
                        self.spool.alarm,
                        config=self.house.snapshot.hash if self.house else "",
                        trouble=self.trouble,
                        in_flight=sum(self.in_flight().values()),
                        draining=self.drain_asked,
                        lines=tuple(self.lines),
                        endpoints=self._bench.traffic.board.standings(time.perf_counter_ns()),
                    )
                )
            except StoreError as e:
                gone = gone or time.monotonic()
                if not warned and time.monotonic() - gone >= WORTH_A_WORD:
                    warned = True
                    log.warning("the keeper is away: answers go on, traces wait in the spool. %s", e.text)
                self.metrics.keeper(up=False)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_RETRY)
                continue
            apply(self._bench.traffic.board, probed, time.perf_counter_ns())
            if warned:
                log.info("the keeper is back after %.1f s", time.monotonic() - gone)
            pause, gone, warned = FIRST_RETRY, 0.0, False
            self.metrics.keeper(up=True)
            await asyncio.sleep(1.0)

    async def _change(self, snapshot: Snapshot) -> None:
        old = self.house
        self._adopt(snapshot)
        if old is not None and self.house is not None:
            await asyncio.sleep(0)
            await self._bench.keep_only(self.house.endpoints)

    def _adopt(self, snapshot: Snapshot) -> None:
        try:
            self.house = WiredHouse(snapshot, self._bench)
        except NoriaError as e:
            raise ConfigError(f"snapshot {snapshot.hash[:11]} cannot be wired: {e}") from e
        self._configured.set()
        log.info("serving configuration %s", snapshot.hash[:11])

    def _stored(self) -> Snapshot | None:
        """The last snapshot on disk; None where there is none or it is of another version."""
        try:
            return msgspec.msgpack.decode(self._path.read_bytes(), type=Snapshot)
        except (OSError, msgspec.MsgspecError):
            return None

    @property
    def _path(self) -> Path:
        return self.home / "run" / "snapshot.msgpack"

    async def _account(self) -> None:
        """Tell the keeper each second what is leased, and soon again where it did not hear."""
        while True:
            try:
                await self.limits.tick()
            except StoreError:
                await asyncio.sleep(0.1)
            else:
                await asyncio.sleep(1.0)

    async def _tick(self) -> None:
        seen = (0, 0, 0, 0)
        while True:
            await asyncio.sleep(1.0)
            now = (self.limits.evaluated, self.limits.acted, self.limits.unchecked, self.limits.slices.reach.late)
            self.metrics.limits(
                dict(
                    zip(
                        ("evaluated", "acted", "unchecked", "late"),
                        (n - s for n, s in zip(now, seen, strict=True)),
                        strict=True,
                    )
                )
            )
            seen = now
            spool = self.spool.counts
            self.metrics.spool(spool.dropped, self.spool.alarm, spool.pending)
            self.metrics.load(sum(self.in_flight().values()), self.limits.queued)
            self.metrics.policies(self.limits.policies())
            self.metrics.routing(*self._bench.traffic.numbers(time.perf_counter_ns()))
            self._bench.cache.sweep()
            cache = self._bench.cache
            self.metrics.cache(cache.tally(), cache.saved_nanousd, cache.held, cache.tier.waited_ns if cache.tier else 0)
