"""The process's side of the leases of its attempts, and the thread that watches the attempts there.

The keeper, a process beside the worker, renews the leases and asks the ledger whether attempts are to go on: see
`keeper`. Here its answers become interrupts. The thread also ends waits for a frozen server, and does the keeper's work
if the keeper is silent.
"""

import _thread
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from uuid import UUID

from jobledger.connections.default import Connections
from jobledger.domain.endings import FencedOut, HandedBack, Interrupt, JobCanceled, JobTimeout
from jobledger.ledger import leases
from jobledger.ledger.leases import Progress
from jobledger.observe.log import get_logger
from jobledger.observe.log_run import LOG_TAIL_BYTES, LogTail
from jobledger.worker.board import Slot
from jobledger.worker.connection import RunConnection
from jobledger.worker.interrupts import Interrupter
from jobledger.worker.notes import Answer, AttemptNote
from jobledger.worker.stop import StopSignal

log: Final = get_logger(__name__)

LOOK_SECONDS: Final = 1.0
"""The thread checks each attempt this often, and at its deadline."""

CLAIM_SECONDS: Final = 3.0
"""After this without an answer to a claim, the thread probes Postgres itself, and cuts the claim if it gets none."""

PROBE_SECONDS: Final = 2.0

INTERRUPT_GRACE_SECONDS: Final = 2.0
"""A job that Python cannot interrupt, because it is in C code, has its statement canceled after this."""

CANCEL_GRACE_SECONDS: Final = 3.0
"""A job that calls `check()` has so long to end itself; then it is interrupted."""


class Lease:
    """One attempt, from before its claim to its end.

    Args:
        connections: with the settings, such as the length of a lease.
        job_id: of the delivery.
        slot: on the board of the keeper.
        tail: the attempt's log lines.
        stop: whether this process was told to stop.
        hurry: wakes the thread before its next turn.
    """

    def __init__(
        self,
        connections: Connections,
        job_id: UUID,
        slot: Slot,
        tail: LogTail,
        stop: StopSignal,
        hurry: Callable[[], object],
    ) -> None:
        self._hurry = hurry
        self._connections = connections
        self._job_id = job_id
        self._slot = slot
        self._tail = tail
        self._stop = stop
        self._lock = threading.Lock()
        self._note: AttemptNote | None = None
        self._interrupter: Interrupter | None = None
        self._connection: RunConnection | None = None
        self._claim_sent_at = math.inf
        self._answer: Answer | None = None
        self._ended_by: Interrupt | None = None
        self._interrupted_at = math.inf
        self._helped = False
        self._tail_written: str | None = None
        self._heard_at = math.inf

    def claiming(self, connection: RunConnection | None) -> None:
        """Note the connection of a claim that is sent; None after it failed: the connection must not be touched."""
        with self._lock:
            self._connection, self._claim_sent_at = connection, time.monotonic()

    def claimed(self, note: AttemptNote, connection: RunConnection | None) -> None:
        """Note that the attempt has begun."""
        with self._lock:
            self._note, self._connection = note, connection
            self._heard_at = note.began_at
            self._slot.attempt.write(note.to_bytes())

    def working(self, interrupter: Interrupter) -> None:
        """Note that the job's own time has begun, and its interrupter."""
        self._interrupter = interrupter
        self._change(deadline=interrupter.deadline)
        if interrupter.seconds < LOOK_SECONDS:
            self._hurry()

    def ending(self) -> None:
        """Note that the job is over and its end is being written: the lease does not matter from here on."""
        self._interrupter = None
        self._change(ending_at=time.monotonic())

    @property
    def claim(self) -> tuple[UUID, int] | None:
        """The fence, once there is one."""
        return (self._job_id, self._note.attempt) if self._note is not None else None

    @property
    def stopping(self) -> bool:
        """Whether the worker was told to stop, as far as is known."""
        return self._stop_requested_at < math.inf

    def progress_with(self, log_tail: str | None) -> Progress:
        """The last progress that the job reported."""
        return self._note.progress_with(log_tail) if self._note is not None else Progress(log_tail=log_tail)

    def fence_out(self) -> FencedOut:
        """Note that the attempt was fenced out.

        Returns:
            The error that the caller raises in the job.
        """
        self._ended_by = FencedOut(f"Another attempt of job {self._job_id} may be running: this one no longer counts.")
        return self._ended_by

    def check(self) -> None:
        """In the job: raise the known reason to end it, if any.

        Raises:
            JobCanceled: a person has canceled it.
            FencedOut: another attempt may be running.
        """
        if self._ended_by is None:
            self._learn()
        if self._ended_by is not None:
            raise self._ended_by

    def report(self, done: int | None, total: int | None, remark: str | None) -> None:
        """Note progress; the keeper writes it within a second."""
        self._change(progress=(done, total, remark))

    def _change(self, **values: object) -> None:
        with self._lock:
            # A child that the job has forked shares the board, where the slot may be another attempt's by now.
            if self._note is not None and self._note.pid == os.getpid():
                self._note = self._note.but(**values)
                self._slot.attempt.write(self._note.to_bytes())

    # -- in the thread

    @property
    def due_at(self) -> float:
        """When this needs a check, besides those of every second."""
        interrupter = self._interrupter
        return interrupter.deadline if interrupter is not None and math.isinf(self._interrupted_at) else math.inf

    def look(self) -> None:
        """Interrupt the job if it is to end, and end waits for a server that does not answer."""
        if self._note is None:
            self._watch_claim()
            return
        if self._interrupter is not None:
            self._note_tail()
            self._learn()
            self._interrupt_if_due()
        self._watch_server()

    def _note_tail(self) -> None:
        text = self._tail.text()
        if text is not None and text != self._tail_written:
            self._slot.tail.write(text.encode("utf-8", "replace")[-LOG_TAIL_BYTES:])
            self._tail_written = text
        if self._stop.requested_at < math.inf and self._note is not None and self._note.stop_by is None:
            self._change(stop_by=self._stop.requested_at + self._connections.settings.drain_seconds)

    def _learn(self) -> None:
        """Read the keeper's answer."""
        text, note = self._slot.answer.read(), self._note
        if not text or note is None:
            return
        answer = Answer.from_bytes(text)
        if (answer.id, answer.attempt) != (note.id, note.attempt):
            return
        self._answer = answer
        self._heard_at = max(self._heard_at, answer.heard_at)
        if self._ended_by is not None:
            return
        if answer.fenced:
            log.warning("Fenced out: another attempt may be running", job_id=note.id, attempt=note.attempt)
            self.fence_out()
        elif answer.cancel_reason is not None:
            log.info("To be canceled", job_id=note.id, attempt=note.attempt, why=answer.cancel_reason)
            self._ended_by = JobCanceled(answer.cancel_reason)

    @property
    def _stop_requested_at(self) -> float:
        answer = self._answer
        asked = answer.stop_requested_at if answer is not None else None
        return min(self._stop.requested_at, asked if asked is not None else math.inf)

    def _interrupt_if_due(self) -> None:
        interrupter = self._interrupter
        reason = self._reason()
        if reason is None or interrupter is None:
            return
        if math.isinf(self._interrupted_at):
            self._interrupted_at = time.monotonic()
        interrupter.interrupt(reason)
        if not self._helped and time.monotonic() >= self._interrupted_at + INTERRUPT_GRACE_SECONDS:
            self._helped = True
            self._cancel_statement()

    def _reason(self) -> Interrupt | None:
        """The reason to end the job now, if any. The first one is kept."""
        interrupter, note, answer, now = self._interrupter, self._note, self._answer, time.monotonic()
        if interrupter is None or note is None:
            return None
        if interrupter.reason is not None:
            return interrupter.reason
        if isinstance(self._ended_by, FencedOut):
            return self._ended_by
        if now >= interrupter.deadline:
            return timeout_of(interrupter.seconds)
        if answer is not None and answer.canceled_at is not None and now >= answer.canceled_at + CANCEL_GRACE_SECONDS:
            return self._ended_by
        drain = self._connections.settings.drain_seconds
        if now >= self._stop_requested_at + drain:
            log.info("The worker stops: the job is handed back", job_id=note.id, attempt=note.attempt)
            return handed_back_after(drain)
        return None

    def _cancel_statement(self) -> None:
        """Cancel the statement that the job may wait for; over another connection, because libpq's own function has no
        deadline and holds the interpreter's lock."""
        if self._note is not None:
            with suppress(Exception), self._connections.transaction(INTERRUPT_GRACE_SECONDS) as connection:
                leases.cancel_statement(connection, self._job_id, self._note.attempt)

    def _watch_claim(self) -> None:
        """End a claim's wait for a frozen server, but not its wait for a lock."""
        connection, sent_at = self._connection, self._claim_sent_at
        if connection is None or time.monotonic() < sent_at + CLAIM_SECONDS or self._postgres_answers():
            return
        with self._lock:
            if self._note is None and self._connection is connection:
                log.warning("Postgres does not answer: this claim is given up", job_id=str(self._job_id))
                connection.shut()

    def _watch_server(self) -> None:
        """End a wait for Postgres if it was silent for a whole lease: the wait would last for ever.

        The wait may have begun just now, when Postgres is there again; so Postgres is probed once more.
        """
        connection = self._connection
        if connection is None or not connection.is_waiting:
            return
        if time.monotonic() < self._heard_at + self._connections.settings.lease_seconds:
            return
        if self._postgres_answers():
            self._heard_at = time.monotonic()
            return
        if connection.is_waiting:
            log.warning("Postgres does not answer: the connection is given up", job_id=str(self._job_id))
            connection.shut()

    def _postgres_answers(self) -> bool:
        seconds = min(PROBE_SECONDS, self._connections.settings.lease_seconds / 3)
        try:
            with self._connections.transaction(seconds) as connection:
                leases.probe(connection)
        except Exception:  # the thread must live as long as the attempt, whatever the error
            return False
        return True


def timeout_of(seconds: float) -> JobTimeout:
    """The interrupt of a job whose time is up."""
    return JobTimeout(f"The attempt ran longer than its timeout of {seconds:g} s.")


def handed_back_after(drain_seconds: float) -> HandedBack:
    """The interrupt of a job whose worker stops."""
    return HandedBack(
        f"The worker stops, and the job ran on for {drain_seconds:g} s (JOBLEDGER_DRAIN_SECONDS): "
        "another worker runs it."
    )


class Watch:
    """The thread that watches the attempts of a process; it lives while there are some.

    Args:
        before_each_look: called about every second, for the keeper's work if the keeper is silent.
    """

    def __init__(self, before_each_look: Callable[[], object]) -> None:
        self._before_each_look = before_each_look
        self._changed = threading.Condition()
        self._leases: list[Lease] = []
        self._lives = False

    def add(self, lease: Lease) -> None:
        """Watch an attempt."""
        with self._changed:
            if not self._lives:
                _thread.start_new_thread(self._run, ())  # a `threading.Thread` would cost a work-horse 0.2 ms
                self._lives = True
            self._leases.append(lease)

    def remove(self, lease: Lease) -> None:
        """Watch an attempt no longer."""
        with self._changed:
            self._leases.remove(lease)
            if not self._leases:
                self._changed.notify()

    def hurry(self) -> None:
        """Wake the thread: an attempt is due before the next turn."""
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        look_at = time.monotonic() + LOOK_SECONDS
        while True:
            with self._changed:
                while self._leases:
                    pause = min(look_at, *(one.due_at for one in self._leases)) - time.monotonic()
                    if pause <= 0:
                        break
                    self._changed.wait(pause)
                if not self._leases:
                    self._lives = False
                    return
                found = list(self._leases)
            for lease in found:
                self._look(lease)
            self._before_each_look()
            look_at = time.monotonic() + LOOK_SECONDS

    def _look(self, lease: Lease) -> None:
        try:
            lease.look()
        except Exception:  # the thread must live as long as the attempts
            log.exception("A look at a running attempt failed", claim=str(lease.claim))
