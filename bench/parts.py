"""The parts of the measurement: calls, half of saturation, concurrent streams, leaving clients, memory, starts."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import figures
import modes
import tools
from service import Service
from targets import Cell, Target
from tools import Ask, Failed, Load

FLOOR = "direct"
COUNTED = ("bad_status", "bad_stream", "not_done", "tokens_lost", "tokens_disordered", "broken", "stalled")
Row = dict[str, Any]


class Bench:
    """One measurement: what is measured, and the rows that came of it."""

    def __init__(self, load: Load, upstream: int, targets: Sequence[Target], *, seed: int) -> None:
        self.load = load
        self.upstream = upstream
        self.targets = list(targets)
        self.chance = random.Random(seed)
        self.rows: list[Row] = []

    def named(self, name: str) -> Target:
        return next(t for t in self.targets if t.name == name)

    def shuffled(self, cell: Cell) -> list[Target]:
        """The targets of a cell in an order that is new each time."""
        found = [t for t in self.targets if t.can(cell)]
        self.chance.shuffle(found)
        return found

    def fire(self, target: Target, cell: Cell, ask: Ask, meanwhile: Any = None) -> Row:
        """Send one cell's requests; counts and latencies."""
        if cell.stream:
            ask = replace(ask, tokens=cell.tokens)
        told, samples = self.load.fire(target.port, target.request(cell), ask, meanwhile=meanwhile)
        target.sent += told["sent"]
        target.nanousd += told["sent"] * modes.nanousd(cell.tokens)
        last, first = figures.read_samples(samples)
        told |= {"rps": told["ok"] / told["seconds"]} | figures.spread("", last)
        return told | figures.spread("ttft", first) if cell.stream else told

    def measure(self, part: str, target: Target, cell: Cell, ask: Ask, number: int) -> Row:
        """One row: latencies, and the CPU of all of the target's processes until its last exchange is in the trace store."""
        ask = replace(ask, seed=number + 1)
        stored, before, began = target.recorded(), target.cpu(), time.perf_counter()
        told = self.fire(target, cell, ask)
        reached = target.settle(stored + told["sent"])
        after, sent = target.cpu(), max(1, told["sent"])
        row = {"part": part, "cell": cell.name, "target": target.name, "round": number + 1, **told}
        if reached is not None:
            row["recorded"] = reached - stored
        if target.kind != "floor":
            used = {name: after[name] - before.get(name, 0.0) for name in after}
            row["cpu_ms_per_request"] = sum(used.values()) / sent
            row |= {f"cpu_{name}_ms": ms / sent for name, ms in used.items()}
            if cell.stream:
                row["cpu_us_per_token"] = sum(used.values()) * 1000 / max(1, told["tokens"])
        row["window_s"] = time.perf_counter() - began
        self.add(row)
        return row

    def add(self, row: Row) -> None:
        """Keep a row, and tell it as it comes."""
        self.rows.append(row)
        shown = {
            k: row[k]
            for k in ("rps", "p50_ms", "p99_ms", "ttft_p99_ms", "cpu_ms_per_request", "cpu_us_per_token")
            if row.get(k)
        }
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in shown.items())
        more = "" if row.get("ok") == row.get("sent") else f"  OK {row.get('ok')}/{row.get('sent')} {row.get('first_bad', '')}"
        said = f"{row['part']:8} round {row['round']}  {row['cell']:12} {row['target']:9} {numbers}{more}"
        print(said, file=sys.stderr, flush=True)


def warm_up(bench: Bench, cells: Sequence[Cell], requests: int) -> None:
    """Imports, connections, first leases. A peer is left out of a cell in which it fails; the mock and Noria must not."""
    for target in bench.targets:
        for cell in cells:
            if not target.can(cell):
                continue
            told = bench.fire(target, cell, Ask(min(8, cell.connections), requests=requests))
            if told["ok"] == told["sent"]:
                continue
            why = ", ".join(f"{k} {told[k]}" for k in COUNTED if told[k]) + f" of {told['sent']}: {told['first_bad']}"
            if target.kind != "peer":
                raise Failed(f"{target.name} fails in the cell {cell.name}: {why}")
            print(f"{target.name} is left out of {cell.name}: {why}", file=sys.stderr)
            target.fails[cell.name] = why
            target.no_streams |= cell.stream
            bench.rows.append({"part": "failed", "cell": cell.name, "target": target.name, "round": 0, "why": why[:400]})


def calls(bench: Bench, cells: Sequence[Cell], *, rounds: int, seconds: float) -> None:
    """Closed loop: every cell of every target, round by round, the order drawn anew each time."""
    for number in range(rounds):
        for cell in cells:
            for target in bench.shuffled(cell):
                bench.measure("calls", target, cell, Ask(cell.connections, seconds=seconds), number)


def half(bench: Bench, cell: Cell, *, rounds: int, seconds: float) -> None:
    """Open loop at half of what each target carried in the cell, and the mock at the same rate right beside it."""
    most = {
        t.name: figures.median(
            r["rps"] for r in bench.rows if (r["part"], r["cell"], r["target"]) == ("calls", cell.name, t.name)
        )
        for t in bench.targets
        if t.name != FLOOR
    }
    for number in range(rounds):
        for target in bench.shuffled(cell):
            rate = (most.get(target.name) or 0.0) / 2
            if not rate:
                continue
            here = replace(cell, name=target.name)
            pair = [target, bench.named(FLOOR)]
            bench.chance.shuffle(pair)
            for t in pair:
                row = bench.measure("half", t, here, Ask(256, seconds=seconds, rate=rate), number)
                row["rate"] = rate


def streams(bench: Bench, cell: Cell, *, rounds: int) -> None:
    """As many streams at once as the cell has connections (fewer where a peer carries fewer), each read to its end.

    They begin spread over a second, since they would not begin in one instant.
    """
    for number in range(rounds):
        for target in bench.shuffled(cell):
            count = min(cell.connections, target.streams)
            ask = Ask(count, requests=count, ramp_ms=1000)
            bench.measure("streams", target, replace(cell, connections=count), ask, number)["streams"] = count


def leave(bench: Bench, cell: Cell, *, times: int, patience: float = 5.0) -> None:
    """How long after a client went away in mid-stream its upstream connection is closed."""
    for target in bench.shuffled(cell):
        delays: list[float] = []
        stored, sent = target.recorded(), target.sent
        try:
            for _ in range(times):
                known = len(told := tools.told_by(bench.upstream)["cancelled"])
                last = told[-1] if told else 0
                left = tools.leave(target.port, target.request(cell), 3)
                target.sent += 1
                end = time.monotonic() + patience
                while time.monotonic() < end:
                    told = tools.told_by(bench.upstream)["cancelled"]
                    if (len(told) != known or (told and told[-1] != last)) and told[-1] >= left:
                        delays.append((told[-1] - left) / 1e6)
                        break
                    time.sleep(0.01)
        except (Failed, OSError) as e:
            if target.kind != "peer":
                raise
            print(f"{target.name}: {e}", file=sys.stderr)
        reached = target.settle(stored + target.sent - sent)
        ordered = sorted(int(d * 1e6) for d in delays)
        row: Row = {
            "part": "leave",
            "cell": "leave",
            "target": target.name,
            "round": 1,
            "asked": times,
            "cancelled": len(delays),
        }
        row["sent"] = row["ok"] = target.sent - sent
        if reached is not None:
            row["recorded"] = reached - stored
        bench.rows.append(row | figures.spread("cancel", ordered) | {"cancel_max_ms": max(delays, default=None)})
        print(f"leave    {target.name:9} {len(delays)}/{times} cancelled, max {max(delays, default=0):.1f} ms", file=sys.stderr)


def memory(bench: Bench, cells: Sequence[Cell], *, seconds: float, rest: float) -> None:
    """Memory of each target at rest, the most under load, and once it is at rest again; CPU at rest."""
    for target in bench.shuffled(cells[-1]):
        if target.kind == "floor":
            continue
        row: Row = {"part": "memory", "cell": "memory", "target": target.name, "round": 1, "idle": target.memory()}
        most: dict[str, dict[str, float]] = {}

        def look(target: Target = target, most: dict[str, dict[str, float]] = most) -> None:
            for name, told in target.memory().items():
                of = most.setdefault(name, {})
                of |= {kind: max(mib, of.get(kind, 0.0)) for kind, mib in told.items()}

        for cell in filter(target.can, cells):
            stored = target.recorded()
            told = bench.fire(target, cell, Ask(min(cell.connections, target.streams), seconds=seconds), look)
            row[f"ok_{cell.name}"] = f"{told['ok']}/{told['sent']}"
            look()
            target.settle(stored + told["sent"])
        time.sleep(rest)
        before, began = target.cpu(), time.perf_counter()
        time.sleep(rest)
        after, took = target.cpu(), time.perf_counter() - began
        row["rest_cpu_ms_per_s"] = sum(after.values()) / took - sum(before.values()) / took
        row |= {"loaded": most, "recovered": target.memory()}
        bench.rows.append(row)
        told = {k: row[k].get("all", {}).get("pss_mib") for k in ("idle", "loaded", "recovered")}
        print(f"memory   {target.name:9} PSS MiB {told}", file=sys.stderr)


def starts(bench: Bench, cell: Cell, service: Service, *, times: int) -> None:
    """Seconds from the command to `/readyz`, and to the first answer, of a Noria whose stores exist."""
    for number in range(times):
        service.stop()
        service.start()
        target = Target("plain", service.port, service=service)
        told = bench.fire(target, cell, Ask(1, requests=1))
        if told["ok"] != 1:
            raise Failed(f"The first request after a start failed: {told}")
        row = {"part": "starts", "cell": "again", "target": "plain", "round": number + 1, "ready_s": service.ready_s}
        bench.rows.append(row | {"answer_s": service.ready_s + told["p50_ms"] / 1000})
