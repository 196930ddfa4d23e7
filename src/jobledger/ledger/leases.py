"""Signs of life of running attempts, and who has stopped giving them.

The lease stands in the attempt's row, in no index: renewing it is one heap-only update.
"""

from dataclasses import asdict, dataclass
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
RETURNING a.number
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
class Running:
    """A started job, with what deciding about its end needs."""

    id: UUID
    attempt: int
    worker: str
    lease_stale: bool
    cancel_overdue: bool
    """It was to be canceled long enough ago for its own process to have ended it."""
    max_attempts: int
    errors: int
    crashes: int
    losses: int


_RUNNING: Final = sa.text("""
SELECT j.id, j.attempt, a.worker, a.lease_expires_at < now() AS lease_stale,
       coalesce(j.cancel_requested_at < now() - make_interval(secs => :cancel_seconds), false) AS cancel_overdue,
       j.max_attempts, j.errors, j.crashes, j.losses
  FROM job_statuses j JOIN job_attempts a ON a.job_id = j.id AND a.number = j.attempt
 WHERE j.status = 'started' ORDER BY a.lease_expires_at LIMIT :limit
""")


def running(connection: Connection, cancel_seconds: float, limit: int) -> list[Running]:
    """The started jobs, stalest lease first.

    Args:
        cancel_seconds: how long a request to cancel leaves to the process that runs the job.
        limit: at most so many.
    """
    rows = connection.execute(_RUNNING, {"cancel_seconds": cancel_seconds, "limit": limit})
    return [Running(**row._mapping) for row in rows]


# A pid is given again, but never to a session that started before the attempt that recorded it. The start is null for
# sessions of another role: those cannot be ended anyway.
_SESSION: Final = """
  FROM job_attempts a JOIN pg_stat_activity s ON s.pid = a.backend_pid AND s.backend_start <= a.started_at
 WHERE a.job_id = CAST(:id AS uuid) AND a.number = :attempt AND a.outcome IS NULL AND s.pid <> pg_backend_pid()
"""
_END_BACKEND: Final = sa.text(
    f"SELECT pg_terminate_backend(s.pid, 2000) {_SESSION} AND (:surely OR a.lease_expires_at < now())"
)
_CANCEL_STATEMENT: Final = sa.text(f"SELECT pg_cancel_backend(s.pid) {_SESSION}")
_STILL_LOST: Final = sa.text("""
SELECT true FROM job_statuses j JOIN job_attempts a ON a.job_id = j.id AND a.number = j.attempt
 WHERE j.id = CAST(:id AS uuid) AND j.attempt = :attempt AND j.status = 'started'
   AND (:surely OR a.lease_expires_at < now())
   FOR NO KEY UPDATE OF j SKIP LOCKED
""")


def end_backend(connection: Connection, job_id: UUID, attempt: int, *, surely: bool) -> None:
    """End the Postgres session of an attempt that is being fenced out, and wait for it, at most 2 s.

    A run that is frozen keeps its locks for as long as it is; its session's end releases them. If the session
    outlives the wait, the fence still keeps it from committing.

    Args:
        surely: the run is known to be over; otherwise only if its lease is stale at this moment.
    """
    connection.execute(_END_BACKEND, {"id": str(job_id), "attempt": attempt, "surely": surely})


def cancel_statement(connection: Connection, job_id: UUID, attempt: int) -> None:
    """Cancel the statement that an attempt's session executes."""
    connection.execute(_CANCEL_STATEMENT, {"id": str(job_id), "attempt": attempt})


_RESTARTED: Final = sa.text("""
SELECT pg_postmaster_start_time() > a.started_at FROM job_attempts a
 WHERE a.job_id = CAST(:id AS uuid) AND a.number = :attempt
""")


def server_restarted(connection: Connection, job_id: UUID, attempt: int) -> bool:
    """Whether Postgres has started since an attempt began: then its connections were lost, and it is not to blame."""
    return bool(connection.execute(_RESTARTED, {"id": str(job_id), "attempt": attempt}).scalar())


_ANSWER: Final = sa.text("SELECT 1")


def probe(connection: Connection) -> None:
    """Ask Postgres for nothing but an answer: it waits for no lock and no disk."""
    connection.execute(_ANSWER)


def lock_if_lost(connection: Connection, job_id: UUID, attempt: int, *, surely: bool) -> bool:
    """Lock the row of an attempt that is over, for this transaction.

    Returns:
        False if it is not over after all (renewed, or ended by somebody else), or if somebody else has the row locked:
        another reaper, or a dispatch with `after=`, whose end the next sweep will see.
    """
    found = connection.execute(_STILL_LOST, {"id": str(job_id), "attempt": attempt, "surely": surely})
    return found.one_or_none() is not None


_CANCEL_REASON: Final = sa.text("""
SELECT r.reason FROM job_statuses j JOIN cancel_requests r ON r.job_id = j.id
 WHERE j.id = CAST(:id AS uuid) AND j.attempt = :attempt AND j.status = 'started' AND j.cancel_requested_at IS NOT NULL
""")


def cancel_reason(connection: Connection, job_id: UUID, attempt: int) -> str | None:
    """Who wants this running attempt canceled, and why; None if nobody does."""
    reason = connection.execute(_CANCEL_REASON, {"id": str(job_id), "attempt": attempt}).scalar_one_or_none()
    return str(reason) if reason is not None else None
