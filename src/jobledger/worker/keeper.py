"""The lease keeper: it renews the leases of a worker's attempts, in its own process, so that no job can starve it.

A job that holds the interpreter's lock lets no thread of its process run, so its lease is renewed from outside, for as
long as its process lives and is not stopped. One statement renews all leases, and returns the attempts that were fenced
out or are to be canceled. The keeper ends an attempt whose process has died at once. It also ends an attempt
that reacts to nothing after its timeout, a cancel or its worker's stop, and kills a process that runs nothing else.
"""

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import redis
from sqlalchemy.exc import SQLAlchemyError

from jobledger import process, queues
from jobledger.connections.default import Connections
from jobledger.connections.locks import LockTimeout, transaction_waiting_for_locks
from jobledger.domain.records import Evidence
from jobledger.errors import LedgerUnavailable
from jobledger.ledger import leases
from jobledger.ledger.leases import Beat, Heard
from jobledger.observe.log import get_logger
from jobledger.worker import takeover
from jobledger.worker.board import Board, Slot
from jobledger.worker.notes import Answer, AttemptNote
from jobledger.worker.outcome import evidence_of
from jobledger.worker.processes import descriptor_of, has_ended, is_stopped, kill_group
from jobledger.worker.stop import stop_requested_at
from jobledger.worker.takeover import HARD_STOP_SECONDS, LOCK_SECONDS, STATEMENT_SECONDS

log: Final = get_logger(__name__)

TURN_SECONDS: Final = 1.0
FIRST_LOOK_SECONDS: Final = 2.0
"""An attempt that is over by then costs no statement."""

LOOK_SECONDS: Final = 2.0
"""The pause between two questions for fences and cancels; they write nothing."""

PROGRESS_PAUSE_SECONDS: Final = 1.0
BEAT_LOCK_SECONDS: Final = 3.0
LEFT_SECONDS: Final = 10.0
"""After its parent's end, a keeper goes on so long to end the attempts that the parent left."""

END_SECONDS: Final = 90.0
"""The longest time for a process to write an end; then it counts as stuck, and its lease runs out."""


@dataclass(slots=True)
class _Kept:
    """An attempt on the board, and the keeper's knowledge of it."""

    slot: Slot
    note: AttemptNote
    process: int | None
    """Descriptor of its process; None if that has died."""

    died_at: float | None = None
    next_renewal: float = 0.0
    next_look: float = 0.0
    next_progress: float = 0.0
    written: object = None
    answer: Answer = field(init=False)
    fenced_at: float | None = None
    is_ended: bool = False
    """The keeper has written its end; the process goes on."""

    def __post_init__(self) -> None:
        self.answer = Answer(self.note.id, self.note.attempt)
        self.next_look = self.note.began_at + min(FIRST_LOOK_SECONDS, self.note.lease_seconds / 3)
        self.next_renewal = self.note.began_at + self.note.lease_seconds / 3

    @property
    def key(self) -> tuple[str, int, int]:
        return self.note.id, self.note.attempt, self.note.pid


class Keeper:
    """Looks after all attempts of a board.

    Args:
        board: shared with the processes that run them.
        connections: of this process.
        stands_in: it replaces a silent keeper, and so notes no sign of life itself.
    """

    def __init__(self, board: Board, connections: Connections, *, stands_in: bool = False) -> None:
        self._board = board
        self._stands_in = stands_in
        self._connections = connections
        self._kept: dict[int, _Kept] = {}
        self._is_ready = False

    def turn(self) -> None:
        """Check all attempts once; nothing is raised."""
        self._say_alive()
        try:
            self._connect()
            self._read()
            self._note_deaths()
            self._beat()
            self._look_for_stops()
        except (LedgerUnavailable, LockTimeout, SQLAlchemyError) as error:
            was_ready, self._is_ready = self._is_ready, self._is_ready and not isinstance(error, LedgerUnavailable)
            if self._kept or was_ready:
                log.warning("Leases are not renewed", attempts=len(self._kept), error=str(error).split("\n")[0])
        except Exception:  # the keeper must go on, whatever error a server returns
            log.exception("A turn of the lease keeper failed", attempts=len(self._kept))
        for kept in list(self._kept.values()):
            self._end_if_due(kept)
        self._say_alive()

    @property
    def has_attempts(self) -> bool:
        """Whether attempts are kept that are not over."""
        return bool(self._kept)

    def wait(self, seconds: float = TURN_SECONDS) -> None:
        """Sleep until the next turn, or until a process dies."""
        poll = select.poll()
        for kept in self._kept.values():
            if kept.process is not None and kept.died_at is None:  # of a dead one it would return at once
                poll.register(kept.process, select.POLLIN)
        poll.poll(seconds * 1000)

    def _say_alive(self) -> None:
        if not self._stands_in:
            self._board.beat(time.monotonic(), is_ready=self._is_ready)

    def _connect(self) -> None:
        """Connect before the first lease: the pool keeps the connection."""
        if not self._is_ready:
            with self._connections.transaction(STATEMENT_SECONDS) as connection:
                leases.probe(connection)
            self._is_ready = True

    # -- the board

    def _read(self) -> None:
        for slot in self._board:
            text = slot.attempt.read()
            if text is None:
                continue
            kept = self._kept.get(slot.number)
            if not text:
                if kept is not None:
                    self._drop(kept)
                continue
            note = AttemptNote.from_bytes(text)
            if kept is not None and kept.key == (note.id, note.attempt, note.pid):
                kept.note = note
                continue
            if kept is not None:
                self._drop(kept)
            self._kept[slot.number] = _Kept(slot, note, descriptor_of(note.pid))

    def _drop(self, kept: _Kept) -> None:
        del self._kept[kept.slot.number]
        if kept.process is not None:
            os.close(kept.process)

    def _free(self, kept: _Kept) -> None:
        """Free the slot of a process that is gone and whose attempt is ended."""
        self._drop(kept)
        kept.slot.attempt.erase()

    def _say(self, kept: _Kept, answer: Answer) -> None:
        kept.answer = answer
        kept.slot.answer.write(answer.to_bytes())

    # -- deaths

    def _note_deaths(self) -> None:
        now = time.monotonic()
        for kept in self._kept.values():
            if kept.died_at is None and (kept.process is None or has_ended(kept.process)):
                kept.died_at = now

    def _end_dead(self, kept: _Kept) -> None:
        """End the attempt of a process that died without freeing its slot."""
        note, died_at = kept.note, kept.died_at
        if died_at is None:
            return
        found = takeover.cause_of_death(self._connections, note, died_at)
        if found is None:
            return
        outcome, why = found
        if not kept.is_ended:
            takeover.end(self._connections, note, outcome, Evidence(error_message=why))
        if note.isolated:
            kill_group(note.pid)
        with suppress(redis.RedisError):
            queues.forget_current_job(self._connections.maintenance_redis, note.worker, note.job_id)
        self._free(kept)

    # -- signs of life

    def _beat(self) -> None:
        now = time.monotonic()
        due = {}
        for kept in self._kept.values():
            if kept.died_at is None and not kept.is_ended:
                one = self._beat_of(kept, now)
                if one is not None:
                    due[one.id, one.attempt] = kept, one
        if not due:
            return
        try:
            with transaction_waiting_for_locks(self._connections, STATEMENT_SECONDS, BEAT_LOCK_SECONDS) as connection:
                heard = leases.beat(connection, [one for _, one in due.values()])
        except BaseException:
            for kept, _ in due.values():  # try again at the next turn, while the leases last
                kept.next_renewal, kept.written = now, None
            raise
        for answer in heard:
            kept, beat = due[answer.id, answer.attempt]
            if beat.renew and answer.counts and not answer.renewed:
                self._renew_alone(kept, beat)
            self._hear(kept, answer)

    def _beat_of(self, kept: _Kept, now: float) -> Beat | None:
        """The sign of life that is due for an attempt; None if none is."""
        note = kept.note
        reported = (note.progress, note.progress != (None, None, None))
        has_news = reported[1] and reported != kept.written and now >= kept.next_progress
        if not has_news and now < min(kept.next_renewal, kept.next_look):
            return None
        kept.next_look = now + LOOK_SECONDS
        renew = (has_news or now >= kept.next_renewal) and self._is_alive(kept, now)
        if not renew:
            return Beat(note.job_id, note.attempt, note.lease_seconds, renew=False)
        kept.next_renewal, kept.next_progress = now + note.lease_seconds / 3, now + PROGRESS_PAUSE_SECONDS
        kept.written = reported
        tail = kept.slot.tail.read()
        text = tail.decode("utf-8", "ignore") if tail else None
        return Beat(note.job_id, note.attempt, note.lease_seconds, progress=note.progress_with(text))

    def _is_alive(self, kept: _Kept, now: float) -> bool:
        """Whether to renew the lease: not for a process that is stopped, or stuck before its end is written."""
        note = kept.note
        if note.ending_at is not None and now > note.ending_at + END_SECONDS:
            return False
        return not is_stopped(note.pid)

    def _renew_alone(self, kept: _Kept, beat: Beat) -> None:
        """Renew a lease whose row was locked when all were renewed: wait for the lock a moment."""
        try:
            with transaction_waiting_for_locks(self._connections, STATEMENT_SECONDS, LOCK_SECONDS) as connection:
                leases.renew(connection, beat.id, beat.attempt, beat.lease_seconds, beat.progress)
        except LockTimeout as error:
            kept.next_renewal = time.monotonic() + TURN_SECONDS
            log.warning(
                "Lease not renewed: another transaction has its row locked", job_id=str(beat.id), why=str(error)
            )

    def _hear(self, kept: _Kept, heard: Heard) -> None:
        now, answer = time.monotonic(), kept.answer
        fenced = not heard.counts and kept.note.ending_at is None
        canceled_at = answer.canceled_at or (now if heard.cancel_reason is not None else None)
        if fenced and kept.fenced_at is None:
            kept.fenced_at = now
        self._say(
            kept,
            answer.but(fenced=fenced, cancel_reason=heard.cancel_reason, canceled_at=canceled_at, heard_at=now),
        )

    def _look_for_stops(self) -> None:
        """Ask whether the workers of attempts that last were told to stop."""
        now = time.monotonic()
        waiting = [
            kept
            for kept in self._kept.values()
            if kept.answer.stop_requested_at is None and now >= kept.note.began_at + FIRST_LOOK_SECONDS
        ]
        requested: dict[str, float | None] = {}
        for kept in waiting:
            worker = kept.note.worker
            if worker not in requested:
                try:
                    requested[worker] = stop_requested_at(self._connections.redis, worker)
                except redis.RedisError as error:
                    log.debug("Redis does not say whether the worker stops", error=str(error))
                    return
            if requested[worker] is not None:
                self._say(kept, kept.answer.but(stop_requested_at=requested[worker]))

    # -- ends from outside

    def _end_if_due(self, kept: _Kept) -> None:
        """An error about one attempt does not delay the ends of others; the next turn tries again."""
        try:
            if kept.died_at is not None:
                self._end_dead(kept)
            elif kept.is_ended or kept.fenced_at is not None:
                self._remove_process(kept)
            elif kept.note.ending_at is None:
                self._end_overdue(kept)
        except (LedgerUnavailable, SQLAlchemyError, LockTimeout) as error:
            log.warning(
                "Not ended yet", job_id=kept.note.id, attempt=kept.note.attempt, error=str(error).split("\n")[0]
            )
        except Exception:
            log.exception("An attempt could not be ended", job_id=kept.note.id, attempt=kept.note.attempt)

    def _end_overdue(self, kept: _Kept) -> None:
        found = takeover.overdue(kept.note, kept.answer, self._connections.settings.drain_seconds, time.monotonic())
        if found is None:
            return
        outcome, error = found
        log.warning("The attempt reacts to nothing: the keeper ends it", job_id=kept.note.id, outcome=outcome.value)
        progress = kept.note.progress_with(self._tail_of(kept))
        takeover.end(self._connections, kept.note, outcome, evidence_of(error, progress, alone=False), error)
        kept.is_ended = True
        self._say(kept, kept.answer.but(fenced=True))
        self._remove_process(kept)

    def _tail_of(self, kept: _Kept) -> str | None:
        tail = kept.slot.tail.read()
        return tail.decode("utf-8", "ignore") if tail else None

    def _remove_process(self, kept: _Kept) -> None:
        """Kill a process whose attempt is over, because it keeps its worker from other jobs. It has a grace to end by
        itself if it was fenced out, and none if it has reacted to nothing so far. A process that other attempts share
        is left alone.
        """
        note, fenced_at = kept.note, kept.fenced_at
        if not note.alone or kept.process is None:
            return
        if not kept.is_ended and (fenced_at is None or time.monotonic() < fenced_at + HARD_STOP_SECONDS):
            return
        log.warning(
            "Killed: it ran on after the end of its attempt", pid=note.pid, job_id=note.id, attempt=note.attempt
        )
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(kept.process, signal.SIGKILL)
        if note.isolated:
            kill_group(note.pid)


def keep(board: Board, connections: Connections, parent: int) -> None:
    """Keep leases until the parent process is gone, and then until the attempts that it left are ended.

    An attempt whose process died with exit code 0 is ended only after its worker had time to report the death.

    Args:
        board: shared with the parent.
        connections: of this process.
        parent: pid of the process that started this one.
    """
    process.set_name(process.LEASE_KEEPER)
    for number in (signal.SIGTERM, signal.SIGINT):  # sent to the whole group, and the worker's attempts go on
        signal.signal(number, signal.SIG_IGN)
    keeper = Keeper(board, connections)
    while os.getppid() == parent:
        keeper.turn()
        keeper.wait()
    until = time.monotonic() + LEFT_SECONDS
    keeper.turn()
    while keeper.has_attempts and time.monotonic() < until:
        keeper.wait()
        keeper.turn()
