"""One server process and its directory: its start, its end, and the leftovers of a killed parent."""

import abc
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from jobledger.embedded.binaries import Account, EmbeddedServerError, run_as, unprivileged_account
from jobledger.embedded.descriptors import opened
from jobledger.embedded.lock import identity_of, is_running, try_flock
from jobledger.process import die_with_parent

START_SECONDS: Final = 60.0
"""Longest start of a server, which after a crash replays its log first."""

ADDRESS: Final = "127.0.0.1"
"""The address of all embedded servers."""

_POLL_SECONDS: Final = 0.02
_PORT_ATTEMPTS: Final = 20
_LOG_TAIL_BYTES: Final = 2000


class Server(abc.ABC):
    """One server process and its directory."""

    _stop_signals: ClassVar[tuple[tuple[signal.Signals, float], ...]]
    """The signals that stop the server, mildest first, each with its time in seconds. The first is also the signal at
    the death of the parent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self._data = self.directory / "data"
        self._lock_path = self.directory / "lock"
        self._log_path = self.directory / "log"
        self._account: Account | None = None
        self._runnable: Path
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def pid(self) -> int:
        """The process id of the server (for Postgres, of the postmaster)."""
        if self._process is None:
            raise EmbeddedServerError(f"the server in {self.directory} is not started")
        return self._process.pid

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1: chosen at the first `start()`, and kept by this object from then on."""
        if self._port is None:
            raise EmbeddedServerError(f"the server in {self.directory} was never started")
        return self._port

    def start(self) -> None:
        """Start the server and wait until it answers, at most `START_SECONDS`.

        A server that a killed parent left running on this directory is stopped first.

        Raises:
            EmbeddedServerError: there is no binary, the directory is in use, or the server did not start
                (the message has the end of its log).
        """
        if sys.platform != "linux":
            raise EmbeddedServerError("embedded servers need Linux; give the URLs of running servers instead")
        if self._process is not None:
            raise EmbeddedServerError(f"the server in {self.directory} was already started by this object")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with opened(self._lock_path, os.O_RDONLY | os.O_CREAT) as lock:
                self._take(lock)
                self._account = unprivileged_account(self._data)
                self._prepare(lock)
                self._launch(lock)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server in order, or by force if that takes too long; wait for its last process.

        Idempotent.

        Raises:
            EmbeddedServerError: a process of the server survived SIGKILL.
        """
        if self._process is None:
            return
        with opened(self._lock_path, os.O_RDONLY) as lock:
            self._end(lock)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop the server (or reap its processes after `kill()`) and start it on the same port."""
        self.stop()
        self.start()

    def kill(self, number: signal.Signals) -> None:
        """Signal the server process and return at once. If this ends it, call `stop()` or `restart()` next."""
        os.kill(self.pid, number)

    @abc.abstractmethod
    def _prepare(self, lock: int) -> None:
        """Find the binaries, and make the data directory if it is missing."""

    @abc.abstractmethod
    def _spawn(self, port: int, lock: int) -> subprocess.Popen[bytes]:
        """Start the server process."""

    @abc.abstractmethod
    def _answers(self, port: int) -> bool:
        """Whether a server with this object's password answers on the port."""

    def _take(self, lock: int) -> None:
        """Take the lock: refuse if its owner runs; stop the server if only the server runs."""
        if not try_flock(lock):
            owner, _ = self._recorded()
            if is_running(owner):
                raise EmbeddedServerError(f"{self.directory} is in use: process {owner.split()[0]} runs a server there")
            self._end(lock)
        self._record()

    def _record(self, server: str = "") -> None:
        self._lock_path.write_text(f"{identity_of(os.getpid())}\n{server}\n")

    def _recorded(self) -> tuple[str, str]:
        """The identities of the last server's starter and of the server itself; empty if unknown."""
        owner, server, *_ = [*self._lock_path.read_text().splitlines(), "", ""]
        return owner, server

    def _end(self, lock: int) -> None:
        """Stop the server on this directory, started here or left over: its last process releases the lock."""
        for number, seconds in self._stop_signals:
            _, server = self._recorded()
            if is_running(server):
                for each in (number, signal.SIGCONT):  # a frozen process handles its signals when it continues
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(server.split()[0]), each)
            if _wait_for(partial(try_flock, lock), seconds):
                return
        raise EmbeddedServerError(f"some process of an earlier server still works in {self.directory}")

    def _launch(self, lock: int) -> None:
        for _ in range(_PORT_ATTEMPTS):
            port = self._port or free_port()
            if self._comes_up(port, lock):
                self._port = port
                return
        raise EmbeddedServerError(f"the server in {self.directory} found no free port; the last was {port}")

    def _comes_up(self, port: int, lock: int) -> bool:
        """Start the server and wait until it answers; False if another process has the port."""
        log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
        process = self._process = self._spawn(port, lock)
        self._record(server=identity_of(process.pid))
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if self._answers(port):
                return True
            time.sleep(_POLL_SECONDS)
        tail = self._log_path.read_bytes()[log_start:][-_LOG_TAIL_BYTES:].decode(errors="replace")
        if process.poll() is not None and "Address already in use" in tail:
            return False
        raise EmbeddedServerError(f"the server in {self.directory} did not come up; the end of its log:\n{tail}")

    def _popen(
        self,
        command: Sequence[str | Path],
        *,
        cwd: str | Path,
        stdin: int = subprocess.DEVNULL,
        fds: Sequence[int],
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a child that dies with this process, logs to the log, and runs as the account; the lock is in `fds`."""
        # The rest of the environment may hold secrets, and its PG... variables would change the server.
        passed_on = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        with opened(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as log:
            try:
                return subprocess.Popen(
                    command,
                    cwd=cwd,
                    stdin=stdin,
                    stdout=log,
                    stderr=log,
                    pass_fds=fds,
                    env={"LC_ALL": "C", **passed_on, **(environment or {})},
                    # Ctrl-C at the terminal must reach this process only: the servers stop after their clients.
                    start_new_session=True,
                    # Only the child can ask for its death signal, and only after its change of user, which
                    # clears it. CPython calls preexec_fn after that change.
                    preexec_fn=partial(die_with_parent, os.getpid(), self._stop_signals[0][0]),
                    **run_as(self._account),
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise EmbeddedServerError(f"cannot start {command[0]}: {error}") from error

    def _make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        if self._account:
            os.chown(path, *self._account)


def free_port() -> int:
    """A free port.

    It lies below the range from which Linux takes the ports of outgoing connections. An outgoing connection could take
    it while the server restarts: even a client of this server, which would then connect to itself.
    """
    for _ in range(1000):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((ADDRESS, port))
            return port
    raise EmbeddedServerError("no free port between 20000 and 32000")


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False if it does not in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
