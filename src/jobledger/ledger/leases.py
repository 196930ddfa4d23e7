"""Signs of life of running attempts, and who has stopped giving them.

The lease stands in the attempt's row, in no index: renewing it is one heap-only update.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True, slots=True)
class Progress:
    """What a running job says of itself; None leaves what stands."""

    progress_done: int | None = None
    progress_total: int | None = None
    progress_note: str | None = None
    log_tail: str | None = None


_RENEW: Final = sa.text("""
UPDATE job_attempts a
   SET lease_expires_at = now() + make_interval(secs => :lease_seconds),
       progress_done = coalesce(:progress_done, a.progress_done),
       progress_total = coalesce(:progress_total, a.progress_total),
       progress_note = coalesce(:progress_note, a.progress_note),
       log_tail = coalesce(:log_tail, a.log_tail)
  FROM job_statuses j
 WHERE a.job_id = CAST(:id AS uuid) AND a.number = :attempt AND a.outcome IS NULL
   AND j.id = a.job_id AND j.attempt = a.number AND j.status = 'started'
RETURNING j.cancel_requested_at
""")


def renew(connection: Connection, job_id: UUID, attempt: int, lease_seconds: float, progress: Progress) -> bool:
    """Renew the lease of a running attempt and write down its progress.

    Returns:
        False if the attempt was fenced out: it must end itself and write nothing.
    """
    row = connection.execute(
        _RENEW, {"id": str(job_id), "attempt": attempt, "lease_seconds": lease_seconds, **asdict(progress)}
    ).one_or_none()
    return row is not None


@dataclass(frozen=True, slots=True)
class Suspect:
    """A started job that may have nobody left who runs it."""

    id: UUID
    attempt: int
    job_type: str
    queue: str
    worker: str
    backend_pid: int
    backend_started_at: datetime | None
    lease_stale: bool
    session_gone: bool
    max_attempts: int
    errors: int
    crashes: int
    losses: int


# Sessions are matched by pid *and* start, because the system gives a pid again. The start is null for sessions of
# another role: then the pid alone must do.
_SUSPECTS: Final = sa.text("""
SELECT * FROM (
    SELECT j.id, j.attempt, j.job_type, j.queue, a.worker, a.backend_pid, a.backend_started_at,
           a.lease_expires_at < now() AS lease_stale,
           NOT EXISTS (SELECT FROM pg_stat_activity s WHERE s.pid = a.backend_pid
                       AND (s.backend_start IS NULL OR s.backend_start = a.backend_started_at)) AS session_gone,
           j.max_attempts, j.errors, j.crashes, j.losses, a.lease_expires_at
      FROM job_statuses j JOIN job_attempts a ON a.job_id = j.id AND a.number = j.attempt
     WHERE j.status = 'started'
) AS started
 WHERE lease_stale OR session_gone
 ORDER BY lease_expires_at LIMIT :limit
""")


def suspects(connection: Connection, limit: int) -> list[Suspect]:
    """Started jobs whose lease is stale, or whose Postgres session is gone."""
    rows = connection.execute(_SUSPECTS, {"limit": limit})
    return [Suspect(**{name: row._mapping[name] for name in Suspect.__slots__}) for row in rows]


_END_BACKEND: Final = sa.text("""
SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity
 WHERE pid = :pid AND pid <> pg_backend_pid() AND backend_start = CAST(:started_at AS timestamptz)
""")


def end_backend(connection: Connection, pid: int, started_at: datetime | None) -> None:
    """End the Postgres session of an attempt that is being fenced out, and wait for it, at most 2 s.

    A run that only slept keeps its locks for as long as it sleeps; its session's end releases them. If the session
    outlives the wait, the fence still keeps it from committing.
    """
    connection.execute(_END_BACKEND, {"pid": pid, "started_at": started_at})


_SWEPT: Final = sa.text("""
INSERT INTO sweeps AS s (name, swept_by) VALUES (:name, :by)
ON CONFLICT (name) DO UPDATE
   SET resumed_at = CASE WHEN now() - s.swept_at > make_interval(secs => :gap_seconds) THEN now()
                         ELSE s.resumed_at END,
       swept_at = greatest(s.swept_at, now()), swept_by = :by
RETURNING now() - resumed_at > make_interval(secs => :lease_seconds)
      AND now() - pg_postmaster_start_time() > make_interval(secs => :lease_seconds) AS settled
""")


def record_sweep(connection: Connection, name: str, by: str, gap_seconds: float, lease_seconds: float) -> bool:
    """Record that a sweep is happening.

    Returns:
        Whether somebody has swept without a longer gap, and Postgres has been up, for all of the last lease. If
        not, running jobs may have been unable to renew their leases, and a stale lease proves nothing.
    """
    return bool(
        connection.execute(
            _SWEPT, {"name": name, "by": by, "gap_seconds": gap_seconds, "lease_seconds": lease_seconds}
        ).scalar_one()
    )
