"""What a gateway adds to a call: Noria in three modes, the call without it, and other gateways, interleaved on one machine.

    python bench/gateway.py                       the whole, with the peers that are installed (an hour with all of them)
    python bench/gateway.py --short               the mock, nginx if it is there, and Noria: within 90 s
    python bench/gateway.py --smoke               whether it works; its figures mean nothing
    python bench/gateway.py --install envoy,litellm   put peers below bench/out/peers, measure nothing

Method and reading: bench/README.md; the picture: bench/report.py. Everything stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import figures
import machine
import modes
import parts
import peers
import tools
from peers import Place, Running
from service import Service
from targets import Cell, Target
from tools import Ask, Cores, Failed

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
FORMAT = 2

ONE, WHOLE = Cell("whole-1", "mock", 1), Cell("whole-32", "mock", 32)
STREAM = Cell("stream-32", "mock", 32, stream=True)
PACED = Cell("paced-32", "mock-g1000", 32, stream=True)
BODIES = tuple(
    Cell(f"body-{name}", "mock", 4, body=size) for name, size in (("1k", 1000), ("100k", 10**5), ("1m", 10**6), ("10m", 10**7))
)
TLS = (
    Cell("tls-whole-32", "mock-tls", 32, noria_only=True),
    Cell("tls-stream-32", "mock-tls", 32, stream=True, noria_only=True),
)
SLOW = Cell("streams", "mock-g50000-t%d", 512, stream=True)
"""20 tokens a second; its tokens say how long."""
LEFT = Cell("leave", "mock-g20000-t200", 1, stream=True, tokens=200)
FULL_OF_IT = (Cell("m-paced", "mock-g1000", 256, stream=True), Cell("m-bodies", "mock", 4, body=10**6))


@dataclass(frozen=True)
class Form:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of a closed-loop cell in a round."""
    cells: tuple[Cell, ...]
    half_seconds: float
    half_rounds: int
    stream_tokens: int
    leaves: int
    memory_seconds: float
    starts: int
    warm: int = 100


FORMS = {
    "full": Form(5, 4.0, (ONE, WHOLE, STREAM, PACED, *BODIES, *TLS), 6.0, 3, 400, 20, 4.0, 5),
    "short": Form(2, 0.8, (WHOLE, STREAM, replace(BODIES[1], connections=8)), 1.2, 1, 30, 5, 0.0, 1, 50),
    "smoke": Form(1, 0.3, (ONE, WHOLE, STREAM, PACED, *BODIES[:3], *TLS), 0.5, 1, 5, 2, 0.5, 1, 10),
}


@contextmanager
def targets(
    folder: Path, upstream: int, cores: Cores, chosen: argparse.Namespace, models: tuple[str, ...]
) -> Iterator[list[Target]]:
    """Everything that is measured, started one after the other, asked once, and ended."""
    enter = tools.placed(cores.measured)
    with ExitStack() as stack:
        trust, secure = None, {}
        if any(c.noria_only for c in chosen.form.cells):
            port, trust = stack.enter_context(tools.behind_tls(folder, upstream, tools.placed(cores.load)))
            secure = {"mock-tls": (f"https://127.0.0.1:{port}/v1", "mock")}
        plain = {m: (f"http://127.0.0.1:{upstream}/v1", m) for m in models}
        found = [Target("direct", upstream)]
        for mode in chosen.modes:
            service = Service(folder / mode, mode, plain | secure, enter=enter, trust=trust)
            stack.callback(service.stop)
            headers = () if mode == "plain" else (f"authorization: Bearer {service.new_key(*modes.KEY)}",)
            target = Target(mode, service.port, headers, service=service)
            target.starts = {"ready_s": service.ready_s}
            found.append(target)
        for peer in peers.chosen(chosen.peers):
            if peer.found() is None:
                print(f"{peer.name} is not installed (--install {peer.name}): it is left out.", file=sys.stderr)
                continue
            try:
                running = Running(peer, Place(folder / peer.name, tools.free_port(), upstream, models), enter)
            except Failed as e:
                print(f"Left out: {e}", file=sys.stderr)
                continue
            stack.callback(running.stop)
            target = Target(peer.name, running.port, running.headers, running=running, path=peer.path, streams=peer.streams)
            target.starts = {"ready_s": running.ready_s}
            found.append(target)
        yield found


def first_answers(bench: parts.Bench, patience: float = 10.0) -> None:
    """The first answer of each target; counted from when it was ready."""
    for target in bench.targets:
        began = time.monotonic()
        while (told := bench.fire(target, ONE, Ask(1, requests=1)))["ok"] != 1:
            if time.monotonic() - began > patience:
                break  # `warm_up` says what is wrong
            time.sleep(0.1)
        target.starts["answer_s"] = target.starts.get("ready_s", 0.0) + (told.get("p50_ms") or 0.0) / 1000


def kept(target: Target) -> dict[str, Any]:
    """What a Noria recorded of what was sent to it: exchanges, exactly priced ones, and what they cost."""
    assert target.service is not None
    return {"sent": target.sent, "expected_nanousd": target.nanousd, **target.service.priced()}


def run(options: argparse.Namespace, why: list[str]) -> dict[str, Any]:
    """The measurement as one JSON value."""
    began, form, cores = time.perf_counter(), options.form, Cores() if options.no_pin else Cores.split()
    host = machine.description()
    slow = replace(SLOW, model=SLOW.model % form.stream_tokens, tokens=form.stream_tokens)
    needed = (*form.cells, slow, LEFT, *FULL_OF_IT)
    models = tuple(dict.fromkeys(c.model for c in needed if not c.noria_only))
    with tempfile.TemporaryDirectory(prefix="noria-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        tools.build(folder)
        upstream = stack.enter_context(tools.upstream(folder, tools.placed(cores.load)))
        found = stack.enter_context(targets(folder, upstream, cores, options, models))
        bench = parts.Bench(tools.Load(folder, tools.placed(cores.load)), upstream, found, seed=options.seed)
        first_answers(bench)
        parts.warm_up(bench, form.cells, form.warm)
        if form.memory_seconds:
            parts.memory(bench, FULL_OF_IT, seconds=form.memory_seconds, rest=min(5.0, form.memory_seconds * 2))
        parts.calls(bench, form.cells, rounds=form.rounds, seconds=form.seconds)
        parts.half(bench, WHOLE, rounds=form.half_rounds, seconds=form.half_seconds)
        parts.streams(bench, slow, rounds=1 if options.form is not FORMS["full"] else 3)
        records = {t.name: kept(t) for t in bench.targets if t.service}  # before clients leave: what those cost is estimated
        parts.leave(bench, LEFT, times=form.leaves)
        first = {t.name: t.starts for t in found if t.starts}
        if "plain" in records:
            service = bench.named("plain").service
            assert service is not None
            parts.starts(bench, ONE, service, times=form.starts)
        told = [{"name": t.name, "kind": t.kind} for t in found]
    result = {
        "format": FORMAT, "made": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "form": options.form_name,
        "loaded": bool(why), "why_loaded": why, "machine": host, "versions": versions(options, told), "seed": options.seed,
        "cores": {"load": cores.load, "measured": cores.measured}, "seconds": round(time.perf_counter() - began, 1),
        "targets": told, "stream_tokens": form.stream_tokens, "first_start": first, "records": records,
        "summary": figures.summary([r for r in bench.rows if r["part"] != "failed"], parts.FLOOR),
        "governance_ms": figures.paired(bench.rows, "cpu_ms_per_request", "governed", "plain"),
        "guards_ms": figures.paired(bench.rows, "cpu_ms_per_request", "guarded", "governed"),
        "rounds": bench.rows,
    }  # fmt: skip
    return result | {"invalid": wrong(result), "weaknesses": weak(result)}


def versions(options: argparse.Namespace, told: list[dict[str, str]]) -> dict[str, str]:
    """Of Noria (with its commit, and whether files differ from it) and of the peers that took part."""
    import noria

    commit = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "-C", str(HERE), "status", "--porcelain", "--", "../src"], capture_output=True, text=True, check=False
    ).stdout.strip()
    found = {"noria": noria.__version__, "commit": (commit or "unknown") + (" with changes" if dirty else "")}
    here = {t["name"] for t in told}
    return found | {p.name: peers.version(p) for p in peers.chosen(options.peers) if p.name in here}


def wrong(result: dict[str, Any]) -> list[str]:
    """What makes a result invalid: answers of Noria that failed, exchanges that were not recorded or not priced."""
    own = {t["name"] for t in result["targets"] if t["kind"] != "peer"}
    bad = [
        f"{m['part']} {m['cell']} {m['target']} round {m['round']}: {m['ok']} of {m['sent']} answers were good. {m['first_bad']}"
        for m in result["rounds"]
        if m["target"] in own and m.get("ok") != m.get("sent")
    ]
    bad += [
        f"{m['part']} {m['cell']} {m['target']} round {m['round']}: {m['sent']} requests were sent and {m['recorded']} recorded."
        for m in result["rounds"]
        if "recorded" in m and m["recorded"] != m["sent"]
    ]
    for mode, r in result["records"].items():
        if r["recorded"] != r["sent"]:
            bad.append(f"{mode}: {r['sent']} requests were sent and {r['recorded']} exchanges are in the trace store.")
        if mode != "plain" and r["priced"] != r["sent"]:
            bad.append(f"{mode}: {r['sent']} requests were sent and {r['priced']} exchanges are priced exactly.")
        if mode != "plain" and r["nanousd"] != r["expected_nanousd"]:
            bad.append(f"{mode}: what was recorded cost {r['nanousd']}e-9 USD instead of {r['expected_nanousd']}e-9.")
    return bad


def weak(result: dict[str, Any]) -> list[str]:
    """Failures of peers: told, not hidden, and no reason to distrust the rest."""
    own = {t["name"] for t in result["targets"] if t["kind"] != "peer"}
    told = [f"{m['target']}: left out of {m['cell']}: {m['why']}" for m in result["rounds"] if m["part"] == "failed"]
    return told + [
        f"{m['target']} {m['part']} {m['cell']} round {m['round']}: {m['ok']} of {m['sent']} answers were good. {m['first_bad'][:120]}"
        for m in result["rounds"]
        if m["target"] not in own and m.get("ok") != m.get("sent")
    ]


COLUMNS = (
    ("req/s", "rps", 0), ("p50 ms", "p50_ms", 2), ("p99 ms", "p99_ms", 2), ("added p50", "added_p50_ms", 3),
    ("added p99", "added_p99_ms", 2), ("TTFT p50", "ttft_p50_ms", 2), ("added TTFT p99", "added_ttft_p99_ms", 2),
    ("CPU ms/req", "cpu_ms_per_request", 3), ("CPU us/token", "cpu_us_per_token", 1),
)  # fmt: skip


def figure(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def table(result: dict[str, Any]) -> str:
    """The medians as Markdown."""
    lines = ["| part | cell | target | " + " | ".join(c[0] for c in COLUMNS) + " |", "|---|---|---|" + "---:|" * len(COLUMNS)]
    for row in result["summary"]:
        if row["part"] in ("calls", "half", "streams"):
            values = " | ".join(figure(row.get(name), digits) for _, name, digits in COLUMNS)
            lines.append(f"| {row['part']} | {row['cell']} | {row['target']} | {values} |")
    return "\n".join(lines)


def report(result: dict[str, Any]) -> str:
    """The table, and what to keep in mind."""
    lines = [table(result), ""]
    lines += [
        f"{row['target']}: {row['streams']:.0f} streams at once, {row['tokens']:.0f} tokens, {row['tokens_lost']:.0f} lost, "
        f"{row['tokens_disordered']:.0f} out of order, {row['not_done']:.0f} without their end."
        for row in result["summary"]
        if row["part"] == "streams"
    ]
    for row in result["rounds"]:
        if row["part"] == "leave":
            most = figure(row["cancel_max_ms"], 1)
            lines.append(
                f"{row['target']}: {row['cancelled']} of {row['asked']} upstream calls ended after the client left, within {most} ms."
            )
    for cell, ms in result["governance_ms"].items():
        lines.append(
            f"governed − plain, {cell}: {figure(ms['median'])} CPU ms a request ({figure(ms['least'])} to {figure(ms['most'])})."
        )
    for mode, r in result["records"].items():
        lines.append(f"{mode}: {r['sent']} requests sent, {r['recorded']} recorded, {r['priced']} priced exactly.")
    for name, s in result["first_start"].items():
        lines.append(f"{name}: ready {figure(s.get('ready_s'), 2)} s after its first start.")
    lines.append(f"Cores: {result['cores']}; {result['seconds']} s; {result['versions']}.")
    if result["loaded"]:
        lines.append("THE MACHINE WAS LOADED: " + " ".join(result["why_loaded"]))
    return "\n".join(lines + result["weaknesses"])


def arguments(argv: list[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--short", dest="form_name", action="store_const", const="short", default="full", help="within 90 s")
    forms.add_argument("--smoke", dest="form_name", action="store_const", const="smoke", help="only whether it works")
    parser.add_argument("--peers", help="comma between them; default: all that are installed (short and smoke form: nginx)")
    parser.add_argument("--modes", default=",".join(modes.MODES), help="of Noria")
    parser.add_argument("--install", metavar="PEERS", help="install these peers and end")
    parser.add_argument("--even-if-loaded", action="store_true", help="measure on a loaded machine; the result says so")
    parser.add_argument("--no-pin", action="store_true", help="leave the placing on cores to the kernel")
    parser.add_argument("--rounds", type=int, help="instead of the form's")
    parser.add_argument("--seconds", type=float, help="of each closed-loop cell in a round, instead of the form's")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the targets and of the arrivals")
    parser.add_argument(
        "--out", type=Path, help="default: bench/out/gateway-<time>.json; keep what is published in bench/results"
    )
    options = parser.parse_args(argv)
    form = FORMS[options.form_name]
    if options.rounds or options.seconds:
        form = replace(form, rounds=options.rounds or form.rounds, seconds=options.seconds or form.seconds)
    options.form = form
    usual = "nginx" if options.form_name != "full" else ",".join(n for n, p in peers.PEERS.items() if p.found())
    options.peers = [p for p in (usual if options.peers is None else options.peers).split(",") if p]
    options.modes = [m for m in options.modes.split(",") if m]
    if unknown := [m for m in options.modes if m not in modes.MODES]:
        parser.error(f"There is no mode {unknown[0]!r}; known are {', '.join(modes.MODES)}.")
    return options


def main(argv: list[str]) -> int:
    """0 = measured; 1 = a result that must not be trusted; 2 = refused: the machine is loaded."""
    options = arguments(argv)
    try:
        if options.install:
            return 1 if peers.install(options.install.split(",")) else 0
        peers.chosen(options.peers)
        why = machine.look()
        if why and not options.even_if_loaded:
            told = "This machine is not quiet, so nothing is measured (--even-if-loaded does it all the same):"
            print(told, *why, sep="\n", file=sys.stderr)
            return 2
        result = run(options, why)
    except Failed as e:
        print(e, file=sys.stderr)
        return 1
    path = options.out or OUT / f"gateway-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(report(result))
    print(f"Raw: {path}; as a page: python bench/report.py {path}")
    for line in result["invalid"]:
        print(line, file=sys.stderr)
    return 1 if result["invalid"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
