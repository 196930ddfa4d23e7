"""The directory of an `up`: its lock, and the file with the servers' URLs for other shells."""

import contextlib
import fcntl
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from jobledger.errors import JobledgerError


class AlreadyRunning(JobledgerError):
    """Another `up` works in the same directory."""


@contextlib.contextmanager
def taken(directory: Path) -> Iterator[None]:
    """Lock a directory, made if it is missing. The kernel releases the lock when this process dies.

    Raises:
        AlreadyRunning: another `up` has it locked; nothing was changed.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / "up.pid", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).decode().strip() or "unknown"
            raise AlreadyRunning(f"already running: process {pid} works in {directory.absolute()}") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        (directory / ".gitignore").write_text("*\n")  # it holds data and passwords
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def urls_file(path: Path, urls: Mapping[str, str]) -> Iterator[None]:
    """A file with the URLs for other shells, readable for this user only; removed at the end."""
    lines = [f"{name}={shlex.quote(url)}\n" for name, url in urls.items()]
    path.unlink(missing_ok=True)  # the file of a killed `up` may have other permissions
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(lines)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
