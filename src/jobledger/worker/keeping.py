"""Starts, watches and replaces the keeper of this process's leases.

A worker with our configuration forks the keeper before it has threads, and its work-horses share it. A work-horse
without a keeper forks its own: it has no other thread yet. Any other process (RQ's SimpleWorker) starts it as a
program. While there is no keeper, or it is silent, the thread that watches the attempts does its work.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import UUID

from jobledger.connections.default import Connections
from jobledger.errors import LedgerUnavailable
from jobledger.maintenance.ownership import QueuesKeeper
from jobledger.observe.log import get_logger, set_up_logging
from jobledger.observe.log_run import LogTail
from jobledger.settings import Settings, load_settings
from jobledger.worker.board import SLOTS, Board
from jobledger.worker.keeper import Keeper, keep
from jobledger.worker.leases import Lease, Watch
from jobledger.worker.spare import spare_of_this_worker
from jobledger.worker.stop import StopSignal

log: Final = get_logger(__name__)

READY_SECONDS: Final = 2.0
FIRST_READY_SECONDS: Final = 10.0
"""The same for a keeper that is starting, as a program on a busy machine."""

READY_PAUSE_SECONDS: Final = 0.01
SILENT_SECONDS: Final = 4.0
"""After so long a silence, or half a lease, the process does the keeper's work itself."""

_PROGRAM: Final = "from jobledger.worker.keeping import main; main()"


class Keeping:
    """The keeper of a process, its board, and the thread that watches the attempts.

    Args:
        connections: of this process.

    Attributes:
        connections: of this process.
        board: shared with the keeper.
        watch: the thread.
        stop: whether this process was told to stop.
    """

    def __init__(self, connections: Connections) -> None:
        self.board = Board()
        self.watch = Watch(self._stand_in)
        self.stop = StopSignal()
        self.connections = connections
        self._owner = os.getpid()
        self._keeper_pid: int | None = None
        self._started_at = 0.0
        self._keeps_queues = False
        self._substitute: Keeper | None = None

    @property
    def is_ours(self) -> bool:
        """Whether this process, or its parent, has made this object."""
        return self._owner in (os.getpid(), os.getppid())

    def keep_alive(self) -> None:
        """In a worker's parent, which has no threads yet: start the keeper, and replace a dead one before each fork."""
        self._keeps_queues = True
        self._fork()
        os.register_at_fork(before=self._replace_if_dead)

    def start(self) -> None:
        """In the process that runs the job: start a keeper, unless there is one that lives."""
        if self._keeper_pid is None or self._has_ended():
            if len(list(Path("/proc/self/task").iterdir())) == 1:
                self._fork()
            else:
                self._spawn()

    @contextmanager
    def lease_of(self, job_id: UUID, tail: LogTail) -> Iterator[Lease]:
        """A lease for a delivery, watched while the context is entered.

        Raises:
            LedgerUnavailable: the keeper has no room for it.
        """
        slot = self.board.take()
        if slot is None:
            raise LedgerUnavailable(f"The lease keeper has {SLOTS} attempts, and no room for another.")
        lease = Lease(self.connections, job_id, slot, tail, self.stop, self.watch.hurry)
        try:
            self.watch.add(lease)
            try:
                yield lease
            finally:
                self.watch.remove(lease)
        finally:
            self.board.give_back(slot)

    def require_keeper(self) -> None:
        """Before a claim: wait until the keeper could renew the lease.

        Raises:
            LedgerUnavailable: the keeper has no connection to Postgres, which may have none left.
        """
        is_new = self.board.beaten_at < self._started_at
        until = time.monotonic() + (FIRST_READY_SECONDS if is_new else READY_SECONDS)
        while self._keeper_pid and not self.board.is_ready:
            if time.monotonic() > until:
                raise LedgerUnavailable(
                    "The lease keeper has no connection to Postgres, so no job is begun; are its connections used up?"
                )
            time.sleep(READY_PAUSE_SECONDS)

    def _fork(self) -> None:
        parent = os.getpid()
        self._keeper_pid = 0  # the hooks of this fork must not start another keeper
        pid = os.fork()
        if pid == 0:
            try:
                spare = spare_of_this_worker()
                if spare is not None:
                    spare.abandon()
                connections = Connections(self.connections.settings, "jobledger-keeper")
                queues = QueuesKeeper(connections, parent)
                if self._keeps_queues:  # in this process, because the worker must not fork beside a thread of ours
                    queues.start()
                keep(self.board, connections, parent)
                queues.stop()
            finally:
                os._exit(0)
        self._keeper_pid, self._started_at = pid, time.monotonic()

    def _spawn(self) -> None:
        settings = self.connections.settings
        arguments = [sys.executable, "-c", _PROGRAM, self.board.path, str(os.getpid())]
        environment = {**os.environ, **settings.as_environment()}
        self._keeper_pid = os.posix_spawn(sys.executable, arguments, environment)
        self._started_at = time.monotonic()

    def _replace_if_dead(self) -> None:
        if self._has_ended():
            self._fork()

    def _has_ended(self) -> bool:
        """Whether the keeper that this process has started is gone."""
        if os.getpid() != self._owner or not self._keeper_pid:
            return False
        with suppress(ChildProcessError):  # the job has waited for all of its children, and so for this one
            if os.waitpid(self._keeper_pid, os.WNOHANG) == (0, 0):
                return False
        log.warning("The lease keeper has ended: another one is started", pid=self._keeper_pid)
        return True

    def _stand_in(self) -> None:
        """In the thread: do the keeper's work, if it is silent."""
        silent_since = max(self.board.beaten_at, self._started_at)
        if time.monotonic() < silent_since + min(SILENT_SECONDS, self.connections.settings.lease_seconds / 2):
            return
        if self._substitute is None:
            if self._keeper_pid:
                log.warning("The lease keeper is silent: leases are kept here")
            self._substitute = Keeper(self.board, self.connections, stands_in=True)
        self._substitute.turn()


class _Process:
    """The state of a process and its work-horses."""

    keeping: Keeping | None = None


_process: Final = _Process()


def keep_leases(connections: Connections) -> None:
    """In a worker's parent, before it has threads: start a keeper for all its work-horses."""
    _process.keeping = Keeping(connections)
    _process.keeping.keep_alive()


def keeping_of(connections: Connections) -> Keeping:
    """The one of this process, or of the worker that forked it; a new one for other connections."""
    known = _process.keeping
    if known is None or not known.is_ours or known.connections is not connections:
        known = _process.keeping = Keeping(connections)
    return known


def main() -> None:
    """Keep leases as a program; its arguments are the board's path and the pid of the process that shares it."""
    path, parent = sys.argv[1:]
    settings: Settings = load_settings()
    set_up_logging(settings)
    keep(Board(path), Connections(settings, "jobledger-keeper"), int(parent))
