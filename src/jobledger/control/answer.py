"""The answer to a request about a job: a verdict, and a message for people."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from jobledger.domain.payload import storable
from jobledger.domain.status import JobStatus

DEADLINE_SECONDS: Final = 10.0
"""Longest transaction; after it Postgres counts as away."""

LOCK_SECONDS: Final = 3.0
"""Longest wait for a transaction that has locked a row, such as a dispatch with `after=` in a session."""

BATCH: Final = 500
"""Most jobs that one transaction of a request about many changes."""

LONGEST_REASON: Final = 1000
"""Most characters that are stored of the requester and the reason."""


class Verdict(StrEnum):
    """The outcome of a request."""

    DONE = "done"
    REQUESTED = "requested"
    """The job runs, and will be interrupted, unless it completes first."""
    REFUSED = "refused"
    """The job's status does not allow it, or another transaction has locked its row; nothing was changed."""
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request about one job.

    Attributes:
        status: the job's status now; None if there is no such job.
        message: text for people: the change, or the reason why nothing was changed.
    """

    job_id: UUID
    verdict: Verdict
    status: JobStatus | None
    message: str

    @property
    def is_done(self) -> bool:
        """Whether the request was carried out."""
        return self.verdict is Verdict.DONE

    @property
    def is_granted(self) -> bool:
        """Whether the request was carried out, or will be."""
        return self.verdict in (Verdict.DONE, Verdict.REQUESTED)


def refusal(job_id: UUID, status: JobStatus | None, why: dict[JobStatus, str]) -> Answer:
    """The answer to a request that the job's status does not allow."""
    if status is None:
        return Answer(job_id, Verdict.NOT_FOUND, None, "there is no such job: never dispatched, rolled back, or pruned")
    return Answer(job_id, Verdict.REFUSED, status, why[status])


def locked(job_id: UUID, status: JobStatus | None) -> Answer:
    """Nothing was done, because another transaction has not ended."""
    words = "another transaction has it locked, or dispatches an equal job: nothing was changed; try again"
    return refusal(job_id, status, dict.fromkeys(JobStatus, words))


def who_and_why(by: str, reason: str) -> str:
    """The stored reason of a canceled job: requester and reason."""
    return storable(f"canceled by {by}: {reason}" if reason else f"canceled by {by}")[:LONGEST_REASON]
