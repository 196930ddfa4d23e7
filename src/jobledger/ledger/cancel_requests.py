"""Requests to cancel jobs that run. No status moves here: whoever ends the attempt sees the request.

What the row of the job says, `cancel_requested_at`, is what the ends of attempts are guarded by; here is who and why.
"""

from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

# The first request stands. One that an older version of the code has left behind does not.
_REQUEST: Final = sa.text("""
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


def request(connection: Connection, job_id: UUID, reason: str) -> bool:
    """Ask that a running job be canceled.

    Args:
        reason: who and why.

    Returns:
        False if it does not run.
    """
    return connection.execute(_REQUEST, {"id": str(job_id), "reason": reason}).one_or_none() is not None


_FIND: Final = sa.text("""
SELECT r.reason FROM job_statuses j JOIN cancel_requests r ON r.job_id = j.id
 WHERE j.id = CAST(:id AS uuid) AND j.attempt = :attempt AND j.status = 'started' AND j.cancel_requested_at IS NOT NULL
""")


def find(connection: Connection, job_id: UUID, attempt: int) -> str | None:
    """Who wants this running attempt canceled, and why; None if nobody does."""
    reason = connection.execute(_FIND, {"id": str(job_id), "attempt": attempt}).scalar_one_or_none()
    return str(reason) if reason is not None else None


_PRUNE: Final = sa.text("""
DELETE FROM cancel_requests
 WHERE job_id IN (SELECT r.job_id FROM cancel_requests r
                   WHERE r.requested_at < now() - make_interval(secs => :seconds)
                     AND NOT EXISTS (SELECT FROM job_statuses j WHERE j.id = r.job_id AND j.finished_at IS NULL)
                   ORDER BY r.requested_at LIMIT :limit FOR UPDATE OF r SKIP LOCKED)
""")


def prune(connection: Connection, seconds: float, limit: int) -> int:
    """Forget requests of long ago whose jobs have ended.

    Returns:
        How many were forgotten.
    """
    return connection.execute(_PRUNE, {"seconds": seconds, "limit": limit}).rowcount
