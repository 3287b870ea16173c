"""Work that may wait for whoever answers a caller."""

from __future__ import annotations

import os
import threading

NICE = 10


def yield_to_others() -> None:
    """Lower the priority of the calling thread: a batch of rows keeps a core busy for tens of milliseconds, and a worker
    that shares the core waits. On Linux each thread has a nice value of its own; threads that it starts inherit it.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
