"""Writes the ends of attempts.

Effects and `completed` commit together: the writes of a job's session commit in the transaction of the finishing
statement, which is guarded by the fence. Failures are written on a fresh connection.
"""

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg2
from sqlalchemy.exc import DBAPIError

from jobledger.connections.default import Connections
from jobledger.connections.locks import LockTimeout, transaction_waiting_for_locks
from jobledger.connections.postgres import NO_ROOM, TRY_AGAIN, first_line, is_connection_loss, sql_state
from jobledger.domain.endings import Cancel, FencedOut
from jobledger.domain.records import Evidence
from jobledger.domain.status import JobStatus, Outcome
from jobledger.errors import LedgerUnavailable, UnknownJobType
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import leases, queries
from jobledger.lifecycle import finish
from jobledger.lifecycle.finish import Decision, Settled
from jobledger.observe.log import get_logger
from jobledger.worker.attempt import Attempt
from jobledger.worker.connection import RunConnection
from jobledger.worker.outcome import EffectsLost, classify, deciding, refused_by

log: Final = get_logger(__name__)

T = TypeVar("T")

LEDGER_PATIENCE_SECONDS: Final = 10.0
"""A delivery waits for Postgres so long, then gives its wake-up up; the reconciler has another pushed."""

END_PATIENCE_SECONDS: Final = 60.0
"""The time for writing an end. A dispatch with `after=` may have the row locked; the reaper skips such rows."""

WRITE_DEADLINE_SECONDS: Final = 5.0
LOCK_SECONDS: Final = 4.0


class Completer:
    """Ends attempts.

    Args:
        connections: of this process.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def complete(self, attempt: Attempt, result: str | None) -> Settled | None:
        """Commit the effects of a job whose work is done, together with `completed`.

        Returns:
            None if the attempt was fenced out: nothing was committed.

        Raises:
            EffectsLost: the connection went away before the effects were committed.
            LedgerUnavailable: Postgres stayed away.
        """
        attempt.interrupter.disarm()
        attempt.lease.ending()
        reach(Failpoint.BEFORE_FINISH)
        settled = self._complete(attempt, result)
        reach(Failpoint.AFTER_FINISH)
        if settled is not None and attempt.context is not None:
            attempt.context.push()
        self._announce(attempt, settled, attempt.connection)
        _log_end(attempt, settled)
        return settled

    def conclude(self, attempt: Attempt, error: BaseException) -> Settled | None:
        """Write the end of an attempt that did not complete, on a fresh connection.

        Returns:
            None if the attempt was fenced out.

        Raises:
            LedgerUnavailable: Postgres stayed away.
        """
        attempt.interrupter.disarm()
        attempt.lease.ending()
        connection = attempt.connection
        outcome = self._outcome(attempt, error, connection)
        if connection is not None:
            connection.cut()  # so that its effects and locks are gone before the job runs again
        if isinstance(attempt.reason or deciding(error), FencedOut):
            _log_end(attempt, None)
            return None
        evidence = attempt.evidence or attempt.evidence_of(error, traced=True)
        patience = LEDGER_PATIENCE_SECONDS if isinstance(error, LedgerUnavailable) else END_PATIENCE_SECONDS
        settled = patiently(lambda: self._write(attempt, outcome, error, evidence), patience, str(attempt.claim.id))
        self._announce(attempt, settled, None)
        _log_end(attempt, settled, outcome, evidence)
        return settled

    def _complete(self, attempt: Attempt, result: str | None) -> Settled | None:
        claim, evidence = attempt.claim, attempt.evidence_of()
        connection = attempt.connection or RunConnection(self._connections, None)
        try:
            if not attempt.has_session:
                connection.autocommit()
                settled = finish.complete_alone(connection.committing, claim.id, claim.attempt, result, evidence)
                if settled is not None:
                    return settled
            elif attempt.context is not None:
                attempt.context.restore_session()
            connection.begin()
            settled = finish.complete(connection.direct, claim.id, claim.attempt, result, evidence)
            if settled is None:
                connection.rollback()
            else:
                connection.commit()
        except LedgerUnavailable as error:
            return self._complete_after_loss(attempt, result, evidence, error)
        finally:
            if attempt.connection is None:
                connection.release()
        return settled

    def _complete_after_loss(
        self, attempt: Attempt, result: str | None, evidence: Evidence, error: LedgerUnavailable
    ) -> Settled | None:
        """Find out whether a commit happened whose connection was lost.

        A job that wrote nothing through its session completes on another connection.
        """
        claim = attempt.claim

        def look_or_complete() -> Settled | None:
            with self._connections.transaction(WRITE_DEADLINE_SECONDS) as fresh:
                leases.end_backend(fresh, claim.id, claim.attempt, surely=True)
                if queries.outcome_of(fresh, claim.id, claim.attempt) is Outcome.COMPLETED:
                    return Settled(JobStatus.COMPLETED)
                if attempt.has_session:
                    raise EffectsLost("The connection was lost before the job's effects were committed.") from error
                return finish.complete(fresh, claim.id, claim.attempt, result, evidence)

        return patiently(look_or_complete, END_PATIENCE_SECONDS, str(claim.id))

    def _outcome(self, attempt: Attempt, error: BaseException, connection: RunConnection | None) -> Outcome:
        if not attempt.is_loaded and isinstance(error, UnknownJobType):
            return Outcome.UNKNOWN_TYPE
        raw = connection.raw if connection is not None else None
        return classify(error, attempt.reason, attempt.interrupter.is_over, raw)

    def _write(self, attempt: Attempt, outcome: Outcome, error: BaseException, evidence: Evidence) -> Settled | None:
        claim = attempt.claim
        with transaction_waiting_for_locks(self._connections, WRITE_DEADLINE_SECONDS, LOCK_SECONDS) as fresh:
            unknown_for = queries.seconds_of_unknown_type(fresh, claim.id) if outcome is Outcome.UNKNOWN_TYPE else 0.0
            restarted = outcome is Outcome.LOST and leases.server_restarted(fresh, claim.id, claim.attempt)
            decision = _decide(attempt, outcome, error, evidence, unknown_for, restarted=restarted)
            return finish.settle(fresh, claim.id, claim.attempt, outcome, decision, evidence)

    def _announce(self, attempt: Attempt, settled: Settled | None, connection: RunConnection | None) -> None:
        """Also for an attempt that was fenced out: only slots that are free by now are passed on."""
        freed = [attempt.claim.id] if attempt.claim.is_limited else []
        direct = None
        if freed and connection is not None and not connection.is_gone:
            connection.autocommit()
            direct = connection.direct
        finish.announce(self._connections, settled, freed, direct)


def _decide(
    attempt: Attempt,
    outcome: Outcome,
    error: BaseException,
    evidence: Evidence,
    unknown_for_seconds: float,
    *,
    restarted: bool,
) -> Decision:
    """Decide what follows the attempt. A user's exception or policy that raises here spends one error, no more."""
    judged: BaseException | None = deciding(error)
    if outcome is Outcome.TIMEOUT:
        judged = TimeoutError()
    elif outcome is Outcome.CANCELED:
        judged = Cancel(evidence.error_message or "")
    try:
        if outcome is Outcome.ERROR and judged is not None:
            judged = refused_by(attempt.retry, judged)
        return finish.decide(
            outcome, attempt.claim, attempt.retry, judged, unknown_for_seconds, server_restarted=restarted
        )
    except BaseException as broken:
        log.warning(
            "The retry policy failed: it counts as an error",
            job_id=str(attempt.claim.id),
            why=type(broken).__name__,
        )
        return finish.decide(outcome, attempt.claim, attempt.retry, server_restarted=restarted)


def patiently(step: Callable[[], T], patience_seconds: float, job_id: str) -> T:
    """Do a step of the ledger, again and again while Postgres is away, has no room, or the row is locked.

    Every step is guarded by the status and the fence, so doing it twice is harmless.

    Raises:
        LedgerUnavailable: it did not succeed within the patience. The reconciler knows the error by its name, and does
            not count the lost wake-up.
    """
    deadline, pause = time.monotonic() + patience_seconds, 0.1
    while True:
        try:
            return step()
        except (LedgerUnavailable, LockTimeout, DBAPIError, psycopg2.Error) as error:
            away = isinstance(error, LedgerUnavailable)
            passes = away or isinstance(error, LockTimeout) or is_connection_loss(error)
            if not passes and sql_state(error) not in (*TRY_AGAIN, *NO_ROOM):
                raise
            if time.monotonic() + pause > deadline:
                if away:
                    raise
                said = f"Postgres could not do it within {patience_seconds:g} s: {first_line(error)}"
                raise LedgerUnavailable(said) from error
            log.warning("The ledger is away or locked: trying again", job_id=job_id, error=str(error))
        time.sleep(pause)
        pause = min(pause * 2, 2.0)


def _log_end(
    attempt: Attempt, settled: Settled | None, outcome: Outcome = Outcome.COMPLETED, evidence: Evidence | None = None
) -> None:
    """Log the end of an attempt in one line. RQ logs the traceback only of a job that failed for good."""
    attempt.logged.ended(settled.status if settled is not None else "fenced_out")
    if not log.isEnabledFor(logging.INFO):
        return
    if settled is None:
        log.info("Fenced out: another attempt ends this job")
    elif settled.status is JobStatus.COMPLETED or evidence is None:
        log.info("Completed")
    elif settled.status is JobStatus.QUEUED:
        log.info("Handed back")
    elif settled.status is JobStatus.FAILED:
        log.info("Failed", outcome=outcome.value, error_type=evidence.error_type, error=evidence.error_message)
    elif settled.status is JobStatus.CANCELED:
        log.info("Canceled", why=evidence.error_message)
    else:
        log.info(
            "Will run again",
            outcome=outcome.value,
            wait_seconds=settled.wait_seconds,
            error_type=evidence.error_type,
            exception=evidence.traceback,
        )
