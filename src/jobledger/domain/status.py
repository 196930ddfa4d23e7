"""The vocabulary of the ledger: statuses, the table of legal moves, reasons, and outcomes of attempts.

Each status names the steps that move a job in and out. `ledger.moves` is the only writer; each function there makes
one or more of the `MOVES`.
"""

from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    """The status of a job. RQ's word where RQ has one."""

    DEFERRED = "deferred"
    """Waits for its parents. In: dispatch. Out: the end of the last parent, expire; a person: cancel, retry if held."""
    SCHEDULED = "scheduled"
    """Waits for a time (delay, backoff). In: dispatch, finish, reaper. Out: relay, expire; a person: cancel."""
    QUEUED = "queued"
    """May run now. In: dispatch, relay, finish; a person: retry. Out: claim, reconciler, expire; a person: cancel."""
    STARTED = "started"
    """An attempt holds the lease. In: claim. Out: finish, reaper."""
    COMPLETED = "completed"
    """Terminal; the result is kept. In: finish. Out: none."""
    FAILED = "failed"
    """Terminal, with a reason: the dead-letter set. In: finish, reaper, reconciler, expire. Out: a person: retry."""
    CANCELED = "canceled"
    """Terminal, with who and why. In: dispatch, finish, reaper, the end of a parent; a person. Out: a person: retry."""


TERMINAL: Final = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED})
UNFINISHED: Final = frozenset(JobStatus) - TERMINAL

MOVES: Final[frozenset[tuple[JobStatus | None, JobStatus]]] = frozenset(
    {
        # dispatch
        (None, JobStatus.QUEUED),
        (None, JobStatus.SCHEDULED),
        (None, JobStatus.DEFERRED),
        (None, JobStatus.CANCELED),  # a parent had already failed
        # the end of the last parent
        (JobStatus.DEFERRED, JobStatus.QUEUED),
        (JobStatus.DEFERRED, JobStatus.SCHEDULED),
        (JobStatus.DEFERRED, JobStatus.CANCELED),
        # relay
        (JobStatus.SCHEDULED, JobStatus.QUEUED),
        # claim
        (JobStatus.QUEUED, JobStatus.STARTED),
        # finish and reaper
        (JobStatus.STARTED, JobStatus.COMPLETED),
        (JobStatus.STARTED, JobStatus.SCHEDULED),
        (JobStatus.STARTED, JobStatus.QUEUED),  # handed back
        (JobStatus.STARTED, JobStatus.FAILED),
        (JobStatus.STARTED, JobStatus.CANCELED),  # the job canceled itself, or a person did
        # the reconciler: no wake-up led to a claim
        (JobStatus.QUEUED, JobStatus.FAILED),  # or expire: it was not started in time
        # a dispatch that puts an equal job off
        (JobStatus.QUEUED, JobStatus.SCHEDULED),
        # expire
        (JobStatus.DEFERRED, JobStatus.FAILED),
        (JobStatus.SCHEDULED, JobStatus.FAILED),
        # a person: cancel (and see above: deferred)
        (JobStatus.SCHEDULED, JobStatus.CANCELED),
        (JobStatus.QUEUED, JobStatus.CANCELED),
        # a person: retry
        (JobStatus.FAILED, JobStatus.QUEUED),
        (JobStatus.CANCELED, JobStatus.QUEUED),
    }
)
"""Every legal move of a status; `None` is a job that does not exist yet."""


class Reason(StrEnum):
    """Why a job failed for good."""

    ERROR = "error"
    """`_perform` raised, and no retry was left."""
    TIMEOUT = "timeout"
    """The last attempt exceeded its timeout."""
    CRASHED = "crashed"
    """Its process, which ran this job alone, died too often."""
    LOST = "lost"
    """Its worker, host or connection went away too often."""
    EXPIRED = "expired"
    """It was not started in time."""
    UNDISPATCHABLE = "undispatchable"
    """No worker knew its type, or no wake-up could be delivered."""


class Outcome(StrEnum):
    """How one attempt ended; `job_attempts.outcome`."""

    COMPLETED = "completed"
    ERROR = "error"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    LOST = "lost"
    HANDED_BACK = "handed_back"
    """Its worker was asked to stop, and the job did not end in the grace period."""
    SNOOZED = "snoozed"
    """The job asked to run again later: `raise Snooze(…)`."""
    CANCELED = "canceled"
    """The job canceled itself by `raise Cancel(…)`, or was interrupted because a person canceled it."""
    GAVE_UP = "gave_up"
    """The job said that no retry would help: `raise GiveUp(…)`."""
    UNKNOWN_TYPE = "unknown_type"
    """The worker did not know the job's type (an older deployment): another worker may."""


class OnParentFailure(StrEnum):
    """The fate of a job when one of its parents fails or is canceled."""

    CANCEL = "cancel"
    """It is canceled, too."""
    RUN = "run"
    """It runs anyway: it waits for the end of its parents, not for their success."""
    HOLD = "hold"
    """It goes on waiting until the parent is retried and completes, or a person runs or cancels the job."""


class PauseKind(StrEnum):
    """The kinds of pauses: of all jobs of a queue, or of all jobs of a type."""

    QUEUE = "queue"
    TYPE = "type"


class SlotKind(StrEnum):
    """The kinds of slots. A transaction that locks several locks them in this order."""

    LIMIT = "limit"
    RATE = "rate"


ON_FAILED_TYPE: Final = "jobledger.on_failed"
"""Type of the job that calls `on_failed`. The statement that fails a job also inserts it, so the callback survives a
crash of the process."""
