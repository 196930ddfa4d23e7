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
    """What became of a dispatch.

    Attributes:
        status: of the job; None for one that was dispatched before, and is not in the ledger any more.
        reason: why, if it was canceled at once.
        is_duplicate: the same was dispatched before, and this is that job; no row was written.
        is_replay: it is known by its idempotency key: this very request was sent before.
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
        push_count: pushes of this job so far, this one included; over 1, something older may be in Redis.
        at_front: before all others: it had begun, and stood in line before that.
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
    """From when it may be started: now, or when its delay is over."""
    waiting_parents: int = 0
    canceled_reason: str | None = None
    schedule_id: UUID | None = None
    fire_at_epoch: float | None = None
    idempotency_scope: str | None = None
    idempotency_key: str | None = None
    unique_key: str | None = None
    """No two unfinished jobs have the same."""

    pushed: bool = True
    """If it is queued at once: whether its wake-up is pushed after the commit, rather than by the relay."""

    applied_limits: tuple[AppliedLimit, ...] = ()

    @property
    def held_by(self) -> str | None:
        """What holds it from its first moment on, if it is queued at once: nobody is passed by those who come later."""
        return self.applied_limits[0].held_by if self.applied_limits else None


@dataclass(frozen=True, slots=True)
class Backend:
    """A session of Postgres. A pid is given again, so the start belongs to its identity.

    Attributes:
        pid: of the server's process.
        started_at: `backend_start` of pg_stat_activity.
    """

    pid: int
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Runner:
    """The process that claims; kept with the attempt.

    Attributes:
        worker: RQ's name of the worker.
        isolated: the process was made for this attempt alone, so that its death is the job's.
        token: of this delivery: a claim whose answer was lost is known by it.
        has_session: the session that claims is the one that the job uses, and is noted with the claim. Otherwise, as
            where one session claims for many, an attempt notes its own when it opens it.
        backend: that session, if the process knows it; None to have Postgres say.
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
    """A started attempt, as its claim returned it. `(id, attempt)` is the fence of every later write."""

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
    """It holds slots, which are passed on when it has ended."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is kept of how an attempt ended."""

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
    """A job that has come to its end; its children are told, or noted to be told, in the same transaction."""

    has_children: bool


FIRST_ID: Final = UUID(int=0)
LAST_ID: Final = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class Untold:
    """Children of a job that has ended, by the order of their ids, who have yet to be told."""

    parent_id: UUID
    first_child_id: UUID = FIRST_ID
    last_child_id: UUID = LAST_ID


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that failed for good, and the callback job that this inserted, if its class has one."""

    has_children: bool
    callback: Wake | None


def fields_of(row: Evidence | Runner) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}
