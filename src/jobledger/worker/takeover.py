"""Ends an attempt from outside, if its process has died or reacts to nothing."""

import time
from typing import Final

import redis

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.connections.locks import transaction_waiting_for_locks
from jobledger.domain.endings import JobCanceled
from jobledger.domain.records import Evidence
from jobledger.domain.retry import Retry
from jobledger.domain.status import Outcome
from jobledger.errors import ConfigurationError, UnknownJobType
from jobledger.ledger import leases
from jobledger.lifecycle import finish
from jobledger.lifecycle.takeover import take_over
from jobledger.observe.log import get_logger
from jobledger.queues import Death
from jobledger.registry import load_job_modules, registry
from jobledger.worker.leases import CANCEL_GRACE_SECONDS, handed_back_after
from jobledger.worker.notes import Answer, AttemptNote
from jobledger.worker.processes import lives

log: Final = get_logger(__name__)

HARD_STOP_SECONDS: Final = 5.0
"""An attempt has so long to end itself after its deadline or another interrupt; then it is ended from outside."""

REPORT_SECONDS: Final = 2.0
"""A worker reports the death of a work-horse to Redis within this, unless its exit code is 0, as of a success."""

STATEMENT_SECONDS: Final = 5.0
LOCK_SECONDS: Final = 1.0


def cause_of_death(connections: Connections, note: AttemptNote, died_at: float) -> tuple[Outcome, str] | None:
    """The outcome of an attempt whose process has died, and the reason in words.

    Returns:
        None if its worker may still report the death.
    """
    if not note.isolated:
        return Outcome.LOST, "Its process, which other jobs shared, has died."
    if note.deadline is not None and died_at >= note.deadline:
        return Outcome.TIMEOUT, "The process died when the time of the attempt was up."
    if not lives(note.parent):
        return Outcome.LOST, "The worker has died, and the work-horse with it."
    report = _report(connections, note)
    if report is not None:
        return (Outcome.CRASHED if report.process_died else Outcome.LOST), report.report
    if time.monotonic() < died_at + REPORT_SECONDS:
        return None
    return Outcome.CRASHED, "The process ended in the middle of the job, with an exit code that tells of no failure."


def _report(connections: Connections, note: AttemptNote) -> Death | None:
    try:
        found = queues.reported_deaths(connections.maintenance_redis, [note.job_id]).get(note.job_id)
    except redis.RedisError:
        return None
    is_about = found is not None and found.is_about(note.worker, time.monotonic() - note.began_at)
    return found if is_about else None


def overdue(
    note: AttemptNote, answer: Answer, drain_seconds: float, now: float
) -> tuple[Outcome, BaseException] | None:
    """The end of an attempt that should have ended itself by now; None if it still has time. Pure."""
    if note.deadline is not None and now >= note.deadline + HARD_STOP_SECONDS:
        return Outcome.TIMEOUT, TimeoutError("The attempt ran longer than its timeout, and could not be interrupted.")
    if answer.canceled_at is not None and now >= answer.canceled_at + CANCEL_GRACE_SECONDS + HARD_STOP_SECONDS:
        return Outcome.CANCELED, JobCanceled(answer.cancel_reason or "")
    asked_at = answer.stop_requested_at
    stops = [note.stop_by, asked_at + drain_seconds if asked_at is not None else None]
    stop_by = min((one for one in stops if one is not None), default=None)
    if stop_by is not None and now >= stop_by + HARD_STOP_SECONDS:
        return Outcome.HANDED_BACK, handed_back_after(drain_seconds)
    return None


def end(
    connections: Connections,
    note: AttemptNote,
    outcome: Outcome,
    evidence: Evidence,
    error: BaseException | None = None,
) -> None:
    """Write the end of an attempt, after ending its session; do nothing if it has ended.

    Raises:
        LedgerUnavailable: Postgres is away.
        LockTimeout: another transaction has its row locked.
    """
    retry = _retry_of(connections, note.job_type) if outcome is Outcome.TIMEOUT else Retry()
    judged = TimeoutError() if outcome is Outcome.TIMEOUT else error
    with transaction_waiting_for_locks(connections, STATEMENT_SECONDS, LOCK_SECONDS) as connection:
        running = leases.running_attempt(connection, note.job_id, note.attempt)
        if running is None:
            return
        settled = take_over(connection, running, outcome, evidence, retry, judged, surely=True)
    if settled is not None:
        finish.announce(connections, settled, [note.job_id])
        log.warning("Ended", job_id=note.id, attempt=note.attempt, outcome=outcome.value, status=settled.status.value)


def _retry_of(connections: Connections, job_type: str) -> Retry:
    """The retry policy of a job's class; the job modules are loaded if the keeper has not inherited them."""
    try:
        if job_type not in {one.job_type for one in registry}:
            load_job_modules(connections.settings.job_modules)
        found: Retry = registry.lookup(job_type).retry
    except (UnknownJobType, ConfigurationError) as error:
        log.warning("The job's class is not known here: the job is not retried", job_type=job_type, error=str(error))
        return Retry()
    return found
