"""The guard behind the model, on text that is still being written.

The text of a channel is cut into segments; each segment is judged once, with a little of what came before
it, and leaves, masked where a rule says so. Where to cut is a function of the text alone, never of the
chunks that it came in, so any chunking gives the same answer and the same rulings, whatever a check does:

- before white space, and between characters where one is Chinese or the like, as soon as every check says
  that no finding can reach over that place (`Severable.settled`); in prose that holds back one word;
- every 64 characters in a run without such places (from 128 on), at what is settled there; a check that
  is not `Severable` keeps its `reach`;
- after 8,448 characters in any case.

Masks here are irreversible (`[EMAIL]`): the caller must not see what the model made up or leaked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import NamedTuple, Protocol, runtime_checkable

from noria.contracts.exchange import Exchange
from noria.contracts.release import GuardRule
from noria.contracts.stage import Channel, Check, Sample, Transducer
from noria.contracts.verdict import Finding, Ruling, Verdict
from noria.guard.action import erased, findings_of, merge, refusal, replace
from noria.guard.json_text import JsonText, replace_json, splice, view

Rule = tuple[Check, GuardRule]
Report = Callable[[Ruling], None]

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff01-\uff0c\uff0f\uff1a-\uff1f\uff3b-\uff40\uff5b-\uffef\U00020000-\U0003ffff"
_BOUNDARY = re.compile(rf"(?<=\S)(?=\s)|(?<=[{_UNSPACED}])(?=\S)|(?<=[^\s{_UNSPACED}])(?=[{_UNSPACED}])")
_RUN_FIRST = 128
_RUN_STEP = 64
_LONGEST_SEGMENT = 8448
_LONGEST_SENTENCE = 320
"""80 tokens of four characters."""
_SENTENCE_ENDS = frozenset(".!?;\n。！？；…")
_MOST_RULINGS = 64
"""Rulings with findings that one rule reports of one channel; what is done does not depend on it."""


@runtime_checkable
class Severable(Protocol):
    """A span check that can tell where a text may be cut. All three look only at their argument."""

    lookback: int
    """How many characters before a finding can decide about it."""

    def suspects(self, text: str) -> bool:
        """False only where neither the text nor any piece of it can hold a finding."""
        ...

    def settled(self, text: str) -> int:
        """How many characters of `text` no continuation can draw into a finding, or out of one."""
        ...


class OutwardGuard:
    """Opens one transducer a channel: content, reasoning, refusal and tool calls alike.

    `answer`-scoped checks with `stream: hold` keep all of the channel back until its end; with `after`
    they only report then. A `block` raises `Blocked`; what was cut off before it may have left.
    """

    name = "guard.out"
    behaviour = 1

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(check, rule) for check, rule in rules if "output" in rule.on]

    def open(self, x: Exchange, choice: int, channel: Channel, report: Report) -> Transducer | None:
        """As `Outward`; None where no rule is about answers."""
        if not self._rules:
            return None
        place = f"output.{choice}.{channel}"
        prompt = "" if all(check.either for check, _ in self._rules) else _last_prompt(x)
        judges = [_Judge(check, rule, prompt=prompt, place=place, report=report) for check, rule in self._rules]
        spans = [j for j in judges if j.check.scope != "answer"]
        whole = [j for j in judges if j.check.scope == "answer"]
        json = channel.startswith("tool.")
        segments = _Segments(spans, json=json)
        return _Answer(segments, whole, json=json) if whole else segments


def _last_prompt(x: Exchange) -> str:
    return next((m.text for m in reversed(x.messages or ()) if m.role == "user"), "")


class _Found(NamedTuple):
    judge: _Judge
    verdict: Verdict
    spans: list[Finding]
    took: int


class _Judge:
    """One rule on one channel."""

    def __init__(self, check: Check, rule: GuardRule, *, prompt: str, place: str, report: Report) -> None:
        self.check = check
        self.rule = rule
        self.lookback = check.reach
        self.suspects: Callable[[str], bool] = bool
        self.settled: Callable[[str], int] = self._beyond_reach
        self._prompt = prompt
        self._place = place
        self._report = report
        self._took = 0
        self._reported = 0
        if check.scope == "sentence":
            self.lookback = 0
            self.settled = _whole_sentences
        elif isinstance(check, Severable):
            self.lookback, self.suspects, self.settled = check.lookback, check.suspects, check.settled

    def _beyond_reach(self, text: str) -> int:
        return max(0, len(text) - self.check.reach)

    def find(self, before: str, text: str) -> _Found:
        """What the check finds in `text`, which comes after `before`; spans count from the start of `text`."""
        sample = before + text
        began = perf_counter_ns()
        verdict = self.check.judge(self._sample(sample))
        took = perf_counter_ns() - began
        self._took += took
        shift = len(before)
        found = [
            Finding(f.label, max(0, f.start - shift), f.end - shift, f.score)
            for f in findings_of(verdict, len(sample))
            if f.start >= shift or not verdict.findings
        ]
        return _Found(self, verdict, found, took)

    def act(self, found: _Found, offset: int, *, acts: bool = True) -> list[Finding]:
        """Reports what was found in a text at `offset`; what is to be masked of it. Raises `Blocked`."""
        if not found.spans:
            return []
        shifted = tuple(Finding(f.label, f.start + offset, f.end + offset, f.score) for f in found.spans)
        verdict = Verdict(
            found.verdict.check,
            False,
            found.verdict.score,
            shifted if found.verdict.findings else (),
            found.verdict.reason,
        )
        if self._reported < _MOST_RULINGS:
            self._reported += 1
            self._report(Ruling(verdict, self.rule.action if acts else "flag", self._place, found.took))
        if acts and self.rule.action == "block":
            raise refusal(self.rule, verdict, "answer")
        return found.spans if acts and self.rule.action == "mask" else []

    def _sample(self, text: str) -> Sample:
        if not self.check.either:
            return Sample(input=self._prompt, output=text)
        return Sample(output=text) if "output" in self.check.needs else Sample(input=text)

    def close(self) -> None:
        """The ruling of a check that found nothing in all of the channel."""
        if not self._reported:
            self._report(Ruling(Verdict(self.rule.check, True), "allow", self._place, self._took))


def _whole_sentences(text: str) -> int:
    """Settled before the last character, which only was looked at, where that ends a sentence."""
    ended = len(text) > 1 and (text[-2] in _SENTENCE_ENDS or text[-1] == "\n")
    return len(text) - 1 if ended or len(text) > _LONGEST_SENTENCE else 0


class _Segments:
    """Holds back the undecided end of the text. `pieces` are the raw forms of its characters in JSON text."""

    def __init__(self, judges: Sequence[_Judge], *, json: bool) -> None:
        self._judges = judges
        self._lookback = max((j.lookback for j in judges), default=0)
        self._decoder = JsonText() if json else None
        self._pieces: list[str] = []
        self._inside = False
        self._held = ""
        self._seen = 1
        self._before = ""
        self._offset = 0

    def feed(self, text: str) -> str:
        """As `Transducer`."""
        self._take(text, last=False)
        return self._advance()

    def flush(self) -> str:
        """As `Transducer`."""
        self._take("", last=True)
        out = self._advance() + self._release([len(self._held)])
        for judge in self._judges:
            judge.close()
        return out

    def _take(self, text: str, *, last: bool) -> None:
        if self._decoder is None:
            self._held += text
            return
        units = self._decoder.feed(text, last=last)
        self._held += "".join(c for c, _ in units)
        self._pieces += [piece for _, piece in units]

    def _advance(self) -> str:
        out: list[str] = []
        cuts: list[int] = []
        start, at = 0, self._seen
        while True:
            m = _BOUNDARY.search(self._held, at)
            k = m.start() if m else len(self._held)
            forced = start + max(_RUN_FIRST, -(-(at - start) // _RUN_STEP) * _RUN_STEP)
            if min(k, forced) >= len(self._held):
                break
            if k <= forced and self._may_cut(start, k):
                cuts.append(k)
                start, at = k, k + 1
            elif forced <= k and (length := self._settled_run(start, forced)):
                out.append(self._release(cuts))
                out.append(self._sever(forced - start, length))
                cuts, start, at = [], 0, 1
            else:
                at = min(k, forced) + 1
        out.append(self._release(cuts))
        self._seen = max(1, at - start)
        return "".join(out)

    def _may_cut(self, start: int, k: int) -> bool:
        """Whether no finding can reach over position `k`; looks one character ahead."""
        ahead = self._held[k]
        if not ahead.isascii() and (unicodedata.category(ahead)[0] == "M" or "\u1160" <= ahead <= "\u11ff"):
            return False
        segment = self._held[start : k + 1]
        for j in self._judges:  # noqa: SIM110 - a generator costs more than what it runs, a word at a time
            if j.settled(segment) < k - start:
                return False
        return True

    def _settled_run(self, start: int, k: int) -> int:
        """How much of the run that began at `start` may leave at `k`; 0 = none yet."""
        segment = self._held[start : k + 1]
        settled = min((j.settled(segment) for j in self._judges), default=len(segment))
        if k - start >= _LONGEST_SEGMENT:
            return max(settled, _RUN_STEP)
        return min(settled, k - start) if settled >= _RUN_STEP else 0

    def _release(self, cuts: Sequence[int]) -> str:
        """The segments that end at `cuts`, judged one by one."""
        if not cuts or not self._held:
            return ""
        past = self._before + self._held[: cuts[-1]]
        shift = len(self._before)
        wary = [j for j in self._judges if j.suspects(past[max(0, shift - j.lookback) :])]
        out = []
        start = 0
        for end in cuts if wary else (cuts[-1],):
            found: list[Finding] = []
            for j in wary:
                at = max(0, shift + start - j.lookback)
                if j.suspects(past[at : shift + end]):
                    found += j.act(j.find(past[at : shift + start], self._held[start:end]), self._offset + start)
            out.append(self._edit(start, end, found))
            start = end
        self._drop(cuts[-1])
        return "".join(out)

    def _sever(self, seen: int, length: int) -> str:
        """The first `length` characters of a run of which `seen` are known; a finding is never cut in two."""
        known: list[_Found] = []
        for j in self._judges:
            before = self._before[max(0, len(self._before) - j.lookback) :]
            if j.suspects(before + self._held[:seen]):
                known.append(j.find(before, self._held[:seen]))
        for f in merge(f for found in known for f in found.spans):
            if f.start < length < f.end:
                length = f.start or f.end
        masks: list[Finding] = []
        for found in known:  # what begins behind the cut will be found again
            leaving = [f for f in found.spans if f.start < length]
            masks += found.judge.act(found._replace(spans=leaving), self._offset)
        out = self._edit(0, length, masks)
        self._drop(length)
        return out

    def _edit(self, start: int, end: int, found: Sequence[Finding]) -> str:
        """The text from `start` to `end` as it may leave; spans of `found` count from `start`."""
        if self._decoder is None:
            text = self._held[start:end]
            return replace(text, found, erased) if found else text
        out: list[str] = []
        at = start
        for f in merge(found):
            out += self._pass(at, start + f.start)
            pieces = self._pieces[start + f.start : start + f.end]
            out.append(splice(pieces, erased(f.label, ""), inside=self._inside))
            self._inside ^= pieces.count('"') % 2 == 1
            at = start + f.end
        return "".join(out + self._pass(at, end))

    def _pass(self, start: int, end: int) -> list[str]:
        pieces = self._pieces[start:end]
        self._inside ^= pieces.count('"') % 2 == 1
        return pieces

    def _drop(self, length: int) -> None:
        if self._lookback:
            self._before = (self._before + self._held[:length])[-self._lookback :]
        self._held = self._held[length:]
        self._pieces = self._pieces[length:]
        self._offset += length


class _Answer:
    """Judges all of a channel at its end, holding it back where a rule wants to act on it."""

    def __init__(self, segments: _Segments, judges: Sequence[_Judge], *, json: bool) -> None:
        self._segments = segments
        self._judges = judges
        self._json = json
        self._holds = any(j.rule.stream == "hold" for j in judges)
        self._text: list[str] = []

    def feed(self, text: str) -> str:
        """As `Transducer`."""
        self._text.append(text)
        return "" if self._holds else self._segments.feed(text)

    def flush(self) -> str:
        """As `Transducer`."""
        text = "".join(self._text)
        seen = view(text) if self._json else text
        masks: list[Finding] = []
        for j in self._judges:
            masks += j.act(j.find("", seen), 0, acts=j.rule.stream == "hold")
            j.close()
        if not self._holds:
            return self._segments.flush()
        edit = replace_json if self._json else replace
        return self._segments.feed(edit(text, masks, erased) if masks else text) + self._segments.flush()
