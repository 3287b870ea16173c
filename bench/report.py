"""One HTML page of a result: pictures (inline SVG) and tables, from nothing but the committed JSON.

    python bench/report.py bench/results/gateway-….json [--out PAGE.html]

Light and dark follow the reader's system; nothing is fetched.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #5d6877; --page: #fbfbfa; --line: #d9dde2; --noria: #0a6ebd; --peer: #8a94a1;
  --floor: #b9c0c9; --warn: #a33b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --dim: #9aa5b3; --page: #14181e; --line: #323a45; --noria: #58aef2;
  --peer: #7d8896; --floor: #566070; --warn: #ffa36b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.25rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; overflow-wrap: anywhere; } .dim, figcaption { color: var(--dim); font-size: .9rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 2rem; margin: 1.5rem 0; }
figure, section { margin: 0; min-width: 0; } svg { width: 100%; max-width: 30rem; height: auto; display: block; }
svg text { fill: var(--ink); font: 12.5px system-ui, sans-serif; } svg .small { fill: var(--dim); font-size: 11px; }
svg line { stroke: var(--line); }
.noria { fill: var(--noria); } .peer { fill: var(--peer); } .floor { fill: var(--floor); }
.wide { grid-column: 1 / -1; } .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .25rem 0 .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; } tr.noria td:first-child { color: var(--noria); font-weight: 600; }
.warn { color: var(--warn); font-weight: 600; } code { font-size: .9em; }
"""


class Result:
    """A result, asked by part, cell and target."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        self.kinds = {t["name"]: t["kind"] for t in raw["targets"]}
        self._of = {(r["part"], r["cell"], r["target"]): r for r in raw["summary"]}

    def get(self, part: str, cell: str, target: str, name: str) -> float | None:
        return self._of.get((part, cell, target), {}).get(name)

    def row(self, part: str, target: str) -> Row:
        """The raw row of a part that has one a target."""
        return next((r for r in self.raw["rounds"] if (r["part"], r["target"]) == (part, target)), {})

    def cells(self, part: str) -> list[str]:
        return list(dict.fromkeys(r["cell"] for r in self.raw["summary"] if r["part"] == part))

    def measured(self, part: str) -> list[str]:
        """Targets of a part, in the order in which they were named."""
        return [t for t in self.kinds if any(k[0] == part and k[2] == t for k in self._of)]


def said(value: float | None, digits: int | None = None) -> str:
    """A number with three meaningful digits, or a dash."""
    if value is None:
        return "–"
    if digits is None:
        digits = 0 if float(value).is_integer() else min(3, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def bars(rows: Sequence[tuple[str, str, float | None]], unit: str, *, log: bool = True) -> str:
    """Horizontal bars, least first. Each row: name, class, value."""
    known = sorted(((n, k, v) for n, k, v in rows if v is not None and v > 0), key=lambda r: r[2])
    if not known:
        return "<p class=dim>Not measured.</p>"
    left, width, step = 70, 400, 25
    low, high = known[0][2], known[-1][2]
    low = 10 ** math.floor(math.log10(low)) if log else 0.0
    high = 10 ** math.ceil(math.log10(high * 1.0001)) if log else high
    span = width - left - 62

    def x(value: float) -> float:
        part = math.log(value / low) / math.log(high / low) if log else value / high
        return left + max(2.0, part * span)

    drawn, bottom = [], len(known) * step
    if log:
        tick = low
        while tick <= high * 1.001:
            drawn.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{bottom}"/>')
            drawn.append(f'<text class="small" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:,g}</text>')
            tick *= 10
    for i, (name, kind, value) in enumerate(known):
        y = i * step
        drawn.append(f'<text x="0" y="{y + 18}">{html.escape(name)}</text>')
        drawn.append(f'<rect class="{kind}" x="{left}" y="{y + 5}" width="{x(value) - left:.1f}" height="17" rx="2"/>')
        drawn.append(f'<text x="{x(value) + 6:.1f}" y="{y + 18}">{said(value)}</text>')
    label = html.escape(f"{unit}: " + ", ".join(f"{n} {said(v)}" for n, _, v in known), quote=True)
    return f'<svg viewBox="0 0 {width} {bottom + 22}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def chart(result: Result, title: str, what: tuple[str, str | None, str], unit: str, caption: str) -> str:
    """A figure of bars: one value of one cell (None: the cell that has the target's name) for all targets but the mock."""
    part, cell, name = what
    rows = [(t, kind, result.get(part, cell or t, t, name)) for t, kind in result.kinds.items() if kind != "floor"]
    drawn = bars(rows, unit)
    return f"<figure><h2>{html.escape(title)} <span class=dim>{html.escape(unit)}</span></h2>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>"


Column = tuple[str, Callable[[str], str]]


def table(result: Result, title: str, targets: Sequence[str], columns: Sequence[Column], caption: str = "") -> str:
    """A table with a row a target."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in columns)
    body = "".join(
        f'<tr class="{result.kinds[t]}"><td>{html.escape(t)}</td>'
        + "".join(f"<td>{html.escape(of(t))}</td>" for _, of in columns)
        + "</tr>"
        for t in targets
    )
    note = f"<p class=dim>{html.escape(caption)}</p>" if caption else ""
    inner = f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(title)}"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    wide = ' class="wide"' if len(columns) > 6 else ""
    return f"<section{wide}><h2>{html.escape(title)}</h2>{note}{inner}</section>"


def _calls(result: Result) -> str:
    found = []
    for cell in result.cells("calls"):
        columns: list[Column] = [
            (label, lambda t, c=cell, n=name: said(result.get("calls", c, t, n)))
            for label, name in (
                ("CPU ms", "cpu_ms_per_request"), ("CPU µs/token", "cpu_us_per_token"), ("req/s", "rps"), ("p50 ms", "p50_ms"),
                ("p99 ms", "p99_ms"), ("+ p50", "added_p50_ms"), ("+ p99", "added_p99_ms"), ("+ TTFT p99", "added_ttft_p99_ms"),
            )
            if any(result.get("calls", cell, t, name) is not None for t in result.kinds)
        ]  # fmt: skip
        targets = [t for t in result.measured("calls") if result.get("calls", cell, t, "sent")]
        found.append(table(result, cell, targets, columns))
    return "".join(found)


def _governance(result: Result) -> str:
    cells = list(result.raw["governance_ms"])
    lines = []
    for cell in cells:
        values = [result.raw[k].get(cell, {}).get("median") for k in ("governance_ms", "guards_ms")]
        row = [result.get("calls", cell, "plain", "cpu_ms_per_request"), *values]
        if row[0] is not None:
            lines.append(f"<tr><td>{html.escape(cell)}</td>" + "".join(f"<td>{said(v)}</td>" for v in row) + "</tr>")
    if not lines:
        return ""
    return (
        "<section><h2>What governance and guards cost</h2><p class=dim>CPU ms a request, all processes, paired by round: key, budgets, "
        "limits, price and a durable record with bodies; then masking, secrets and a denylist on both sides.</p><div class=scroll>"
        "<table><thead><tr><th></th><th>plain</th><th>+ governance</th><th>+ guards</th></tr></thead><tbody>"
        + "".join(lines)
        + "</tbody></table></div></section>"
    )


def _mib(result: Result, target: str, when: str, kind: str) -> str:
    told = result.row("memory", target).get(when, {})
    value = told.get("all", {}).get(kind)
    return said(value, 0)


def _tables(result: Result) -> str:
    def pick(part: str, name: str, cell: str | None = None) -> Callable[[str], str]:
        return lambda t: said(result.get(part, cell or t, t, name))

    half: list[Column] = [
        ("req/s", pick("half", "rate")), ("p50 ms", pick("half", "p50_ms")), ("p99 ms", pick("half", "p99_ms")),
        ("added p50", pick("half", "added_p50_ms")), ("added p99", pick("half", "added_p99_ms")),
    ]  # fmt: skip
    streams: list[Column] = [
        ("streams", pick("streams", "streams", "streams")), ("tokens", pick("streams", "tokens", "streams")),
        ("lost", pick("streams", "tokens_lost", "streams")), ("out of order", pick("streams", "tokens_disordered", "streams")),
        ("no end", pick("streams", "not_done", "streams")), ("CPU µs/token", pick("streams", "cpu_us_per_token", "streams")),
        ("+ TTFT p99", pick("streams", "added_ttft_p99_ms", "streams")), ("gap p99", pick("streams", "gap_p99_ms", "streams")),
    ]  # fmt: skip
    leave: list[Column] = [
        ("clients left", lambda t: said(result.row("leave", t).get("asked"))),
        ("upstream ended", lambda t: said(result.row("leave", t).get("cancelled"))),
        ("median ms", lambda t: said(result.row("leave", t).get("cancel_p50_ms"))),
        ("most ms", lambda t: said(result.row("leave", t).get("cancel_max_ms"))),
    ]
    memory: list[Column] = [
        (f"{kind.upper()} {when}", lambda t, w=when, k=f"{kind}_mib": _mib(result, t, w, k))
        for when in ("idle", "loaded", "recovered")
        for kind in ("rss", "pss")
    ]
    memory.append(("CPU ms/s at rest", lambda t: said(result.row("memory", t).get("rest_cpu_ms_per_s"))))
    first = result.raw["first_start"]
    start: list[Column] = [
        ("ready s", lambda t: said(first[t].get("ready_s"), 2)), ("first answer s", lambda t: said(first[t].get("answer_s"), 2)),
        ("again: ready s", lambda t: said(result.get("starts", "again", t, "ready_s"), 2)),
        ("again: first answer s", lambda t: said(result.get("starts", "again", t, "answer_s"), 2)),
    ]  # fmt: skip
    own = [t for t in result.kinds if result.kinds[t] != "floor"]
    found = [
        table(result, "At half of saturation", [t for t in result.measured("half") if t in own], half,
              "Open loop, Poisson arrivals; latency counts from when a request was due. Each beside the mock at the same rate."),
        table(result, "Concurrent streams", result.measured("streams"), streams, "20 tokens a second each, begun within one second. Milliseconds: TTFT that is added, and the time between two tokens of a stream."),
        table(result, "When the client leaves", result.measured("leave"), leave, "From the close of its connection to that of the upstream's."),
    ]  # fmt: skip
    if any(result.row("memory", t) for t in own):
        found.append(table(result, "Memory, MiB, all processes", [t for t in own if result.row("memory", t)], memory,
                           "RSS counts shared pages in each process, PSS divides them."))  # fmt: skip
    found.append(table(result, "Start", [t for t in own if t in first], start, "The first start also makes stores and keys."))
    return "".join(found)


def page(raw: dict[str, Any]) -> str:
    """The whole page."""
    result = Result(raw)
    machine = raw["machine"]
    warnings = [f"<p class=warn>INVALID: {html.escape(line)}</p>" for line in raw["invalid"]]
    if raw["loaded"]:
        warnings.append(f"<p class=warn>The machine was loaded: {html.escape(' '.join(raw['why_loaded']))}</p>")
    notes = "".join(f"<p class=dim>{html.escape(line)}</p>" for line in raw["weaknesses"])
    facts = (
        f"{machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel']}, Python {machine['python']}; {raw['made']}; "
        f"form {raw['form']}, {raw['seconds']} s; cores: load {raw['cores']['load']}, measured {raw['cores']['measured']}"
    )
    versions = "; ".join(f"{name} {value}" for name, value in raw["versions"].items())
    records = "; ".join(
        f"{mode}: {r['sent']:,} sent, {r['recorded']:,} recorded, {r['priced']:,} priced exactly"
        for mode, r in raw["records"].items()
    )
    charts = [
        chart(result, "CPU of one request", ("calls", "whole-32", "cpu_ms_per_request"), "CPU ms",
              "All processes of the product, until every exchange is in the trace store. 64 tokens, not streamed, 32 connections."),
        chart(result, "CPU of one stream", ("calls", "stream-32", "cpu_ms_per_request"), "CPU ms", "64 tokens as server-sent events, in one burst."),
        chart(result, "Added latency at half of saturation", ("half", None, "added_p50_ms"), "p50, ms",
              "Each at half of its own throughput: they do not carry the same load."),
        chart(result, "Throughput", ("calls", "whole-32", "rps"), "requests/s", "32 connections, closed loop. Varies with neighbours; CPU hardly."),
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Noria’s gateway, measured {html.escape(raw['made'][:10])}</title><style>{STYLE}</style></head><body>"
        f"<h1>What a gateway adds to a call</h1><p>Noria in three modes beside the call without it and other gateways, interleaved on one "
        f"machine, against a mock. Peers run as they come, without records, budgets or guards. "
        f"Method: <code>bench/README.md</code>.</p>{''.join(warnings)}<p class=dim>{html.escape(facts)}</p>"
        f'<div class="grid">{"".join(charts)}</div><div class="grid">{_governance(result)}{_tables(result)}</div>'
        f"<h1>Every cell</h1><p class=dim>Medians over the rounds; times in ms; what is added (+) is paired with the mock round by round; CPU is that of a request.</p>"
        f'<div class="grid">{_calls(result)}</div><p class=dim>{html.escape(records)}.</p><p class=dim>{html.escape(versions)}</p>{notes}'
        "</body></html>\n"
    )


def main(argv: list[str]) -> int:
    """Write the page beside the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    raw = json.loads(options.result.read_text())
    if raw.get("format") != 2:
        print(f"{options.result} is not a result of bench/gateway.py (format 2).", file=sys.stderr)
        return 1
    path = options.out or options.result.with_suffix(".html")
    path.write_text(page(raw))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
