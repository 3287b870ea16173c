"""Put the originals back where the model repeats their placeholders, whatever the chunks of the stream."""

from __future__ import annotations

import re
from collections.abc import Callable

from noria.contracts.exchange import Exchange
from noria.contracts.stage import Channel, Transducer
from noria.contracts.verdict import Ruling
from noria.guard.json_text import escape


class Restore:
    """Opens a transducer where the exchange has a vault; inside tool calls originals are escaped for JSON."""

    name = "restore"
    behaviour = 1

    def open(self, x: Exchange, choice: int, channel: Channel, report: Callable[[Ruling], None]) -> Transducer | None:  # noqa: ARG002 - the Outward protocol
        """As `Outward`; None where nothing was masked."""
        if not x.vault:
            return None
        quote = escape if channel.startswith("tool.") else str
        return _Restorer({placeholder: quote(original) for placeholder, original in x.vault})


class _Restorer:
    """Holds back from the last `[` on, while what follows may become a placeholder."""

    def __init__(self, originals: dict[str, str]) -> None:
        self._originals = originals
        self._pattern = re.compile("|".join(map(re.escape, originals)))
        self._held = ""

    @property
    def held(self) -> int:
        """As `Transducer`."""
        return len(self._held)

    def feed(self, text: str) -> str:
        text = self._held + text
        cut = text.rfind("[")
        if cut < 0 or not any(p.startswith(text[cut:]) for p in self._originals if len(p) > len(text) - cut):
            cut = len(text)
        self._held = text[cut:]
        return self._pattern.sub(lambda m: self._originals[m.group()], text[:cut])

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held
