"""The keeper: owns the embedded stores and answers queries; nothing of a request waits for it (DESIGN §3)."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from noria import __version__
from noria.app.change import Changes
from noria.app.clock import SystemClock
from noria.app.datasets import Datasets
from noria.app.definition import Definition, apply, build_snapshot, stored_definition
from noria.app.depot import Depot
from noria.app.directory import Directories
from noria.app.drift import Drifts
from noria.app.evaluating import Evaluations
from noria.app.feedback import Feedbacks
from noria.app.gates import Gates
from noria.app.keyring import Keyring
from noria.app.last_used import LastUsed
from noria.app.link import Heartbeat
from noria.app.model_process import adapter_of, told_by
from noria.app.notice import idle
from noria.app.otlp import Push
from noria.app.policies import Policies
from noria.app.probing import Probing
from noria.app.recording import Recording
from noria.app.refreshes import Refreshes
from noria.app.registry import Registry, event
from noria.app.releases import Releases
from noria.app.responses import KeptResponses
from noria.app.rollouts import Rollouts
from noria.app.sharing import SharedAnswers
from noria.app.training import Trainings
from noria.app.treasury import Treasury
from noria.contracts.error import Conflict, NotFound, StoreError, Unauthorized
from noria.contracts.message import Message
from noria.contracts.port import Counter, DatasetStore, RecordStore, TraceStore, Write
from noria.contracts.release import Endpoint, Key, Snapshot
from noria.contracts.trace import ExchangeRow, TraceQuery
from noria.gateway.probed import Probed
from noria.gateway.tenure import SharedCounter
from noria.govern.access import Sessions
from noria.observe.trace import read_bodies

log = logging.getLogger("noria.keeper")

SECRET, CONVERSATION = "secret", "conversation"
LOGIN_NS = 600 * 1_000_000_000
FORGET_WORKER = 60.0
"""Seconds of silence after which a worker is no longer listed."""
LIVING, FOLLOWED = 3.0, 1.0
"""Seconds of silence after which nobody waits for a worker any more, and for which a change of a key waits for all of them."""
APPENDS = 16
"""Appends of a conversation that are remembered."""
MAX_KEPT = 400
"""Messages of one conversation kept at most, whatever a release replays."""


class Said(msgspec.Struct, frozen=True):
    """What a conversation holds, oldest first."""

    messages: tuple[Message, ...] = ()
    appended: tuple[str, ...] = ()
    """The latest appends: one that is repeated after a lost answer is known again."""


Bodies = Literal["stored", "erased", "none", "off"]


class Recorded(msgspec.Struct, frozen=True):
    """One exchange as it is kept. `bodies`: erased = their key was destroyed, none = refused before anything
    might be kept, off = the app records no bodies.
    """

    row: ExchangeRow
    request: bytes | None
    answer: bytes | None
    bodies: Bodies


class Stores(msgspec.Struct):
    """The ports that a keeper owns."""

    records: RecordStore
    traces: TraceStore
    counters: Counter
    depot: Depot | None = None
    """Files and batches of callers."""
    tenure: SharedCounter | None = None
    """The counters, where other nodes count with them too."""
    cache: SharedAnswers | None = None
    """Answers that workers share."""
    datasets: DatasetStore | None = None
    """Dataset rows and versions."""


class Keeper:
    """Everything that is stored, behind plain methods; the surfaces of `noria.api.manage` call these."""

    def __init__(self, home: Path, stores: Stores, sessions: Sessions, *, tenant: str = "local") -> None:
        self.home = home
        self.tenant = tenant
        self.sessions = sessions
        self.records = stores.records
        self.traces = stores.traces
        self.counters = stores.counters
        self.depot = stores.depot
        self._cache = stores.cache
        self.datasets = Datasets(stores.datasets, self.body_key) if stores.datasets is not None else None
        self.used = LastUsed(stores.records, tenant)
        self.recording = Recording(home / "spool", stores.traces, self.body_key, seen=self._seen)
        self.feedback = Feedbacks(stores.records, stores.traces, self.body_key, self._subject_key, SystemClock())
        self.registry = Registry(stores.records, tenant, self.renew)
        self.directories = Directories(self.registry)
        self.keyring = Keyring(self.registry, self.directories)
        self.responses = KeptResponses(stores.records, self.body_key)
        self.policies = Policies(self.registry, self.current)
        self.releases = Releases(home, self.registry, self.current)
        self.rollouts = Rollouts(self.registry, stores.traces, current=self.current, unready=self.unready)
        self.rollouts.scores, self.feedback.news = self.feedback.scores, self.rollouts.news
        self.gates = Gates(home, self.releases)
        self.rollouts.asked = self.gates.judged
        self.treasury = Treasury(
            home, self.recording, tenant=tenant, records=stores.records, traces=stores.traces,
            counters=stores.counters, clock=SystemClock(), tenure=stores.tenure,
        )  # fmt: skip
        self.trainings: Trainings | None = None
        """Jobs that train models, where there is a runner for them."""
        self.evaluations: Evaluations | None = None
        """Runs suites against releases, where there are datasets."""
        self.changes: Changes | None = None
        """Plans and applies files; set by whoever knows how they are read."""
        self.probes = Probing(home, tenant, SystemClock(), self.recording.add)
        self.push: Push | None = None
        """Tells a collector of this node's metrics, where one is configured."""
        self.drift = Drifts(self, None, SystemClock())
        """Watches whether traffic changes; runs jobs once somebody has given it a runner."""
        self.refreshes: Refreshes | None = None
        """Turns of the wheel, where there is a runner for them."""
        self._secrets: dict[str, bytes] = {}
        self._codes: dict[str, int] = {}
        self._snapshot: Snapshot | None = None
        self._fresh = asyncio.Condition()
        self._leaving = False
        self._workers: dict[str, tuple[Heartbeat, float]] = {}
        self._serving: dict[str, str] = {}
        """The configuration that each worker had when it last asked for the next."""
        self._tasks: list[asyncio.Task[None]] = []
        self.keep_days = 30

    # -- life ---------------------------------------------------------------------------------------

    async def start(self, definition: Definition | None) -> list[str]:
        """Apply `definition` where it is new, then follow the registry and the spool. What changed."""
        changes = []
        if definition is not None:
            changes = await apply(self.records, self.tenant, definition)
            if changes:
                await self.note("config.applied", "file", definition.source, {"changes": changes})
        self._snapshot = await build_snapshot(self.records, self.tenant)
        await self.treasury.adopt(self._snapshot)
        self.probes.adopt(self._snapshot)
        applied = definition or await stored_definition(self.records, self.tenant)
        if applied is not None:
            self.treasury.webhook.url, self.treasury.webhook.source = applied.webhook, applied.public_url
        self._tasks = [
            asyncio.create_task(self.treasury.run()),
            asyncio.create_task(self._follow()),
            asyncio.create_task(self.recording.run()),
            asyncio.create_task(self._age()),
            asyncio.create_task(self.used.run()),
            asyncio.create_task(self.rollouts.run()),
            asyncio.create_task(self.feedback.run(self.tenant)),
            asyncio.create_task(self.drift.run()),
        ]
        if self.refreshes is not None:
            self._tasks.append(asyncio.create_task(self.refreshes.run()))
        if applied is not None:
            await self.rollouts.declare(applied.rollouts)
        if self._cache is not None:
            self._tasks.append(asyncio.create_task(self._cache.run()))
        if self.depot is not None:
            heard, snapshot = (lambda: list(self._workers.values())), (lambda: self._snapshot)
            self.depot.open(self.tenant, self.records, self.secret, heard, snapshot=snapshot)
        if self.push is not None:
            self.push.start()
        return changes

    async def leave(self) -> None:
        """Let go of who waits for a snapshot or reads live: nobody else ends a wait that the server would have to sit out."""
        self.recording.end_live()
        async with self._fresh:
            self._leaving = True
            self._fresh.notify_all()

    async def stop(self) -> None:
        """Take in what the spool still holds, then close the stores."""
        if self.depot is not None:
            await self.depot.close()
        if self.push is not None:
            await self.push.close()
        await self.probes.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self.recording.catch_up()
        except StoreError as e:
            log.error("the last traces stay in the spool until the next start: %s", e)
        await self.used.save()
        if self._cache is not None:
            await self._cache.close()
        if self.datasets is not None:
            await self.datasets.close()
        await self.traces.close()
        await self.counters.close()
        await self.records.close()

    async def _follow(self) -> None:
        """Rebuild the snapshot when the registry's revision rises; only a changed hash wakes the workers."""
        seen = -1
        while True:
            try:
                seen = await self.records.changed(self.tenant, seen, within=30.0)
                await self.refresh()
            except StoreError as e:
                log.warning("the registry cannot be followed, workers keep what they have: %s", e)
                await asyncio.sleep(5.0)
            await asyncio.sleep(0.1)

    async def _age(self) -> None:
        """Once an hour: seal the days that are over, drop those past their retention (DESIGN §3a.12)."""
        while True:
            today = dt.datetime.now(dt.UTC).date()
            try:
                await self.traces.seal(self.tenant, today.isoformat())
                oldest = today - dt.timedelta(days=self.keep_days)
                await self.treasury.fold(int(dt.datetime(*oldest.timetuple()[:3], tzinfo=dt.UTC).timestamp()) * 1_000_000_000)
                await self.traces.drop(self.tenant, oldest.isoformat())
                await self.responses.expire(self.tenant, time.time_ns())
                await self.feedback.expire(self.tenant, time.time_ns())
            except StoreError as e:
                log.warning("sealing: %s", e)
            await asyncio.sleep(3600)

    @property
    def config(self) -> str | None:
        """Hash of the configuration in force."""
        return self._snapshot.hash if self._snapshot else None

    async def refresh(self) -> None:
        """Rebuild the snapshot now, so that whoever changed something sees it in force."""
        fresh = await build_snapshot(self.records, self.tenant)
        async with self._fresh:
            if fresh is not None and (self._snapshot is None or fresh.hash != self._snapshot.hash):
                await self.treasury.adopt(fresh)
                self._snapshot = fresh
                self.probes.adopt(fresh)
                self._fresh.notify_all()

    async def renew(self) -> None:
        """As `refresh`, and waits until every worker that lives follows, at most `FOLLOWED` seconds: a new key works, and one
        that was revoked does not, when whoever changed it is told so.
        """
        await self.refresh()
        async with self._fresh:
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOWED):
                    await self._fresh.wait_for(self._followed)

    def _followed(self) -> bool:
        now = time.monotonic()
        living = [h for h, at in self._workers.values() if now - at < LIVING and not h.trouble]
        return all(self._serving.get(h.worker) == self.config for h in living)

    async def snapshot(self, after: str, wait: float, worker: str = "") -> Snapshot | None:
        """The snapshot, at once where its hash is not `after`, else when it changes; None after `wait` seconds. `worker` serves
        `after` now.
        """
        async with self._fresh:
            if worker:
                self._serving[worker] = after
                self._fresh.notify_all()
            try:
                async with asyncio.timeout(wait):
                    await self._fresh.wait_for(lambda: self._leaving or self._changed(after))
            except TimeoutError:
                return None
        return self._snapshot if self._changed(after) else None

    def current(self) -> Snapshot | None:
        """The snapshot in force; None before the first apply."""
        return self._snapshot

    async def definition(self) -> Definition | None:
        """The definition in force; None before the first apply."""
        return await stored_definition(self.records, self.tenant)

    def _changed(self, after: str) -> bool:
        return self._snapshot is not None and self._snapshot.hash != after

    # -- secrets ------------------------------------------------------------------------------------

    async def secret(self, tenant: str, name: str) -> bytes:
        """32 random bytes under a name, made on first use; destroying the record erases what they protect."""
        known = self._secrets.get(f"{tenant}\0{name}")
        if known is not None:
            return known
        record = await self.records.get(tenant, SECRET, name)
        if record is None:
            fresh = secrets.token_bytes(32)
            try:
                await self.records.commit(tenant, [Write(SECRET, name, fresh, expect=0)], quiet=True)
            except Conflict:
                return await self.secret(tenant, name)
            value = fresh
        else:
            value = record.value
        if len(self._secrets) > 10_000:
            self._secrets.clear()
        self._secrets[f"{tenant}\0{name}"] = value
        return value

    async def body_key(self, tenant: str, subject: str) -> bytes:
        """The key of a body: the subject's where there is one, else the tenant's (DESIGN §3a.6)."""
        return await self.secret(tenant, f"subject:{subject}" if subject else "bodies")

    async def _subject_key(self, tenant: str, _: str) -> bytes:
        """What names of users are hashed with."""
        return await self.secret(tenant, "subjects")

    async def subject_of(self, user: str) -> str:
        """The keyed hash that stands for a user (DESIGN §3a.4)."""
        return await self.feedback.hashed(self.tenant, user)

    # -- cached answers -----------------------------------------------------------------------------

    @property
    def cache_url(self) -> str:
        """Where workers share answers; empty where they do not. May hold a password."""
        return self._cache.url if self._cache else ""

    async def cached(self, tenant: str) -> dict[str, Any]:
        """What is kept to be answered again."""
        return await self._shared().show(tenant, self._snapshot, self.home / "metrics")

    async def purge_cache(self, tenant: str, *, app: str = "", user: str = "", actor: str) -> int:
        """Drop kept answers of an app, of a user, of both or all; how many were shared. An event tells of it, without the user."""
        subject = await self.subject_of(user) if user else ""
        dropped = await self._shared().purge(tenant, app, subject)
        await self.note("cache.purged", actor, app or "*", {"subject": subject, "tenant": tenant, "dropped": dropped})
        return dropped

    def _shared(self) -> SharedAnswers:
        if self._cache is None:
            raise NotFound("This keeper has no shared cache.", code="no_cache")
        return self._cache

    # -- keys ---------------------------------------------------------------------------------------

    async def keys(self) -> list[tuple[Key, int | None]]:
        """Every key with what its budget has leased so far (nano-dollars), oldest first."""
        return [(k, await self.leased(k)) for k in await self.keyring.all()]

    async def leased(self, key: Key) -> int | None:
        """What a key's budget has leased so far (nano-dollars); None where it has no budget."""
        if key.budget_nanousd is None:
            return None
        return await self.treasury.leased(key)

    # -- conversations ------------------------------------------------------------------------------

    async def said(self, tenant: str, key: str, conversation: str) -> tuple[Message, ...]:
        """The messages of a conversation of this key, oldest first."""
        record = await self.records.get(tenant, CONVERSATION, f"{key}/{conversation}")
        return msgspec.msgpack.decode(record.value, type=Said).messages if record else ()

    async def say(self, tenant: str, key: str, conversation: str, new: tuple[Message, ...], *, once: str = "") -> None:
        """Append messages, durably; two appends at the same time both stay, the same one (`once`) said twice stays once."""
        name = f"{key}/{conversation}"
        while True:
            record = await self.records.get(tenant, CONVERSATION, name)
            old = msgspec.msgpack.decode(record.value, type=Said) if record else Said()
            if once and once in old.appended:
                return
            appended = (*old.appended, once)[-APPENDS:] if once else old.appended
            value = msgspec.msgpack.encode(Said((*old.messages, *new)[-MAX_KEPT:], appended))
            try:
                expect = record.version if record else 0
                await self.records.commit(tenant, [Write(CONVERSATION, name, value, expect=expect)], quiet=True)
            except Conflict:
                continue
            return

    # -- traces -------------------------------------------------------------------------------------

    async def exchange(self, id: str) -> Recorded:
        """One exchange with its bodies, by exchange or trace id. Raises `NotFound`."""
        found = await self.traces.get(self.tenant, id)
        if found is None:
            raise NotFound(f"No exchange or trace {id!r} is recorded.", code="trace_not_found")
        return (await self.recorded([found]))[0]

    async def recorded(self, named: Sequence[tuple[ExchangeRow, str, str]]) -> list[Recorded]:
        """Rows, given with their body ids, with their bodies: one question of the store for all of them."""
        found = await read_bodies(self.traces, self.body_key, self.tenant, (name for _, *names in named for name in names))
        return [_recorded(row, found.get(asked), found.get(given), bool(asked or given)) for row, asked, given in named]

    async def rows(self, query: TraceQuery) -> tuple[list[tuple[ExchangeRow, str, str]], int]:
        """One page of rows with their body ids, and how many match in all."""
        return await self.traces.list(self.tenant, query), await self.traces.count(self.tenant, query)

    def _seen(self, rows: Sequence[ExchangeRow]) -> None:
        """Rows were stored."""
        self.used.see(rows)
        self.feedback.see(rows)

    async def live(self) -> AsyncIterator[ExchangeRow | None]:
        """Rows as they are stored, from now on; None now and then while nothing happens."""
        async for row in self.recording.follow():
            if row is None or row.tenant == self.tenant:
                yield row

    # -- console ------------------------------------------------------------------------------------

    def login_code(self) -> str:
        """A code that opens the console once, within ten minutes."""
        now = time.time_ns()
        self._codes = {c: t for c, t in self._codes.items() if t > now}
        code = secrets.token_urlsafe(24)
        self._codes[code] = now + LOGIN_NS
        return code

    def redeem(self, code: str) -> str:
        """A session for a login code. Raises `Unauthorized`."""
        if self._codes.pop(code, 0) <= time.time_ns():
            raise Unauthorized(
                "This login link was used or is over.", code="invalid_login", hint="Ask `noria up` for a new one."
            )
        return self.sessions.issue(time.time_ns())

    def status(self) -> dict[str, Any]:
        """How the service stands, for the console, `/api/status` and `noria doctor`."""
        snapshot = self._snapshot
        models = self.models()
        return {
            "version": __version__,
            "ready": any(m["state"] == "ready" for m in models),
            "config": snapshot.hash if snapshot else None,
            "apps": [_app(snapshot, name) for name in snapshot.apps] if snapshot else [],
            "models": models,
            "recorder": self.recording.state(),
            "workers": self.workers(),
            "probes": self.probes.status(),
            "keys_required": bool(snapshot and (snapshot.keys or snapshot.keys_required)),
            "notices": self._notices(),
        }

    def heard(self, heartbeat: Heartbeat) -> tuple[Probed, ...]:
        """A worker lives, and says how it stands; or that it leaves. It is told which endpoints probes hold out."""
        if heartbeat.leaving:
            self._workers.pop(heartbeat.worker, None)
        else:
            self._workers[heartbeat.worker] = (heartbeat, time.monotonic())
            self.probes.begin()
        return self.probes.told()

    def workers(self) -> list[dict[str, Any]]:
        """The workers heard of within the last minute, and how long ago that was."""
        now = time.monotonic()
        self._workers = {n: (h, at) for n, (h, at) in self._workers.items() if now - at < FORGET_WORKER}
        return [
            {
                "name": h.worker,
                "pid": h.pid,
                "seen_seconds_ago": round(now - at, 1),
                "config": h.config,
                "trouble": h.trouble,
                "in_flight": h.in_flight,
                "draining": h.draining,
                "endpoints": [msgspec.to_builtins(s) for s in h.endpoints],
                "spool": {"dropped": h.spool_dropped, "pending": h.spool_pending, "alarm": h.spool_alarm},
            }
            for h, at in self._workers.values()
        ]

    def _notices(self) -> list[dict[str, str]]:
        alarms = [("spool", w["spool"]["alarm"]) for w in self.workers()] + [("recorder", self.recording.state()["alarm"])]
        alarms += [("endpoint", text) for text in sorted({s.alarm for h, _ in self._workers.values() for s in h.endpoints})]
        told = [{"level": "error", "code": code, "text": text} for code, text in alarms if text]
        if aside := self.recording.state()["aside"]:
            named = ", ".join(aside[:5]) + (", …" if len(aside) > 5 else "")
            text = f"{len(aside)} records that the trace store refuses, or that cannot be read, lie in spool/poison: {named}. The next start tries again."
            told.append({"level": "error", "code": "records_aside", "text": text})
        snapshot = self._snapshot
        if snapshot is not None:
            told += idle(snapshot, self.home / "metrics")
        without = sorted({k.guard_name for k in snapshot.keys.values() if k.withheld == "guard_missing"}) if snapshot else []
        for name in without:
            text = f"The guard {name!r} is not configured any more: API keys that name it are refused."
            told.append({"level": "error", "code": "guard_missing", "text": text})
        if self.push is not None and self.push.trouble:
            text = f"Metrics cannot be pushed to the OTLP collector: {self.push.trouble}. The next push tells it all."
            told.append({"level": "warning", "code": "otlp_push", "text": text})
        return told + self.treasury.notices()

    def models(self) -> list[dict[str, Any]]:
        """Every endpoint in use and how it stands; local ones by their status file."""
        snapshot = self._snapshot
        if snapshot is None:
            return []
        used = {e.name: e for a in snapshot.apps.values() for r in a.releases.values() for e in r.route}
        used |= snapshot.embedders
        return [
            {"name": e.name, "provider": e.vendor or e.provider, "model": e.model, "adapter": adapter_of(e), **self._state(e)}
            for e in used.values()
        ]

    def unready(self, endpoint: Endpoint) -> str:
        """Why an endpoint cannot answer yet; empty where it can, as far as is known here."""
        state = self._state(endpoint)
        return "" if state["state"] == "ready" else f"{endpoint.name} is {state['state']}. {state['detail']}".strip()

    def _state(self, endpoint: Endpoint) -> dict[str, str]:
        if endpoint.provider != "local":
            return {"state": "ready", "detail": ""}
        return told_by(self.home, endpoint.model, adapter_of(endpoint))

    async def note(self, kind: str, actor: str, target: str, detail: dict[str, Any]) -> None:
        """Keep an event of something that no other record changes with."""
        await self.records.commit(self.tenant, [event(self.tenant, kind, actor, target, detail)], quiet=True)


def _recorded(row: ExchangeRow, request: bytes | None, answer: bytes | None, named: bool) -> Recorded:
    kept = request is not None or answer is not None
    bodies: Bodies = "stored" if kept else "erased" if named else "none" if row.outcome != "ok" else "off"
    return Recorded(row, request, answer, bodies)


def _app(snapshot: Snapshot, name: str) -> dict[str, Any]:
    app = snapshot.apps[name]
    current = max(app.weights, key=lambda n: app.weights[n])
    release = app.releases[current]
    return {
        "name": name,
        "description": app.description,
        "release": current,
        "release_id": release.id,
        "model": " → ".join(e.name for e in release.route),
    }
