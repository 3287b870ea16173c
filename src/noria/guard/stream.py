"""The guard behind the model, on text that is still being written.

The text of a channel is cut into segments; each segment is judged once, with a little of what came before
it, and leaves, masked where a rule says so. Where to cut is a function of the text alone, never of the
chunks that it came in, so any chunking gives the same answer and the same rulings, whatever a check does:

- behind a Chinese character, Chinese punctuation or a line end, before white space, and between characters where one
  is Chinese or the like, as soon as every check says that no finding can reach over that place (`Severable`); in
  prose that holds back one word, in Chinese nothing;
- every 64 characters in a run without such places (from 128 on), at what is settled there; a check that
  is not `Severable` keeps its `reach`;
- after 8,448 characters in any case.

Most text is `quiet`: nothing in it could begin a finding. Then every such place is one to cut at and no segment need be
judged, so the text up to the last of them leaves at once; what that skips is work, never a different outcome.

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
_CLOSED = "\n\u3001\u3002\u3400-\u4dbf\u4e00-\u9fff\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f\U00020000-\U0003ffff"
"""Behind these it need not be known what comes next: no mark that may follow makes another character of them."""
_BOUNDARY = re.compile(rf"(?<=\S)(?=\s)|(?<=[{_UNSPACED}])(?=\S)|(?<=[^\s{_UNSPACED}])(?=[{_UNSPACED}])")
"""Places that are known by the character behind them."""
_PLACE = re.compile(rf"{_BOUNDARY.pattern}|(?<=[{_CLOSED}])")
_ASCII_PLACE = re.compile(r"\s(?<=\S\s)|(?<=\n)")
"""The same places, found ten times faster."""
_ENDS_CLOSED = re.compile(rf"[{_CLOSED}]\Z")
_RUN_FIRST = 128
_RUN_STEP = 64
_LONGEST_SEGMENT = 8448
_SLICE = 96
"""Characters that are looked at together: where one is suspicious, only its slice is cut place by place."""
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

    def quiet(self, text: str) -> bool:
        """Whether the text may be cut at any place between words, whatever follows: neither it nor any piece of it holds
        a finding, or could be the first words of one. May err towards False; True of a text is True of all its pieces.
        """
        ...

    def suspects(self, text: str) -> bool:
        """False only where neither the text nor any piece of it can hold a finding."""
        ...

    def settled(self, text: str) -> int:
        """How many characters of `text` no continuation can draw into a finding, or out of one."""
        ...


class _Manner(NamedTuple):
    """A rule, and how its check wants a text to be cut; known once, used by every answer."""

    check: Check
    rule: GuardRule
    lookback: int
    quiet: Callable[[str], bool]
    suspects: Callable[[str], bool]
    settled: Callable[[str], int]


def _manner(check: Check, rule: GuardRule) -> _Manner:
    if check.scope == "sentence":
        return _Manner(check, rule, 0, _never, bool, _whole_sentences)
    if isinstance(check, Severable):
        return _Manner(check, rule, check.lookback, check.quiet, check.suspects, check.settled)
    return _Manner(check, rule, check.reach, _never, bool, lambda text: max(0, len(text) - check.reach))


def _never(_text: str) -> bool:
    return False


def _whole_sentences(text: str) -> int:
    """Settled before the last character, which only was looked at, where that ends a sentence."""
    ended = len(text) > 1 and (text[-2] in _SENTENCE_ENDS or text[-1] == "\n")
    return len(text) - 1 if ended or len(text) > _LONGEST_SENTENCE else 0


class OutwardGuard:
    """Opens one transducer a channel: content, reasoning, refusal and tool calls alike.

    `answer`-scoped checks with `stream: hold` keep all of the channel back until its end; with `after`
    they only report then. A `block` raises `Blocked`; what was cut off before it may have left.
    """

    name = "guard.out"
    behaviour = 1

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._manners = [_manner(check, rule) for check, rule in rules if "output" in rule.on]
        self._alone = all(m.check.either for m in self._manners)

    def open(self, x: Exchange, choice: int, channel: Channel, report: Report) -> Transducer | None:
        """As `Outward`; None where no rule is about answers."""
        if not self._manners:
            return None
        place = f"output.{choice}.{channel}"
        prompt = "" if self._alone else _last_prompt(x)
        judges = [_Judge(manner, prompt=prompt, place=place, report=report) for manner in self._manners]
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

    def __init__(self, manner: _Manner, *, prompt: str, place: str, report: Report) -> None:
        self.check, self.rule, self.lookback, self.quiet, self.suspects, self.settled = manner
        self._prompt = prompt
        self._place = place
        self._report = report
        self._took = 0
        self._reported = 0

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

    @property
    def held(self) -> int:
        """As `Transducer`."""
        return len(self._held) if self._decoder is None else sum(map(len, self._pieces)) + self._decoder.partial

    def feed(self, text: str) -> str:
        """As `Transducer`."""
        if len(text) <= _SLICE:
            self._take(text, last=False)
            return self._advance()
        return "".join([self.feed(text[i : i + _SLICE]) for i in range(0, len(text), _SLICE)])

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
        self._held += "".join([c for c, _ in units])
        self._pieces += [piece for _, piece in units]

    def _advance(self) -> str:
        if len(self._held) > _RUN_FIRST or not self._is_quiet():
            return self._advance_warily()
        cut = _last_place(self._held)
        return self._leave(cut, ()) if cut else ""

    def _is_quiet(self) -> bool:
        window = self._before + self._held
        for j in self._judges:  # noqa: SIM110 - a generator costs more than what it runs, a word at a time
            if not j.quiet(window):
                return False
        return True

    def _advance_warily(self) -> str:
        out: list[str] = []
        cuts: list[int] = []
        held, start, at = self._held, 0, self._seen
        place = _ASCII_PLACE if held.isascii() else _PLACE
        while True:
            m = place.search(held, at) if at <= len(held) else None
            k = m.start() if m else len(held) + 1
            forced = start + max(_RUN_FIRST, -(-(at - start) // _RUN_STEP) * _RUN_STEP)
            if min(k, forced + 1) > len(held):
                break
            if k <= forced and self._may_cut(start, k):
                cuts.append(k)
                start, at = k, k + 1
            elif k == len(held) <= forced:  # to be seen again, with what comes behind it
                at = k
                break
            elif forced <= k and (length := self._settled_run(start, forced)):
                out.append(self._release(cuts))
                out.append(self._sever(forced - start, length))
                cuts, held, start, at = [], self._held, 0, 1
            else:
                at = min(k, forced) + 1
        out.append(self._release(cuts))
        self._seen = max(1, at - start)
        return "".join(out)

    def _may_cut(self, start: int, k: int) -> bool:
        """Whether no finding can reach over the place `k`; looks one character ahead where that is needed to know."""
        held = self._held
        if _ENDS_CLOSED.match(held, k - 1, k) and self._separates(held[start:k], k - start):
            return True
        if k == len(held) or _is_mark(held[k]) or not _BOUNDARY.match(held, k):
            return False
        return self._separates(held[start : k + 1], k - start)

    def _separates(self, segment: str, length: int) -> bool:
        for j in self._judges:  # noqa: SIM110 - as in `_is_quiet`
            if not j.quiet(segment) and j.settled(segment) < length:
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

    def _leave(self, length: int, found: Sequence[Finding]) -> str:
        """The first `length` characters, as they may leave."""
        out = self._edit(0, length, found)
        self._drop(length)
        return out

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
        return self._leave(length, masks)

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
        if self._pieces:
            del self._pieces[:length]
        self._offset += length
        self._seen = 1


def _last_place(text: str) -> int:
    """The last place in a quiet text, which can be cut at all of them; 0 where it has none."""
    if text.isascii() and text:
        if text[-1] == "\n":
            return len(text)
        words = text.rsplit(None, 1) if not text[-1].isspace() else (text.rstrip(), "")
        return len(words[0]) if len(words) == 2 else 0
    for k in range(len(text), 0, -1):
        if _ENDS_CLOSED.match(text, k - 1, k) or (k < len(text) and _BOUNDARY.match(text, k) and not _is_mark(text[k])):
            return k
    return 0


def _is_mark(c: str) -> bool:
    """Whether a character is written onto the one before it: combining marks and conjoining jamo."""
    return not c.isascii() and (unicodedata.category(c)[0] == "M" or "\u1160" <= c <= "\u11ff")


class _Answer:
    """Judges all of a channel at its end, holding it back where a rule wants to act on it."""

    def __init__(self, segments: _Segments, judges: Sequence[_Judge], *, json: bool) -> None:
        self._segments = segments
        self._judges = judges
        self._json = json
        self._holds = any(j.rule.stream == "hold" for j in judges)
        self._text: list[str] = []
        self._size = 0

    @property
    def held(self) -> int:
        """As `Transducer`."""
        return self._size if self._holds else self._segments.held

    def feed(self, text: str) -> str:
        """As `Transducer`."""
        self._text.append(text)
        self._size += len(text)
        return "" if self._holds else self._segments.feed(text)

    def flush(self) -> str:
        """As `Transducer`."""
        text = "".join(self._text)
        self._size = 0
        seen = view(text) if self._json else text
        masks: list[Finding] = []
        for j in self._judges:
            masks += j.act(j.find("", seen), 0, acts=j.rule.stream == "hold")
            j.close()
        if not self._holds:
            return self._segments.flush()
        edit = replace_json if self._json else replace
        return self._segments.feed(edit(text, masks, erased) if masks else text) + self._segments.flush()
