"""Jobs for jobledger's own use: the call of `on_failed`, and the warm-up of a worker."""

from typing import Final
from uuid import UUID

from jobledger.domain.retry import Retry
from jobledger.domain.status import ON_FAILED_TYPE, Reason
from jobledger.errors import JobNotFound
from jobledger.job.definition import BaseJob, Failure
from jobledger.ledger import queries
from jobledger.ledger.queries import AttemptRow
from jobledger.registry import registry

NEVER_STARTED: Final = "No attempt has begun: its wake-ups were lost, or failed before they could claim it."
EXPIRED: Final = "No attempt has begun: the job was not started in time."


class OnFailed(BaseJob):
    """Calls `on_failed`. Inserted by the statement that fails a job, and never dispatched."""

    job_type = ON_FAILED_TYPE
    retry = Retry(3)

    def _perform(self, job_id: UUID, attempt: int) -> None:
        connection = self.session.connection()
        row = queries.job(connection, job_id)
        end = queries.last_failure(connection, job_id)
        if row is None or (end is None and attempt > 0):
            raise JobNotFound(f"Job {job_id} was pruned before its on_failed could be called.")
        failure = Failure(
            reason=row.reason or "",
            error_type=end.error_type if end else None,
            message=_message(row.reason, end),
            traceback=end.traceback if end else None,
            attempt=attempt,
        )
        registry.lookup(row.job_type).call_on_failed(self._running.on_behalf_of(row.id, row.payload), failure)


def _message(reason: str | None, end: AttemptRow | None) -> str:
    if reason == Reason.EXPIRED:
        return EXPIRED
    return (end.error_message if end else NEVER_STARTED) or ""


class WarmUp(BaseJob):
    """Never dispatched: see `jobledger.worker.warm_up`."""

    job_type = "jobledger.rehearsal"

    def _perform(self, number: int) -> None:
        pass
