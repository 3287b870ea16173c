"""Credentials: provider keys by their published formats, JWT, PEM private keys, and assigned high-entropy values.

Findings cover the secret alone, not the name or the quotes around it. Text is folded to one ASCII byte a
character (everything else becomes `?`), so offsets are characters and Chinese next to a key is a boundary.
Sources: GitHub, GitLab, Slack, Stripe, npm, PyPI, AWS token format pages; RFC 7468 (PEM), RFC 7519 (JWT);
entropy over 3 bits a character after detect-secrets' high-entropy plugin.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import ahocorasick
import re2

from noria.contracts.stage import Check, Sample
from noria.contracts.verdict import Finding, Verdict

_PEM_LIMIT = 8192
"""Characters a private key block may have: an RSA key of 8192 bits has 6,500."""
_RUN_LIMIT = 4096
"""Characters an unfinished token (a JWT) may have."""
_MIN_ENTROPY = 3.0

_HEAD = rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"
_END = rb"-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----"

_BEFORE_KEY = ("api", "access", "private", "secret", "auth", "account", "encryption", "signing", "client")
_FIRST_WORDS = tuple(f"{word} " for word in _BEFORE_KEY)
_ASSIGNED = (
    rb"(?i:(?:" + "|".join(_BEFORE_KEY).encode() + rb")[_\- ]?key|secret|token|passw(?:or)?d|pwd|credentials?)"
    rb"[A-Za-z0-9_\-]{0,24}[\"']?\]?[ \t]{0,4}(?::=|=>|=|:)[ \t]{0,4}[\"']?([A-Za-z0-9+/_.~!@#$%^&*\-]{8,256}={0,2})"
)

_FORMATS: tuple[tuple[str, tuple[str, ...], bytes], ...] = (
    ("private_key", ("private key",), _HEAD + rb"[A-Za-z0-9+/=\\:,.\-\s]*?" + _END),
    ("private_key", ("private key",), _HEAD + rb"(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]{16,})*"),  # cut off before its end
    ("anthropic_key", ("sk-ant-",), rb"sk-ant-[A-Za-z0-9_\-]{20,200}"),
    ("openai_key", ("sk-",), rb"sk-(?:proj-|svcacct-|admin-|None-)?[A-Za-z0-9_\-]{20,200}"),
    ("aws_access_key_id", ("akia", "asia", "abia", "acca"), rb"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"),
    ("github_token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), rb"gh[pousr]_[A-Za-z0-9]{36,255}"),
    ("github_token", ("github_pat_",), rb"github_pat_[A-Za-z0-9_]{22,255}"),
    ("slack_token", ("xox", "xapp-"), rb"(?:xox[abeoprs]|xapp)-[A-Za-z0-9\-]{10,250}"),
    ("google_api_key", ("aiza",), rb"AIza[A-Za-z0-9_\-]{35}"),
    ("stripe_key", ("_live_", "_test_"), rb"(?:sk|rk|whsec)_(?:live|test)_[A-Za-z0-9]{16,250}"),
    ("gitlab_token", ("glpat-", "gldt-", "glrt-"), rb"gl(?:pat|dt|rt)-[A-Za-z0-9_\-]{20,64}"),
    ("npm_token", ("npm_",), rb"npm_[A-Za-z0-9]{36}"),
    ("pypi_token", ("pypi-",), rb"pypi-AgE[A-Za-z0-9_\-]{50,500}"),
    ("huggingface_token", ("hf_",), rb"hf_[A-Za-z0-9]{30,64}"),
    ("azure_key", ("accountkey=", "sharedaccesskey=", "accesskey="), rb"(?i:AccountKey|SharedAccessKey|AccessKey)=([A-Za-z0-9+/]{40,100}={0,2})"),
    ("jwt", ("eyj",), rb"eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{16,}"),
    ("url_password", ("://",), rb"[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s:/@?\"'<>]{0,64}:([^\s:/@?\"'<>]{3,128})@"),
    ("bearer_token", ("bearer",), rb"(?i:bearer)[ \t]+([A-Za-z0-9._~+/\-]{20,}={0,2})"),
    (
        "generic_secret",
        ("key", "secret", "token", "passw", "pwd", "credential"),
        _ASSIGNED,
    ),
)  # fmt: skip
_PATTERNS = tuple((label, re2.compile(pattern)) for label, _, pattern in _FORMATS)
_ORDER = {f: i for i, f in enumerate(dict.fromkeys(label for label, _, _ in _FORMATS))}
_MUST_LOOK_RANDOM = frozenset({"generic_secret", "bearer_token", "openai_key"})
_ASSIGNING = re.compile(
    r"(?:key|secret|token|passw(?:or)?d|pwd|credentials?|bearer)[A-Za-z0-9_\-]{0,24}[\"']?\]?[ \t]{0,4}(?::=|=>|=|:)?[ \t]{0,4}[\"']?\Z"
    rf"|(?:{'|'.join(_BEFORE_KEY)}) \Z",
    re.IGNORECASE,
)
_PEM_START = re.compile(r"-----(?:B(?:E(?:G(?:I(?:N(?: [A-Z0-9 ]{0,40}-{0,4})?)?)?)?)?)?\Z")
_PEM_END = re2.compile(_END)
_PEM_OPEN = re2.compile(
    _HEAD + rb"(?:(?:\s|\\[nr])*(?:[A-Za-z0-9+/=]{16,}|(?:Proc-Type|DEK-Info):[^\n\\]*))*"
    rb"(?:\s|\\[nr])*[A-Za-z0-9+/=\\]{0,79}(?:\s|\\[nr])*(?:-----E[A-Z0-9 \-]*|-{0,5})"
)
_LONG_RUN = re.compile(
    r"eyJ|sk-|pypi-|github_pat_|gh[pousr]_|xox|xapp-|[_A-Za-z](?:key|token|secret|pwd|word)[\"']?[:=]", re.IGNORECASE
)
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_WORD = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_SAMPLE_WORDS = re.compile(
    rb"(?i)example|your|xxxx|placeholder|change.?me|redacted|dummy|\*{3}|\.\.\.|environ|getenv|process\.env|config\.|settings\.|[<>{}$]"
)

_SAMPLE_PASSWORDS = frozenset({b"password", b"passwd", b"pass", b"pwd", b"secret", b"user", b"postgres", b"root", b"admin"})


def _needles() -> ahocorasick.Automaton:
    wanted: dict[str, set[int]] = {}
    for i, (_, needles, _) in enumerate(_FORMATS):
        for needle in needles:
            wanted.setdefault(needle, set()).add(i)
    automaton = ahocorasick.Automaton()
    for needle, formats in wanted.items():
        automaton.add_word(needle, frozenset(formats))
    automaton.make_automaton()
    return automaton


_NEEDLES = _needles()


def _alarms() -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    for word in (*(needle for _, needles, _ in _FORMATS for needle in needles), "-----begin", *_FIRST_WORDS):
        automaton.add_word(word, word)
    automaton.make_automaton()
    return automaton


_ALARMS = _alarms()
"""One of these is in every finding, and in the first word of every one."""


def entropy(value: bytes) -> float:
    """Shannon entropy in bits a character.

    >>> entropy(b"abab")
    1.0
    """
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def _looks_random(label: str, value: bytes) -> bool:
    digits = sum(48 <= c <= 57 for c in value)
    letters = sum(65 <= c <= 90 or 97 <= c <= 122 for c in value)
    if _SAMPLE_WORDS.search(value) or not digits or not letters:
        return False
    if label == "openai_key":
        return entropy(value) >= _MIN_ENTROPY
    if b"://" in value or value.endswith((b".py", b".json", b".com", b"()")):
        return False
    return entropy(value) >= (_MIN_ENTROPY if len(value) >= 16 else 2.75)


class Secrets(Check):
    """Finds credentials; the label names the kind of key."""

    id = "secrets"
    category = "secrets"
    needs = frozenset({"input", "output"})
    reach = 256
    lookback = 64

    def judge(self, sample: Sample) -> Verdict:
        """All findings, disjoint, in order of their place; a longer one hides those inside it."""
        text = sample.input or sample.output
        wanted: set[int] = set()
        for _, formats in _NEEDLES.iter(text.lower()):
            wanted |= formats
        if not wanted:
            return Verdict(self.id, True)
        data = text.encode("ascii", "replace")
        found = [f for i in sorted(wanted) for f in _search(data, *_PATTERNS[i])]
        return Verdict.of(self.id, tuple(_disjoint(found)))

    def quiet(self, text: str) -> bool:
        """Whether the text may be cut between any two words: neither it nor any piece of it holds a finding or begins one."""
        return next(_ALARMS.iter(text.lower()), None) is None

    def suspects(self, text: str) -> bool:
        """False only where neither the text nor any piece of it can hold a finding."""
        return next(_NEEDLES.iter(text.lower()), None) is not None

    def settled(self, text: str) -> int:
        """How many characters of `text` no continuation can draw into a finding, or out of one.

        That is the last word at most, but all of a private key block, or of a known token, until it ends.
        """
        end = len(text)
        block = text.rfind("-----BEGIN")
        if block >= 0 and end - block < _PEM_LIMIT and _pem_is_open(text, block):
            return block
        tail = text[-80:]
        if text[-1:].isascii() and (m := _ASSIGNING.search(tail)):
            end -= len(tail) - m.start()
        run = len(text[-_RUN_LIMIT:].rstrip(_PRINTABLE)) + max(0, len(text) - _RUN_LIMIT)
        if run == len(text):
            return end
        known = _LONG_RUN.search(text, run)
        return min(end, known.start() if known else max(run, len(text) - 64))


def _pem_is_open(text: str, block: int) -> bool:
    """Whether a private key block that begins at `block` may still go on: a mere mention of one may not."""
    if _PEM_START.match(text, block):
        return True
    data = text[block:].encode("ascii", "replace")
    return bool(_PEM_OPEN.fullmatch(data)) and not _PEM_END.search(data)


def _search(data: bytes, label: str, pattern: re2._Regexp) -> list[Finding]:
    found = []
    for m in pattern.finditer(data):
        start, end = m.span(pattern.groups)
        head = m.start()
        if head and data[head - 1] in _WORD and data[head] in _WORD and label != "generic_secret":
            continue  # in the middle of a longer word
        if label == "url_password" and (_SAMPLE_WORDS.search(data, start, end) or data[start:end].lower() in _SAMPLE_PASSWORDS):
            continue
        if label in _MUST_LOOK_RANDOM and not _looks_random(label, data[start:end]):
            continue
        found.append(Finding(label, start, end))
    return found


def _disjoint(found: list[Finding]) -> list[Finding]:
    kept: list[Finding] = []
    for f in sorted(found, key=lambda f: (f.start, -f.end, _ORDER[f.label])):
        if kept and f.start < kept[-1].end:
            if _ORDER[f.label] < _ORDER[kept[-1].label] and f.end >= kept[-1].end:
                kept[-1] = Finding(f.label, kept[-1].start, f.end)
            continue
        kept.append(f)
    return kept
