"""What requests are sent to: the mock itself, Noria in its modes, peers; and what is read of their processes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import machine
from peers import Running
from service import Service, role

QUESTION = (
    "Ticket ##########: the wheel at the lower canal has stood still since this morning and the upper garden gets no water. "
    "Could you tell me what to look at first, and whom to call when the bearing is worn? You can write to "
    "ines.moreau@example.org. The last service was in spring; the log says the paddles were replaced and the trough was "
    "sealed with pitch. We have a ladder, grease and a spare paddle here."
)
"""Some 400 bytes with one e-mail address, so that masking acts on each request."""
FILLER = (
    "The canal keeper wrote down what he saw: the water stood a hand below the mark, the gate moved freely, and the second "
    "wheel turned at its usual pace until noon. Nothing else was worth a line in the book, except that the bridge wants paint.\n"
)

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Cell:
    """One kind of request: which model is asked (it says how the mock answers), streamed or not, over how many connections."""

    name: str
    model: str
    connections: int
    stream: bool = False
    tokens: int = 64
    body: int = 0
    """Bytes of the request's body; 0 = the question alone."""
    noria_only: bool = False


@dataclass
class Target:
    """One thing that is measured. `service` is a Noria, `running` a peer; neither: the mock."""

    name: str
    port: int
    headers: tuple[str, ...] = ()
    service: Service | None = None
    running: Running | None = None
    path: str = PATH
    sent: int = 0
    nanousd: int = 0
    """What the answers that were sent for cost at the price of `modes`, 1e-9 US dollars."""
    streams: int = 512
    starts: dict[str, float] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    """Cells in which a peer does not answer well, and why: it is left out of them."""
    no_streams: bool = False

    def can(self, cell: Cell) -> bool:
        """Whether it takes part in a cell."""
        return (
            cell.name not in self.fails and not (cell.stream and self.no_streams) and not (cell.noria_only and not self.service)
        )

    @property
    def kind(self) -> str:
        return "noria" if self.service else "peer" if self.running else "floor"

    def request(self, cell: Cell) -> bytes:
        """The whole HTTP request of a cell; see `load.c` for the marks in it."""
        text = QUESTION
        body: dict[str, Any] = {"model": cell.model, "messages": [{"role": "user", "content": text}], "max_tokens": cell.tokens}
        if cell.stream:
            body["stream"] = True
        data = json.dumps(body, separators=(",", ":")).encode()
        if cell.body > len(data):
            lines = FILLER * (1 + (cell.body - len(data)) // len(FILLER))
            body["messages"] = [{"role": "user", "content": text + lines[: cell.body - len(data)]}]
            data = json.dumps(body, separators=(",", ":")).encode()
        head = [f"POST {self.path} HTTP/1.1", f"host: 127.0.0.1:{self.port}", "content-type: application/json", *self.headers]
        return "\r\n".join([*head, f"content-length: {len(data)}", "", ""]).encode() + data

    def processes(self) -> list[tuple[str, machine.Stat]]:
        """All of its processes, with their roles."""
        if self.service:
            return self.service.processes()
        return [(role(machine.command(s.pid)), s) for s in self.running.processes()] if self.running else []

    def cpu(self) -> dict[str, float]:
        """CPU milliseconds by role since the start, ended children included; empty for the mock."""
        used: dict[str, float] = {}
        for name, stat in self.processes():
            used[name] = used.get(name, 0.0) + stat.ticks * machine.TICK
        return used

    def memory(self) -> dict[str, dict[str, float]]:
        """RSS and PSS (MiB) by role, and of all."""
        told: dict[str, dict[str, float]] = {}
        for name, stat in self.processes():
            for kind, mib in machine.memory(stat.pid).items():
                for key in (name, "all"):
                    told.setdefault(key, {})[kind] = round(told.get(key, {}).get(kind, 0.0) + mib, 1)
        return told

    def recorded(self) -> int:
        """Exchanges in the trace store of a Noria."""
        return self.service.recorder()["stored"] if self.service else 0

    def settle(self, stored: int) -> int | None:
        """Wait until what was put off is done: of a Noria, until its spool is empty; how many exchanges are stored then."""
        if self.service:
            return self.service.recorded(stored)
        if self.running:
            time.sleep(0.2)
        return None
