"""What `dispatch()` gives back: a job's id, and what the ledger says of it."""

import math
import random
import time
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

from jobledger import control
from jobledger.connections.default import Connections, default_connections
from jobledger.control import Answer, Verdict
from jobledger.domain.options import Duration, seconds
from jobledger.domain.status import TERMINAL, JobStatus
from jobledger.errors import JobNotFound, OptionError, WaitTimeout
from jobledger.ledger import queries
from jobledger.ledger.queries import AttemptRow, JobRow

FIRST_LOOK_SECONDS: Final = 0.02
LONGEST_PAUSE_SECONDS: Final = 1.0
READ_DEADLINE_SECONDS: Final = 5.0


class JobHandle:
    """A dispatched job. Reading an attribute is free; `refresh()` and `wait()` ask the ledger.

    Attributes:
        id: the ledger's id, which is also the id of the RQ job.
        status: the status at the last look; None for a duplicate of a job that was pruned.
        is_duplicate: the same was dispatched before, and this is that job.
    """

    def __init__(
        self, job_id: UUID, status: JobStatus | None, connections: Connections, *, is_duplicate: bool = False
    ) -> None:
        self.id = job_id
        self.status = status
        self.is_duplicate = is_duplicate
        self._connections = connections
        self._row: JobRow | None = None

    @classmethod
    def fetch(cls, job_id: UUID | str, connections: Connections | None = None) -> Self:
        """The handle of a job that was dispatched before, here or elsewhere, with what the ledger says of it now.

        Args:
            job_id: of the job, as a UUID or as text.
            connections: where its ledger is; None for the process's default.

        Raises:
            OptionError: that is no id.
            JobNotFound: there is no such job: never dispatched, rolled back, not yet committed, or pruned.
            LedgerUnavailable: Postgres is away.
        """
        return cls(_checked_id(job_id), None, connections or default_connections()).refresh()

    def __repr__(self) -> str:
        return f"<JobHandle {self.id} {self.status}>"

    @property
    def result(self) -> Any:
        """The result at the last look; None as long as the job has not completed."""
        return self._row.result if self._row is not None else None

    @property
    def reason(self) -> str | None:
        """Why the job failed or was canceled, at the last look."""
        return self._row.reason if self._row is not None else None

    @property
    def held_by(self) -> str | None:
        """What a queued job waits for, at the last look, such as `pause:queue:low`; None if it may run."""
        return self._row.held_by if self._row is not None else None

    @property
    def cancel_requested_at(self) -> datetime | None:
        """Since when somebody wants this job canceled while it runs, at the last look; None if nobody does."""
        return self._row.cancel_requested_at if self._row is not None else None

    @property
    def cancel_reason(self) -> str | None:
        """Who wants that, and why."""
        return self._row.cancel_reason if self._row is not None else None

    @property
    def attempts(self) -> list[AttemptRow]:
        """Every attempt so far, in order, read now.

        Raises:
            LedgerUnavailable: Postgres is away.
        """
        with self._connections.transaction(READ_DEADLINE_SECONDS) as connection:
            return queries.attempts(connection, self.id)

    def refresh(self) -> Self:
        """Read the row anew.

        Raises:
            JobNotFound: its transaction was rolled back or has not committed, or the job was pruned.
            LedgerUnavailable: Postgres is away.
        """
        with self._connections.transaction(READ_DEADLINE_SECONDS) as connection:
            row = queries.job(connection, self.id)
        if row is None:
            raise JobNotFound(f"Job {self.id} is not in the ledger: rolled back, not yet committed, or pruned.")
        self._row, self.status = row, row.status
        return self

    def cancel(self, reason: str = "", by: str = "the application", wait: Duration = 0.0) -> Answer:
        """Cancel the job, unless it has ended. One that runs is ended within 15 seconds.

        What waits for it does as its `on_parent_failure` says: by default it is canceled, too.

        Args:
            reason: why, for people.
            by: who wants it.
            wait: how long to wait for the end of a job that runs: seconds, timedelta, or a text such as "15s".

        Returns:
            Whether it was canceled, or will be; if not, why not.

        Raises:
            OptionError: that is no length of time; nothing was asked for.
            LedgerUnavailable: Postgres is away.
        """
        wait_seconds = _patience(wait, "wait")
        answer = control.cancel(self._connections, self.id, by, reason)
        if answer.verdict is Verdict.REQUESTED and wait_seconds > 0:
            answer = control.wait_for_cancel(self._connections, self.id, wait_seconds)
        return self._seen(answer)

    def retry(self, by: str = "the application") -> Answer:
        """Run a failed or canceled job again, with all of its attempts before it.

        Returns:
            Whether it is queued now; if not, why not.

        Raises:
            LedgerUnavailable: Postgres is away.
        """
        return self._seen(control.retry(self._connections, self.id, by))

    def _seen(self, answer: Answer) -> Answer:
        if answer.status is not None:
            if answer.status is not self.status or answer.status not in TERMINAL:
                self._row = None  # what is known of it is out of date
            self.status = answer.status
        return answer

    def wait(self, timeout: Duration = 60) -> Self:
        """Wait until the job has ended, however it ended: look at `status`.

        Args:
            timeout: the longest to wait: seconds, timedelta, or a text such as "5m".

        Raises:
            OptionError: that is no length of time.
            WaitTimeout: the job has not ended by then.
            JobNotFound: see `refresh`.
            LedgerUnavailable: Postgres is away.
        """
        patience = _patience(timeout, "timeout")
        deadline = time.monotonic() + patience
        pause = FIRST_LOOK_SECONDS
        while not (row := self.refresh()._row) or not row.is_terminal:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(f"Job {self.id} is still {self.status} after {patience:g} s{_standing(row)}.")
            time.sleep(min(left, pause * (1 + random.random())))  # noqa: S311 - many waiters must not look at once
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
        return self


def _patience(value: Duration, what: str) -> float:
    """How long to wait, in seconds. A number may be below 0, as what is left of a deadline is, or infinite.

    Raises:
        OptionError: it is no length of time.
    """
    if isinstance(value, float) and not math.isnan(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return 0.0
    return seconds(value, what)


def _checked_id(job_id: object) -> UUID:
    """The id of a job, also from text.

    Raises:
        OptionError: it is none.
    """
    try:
        return job_id if isinstance(job_id, UUID) else UUID(job_id)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):
        raise OptionError(f"job_id={job_id!r:.60} is no job's id: say a UUID, or one as text.") from None


def _standing(row: JobRow | None) -> str:
    """What is known of why a job has not ended, as the end of a sentence."""
    if row is None:
        return ""
    if row.held_by is not None:
        return f", held by {row.held_by}"
    if row.cancel_reason is not None:
        return f", to be {row.cancel_reason}"
    if row.status is JobStatus.DEFERRED:
        return f"; it waits for {row.waiting_parents} of its parents"
    if row.status is JobStatus.SCHEDULED:
        return f"; it waits until {row.available_at.isoformat(timespec='seconds')}"
    return ""
