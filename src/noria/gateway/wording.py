"""What two wordings of a question must have in common before one answer may serve both.

Embeddings place "flights from Boston to Denver" beside "flights from Denver to Boston", and "can I" beside "why can't
I": nearness says that two questions are about the same thing, not that they ask the same of it. So what carries the
difference must agree: numbers, dates, negation, quoted text, names, what is asked for, and the words that carry content,
in their order. Only words of the closed lists here (articles, courtesy, "show me" beside "list") may differ. Rules are
deterministic and made for English and Chinese; a text in another language agrees only where its words do.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

LONGEST = 400
"""Characters of a question that may be answered by resemblance: longer ones carry details that no rule here sees."""

_TOKEN = re.compile(
    r"\[[A-Z0-9_]+\]"  # placeholders of masked values
    r"|[\w.+-]+@[\w.-]+\w|https?://\S+"
    r"|\d[\d.,:/%-]*\d%?|\d%?"
    r"|[^\W\d_]+(?:'[^\W\d_]+)?"
    r"|[-+*/=<>^&|~$€£¥#@\\]",
    re.UNICODE,
)
_QUOTED = re.compile(
    r"\"([^\"]+)\"|“([^”]+)”|「([^」]+)」|『([^』]+)』|《([^》]+)》|`([^`]+)`|(?<!\w)'([^']+)'(?!\w)|‘([^’]+)’"
)
_HAN = re.compile(r"[\u3400-\u9fff]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NOT = _words(
    "not no never none nothing nobody nowhere neither nor without cannot except unless hardly isn aren wasn weren don doesn "
    "didn won wouldn can't couldn shouldn haven hasn hadn"
)
_ASKED = {word: word for word in ("how", "why", "when", "where", "which", "who")} | {
    "whom": "who", "whose": "who", "many": "many", "much": "many",
    "long": "extent", "often": "extent", "far": "extent", "old": "extent",
}  # fmt: skip
_EMPTY = _words(
    "a an the this that these those there it its is are was were be been being do does did will would shall should can could "
    "may might must have has had i me my mine we us our you your yours of in on at for with by please kindly "
    "thanks thank hi hello hey ok okay so just also then now want wants wanted like need needs wish get got give gives show "
    "shows tell tells list find let know see look looking help what what's whats i'd i'm i've i'll it's that's let's if about "
    "some any all possible able way"
)
"""Words that may differ. Those of relation (`from`, `to`, `before`, `over`) are not among them."""
_SAME = {
    "cheapest": "cheap", "inexpensive": "cheap", "photo": "picture", "photos": "picture", "pictures": "picture",
    "movies": "movie", "film": "movie", "films": "movie", "song": "song", "songs": "song", "phone": "phone",
    "telephone": "phone", "mobile": "phone", "begin": "start", "big": "large", "purchase": "buy", "quick": "fast",
}  # fmt: skip

_ZH_EMPTY = frozenset("的了吗呢吧么啊呀哦嘛啦呗得地着我您请麻烦把给是就都也才这那说帮谢")
_ZH_ASKED = (
    (re.compile("为什么|为什麽|为啥|为何|怎么回事|咋回事|什么原因|凭什么"), "why"),
    (re.compile("什么时候|何时|几时|哪时候|啥时候|多会儿"), "when"),
    (re.compile("怎么样|怎么办|怎样|怎么|如何|咋办|咋样|咋"), "how"),
    (re.compile("多少|几[个次天月年点岁]|多大|多长|多久|多高|多远"), "many"),
    (re.compile("哪里|哪儿|在哪|何处"), "where"),
    (re.compile("谁"), "who"),
    (re.compile("什么|啥"), "what"),
)
_ZH_A_NOT_A = re.compile(r"([\u3400-\u9fff])[不没]\1|是否|有没有|能否|可否|是不是|会不会")
_ZH_NOT = re.compile("[不没無无未别勿莫非]")
_ZH_MAY = re.compile("可以|能够|能")


class Wording(NamedTuple):
    """What of a question must agree, each part in its order."""

    quoted: tuple[str, ...]
    asked: tuple[str, ...]
    negated: int
    content: tuple[str, ...]
    """The words that carry content, stemmed; Chinese by characters."""


def wording(text: str) -> Wording:
    """What of `text` must agree with another one.

    >>> wording("Show me the flights from Boston to Denver").content
    ('flight', 'from', 'boston', 'to', 'denver')
    """
    text = unicodedata.normalize("NFKC", text)
    quoted = tuple(next(g for g in m.groups() if g is not None) for m in _QUOTED.finditer(text))
    asked: list[str] = []
    content: list[str] = []
    negated = 0
    for token in _tokens(text):
        word = token.casefold().replace("’", "'")
        if _HAN.match(token):
            no, what, characters = _chinese(token)
            negated += no
            asked += what
            content += characters
        elif word in _NOT or word.endswith("n't"):
            negated += 1
        elif word in _ASKED:
            asked.append(_ASKED[word])
        elif word not in _EMPTY:
            content.append(_stem(word))
    return Wording(quoted, tuple(asked), negated, tuple(content))


def agree(one: Wording, other: Wording) -> bool:
    """Whether an answer to the one may serve the other, as far as words can tell."""
    return one == other


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        token, at = match[0], 0
        for han in _HAN.finditer(token):  # Chinese text has no spaces: a run of it may hold words of other scripts
            tokens += [part for part in (token[at : han.start()], han[0]) if part]
            at = han.end()
        if token[at:]:
            tokens.append(token[at:])
    return tokens


def _chinese(text: str) -> tuple[int, list[str], list[str]]:
    """(negations, what is asked for, characters that carry content) of a run of Chinese."""
    asked = ["may"] if "能不能" in text or "能否" in text or "可不可以" in text else []
    text = _ZH_A_NOT_A.sub("", text)
    for pattern, word in _ZH_ASKED:
        text, n = pattern.subn("", text)
        asked += [word] * bool(n)
    negated = len(_ZH_NOT.findall(text))
    text, may = _ZH_MAY.subn("", _ZH_NOT.sub("", text))
    asked += ["may"] * bool(may)
    return negated, asked, [c for c in text if c not in _ZH_EMPTY]


def _stem(word: str) -> str:
    """English plural and possessive endings off; nothing else, since `-ing` and `-ed` change what is asked."""
    word = _SAME.get(word, word.removesuffix("'s"))
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) and word.isascii():
        return word[:-1]
    return word
