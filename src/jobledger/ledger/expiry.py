"""The end of jobs that were not started in time. One of the writers of statuses, for its one move."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from uuid6 import uuid7

from jobledger.ledger import failing
from jobledger.ledger.rows import Failed
from jobledger.status import ON_FAILED_TYPE


@dataclass(frozen=True, slots=True)
class Overdue:
    """A job whose time to be started is over."""

    id: UUID
    has_children: bool
    expires_at: datetime


_OVERDUE: Final = sa.text("""
SELECT id, has_children, expires_at FROM job_statuses
 WHERE expires_at <= now() AND attempt = 0 AND finished_at IS NULL
   AND (CAST(:after_at AS timestamptz) IS NULL
        OR (expires_at, id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid)))
 ORDER BY expires_at, id LIMIT :limit
""")


def overdue(connection: Connection, after: Overdue | None, limit: int) -> list[Overdue]:
    """Jobs that have never been started, and must not be any more; those that are over for longest.

    Args:
        after: the last one of the page before.
        limit: at most so many.
    """
    parameters = {"after_at": after and after.expires_at, "after_id": after and str(after.id), "limit": limit}
    return [Overdue(**row._mapping) for row in connection.execute(_OVERDUE, parameters)]


# What somebody else holds is left for the next time: whoever takes many locks and waits for none cannot deadlock.
_EXPIRE: Final = sa.text(f"""
WITH taken AS (
    SELECT j.id AS taken_id, given.callback_id FROM job_statuses j
      JOIN unnest(CAST(:ids AS uuid[]), CAST(:callback_ids AS uuid[])) AS given(job_id, callback_id)
        ON j.id = given.job_id
     WHERE j.status IN ('deferred', 'scheduled', 'queued') AND j.attempt = 0 AND j.expires_at <= now()
       AND (:with_children OR NOT j.has_children)
     ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), moved AS (
    UPDATE job_statuses
       SET status = 'failed', reason = 'expired', held_by = NULL, waiting_parents = 0,
           finished_at = statement_timestamp(), updated_at = statement_timestamp()
      FROM taken
     WHERE id = taken_id AND status IN ('deferred', 'scheduled', 'queued') AND attempt = 0
    RETURNING {failing.COLUMNS}, callback_id
), {failing.CALLBACK}
{failing.FAILED}
""")  # noqa: S608 - put together from constants


def expire(connection: Connection, ids: Sequence[UUID], *, with_children: bool) -> list[Failed]:
    """deferred, scheduled or queued -> failed, for jobs that were not started in time; inserts their `on_failed` jobs.

    There is no attempt to be closed: none has begun.

    Args:
        ids: which; those that were started, changed or are locked meanwhile are left alone.
        with_children: also those that others wait for, which the caller cancels in the same transaction.
    """
    rows = connection.execute(
        _EXPIRE,
        {
            "ids": [str(one) for one in ids],
            "callback_ids": [str(uuid7()) for _ in ids],
            "callback_type": ON_FAILED_TYPE,
            "with_children": with_children,
        },
    )
    return [failing.failed(row) for row in rows]
