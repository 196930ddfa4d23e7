"""Cancels and retries of many jobs at once. One of the writers of statuses, for what is simple in that.

What is locked, or needs more than its own row, is left to whoever asks for one job: parents, unique jobs, what runs.
Whoever takes many locks and waits for none cannot deadlock.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.ledger import retrying
from jobledger.status import JobStatus
from jobledger.wake import Wake

_CANCEL: Final = sa.text("""
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


def cancel(connection: Connection, ids: Sequence[UUID], statuses: Collection[JobStatus], reason: str) -> set[UUID]:
    """deferred, scheduled or queued -> canceled, for jobs that nobody waits for.

    Args:
        statuses: only jobs that are in one of these now.

    Returns:
        Which.
    """
    parameters = {"ids": [str(one) for one in ids], "statuses": sorted(statuses), "reason": reason}
    return set(connection.execute(_CANCEL, parameters).scalars())


_RETRY: Final = sa.text(f"""
WITH taken AS (
    SELECT j.id AS taken_id FROM job_statuses j
     WHERE j.id = ANY(CAST(:ids AS uuid[])) AND j.status IN ('failed', 'canceled') AND j.unique_key IS NULL
       AND j.status = ANY(CAST(:statuses AS text[])) AND j.finished_at <= CAST(:until AS timestamptz)
       AND NOT EXISTS (SELECT FROM job_dependencies d JOIN job_statuses p ON p.id = d.parent_id
                        WHERE d.child_id = j.id AND p.finished_at IS NULL)
     ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), moved AS (
    UPDATE job_statuses SET {retrying.SET} FROM taken WHERE id = taken_id AND status IN ('failed', 'canceled')
    RETURNING {retrying.COLUMNS}
), {retrying.FORGOTTEN}
SELECT * FROM moved ORDER BY id
""")  # noqa: S608 - put together from constants


def retry(connection: Connection, ids: Sequence[UUID], statuses: Collection[JobStatus], until: datetime) -> list[Wake]:
    """failed or canceled -> queued, for jobs that ended by then.

    Args:
        statuses: only jobs that are in one of these now.

    Returns:
        What the caller pushes after the commit.
    """
    parameters = {"ids": [str(one) for one in ids], "statuses": sorted(statuses), "until": until}
    rows = connection.execute(_RETRY, parameters)
    return [Wake(**row._mapping) for row in rows]
