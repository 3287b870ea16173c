"""Text as it is compared: folded, and cut into words; scripts that write no spaces are cut into characters."""

from __future__ import annotations

import re
import unicodedata

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3100-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
"""Thai, Lao, Myanmar, Khmer, kana, Han: the inside of a character class. Hangul is written with spaces."""
_TOKEN = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_SPACE = re.compile(r"\s+")


def folded(text: str) -> str:
    r"""`text` for comparison: NFKC, case folded, runs of white space to one space, none at its ends.

    >>> folded("  Ｗeather \n Today ")
    'weather today'
    """
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def without_articles(text: str) -> str:
    """Folded `text` without the English articles."""
    return _ARTICLES.sub(" ", text)


def without_punctuation(text: str) -> str:
    """Folded `text` without punctuation and symbols; letters, digits and marks stay.

    >>> without_punctuation("it's 3.5 %, 好的。")
    'its 35  好的'
    """
    return "".join(c for c in text if unicodedata.category(c)[0] not in "PS")


def tokens(text: str) -> list[str]:
    """The words of folded `text`, and each character of scripts without spaces; punctuation is left out.

    >>> tokens("gpt-4 说你好")
    ['gpt', '4', '说', '你', '好']
    """
    return _TOKEN.findall(text)


def is_chinese(text: str) -> bool:
    """Whether any Han character stands in it."""
    return _HAN.search(text) is not None
