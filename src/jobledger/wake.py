"""What passes between the steps of a dispatch: what the ledger accepted, and what a push needs to know."""

from dataclasses import dataclass
from uuid import UUID

from jobledger.status import JobStatus


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a new row; `reason` says why, if it was canceled at once."""

    id: UUID
    status: JobStatus
    reason: str | None


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
