"""The reads of the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.status import TERMINAL, JobStatus, Outcome, PauseKind
from jobledger.ledger.models import control
from jobledger.ledger.models.jobs import job_attempts, job_statuses


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job, as the ledger has it.

    Attributes:
        cancel_requested_at: when a cancel was requested while it runs.
        cancel_reason: the person, and why.
    """

    id: UUID
    job_type: str
    title: str | None
    owner: str | None
    queue: str
    priority: int
    status: JobStatus
    held_by: str | None
    reason: str | None
    payload: dict[str, Any]
    result: Any
    timeout_seconds: float
    attempt: int
    errors: int
    crashes: int
    losses: int
    max_attempts: int
    waiting_parents: int
    schedule_id: UUID | None
    fire_at: datetime | None
    available_at: datetime
    expires_at: datetime | None
    pushed_at: datetime | None
    push_count: int
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    cancel_requested_at: datetime | None
    cancel_reason: str | None

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class JobSummary:
    """One job in a list, without its long fields."""

    id: UUID
    job_type: str
    title: str | None
    queue: str
    status: JobStatus
    held_by: str | None
    reason: str | None
    attempt: int
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs a list has; None and empty mean all."""

    statuses: Sequence[JobStatus] = ()
    job_type: str | None = None
    queue: str | None = None
    before: UUID | None = None
    """Only jobs created before this one, the last of the page before."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt of a job, as the ledger has it."""

    number: int
    worker: str
    host: str
    pid: int
    version: str
    started_at: datetime
    finished_at: datetime | None
    outcome: Outcome | None
    error_type: str | None
    error_message: str | None
    traceback: str | None
    progress_done: int | None
    progress_total: int | None
    progress_note: str | None
    log_tail: str | None
    peak_memory_bytes: int | None


# A request that older code has left behind has another time, and does not count: see `cancel_requests`.
_REQUESTS: Final = control.cancel_requests.c
_JOB: Final = sa.select(
    *(job_statuses.c[name] for name in JobRow.__slots__ if name != "cancel_reason"),
    _REQUESTS.reason.label("cancel_reason"),
).outerjoin_from(
    job_statuses,
    control.cancel_requests,
    sa.and_(_REQUESTS.job_id == job_statuses.c.id, _REQUESTS.requested_at == job_statuses.c.cancel_requested_at),
)
_ATTEMPT: Final = sa.select(*(job_attempts.c[name] for name in AttemptRow.__slots__))


def job(connection: Connection, job_id: UUID) -> JobRow | None:
    """One job by its id."""
    row = connection.execute(_JOB.where(job_statuses.c.id == job_id)).one_or_none()
    return _job(row) if row is not None else None


def jobs(connection: Connection, ids: Sequence[UUID]) -> list[JobRow]:
    """The jobs with these ids that exist, oldest first."""
    found = connection.execute(_JOB.where(job_statuses.c.id.in_(ids)).order_by(job_statuses.c.id))
    return [_job(row) for row in found]


def newest(connection: Connection, wanted: Filter, limit: int) -> list[JobSummary]:
    """The jobs that a filter lets through, newest first: ids are in the order of creation.

    Each status is looked up on its own and its newest are taken, so that an index of `(status | job_type | queue, id)`
    gives them in order. Two filters together are applied along one of the indexes.
    """
    columns = [job_statuses.c[name] for name in JobSummary.__slots__]
    page = sa.select(*columns).order_by(job_statuses.c.id.desc()).limit(limit)
    if wanted.job_type is not None:
        page = page.where(job_statuses.c.job_type == wanted.job_type)
    if wanted.queue is not None:
        page = page.where(job_statuses.c.queue == wanted.queue)
    if wanted.before is not None:
        page = page.where(job_statuses.c.id < wanted.before)
    if wanted.statuses:
        pages = [page.where(job_statuses.c.status == status).subquery().select() for status in set(wanted.statuses)]
        together = sa.union_all(*pages).subquery()
        page = sa.select(together).order_by(together.c.id.desc()).limit(limit)
    rows = connection.execute(page)
    return [JobSummary(**{**row._mapping, "status": JobStatus(row.status)}) for row in rows]


def selected(
    connection: Connection, wanted: Filter, until: datetime, after: UUID | None, limit: int, *, ended: bool
) -> list[UUID]:
    """The ids of the jobs that a filter lets through and that existed at a moment, oldest first.

    Args:
        until: that moment, by the clock of the database.
        after: the last job of the batch before.
        limit: jobs at most.
        ended: only those that had ended by then.
    """
    chosen = _selected(wanted, until, ended=ended).order_by(job_statuses.c.id).limit(limit)
    if after is not None:
        chosen = chosen.where(job_statuses.c.id > after)
    return list(connection.execute(chosen).scalars())


def count_selected(connection: Connection, wanted: Filter, until: datetime, *, ended: bool) -> int:
    """The number of jobs that `selected` would give."""
    chosen = _selected(wanted, until, ended=ended).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(chosen)).scalar_one())


@dataclass(frozen=True, slots=True)
class Group:
    """The number of selected jobs of a status, type and queue."""

    status: JobStatus
    job_type: str
    queue: str
    jobs: int


def selected_by_kind(connection: Connection, wanted: Filter, until: datetime, *, ended: bool) -> list[Group]:
    """The number of jobs that `selected` would give, by status, type and queue."""
    columns, chosen = job_statuses.c, _selected(wanted, until, ended=ended).subquery()
    kind = (columns.status, columns.job_type, columns.queue)
    counted = sa.select(*kind, sa.func.count().label("jobs")).join(chosen, chosen.c.id == columns.id)
    rows = connection.execute(counted.group_by(*kind).order_by(*kind))
    return [Group(**{**row._mapping, "status": JobStatus(row.status)}) for row in rows]


def _selected(wanted: Filter, until: datetime, *, ended: bool) -> sa.Select[tuple[UUID]]:
    columns = job_statuses.c
    chosen = sa.select(columns.id).where(columns.created_at <= until, columns.status.in_(wanted.statuses))
    if wanted.job_type is not None:
        chosen = chosen.where(columns.job_type == wanted.job_type)
    if wanted.queue is not None:
        chosen = chosen.where(columns.queue == wanted.queue)
    if wanted.before is not None:
        chosen = chosen.where(columns.id < wanted.before)
    return chosen.where(columns.finished_at <= until) if ended else chosen


@dataclass(frozen=True, slots=True)
class Standing:
    """The status of a job, and when it ended."""

    status: JobStatus
    finished_at: datetime | None


def lock(connection: Connection, job_id: UUID) -> Standing | None:
    """Lock a job, so that no other transaction moves it, and read its status. None if there is no such job."""
    columns = job_statuses.c
    row = connection.execute(
        sa.select(columns.status, columns.finished_at).where(columns.id == job_id).with_for_update(key_share=True)
    ).one_or_none()
    return Standing(JobStatus(row.status), row.finished_at) if row is not None else None


def status_of(connection: Connection, job_id: UUID) -> JobStatus | None:
    """The status of a job at this moment; None if there is no such job."""
    word = connection.execute(sa.select(job_statuses.c.status).where(job_statuses.c.id == job_id)).scalar_one_or_none()
    return JobStatus(word) if word is not None else None


def _job(row: sa.Row[Any]) -> JobRow:
    return JobRow(**{**row._mapping, "status": JobStatus(row.status)})


def attempts(connection: Connection, job_id: UUID) -> list[AttemptRow]:
    """The attempts of a job, in order."""
    rows = connection.execute(_ATTEMPT.where(job_attempts.c.job_id == job_id).order_by(job_attempts.c.number))
    return [AttemptRow(**{**row._mapping, "outcome": Outcome(row.outcome) if row.outcome else None}) for row in rows]


def last_failure(connection: Connection, job_id: UUID) -> AttemptRow | None:
    """The newest ended attempt that did not complete."""
    row = connection.execute(
        _ATTEMPT.where(
            job_attempts.c.job_id == job_id,
            job_attempts.c.outcome.is_not(None),
            job_attempts.c.outcome != Outcome.COMPLETED,
        )
        .order_by(job_attempts.c.number.desc())
        .limit(1)
    ).one_or_none()
    return AttemptRow(**{**row._mapping, "outcome": Outcome(row.outcome)}) if row is not None else None


def outcome_of(connection: Connection, job_id: UUID, attempt: int) -> Outcome | None:
    """How an attempt ended; None if it has not."""
    word = connection.execute(
        sa.select(job_attempts.c.outcome).where(job_attempts.c.job_id == job_id, job_attempts.c.number == attempt)
    ).scalar_one_or_none()
    return Outcome(word) if word is not None else None


_UNKNOWN_SINCE: Final = sa.text("""
SELECT extract(epoch FROM now() - min(started_at)) FROM job_attempts
 WHERE job_id = CAST(:id AS uuid)
   AND number > (SELECT coalesce(max(number), 0) FROM job_attempts
                  WHERE job_id = CAST(:id AS uuid) AND outcome <> 'unknown_type')
""")


def seconds_of_unknown_type(connection: Connection, job_id: UUID) -> float:
    """For how long, without a break, workers have not known the type of this job."""
    return float(connection.execute(_UNKNOWN_SINCE, {"id": str(job_id)}).scalar_one() or 0)


_UNENDED_PARENT: Final = sa.text("""
SELECT p.id, p.status FROM job_dependencies d JOIN job_statuses p ON p.id = d.parent_id
 WHERE d.child_id = CAST(:id AS uuid) AND p.finished_at IS NULL ORDER BY p.id LIMIT 1
""")


def unended_parent(connection: Connection, job_id: UUID) -> tuple[UUID, JobStatus] | None:
    """An unfinished job that this one waits for, with its status."""
    row = connection.execute(_UNENDED_PARENT, {"id": str(job_id)}).one_or_none()
    return (row.id, JobStatus(row.status)) if row is not None else None


_HAS_UNTOLD_CHILDREN: Final = sa.text("""
SELECT EXISTS (SELECT FROM job_propagations WHERE parent_id = CAST(:id AS uuid))
""")


def has_untold_children(connection: Connection, job_id: UUID) -> bool:
    """Whether children of a job that has ended have yet to be told."""
    return bool(connection.execute(_HAS_UNTOLD_CHILDREN, {"id": str(job_id)}).scalar())


def is_in_use(connection: Connection, kind: PauseKind, name: str) -> bool:
    """Whether any job, ended or not, is in a queue or of a type."""
    column = job_statuses.c.queue if kind is PauseKind.QUEUE else job_statuses.c.job_type
    return bool(connection.execute(sa.select(sa.exists().where(column == name))).scalar_one())
