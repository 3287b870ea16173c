"""Compares two reports in a process of its own: msgpack on stdin, JSON on stdout. Exit 2 with the error where they cannot be."""

from __future__ import annotations

import sys

import msgspec

from noria.app.evaluating import metrics_of
from noria.contracts.error import NoriaError
from noria.contracts.evaluation import Report
from noria.evaluate.compare import compare


class Asked(msgspec.Struct, frozen=True):
    """What is read."""

    first: Report
    second: Report
    margins: dict[str, float] = {}
    confidence: float = 0.95


def main() -> int:
    """Read, compare, write; the exit code."""
    asked = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Asked)
    try:
        metrics = metrics_of(asked.first.suite)
        found = compare(asked.first, asked.second, checks=metrics, margins=asked.margins, confidence=asked.confidence)
    except NoriaError as e:
        sys.stdout.buffer.write(msgspec.json.encode({"message": e.message, "code": e.code, "hint": e.hint}))
        return 2
    sys.stdout.buffer.write(msgspec.json.encode({"comparisons": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
