"""What Noria adds to a call: throughput, latency, CPU and memory against a direct call, on one machine.

    python bench/gateway.py            the whole measurement (some minutes)
    python bench/gateway.py --short    the same in little, within a minute

Method and reading: bench/README.md. Everything stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import figures
import machine
from service import Enter, Failed, Service

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
FORMAT = 1
BASELINE = "direct"
SHORT_S = 52.0
"""A short run begins no further round when it would end later than this."""

REST_S = 2.0
"""How long a service is watched at rest."""

LATENCY = ("p50_ms", "p90_ms", "p99_ms")
FIGURES = (
    "rps", *LATENCY, "ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms", "cpu_ms_per_request", "worker_ms", "keeper_ms", "supervisor_ms",
)  # fmt: skip

PROMPT = (
    "You answer for the water works of {{town}}. Be brief, say what you do not know, and never promise a date. "
    "Metres and litres, not feet and gallons."
)
QUESTION = (
    "Ticket ##########: the wheel at the lower canal has stood still since this morning and the upper garden gets no water. "
    "Could you tell me what to look at first, and whom to call when the bearing is worn? You can write to "
    "ines.moreau@example.org. The last service was in spring; the log says the paddles were replaced and the trough was "
    "sealed with pitch. We have a ladder, grease and a spare paddle here."
)
"""Some 400 bytes with one e-mail address, so that in `full` masking acts on each request."""

CONFIG = """
models:
  m: {provider: openai_compatible, url: "http://127.0.0.1:%(port)d/v1", model: %(model)s%(more)s}
  paced: {provider: openai_compatible, url: "http://127.0.0.1:%(port)d/v1", model: %(paced)s%(more)s}
"""
PLAIN = """
apps:
  bench: {model: m, normalize: false, fit: false, record_bodies: false}
  bench-paced: {model: paced, normalize: false, fit: false, record_bodies: false}
"""
FULL = """
prompts:
  water: {text: "%s"}
guards:
  all:
    - pii: {action: mask, on: both}
    - secrets: {action: block, on: both}
    - denylist: {action: block, on: both, file: denied.txt}
apps:
  bench: {model: m, prompt: water, guard: all, memory: 8}
  bench-paced: {model: paced, prompt: water, guard: all, memory: 8}
"""
PRICED = ", context: 32768, price: {input: 0.25, output: 2.0, cached: 0.025}"


@dataclass(frozen=True)
class Cell:
    """One point of the measurement: how answers come, how many connections ask, how many requests in all."""

    shape: str
    connections: int
    requests: int


FULL_CELLS = (
    Cell("whole", 1, 1000), Cell("whole", 32, 6000), Cell("stream", 1, 500), Cell("stream", 32, 2500), Cell("paced", 32, 640),
)  # fmt: skip
SHORT_CELLS = (
    Cell("whole", 1, 200), Cell("whole", 32, 1500), Cell("stream", 1, 100), Cell("stream", 32, 600), Cell("paced", 32, 160),
)  # fmt: skip
MODES = ("direct", "plain", "full")


@dataclass(frozen=True)
class Target:
    """Where a mode's requests go. `service` is None for the upstream itself."""

    mode: str
    port: int
    key: str = ""
    service: Service | None = None
    conversation: bool = False


@dataclass(frozen=True)
class Tools:
    """The upstream and the load generator of a run."""

    kind: str
    upstream: tuple[str, ...]
    load: tuple[str, ...]


def tools(folder: Path, *, python: bool) -> Tools:
    """Built with gcc where there is one, else the Python ones."""
    if not python:
        try:
            for name in ("mock_upstream", "load"):
                command = ["gcc", "-O2", "-w", "-o", str(folder / name), str(HERE / f"{name}.c")]
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            return Tools("C", (str(folder / "mock_upstream"),), (str(folder / "load"),))
        except (OSError, subprocess.SubprocessError) as e:
            print(f"No usable gcc ({e}): the upstream and the load generator are the Python ones.", file=sys.stderr)
    own = [(sys.executable, str(HERE / f"{name}.py")) for name in ("mock_upstream", "load")]
    return Tools("Python", *own)


@dataclass(frozen=True)
class Cores:
    """Which cores the load (upstream and generator) and Noria run on; empty = wherever the kernel puts them."""

    load: tuple[int, ...] = ()
    noria: tuple[int, ...] = ()

    @classmethod
    def split(cls) -> Cores:
        """The first core for the load, the others for Noria; nothing pinned on a single core."""
        every = sorted(os.sched_getaffinity(0))
        return cls(tuple(every[:1]), tuple(every[1:])) if len(every) > 1 else cls()


def placed(cores: tuple[int, ...]) -> Enter | None:
    """Runs in a child between fork and exec; this script has one thread."""
    return (lambda: os.sched_setaffinity(0, cores)) if cores else None


@contextmanager
def upstream(tools: Tools, cores: Cores) -> Iterator[int]:
    """The mock upstream; its port."""
    process = subprocess.Popen([*tools.upstream, "0"], stdout=subprocess.PIPE, text=True, preexec_fn=placed(cores.load))  # noqa: PLW1509  one thread
    try:
        assert process.stdout is not None
        word, _, port = process.stdout.readline().partition(" ")
        if word != "listening":
            raise Failed("The mock upstream did not start.")
        yield int(port)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def request_of(target: Target, shape: str, model: str) -> bytes:
    """The whole HTTP request that one cell sends over and over; see `load.c` for the marks in it."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 64}
    if shape != "whole":
        body["stream"] = True
    if target.mode not in (BASELINE, "plain"):
        body["variables"] = {"town": "Hama"}
    if target.conversation:
        body["conversation"] = "bench-@@@@@@@@@@"
    data = json.dumps(body, separators=(",", ":")).encode()
    head = ["POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{target.port}", "content-type: application/json"]
    if target.key:
        head.append(f"authorization: Bearer {target.key}")
    return "\r\n".join([*head, f"content-length: {len(data)}", "", ""]).encode() + data


class Bench:
    """One measurement: the targets, and what has been sent to each."""

    def __init__(self, folder: Path, tools: Tools, cores: Cores, models: dict[str, str]) -> None:
        self._folder = folder
        self._tools = tools
        self._cores = cores
        self._models = models
        self.sent: dict[str, int] = {}

    def fire(self, target: Target, cell: Cell) -> dict[str, Any]:
        """Send one cell's requests; the load generator's counts and the latencies."""
        name = "bench-paced" if cell.shape == "paced" else "bench"
        model = self._models[name] if target.service is None else name
        request, samples = self._folder / "request", self._folder / "samples"
        request.write_bytes(request_of(target, cell.shape, model))
        done = subprocess.run(
            [*self._tools.load, str(target.port), str(request), str(cell.requests), str(cell.connections), str(samples)],
            capture_output=True, text=True, check=False, timeout=300, preexec_fn=placed(self._cores.load),
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"The load generator ended with {done.returncode}: {done.stderr}")
        counts = json.loads(done.stdout)
        self.sent[target.mode] = self.sent.get(target.mode, 0) + counts["sent"]
        last, first = figures.read_samples(samples.read_bytes())
        told = counts | {"rps": counts["ok"] / counts["seconds"]} | strip(figures.spread("", last))
        return told | figures.spread("ttft", first) if cell.shape != "whole" else told

    def measure(self, target: Target, cell: Cell) -> dict[str, Any]:
        """One cell: the latencies, and the CPU of all Noria processes until the last exchange is in the trace store."""
        service = target.service
        if service is None:
            return {"mode": target.mode, **vars(cell), **self.fire(target, cell)}
        stored, before, began = service.recorder()["stored"], service.cpu(), time.perf_counter()
        told = self.fire(target, cell)
        recorded = service.recorded(stored + told["sent"]) - stored
        after = service.cpu()
        cpu = {f"{name}_ms": (after[name] - before.get(name, 0.0)) / told["sent"] for name in after}
        return {
            "mode": target.mode, **vars(cell), **told, "recorded": recorded, "cpu_ms_per_request": sum(cpu.values()), **cpu,
            "window_s": time.perf_counter() - began,
        }  # fmt: skip


def strip(told: figures.Figures) -> figures.Figures:
    """`_p50_ms` → `p50_ms`."""
    return {name.lstrip("_"): value for name, value in told.items()}


@contextmanager
def targets(folder: Path, port: int, cores: Cores, models: dict[str, str]) -> Iterator[dict[str, Target]]:
    """Both services (their keys differ, so they cannot be one), ready."""
    names = {"port": port, "model": models["bench"], "paced": models["bench-paced"]}
    enter = placed(cores.noria)
    started: list[Service] = []
    try:
        started.append(Service(folder / "plain", CONFIG % {**names, "more": ""} + PLAIN, enter))
        started.append(Service(folder / "full", CONFIG % {**names, "more": PRICED} + FULL % PROMPT, enter))
        plain, full = started
        key = full.cli("keys", "create", "--rpm", "100000000", "--budget", "1000000", "--name", "bench")["key"]
        yield {
            "direct": Target("direct", port),
            "plain": Target("plain", plain.port, service=plain),
            "full": Target("full", full.port, key, full),
            "memory": Target("memory", full.port, key, full, conversation=True),
        }
    finally:
        for service in started:
            service.stop()


def warm_up(bench: Bench, chosen: list[Target], requests: int) -> None:
    """Imports, connections, first leases; waits until the new key has reached the workers."""
    for target in chosen:
        end = time.monotonic() + 10
        while bench.fire(target, Cell("whole", 1, 1))["ok"] != 1:
            if time.monotonic() > end:
                raise Failed(f"The mode {target.mode} does not answer 200.")
            time.sleep(0.2)
        for shape in ("whole", "stream", "paced"):
            told = bench.fire(target, Cell(shape, 8, requests))
            if told["ok"] != told["sent"]:
                raise Failed(f"The mode {target.mode} fails: {told}")


def rounds(
    bench: Bench, chosen: list[Target], cells: tuple[Cell, ...], *, count: int, until: float
) -> Iterator[dict[str, Any]]:
    """Every cell in every mode, round by round; the order of the modes turns, so that none always comes first."""
    longest = 0.0
    for number in range(count):
        began = time.perf_counter()
        if number and began + longest > until:
            return
        for cell in cells:
            for i in range(len(chosen)):
                target = chosen[(i + number) % len(chosen)]
                told = {"round": number + 1, **bench.measure(target, cell)}
                print_line(told)
                yield told
        longest = max(longest, time.perf_counter() - began)


def print_line(m: dict[str, Any]) -> None:
    """One measurement, as it comes."""
    cpu = m.get("cpu_ms_per_request")
    print(
        f"round {m['round']}  {m['shape']:6} c{m['connections']:<3} {m['mode']:7} {m['rps']:9.0f} req/s  "
        f"p50 {figure(m['p50_ms'])} p99 {figure(m['p99_ms'])} ms  CPU {figure(cpu)} ms/req  ok {m['ok']}/{m['sent']}"
        + (f"  recorded {m['recorded']}" if "recorded" in m else ""),
        file=sys.stderr,
        flush=True,
    )


def figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


COLUMNS = (
    ("req/s", "rps", 0), ("of direct", "rps_ratio", 3), ("p50 ms", "p50_ms", 2), ("p90 ms", "p90_ms", 2), ("p99 ms", "p99_ms", 2),
    ("added p50", "added_p50_ms", 3), ("added p99", "added_p99_ms", 2), ("TTFT p50", "ttft_p50_ms", 2),
    ("added TTFT p50", "added_ttft_p50_ms", 3), ("CPU ms/req", "cpu_ms_per_request", 3), ("worker", "worker_ms", 3),
    ("keeper", "keeper_ms", 3),
)  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The medians as Markdown."""
    lines = ["| shape | conns | mode | " + " | ".join(c[0] for c in COLUMNS) + " |", "|---|---:|---|" + "---:|" * len(COLUMNS)]
    for row in result["summary"]:
        values = " | ".join(figure(row[name], digits) for _, name, digits in COLUMNS)
        lines.append(f"| {row['shape']} | {row['connections']} | {row['mode']} | {values} |")
    return "\n".join(lines)


def services_told(bench: Bench, chosen: list[Target]) -> dict[str, Any]:
    """Of each service: start time, memory, CPU at rest, and whether what it recorded is what was sent to it."""
    told = {}
    for target in chosen:
        service = target.service
        if service is None or target.conversation:
            continue
        sent = sum(n for mode, n in bench.sent.items() if mode == target.mode or (mode, target.mode) == ("memory", "full"))
        service.recorded(0)
        before, began = service.cpu(), time.perf_counter()
        time.sleep(REST_S)
        rest = {n: (ms - before.get(n, 0.0)) / (time.perf_counter() - began) for n, ms in service.cpu().items()}
        told[target.mode] = {
            "start_seconds": service.start_seconds,
            "rest_cpu_ms_per_s": rest,
            "memory": service.memory(),
            "sent": sent,
            "recorded": service.cli("trace", "list", "--count")["count"],
        }
    return told


def run(options: argparse.Namespace, why: list[str]) -> dict[str, Any]:
    """The measurement as one JSON value."""
    began = time.perf_counter()
    cores = Cores() if options.no_pin else Cores.split()
    pace = f"-l{options.latency_ms}" if options.latency_ms else ""
    models = {"bench": f"mock{pace}", "bench-paced": f"mock{pace}-g1000"}
    cells = SHORT_CELLS if options.short else FULL_CELLS
    if options.requests:
        cells = tuple(replace(c, requests=options.requests) for c in cells)
    host = machine.description()
    with tempfile.TemporaryDirectory(prefix="noria-bench-") as folder:
        kit = tools(Path(folder), python=options.python)
        bench = Bench(Path(folder), kit, cores, models)
        with upstream(kit, cores) as port, targets(Path(folder), port, cores, models) as every:
            chosen = [every[m] for m in (*MODES, *(() if options.short else ("memory",)))]
            warm_up(bench, chosen, 10 if options.requests else 100)
            until = began + (SHORT_S if options.short else float("inf"))
            measured = list(rounds(bench, chosen, cells, count=options.rounds, until=until))
            services = services_told(bench, chosen)
    return {
        "format": FORMAT, "made": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "loaded": bool(why), "why_loaded": why,
        "machine": host, "tools": kit.kind, "cores": {"load": cores.load, "noria": cores.noria}, "latency_ms": options.latency_ms,
        "short": options.short, "seconds": round(time.perf_counter() - began, 1), "services": services,
        "summary": figures.summary(measured, BASELINE, FIGURES), "rounds": measured,
    }  # fmt: skip


def wrong(result: dict[str, Any]) -> list[str]:
    """What makes a result invalid: answers that failed, exchanges that were not recorded."""
    bad = [
        f"{m['mode']} {m['shape']} c{m['connections']} round {m['round']}: {m['ok']} of {m['sent']} answers were good."
        for m in result["rounds"]
        if m["ok"] != m["sent"]
    ]
    return bad + [
        f"{mode}: {s['sent']} requests were sent and {s['recorded']} exchanges recorded."
        for mode, s in result["services"].items()
        if s["sent"] != s["recorded"]
    ]


def report(result: dict[str, Any]) -> str:
    """The table, the processes, and what to keep in mind."""
    lines = [table(result), ""]
    for mode, told in result["services"].items():
        memory = ", ".join(f"{p['role']} {p.get('rss_mib')}/{p.get('pss_mib')}" for p in told["memory"])
        rest = ", ".join(f"{name} {ms:.1f}" for name, ms in told["rest_cpu_ms_per_s"].items())
        lines.append(f"{mode}: started in {told['start_seconds']:.1f} s; RSS/PSS MiB: {memory}; at rest CPU ms/s: {rest}; "
                     f"{told['recorded']} of {told['sent']} requests recorded.")  # fmt: skip
    lines.append(f"Tools: {result['tools']}; cores: {result['cores']}; {result['seconds']} s.")
    if result["loaded"]:
        lines.append("THE MACHINE WAS LOADED: " + " ".join(result["why_loaded"]))
    return "\n".join(lines)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer requests, no mode `memory`, at most a minute")
    parser.add_argument("--rounds", type=int, help="default: 3 in a short run, else 5")
    parser.add_argument("--force", action="store_true", help="run on a loaded machine; the result says so")
    parser.add_argument("--latency-ms", type=int, default=0, help="of the upstream, before the first byte")
    parser.add_argument("--no-pin", action="store_true", help="leave the placing on cores to the kernel")
    parser.add_argument("--python", action="store_true", help="the Python upstream and load generator even where gcc is there")
    parser.add_argument("--requests", type=int, help="of each cell, instead of the usual numbers")
    parser.add_argument("--out", type=Path, help="default: bench/out/gateway-<time>.json")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (3 if options.short else 5)
    return options


def main(argv: list[str]) -> int:
    """0 = measured; 1 = a result that must not be trusted; 2 = refused: the machine is loaded."""
    options = arguments(argv)
    why = machine.look()
    if why and not options.force:
        print(
            "This machine is not quiet, so nothing is measured (--force does it all the same):", *why, sep="\n", file=sys.stderr
        )
        return 2
    try:
        result = run(options, why)
    except Failed as e:
        print(e, file=sys.stderr)
        return 1
    path = options.out or OUT / f"gateway-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(report(result))
    print(f"Raw: {path}")
    bad = wrong(result)
    for line in bad:
        print(line, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
