"""Structured personal data: e-mail, phone, bank card, IBAN, IP address, Chinese ID number, US SSN.

Everything here has a shape or a checksum; names and addresses need a model and are another check's work.
Text is folded to one ASCII byte a character first (full-width forms to their ASCII twins, everything
else to `?`), so that byte offsets are character offsets and Chinese next to a number is a boundary.
Sources: ISO 7812 (Luhn, IIN), ISO 13616 (IBAN), GB 11643-1999 (ID number), SSA area rules, E.164.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from datetime import date
from difflib import get_close_matches

import msgspec
import re2

from noria.contracts.error import ConfigError
from noria.contracts.stage import Check, Options, Sample
from noria.contracts.verdict import Finding, Verdict

TYPES = ("cn_id", "card", "iban", "ssn", "email", "ip", "phone")
"""In order of precedence: where two overlap, the earlier one is reported."""

_LOOKBACK = 48
_NUMBER = "0123456789 +().-/"
"""What a number written in groups is made of."""
_LONGEST_NUMBER = 64
_FOLD = {0xFF01 + i: 0x21 + i for i in range(94)} | {
    ord("\u3000"): " ", ord("\u00a0"): " ", ord("\u2007"): " ", ord("\u202f"): " ", ord("\u2009"): " ",
    ord("\u2010"): "-", ord("\u2011"): "-", ord("\u2012"): "-", ord("\u2013"): "-", ord("\u2212"): "-",
}  # fmt: skip
_FOLDED = re.compile("[\uff10-\uff19\uff20-\uff3a\uff41-\uff5a\u3000\u00a0\u2007\u202f\u2009\u2010-\u2013\u2212]")
"""What makes folding worth while; the full-width comma alone, in all Chinese, does not."""
_LOUD = re.compile(
    "[0-9@\uff10-\uff19\uff20:\uff1a](?:(?<![:\uff1a])|(?<=[:\uff1a])[0-9A-Fa-f\uff21-\uff26\uff41-\uff46]*[:\uff1a])"
)
"""In every finding, and in the first word of every one: a digit, an at sign, or two colons of an IPv6 address."""
_DIGITS = re.compile("[0-9][0-9 +().\\-/]{5,}[0-9Xx]")
_LEAST = (("cn_id", 18), ("card", 12), ("ssn", 9), ("phone", 7))
"""Characters that a number of a kind has at least."""
_DOTTED = re.compile(r"[0-9]\.[0-9]|::|:[0-9a-fA-F]+:")
_IBAN_HINT = re.compile("[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4}")
_ALNUM = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGIT = frozenset(b"0123456789")
_ALNUM_COLON = _ALNUM | frozenset(b":")
_JOINER = frozenset(b".-/_")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_UPPER_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_PLAIN_END = re.compile("[a-z,;:!?\"'\u00c0-\uff00] \\Z|.?[\n\t\u3001-\uff00]\\Z", re.DOTALL)
"""Ends that nothing can go on behind: a small letter and a space, a line end, Chinese."""
_IBAN_TAIL = re.compile("(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}[A-Z0-9 ]{0,38}\\Z")

_EMAIL = re2.compile(rb"[A-Za-z0-9][A-Za-z0-9._%+\-]{0,63}@(?:[A-Za-z0-9\-]+\.)+[A-Za-z]{2,24}")
_IPV4 = re2.compile(rb"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_IPV6 = re2.compile(
    rb"(?:[0-9A-Fa-f]{1,4}:|::)(?:[0-9A-Fa-f]{0,4}:){1,6}(?:[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}|[0-9A-Fa-f]{0,4})"
)
_SSN = re2.compile(rb"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}|[0-8][0-9]{2} [0-9]{2} [0-9]{4}|[0-8][0-9]{8}")
_CN_ID = re2.compile(rb"[1-9][0-9]{5}(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9Xx]")
_CARD = re2.compile(rb"[0-9]{4}(?:[ \-]?[0-9]){8,15}")
_IBAN = re2.compile(rb"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
_PHONE = re2.compile(
    rb"(?:\+|00[ .\-]?)[0-9]{1,3}(?:[ .\-/]{0,2}\(?[0-9]{1,5}\)?){2,6}(?:x[0-9]{2,5})?"  # international
    rb"|(?:1[ .\-])?(?:\([0-9]{3}\) ?|[0-9]{3}[ .\-])[0-9]{3}[ .\-][0-9]{4}(?:x[0-9]{2,5})?"  # North America
    rb"|(?:86[ \-]?)?1[3-9][0-9][ \-]?[0-9]{4}[ \-]?[0-9]{4}"  # mainland China, mobile
    rb"|\(?0[0-9]{2,3}\)?[ \-][2-9][0-9]{6,7}"  # mainland China, fixed
    rb"|\(?[0-9]{2,5}\)?(?:[ .\-/]{1,2}\(?[0-9]{2,5}\)?){1,5}|[0-9]{7,12}"  # any other: needs a word before it
)
_STRONG_PHONE = re2.compile(
    rb"\+.*|00[ .\-]?[1-9][0-9]{0,2}[ .\-/].*"
    rb"|(?:1[ .\-])?(?:\([0-9]{3}\) ?|[0-9]{3}[ .\-])[0-9]{3}[ .\-][0-9]{4}(?:x[0-9]{2,5})?"
    rb"|(?:86[ \-]?)?1[3-9][0-9][ \-]?[0-9]{4}[ \-]?[0-9]{4}"
    rb"|\(?0(?:10|2[0-9]|[3-9][0-9]{2})\)?[ \-][2-9][0-9]{6,7}"
    rb"|\([0-9]{2,4}\) ?[0-9]{3,4}[ \-][0-9]{3,4}"  # an area code in brackets
    rb"|0[1-9][0-9]{0,3}(?:[ .][0-9]{2,4}){3,4}"  # a trunk zero before groups
)
_PHONE_WORD = re.compile(
    r"(?:\b(?:tele)?phone|\btel\b|\bcall|\bmobile|\bcell|\bfax|\bdial|whatsapp|\bsms\b|\btext (?:me|us)|\bcontact|\breach|\bring|\banswer"
    r"|电话|電話|手机|手機|致电|座机|联系|热线|传真)",
    re.IGNORECASE,
)
_SSN_WORD = re.compile(r"\bssn\b|social security", re.IGNORECASE)
_DATE = re2.compile(
    rb"(?:19|20)[0-9]{2}[ .\-/](?:0?[1-9]|1[0-2])[ .\-/][0-3]?[0-9].*|[0-3]?[0-9][.\-/][0-3]?[0-9][.\-/](?:19|20)?[0-9]{2}(?: .*)?"
)
_IBAN_LENGTH = {
    c[:2]: int(c[2:])
    for c in (  # noqa: SIM905 - a table reads better as one text
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 "
        "SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
    ).split()
}


def _luhn(digits: str) -> bool:
    total = 0
    for i, c in enumerate(reversed(digits)):
        n = ord(c) - 48
        if i % 2:
            n = n * 2 - 9 if n > 4 else n * 2
        total += n
    return total % 10 == 0


def _issuer_lengths(d: str) -> tuple[int, ...]:
    """Lengths that cards with this prefix have; empty where no card begins so (ISO 7812 ranges in use)."""
    two, three, four = int(d[:2]), int(d[:3]), int(d[:4])
    if d[0] == "4":
        return (16, 19, 13)
    if 51 <= two <= 55 or 2221 <= four <= 2720 or 2200 <= four <= 2204:
        return (16,)
    if two in (34, 37):
        return (15,)
    if two == 62 or four == 6011 or two == 65 or 644 <= three <= 649 or 3528 <= four <= 3589:
        return (19, 18, 17, 16)
    if two in (36, 38, 39) or 300 <= three <= 305:
        return (14, 16)
    if four in (2131, 1800):
        return (15,)
    if four in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763, 9558, 6013):
        return (19, 18, 17, 16, 15, 14, 13, 12)
    return ()


def _cn_id_valid(d: str) -> bool:
    try:
        date(int(d[6:10]), int(d[10:12]), int(d[12:14]))
    except ValueError:
        return False
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(int(c) * w for c, w in zip(d, weights, strict=False)) % 11] == d[17].upper()


def _is(data: bytes, at: int, kind: frozenset[int]) -> bool:
    return 0 <= at < len(data) and data[at] in kind


def _apart(data: bytes, start: int, end: int) -> bool:
    """Whether no letter or digit touches the span, and it is not a piece of a decimal or a longer number."""
    if _is(data, start - 1, _ALNUM) or _is(data, end, _ALNUM):
        return False
    if _is(data, start - 1, _JOINER) and _is(data, start - 2, _DIGIT):
        return False
    return not (_is(data, end, _JOINER) and _is(data, end + 1, _DIGIT))


Judge = Callable[[str, bytes, int, int], int]
"""(text, data, start, end) of a match → where the finding ends, or 0 when it is none."""


def _cn_id(_text: str, data: bytes, start: int, end: int) -> int:
    return end if _apart(data, start, end) and _cn_id_valid(data[start:end].decode()) else 0


def _card(_text: str, data: bytes, start: int, end: int) -> int:
    if _is(data, start - 1, _ALNUM) or _is(data, start - 1, frozenset(b".+")):
        return 0
    digits, ends = "", []
    for i in range(start, min(end, start + 40)):
        if data[i] in _DIGIT:
            digits += chr(data[i])
            ends.append(i + 1)
    for n in _issuer_lengths(digits):
        if n <= len(digits) and not _is(data, ends[n - 1], _ALNUM) and _luhn(digits[:n]):
            return ends[n - 1]
    return 0


def _iban(_text: str, data: bytes, start: int, end: int) -> int:
    need = _IBAN_LENGTH.get(data[start : start + 2].decode(), 0)
    taken = bytearray()
    for i in range(start, end):
        if data[i] != 32:
            taken.append(data[i])
        if len(taken) == need:
            end = i + 1
            break
    if not need or len(taken) != need or not _apart(data, start, end):
        return 0
    number = "".join(str(int(chr(c), 36)) for c in taken[4:] + taken[:4])
    return end if int(number) % 97 == 1 else 0


def _ssn(text: str, data: bytes, start: int, end: int) -> int:
    d = bytes(c for c in data[start:end] if c in _DIGIT).decode()
    if d[:3] in ("000", "666") or d[3:5] == "00" or d[5:] == "0000" or not _apart(data, start, end):
        return 0
    bare = end - start == 9 or data[start + 3] == 32
    return end if not bare or _SSN_WORD.search(text, max(0, start - _LOOKBACK), start) else 0


def _email(_text: str, data: bytes, start: int, end: int) -> int:
    return end if end - start <= 254 and not _is(data, start - 1, _ALNUM) else 0


def _ip(_text: str, data: bytes, start: int, end: int) -> int:
    while end > start and data[end - 1] == 58 and data[end - 2] != 58:  # a colon of the sentence
        end -= 1
    word = data[start:end].decode()
    product = _is(data, start - 1, frozenset(b"/")) and _is(data, start - 2, _ALNUM)  # Chrome/120.0.0.0
    if product or not _apart(data, start, end) or (":" in word and word.count(":") < 3):
        return 0
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        return 0
    return 0 if address.is_loopback or address.is_unspecified or word == "255.255.255.255" else end


def _phone(text: str, data: bytes, start: int, end: int) -> int:
    while data[end - 1] not in _ALNUM and data[end - 1] != 41:
        end -= 1
    word = data[start:end]
    count = sum(c in _DIGIT for c in word.partition(b"x")[0])
    if not 7 <= count <= 15 or not _apart(data, start, end) or _DATE.fullmatch(word):
        return 0
    if word[:1] == b"0" and data[start - 1 : start] == b" " and _is(data, start - 2, _DIGIT):
        return 0  # a group of a longer number
    if _STRONG_PHONE.fullmatch(word):
        return end if count >= 8 else 0
    if count > 12:
        return 0
    return end if _PHONE_WORD.search(text, max(0, start - _LOOKBACK), start) else 0


_PATTERNS: dict[str, tuple[tuple[re2._Regexp, Judge], ...]] = {
    "cn_id": ((_CN_ID, _cn_id),),
    "card": ((_CARD, _card),),
    "iban": ((_IBAN, _iban),),
    "ssn": ((_SSN, _ssn),),
    "email": ((_EMAIL, _email),),
    "ip": ((_IPV4, _ip), (_IPV6, _ip)),
    "phone": ((_PHONE, _phone),),
}


def _fold(text: str) -> str:
    return text if text.isascii() or not _FOLDED.search(text) else text.translate(_FOLD)


class PiiOptions(Options, frozen=True):
    """`types`: which to look for (default: all). `allow`: exact values that are no finding (own hotline, own domain's mail)."""

    types: list[str] = msgspec.field(default_factory=lambda: list(TYPES))
    allow: list[str] = []


class Pii(Check):
    """Finds structured personal data; labels are the names in `TYPES`."""

    id = "pii"
    category = "pii"
    needs = frozenset({"input", "output"})
    reach = 256
    lookback = _LOOKBACK
    Config = PiiOptions

    def __init__(self, config: PiiOptions) -> None:
        super().__init__(config)
        for name in config.types:
            if name not in TYPES:
                close = get_close_matches(name, TYPES, n=1)
                hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(TYPES)}."
                raise ConfigError(f"pii does not know the type {name!r}.", where="pii.types", hint=hint)
        self._types = frozenset(config.types)
        self._allow = frozenset(config.allow)

    def judge(self, sample: Sample) -> Verdict:
        """All findings, disjoint, in order of their place."""
        text = sample.input or sample.output
        kinds = self._suspected(text)
        if not kinds:
            return Verdict(self.id, True)
        folded = _fold(text)
        data = folded.encode("ascii", "replace")
        found: list[Finding] = []
        for kind in kinds:
            taken = sorted((f.start, f.end) for f in found)
            for pattern, judge in _PATTERNS[kind]:
                for start, end in _scan(folded, data, pattern, judge):
                    first = _with_letters(folded, start) if kind == "email" else start
                    if text[first:end] not in self._allow:
                        found.append(Finding(kind, first, end))
            if taken:
                found = _without_overlaps(found)
        return Verdict.of(self.id, tuple(sorted(found, key=lambda f: f.start)))

    def quiet(self, text: str) -> bool:
        """Whether the text may be cut between any two words: neither it nor any piece of it holds a finding or begins one."""
        return _LOUD.search(text) is None

    def suspects(self, text: str) -> bool:
        """False only where neither the text nor any piece of it can hold a finding."""
        return bool(self._suspected(text))

    def _suspected(self, text: str) -> list[str]:
        folded = _fold(text)
        kinds: set[str] = set()
        if "@" in folded:
            kinds.add("email")
        if numbers := _DIGITS.findall(folded):
            longest = max(map(len, numbers))
            kinds.update([kind for kind, least in _LEAST if longest >= least])
        if _DOTTED.search(folded):
            kinds.add("ip")
        if _IBAN_HINT.search(folded):
            kinds.add("iban")
        kinds &= self._types
        return [k for k in TYPES if k in kinds] if kinds else []

    def settled(self, text: str) -> int:
        """How many characters of `text` no continuation can draw into a finding, or out of one."""
        if _PLAIN_END.match(text[-2:]):
            return len(text)
        cut = max(0, len(text) - self.reach)
        tail = _fold(text[cut:])
        return cut + min(_open_number(tail), _open_iban(tail), _open_run(tail))


def _open_number(text: str) -> int:
    """Where a number written in groups begins that the end of the text may be in the middle of."""
    group = text[len(text.rstrip(_NUMBER)) :].lstrip(" .-/)")
    return len(text) - min(len(group), _LONGEST_NUMBER)


def _open_iban(text: str) -> int:
    tail = text[-44:]
    m = _IBAN_TAIL.search(tail) if tail.rstrip(" ")[-1:] in _UPPER_DIGITS else None
    return len(text) - len(tail) + m.start() if m else len(text)


def _open_run(text: str) -> int:
    """Where a word begins that may become an e-mail address, or anything else without a space in it."""
    start = len(text.rstrip(_PRINTABLE))
    at = text.rfind("@", start)
    return max(start, (at if at >= 0 else len(text)) - _LONGEST_NUMBER)


def _with_letters(text: str, start: int) -> int:
    """Where a local part begins that has letters beyond ASCII (Latin, Greek, Cyrillic) before the match."""
    least = max(0, start - _LONGEST_NUMBER)
    while start > least and ((c := text[start - 1]).isalnum() or c in "._+-") and c < "\u0590":
        start -= 1
    return start


def _scan(text: str, data: bytes, pattern: re2._Regexp, judge: Judge) -> Iterator[tuple[int, int]]:
    """Accepted matches; after a refused one the search goes on behind its first group, not behind all of it."""
    at = 0
    while m := pattern.search(data, at):
        start, end = m.span()
        if good := judge(text, data, start, end):
            yield start, good
            at = good
            continue
        run = _ALNUM_COLON if pattern is _IPV6 else _ALNUM
        at = start + 1
        while at < len(data) and data[at] in run:  # a piece of a longer run: all of the run is refused
            at += 1


def _without_overlaps(found: list[Finding]) -> list[Finding]:
    """The findings in order of precedence (as given), without those that overlap an earlier one."""
    rank = {f: i for i, f in enumerate(found)}
    kept: list[Finding] = []
    for f in sorted(found, key=lambda f: f.start):
        while kept and kept[-1].end > f.start and rank[kept[-1]] > rank[f]:
            kept.pop()
        if not kept or kept[-1].end <= f.start:
            kept.append(f)
    return kept
