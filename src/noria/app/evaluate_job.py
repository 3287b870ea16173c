"""The job of an evaluation: `python -m noria.app.evaluate_job FOLDER`. Asks the gateway like any client, with a pass for one release.

`FOLDER/job.json` says what to do. Rows come from the keeper's API, answers from `/v1/chat/completions`; each scored answer is in
the journal of its suite and release before it counts. `progress.jsonl` grows meanwhile, `result.json` appears at the end, whole.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from noria.app.evaluating import FOLDER, Order, Result, load
from noria.app.supervisor import ask
from noria.contracts.dataset import Row
from noria.contracts.error import NoriaError, Unavailable
from noria.contracts.evaluation import Report, Scored
from noria.dialects.openai_answer import read_answer, read_text
from noria.dialects.openai_error import error_said
from noria.evaluate.estimate import by_label, estimates
from noria.evaluate.run import Answered, Tally, run
from noria.evaluate.suite import Item, Judge, chosen, completed
from noria.kit import journal
from noria.kit.atomic import write_whole
from noria.kit.http_client import HttpCallError, HttpClient
from noria.kit.ids import digest

ANSWERS = "answers"
PAGE = 2000
TRIES = 6
"""Attempts of one item where the service, or a limit, asks to come later: 0.5, 1, 2, 4, 8 s apart, or as `Retry-After` says."""
LONGEST_WAIT = 60.0
LATER = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
TOLD = 0.5
"""Seconds between two lines of progress."""


class Shown(msgspec.Struct):
    """A row as `/api/datasets/…/rows` gives it out."""

    id: str
    state: str
    row: Row | None = None
    detail: str = ""


class Page(msgspec.Struct):
    """A page of them."""

    rows: list[Shown]
    next: str | None = None


class Answers:
    """`evaluate.run.Journal` in a folder that all evaluations share."""

    def __init__(self, folder: Path, topic: str, writer: str) -> None:
        self._folder = folder
        self._topic = topic
        self._journal = journal.Journal(folder, writer)

    def seen(self) -> dict[str, Scored]:
        """See `Journal`."""
        return {s.row: s for s in journal.read(self._folder, self._topic, Scored)}

    def append(self, scored: Scored) -> None:
        """See `Journal`."""
        self._journal.append(self._topic, scored)

    def forget(self) -> None:
        """Everything is to be asked anew."""
        journal.forget(self._folder, self._topic)


class Progress:
    """`progress.jsonl`: how far it is, now and then."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._began = time.monotonic()
        self._last = 0.0
        self._sums: dict[str, float] = {}
        self._asked = 0

    def __call__(self, tally: Tally, scored: Scored) -> None:
        """One more is done."""
        self._asked += 1
        for name, score in scored.scores.items():
            self._sums[name] = self._sums.get(name, 0.0) + score
        now = time.monotonic()
        if now - self._last >= TOLD or tally.done == tally.total:
            self._last = now
            self.tell(tally)

    def tell(self, tally: Tally) -> None:
        """Write a line. Scores are means of what was asked in this attempt."""
        seconds = time.monotonic() - self._began
        left = (tally.total - tally.done) * seconds / self._asked if self._asked else None
        line = {
            "total": tally.total, "done": tally.done, "cached": tally.cached, "failed": tally.failed,
            "seconds": round(seconds, 3), "left_seconds": None if left is None else round(left, 1),
            "scores": {name: round(total / self._asked, 4) for name, total in self._sums.items()},
        }  # fmt: skip
        self._file.write(msgspec.json.encode(line) + b"\n")


class Asking:
    """Asks the release. One client for all items."""

    def __init__(self, order: Order, params: Mapping[str, Any]) -> None:
        self._order = order
        self._home = Path(order.home)
        self._params = params
        self._pass = ""
        self._client: HttpClient | None = None
        self._url = ""

    async def __call__(self, item: Item) -> Answered:
        """The answer to one item, however often that has to be asked for."""
        body = msgspec.json.encode({"model": self._order.app, "messages": item.row.messages, **self._params})
        error = ""
        for attempt in range(TRIES):
            if not self._pass:
                self._pass = await self._passed()
            headers = [
                ("content-type", "application/json"), ("authorization", f"Bearer {self._pass}"),
                ("x-noria-release", self._order.release),
            ]  # fmt: skip
            began = time.perf_counter()
            try:
                status, got, answer = await self._connected().send("POST", "/v1/chat/completions", headers, body)
            except (HttpCallError, Unavailable) as e:
                status, got, error = 503, [], f"{type(e).__name__}: {e}"
            else:
                if status == 200:
                    return answered(answer, dict(got), (time.perf_counter() - began) * 1000)
                error = f"HTTP {status}: {_words(answer)}"
            if status == 401:
                self._pass = ""  # it is over: the next try has a new one
            elif status not in LATER or attempt == TRIES - 1:
                break
            await asyncio.sleep(_wait(dict(got), attempt))
        return Answered(error=error)

    async def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            await self._client.close()

    async def _passed(self) -> str:
        found = await called(self._home, f"/internal/evaluation-pass?id={quote(self._order.id)}")
        text: str = msgspec.json.decode(found)["pass"]
        return text

    def _connected(self) -> HttpClient:
        url = gateway(self._home)
        if self._client is None or url != self._url:
            self._url = url
            self._client = HttpClient(url, connect_timeout=5.0, first_timeout=600.0, idle_timeout=120.0, total_timeout=1200.0)
        return self._client


def answered(body: bytes, headers: dict[str, str], latency_ms: float) -> Answered:
    """What a 200 says."""
    exchange, cost = headers.get("x-request-id", ""), headers.get("x-noria-cost")
    try:
        text, facts = read_text(body), read_answer("chat", body)
    except ValueError as e:
        return Answered(exchange=exchange, latency_ms=latency_ms, error=f"unreadable answer: {e}")
    nanousd = None if cost is None else round(float(cost) * 1e9)
    return Answered(text, exchange, latency_ms, nanousd, facts.model)


def gateway(home: Path) -> str:
    """Where the service of a home listens. Raises `Unavailable` where none runs."""
    try:
        told = msgspec.json.decode((home / "run" / "address.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        raise Unavailable("The gateway is not running.", code="not_running") from None
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(told["host"], told["host"])  # noqa: S104  compared, not bound
    return f"http://{host}:{told['port']}"


async def called(home: Path, path: str) -> bytes:
    """One GET of the keeper's API, tried again for a while where the keeper is being replaced. Raises `Unavailable`."""
    for attempt in range(TRIES):
        try:
            status, _, body = await ask(home, "GET", path)
        except HttpCallError as e:
            status, body = 503, str(e).encode()
        if status == 200:
            return body
        if status not in LATER:
            break
        await asyncio.sleep(_wait({}, attempt))
    raise Unavailable(f"The keeper answers {status} to {path.partition('?')[0]}: {_words(body)}", code="keeper_away")


async def rows(order: Order) -> tuple[list[Item], int]:
    """Every row of the suite's split that is still there, and how many were erased. Raises `Unavailable` for a damaged one."""
    found: list[Item] = []
    erased, after = 0, ""
    where = f"/api/datasets/-/{quote(order.suite.dataset)}/rows?limit={PAGE}&split={quote(order.suite.split)}"
    while True:
        page = msgspec.json.decode(await called(Path(order.home), f"{where}&after={after}"), type=Page)
        for shown in page.rows:
            if shown.state in ("damaged", "missing"):
                raise Unavailable(f"The row {shown.id[:12]}… is {shown.state}. {shown.detail}", code="row_damaged")
            erased += shown.row is None
            if shown.row is not None:
                found.append(Item(shown.id, shown.row))
        if page.next is None:
            return found, erased
        after = page.next


async def evaluate(folder: Path) -> Report:
    """The whole job."""
    order = msgspec.json.decode((folder / "job.json").read_bytes(), type=Order)
    began = time.monotonic()
    every, _ = await rows(order)
    suite = completed(order.suite, (item.row.label for item in every))
    judge = Judge(suite, load)
    items = chosen(every, suite.limit)
    if not items:
        raise Unavailable("Every row of the split was erased.", code="no_rows")
    topic = digest(f"{judge.hash}/{order.release}".encode())[:32]
    answers = Answers(Path(order.home) / FOLDER / ANSWERS, topic, order.id)
    if order.fresh:
        answers.forget()
    progress, asking = Progress(folder / "progress.jsonl"), Asking(order, suite.params)
    progress.tell(Tally(len(items)))
    try:
        scored, tally = await run(items, judge, asking, answers, concurrency=order.concurrency, tell=progress)
    finally:
        await asking.close()
    progress.tell(tally)
    return Report(
        id=order.id,
        suite=suite,
        release=order.release,
        app=order.app,
        made_ns=time.time_ns(),
        seconds=time.monotonic() - began,
        estimates=estimates(scored, judge.checks),
        by_label=by_label(scored) if "label" in suite.metrics else {},
        items=tuple(scored),
        hash=judge.hash,
        release_name=order.release_name,
        cached=tally.cached,
    )


def main(folder: Path) -> int:
    """Run the job of a folder; the exit code."""
    try:
        result = Result(asyncio.run(evaluate(folder)))
    except (NoriaError, OSError) as e:
        result = Result(error=e.text if isinstance(e, NoriaError) else str(e))
    write_whole(folder / "result.json", msgspec.json.encode(result))
    return 0 if result.report is not None else 1


def _wait(headers: dict[str, str], attempt: int) -> float:
    try:
        return min(float(headers["retry-after"]), LONGEST_WAIT)
    except (KeyError, ValueError):
        return float(0.5 * 2**attempt)


def _words(body: bytes) -> str:
    error = error_said(body)
    return (
        body[:200].decode(errors="replace")
        if error is None
        else f"{error.get('code') or error.get('type')}: {error.get('message')}"
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
