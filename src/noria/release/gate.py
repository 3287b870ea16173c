"""Whether a candidate may see traffic: declared rules against evidence that others gathered. What is missing fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from noria.contracts.error import RequestError
from noria.contracts.evaluation import Comparison, Estimate
from noria.contracts.rollout import Finding, GateRule, Verdict

T = TypeVar("T")
EQUIVALENCE_ITEMS = 20
"""Fewer compared answers say nothing of whether two engines agree."""
ALWAYS = (GateRule("signature"), GateRule("files"), GateRule("pins"))
"""Asked of every candidate: whether it is what it says it is. Whoever keeps the registry gathers the evidence, no caller."""


class Equivalence(msgspec.Struct, frozen=True):
    """The trained model against the served one on the same prompts."""

    agreement: Estimate
    detail: str = ""


class Leak(msgspec.Struct, frozen=True):
    """Rows of the evaluation that training has seen."""

    leaked: int
    checked: int
    examples: tuple[str, ...] = ()
    train: str = ""
    """Version of the dataset whose training rows were compared."""
    evaluation: str = ""
    """Version of the dataset whose evaluation rows were compared."""


class Evidence(msgspec.Struct, frozen=True):
    """What is known of a candidate. None and an absent key mean that nobody has looked."""

    compared: dict[str, tuple[Comparison, ...]] = {}
    """Suite → comparisons of the current release (first) with the candidate (second), one a metric."""
    figures: dict[str, dict[str, tuple[Estimate, Estimate]]] = {}
    """Suite → figure (`latency_p95_ms`, `cost_usd`) → the current release's and the candidate's."""
    leak: Leak | None = None
    equivalence: Equivalence | None = None
    asked: dict[str, str] = {}
    """Suite → version of the dataset whose rows were asked."""
    artifacts: dict[str, str] | None = None
    """Each artifact that the candidate serves: empty where it was verified, else why it was refused."""
    files: dict[str, str] | None = None
    """Each artifact that says what must stand in its trained file: empty where it does, else what does not."""
    pins: tuple[str, ...] | None = None
    """What the candidate pins and is not so."""
    trained: dict[str, str] | None = None
    """Each artifact that was trained here → the version of the dataset that its signed manifest names."""


def judge(rules: Sequence[GateRule], evidence: Evidence) -> tuple[Finding, ...]:
    """A finding for each rule, in order."""
    by_kind = {
        "quality": _quality,
        "latency": _figure,
        "cost": _figure,
        "leak": _leak,
        "equivalence": _equivalence,
        "dataset": _dataset,
        "signature": _signature,
        "files": _files,
        "pins": _pins,
    }
    return tuple(by_kind[rule.kind](rule, evidence) for rule in rules)


def verdict(findings: Sequence[Finding]) -> Verdict:
    """Of the gate: it passes where every rule does. Without rules nothing is asked, and it passes."""
    found = {f.verdict for f in findings}
    return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"


def waiver(by: str, why: str) -> str:
    """Who lets a candidate pass a gate that it did not pass, and why: `Rollout.waived`. Raises `RequestError` without either."""
    if not by.strip() or not why.strip():
        raise RequestError(
            "Passing a failed gate needs a name and a reason.",
            code="waiver_incomplete",
            param="waive",
            hint="Say who, and why.",
        )
    return f"{by.strip()}: {why.strip()}"


def _missing(rule: GateRule, what: str) -> Finding:
    return Finding(rule, "fail", f"There is no evidence: {what}.")


def _quality(rule: GateRule, evidence: Evidence) -> Finding:
    among = _of_suite(rule, evidence.compared)
    found = next((c for c in among or () if c.metric == rule.metric or not rule.metric), None)
    if found is None:
        return _missing(rule, f"no comparison of {rule.metric or 'any metric'} on {_suite(rule)}")
    d = found.difference
    shown = f"{found.metric}: {d.value:+.3f}, {d.confidence:.0%} interval [{d.low:+.3f}, {d.high:+.3f}], {d.n} items"
    facts = {"comparison": msgspec.to_builtins(found), "margin": rule.margin}
    if d.low > -rule.margin:
        return Finding(rule, "pass", f"{shown}: not worse by {rule.margin:g} or more.", facts)
    if d.high <= -rule.margin:
        return Finding(rule, "fail", f"{shown}: worse by more than {rule.margin:g}.", facts)
    need = f"does not tell a loss of {rule.margin:g}" + (f"; about {found.more} more items would" if found.more else "")
    return Finding(rule, "inconclusive", f"{shown}: {need}.", facts, found.more)


def _figure(rule: GateRule, evidence: Evidence) -> Finding:
    name = rule.metric or ("latency_p95_ms" if rule.kind == "latency" else "cost_usd")
    pair = (_of_suite(rule, evidence.figures) or {}).get(name)
    if pair is None:
        return _missing(rule, f"{name} was not measured on {_suite(rule)}")
    now, then = pair
    facts = {"current": msgspec.to_builtins(now), "candidate": msgspec.to_builtins(then), "ratio": rule.ratio}
    if now.value <= 0:
        ok = then.value <= 0
        return Finding(rule, "pass" if ok else "fail", f"{name}: {now.value:g} now, {then.value:g} with the candidate.", facts)
    times, best, worst = then.value / now.value, then.low / max(now.high, 1e-12), then.high / max(now.low, 1e-12)
    shown = f"{name}: {then.value:g} against {now.value:g}, {times:.2f} times (between {best:.2f} and {worst:.2f})"
    if worst <= rule.ratio:
        return Finding(rule, "pass", f"{shown}; {rule.ratio:g} are allowed.", facts)
    if times > rule.ratio:
        return Finding(rule, "fail", f"{shown}; {rule.ratio:g} are allowed.", facts)
    more = max(1, then.n)  # an interval shrinks with the root of n: twice the items take a good quarter off
    return Finding(rule, "inconclusive", f"{shown}: {rule.ratio:g} are allowed and not excluded.", facts, more)


def _leak(rule: GateRule, evidence: Evidence) -> Finding:
    found = evidence.leak
    if found is None or found.checked <= 0:
        return _missing(rule, "nobody compared the training rows with the evaluation's")
    facts = msgspec.to_builtins(found)
    if stale := _not_of(found, evidence):
        return Finding(rule, "fail", f"The comparison of training with evaluation rows is stale: {stale}.", facts)
    if found.leaked:
        named = f" ({', '.join(found.examples[:3])})" if found.examples else ""
        return Finding(rule, "fail", f"{found.leaked} of {found.checked} evaluation rows were trained on{named}.", facts)
    return Finding(rule, "pass", f"None of {found.checked} evaluation rows was trained on.", facts)


def _not_of(leak: Leak, evidence: Evidence) -> str:
    """Why a leak check says nothing of this candidate: it looked at other versions than were trained on, or asked."""
    for version in (evidence.trained or {}).values():
        if leak.train and version != leak.train:
            return f"it looked at the training rows of {leak.train[:15]}, the candidate was trained on {version[:15]}"
    for suite, version in evidence.asked.items():
        if leak.evaluation and version != leak.evaluation:
            return (
                f"it looked at the evaluation rows of {leak.evaluation[:15]}, the suite {suite} asked those of {version[:15]}"
            )
    return ""


def _equivalence(rule: GateRule, evidence: Evidence) -> Finding:
    found = evidence.equivalence
    if found is None or found.agreement.n <= 0:
        return _missing(rule, "the trained model was not compared with the served one")
    a, facts = found.agreement, msgspec.to_builtins(found)
    shown = f"The served model agrees with the trained one on {a.value:.1%} of {a.n} prompts ({a.low:.1%} to {a.high:.1%})"
    if a.n < EQUIVALENCE_ITEMS:
        more = EQUIVALENCE_ITEMS - a.n
        return Finding(rule, "inconclusive", f"{shown}: fewer than {EQUIVALENCE_ITEMS} say nothing.", facts, more)
    if a.value >= rule.ratio:
        return Finding(rule, "pass", f"{shown}; {rule.ratio:.1%} are asked for.", facts)
    return Finding(
        rule, "fail", f"{shown}; {rule.ratio:.1%} are asked for{': ' + found.detail if found.detail else ''}.", facts
    )


def _signature(rule: GateRule, evidence: Evidence) -> Finding:
    if evidence.artifacts is None:
        return _missing(rule, "the artifacts were not verified")
    wrong = {a: why for a, why in evidence.artifacts.items() if why}
    facts = {"artifacts": evidence.artifacts}
    if wrong:
        return Finding(rule, "fail", " ".join(wrong.values()), facts)
    count = len(evidence.artifacts)
    return Finding(rule, "pass", f"{count} artifacts verified." if count else "It serves no artifact of ours.", facts)


def _dataset(rule: GateRule, evidence: Evidence) -> Finding:
    if not evidence.trained:
        return _missing(rule, "no artifact says which version of a dataset it was trained on")
    facts = {"trained": evidence.trained}
    stale = sorted({version[:15] for version in evidence.trained.values() if version != rule.version})
    if stale:
        said = f"The dataset version is stale: the candidate was trained on {stale[0]}, not on {rule.version[:15]}."
        return Finding(rule, "fail", said, facts)
    return Finding(rule, "pass", f"Trained on {rule.version[:15]}.", facts)


def _files(rule: GateRule, evidence: Evidence) -> Finding:
    if evidence.files is None:
        return _missing(rule, "nobody looked at what stands in the trained files")
    wrong = [why for why in evidence.files.values() if why]
    facts = {"files": evidence.files}
    if wrong:
        return Finding(rule, "fail", " ".join(wrong), facts)
    count = len(evidence.files)
    said = f"{count} trained files are what was trained." if count else "It serves no file that says what was trained."
    return Finding(rule, "pass", said, facts)


def _pins(rule: GateRule, evidence: Evidence) -> Finding:
    if evidence.pins is None:
        return _missing(rule, "nobody looked at what it pins")
    if evidence.pins:
        return Finding(rule, "fail", " ".join(evidence.pins), {"pins": list(evidence.pins)})
    return Finding(rule, "pass", "Its id and its prompt are those of its parts.")


def _of_suite(rule: GateRule, by_suite: Mapping[str, T]) -> T | None:
    """What there is on the rule's suite; a rule that names none means the only one."""
    if rule.suite:
        return by_suite.get(rule.suite)
    return next(iter(by_suite.values())) if len(by_suite) == 1 else None


def _suite(rule: GateRule) -> str:
    return f"the suite {rule.suite}" if rule.suite else "one suite (name it where there are several)"
