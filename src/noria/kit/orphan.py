"""Start a program so that it dies with its parent, without running Python between fork and exec.

`preexec_fn` is unsafe where threads exist, so a tiny interpreter is executed first: it asks the kernel for
a signal at the parent's death (prctl(2) PR_SET_PDEATHSIG, which survives execve), checks that the parent
has not died meanwhile, and then becomes the program. The kernel takes the parent to be the *thread* that
forked: start tied programs from a thread that lives as long as they should.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
_SHIM = (
    "import ctypes, os, sys\n"
    f"ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, int(sys.argv[1]), 0, 0, 0)\n"
    "os.getppid() == int(sys.argv[2]) or sys.exit(125)\n"
    "os.execvp(sys.argv[3], sys.argv[3:])\n"
)


def tied(argv: Sequence[str], *, signal_at_death: int = signal.SIGTERM) -> list[str]:
    """`argv` behind the shim, for the process that calls this to start; costs about 15 ms a start.

    Exit code 125 = the parent was gone before the program began.
    """
    return [sys.executable, "-I", "-S", "-c", _SHIM, str(int(signal_at_death)), str(os.getpid()), *argv]
