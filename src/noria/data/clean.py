"""Rules that a row must pass to be worth learning from. A row that fails is rejected with rule, value and threshold."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from noria.contracts.dataset import Rejection, Row
from noria.contracts.error import ConfigError
from noria.data.row import prompt_of, text_of

_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
"""Control characters apart from tab and line ends, and the mark of undecodable bytes: text that went through a wrong codec."""

SURE_WORDS = 12
"""Words in Latin letters from which on their language is judged."""
_LATIN_WORD = re.compile("[A-Za-z\u00c0-\u024f]+")
_OTHER_SCRIPT = re.compile("[\u0370-\u1fff\u3040-\u9fff\uac00-\ud7af]")

Detect = Callable[[str], str]
"""A text → its language (ISO 639-1), or an empty string where it does not show."""


class Rules(msgspec.Struct, frozen=True):
    """Bounds; None = not asked for."""

    min_chars: int = 1
    """Characters of the last user turn, white space apart."""
    max_chars: int | None = None
    """Characters of prompt and answer together."""
    max_control: float = 0.0
    """Share of control characters."""
    langs: tuple[str, ...] = ()
    """Languages wanted (ISO 639-1); a text whose language does not show passes."""
    need_answer: bool = False
    need_label: bool = False

    def recipe(self) -> dict[str, Any]:
        """As a version's recipe tells of it."""
        return {"step": "clean", **msgspec.to_builtins(self)}


def judge(id: str, row: Row, rules: Rules, detect: Detect) -> Rejection | None:
    """Why a row is left out, by the first rule that it fails; None where it passes all."""

    def no(rule: str, value: float | None = None, threshold: float | None = None, detail: str = "") -> Rejection:
        return Rejection(id, "clean", rule, value, threshold, detail=detail)

    asked = asked_of(row)
    whole = prompt_of(row) + row.answer
    if not asked:
        return no("empty", 0, 1)
    if len(asked) < rules.min_chars:
        return no("too_short", len(asked), rules.min_chars)
    if rules.max_chars is not None and len(whole) > rules.max_chars:
        return no("too_long", len(whole), rules.max_chars)
    control = len(_CONTROL.findall(whole)) / len(whole)
    if control > rules.max_control:
        return no("control_characters", round(control, 6), rules.max_control)
    if rules.need_answer and not row.answer.strip():
        return no("no_answer")
    if rules.need_label and not row.label:
        return no("no_label")
    return _language(asked, row, rules, detect, no)


def asked_of(row: Row) -> str:
    """The last turn, which is what is asked."""
    return text_of(row.messages[-1]).strip() if row.messages else ""


def _language(asked: str, row: Row, rules: Rules, detect: Detect, no: Callable[..., Rejection]) -> Rejection | None:
    if not rules.langs:
        return None
    seen = _sure(asked, detect)
    if seen and seen not in rules.langs:
        return no("language", detail=f"{seen}, wanted {', '.join(rules.langs)}")
    said = _sure(row.answer, detect)
    if seen and said and said != seen:  # the answer to a Chinese question is Chinese: another was meant for somebody else
        return no("language_mismatch", detail=f"asked in {seen}, answered in {said}")
    return None


def _sure(text: str, detect: Detect) -> str:
    """The language, where it is beyond doubt: a few Latin letters ("roll a die") could be of any."""
    return detect(text) if _OTHER_SCRIPT.search(text) or len(_LATIN_WORD.findall(text)) >= SURE_WORDS else ""


def check(rules: Rules, known: tuple[str, ...]) -> None:
    """Raises `ConfigError` for bounds that nothing can pass, and languages that cannot be told."""
    if rules.max_chars is not None and rules.max_chars < rules.min_chars:
        raise ConfigError(f"Nothing has at least {rules.min_chars} and at most {rules.max_chars} characters.")
    if not 0 <= rules.max_control <= 1:
        raise ConfigError(f"A share is between 0 and 1, not {rules.max_control}.")
    for lang in rules.langs:
        if lang not in known:
            raise ConfigError(f"The language {lang!r} cannot be told apart.", hint=f"Known: {', '.join(known)}.")
