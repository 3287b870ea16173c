"""What a supervisor leaves to the program that replaces it (execve): sockets, the lock, its children (ADR 18).

The process id, the children and every inheritable descriptor survive execve(2); what they mean travels as JSON in one
environment variable. Its format is readable by the versions before and after.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

import msgspec

from noria.contracts.error import ConfigError
from noria.kit.supervise import Heir

VARIABLE = "NORIA_INHERITED"
FORMAT = 1
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""Held back while the program is replaced: their default would end the process."""


class Inherited(msgspec.Struct, frozen=True):
    """Descriptors are those of this process. `sides` tells the living worker of each slot."""

    lock: int
    sockets: tuple[int, ...]
    sides: tuple[str, ...]
    children: tuple[Heir, ...]
    version: str
    """Of the program that left this."""
    format: int = FORMAT


def left(environment: Mapping[str, str] = os.environ) -> Inherited | None:
    """What was left to this process, if anything. Raises `ConfigError` where it cannot be read."""
    text = environment.get(VARIABLE)
    if not text:
        return None
    try:
        found = msgspec.json.decode(text, type=Inherited)
    except msgspec.MsgspecError as e:
        raise ConfigError(f"What the version before left cannot be read: {e}.") from e
    if found.format != FORMAT:
        raise ConfigError(f"What version {found.version} left has format {found.format}; this version reads {FORMAT}.")
    return found


def claim() -> Inherited | None:
    """`left`, once: children must not see it. Its descriptors stop being inheritable."""
    found = left()
    os.environ.pop(VARIABLE, None)
    if found is not None:
        for descriptor in (found.lock, *found.sockets, *(h.log for h in found.children)):
            os.set_inheritable(descriptor, False)
    return found


def become(argv: list[str], inherited: Inherited) -> None:
    """Replace this program by `argv`. Returns only by `OSError`; signals are held back meanwhile, see `unblock`."""
    for descriptor in (inherited.lock, *inherited.sockets):
        os.set_inheritable(descriptor, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        os.execve(argv[0], argv, {**os.environ, VARIABLE: msgspec.json.encode(inherited).decode()})  # noqa: S606  no shell is wanted
    finally:
        unblock()


def unblock() -> None:
    """Deliver what was held back; call it when the handlers stand, before children are started."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
