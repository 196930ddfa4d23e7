"""What came of asking for something, in a word and in words for people."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from jobledger.domain.payload import storable
from jobledger.domain.status import JobStatus

DEADLINE_SECONDS: Final = 10.0
"""Longest transaction; after it Postgres counts as away."""

LOCK_SECONDS: Final = 3.0
"""How long a transaction is waited for that holds a row, such as a dispatch with `after=` in a session."""

BATCH: Final = 500
"""Jobs that one transaction changes, of many."""

LONGEST_REASON: Final = 1000
"""Characters that are kept of who canceled or paused, and why."""


class Verdict(StrEnum):
    """What came of it."""

    DONE = "done"
    REQUESTED = "requested"
    """It runs, and will be ended; if it completes first, it has completed."""
    REFUSED = "refused"
    """The job stands where this cannot be done, or somebody holds its row; nothing was changed."""
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


def refusal(job_id: UUID, status: JobStatus | None, why: dict[JobStatus, str]) -> Answer:
    """Why nothing was done, by where the job stands."""
    if status is None:
        return Answer(job_id, Verdict.NOT_FOUND, None, "there is no such job: never dispatched, rolled back, or pruned")
    return Answer(job_id, Verdict.REFUSED, status, why[status])


def locked(job_id: UUID, status: JobStatus | None) -> Answer:
    """Nothing was done, because another transaction has not ended."""
    words = "another transaction has it locked, or dispatches an equal job: nothing was changed; try again"
    return refusal(job_id, status, dict.fromkeys(JobStatus, words))


def who_and_why(by: str, reason: str) -> str:
    """The reason of a canceled job."""
    return storable(f"canceled by {by}: {reason}" if reason else f"canceled by {by}")[:LONGEST_REASON]
