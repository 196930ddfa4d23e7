"""Requests of a process to the kernel. Linux only."""

import ctypes
import os
import socket
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_PR_SET_NAME: Final = 15

LEASE_KEEPER: Final = "lease-keeper"
"""The name of a lease keeper, whose command line is that of the worker that has forked it."""

_LIBC: Final = ctypes.CDLL(None)  # loaded at import: a forked child would pay for it in page faults


def die_with_parent(parent: int | None, number: int) -> None:
    """Let the kernel signal this process when its parent dies, more exactly: when the thread that started it ends.

    For a forked child, also before exec. It must do little: threads that the fork did not copy may have held any lock.

    Args:
        parent: the process id of the parent; if the parent has died, this process exits at once. None if unknown.
        number: the signal.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:  # the parent died before the request
        os._exit(1)


def set_name(name: str) -> None:
    """Give this thread, which is the process's main one, a name for `top` and /proc/PID/comm.

    Args:
        name: at most 15 bytes.
    """
    _LIBC.prctl(_PR_SET_NAME, name.encode())


def this_process() -> str:
    """The name of this process in the ledger: `host:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"
