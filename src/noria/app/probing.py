"""Probes of endpoints, for those whose configuration asks for them: by the keeper alone, whatever the number of workers.

They begin when the first worker is heard of, so that a command which starts a keeper for itself sends nothing. What comes of
them reaches the workers with the answer to their heartbeats, every second (`gateway.probed`), and people in `/api/status`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin

import msgspec

from noria.app.house import make_provider
from noria.app.probe import base_url, credentials
from noria.contracts.error import NoriaError, StoreError, Unavailable, UpstreamError, boundary
from noria.contracts.exchange import Answer, Exchange, ModelCall
from noria.contracts.port import Clock
from noria.contracts.release import Endpoint, Probe, Snapshot
from noria.contracts.stage import Provider
from noria.contracts.trace import Attempt, ExchangeRow
from noria.dialects.native import facts_of
from noria.gateway.probed import Probed
from noria.gateway.retry import classify
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.ids import span_id, trace_id, uuid7
from noria.kit.shared_metrics import Counts
from noria.kit.step import Stopwatch
from noria.observe.account import Account
from noria.observe.metrics import FAMILIES
from noria.settings import resolve_secret

log = logging.getLogger("noria.probes")

APP = "noria:probe"
"""The app of recorded probes."""
FIRST = 5.0
"""Seconds within which an endpoint is asked for the first time, spread evenly."""
JITTER = 0.1
LONGEST = 300

Result = Literal["ok", "busy", "failed", "refused", "unfit"]
"""`busy`: it limits us, so it answers; `refused`: our key; `unfit`: it answers, and the probe is not one for it."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of one probe; `error` in words."""

    result: Result
    error: str = ""
    took_ns: int = 0
    cost_nanousd: int | None = 0


class Probing:
    """All probes of a keeper. `record` keeps what completions cost."""

    def __init__(self, home: Path, tenant: str, clock: Clock, record: Callable[[ExchangeRow], Awaitable[None]]) -> None:
        self._home = home
        self._tenant = tenant
        self._clock = clock
        self._record = record
        self._counts: Counts | None = None
        self._config = ""
        self._wanted: dict[str, Endpoint] = {}
        self._begun = False
        self._patients: dict[str, Patient] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def adopt(self, snapshot: Snapshot | None) -> None:
        """Probe the endpoints of this configuration; what has not changed goes on."""
        routes = [r.route for a in snapshot.apps.values() for r in a.releases.values()] if snapshot else []
        self._config = snapshot.hash if snapshot else ""
        self._wanted = {e.name: e for route in routes for e in route if e.probe is not None}
        if self._begun:
            self._turn()

    def begin(self) -> None:
        """Somebody serves: probe from now on."""
        if not self._begun:
            self._begun = True
            self._turn()

    def _turn(self) -> None:
        for name in [n for n, p in self._patients.items() if self._wanted.get(n) != p.endpoint]:
            self._tasks.pop(name).cancel()
            del self._patients[name]
            self._count("noria_probe_out", name, to=0)
        for name, endpoint in self._wanted.items():
            if name not in self._patients and endpoint.probe is not None:
                patient = self._patients[name] = Patient(endpoint, endpoint.probe)
                self._tasks[name] = asyncio.create_task(self._look_after(patient))

    async def close(self) -> None:
        """End all probes."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        self._patients.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def told(self) -> tuple[Probed, ...]:
        """The endpoints that are out by their probes, for the workers."""
        now = time.monotonic()
        return tuple(found for p in self._patients.values() if (found := p.out(now)) is not None)

    def status(self) -> list[dict[str, Any]]:
        """Each probed endpoint, for people."""
        now = time.monotonic()
        return [p.status(now) for _, p in sorted(self._patients.items())]

    async def _look_after(self, patient: Patient) -> None:
        probe, name = patient.probe, patient.endpoint.name
        asker = Completion(patient.endpoint, self._home) if probe.ask == "completion" else Get(patient.endpoint)
        try:
            await asyncio.sleep(random.uniform(0, min(probe.every, FIRST)))  # noqa: S311  no secret
            while True:
                outcome = await asker.ask(probe)
                if isinstance(asker, Completion):
                    outcome = await self._booked(patient.endpoint, asker, outcome)
                patient.note(outcome, time.monotonic())
                self._count("noria_probes", name, outcome.result)
                self._count("noria_probe_out", name, to=int(patient.is_out))
                await asyncio.sleep(probe.every * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311  as above
        finally:
            await asker.close()

    async def _booked(self, endpoint: Endpoint, asker: Completion, outcome: Outcome) -> Outcome:
        """Record a completion as an exchange of ours, with its price; it takes part in no budget."""
        x = Exchange(
            uuid7(), trace_id(), span_id(), self._tenant, "chat", APP, False, {}, self._clock.now_ns() - outcome.took_ns
        )
        account = Account(Stopwatch(), x.started_ns)
        error = asker.error
        account.endpoint, account.error, account.model_ns = endpoint, error, outcome.took_ns
        status = getattr(error, "upstream_status", None) if error else 200
        code = (error.code or type(error).__name__) if error else ""
        account.attempts.append(Attempt(endpoint.name, 0, outcome.took_ns, status, code))
        account.status = status or 502
        if (facts := asker.facts) is not None:
            account.usage = facts.usage or account.usage
            account.served_model, account.upstream_id, account.finish_reason = facts.model, facts.id, facts.finish_reason
        row = msgspec.structs.replace(
            account.row(x, worker="keeper", config=self._config), duration_ns=outcome.took_ns, overhead_ns=0
        )
        try:
            await self._record(row)
        except StoreError as e:
            log.warning("a probe of %s is not recorded: %s", endpoint.name, e)
        if row.cost_nanousd:
            self._count("noria_cost_nanousd", APP, n=row.cost_nanousd)
        return msgspec.structs.replace(outcome, cost_nanousd=row.cost_nanousd)

    def _count(self, family: str, *labels: str, n: int = 1, to: int | None = None) -> None:
        if self._counts is None:
            self._counts = Counts(FAMILIES, self._home / "metrics" / "keeper.counts")
        if to is None:
            self._counts.add(family, n, *labels)
        else:
            self._counts.set(family, to, *labels)


class Patient:
    """One endpoint, as its probes see it. Times are monotonic seconds."""

    def __init__(self, endpoint: Endpoint, probe: Probe) -> None:
        self.endpoint = endpoint
        self.probe = probe
        self._last: Outcome | None = None
        self._at = 0.0
        self._error = ""
        self._error_at = 0.0
        self._in_a_row = 0
        self._cost = 0
        self._unpriced = 0

    def note(self, outcome: Outcome, now: float) -> None:
        """One probe has ended."""
        before = self.is_out
        self._last, self._at = outcome, now
        self._in_a_row = self._in_a_row + 1 if outcome.result == "failed" else 0
        self._cost += outcome.cost_nanousd or 0
        self._unpriced += outcome.cost_nanousd is None
        if outcome.error:
            self._error, self._error_at = outcome.error[:LONGEST], now
        if self.is_out and not before:
            log.warning("the endpoint %s is out by its probes: %s", self.endpoint.name, outcome.error)
        elif before and not self.is_out:
            log.info("the endpoint %s answers its probes again", self.endpoint.name)

    @property
    def is_out(self) -> bool:
        """Whether workers should pass it over."""
        return self._last is not None and (self._last.result == "refused" or self._in_a_row >= self.probe.failures)

    def out(self, now: float) -> Probed | None:
        """What workers are told: that it is out until two more probes must have come."""
        left = self._at + 2 * self.probe.every + self.probe.timeout - now
        if self._last is None or not self.is_out or left <= 0:
            return None
        return Probed(self.endpoint.name, "dead" if self._last.result == "refused" else "ejected", left, self._last.error)

    def status(self, now: float) -> dict[str, Any]:
        """For `/api/status`."""
        last = self._last
        state = "waiting" if last is None else "out" if self.is_out else last.result
        return {
            "endpoint": self.endpoint.name,
            "probe": self.probe.ask,
            "every_seconds": self.probe.every,
            "state": state,
            "seconds_ago": None if last is None else round(now - self._at, 1),
            "took_ms": None if last is None else round(last.took_ns / 1e6, 1),
            "failures_in_a_row": self._in_a_row,
            "last_error": {"text": self._error, "seconds_ago": round(now - self._error_at, 1)} if self._error else None,
            "cost_usd": self._cost / 1e9,
            "cost_unknown": self._unpriced,
        }


class Get:
    """Asks for a list of models, or a path: free of charge."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def ask(self, probe: Probe) -> Outcome:
        """One GET on a connection of its own: that it can be made is part of what is asked."""
        endpoint, within, began = self._endpoint, probe.timeout, time.monotonic_ns()
        url, path = base_url(endpoint), "/models"
        if probe.ask != "models":
            url, path = urljoin(url, "/").rstrip("/"), probe.ask
        client: HttpClient | None = None
        try:
            with boundary(Unavailable, f"GET {path}"):
                secret = resolve_secret(endpoint.key) if endpoint.key else ""
                client = HttpClient(
                    url, connect_timeout=within, first_timeout=within, idle_timeout=within, total_timeout=within
                )
                own = [(str(k).lower(), str(v)) for k, v in dict(endpoint.options.get("headers") or {}).items()]
                status, _, _ = await client.send("GET", path, credentials(endpoint, secret) + own, b"")
        except NoriaError as e:
            cause = e.__cause__
            text = str(cause) if isinstance(cause, HttpCallError) else e.text
            return Outcome("failed", f"GET {path}: {text}", time.monotonic_ns() - began)
        finally:
            if client is not None:
                await client.close()
        result = judged(status)
        return Outcome(result, _WORDS[result].format(what=f"GET {path}", status=status), time.monotonic_ns() - began)

    async def close(self) -> None:
        """Nothing is held."""


class Completion:
    """Asks for one token of an answer, as a caller's request would."""

    def __init__(self, endpoint: Endpoint, home: Path) -> None:
        self._endpoint = endpoint
        self._home = home
        self._provider: Provider | None = None
        self.facts: Answer | None = None
        self.error: NoriaError | None = None

    async def ask(self, probe: Probe) -> Outcome:
        """One call; `facts` or `error` holds what came."""
        self.facts = self.error = None
        endpoint, began = self._endpoint, time.monotonic_ns()
        limit = "max_completion_tokens" if endpoint.vendor.startswith(("openai", "azure")) else "max_tokens"
        fields = {"model": endpoint.model, "messages": [{"role": "user", "content": "ping"}], limit: 1}
        body = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}
        try:
            with boundary(Unavailable, "the probe"):
                self._provider = provider = self._provider or make_provider(endpoint, self._home)
                if provider.ready is not None:
                    raise provider.ready
                async with asyncio.timeout(probe.timeout):
                    reply = await provider.send(ModelCall(uuid7(), "chat", False, body), lambda _: None)
                self.facts = reply.facts or facts_of("openai", "chat", reply.body)
        except NoriaError as e:
            late = isinstance(e.__cause__, TimeoutError)
            self.error = UpstreamError(f"No answer within {probe.timeout:g} s.", code="upstream_timeout") if late else e
        took = time.monotonic_ns() - began
        if self.error is None:
            return Outcome("ok", took_ns=took)
        kind = classify(self.error)
        result: Result = {"auth": "refused", "busy": "busy", "failed": "failed", "late": "failed"}.get(kind, "unfit")  # type: ignore[assignment]  # the values are results
        return Outcome(result, "" if result == "busy" else self.error.text, took)

    async def close(self) -> None:
        """Let go of connections."""
        if self._provider is not None:
            await self._provider.close()


_WORDS: dict[Result, str] = {
    "ok": "",
    "busy": "",
    "failed": "{what} was answered with {status}.",
    "refused": "{what} was answered with {status}: the key is refused.",
    "unfit": "{what} was answered with {status}: it answers, but this probe is not one for it; choose another path.",
}


def judged(status: int) -> Result:
    """What a status says of an endpoint's health."""
    if status < 300:
        return "ok"
    if status in (401, 402, 403):
        return "refused"
    if status in (408, 425, 429):
        return "busy"
    return "failed" if status >= 500 else "unfit"
