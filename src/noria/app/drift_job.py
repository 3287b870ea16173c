"""`python -m noria.app.drift_job FOLDER`: compares two windows of an app's traffic. `job.json` in, `result.json` out.

It asks the keeper for the exchanges (over its socket, like any operator), computes here, and gives the keeper the report. Each
window is read in slices of time, each with its share of the sample: a busy hour has no more to say than its traffic.
"""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from noria.app.supervisor import ask
from noria.contracts.drift import DriftJob, DriftReport, Sample
from noria.contracts.error import NoriaError, Unavailable
from noria.gateway.language import detect
from noria.kit.atomic import write_whole
from noria.kit.http_client import HttpCallError
from noria.kit.priority import yield_to_others
from noria.kit.static_vectors import shipped, split
from noria.observe.drift import Tools, compare, overall, sentence

SLICES = 24


class Slice(msgspec.Struct, frozen=True):
    """What the keeper answers."""

    total: int
    rows: list[Sample]


async def call(home: Path, method: str, path: str, body: bytes = b"") -> bytes:
    """One call to the keeper. Raises `Unavailable`."""
    try:
        status, _, answer = await ask(home, method, path, body)
    except HttpCallError as e:
        raise Unavailable(f"The keeper of {home} does not answer: {e}", code="keeper_away") from e
    if status >= 400:
        raise Unavailable(f"{method} {path}: {status} {answer[:500].decode('utf-8', 'replace')}", code="keeper_refused")
    return answer


async def window(job: DriftJob, since_ns: int, until_ns: int) -> list[Sample]:
    """At most `job.sample` exchanges of a window, spread over it like the traffic."""
    edges = [since_ns + (until_ns - since_ns) * i // SLICES for i in range(SLICES + 1)]
    ends = list(pairwise(edges))
    totals = [(await _slice(job, a, b, 1)).total for a, b in ends]
    whole = sum(totals)
    found: list[Sample] = []
    for (a, b), total in zip(ends, totals, strict=True):
        share = total if whole <= job.sample else round(job.sample * total / whole)
        if share:
            found += (await _slice(job, a, b, share)).rows
    return found


async def _slice(job: DriftJob, since_ns: int, until_ns: int, limit: int) -> Slice:
    asked = urlencode({"since": since_ns, "until": until_ns, "limit": min(limit, 1000)})
    answer = await call(Path(job.home), "GET", f"/api/drift/{quote(job.app, safe='')}/samples?{asked}")
    return msgspec.json.decode(answer, type=Slice)


def report_of(job: DriftJob, reference: list[Sample], recent: list[Sample], *, at_ns: int, seconds: float = 0.0) -> DriftReport:
    """The comparison itself, with the shipped tools."""
    tools = Tools(shipped().embed, detect, split)
    signals, more, less, ids = compare(reference, recent, tools, level=job.level, sensitivity=job.sensitivity, seed=job.seed)
    return DriftReport(
        id=job.id.removeprefix("drift_"), app=job.app, at_ns=at_ns, windows=job.windows, standing=overall(signals),
        signals=tuple(signals), more=tuple(more), less=tuple(less), examples=tuple(ids), seconds=round(seconds, 3),
        says=sentence(signals, more),
    )  # fmt: skip


async def run(folder: Path) -> DriftReport:
    """Do the job of a folder. Raises `NoriaError`."""
    job = msgspec.json.decode((folder / "job.json").read_bytes(), type=DriftJob)
    began = time.monotonic()
    reference = await window(job, job.windows.from_ns, job.windows.split_ns)
    recent = await window(job, job.windows.split_ns, job.windows.until_ns)
    report = report_of(job, reference, recent, at_ns=time.time_ns())
    report = msgspec.structs.replace(report, seconds=round(time.monotonic() - began, 3))
    write_whole(folder / "result.json", msgspec.json.encode(report))
    await call(Path(job.home), "POST", f"/api/drift/{quote(job.app, safe='')}/reports", msgspec.json.encode(report))
    return report


def main(argv: list[str]) -> int:
    """0 where the report was given to the keeper; 1 with a sentence on stderr; 2 for a wrong call."""
    if len(argv) != 1:
        sys.stderr.write("Usage: python -m noria.app.drift_job FOLDER\n")
        return 2
    yield_to_others()
    try:
        report = asyncio.run(run(Path(argv[0])))
    except (NoriaError, OSError, msgspec.DecodeError) as e:
        said: Any = e.text if isinstance(e, NoriaError) else e
        sys.stderr.write(f"{said}\n")
        return 1
    sys.stdout.write(report.says + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
