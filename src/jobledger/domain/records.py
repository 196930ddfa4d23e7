"""The records that pass between the ledger and the steps of a job: new jobs, claims, evidence, wake-ups."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from jobledger.domain.limits import AppliedLimit
from jobledger.domain.options import DEFAULT_PRIORITY
from jobledger.domain.status import JobStatus


@dataclass(frozen=True, slots=True)
class Accepted:
    """The outcome of a dispatch.

    Attributes:
        status: status of the job; None for a duplicate of a job that is no longer in the ledger.
        reason: the reason, if the job was canceled at once.
        is_duplicate: an equal job was dispatched before, and this is that job; no row was written.
        is_replay: the idempotency key was used before: this request is a repetition.
    """

    id: UUID
    status: JobStatus | None
    reason: str | None
    is_duplicate: bool = False
    is_replay: bool = False


@dataclass(frozen=True, slots=True)
class Wake:
    """A job that may run now.

    Attributes:
        push_count: pushes of this job so far, this push included; above 1, an older wake-up may be in Redis.
        at_front: push it before all others: the job has already waited in line and started once.
    """

    id: UUID
    queue: str
    job_type: str
    title: str | None
    timeout_seconds: float
    push_count: int = 1
    at_front: bool = False


@dataclass(frozen=True, slots=True)
class NewJob:
    """A row to be written by `insert`."""

    id: UUID
    job_type: str
    queue: str
    payload: str
    title: str | None
    owner: str | None
    timeout_seconds: float
    max_attempts: int
    has_on_failed: bool
    priority: int = DEFAULT_PRIORITY
    delay_seconds: float = 0.0
    available_at_epoch: float | None = None
    expires_in_seconds: float | None = None
    """Counted from the earliest start: now, or the end of the delay."""
    waiting_parents: int = 0
    canceled_reason: str | None = None
    schedule_id: UUID | None = None
    fire_at_epoch: float | None = None
    idempotency_scope: str | None = None
    idempotency_key: str | None = None
    unique_key: str | None = None
    """No two unfinished jobs have the same key."""

    pushed: bool = True
    """If it is queued at once: whether its wake-up is pushed after the commit, rather than by the relay."""

    applied_limits: tuple[AppliedLimit, ...] = ()

    @property
    def held_by(self) -> str | None:
        """The limit that holds the job from its insertion, if it is queued at once, behind earlier jobs."""
        return self.applied_limits[0].held_by if self.applied_limits else None


@dataclass(frozen=True, slots=True)
class Backend:
    """A session of Postgres. Pids are reused, so its start is part of its identity.

    Attributes:
        pid: pid of the server process.
        started_at: `backend_start` of pg_stat_activity.
    """

    pid: int
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Runner:
    """The process that claims a job; stored with the attempt.

    Attributes:
        worker: RQ's name of the worker.
        isolated: the process was forked for this attempt alone, so its death counts against the job.
        token: identifies this delivery, so that a claim whose answer was lost is found again.
        has_session: the claiming session is the job's own, and the claim records it. Otherwise, for example where one
            session claims for many jobs, the attempt records its session when it opens it.
        backend: the claiming session, if the process knows it; None to ask Postgres.
    """

    worker: str
    host: str
    pid: int
    version: str
    isolated: bool = True
    token: UUID | None = None
    has_session: bool = True
    backend: Backend | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A started attempt, as returned by its claim. `(id, attempt)` is the fence of every later write."""

    id: UUID
    attempt: int
    job_type: str
    queue: str
    payload: dict[str, Any]
    timeout_seconds: float
    max_attempts: int
    errors: int
    crashes: int
    losses: int
    created_at: datetime
    fire_at: datetime | None
    is_limited: bool = False
    """The job holds slots, which are passed on when the attempt ends."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The stored facts about the end of an attempt."""

    error_type: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    log_tail: str | None = None
    peak_memory_bytes: int | None = None
    progress_done: int | None = None
    progress_total: int | None = None
    progress_note: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended. Its children are told, or noted to be told later, in the same transaction."""

    has_children: bool


FIRST_ID: Final = UUID(int=0)
LAST_ID: Final = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class Untold:
    """Children of an ended job that are still to be told, in the order of their ids."""

    parent_id: UUID
    first_child_id: UUID = FIRST_ID
    last_child_id: UUID = LAST_ID


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that failed for good, and its callback job, if its class has `on_failed`."""

    has_children: bool
    callback: Wake | None


def fields_of(row: Evidence | Runner) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}
