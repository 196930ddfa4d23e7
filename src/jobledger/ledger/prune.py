"""Deletes of old rows; the only deletes there are."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

_PRUNE: Final = sa.text("""
WITH gone AS (
DELETE FROM job_statuses
 WHERE id IN (SELECT id FROM job_statuses
               WHERE finished_at < now() - make_interval(secs => least(CAST(:failed_seconds AS float8),
                                                                       CAST(:completed_seconds AS float8)))
                 AND finished_at < now() - make_interval(secs => CASE status WHEN 'failed'
                     THEN CAST(:failed_seconds AS float8) ELSE CAST(:completed_seconds AS float8) END)
                 AND NOT (has_children AND status <> 'completed' AND EXISTS (
                     SELECT FROM job_dependencies d JOIN job_statuses c ON c.id = d.child_id
                      WHERE d.parent_id = job_statuses.id AND d.on_parent_failure = 'hold' AND c.status = 'deferred'))
               ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED)
RETURNING id
), unlimited AS (
DELETE FROM job_limits l USING gone WHERE l.job_id = gone.id
)
SELECT count(*) FROM gone
""")


def prune_finished(connection: Connection, completed_seconds: float, failed_seconds: float, limit: int) -> int:
    """Delete jobs that ended long ago, oldest first, with their attempts and limits; none that another job is held for.

    Args:
        completed_seconds: how long completed and canceled jobs are kept.
        failed_seconds: how long failed jobs are kept.
        limit: rows at most, so that no delete holds locks for long.

    Returns:
        How many jobs were deleted.
    """
    kept = {"completed_seconds": completed_seconds, "failed_seconds": failed_seconds}
    return int(connection.execute(_PRUNE, {**kept, "limit": limit}).scalar_one())


_PRUNE_TICKS: Final = sa.text("""
DELETE FROM schedule_ticks
 WHERE (schedule_id, fire_at) IN (SELECT schedule_id, fire_at FROM schedule_ticks
                                   WHERE created_at < now() - make_interval(secs => :seconds) AND outcome <> 'waiting'
                                   ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def prune_ticks(connection: Connection, seconds: float, limit: int) -> int:
    """Forget fire times that were decided long ago; a backfill over them would fire them again.

    Returns:
        How many were deleted.
    """
    return connection.execute(_PRUNE_TICKS, {"seconds": seconds, "limit": limit}).rowcount
