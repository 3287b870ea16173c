"""What no trace store takes: single records put aside whole, a file each, so that the rest of their spool goes on.

A file holds a record's payload as it was in the spool (`observe.trace.decode` reads it) and is named by its spool and
content, so that a replay after a crash writes the same one. Like a spool, its text is not encrypted: mode 0600.
"""

from __future__ import annotations

from pathlib import Path

from noria.contracts.error import StoreError
from noria.kit.atomic import STAGING, write_whole
from noria.kit.ids import digest
from noria.kit.spool import POISON

SUFFIX = ".msgpack"
MOST = 10_000
"""Files at most: with so many, something is wrong that putting rows aside would only hide."""


class PoisonBox:
    """`poison/` below a folder of spools."""

    def __init__(self, spools: Path) -> None:
        self.folder = spools / POISON

    def put(self, spool: str, payload: bytes) -> str:
        """Keep one payload, on disk when this returns; its file's name. Raises `OSError`, `StoreError` where it is full."""
        name = f"{spool}-{digest(payload)[:16]}{SUFFIX}"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if (self.folder / name).exists():
            return name
        if len(self.names()) >= MOST:
            raise StoreError(f"{self.folder} holds {MOST} records already.", code="poison_full")
        write_whole(self.folder / name, payload)
        return name

    def names(self) -> list[str]:
        """What lies here, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.name.endswith(SUFFIX) and not p.name.startswith(STAGING))

    def take(self, name: str) -> bytes:
        """The payload of one that lies here."""
        return (self.folder / name).read_bytes()

    def drop(self, name: str) -> None:
        """Forget one that was stored after all."""
        (self.folder / name).unlink(missing_ok=True)
