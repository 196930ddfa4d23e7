"""One job: run it again, or cancel it."""

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
"""By then a running job has ended that was to be canceled, as long as Postgres and a scheduler work."""

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
    """Under which a job is changed that was selected before; it is looked at again when its row is locked.

    Attributes:
        statuses: where it must stand.
        ended_by: by when it must have ended, by the clock of the database; None for any time.
    """

    statuses: Collection[JobStatus] = frozenset(JobStatus)
    ended_by: datetime | None = None

    def objection(self, standing: Standing) -> str | None:
        """Why the job is not changed any more; None if it stands as it was selected."""
        if standing.status not in self.statuses:
            return f"it is {standing.status} by now, and jobs in that status were not selected"
        if self.ended_by is not None and (standing.finished_at is None or standing.finished_at > self.ended_by):
            return f"it has run since the selection, and is {standing.status} again"
        return None


def retry(connections: Connections, job_id: UUID, by: str) -> Answer:
    """Queue a failed or canceled job again: now, with fresh budgets; its attempts go on being counted.

    A job that is held because one that it waits for did not complete (`on_parent_failure="hold"`) runs without it.
    Jobs that were canceled because they waited for this one stay canceled. Each of them can be retried in its turn,
    when its parents have ended: it runs then, however they ended.

    Args:
        connections: the servers. If Redis is away, the relay pushes the job later.
        job_id: of the job.
        by: who asks, for the log.

    Returns:
        What came of it; refused, too, if another transaction holds the job's row, or dispatches an equal job of a
        unique class, for longer than 3 s.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    try:
        return retry_if(connections, job_id, by, Terms(), LOCK_SECONDS)
    except LockTimeout:
        return answer_locked(connections, job_id)


def retry_if(connections: Connections, job_id: UUID, by: str, terms: Terms, lock_seconds: float) -> Answer:
    """The same, for a job that still stands as it was selected.

    Args:
        lock_seconds: how long another transaction is waited for.

    Raises:
        LockTimeout: it was waited for in vain.
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
    """The wake-up of a job that is queued again; or why it is not, if an equal job is there.

    Raises:
        LockTimeout: an equal job is being dispatched, and that was waited for in vain.
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
    """Cancel a job, and all that waits for it, directly or through others, unless it says otherwise.

    One that has not started never will. One that runs is told to end; it may still complete before it is:
    `wait_for_cancel` says which it was.

    Args:
        connections: the servers. If Redis is away, the relay pushes what runs in spite of it.
        job_id: of the job.
        by: who asks; kept in the job's reason.
        reason: why; kept there too.

    Returns:
        What came of it; refused, too, if another transaction holds the job's row for longer than 3 s.

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
    """The same, for a job that still stands as it was selected.

    Args:
        lock_seconds: how long another transaction is waited for.

    Raises:
        LockTimeout: it was waited for in vain.
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
    """Where the job stands, which nobody moves from now on; and the terms' objection, where the thing is possible."""
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
    """Wait until a job that was to be canceled has ended, and say how.

    Args:
        connections: the servers.
        job_id: of the job.
        timeout: the longest to wait, in seconds.

    Returns:
        Done if it was canceled, refused if it has completed first; still requested if it has not ended by then.

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
