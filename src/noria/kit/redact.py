r"""Takes secrets and contents out of log text, at the sink (museum 2: headers leaked by whoever logged an exception).

Two rules. Named values (`'name': 'value'`, `("name", "value")`, `name=value` in a repr, as dicts, header lists and
JSON print them) keep their value only where the name is on a list of harmless ones: what nobody thought of is hidden.
Then whatever still looks like a credential is hidden wherever it stands.

>>> scrub("call failed: {'authorization': 'Bearer abc', 'content-length': '12'}")
"call failed: {'authorization': '…', 'content-length': '12'}"
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from types import TracebackType
from typing import Any

_SHOWN = """
    accept-ranges allow app attempts cache-control class code config content-encoding content-length content-type count
    data-type date duration endpoint error_code event exit finish_reason format host id index kind level line max_tokens method model
    module name object outcome param path pid port provider reason release request-id retry-after retry-after-ms revision
    role server slot source stage state status stream tenant total_tokens trace transfer-encoding type version via worker
    x-noria-config x-noria-release x-noria-trace x-request-id x-should-retry
"""
SHOWN = frozenset(_SHOWN.split())
"""Names whose values may be logged: facts of a call, never its content or its caller."""
LONGEST = 32 * 1024
"""Characters of one entry; what is longer loses its middle."""
HIDDEN = "…"

_STRING = r"""(?:b?'(?:[^'\\\n]|\\.)*'|b?"(?:[^"\\\n]|\\.)*")"""
_NAME = r"""b?(?P<q>\\?['"])(?P<name>[A-Za-z][\w.\-]{0,63})(?P=q)"""
_PAIR = re.compile(rf"(?P<head>{_NAME}\s*[:,]\s*)(?P<value>{_STRING}|\\\"(?:[^\"\\]|\\[^\"])*\\\")")
_TRUNCATED = re.compile(rf"(?P<head>{_NAME}\s*:\s*)b?['\"][^'\"\n]*$", re.MULTILINE)
_LOUD = re.compile(
    r"(?i)\b(?P<head>(?:proxy-)?authorization|x-api-key|api[-_]?key|x-goog-api-key|cookie|set-cookie|password|passwd|secret"
    r"|access[-_]?token|refresh[-_]?token|client[-_]?secret|private[-_]?key)(?P<mid>['\"]?\s*[:=]\s*)(?P<value>[^\s,;)}\]'\"][^\n,;)}\]'\"]*)"
)
_TOKENS = re.compile(
    r"(?i:\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=\-]{6,})"
    r"|\b(?:sk|pk|rk|nk|xai|gsk|hf|ghp|gho|ghs|glpat|xox[abpsr]|nvapi|r8)[-_][A-Za-z0-9_\-]{8,}"
    r"|\bnoria[-_][A-Za-z0-9_\-]{12,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_\-]{30,}"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)
_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.\-]*://)[^/\s:@'\"]*:[^/\s@'\"]*@")
_QUERY = re.compile(r"(?i)(?P<head>[?&](?:key|token|code|sig|signature|api[-_]?key|access[-_]?token)=)[^&\s'\"]+")


def scrub(text: str) -> str:
    """`text` without values of unlisted names and without anything that looks like a credential."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} {HIDDEN} {text[-LONGEST // 2 :]}"
    if "'" in text or '"' in text:
        text = _PAIR.sub(_pair, text)
        text = _TRUNCATED.sub(_cut, text)
    text = _TOKENS.sub(HIDDEN, text)
    text = _LOUD.sub(rf"\g<head>\g<mid>{HIDDEN}", text)
    if "://" in text:
        text = _USERINFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _QUERY.sub(rf"\g<head>{HIDDEN}", text) if "=" in text else text


def scrub_bytes(lines: bytes) -> bytes:
    """`scrub` for what a child process has written."""
    return scrub(lines.decode("utf-8", "replace")).encode("utf-8", "replace")


class Formatter(logging.Formatter):
    """Formats as usual, tracebacks included, then scrubs: no record passes by."""

    def format(self, record: logging.LogRecord) -> str:
        """One entry, fit to be kept."""
        return scrub(super().format(record))


def install(level: str) -> None:
    """Log to stderr through `Formatter`, and let nothing that ends a thread or the process print around it."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    log = logging.getLogger("noria.uncaught")

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        log.critical("ended by an error", exc_info=(kind, error, trace))

    def in_thread(args: Any) -> None:
        hook(args.exc_type, args.exc_value, args.exc_traceback)

    def unraisable(args: Any) -> None:
        log.error("an error that nobody could take", exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    sys.excepthook = hook
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def _pair(match: re.Match[str]) -> str:
    if match["name"].lower() in SHOWN:
        return match[0]
    value = match["value"]
    if value.startswith('\\"'):
        return f'{match["head"]}\\"{HIDDEN}\\"'
    quote = value[-1]
    return f"{match['head']}{quote}{HIDDEN}{quote}"


def _cut(match: re.Match[str]) -> str:
    return match[0] if match["name"].lower() in SHOWN else f"{match['head']}{HIDDEN}"
