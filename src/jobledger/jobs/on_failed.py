"""The job that calls `on_failed` of another job's class, after that job has failed for good."""

from uuid import UUID

from jobledger.errors import JobNotFound
from jobledger.job import BaseJob, Failure
from jobledger.ledger import queries
from jobledger.registry import registry
from jobledger.retry import Retry
from jobledger.status import ON_FAILED_TYPE


class OnFailed(BaseJob):
    """Inserted by the statement that fails a job whose class has an `on_failed`; never dispatched by anybody."""

    job_type = ON_FAILED_TYPE
    retry = Retry(3)

    def _perform(self, job_id: UUID, attempt: int) -> None:
        connection = self.session.connection()
        row = queries.job(connection, job_id)
        end = queries.last_failure(connection, job_id)
        if row is None or end is None:
            raise JobNotFound(f"Job {job_id} was pruned before its on_failed could be called.")
        failure = Failure(
            reason=row.reason or "",
            error_type=end.error_type,
            message=end.error_message or "",
            traceback=end.traceback,
            attempt=attempt,
        )
        registry.lookup(row.job_type).call_on_failed(self._running.on_behalf_of(row.id, row.payload), failure)
