"""What `/v1/files` and `/v1/batches` keep: stored files, batches and how far they have come, tickets of single lines."""

from __future__ import annotations

from typing import Literal

import msgspec

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]  # fmt: skip
OPEN: frozenset[str] = frozenset({"validating", "in_progress", "finalizing", "cancelling"})
"""The states of a batch that still has something to do."""
Lane = Literal["", "own", "upstream"]
"""How a batch is served: line by line through our own journey, or by the endpoint's own batch API; empty = not yet decided."""
TicketMode = Literal["run", "prepare", "finish"]


class Owner(msgspec.Struct, frozen=True):
    """Whose files and batches: `scope` (`team:search`, `key:key_…`, `console`, `open`) parts them within a tenant."""

    tenant: str
    scope: str
    key: str = ""
    """Id of the key that asked; empty where none was needed."""


class StoredFile(msgspec.Struct, frozen=True):
    """One file of an owner; its content is a blob under the same id, or several. Times are int64 ns UTC."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_ns: int
    expires_ns: int
    key: str = ""
    parts: int = 0
    """Blobs `<id>/000001` … that the content is in; 0 = one, under the id alone."""
    ready: bool = True
    """Whether all of it is there; what never becomes so is over after an hour."""


class BatchError(msgspec.Struct, frozen=True):
    """Why a batch was not taken: OpenAI's item of `errors.data`. `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchCounts(msgspec.Struct, frozen=True):
    """Lines in all, answered, and failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, frozen=True):
    """One batch. Times are int64 ns UTC, 0 = not come to that."""

    id: str
    tenant: str
    owner: str
    key: str
    endpoint: str
    input_file: str
    window: str
    """As the caller wrote it: `24h`."""
    created_ns: int
    expires_ns: int
    status: BatchStatus = "validating"
    lane: Lane = ""
    metadata: dict[str, str] | None = None
    counts: BatchCounts = BatchCounts()
    errors: tuple[BatchError, ...] = ()
    output_file: str = ""
    error_file: str = ""
    keep_seconds: int = 0
    """How long its results are kept; 0 = as long as other files."""
    parts: int = 0
    """Blobs of results written so far."""
    upstream: str = ""
    """Id of the endpoint's own batch."""
    upstream_endpoint: str = ""
    """Name of the endpoint that has it."""
    in_progress_ns: int = 0
    finalizing_ns: int = 0
    completed_ns: int = 0
    failed_ns: int = 0
    expired_ns: int = 0
    cancelling_ns: int = 0
    cancelled_ns: int = 0


class Line(msgspec.Struct, frozen=True):
    """One request of a batch. `number` counts the lines of the file from 1; `body` is as the caller wrote it."""

    number: int
    custom_id: str
    body: msgspec.Raw


class LineResult(msgspec.Struct, frozen=True):
    """How a line ended. `body` is the whole answer (JSON); `code` and `message` say why there is none."""

    line: int
    status: int = 0
    request_id: str = ""
    body: bytes = b""
    code: str = ""
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether it belongs into the output file."""
        return 200 <= self.status < 300 and not self.code


class Ticket(msgspec.Struct, frozen=True):
    """What lets the keeper send a line through a worker as the key that owns the batch, whose text nobody has.

    `prepare` asks what the endpoint's batch API would have to be sent; `finish` brings what that API answered.
    """

    key: str
    batch: str
    line: int
    exchange: str
    """Id of the exchange that the line becomes."""
    expires_ns: int
    mode: TicketMode = "run"


class Envelope(msgspec.Struct, frozen=True):
    """The body of a `finish` call: what was asked, and the upstream's answer to it."""

    request: bytes
    status: int
    answer: bytes
