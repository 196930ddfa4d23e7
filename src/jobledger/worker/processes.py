"""The keeper's questions to the kernel about the processes that run attempts. Linux only."""

import os
import select
import signal
from contextlib import suppress
from pathlib import Path


def descriptor_of(pid: int) -> int | None:
    """A descriptor of the process; None if it is gone."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def has_ended(process: int) -> bool:
    """Whether the process of a descriptor has ended (pidfd_open(2): it is readable then)."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def lives(pid: int) -> bool:
    """Whether there is a process with this pid."""
    return Path(f"/proc/{pid}").exists()


def is_stopped(pid: int) -> bool:
    """Whether the kernel has stopped a process, by a signal or a debugger (proc(5), the field after the name)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("latin-1")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in ("T", "t")


def kill_group(pid: int) -> None:
    """Kill the processes that a work-horse has left: RQ gives it a process group of its own, named by its pid.

    Never this process's own group, nor those that 0 or 1 would mean.
    """
    if pid > 1 and pid != os.getpgrp():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
