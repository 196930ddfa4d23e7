"""Requests of people: retry and cancel, of one job and of many; a request to cancel a running job.

The statements for many jobs leave locked rows, parents, unique jobs and running jobs to those for one. A statement
that takes many locks and waits for none cannot deadlock.

A statement that queues an ended job again has a part `moved`, which sets `QUEUE_AGAIN` and returns `QUEUED_AGAIN`;
then `FORGOTTEN`.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.records import Ended, Wake
from jobledger.domain.status import JobStatus

QUEUE_AGAIN: Final = """
           status = 'queued', reason = NULL, result = NULL, finished_at = NULL, expires_at = NULL,
           cancel_requested_at = NULL, waiting_parents = 0, errors = 0, crashes = 0, losses = 0,
           available_at = statement_timestamp(), queued_at = statement_timestamp(), pushed_at = statement_timestamp(),
           push_count = push_count + 1, updated_at = statement_timestamp()
"""

QUEUED_AGAIN: Final = "id, queue, job_type, title, timeout_seconds, push_count"

FORGOTTEN: Final = """
forgotten AS (
    DELETE FROM lost_wakes l USING moved WHERE l.job_id = moved.id
), granted AS (
    DELETE FROM cancel_requests r USING moved WHERE r.job_id = moved.id
)"""


_CANCEL_MANY: Final = sa.text("""
WITH taken AS (
    SELECT id FROM job_statuses
     WHERE id = ANY(CAST(:ids AS uuid[])) AND status IN ('deferred', 'scheduled', 'queued') AND NOT has_children
       AND status = ANY(CAST(:statuses AS text[]))
     ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE job_statuses j
   SET status = 'canceled', reason = :reason, held_by = NULL,
       finished_at = statement_timestamp(), updated_at = statement_timestamp()
  FROM taken
 WHERE j.id = taken.id AND j.status IN ('deferred', 'scheduled', 'queued') AND NOT j.has_children
RETURNING j.id
""")


def cancel_many(connection: Connection, ids: Sequence[UUID], statuses: Collection[JobStatus], reason: str) -> set[UUID]:
    """deferred, scheduled or queued -> canceled, for jobs without children.

    Args:
        statuses: only jobs that are in one of these now.

    Returns:
        The ids of the canceled jobs.
    """
    parameters = {"ids": [str(one) for one in ids], "statuses": sorted(statuses), "reason": reason}
    return set(connection.execute(_CANCEL_MANY, parameters).scalars())


_RETRY_MANY: Final = sa.text(f"""
WITH taken AS (
    SELECT j.id AS taken_id FROM job_statuses j
     WHERE j.id = ANY(CAST(:ids AS uuid[])) AND j.status IN ('failed', 'canceled') AND j.unique_key IS NULL
       AND j.status = ANY(CAST(:statuses AS text[])) AND j.finished_at <= CAST(:until AS timestamptz)
       AND NOT EXISTS (SELECT FROM job_dependencies d JOIN job_statuses p ON p.id = d.parent_id
                        WHERE d.child_id = j.id AND p.finished_at IS NULL)
       AND NOT EXISTS (SELECT FROM job_propagations n WHERE n.parent_id = j.id)
     ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), moved AS (
    UPDATE job_statuses SET {QUEUE_AGAIN} FROM taken WHERE id = taken_id AND status IN ('failed', 'canceled')
    RETURNING {QUEUED_AGAIN}
), {FORGOTTEN}
SELECT * FROM moved ORDER BY id
""")  # noqa: S608 - put together from constants


def retry_many(
    connection: Connection, ids: Sequence[UUID], statuses: Collection[JobStatus], until: datetime
) -> list[Wake]:
    """failed or canceled -> queued, for jobs that ended by `until`, and whose children were all told.

    Args:
        statuses: only jobs that are in one of these now.

    Returns:
        The wake-ups that the caller pushes after the commit.
    """
    parameters = {"ids": [str(one) for one in ids], "statuses": sorted(statuses), "until": until}
    rows = connection.execute(_RETRY_MANY, parameters)
    return [Wake(**row._mapping) for row in rows]


# The first request is kept. One that older code has left behind is overwritten.
_REQUEST_CANCEL: Final = sa.text("""
WITH asked AS (
    UPDATE job_statuses SET cancel_requested_at = coalesce(cancel_requested_at, statement_timestamp())
     WHERE id = CAST(:id AS uuid) AND status = 'started'
    RETURNING id, cancel_requested_at
), kept AS (
    INSERT INTO cancel_requests AS r (job_id, requested_at, reason)
    SELECT id, cancel_requested_at, CAST(:reason AS text) FROM asked
    ON CONFLICT (job_id) DO UPDATE SET requested_at = excluded.requested_at, reason = excluded.reason
     WHERE r.requested_at <> excluded.requested_at
)
SELECT id FROM asked
""")


def request_cancel(connection: Connection, job_id: UUID, reason: str) -> bool:
    """Ask that a running job be canceled.

    Args:
        reason: the person, and why.

    Returns:
        False if the job does not run.
    """
    return connection.execute(_REQUEST_CANCEL, {"id": str(job_id), "reason": reason}).one_or_none() is not None


_RUN_DEFERRED: Final = sa.text("""
UPDATE job_statuses
   SET status = 'queued', waiting_parents = 0, expires_at = NULL, available_at = statement_timestamp(),
       queued_at = statement_timestamp(), pushed_at = statement_timestamp(), push_count = push_count + 1,
       updated_at = statement_timestamp()
 WHERE id = CAST(:id AS uuid) AND status = 'deferred'
RETURNING id, queue, job_type, title, timeout_seconds, push_count
""")


def run_deferred(connection: Connection, job_id: UUID) -> Wake | None:
    """deferred -> queued, at a person's request: the job does not wait for its parents any more.

    Returns:
        The wake-up that the caller pushes after the commit; None if the job is not deferred.
    """
    row = connection.execute(_RUN_DEFERRED, {"id": str(job_id)}).one_or_none()
    return Wake(**row._mapping) if row is not None else None


_RETRY: Final = sa.text(f"""
WITH moved AS (
    UPDATE job_statuses SET {QUEUE_AGAIN} WHERE id = CAST(:id AS uuid) AND status IN ('failed', 'canceled')
       AND NOT EXISTS (SELECT FROM job_propagations n WHERE n.parent_id = job_statuses.id)
    RETURNING {QUEUED_AGAIN}
), {FORGOTTEN}
SELECT * FROM moved
""")  # noqa: S608 - put together from constants


def retry(connection: Connection, job_id: UUID) -> Wake | None:
    """failed or canceled -> queued, at a person's request: the budgets start anew, the fence stays.

    The job waits for no time and no parents, and does not expire: a retry means now.

    Returns:
        The wake-up that the caller pushes after the commit; None if the job is neither failed nor canceled, or has
        children that have yet to be told of its end.
    """
    row = connection.execute(_RETRY, {"id": str(job_id)}).one_or_none()
    return Wake(**row._mapping) if row is not None else None


_CANCEL: Final = sa.text("""
UPDATE job_statuses
   SET status = 'canceled', reason = :reason, held_by = NULL,
       finished_at = statement_timestamp(), updated_at = statement_timestamp()
 WHERE id = CAST(:id AS uuid) AND status IN ('deferred', 'scheduled', 'queued')
RETURNING has_children
""")


def cancel(connection: Connection, job_id: UUID, reason: str) -> Ended | None:
    """deferred, scheduled or queued -> canceled, at a person's request.

    A wake-up that is in Redis stays there; the worker that takes it finds nothing to claim.

    Returns:
        None if the job has started or ended.
    """
    row = connection.execute(_CANCEL, {"id": str(job_id), "reason": reason}).one_or_none()
    return Ended(row.has_children) if row is not None else None
