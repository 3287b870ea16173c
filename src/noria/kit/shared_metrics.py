"""Prometheus numbers that several processes share, on a disk that may be full (`prometheus_client`'s multiprocess mode).

Two of its habits do not fit a service. It maps sparse files, and the first write to a page that the disk cannot
hold kills the process (SIGBUS): here every file gets its blocks first. And it names files after process ids, so that
a process that was killed leaves its gauges behind for ever (an alarm that never ends): here they are named after the
slot, and the replacement goes on counting where its predecessor stopped.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
ROOM = {"counter": 1 << 20, "histogram": 4 << 20, "gauge_sum": 1 << 16, "gauge_max": 1 << 16, "gauge_min": 1 << 16}
"""Bytes by kind of file; about 200 a series. A file that outgrows them is doubled, sparsely."""


def share(folder: Path, slot: str) -> bool:
    """Count into `folder` from now on; whether there was room for it. Call before anything imports `prometheus_client`.

    Without room this process counts for itself alone.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, size in ROOM.items():
            _reserve(folder / f"{kind}_{slot}.db", size)
    except OSError:
        os.environ.pop(VARIABLE, None)
        return False
    os.environ[VARIABLE] = str(folder)
    from prometheus_client import values

    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
    return True


def _reserve(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)
