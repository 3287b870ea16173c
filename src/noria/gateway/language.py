"""Which language a prompt is in, cheaply: by its script, and for Latin and Cyrillic letters by function words.

No model and no dependency: routing needs the coarse answer within microseconds, and says nothing where it does not
know. Measured figures are in `docs/how-to/routing.md`.
"""

from __future__ import annotations

import re

LANGUAGES = ("ar", "de", "el", "en", "es", "fr", "he", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "uk", "zh")
"""What `detect` can say (ISO 639-1)."""

LOOKED_AT = 2000
"""Characters of a text that are judged."""

_SCRIPTS = (
    ("ja", re.compile("[\u3041-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7a3\u1100-\u11ff]")),
    ("zh", re.compile("[\u3400-\u9fff\uf900-\ufaff]")),
    ("cyrillic", re.compile("[\u0400-\u04ff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
    ("he", re.compile("[\u0590-\u05ff]")),
    ("hi", re.compile("[\u0900-\u097f]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("latin", re.compile("[A-Za-z\u00c0-\u024f]")),
)
_WEIGHT = {"zh": 3, "ja": 3, "ko": 2, "th": 1}
"""A character of these says as much as several letters."""
_WORDS = re.compile(r"[^\W\d_]+")

_FUNCTION = {
    "en": "a the of and to in is that for it you with on are this be have not what how can do from as was by an your or if"
    " which why who when where does i my me we they he she please will would could should about"
    " write give create describe explain generate list name find make use tell rewrite suggest provide identify compare"
    " classify convert summarize calculate into following given two three some between up out its they them has had been",
    "de": "der die das und ist nicht ein eine zu den mit auf für von im dem ich wie was sie es sich auch wird oder kann wir du"
    " warum wenn bei mir mein bitte als aus sind hat schreibe erkläre nenne gib",
    "fr": "le la les des et est un une du que dans pour pas sur avec qui ce il vous je au par plus comment quel quelle sont nous"
    " mon ma mes ou tu ne elle cette mais écris explique donne",
    "es": "el la los las de que y en un una es por con para no se del al como qué cómo su lo más pero mi cuál está son yo tú este"
    " esta cuándo dónde hay escribe explica dame",
    "it": "il lo la gli le di che e un una è per con non sono del della come cosa nel si mi ho più anche ma questo quale dove"
    " perché alla dei",
    "pt": "o a os as de que e em um uma é para com não por do da como mais no na se eu você meu qual são dos das ao isso está"
    " porque",
    "nl": "de het een en van is dat niet in op te zijn met voor ik je hoe wat er maar aan ook deze wordt naar kan mijn waarom"
    " bij hebben",
    "pl": "nie się jest na w z i do że to jak co dla czy od po przez są ten ta mi mój gdzie dlaczego może być",
    "tr": "ve bir bu için ne ile da de mi nasıl çok daha olarak ama ben var gibi olan değil kadar en neden nedir",
}
_LATIN = {
    word: [code for code, words in _FUNCTION.items() if word in words.split()]
    for ws in _FUNCTION.values()
    for word in ws.split()
}


def detect(text: str) -> str:
    """The language of `text`, one of `LANGUAGES`, or an empty string where it does not show.

    >>> detect("How do I reset the password?"), detect("怎么重置密码？"), detect("x = 1")
    ('en', 'zh', '')
    """
    text = text[:LOOKED_AT]
    if text.isascii():
        return _latin(text)
    counts = {name: len(pattern.findall(text)) * _WEIGHT.get(name, 1) for name, pattern in _SCRIPTS}
    if counts["ja"] and counts["ja"] * 8 >= counts["zh"]:  # kanji among kana
        counts["ja"] += counts["zh"]
        counts["zh"] = 0
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        return ""
    if best == "latin":
        return _latin(text)
    if best == "cyrillic":
        return "uk" if re.search("[іїєґІЇЄҐ]", text) else "ru"
    return best


def _latin(text: str) -> str:
    votes: dict[str, float] = {}
    words = _WORDS.findall(text.lower())
    for word in words:
        codes = _LATIN.get(word)
        if codes is not None:
            for code in codes:
                votes[code] = votes.get(code, 0.0) + 1 / len(codes)
    if not votes:
        return ""
    best, *others = sorted(votes.items(), key=lambda v: -v[1])
    return best[0] if not others or best[1] > others[0][1] else ""
