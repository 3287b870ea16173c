"""Lines of batches on their way through a worker: who asks is said by a ticket, and the answer is kept before it is given."""

from __future__ import annotations

import logging

import msgspec

from noria.app.line_house import Preparing
from noria.app.worker import Worker
from noria.contracts.batch import LineResult, Ticket
from noria.contracts.stage import Outlet

_JSON = ("content-type", "application/json")
log = logging.getLogger("noria.gateway")


class LineOutlet:
    """`contracts.stage.Outlet` that writes what it is given into the worker's journal, then passes it on.

    Kept is what counts as an answer: what another try could mend (429, 5xx) is not.
    """

    backlog = 0

    def __init__(self, out: Outlet, ticket: Ticket, worker: Worker, preparing: Preparing | None = None) -> None:
        self._out = out
        self._ticket = ticket
        self._worker = worker
        self._preparing = preparing
        self._head: tuple[int, list[tuple[str, str]]] = (500, [])
        self._parts: list[bytes] = []

    def head(self, status: int, headers: list[tuple[str, str]], *, stream: bool) -> None:  # noqa: ARG002  a line never streams
        """See `contracts.stage.Outlet`."""
        self._head = (status, headers)
        self._parts = []

    def data(self, data: bytes) -> None:
        """See `contracts.stage.Outlet`."""
        self._parts.append(data)

    def end(self) -> None:
        """See `contracts.stage.Outlet`."""
        status, headers = self._head
        body = b"".join(self._parts)
        if self._preparing is not None and self._preparing.prepared is not None:
            status, headers, body = 200, [_JSON], msgspec.json.encode(self._preparing.prepared)
        if self._ticket.mode != "prepare" and status < 500 and status not in (408, 409, 429):
            self._keep(LineResult(self._ticket.line, status, self._ticket.exchange, body))
        self._out.head(status, headers, stream=False)
        self._out.data(body)
        self._out.end()

    def _keep(self, result: LineResult) -> None:
        try:
            self._worker.journal.append(self._ticket.batch, result)
        except OSError as e:
            log.error("an answer of a batch is not kept: were the keeper killed now, it would be asked again: %s", e)
