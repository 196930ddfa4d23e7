"""The lease of a running attempt: renewed by a thread, on connections of its own.

A parked thread rather than a timer signal starts the renewals: a job that waits inside Postgres' client library runs
no Python, so no signal handler of it would run either. The thread opens a connection only if the job outlives the
first interval, reports progress, or outlives its timeout.
"""

import _thread
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from jobledger.connections import Connections
from jobledger.ledger import leases
from jobledger.ledger.leases import Progress
from jobledger.observe.log import get_logger
from jobledger.observe.log_tail import LogTail
from jobledger.worker.alarm import Alarm, FencedOut

log: Final = get_logger(__name__)

PROGRESS_PAUSE_SECONDS: Final = 1.0
"""Progress is written at most this often."""

INTERRUPT_GRACE_SECONDS: Final = 2.0
"""A job that Python cannot interrupt (it sits in C) is helped after this: its statement is canceled."""

RETRY_PAUSE_SECONDS: Final = 1.0
"""After a renewal that did not work, the next one follows at once, as long as the lease still lasts."""

HARD_STOP_SECONDS: Final = 5.0
"""And after this its process ends."""


class Lease:
    """Keeps one attempt alive in the ledger, from `with` to the end of its finishing statement.

    Args:
        connections: its settings say how long a lease lasts; it is renewed three times as often.
        job_id: with the attempt, the fence.
        attempt: its number.
        alarm: interrupts the job when its time is up or it is fenced out.
        tail: the attempt's log lines, written down with each renewal.
        on_stuck: writes the end of a job that reacts to nothing; then the process exits.
    """

    def __init__(
        self,
        connections: Connections,
        job_id: UUID,
        attempt: int,
        alarm: Alarm,
        tail: LogTail,
        on_stuck: Callable[[], None],
    ) -> None:
        self._connections = connections
        self._job_id = job_id
        self._attempt = attempt
        self._alarm = alarm
        self._tail = tail
        self._on_stuck = on_stuck
        self._seconds = connections.settings.lease_seconds
        self._changed = threading.Condition()
        self._stopped = False
        self._finishing = False
        self._progress = Progress()
        self._unwritten = False

    def __enter__(self) -> Self:
        _thread.start_new_thread(self._run, ())  # without the ceremony of `threading`, which costs a work-horse 0.2 ms
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def begin(self) -> None:
        """The job's own time has begun: take note of its deadline."""
        with self._changed:
            self._changed.notify()

    def finishing(self) -> None:
        """From now on a renewal that finds no row means nothing: the finishing statement may have closed it."""
        with self._changed:
            self._finishing = True
            self._changed.notify()

    @property
    def progress(self) -> Progress:
        """What the job reported last."""
        return self._progress

    def report(self, progress: Progress) -> None:
        """Take note of progress; it is written within a second."""
        with self._changed:
            self._progress, self._unwritten = progress, True
            self._changed.notify()

    def _run(self) -> None:
        next_renewal = time.monotonic() + self._seconds / 3
        next_progress = time.monotonic()
        while self._wait_until(next_renewal, next_progress):
            now = time.monotonic()
            if now >= self._alarm.deadline + INTERRUPT_GRACE_SECONDS and not self._finishing:
                self._stop_hard()
            if now >= next_renewal or (self._unwritten and now >= next_progress):
                renewed = self._renew()
                if renewed is False:
                    self._fence_out()
                pause = self._seconds / 3 if renewed else min(RETRY_PAUSE_SECONDS, self._seconds / 6)
                next_renewal = time.monotonic() + pause
                next_progress = time.monotonic() + PROGRESS_PAUSE_SECONDS

    def _wait_until(self, next_renewal: float, next_progress: float) -> bool:
        """Sleep until there is something to do; False when the run is over."""
        with self._changed:
            while not self._stopped:
                due = [next_renewal]
                if self._unwritten:
                    due.append(next_progress)
                if not self._finishing:
                    due.append(self._alarm.deadline + INTERRUPT_GRACE_SECONDS)
                pause = min(due) - time.monotonic()
                if pause <= 0:
                    return True
                self._changed.wait(pause)
            return False

    def _renew(self) -> bool | None:
        """Renew; False if there is nothing to renew; None if it did not work, which proves nothing: the run goes on."""
        with self._changed:
            progress, self._unwritten = self._progress, False
        progress = Progress(progress.progress_done, progress.progress_total, progress.progress_note, self._tail.text())
        try:
            with self._connections.transaction(self._seconds / 6) as connection:
                return leases.renew(connection, self._job_id, self._attempt, self._seconds, progress)
        except Exception as error:  # this thread must live as long as the run, whatever the database says
            log.warning("Lease not renewed", job_id=str(self._job_id), error=str(error))
            return None

    def _fence_out(self) -> None:
        with self._changed:
            if self._finishing or self._stopped:
                return
        log.warning("Fenced out: another attempt may be running", job_id=str(self._job_id), attempt=self._attempt)
        self._alarm.interrupt(FencedOut(f"Attempt {self._attempt} of job {self._job_id} no longer counts."))
        if self._ends_within(INTERRUPT_GRACE_SECONDS):
            return
        self._cancel_statement()
        if not self._ends_within(HARD_STOP_SECONDS):
            os._exit(1)

    def _cancel_statement(self) -> None:
        """End the statement that the job may wait for; over another connection, because libpq's own way has no deadline
        and holds the interpreter's lock."""
        with suppress(Exception), self._connections.transaction(INTERRUPT_GRACE_SECONDS) as connection:
            leases.cancel_statement(connection, self._job_id, self._attempt)

    def _stop_hard(self) -> None:
        """The timeout passed and the job still runs: it sits in C, or it swallows every interrupt."""
        self._cancel_statement()
        if self._ends_within(HARD_STOP_SECONDS - INTERRUPT_GRACE_SECONDS):
            return
        try:
            self._on_stuck()
        finally:
            os._exit(1)

    def _ends_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._stopped or self._finishing, seconds)
