"""One HTML page about one evaluation, or several of a suite beside each other: no script, nothing from elsewhere, everything escaped."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from html import escape

from noria.contracts.evaluation import Estimate, Report
from noria.evaluate import plots
from noria.evaluate.estimate import confusion

MOST_CLASSES = 40
"""Classes in the confusion matrix; of more, those that are taken for another most often."""
MOST_MISSES = 30

_WORDS = {
    "title": ("Evaluation", "评测报告"),
    "suite": ("Suite", "评测集"),
    "dataset": ("Dataset version", "数据集版本"),
    "split": ("Split", "划分"),
    "items": ("Items", "样本数"),
    "release": ("Release", "版本"),
    "asked": ("Asked", "评测时间"),
    "took": ("Took", "耗时"),
    "cached": ("known from before", "沿用之前的回答"),
    "scores": ("Scores", "得分"),
    "scores_note": (
        "Point: what was measured. Line: 95 % confidence interval. Where lines overlap, “noria eval compare” says more: it goes by item.",
        "圆点为测得的数值，横线为 95 % 置信区间。横线重叠时，请用 noria eval compare 逐样本比较。",
    ),
    "by_label": ("By class (F1)", "各类别（F1）"),
    "by_label_note": ("Behind each bar: F1, and how many items the class has.", "条形之后：F1 值与该类别的样本数。"),
    "confusion": ("What was taken for what", "混淆矩阵"),
    "confusion_note": (
        "Rows: the right class. Columns: the class that was named. Shaded by share of the row.",
        "行为正确类别，列为模型回答的类别；颜色深浅为该行中的占比。",
    ),
    "none": ("none named", "未给出类别"),
    "latency": ("Latency", "延迟"),
    "latency_note": ("Share of answers that took at most so long.", "在给定时间内完成的回答所占比例。"),
    "cost": ("Cost", "费用"),
    "cost_each": ("one request", "每次请求"),
    "cost_all": ("whole run", "整次评测"),
    "unknown": ("unknown: no price is configured", "未知：未配置价格"),
    "errors": ("Errors", "错误"),
    "no_errors": ("Every request was answered.", "所有请求均已得到回答。"),
    "misses": ("Answers that scored lowest", "得分最低的回答"),
    "expected": ("Expected", "期望"),
    "answer": ("Answer", "回答"),
    "score": ("Score", "得分"),
    "row": ("Row", "样本"),
    "withheld": ("(not kept: text of a person)", "（未保留：涉及个人的文本）"),
    "table": ("Figures", "数值"),
    "metric": ("Metric", "指标"),
    "interval": ("95 % interval", "95 % 区间"),
    "method": ("Method", "方法"),
}
STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf7;--ink:#1d2321;--dim:#5d6763;--line:#dcdad2;--card:#fff;--s0:#0f6b66;--s1:#b5541c;--s2:#5a4fa2;
--s3:#8a7413;--s4:#a8325e;--s5:#3c6e2f;--s6:#4a5a6a;--wrong:#b5541c}
@media(prefers-color-scheme:dark){:root{--bg:#141817;--ink:#e6e9e6;--dim:#9aa6a1;--line:#323a37;--card:#1b201f;--s0:#4fc0b5;--s1:#f09a5e;
--s2:#a99cf0;--s3:#d9c04e;--s4:#ee86ad;--s5:#8ccb78;--s6:#a9bccb;--wrong:#f09a5e}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,"Noto Sans CJK SC","PingFang SC",
"Microsoft YaHei",sans-serif}main{max-width:920px;margin:0 auto;padding:28px 20px 60px}h1{font-size:1.7rem;margin:0 0 4px;line-height:1.25}
h2{font-size:1.15rem;margin:38px 0 4px}p{margin:4px 0 12px;color:var(--dim);max-width:70ch}.facts{display:grid;
grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:12px 24px;margin:18px 0 8px}.facts dt{color:var(--dim);font-size:.82rem}
.facts dd{margin:0;overflow-wrap:anywhere}.legend{display:flex;flex-wrap:wrap;gap:6px 20px;margin:12px 0}.legend b{display:inline-block;
width:11px;height:11px;border-radius:50%;margin-right:7px}.plot{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:12px;overflow-x:auto}svg{display:block;width:100%;min-width:560px;height:auto}svg text{fill:var(--ink);font-size:13px}
svg .tick{fill:var(--dim);font-size:11.5px}svg .value{font-variant-numeric:tabular-nums}svg .count{font-size:11px;paint-order:stroke;stroke:var(--card);stroke-width:2.5px}.grid{stroke:var(--line)}
.whisker{stroke-width:3;stroke-linecap:round}.curve{fill:none;stroke-width:2}.cell{stroke:var(--line);stroke-width:.5}
.cell.right{fill:var(--s0)}.cell.wrong{fill:var(--wrong)}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem;
font-variant-numeric:tabular-nums}th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--dim);font-weight:500}td{white-space:nowrap}td.text{overflow-wrap:anywhere;min-width:160px;white-space:pre-wrap}code{font-size:.86em}
@media print{.plot{break-inside:avoid}}
"""

Say = Callable[[str], str]


def page(reports: Sequence[Report], *, lang: str = "en") -> str:
    """The page, in English or Chinese (`zh`). All reports are of one suite; the first is the one it is about."""
    first = reports[0]

    def say(word: str) -> str:
        return _WORDS[word][lang == "zh"]

    title = f"{say('title')}: {first.app}@{first.release_name}"
    parts = [f"<h1>{escape(title)}</h1>", _facts(reports, say), _legend(reports), _scores(reports, say)]
    if first.by_label:
        parts += [_by_label(reports, say), _confusion(first, say)]
    parts += [_latency(reports, say), _cost(reports, say), _errors(first, say), _misses(first, say), _table(reports, say)]
    code = "zh-CN" if lang == "zh" else "en"
    return (
        f'<!doctype html>\n<html lang="{code}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        f'initial-scale=1"><title>{escape(title)}</title><style>{STYLE}{_colours(len(reports))}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def name_of(report: Report) -> str:
    """The release as people call it, with the beginning of its id."""
    return f"{report.app}@{report.release_name or '?'} ({report.release[:11]})"


def shown(name: str, x: float) -> str:
    """A figure in the digits that it deserves."""
    if name.endswith("_ms"):
        return f"{x:,.0f} ms"
    return f"${x:.6f}" if name.endswith("_usd") else f"{x:.3f}"


def _colours(n: int) -> str:
    return "".join(
        f".point.s{i},.bar.s{i}{{fill:var(--s{i % 7})}}.whisker.s{i},.curve.s{i}{{stroke:var(--s{i % 7})}}.legend .s{i}{{background:var(--s{i % 7})}}"
        for i in range(n)
    )


def _facts(reports: Sequence[Report], say: Say) -> str:
    r = reports[0]
    made = dt.datetime.fromtimestamp(r.made_ns / 1e9, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    known = f" ({r.cached} {say('cached')})" if r.cached else ""
    rows = [
        (say("suite"), r.suite.name), (say("release"), r.release), (say("dataset"), r.suite.dataset), (say("split"), r.suite.split),
        (say("items"), f"{len(r.items)}{known}"), (say("asked"), made), (say("took"), f"{r.seconds:,.0f} s"),
    ]  # fmt: skip
    return '<dl class="facts">' + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in rows) + "</dl>"


def _legend(reports: Sequence[Report]) -> str:
    named = (f'<span><b class="s{i}"></b>{escape(name_of(r))}</span>' for i, r in enumerate(reports))
    return f'<div class="legend">{"".join(named)}</div>'


def _section(title: str, note: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(note)}</p>{inside}</section>"


def _plot(svg: str) -> str:
    return f'<div class="plot">{svg}</div>'


def _is_score(name: str) -> bool:
    return not name.endswith(("_ms", "_usd")) and name != "errors"


def _scores(reports: Sequence[Report], say: Say) -> str:
    rows = [
        plots.Bar(name if i == 0 else "", e.value, e.low, e.high, f"{e.value:.3f}", i)
        for name in reports[0].estimates
        if _is_score(name)
        for i, r in enumerate(reports)
        if (e := r.estimates.get(name)) is not None
    ]
    return _section(say("scores"), say("scores_note"), _plot(plots.intervals(rows, say("scores"))))


def _by_label(reports: Sequence[Report], say: Say) -> str:
    first = reports[0]
    rows: list[tuple[str, list[float | None], str]] = []
    for label, told in sorted(first.by_label.items(), key=lambda item: item[1]["f1"]):
        if told["support"]:
            values = [r.by_label[label]["f1"] if label in r.by_label else None for r in reports]
            rows.append((label, values, f"{told['f1']:.2f} / {told['support']:.0f}"))
    return _section(say("by_label"), say("by_label_note"), _plot(plots.bars(rows, say("by_label"))))


def _confusion(report: Report, say: Say) -> str:
    counts = confusion(report.items)
    missed = {label: sum(n for said, n in row.items() if said != label) for label, row in counts.items()}
    rows = sorted(sorted(missed, key=lambda label: -missed[label])[:MOST_CLASSES])
    said = {s for label in rows for s in counts[label]}
    columns = [*sorted(set(rows) | (said - {""}))][:MOST_CLASSES] + ([""] if "" in said else [])
    picture = plots.heat(counts, rows, columns, say("none"), f"{say('confusion')}: {name_of(report)}")
    return _section(say("confusion"), say("confusion_note"), _plot(picture))


def _latency(reports: Sequence[Report], say: Say) -> str:
    series = [[s.latency_ms for s in r.items if not s.error] for r in reports]
    told = "".join(
        f"<tr><td>{escape(name_of(r))}</td>{''.join(f'<td>{_interval(n, r.estimates.get(n))}</td>' for n in ('latency_p50_ms', 'latency_p95_ms'))}</tr>"
        for r in reports
    )
    table = f'<div class="scroll"><table><tr><th>{escape(say("release"))}</th><th>p50</th><th>p95</th></tr>{told}</table></div>'
    return _section(say("latency"), say("latency_note"), _plot(plots.steps(series, say("latency"), "ms")) + table)


def _cost(reports: Sequence[Report], say: Say) -> str:
    known = [r.estimates["cost_usd"] for r in reports if "cost_usd" in r.estimates]
    if not known:
        return _section(say("cost"), say("unknown"), "")
    most = max(e.high for e in known) or 1.0
    rows = [
        plots.Bar(f"{r.app}@{r.release_name}", e.value, e.low, e.high, f"${e.value:.6f}", i)
        for i, r in enumerate(reports)
        if (e := r.estimates.get("cost_usd")) is not None
    ]
    total = sum(s.cost_nanousd or 0 for s in reports[0].items) / 1e9
    note = f"USD, {say('cost_each')}; {say('cost_all')}: ${total:.6f}"
    return _section(say("cost"), note, _plot(plots.intervals(rows, say("cost"), most=most)))


def _errors(report: Report, say: Say) -> str:
    found: dict[str, int] = {}
    for s in report.items:
        if s.error:
            found[s.error[:200]] = found.get(s.error[:200], 0) + 1
    if not found:
        return _section(say("errors"), say("no_errors"), "")
    rows = "".join(
        f"<tr><td>{n}</td><td class=text>{escape(e)}</td></tr>" for e, n in sorted(found.items(), key=lambda x: -x[1])[:20]
    )
    return _section(say("errors"), f"{sum(found.values())} / {len(report.items)}", f"<table>{rows}</table>")


def _misses(report: Report, say: Say) -> str:
    metric = report.suite.metrics[0]
    low = sorted((s for s in report.items if s.scores.get(metric, 0.0) < 1.0), key=lambda s: (s.scores.get(metric, 0.0), s.row))
    if not low:
        return ""
    rows = []
    for s in low[:MOST_MISSES]:
        answer = s.answer or s.said or s.error or say("withheld")
        rows.append(
            f"<tr><td><code>{escape(s.row[:12])}</code></td><td class=text>{escape((s.label or s.expected)[:300])}</td>"
            f"<td class=text>{escape(answer[:300])}</td><td>{s.scores.get(metric, 0.0):.2f}</td></tr>"
        )
    head = "".join(f"<th>{escape(say(w))}</th>" for w in ("row", "expected", "answer", "score"))
    note = f"{metric}: {min(len(low), MOST_MISSES)} / {len(low)}"
    return _section(say("misses"), note, f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>')


def _table(reports: Sequence[Report], say: Say) -> str:
    rows = []
    for r in reports:
        for name, e in r.estimates.items():
            rows.append(
                f"<tr><td>{escape(name_of(r))}</td><td>{escape(name)}</td><td>{shown(name, e.value)}</td><td>{_range(name, e)}</td>"
                f"<td>{e.n}</td><td>{escape(e.method)}</td></tr>"
            )
    head = "".join(
        f"<th>{escape(t)}</th>" for t in (say("release"), say("metric"), say("score"), say("interval"), "n", say("method"))
    )
    return _section(say("table"), "", f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>')


def _interval(name: str, e: Estimate | None) -> str:
    return "–" if e is None else f"{shown(name, e.value)} [{_range(name, e)}]"


def _range(name: str, e: Estimate) -> str:
    return f"{shown(name, e.low)} … {shown(name, e.high)}"
