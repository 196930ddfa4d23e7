"""What a process asks of the kernel. Linux only."""

import ctypes
import os
import socket
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_LIBC: Final = ctypes.CDLL(None)  # here, for a forked child would pay for it in page faults


def die_with_parent(parent: int | None, number: int) -> None:
    """Have the kernel signal this process when its parent dies, or more exactly: the thread that started it.

    For a forked child, also before exec. So it must do little: threads which are not here may have held any lock.

    Args:
        parent: the process id of the parent; if that died already, this process exits at once. None if unknown.
        number: the signal.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:  # it died before the kernel knew
        os._exit(1)


def this_process() -> str:
    """How the ledger names a process: `host:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"
