"""Who works on a directory: the flock on its `lock`, and processes told apart for good."""

import fcntl
from pathlib import Path


def identity_of(pid: int) -> str:
    """A process, for good: `pid start-time`. Empty if there is none, or if it only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    state, start_time = fields[0], fields[19]
    return "" if state in "ZX" else f"{pid} {start_time}"


def is_running(identity: str) -> bool:
    """Whether this very process still runs; False for an empty identity."""
    pid = identity.partition(" ")[0]
    return pid.isdigit() and identity_of(int(pid)) == identity


def try_flock(fd: int) -> bool:
    """Take the exclusive lock, without waiting; False if somebody else has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
