"""Moves of jobs that wait: scheduled -> queued when due; -> failed if expired, or if all wake-ups were lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from uuid6 import uuid7

from jobledger.domain.records import Failed
from jobledger.domain.status import ON_FAILED_TYPE
from jobledger.ledger import wakeups
from jobledger.ledger.moves.finish import CALLBACK, FAILED, FAILED_COLUMNS, failed
from jobledger.ledger.wakeups import Suspect


@dataclass(frozen=True, slots=True)
class Expired:
    """A job that has expired."""

    id: UUID
    has_children: bool
    expires_at: datetime


_EXPIRED: Final = sa.text("""
SELECT id, has_children, expires_at FROM job_statuses
 WHERE expires_at <= now() AND attempt = 0 AND finished_at IS NULL
   AND (CAST(:after_at AS timestamptz) IS NULL
        OR (expires_at, id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid)))
 ORDER BY expires_at, id LIMIT :limit
""")


def expired(connection: Connection, after: Expired | None, limit: int) -> list[Expired]:
    """Jobs that have expired before they were started, the longest expired first.

    Args:
        after: the last job of the page before.
        limit: jobs at most.
    """
    parameters = {"after_at": after and after.expires_at, "after_id": after and str(after.id), "limit": limit}
    return [Expired(**row._mapping) for row in connection.execute(_EXPIRED, parameters)]


# Locked rows are left for the next pass: a statement that takes many locks and waits for none cannot deadlock.
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
    RETURNING {FAILED_COLUMNS}, callback_id
), {CALLBACK}
{FAILED}
""")  # noqa: S608 - put together from constants


def expire(connection: Connection, ids: Sequence[UUID], *, with_children: bool) -> list[Failed]:
    """deferred, scheduled or queued -> failed, for jobs that were not started in time; inserts their `on_failed` jobs.

    There is no attempt to be closed: none has begun.

    Args:
        ids: of the jobs; those that were started or changed meanwhile, or are locked, are left alone.
        with_children: also jobs with children; the caller tells the children in the same transaction.
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
    return [failed(row) for row in rows]


_GIVE_UP: Final = sa.text(f"""
WITH moved AS (
    UPDATE job_statuses
       SET status = 'failed', reason = 'undispatchable',
           finished_at = statement_timestamp(), updated_at = statement_timestamp()
     WHERE id = CAST(:id AS uuid) AND status = 'queued' AND held_by IS NULL
       AND attempt = :attempt AND push_count = :push_count AND pushed_at IS NOT NULL
    RETURNING {FAILED_COLUMNS}, CAST(:callback_id AS uuid) AS callback_id
), counted AS (
    INSERT INTO lost_wakes AS l (job_id, attempt, losses) SELECT id, attempt, 1 FROM moved
    ON CONFLICT (job_id) DO UPDATE SET losses = l.losses + 1, lost_at = now()
), {CALLBACK}
{FAILED}
""")  # noqa: S608 - put together from constants


def give_up(connection: Connection, one: Suspect, callback_id: UUID) -> Failed | None:
    """queued -> failed, because no wake-up of this job has led to a claim; inserts its `on_failed` job.

    There is no attempt to be closed: none has begun.

    Returns:
        None if the job was claimed, pushed, held or ended meanwhile.
    """
    row = connection.execute(
        _GIVE_UP,
        {
            "id": str(one.id),
            "attempt": one.attempt,
            "push_count": one.push_count,
            "callback_id": str(callback_id),
            "callback_type": ON_FAILED_TYPE,
        },
    ).one_or_none()
    return failed(row) if row is not None else None


_PROMOTE_DUE: Final = sa.text(f"""
WITH chosen AS MATERIALIZED (
    SELECT id FROM job_statuses WHERE status = 'scheduled' AND available_at <= now()
     ORDER BY available_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE job_statuses j
   SET status = 'queued', pushed_at = NULL, updated_at = now(),
       queued_at = CASE WHEN {wakeups.KEEPS_ITS_PLACE} THEN coalesce(queued_at, now()) ELSE now() END
  FROM chosen
 WHERE j.id = chosen.id AND j.status = 'scheduled'
""")  # noqa: S608 - put together from constants


def promote_due(connection: Connection, limit: int) -> int:
    """scheduled -> queued for jobs whose time has come, not pushed yet.

    A job whose last attempt crashed or was lost keeps its place in the order, once: see `wakeups.KEEPS_ITS_PLACE`.

    Returns:
        The number of jobs.
    """
    return connection.execute(_PROMOTE_DUE, {"limit": limit}).rowcount
