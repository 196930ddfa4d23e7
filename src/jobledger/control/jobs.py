"""Retry or cancel one job."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from jobledger.connections.default import Connections
from jobledger.connections.locks import LockTimeout, savepoint_waiting_for_locks, transaction_waiting_for_locks
from jobledger.control.answer import DEADLINE_SECONDS, LOCK_SECONDS, Answer, Verdict, locked, refusal, who_and_why
from jobledger.domain.records import Wake
from jobledger.domain.status import TERMINAL, JobStatus
from jobledger.ledger import moves, queries, uniqueness
from jobledger.ledger.queries import Standing
from jobledger.lifecycle.finish import Settled, announce, settled_with_children
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

CANCEL_SECONDS: Final = 15.0
"""A running job ends within this time after a cancel, if Postgres and a scheduler work."""

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 0.5

_NO_RETRY: Final = {
    JobStatus.DEFERRED: "it waits for its parents",
    JobStatus.SCHEDULED: "it waits for its time",
    JobStatus.QUEUED: "it is queued already",
    JobStatus.STARTED: "it is running",
    JobStatus.COMPLETED: "it has completed; dispatch a new job instead",
}

_NO_CANCEL: Final = {
    JobStatus.COMPLETED: "it has completed",
    JobStatus.FAILED: "it has failed",
    JobStatus.CANCELED: "it is canceled already",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """Conditions for changing a job that was selected earlier; checked again when its row is locked.

    Attributes:
        statuses: the statuses that it may have.
        ended_by: the latest time of its end, by the database's clock; None for any time.
    """

    statuses: Collection[JobStatus] = frozenset(JobStatus)
    ended_by: datetime | None = None

    def objection(self, standing: Standing) -> str | None:
        """The reason not to change the job; None if it still meets the terms."""
        if standing.status not in self.statuses:
            return f"it is {standing.status} by now, and jobs in that status were not selected"
        if self.ended_by is not None and (standing.finished_at is None or standing.finished_at > self.ended_by):
            return f"it has run since the selection, and is {standing.status} again"
        return None


def retry(connections: Connections, job_id: UUID, by: str) -> Answer:
    """Queue a failed or canceled job again: now, with fresh budgets. The numbers of its attempts go on.

    A deferred job whose parent did not complete (`on_parent_failure="hold"`) runs without it. Children that were
    canceled with this job stay canceled. Each can be retried when its parents have ended, and then runs however they
    ended.

    Args:
        connections: the servers. If Redis is away, the relay pushes the job later.
        job_id: the job's id.
        by: name of the requester, for the log.

    Returns:
        The answer. It is a refusal, too, if another transaction has the job's row locked, or dispatches an equal job
        of a unique class, for longer than 3 s.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    try:
        return retry_if(connections, job_id, by, Terms(), LOCK_SECONDS)
    except LockTimeout:
        return answer_locked(connections, job_id)


def retry_if(connections: Connections, job_id: UUID, by: str, terms: Terms, lock_seconds: float) -> Answer:
    """Retry a job if it meets the terms.

    Args:
        lock_seconds: longest wait for another transaction.

    Raises:
        LockTimeout: the other transaction did not end in time.
        LedgerUnavailable: Postgres is away.
    """
    with transaction_waiting_for_locks(connections, DEADLINE_SECONDS, lock_seconds) as connection:
        status, objection = _lock(connection, job_id, terms, _NO_RETRY)
        if objection is not None:
            return Answer(job_id, Verdict.REFUSED, status, objection)
        parent = queries.unended_parent(connection, job_id)
        if status in (JobStatus.FAILED, JobStatus.CANCELED):
            if parent is not None:
                why = f"its parent {parent[0]} is {parent[1]}; retry it when that has ended"
                return Answer(job_id, Verdict.REFUSED, status, why)
            if queries.has_untold_children(connection, job_id):
                why = "the jobs that wait for it are still being told of its end; try again in a moment"
                return Answer(job_id, Verdict.REFUSED, status, why)
        if status is JobStatus.DEFERRED and parent is None:
            wake, rival = moves.run_deferred(connection, job_id), None
        else:
            wake, rival = _retry(connection, job_id, lock_seconds)
    if rival is not None:
        return Answer(job_id, Verdict.REFUSED, status, rival)
    if wake is None:
        return refusal(job_id, status, _NO_RETRY)
    announce(connections, Settled(JobStatus.QUEUED, [wake]))
    log.info("Queued again", job_id=str(job_id), job_type=wake.job_type, was=status, by=by)
    return Answer(job_id, Verdict.DONE, JobStatus.QUEUED, f"queued again; it was {status}")


def _retry(connection: Connection, job_id: UUID, lock_seconds: float) -> tuple[Wake | None, str | None]:
    """The wake-up of a job that is queued again; or the reason why it is not, if an equal job exists.

    Raises:
        LockTimeout: a transaction that dispatches an equal job did not end in time.
    """
    try:
        with savepoint_waiting_for_locks(connection, lock_seconds):
            return moves.retry(connection, job_id), None
    except IntegrityError as error:
        if not uniqueness.is_collision(error):
            raise
    holder = uniqueness.conflicting(connection, job_id)
    return None, f"an equal job is there: {holder.id} is {holder.status}" if holder else "an equal job was there"


def cancel(connections: Connections, job_id: UUID, by: str, reason: str = "") -> Answer:
    """Cancel a job and its descendants, except those whose `on_parent_failure` says otherwise.

    A job that has not started never will. A running job is interrupted; it may still complete first:
    `wait_for_cancel` tells the outcome.

    Args:
        connections: the servers. If Redis is away, the relay pushes children that run anyway later.
        job_id: the job's id.
        by: name of the requester; stored in the job's reason.
        reason: reason for people; stored there too.

    Returns:
        The answer. It is a refusal, too, if another transaction has the job's row locked for longer than 3 s.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    try:
        return cancel_if(connections, job_id, by, reason, Terms(), LOCK_SECONDS)
    except LockTimeout:
        return answer_locked(connections, job_id)


def cancel_if(
    connections: Connections, job_id: UUID, by: str, reason: str, terms: Terms, lock_seconds: float
) -> Answer:
    """Cancel a job if it meets the terms.

    Args:
        lock_seconds: longest wait for another transaction.

    Raises:
        LockTimeout: the other transaction did not end in time.
        LedgerUnavailable: Postgres is away.
    """
    text = who_and_why(by, reason)
    with transaction_waiting_for_locks(connections, DEADLINE_SECONDS, lock_seconds) as connection:
        status, objection = _lock(connection, job_id, terms, _NO_CANCEL)
        if objection is not None:
            return Answer(job_id, Verdict.REFUSED, status, objection)
        ended = moves.cancel(connection, job_id, text)
        if ended is not None:
            settled = settled_with_children(connection, job_id, JobStatus.CANCELED, has_children=ended.has_children)
        requested = ended is None and moves.request_cancel(connection, job_id, text)
    if requested:
        log.info("To be canceled", job_id=str(job_id), by=by)
        return Answer(job_id, Verdict.REQUESTED, status, f"it runs, and is ended within {CANCEL_SECONDS:g} s")
    if ended is None:
        return refusal(job_id, status, _NO_CANCEL)
    announce(connections, settled, freed=[job_id])
    log.info("Canceled", job_id=str(job_id), was=status, by=by)
    return Answer(job_id, Verdict.DONE, JobStatus.CANCELED, f"canceled; it was {status}")


def _lock(
    connection: Connection, job_id: UUID, terms: Terms, impossible: Collection[JobStatus]
) -> tuple[JobStatus | None, str | None]:
    """Lock the job. Its status, which cannot change now; and the terms' objection, if its status allows the change."""
    standing = queries.lock(connection, job_id)
    if standing is None:
        return None, None
    return standing.status, None if standing.status in impossible else terms.objection(standing)


def answer_locked(connections: Connections, job_id: UUID) -> Answer:
    """The answer if another transaction has the job locked for too long.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        return locked(job_id, queries.status_of(connection, job_id))


def wait_for_cancel(connections: Connections, job_id: UUID, timeout: float = CANCEL_SECONDS) -> Answer:
    """Wait until a job with a requested cancel has ended.

    Args:
        connections: the servers.
        job_id: the job's id.
        timeout: longest wait, in seconds.

    Returns:
        Done if it was canceled, refused if it ended otherwise first, still requested if it has not ended in time.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    deadline, pause = time.monotonic() + timeout, FIRST_PAUSE_SECONDS
    while True:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            status = queries.status_of(connection, job_id)
        if status is JobStatus.CANCELED:
            return Answer(job_id, Verdict.DONE, status, "canceled while it ran")
        if status is None or status in TERMINAL:
            return refusal(job_id, status, _NO_CANCEL)
        left = deadline - time.monotonic()
        if left <= 0:
            return Answer(job_id, Verdict.REQUESTED, status, f"it has not ended within {timeout:g} s")
        time.sleep(min(left, pause))
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
