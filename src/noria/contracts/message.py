"""What a chat is made of. Unknown keys of a message survive untouched in `rest`."""

from __future__ import annotations

import msgspec


class Part(msgspec.Struct, frozen=True):
    """One piece of a message's content. `text` is None for what is not text (image, audio, file).

    `raw` is the part's own JSON, kept so that what is not edited leaves exactly as it came; it is
    None for bare-string content and after an edit.
    """

    text: str | None
    raw: msgspec.Raw | None = None


class Message(msgspec.Struct, frozen=True):
    """One message. `plain` says that its content was a bare string rather than a list of parts."""

    role: str
    parts: tuple[Part, ...] = ()
    plain: bool = True
    rest: dict[str, msgspec.Raw] = {}

    @property
    def text(self) -> str:
        """All text of the message, parts joined by newlines."""
        return "\n".join(p.text for p in self.parts if p.text)

    @classmethod
    def of(cls, role: str, text: str) -> Message:
        """A message with bare-string content."""
        return cls(role, (Part(text),))
