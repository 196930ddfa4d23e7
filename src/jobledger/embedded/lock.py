"""The lock on a directory, and the identity of processes beyond their pids."""

import fcntl
from pathlib import Path


def identity_of(pid: int) -> str:
    """The unique identity of a process: `pid start-time`. Empty if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    state, start_time = fields[0], fields[19]
    return "" if state in "ZX" else f"{pid} {start_time}"


def is_running(identity: str) -> bool:
    """Whether exactly this process still runs; False for an empty identity."""
    pid = identity.partition(" ")[0]
    return pid.isdigit() and identity_of(int(pid)) == identity


def try_flock(fd: int) -> bool:
    """Take the exclusive lock, without waiting; False if another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
