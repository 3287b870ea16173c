"""The guard before the model: every check of the policy on every text that the caller sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter_ns

import msgspec

from noria.contracts.exchange import Exchange
from noria.contracts.release import GuardRule
from noria.contracts.stage import Check, Sample
from noria.contracts.verdict import Finding, Ruling, Verdict
from noria.guard.action import Replace, Vault, erased, findings_of, refusal, replace
from noria.guard.json_text import is_json, replace_json, view
from noria.guard.place import Text, decoded, texts_of, with_texts

Report = Callable[[Exchange, Ruling], None]
Rule = tuple[Check, GuardRule]


class InwardGuard:
    """Judges, reports, then acts: all rulings are out before anything is masked or refused.

    Judged: every text of every message but the release's own system prompt, the arguments of tool calls
    (as the characters that their JSON stands for; spans of a ruling there count those characters), a
    completion's prompt and an embedding's input. A check that finds nothing anywhere gives one `allow`
    ruling for the exchange, with the time that it took in all. Masks are reversible (`x.vault`).
    """

    name = "guard.in"
    behaviour = 1

    def __init__(self, rules: Sequence[Rule], *, report: Report) -> None:
        self._rules = [(check, rule) for check, rule in rules if "input" in rule.on]
        self._report = report

    def __call__(self, x: Exchange, /) -> Exchange:
        """The exchange, masked where a rule says so. Raises `Blocked`."""
        if not self._rules:
            return x
        x = decoded(x)
        views = [(t, _view(t)) for t in texts_of(x) if not t.ours]
        masks: dict[str, list[Finding]] = {}
        refused = None
        for check, rule in self._rules:
            for ruling in _rulings(check, rule, views):
                self._report(x, ruling)
                if ruling.action == "mask":
                    found = findings_of(ruling.verdict, _length(views, ruling.place))
                    masks.setdefault(ruling.place, []).extend(found)
                elif ruling.action == "block" and refused is None:
                    refused = refusal(rule, ruling.verdict, "prompt")
        if refused is not None:
            raise refused
        return _masked(x, views, masks) if masks else x


def masked_copy(x: Exchange, rulings: Iterable[Ruling]) -> Exchange:
    """What may be recorded of an exchange that was refused: all that was to be masked or blocked is erased."""
    x = decoded(x)
    views = {t.place: (t, _view(t)) for t in texts_of(x)}
    found: dict[str, list[Finding]] = {}
    for ruling in rulings:
        if ruling.action in ("mask", "block") and ruling.place in views:
            spans = findings_of(ruling.verdict, len(views[ruling.place][1]))
            found.setdefault(ruling.place, []).extend(spans)
    return with_texts(x, {place: _edited(views[place][0], spans, erased) for place, spans in found.items()})


def _view(t: Text) -> str:
    """The text as it is judged."""
    return view(t.text) if t.arguments and "\\" in t.text and is_json(t.text) else t.text


def _length(views: Sequence[tuple[Text, str]], place: str) -> int:
    return next(len(seen) for t, seen in views if t.place == place)


def _rulings(check: Check, rule: GuardRule, views: Sequence[tuple[Text, str]]) -> list[Ruling]:
    rulings = []
    total = 0
    for t, seen in views:
        began = perf_counter_ns()
        verdict = check.judge(Sample(input=seen) if "input" in check.needs else Sample(output=seen))
        took = perf_counter_ns() - began
        total += took
        if not verdict.passed:
            rulings.append(Ruling(verdict, rule.action, t.place, took))
    return rulings or [Ruling(Verdict(rule.check, True), "allow", "input", total)]


def _masked(x: Exchange, views: Sequence[tuple[Text, str]], masks: dict[str, list[Finding]]) -> Exchange:
    vault = Vault(lambda: (s for t in texts_of(x) for s in (t.text, _view(t))), x.vault)
    new = {t.place: _edited(t, masks[t.place], vault.placeholder) for t, _ in views if t.place in masks}
    return msgspec.structs.replace(with_texts(x, new), vault=vault.pairs)


def _edited(t: Text, findings: Iterable[Finding], by: Replace) -> str:
    edit = replace_json if t.arguments and is_json(t.text) else replace
    return edit(t.text, findings, by)
