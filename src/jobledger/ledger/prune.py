"""Deletes of old rows."""

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
                 AND NOT (has_children AND EXISTS (
                     SELECT FROM job_propagations n WHERE n.parent_id = job_statuses.id))
               ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED)
RETURNING id
), unlimited AS (
DELETE FROM job_limits l USING gone WHERE l.job_id = gone.id
)
SELECT count(*) FROM gone
""")


def prune_finished(connection: Connection, completed_seconds: float, failed_seconds: float, limit: int) -> int:
    """Delete jobs that ended long ago, oldest first, with their attempts and limits. A job stays while a child that is
    kept by `on_parent_failure="hold"` waits for it, or a child has yet to be told of its end.

    Args:
        completed_seconds: how long completed and canceled jobs are kept.
        failed_seconds: how long failed jobs are kept.
        limit: rows at most, so that no delete holds locks for long.

    Returns:
        The number of jobs deleted.
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
    """Delete ticks that were decided long ago; a backfill over their fire times would fire them again.

    Returns:
        The number of ticks deleted.
    """
    return connection.execute(_PRUNE_TICKS, {"seconds": seconds, "limit": limit}).rowcount


_PRUNE_CANCEL_REQUESTS: Final = sa.text("""
DELETE FROM cancel_requests
 WHERE job_id IN (SELECT r.job_id FROM cancel_requests r
                   WHERE r.requested_at < now() - make_interval(secs => :seconds)
                     AND NOT EXISTS (SELECT FROM job_statuses j WHERE j.id = r.job_id AND j.finished_at IS NULL)
                   ORDER BY r.requested_at LIMIT :limit FOR UPDATE OF r SKIP LOCKED)
""")


def prune_cancel_requests(connection: Connection, seconds: float, limit: int) -> int:
    """Delete old cancel requests whose jobs have ended.

    Returns:
        The number of requests deleted.
    """
    return connection.execute(_PRUNE_CANCEL_REQUESTS, {"seconds": seconds, "limit": limit}).rowcount


# A job that has waited for longer keeps its key: otherwise a repeated dispatch would make a second job.
_PRUNE_IDEMPOTENCY_KEYS: Final = sa.text("""
DELETE FROM idempotency_keys
 WHERE (scope, key) IN (SELECT scope, key FROM idempotency_keys k
                         WHERE created_at < now() - make_interval(secs => :seconds)
                           AND NOT EXISTS (SELECT FROM job_statuses j WHERE j.id = k.job_id AND j.finished_at IS NULL)
                         ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def prune_idempotency_keys(connection: Connection, seconds: float, limit: int) -> int:
    """Delete keys that were taken long ago and whose job has ended.

    Returns:
        The number of keys deleted.
    """
    return connection.execute(_PRUNE_IDEMPOTENCY_KEYS, {"seconds": seconds, "limit": limit}).rowcount


_PRUNE_LOST_WAKES: Final = sa.text("""
DELETE FROM lost_wakes
 WHERE job_id IN (SELECT job_id FROM lost_wakes WHERE lost_at < now() - make_interval(secs => :seconds)
                   ORDER BY lost_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def prune_lost_wakes(connection: Connection, seconds: float, limit: int) -> int:
    """Delete old counts of lost wake-ups.

    Returns:
        The number of counts deleted.
    """
    return connection.execute(_PRUNE_LOST_WAKES, {"seconds": seconds, "limit": limit}).rowcount


_PRUNE_LIMIT_KEYS: Final = sa.text("""
DELETE FROM limit_keys
 WHERE (kind, key) IN (SELECT k.kind, k.key FROM limit_keys k
                        WHERE k.used_at < now() - make_interval(secs => greatest(k.window_seconds, :seconds))
                          AND k.taken = 0
                          AND NOT EXISTS (SELECT FROM job_statuses j WHERE j.held_by = k.kind || ':' || k.key)
                        ORDER BY k.used_at LIMIT :limit FOR UPDATE OF k SKIP LOCKED)
""")


def prune_limit_keys(connection: Connection, seconds: float, limit: int) -> int:
    """Delete keys of limits that were not used for long.

    Returns:
        The number of keys deleted.
    """
    return connection.execute(_PRUNE_LIMIT_KEYS, {"seconds": seconds, "limit": limit}).rowcount


_PRUNE_UNIQUE_WINDOWS: Final = sa.text("""
DELETE FROM unique_windows
 WHERE unique_key IN (SELECT unique_key FROM unique_windows WHERE until < now()
                       ORDER BY until LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def prune_unique_windows(connection: Connection, limit: int) -> int:
    """Delete windows that are over.

    Returns:
        The number of windows deleted.
    """
    return connection.execute(_PRUNE_UNIQUE_WINDOWS, {"limit": limit}).rowcount
