"""What passes between the steps of a dispatch: what the ledger accepted, and what a push needs to know."""

from dataclasses import dataclass
from uuid import UUID

from jobledger.status import JobStatus


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
