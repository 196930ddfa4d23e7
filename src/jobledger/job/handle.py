"""The result of `dispatch()`: a job's id, and its row in the ledger."""

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
    """A dispatched job. Attributes other than `attempts` hold the last read; `refresh()` and `wait()` read the ledger.

    Attributes:
        id: the ledger's id, which is also the id of the RQ job.
        status: the status when last read; None for a duplicate of a job that was pruned.
        is_duplicate: an equal job was dispatched before, and this is that job.
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
        """Read a job that was dispatched before, in this or another process.

        Args:
            job_id: the job's id, as a UUID or as text.
            connections: the servers; None for the process's default.

        Returns:
            A handle with the job's current row.

        Raises:
            OptionError: the id is invalid.
            JobNotFound: there is no such job: never dispatched, rolled back, not yet committed, or pruned.
            LedgerUnavailable: Postgres is away.
        """
        return cls(_checked_id(job_id), None, connections or default_connections()).refresh()

    def __repr__(self) -> str:
        return f"<JobHandle {self.id} {self.status}>"

    @property
    def result(self) -> Any:
        """The result, when last read; None unless the job has completed."""
        return self._row.result if self._row is not None else None

    @property
    def reason(self) -> str | None:
        """The reason why the job failed or was canceled, when last read."""
        return self._row.reason if self._row is not None else None

    @property
    def held_by(self) -> str | None:
        """The pause or limit that holds a queued job, when last read, such as `pause:queue:low`; None if it may run."""
        return self._row.held_by if self._row is not None else None

    @property
    def cancel_requested_at(self) -> datetime | None:
        """The time of a request to cancel the running job, when last read; None without one."""
        return self._row.cancel_requested_at if self._row is not None else None

    @property
    def cancel_reason(self) -> str | None:
        """The requester and the reason of that request."""
        return self._row.cancel_reason if self._row is not None else None

    @property
    def attempts(self) -> list[AttemptRow]:
        """All attempts so far, in order, read from the ledger.

        Raises:
            LedgerUnavailable: Postgres is away.
        """
        with self._connections.transaction(READ_DEADLINE_SECONDS) as connection:
            return queries.attempts(connection, self.id)

    def refresh(self) -> Self:
        """Read the row again.

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
        """Cancel the job, unless it has ended. A running job is interrupted within 15 seconds.

        Its children do as their `on_parent_failure` says: by default they are canceled, too.

        Args:
            reason: reason for people.
            by: name of the requester.
            wait: longest wait for the end of a running job: seconds as a number, timedelta, or a text such as "15s".

        Returns:
            Whether the job was canceled, or will be; if not, the reason.

        Raises:
            OptionError: `wait` is no length of time; nothing was requested.
            LedgerUnavailable: Postgres is away.
        """
        wait_seconds = _patience(wait, "wait")
        answer = control.cancel(self._connections, self.id, by, reason)
        if answer.verdict is Verdict.REQUESTED and wait_seconds > 0:
            answer = control.wait_for_cancel(self._connections, self.id, wait_seconds)
        return self._seen(answer)

    def retry(self, by: str = "the application") -> Answer:
        """Queue a failed or canceled job again, with a fresh budget of attempts.

        Args:
            by: name of the requester, for the log.

        Returns:
            Whether the job was queued; if not, the reason.

        Raises:
            LedgerUnavailable: Postgres is away.
        """
        return self._seen(control.retry(self._connections, self.id, by))

    def _seen(self, answer: Answer) -> Answer:
        if answer.status is not None:
            if answer.status is not self.status or answer.status not in TERMINAL:
                self._row = None  # the row is out of date
            self.status = answer.status
        return answer

    def wait(self, timeout: Duration = 60) -> Self:
        """Wait until the job has ended; `status` tells how it ended.

        Args:
            timeout: longest wait: seconds as a number, timedelta, or a text such as "5m".

        Returns:
            This handle.

        Raises:
            OptionError: `timeout` is no length of time.
            WaitTimeout: the job has not ended in time.
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
            time.sleep(min(left, pause * (1 + random.random())))  # noqa: S311 - many waiters must not poll at once
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
        return self


def _patience(value: Duration, what: str) -> float:
    """Longest wait, in seconds. A number may be infinite, or negative, as the rest of a passed deadline is.

    Raises:
        OptionError: it is no length of time.
    """
    if isinstance(value, float) and not math.isnan(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        return 0.0
    return seconds(value, what)


def _checked_id(job_id: object) -> UUID:
    """The id of a job, parsed if it is text.

    Raises:
        OptionError: it is no id.
    """
    try:
        return job_id if isinstance(job_id, UUID) else UUID(job_id)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):
        raise OptionError(f"job_id={job_id!r:.60} is no job's id: say a UUID, or one as text.") from None


def _standing(row: JobRow | None) -> str:
    """Why a job has not ended, as the end of a sentence."""
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
