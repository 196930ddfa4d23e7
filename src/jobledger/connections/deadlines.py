"""Deadlines for waits that could last for ever: a connection that has not finished by its deadline is cut.

No timeout of libpq ends the wait for a server that is frozen while its kernel still answers every packet; shutting the
socket down ends it, in any thread. Its backend may wait on, for example for a synchronous standby; so it is canceled,
too.
"""

import _thread
import heapq
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy.engine import Connection

from jobledger.connections.cancels import Canceler, CancelKey

log: Final = logging.getLogger(__name__)

DISPATCH_SECONDS: Final = 1.5
"""A dispatch in a transaction of its own answers within this, also when Postgres is frozen."""

SECONDS_TO_BEGIN: Final = 1.0
"""A thread that has not begun after this counts as dead; two threads do no harm."""


CANCEL_AGAIN_SECONDS: Final = 2.0
"""A backend is canceled once more after this: the first request may come before it begins the statement."""


@contextmanager
def within(connection: Connection, deadline_seconds: float | None) -> Iterator[None]:
    """Cut a connection that has not finished by its deadline, in seconds from now; None is no deadline."""
    if deadline_seconds is None:
        yield
        return
    raw: Any = connection.connection.dbapi_connection
    ticket = _watchdog().watch(raw.fileno(), deadline_seconds, CancelKey(raw))
    try:
        yield
    finally:
        ticket.release()


def shut(fileno: int) -> None:
    """End a connection for all threads and processes that wait on it; those that have it open still close it.

    Args:
        fileno: of its socket. The caller keeps it open meanwhile, so that the number is not reused.
    """
    with suppress(OSError), socket.socket(fileno=os.dup(fileno)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


class _Ticket:
    """One connection under watch: it owns a duplicate of the socket, so a reused number can never be cut."""

    def __init__(self, fileno: int, due: float, key: CancelKey | None) -> None:
        self.due = due
        self._lock = threading.Lock()
        self._socket: socket.socket | None = socket.socket(fileno=os.dup(fileno))
        self._key = key
        self.is_cut = False

    def __lt__(self, other: "_Ticket") -> bool:
        return self.due < other.due

    def cut(self) -> CancelKey | None:
        """Cut it, unless it was released before.

        Returns:
            The key of a session that was cut, now or before, and is to be canceled. The cut comes first: otherwise a
            client would take a canceled wait for a finished one.
        """
        with self._lock:
            if self._socket is not None:
                self.is_cut = True
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
            return self._key

    def release(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            if not self.is_cut:
                self._key = None


class _Watchdog:
    """One thread for all deadlines of a process; it is started again if it died, as it may for want of memory."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._tickets: list[_Ticket] = []
        self._changed = threading.Condition()
        self._canceler = Canceler()
        self._is_alive = False
        self._start_again_at = 0.0

    def watch(self, fileno: int, seconds: float, key: CancelKey | None = None) -> _Ticket:
        ticket = _Ticket(fileno, time.monotonic() + seconds, key)
        with self._changed:
            heapq.heappush(self._tickets, ticket)
            if self._tickets[0] is ticket:
                self._changed.notify()
            if not self._is_alive and time.monotonic() >= self._start_again_at:
                self._start()
        return ticket

    def _start(self) -> None:
        self._start_again_at = time.monotonic() + SECONDS_TO_BEGIN
        # Thread.start() waits until the thread has begun, and for ever if it dies before, as in a process that is short
        # of memory; just then a work-horse has to write that its job has failed.
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:
            log.warning("No thread can be started: nothing is cut at its deadline (%s)", error)

    def _run(self) -> None:
        self._is_alive = True
        try:
            self._keep_deadlines()
        finally:
            self._is_alive = False

    def _keep_deadlines(self) -> None:
        while True:
            with self._changed:
                while not self._tickets or self._tickets[0].due > time.monotonic():
                    wait = self._tickets[0].due - time.monotonic() if self._tickets else None
                    self._changed.wait(wait)
                ticket = heapq.heappop(self._tickets)
            self._cut(ticket)

    def _cut(self, ticket: _Ticket) -> None:
        is_first = not ticket.is_cut
        key = ticket.cut()
        if key is None:
            return
        self._canceler.send(key)
        if is_first:
            ticket.due = time.monotonic() + CANCEL_AGAIN_SECONDS
            with self._changed:
                heapq.heappush(self._tickets, ticket)


class _Process:
    """The state of a process: its watchdog."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.watchdog: _Watchdog | None = None


_process: Final = _Process()
os.register_at_fork(after_in_child=lambda: setattr(_process, "lock", threading.Lock()))


def _watchdog() -> _Watchdog:
    with _process.lock:
        known = _process.watchdog
        if known is None or known.pid != os.getpid():
            known = _process.watchdog = _Watchdog()
        return known
