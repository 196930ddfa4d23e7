"""What people ask for: run a job again, or cancel it; pause a queue or a type. Refusals are answers, not errors."""

import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from jobledger.admission import waiting_for_rivals
from jobledger.connections import Connections
from jobledger.dispatch import push_quietly
from jobledger.errors import DispatchContended, OptionError
from jobledger.finish import tell_descendants
from jobledger.ledger import bulk, cancel_requests, dependencies, pauses, pushes, queries, transitions, uniqueness
from jobledger.ledger.pauses import Pause
from jobledger.ledger.queries import Filter
from jobledger.observe.log import get_logger
from jobledger.options import queue_name
from jobledger.payload import storable
from jobledger.status import TERMINAL, UNFINISHED, JobStatus, PauseKind
from jobledger.wake import Wake

log: Final = get_logger(__name__)

DEADLINE_SECONDS: Final = 10.0
"""Longest transaction: it may have to wait for one that holds the row, such as a dispatch with `after=`."""

CANCEL_SECONDS: Final = 15.0
"""By then a running job has ended that was to be canceled, as long as Postgres and a scheduler work."""

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 0.5

READ_SECONDS: Final = 60.0
"""Longest look for jobs that are selected, of many."""

BATCH: Final = 500
"""Jobs that one transaction changes, of many."""

LONGEST_TYPE: Final = 200

LONGEST_REASON: Final = 1000
"""Characters that are kept of who canceled a job, and why."""


class Verdict(StrEnum):
    """What came of it."""

    DONE = "done"
    REQUESTED = "requested"
    """It runs, and will be ended; if it completes first, it has completed."""
    REFUSED = "refused"
    """The job stands where this cannot be done; nothing was changed."""
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking something for one job.

    Attributes:
        status: where the job stands now; None if there is no such job.
        message: the same for people: what was done, or why nothing was.
    """

    job_id: UUID
    verdict: Verdict
    status: JobStatus | None
    message: str

    @property
    def is_done(self) -> bool:
        """Whether it was done."""
        return self.verdict is Verdict.DONE

    @property
    def is_granted(self) -> bool:
        """Whether it was done, or will be."""
        return self.verdict in (Verdict.DONE, Verdict.REQUESTED)


def retry(connections: Connections, job_id: UUID, by: str) -> Answer:
    """Queue a failed or canceled job again: now, with fresh budgets; its attempts go on being counted.

    A job that is held because one that it waits for did not complete (`on_parent_failure="hold"`) runs without it.
    Jobs that were canceled because they waited for this one stay canceled. Each of them can be retried in its turn,
    when its parents have ended: it runs then, however they ended.

    Args:
        connections: the servers. If Redis is away, the relay pushes the job later.
        job_id: of the job.
        by: who asks, for the log.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        status = queries.lock_status(connection, job_id)
        parent = queries.unended_parent(connection, job_id)
        if parent is not None and status in (JobStatus.FAILED, JobStatus.CANCELED):
            why = f"its parent {parent[0]} is {parent[1]}; retry it when that has completed"
            return Answer(job_id, Verdict.REFUSED, status, why)
        if status is JobStatus.DEFERRED and parent is None:
            wake, rival = dependencies.run_held(connection, job_id), None
        else:
            wake, rival = _retry(connection, job_id)
    if rival is not None:
        return Answer(job_id, Verdict.REFUSED, status, rival)
    if wake is None:
        return _refusal(job_id, status, _NO_RETRY)
    push_quietly(connections, [wake])
    log.info("Queued again", job_id=str(job_id), job_type=wake.job_type, was=status, by=by)
    return Answer(job_id, Verdict.DONE, JobStatus.QUEUED, f"queued again; it was {status}")


def _retry(connection: Connection, job_id: UUID) -> tuple[Wake | None, str | None]:
    """The wake-up of a job that is queued again; or why it is not, if an equal job is there."""
    try:
        with waiting_for_rivals(connection):
            return transitions.retry(connection, job_id), None
    except DispatchContended as error:
        return None, str(error)
    except IntegrityError as error:
        if not uniqueness.is_collision(error):
            raise
    holder = uniqueness.rival(connection, job_id)
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

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    text = _who_and_why(by, reason)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        status = queries.lock_status(connection, job_id)
        ended = transitions.cancel(connection, job_id, text)
        wakes = tell_descendants(connection, job_id, "was canceled") if ended is not None and ended.has_children else []
        requested = ended is None and cancel_requests.request(connection, job_id, text)
    if requested:
        log.info("To be canceled", job_id=str(job_id), by=by)
        return Answer(job_id, Verdict.REQUESTED, status, f"it runs, and is ended within {CANCEL_SECONDS:g} s")
    if ended is None:
        return _refusal(job_id, status, _NO_CANCEL)
    push_quietly(connections, wakes)
    log.info("Canceled", job_id=str(job_id), was=status, by=by)
    return Answer(job_id, Verdict.DONE, JobStatus.CANCELED, f"canceled; it was {status}")


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
            return _refusal(job_id, status, _NO_CANCEL)
        left = deadline - time.monotonic()
        if left <= 0:
            return Answer(job_id, Verdict.REQUESTED, status, f"it has not ended within {timeout:g} s")
        time.sleep(min(left, pause))
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class Selection:
    """The jobs that a filter lets through and that were there at one moment: what comes later is never touched.

    Attributes:
        wanted: which statuses, job type and queue.
        until: the moment, by the clock of the database.
        count: how many there were when it was made.
    """

    wanted: Filter
    until: datetime
    count: int


def to_cancel(connections: Connections, wanted: Filter, until: datetime | None = None) -> Selection:
    """Select jobs to be canceled.

    Args:
        connections: the servers.
        wanted: which; without statuses all that have not ended.
        until: that were there at this moment; None for now. With the moment of an earlier selection, what was
            interrupted goes on.

    Raises:
        OptionError: jobs in one of the statuses cannot be canceled.
        LedgerUnavailable: Postgres is away.
    """
    return _select(connections, wanted, until, UNFINISHED, default=UNFINISHED)


def to_retry(connections: Connections, wanted: Filter, until: datetime | None = None) -> Selection:
    """The same for jobs to be retried, which had ended by then; without statuses those that have failed."""
    return _select(connections, wanted, until, _RETRIED, default={JobStatus.FAILED})


def cancel_selected(
    connections: Connections, selection: Selection, by: str, reason: str = ""
) -> Iterator[list[Answer]]:
    """Cancel many jobs, batch by batch; each batch is done when it is given, and stays done.

    Args: see `cancel`.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    for ids in _batches(connections, selection, ended=False):
        with connections.transaction(DEADLINE_SECONDS) as connection:
            done = bulk.cancel(connection, ids, _who_and_why(by, reason))
        yield [
            Answer(one, Verdict.DONE, JobStatus.CANCELED, "canceled")
            if one in done
            else cancel(connections, one, by, reason)
            for one in ids
        ]
    log.info("Canceled what was selected", count=selection.count, by=by)


def retry_selected(connections: Connections, selection: Selection, by: str) -> Iterator[list[Answer]]:
    """Retry many jobs in the same way. One that fails again meanwhile is not retried again.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    for ids in _batches(connections, selection, ended=True):
        with connections.transaction(DEADLINE_SECONDS) as connection:
            wakes = bulk.retry(connection, ids, selection.until)
        push_quietly(connections, wakes)
        done = {wake.id for wake in wakes}
        yield [
            Answer(one, Verdict.DONE, JobStatus.QUEUED, "queued again") if one in done else retry(connections, one, by)
            for one in ids
        ]
    log.info("Queued again what was selected", count=selection.count, by=by)


_RETRIED: Final = frozenset({JobStatus.FAILED, JobStatus.CANCELED})


def _select(
    connections: Connections,
    wanted: Filter,
    until: datetime | None,
    allowed: Set[JobStatus],
    *,
    default: Set[JobStatus],
) -> Selection:
    wrong = sorted(set(wanted.statuses) - allowed)
    if wrong:
        raise OptionError(f"Jobs that are {wrong[0]} cannot be selected; say {', '.join(sorted(allowed))}.")
    whole = replace(wanted, statuses=sorted(wanted.statuses or default))
    with connections.transaction(READ_SECONDS) as connection:
        moment = until or pushes.now(connection)
        count = queries.count_selected(connection, whole, moment, ended=allowed == _RETRIED)
    return Selection(whole, moment, count)


def _batches(connections: Connections, selection: Selection, *, ended: bool) -> Iterator[list[UUID]]:
    after: UUID | None = None
    while True:
        with connections.transaction(READ_SECONDS) as connection:
            ids = queries.selected(connection, selection.wanted, selection.until, after, BATCH, ended=ended)
        if ids:
            yield ids
            after = ids[-1]
        if len(ids) < BATCH:
            return


def _who_and_why(by: str, reason: str) -> str:
    return storable(f"canceled by {by}: {reason}" if reason else f"canceled by {by}")[:LONGEST_REASON]


def pause(connections: Connections, kind: PauseKind, name: str, by: str, reason: str = "") -> Pause:
    """Start no more jobs of a queue or of a type, from the next claim on, until `resume`. What runs goes on.

    Args:
        connections: the servers; Redis is not needed.
        kind: what is paused.
        name: of the queue, or of the job type.
        by: who asks, for people.
        reason: why, for people.

    Returns:
        The pause: this one, or the one that there was already.

    Raises:
        OptionError: nothing can have that name.
        LedgerUnavailable: Postgres is away.
    """
    checked = _checked_name(kind, name)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        stands = pauses.pause(connection, kind, checked, storable(by), storable(reason)[:LONGEST_REASON] or None)
    log.info("Paused", kind=kind.value, name=checked, by=by)
    return stands


def resume(connections: Connections, kind: PauseKind, name: str, by: str) -> int | None:
    """End a pause: what it held is pushed again, by priority and age.

    If this is interrupted, schedulers release the rest.

    Returns:
        How many jobs were held; None if it was not paused.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        ended = pauses.resume(connection, kind, name)
    if ended is None:
        return None
    total = 0
    while True:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            released = pauses.release(connection, ended.held_by, BATCH)
        total += released
        if released < BATCH:
            break
    log.info("Resumed", kind=kind.value, name=name, released=total, by=by)
    return total


def paused(connections: Connections) -> list[Pause]:
    """All pauses.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        return pauses.every(connection)


def _checked_name(kind: PauseKind, name: str) -> str:
    if kind is PauseKind.QUEUE:
        return queue_name(name)
    if not 1 <= len(name) <= LONGEST_TYPE or not name.isprintable():
        raise OptionError(f"{name!r:.60}: a job type's name is a text of 1 to {LONGEST_TYPE} characters.")
    return name


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


def _refusal(job_id: UUID, status: JobStatus | None, why: dict[JobStatus, str]) -> Answer:
    if status is None:
        return Answer(job_id, Verdict.NOT_FOUND, None, "there is no such job: never dispatched, rolled back, or pruned")
    return Answer(job_id, Verdict.REFUSED, status, why[status])
