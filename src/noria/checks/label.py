"""The class that an answer names: the first one of a set of labels that occurs in it, the longest where two begin together.

Labels and answer are folded alike, and `_`, `-` and spaces are the same in a label: models write `change address` for
`change_address`. In scripts with spaces a label must stand as whole words.
"""

from __future__ import annotations

import re

from noria.contracts.error import ConfigError
from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Finding, Verdict
from noria.kit.words import UNSPACED

_JOINT = re.compile(r"[\s_-]+")
_LETTER = f"[^\\W_{UNSPACED}]"


class LabelOptions(Options, frozen=True):
    """`labels`: the set; a suite fills it from its dataset. `aliases`: by label, other ways to say it. `within`: how many
    characters of the answer are read, from its beginning; 0 = all.
    """

    labels: list[str]
    aliases: dict[str, list[str]] = {}
    within: int = 0


class Label(Check):
    """Score 1 where the named class is the row's, else 0. The finding says which was named, and where."""

    id = "label"
    needs = frozenset({"output", "expected"})
    either = False
    scope = "answer"
    Config = LabelOptions

    def __init__(self, config: LabelOptions) -> None:
        super().__init__(config)
        self._within = config.within
        known = set(config.labels)
        strange = sorted(set(config.aliases) - known)
        if not known or strange:
            wrong = f"Aliases are given for {strange[0]!r}, which is no label." if strange else "The set of labels is empty."
            raise ConfigError(wrong, where="label", hint="Name every class under `labels`.")
        self._label: dict[str, str] = {}
        for label in config.labels:
            for name in (label, *config.aliases.get(label, ())):
                other = self._label.setdefault(_same(name), label)
                if other != label or not _same(name):
                    raise ConfigError(f"{name!r} names {other!r} and {label!r}.", where="label", hint="Make them differ.")
        names = sorted(self._label, key=lambda n: (-len(n), n))
        self._named = re.compile("|".join(_pattern(n) for n in names), re.IGNORECASE)

    def judge(self, sample: Sample) -> Verdict:
        """The verdict on one answer. A row without a class is compared with what it expects as an answer."""
        text = sample.output[: self._within] if self._within else sample.output
        found = self._named.search(text)
        wanted = self._label.get(_same(sample.label or sample.expected), sample.label or sample.expected)
        if found is None:
            return Verdict(self.id, False, 0.0, reason="no label is named")
        label = self._label[_same(found.group())]
        right = label == wanted
        return Verdict(self.id, right, float(right), (Finding(label, found.start(), found.end()),))


def _same(name: str) -> str:
    return _JOINT.sub(" ", name.casefold()).strip()


def _pattern(name: str) -> str:
    """A label wherever it stands as whole words."""
    words = r"[\s_-]+".join(re.escape(part) for part in name.split(" "))
    before = f"(?<!{_LETTER})" if re.match(_LETTER, name) else ""
    after = f"(?!{_LETTER})" if re.match(_LETTER, name[-1]) else ""
    return before + words + after
