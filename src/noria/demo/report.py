"""The demo on one HTML page: verdicts, figures, pictures. No script, nothing from elsewhere, everything escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from noria.demo.narrate import Narrator
from noria.demo.pictures import Axes, Line, curves
from noria.evaluate import plots
from noria.evaluate.report import STYLE

if TYPE_CHECKING:
    from noria.demo.story import Cast

_MORE = """
.ok{color:var(--s0)}.no{color:var(--wrong)}.mark{stroke:var(--wrong);stroke-dasharray:5 4}
""" + "".join(
    f".point.s{i},.bar.s{i}{{fill:var(--s{i})}}.whisker.s{i},.curve.s{i}{{stroke:var(--s{i})}}.legend .s{i}{{background:var(--s{i})}}"
    for i in range(4)
)
TITLE = "Noria: one turn of the wheel"


def page(narrator: Narrator, cast: Cast, reason: str) -> str:
    """The page of a demo that has ended, well or (`reason`) not: of what did not happen it says nothing."""
    f = narrator.figures()
    model = "a classifier on n-grams" if cast.size.fast else "SmolLM2-135M with a LoRA adapter"
    ended = "Every verdict was reached by measurement." if not reason else f"It ended early: {reason}"
    intro = (
        f"A help desk, {model}, {narrator.seconds / 60:.1f} minutes. {ended} The customers are played: messages, thumbs and corrections "
        "come from labelled messages that were written for this project; everything else is the service itself."
    )
    parts = [
        f"<h1>{escape(TITLE)}</h1><p>{escape(intro)}</p>", _verdicts(narrator), _accuracy(f), _classes(f), _drift(f), _training(f),
        _canary(f), _harm(f), _time(narrator, cast), _parts(f, cast),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(TITLE)}</title><style>{STYLE}{_MORE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _section(title: str, note: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(note)}</p>{inside}</section>" if inside else ""


def _plot(svg: str) -> str:
    return f'<div class="plot">{svg}</div>' if svg else ""


def _legend(*names: str) -> str:
    return (
        '<div class="legend">'
        + "".join(f'<span><b class="s{i}"></b>{escape(n)}</span>' for i, n in enumerate(names))
        + "</div>"
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row[:-1]) + f'<td class="text">{escape(row[-1])}</td></tr>'
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _verdicts(narrator: Narrator) -> str:
    rows = "".join(
        f'<tr><td class="{"ok" if v["reached"] else "no"}">{"✓" if v["reached"] else "✗"} {escape(v["name"])}</td>'
        f'<td class="text">{escape(v["says"])}</td></tr>'
        for v in narrator.of("verdict")
    )
    return _section("Verdicts", "Each is the service's own, with what it rests on.", f"<table>{rows}</table>" if rows else "")


def _accuracy(f: dict[str, Any]) -> str:
    if "measured" not in f:
        return ""
    told = [("v1, before", f["measured"][0]), ("after the refresh", f["measured"][1])]
    if "strict" in f:
        told.insert(1, ("base, answer forced", f["strict"]))
    if "damaged" in f:
        told.append(("damaged on purpose", f["damaged"]["estimate"]))
    bars = [plots.Bar(name, e["value"], e["low"], e["high"], f"{e['value']:.1%}", i) for i, (name, e) in enumerate(told)]
    n = f["measured"][0]["n"]
    note = (
        f"Share of {n} held-out messages whose intent was named, with 95 % intervals; all asked through the gateway, judged by one scorer. "
        "None of them was trained on."
    )
    return _section("How good the answers are", note, _plot(plots.intervals(bars, "Accuracy of the releases")))


def _classes(f: dict[str, Any]) -> str:
    if "classes" not in f:
        return ""
    rows = [(name, pair, f"{pair[1]:.2f}") for name, pair in sorted(f["classes"].items(), key=lambda item: -item[1][1])]
    picture = _legend("v1", "after the refresh") + _plot(plots.bars(rows, "F1 by intent"))
    return _section("By intent (F1)", "On the same held-out messages; few of each intent, so single bars are rough.", picture)


def _drift(f: dict[str, Any]) -> str:
    if "drift" not in f:
        return ""
    report = f["drift"]
    rows = [
        (
            s["name"],
            s["standing"],
            f"{s['effect']:.4f}",
            f"{s['q']:.4f}",
            f"{s['n_reference']} / {s['n_recent']}",
            s["says"],
        )
        for s in report["signals"]
    ]
    words = ", ".join(f"{t['term']} ({t['reference']:.0%} → {t['recent']:.0%})" for t in report["more"])
    note = f"{report['says']} Words that came more often: {words or 'none'}."
    return _section("What the service noticed", note, _table(("signal", "standing", "effect", "q", "n", ""), rows))


def _training(f: dict[str, Any]) -> str:
    if "training" not in f:
        return ""
    t = f["training"]
    line = Line([(i + 1, v) for i, v in enumerate(t["loss"])])
    note = f"{t['rows']} rows, {t['steps']} steps, {t['seconds']:.0f} s ({t['cpu_seconds']:.0f} CPU seconds), at most {t['peak_bytes'] / 1e9:.1f} GB."
    return _section("Training", note, _plot(curves([line], "Loss by step", Axes("step", "loss"))))


def _canary(f: dict[str, Any]) -> str:
    rollout = f.get("rollout")
    if not rollout:
        return ""
    looks = rollout.get("looks", [])
    bounds = [Line([(k["judged"], k[end]) for k in looks if k["judged"]], 0) for end in ("low", "high")]
    margin = rollout["policy"]["max_regression"]
    axes = Axes("judged answers of the candidate", "difference", -margin, f"a drop of {margin:g}")
    note = (
        f"Always-valid interval of the difference in {rollout['policy']['metric']}: promotion needs its lower end above the dashed line, after "
        f"{rollout['policy']['min_answers']} judged answers at each step. {rollout['reason']}"
    )
    return _section("The canary", note, _plot(curves(bounds, "Interval of the difference", axes)) + _decisions(rollout))


def _harm(f: dict[str, Any]) -> str:
    rollout = f.get("rolled_back")
    if not rollout:
        return ""
    looks = [k for k in rollout.get("looks", []) if k["judged"]]
    line = Line([(k["judged"], math.log10(max(k["harm"], 1e-3))) for k in looks], 1)
    acts = -math.log10(rollout["policy"]["alpha"])
    axes = Axes("judged answers of the candidate", "evidence of harm, log10", acts, "rolled back")
    note = f"The gate had been waived ({rollout['waived']}). {rollout['reason']}"
    picture = _plot(curves([line], "Evidence of harm", axes)) if len(looks) > 1 else ""
    return _section("The damaged candidate, with its gate waived", note, picture + _decisions(rollout))


def _decisions(rollout: dict[str, Any]) -> str:
    return _table(("decision", "why"), [(d["action"].replace("_", " "), d["says"]) for d in rollout["decisions"]])


def _time(narrator: Narrator, cast: Cast) -> str:
    took = {e["name"]: e["seconds"] for e in narrator.of("phase_end")}
    acts = [a for a in cast.size.acts if a.name in took]
    most = max([*took.values(), *(a.budget_s for a in acts)], default=1.0)
    rows = [(a.name, (a.budget_s / most, took[a.name] / most), f"{took[a.name]:.0f} s") for a in acts]
    note = "Budgets are meant for two cores that do nothing else."
    picture = _legend("budget", "this time") + _plot(plots.bars(rows, "Seconds by act")) if rows else ""
    return _section("Where the time went", note, picture)


def _parts(f: dict[str, Any], cast: Cast) -> str:
    rows = []
    if "first" in f:
        rows.append(("dataset v1", f["first"]["version"]))
    for name, key, what in (("leak", "version", "dataset v2"), ("export", "served", "artifact"), ("release", "id", "release")):
        if found := f.get(f"step.{name}"):
            rows.append((what, str(found["output"][key])))
    rows.append(("home", str(cast.place.home)))
    rows.append(("look again", f"NORIA_HOME={cast.place.home} noria up --config {cast.place.config}"))
    return _section(
        "Named by content", "In this installation the same content has the same name.", _table(("what", "name"), rows)
    )
