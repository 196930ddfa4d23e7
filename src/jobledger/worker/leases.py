"""The lease of a running attempt: renewed by a thread, on connections of its own, which also watches over the run.

A parked thread rather than a timer signal starts the renewals: a job that waits inside Postgres' client library runs
no Python, so no signal handler of it would run either. The thread opens a connection only if the job outlives the
first seconds, reports progress, or outlives its timeout. It ends waits for a server that is frozen, and the job when
it was fenced out, when its time is up, when it was canceled, or when its worker stops.
"""

import _thread
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from jobledger.connections.default import Connections
from jobledger.domain.endings import FencedOut, HandedBack, Interrupt, JobCanceled, JobTimeout
from jobledger.ledger import leases
from jobledger.ledger.leases import Progress
from jobledger.observe.log import get_logger
from jobledger.observe.log_run import LogTail
from jobledger.worker.connection import RunConnection
from jobledger.worker.interrupts import Alarm
from jobledger.worker.stop import StopRequest

log: Final = get_logger(__name__)

FIRST_LOOK_SECONDS: Final = 2.0
"""A run that is over by then costs nothing but the thread."""

LOOK_SECONDS: Final = 1.0
"""Then the thread looks around this often: does the worker stop, is the time up?"""

CLAIM_SECONDS: Final = 3.0
"""A claim that has no answer after this makes the thread ask Postgres itself, and cut the claim if it has none."""

PROBE_SECONDS: Final = 2.0
PROGRESS_PAUSE_SECONDS: Final = 1.0
"""Progress is written at most this often."""

INTERRUPT_GRACE_SECONDS: Final = 2.0
"""A job that Python cannot interrupt (it sits in C) is helped after this: its statement is canceled."""

RETRY_PAUSE_SECONDS: Final = 1.0
"""After a renewal that did not work, the next one follows at once, as long as the lease still lasts."""

CANCEL_LOOK_SECONDS: Final = 2.0
"""So often is looked whether somebody has canceled the job; a read that writes nothing."""

CANCEL_GRACE_SECONDS: Final = 3.0
"""A job that asks by `check()` ends itself within this; then it is interrupted."""

HARD_STOP_SECONDS: Final = 5.0
"""And after this its process ends."""


class _Stage(Enum):
    CLAIMING = auto()
    RUNNING = auto()
    ENDING = auto()
    """A renewal that finds no row means nothing from here on: the attempt's end may be written."""
    OVER = auto()


class Lease:
    """Watches over one delivery, and keeps its attempt alive in the ledger, for as long as its context is entered.

    Args:
        connections: its settings say how long a lease lasts; it is renewed three times as often.
        job_id: with the attempt, the fence.
        tail: the attempt's log lines, written down with each renewal.
        stop: whether the worker stops.
        on_stuck: writes the end of a job that reacts to nothing; then the process exits.
    """

    def __init__(
        self,
        connections: Connections,
        job_id: UUID,
        tail: LogTail,
        stop: StopRequest,
        on_stuck: Callable[[Interrupt], None],
    ) -> None:
        self._connections = connections
        self._job_id = job_id
        self._tail = tail
        self._stop = stop
        self._on_stuck = on_stuck
        self._seconds = connections.settings.lease_seconds
        self._changed = threading.Condition()
        self._stage = _Stage.CLAIMING
        self._attempt = 0
        self._alarm = Alarm(math.inf)
        self._connection: RunConnection | None = None
        self._progress = Progress()
        self._unwritten = False
        self._is_awaited = False
        self._ended_by: Interrupt | None = None
        self._cancel_deadline = math.inf
        self._next_look = self._next_renewal = self._next_progress = self._asked_at = self._heard_at = math.inf
        self._next_cancel_look = math.inf

    def __enter__(self) -> Self:
        _thread.start_new_thread(self._run, ())  # without the ceremony of `threading`, which costs a work-horse 0.2 ms
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enter(_Stage.OVER)

    def claiming(self, connection: RunConnection | None) -> None:
        """A claim is sent over this connection; None: it has failed, and the connection is not to be touched."""
        with self._changed:
            self._connection, self._asked_at = connection, time.monotonic()

    def claimed(self, attempt: int, alarm: Alarm) -> None:
        """The attempt has begun: renew its lease, and interrupt it by this alarm."""
        with self._changed:  # and no word to the thread, which wakes up in time
            self._stage, self._attempt, self._alarm = _Stage.RUNNING, attempt, alarm
            self._heard_at = self._next_progress = time.monotonic()
            self._next_renewal = self._heard_at + self._seconds / 3
            self._next_cancel_look = self._heard_at + CANCEL_LOOK_SECONDS

    def ending(self) -> None:
        """The job is over: its end is being written."""
        self._enter(_Stage.ENDING)

    @property
    def stopping(self) -> bool:
        """Whether the worker is known to stop."""
        return self._stop.is_requested

    def check(self) -> None:
        """In a thread of the job: raise what is known to end it.

        Raises:
            JobCanceled: somebody has canceled it.
            FencedOut: another attempt may be running.
        """
        if self._ended_by is not None:
            raise self._ended_by

    @property
    def progress(self) -> Progress:
        """What the job reported last."""
        return self._progress

    def report(self, progress: Progress) -> None:
        """Take note of progress; it is written within a second."""
        with self._changed:
            self._progress, self._unwritten = progress, True
            self._changed.notify()

    def _enter(self, stage: _Stage) -> None:
        with self._changed:
            self._stage = stage
            if stage is _Stage.OVER or self._is_awaited:  # to wake the thread up takes its time from a short job
                self._changed.notify()

    # -- in the thread

    def _run(self) -> None:
        self._next_look = time.monotonic() + min(FIRST_LOOK_SECONDS, self._seconds / 3)
        while self._wait():
            if self._stage is _Stage.CLAIMING:
                self._watch_claim()
            else:
                self._look_for_cancel()
                self._end_if_due()
                self._renew_if_due()
            self._next_look = time.monotonic() + LOOK_SECONDS

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when the run is over."""
        with self._changed:
            while self._stage is not _Stage.OVER:
                due = min(self._next_look, self._next_renewal, self._next_progress if self._unwritten else math.inf)
                pause = due - time.monotonic()
                if pause <= 0:
                    return True
                self._changed.wait(pause)
            return False

    def _watch_claim(self) -> None:
        """A claim may wait for somebody else's lock; but not for a server that is frozen."""
        connection, asked_at = self._connection, self._asked_at
        if connection is None or time.monotonic() < asked_at + CLAIM_SECONDS or self._postgres_answers():
            return
        with self._changed:
            if self._stage is _Stage.CLAIMING and self._connection is connection:
                log.warning("Postgres does not answer: this claim is given up", job_id=str(self._job_id))
                connection.shut()

    def _renew_if_due(self) -> None:
        now = time.monotonic()
        if now < self._next_renewal and not (self._unwritten and now >= self._next_progress):
            return
        renewed = self._renew()
        if renewed is False:
            self._fence_out()
        if renewed is not None or self._postgres_answers():
            self._heard_at = time.monotonic()
        elif time.monotonic() >= self._heard_at + self._seconds:
            self._give_up_waiting()
        pause = self._seconds / 3 if renewed else min(RETRY_PAUSE_SECONDS, self._seconds / 6)
        self._next_renewal = time.monotonic() + pause
        self._next_progress = time.monotonic() + PROGRESS_PAUSE_SECONDS

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

    def _postgres_answers(self) -> bool:
        try:
            with self._connections.transaction(min(PROBE_SECONDS, self._seconds / 3)) as connection:
                leases.probe(connection)
        except Exception:  # the same
            return False
        return True

    def _give_up_waiting(self) -> None:
        """Postgres has said nothing for a whole lease: whoever waits for an answer of it would wait for ever.

        It may have begun to wait just now, when Postgres is there again; so Postgres is asked once more.
        """
        if self._connection is None or not self._connection.is_waiting or self._postgres_answers():
            return
        with self._changed:
            if self._stage is not _Stage.OVER and self._connection is not None and self._connection.is_waiting:
                log.warning("Postgres does not answer: the connection is given up", job_id=str(self._job_id))
                self._connection.shut()

    # -- ends of the job from outside

    def _end_if_due(self) -> None:
        if self._stage is not _Stage.RUNNING:
            return
        if time.monotonic() >= self._alarm.deadline + INTERRUPT_GRACE_SECONDS:
            timeout = f"its timeout of {self._alarm.seconds:g} s and could not be interrupted"
            self._end_hard(JobTimeout(f"The attempt ran longer than {timeout}."))
        if time.monotonic() >= self._cancel_deadline and self._ended_by is not None:
            self._end(self._ended_by)
        self._stop.look()
        if time.monotonic() >= self._stop.deadline:
            self._hand_back()

    def _look_for_cancel(self) -> None:
        if self._ended_by is not None or time.monotonic() < self._next_cancel_look:
            return
        reason = None
        with suppress(Exception), self._connections.transaction(PROBE_SECONDS) as connection:  # this thread must live
            reason = leases.cancel_reason(connection, self._job_id, self._attempt)
        self._next_cancel_look = time.monotonic() + CANCEL_LOOK_SECONDS
        if reason is not None:
            log.info("To be canceled", job_id=str(self._job_id), attempt=self._attempt, why=reason)
            self._ended_by = JobCanceled(reason)
            self._cancel_deadline = time.monotonic() + CANCEL_GRACE_SECONDS

    def _hand_back(self) -> None:
        reason = HandedBack(
            f"The worker stops, and the job ran on for {self._connections.settings.drain_seconds:g} s "
            "(JOBLEDGER_DRAIN_SECONDS): another worker runs it."
        )
        log.info("The worker stops: the job is handed back", job_id=str(self._job_id), attempt=self._attempt)
        self._end(reason)

    def _end(self, reason: Interrupt) -> None:
        if not self._interrupt(reason):
            self._end_hard(reason)

    def _fence_out(self) -> None:
        if self._stage is not _Stage.RUNNING:
            return
        log.warning("Fenced out: another attempt may be running", job_id=str(self._job_id), attempt=self._attempt)
        self._ended_by = FencedOut(f"Attempt {self._attempt} of job {self._job_id} no longer counts.")
        if self._interrupt(self._ended_by):
            return
        self._cancel_statement()
        if not self._ends_within(HARD_STOP_SECONDS):
            self._exit()

    def _exit(self) -> None:
        """End the process, and its session, which the worker has lent to it and has open, too."""
        if self._connection is not None:
            self._connection.shut()
        os._exit(1)

    def _end_hard(self, reason: Interrupt) -> None:
        """The job was interrupted and still runs: it sits in C, or it swallows every interrupt."""
        self._cancel_statement()
        if self._ends_within(HARD_STOP_SECONDS - INTERRUPT_GRACE_SECONDS):
            return
        try:
            self._on_stuck(reason)
        finally:
            self._exit()

    def _interrupt(self, reason: Interrupt) -> bool:
        """Interrupt the job, and again in case it goes on; whether it ends in the grace."""
        tries = 2
        for _ in range(tries):
            self._alarm.interrupt(reason)
            if self._ends_within(INTERRUPT_GRACE_SECONDS / tries):
                return True
        return False

    def _cancel_statement(self) -> None:
        """End the statement that the job may wait for; over another connection, because libpq's own way has no deadline
        and holds the interpreter's lock."""
        with suppress(Exception), self._connections.transaction(INTERRUPT_GRACE_SECONDS) as connection:
            leases.cancel_statement(connection, self._job_id, self._attempt)

    def _ends_within(self, seconds: float) -> bool:
        """Whether the job ends in this time; while it does not, its lease goes on, so that no other attempt begins."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with self._changed:
                self._is_awaited = True
                if self._changed.wait_for(self._is_ending, min(left, self._seconds / 6)):
                    return True
            if time.monotonic() >= self._next_renewal and self._renew():
                self._next_renewal = time.monotonic() + self._seconds / 3
        return self._is_ending()

    def _is_ending(self) -> bool:
        return self._stage in (_Stage.ENDING, _Stage.OVER)
