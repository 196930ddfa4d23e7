"""Unique jobs: who is there already, and what a later dispatch changes about it.

One of the writers of statuses, for the move of a job that is put off. That there is one unfinished job of a key is the
work of an index; of one job within a time, of a row in `unique_windows`.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from jobledger.ledger.rows import NewJob
from jobledger.status import JobStatus
from jobledger.wake import Accepted

INDEX: Final = "uq_job_statuses_unique_key"


@dataclass(frozen=True, slots=True)
class Holder:
    """The job that holds a key; without a status, it was pruned."""

    id: UUID
    status: JobStatus | None


_UNFINISHED: Final = sa.text("SELECT id, status FROM job_statuses WHERE unique_key = :key AND finished_at IS NULL")


def unfinished(connection: Connection, key: str) -> Holder | None:
    """The unfinished job of a key."""
    row = connection.execute(_UNFINISHED, {"key": key}).one_or_none()
    return Holder(row.id, JobStatus(row.status)) if row is not None else None


_LOOK: Final = sa.text("SELECT status FROM job_statuses WHERE id = CAST(:id AS uuid)")


def look(connection: Connection, job_id: UUID) -> JobStatus | None:
    """Where a job stands; None if it is not there any more."""
    word = connection.execute(_LOOK, {"id": str(job_id)}).scalar_one_or_none()
    return JobStatus(word) if word is not None else None


_RIVAL: Final = sa.text("""
SELECT o.id, o.status FROM job_statuses j JOIN job_statuses o ON o.unique_key = j.unique_key AND o.finished_at IS NULL
 WHERE j.id = CAST(:id AS uuid) AND o.id <> j.id
""")


def rival(connection: Connection, job_id: UUID) -> Holder | None:
    """The unfinished job that holds the key of this one, which has ended."""
    row = connection.execute(_RIVAL, {"id": str(job_id)}).one_or_none()
    return Holder(row.id, JobStatus(row.status)) if row is not None else None


def is_collision(error: IntegrityError) -> bool:
    """Whether a statement failed because there would have been two unfinished jobs of one key."""
    return INDEX in str(error.orig)


_IN_WINDOW: Final = sa.text("""
SELECT w.job_id, j.status FROM unique_windows w LEFT JOIN job_statuses j ON j.id = w.job_id
 WHERE w.unique_key = :key AND w.until > statement_timestamp()
""")


def in_window(connection: Connection, key: str) -> Holder | None:
    """The job that was dispatched within the key's time; nothing is locked by looking."""
    row = connection.execute(_IN_WINDOW, {"key": key}).one_or_none()
    return Holder(row.job_id, JobStatus(row.status) if row.status else None) if row is not None else None


_OPEN_WINDOW: Final = sa.text("""
INSERT INTO unique_windows AS w (unique_key, until, job_id)
VALUES (:key, statement_timestamp() + make_interval(secs => :seconds), CAST(:job_id AS uuid))
ON CONFLICT (unique_key) DO UPDATE SET until = excluded.until, job_id = excluded.job_id
 WHERE w.until <= statement_timestamp()
RETURNING job_id
""")


def open_window(connection: Connection, key: str, seconds: float, job_id: UUID) -> bool:
    """Begin a key's time with this job. Waits for whoever is beginning it.

    Returns:
        False if it has begun.
    """
    parameters = {"key": key, "seconds": seconds, "job_id": str(job_id)}
    return connection.execute(_OPEN_WINDOW, parameters).one_or_none() is not None


_REPLACE: Final = sa.text("""
UPDATE job_statuses j
   SET payload = CAST(:payload AS jsonb), title = :title, owner = :owner, timeout_seconds = :timeout_seconds,
       priority = :priority, max_attempts = :max_attempts, available_at = due.at,
       expires_at = greatest(due.at, statement_timestamp())
                    + make_interval(secs => CAST(:expires_in_seconds AS float8)),
       status = CASE WHEN j.status = 'queued' AND due.at > statement_timestamp() THEN 'scheduled' ELSE j.status END,
       held_by = CASE WHEN due.at <= statement_timestamp() THEN j.held_by END,
       pushed_at = NULL, updated_at = statement_timestamp()
  FROM (SELECT coalesce(to_timestamp(CAST(:available_at_epoch AS float8)),
                        statement_timestamp() + make_interval(secs => :delay_seconds)) AS at) AS due
 WHERE j.id = CAST(:id AS uuid) AND j.status IN ('deferred', 'scheduled', 'queued') AND j.attempt = 0
RETURNING j.id, j.status
""")
_CONTENT: Final = (
    "payload", "title", "owner", "timeout_seconds", "priority", "max_attempts", "expires_in_seconds",
    "available_at_epoch", "delay_seconds",
)  # fmt: skip


def replace_waiting(connection: Connection, job_id: UUID, row: NewJob) -> Accepted | None:
    """Put the content of another row into a job that has never been started; it stays where it waits.

    But queued -> scheduled if it may not run yet. A wake-up that is in Redis stays there, and starts nothing; the relay
    pushes another one, with the new timeout.

    Returns:
        None if the job was started or has ended.
    """
    content = {name: getattr(row, name) for name in _CONTENT}
    found = connection.execute(_REPLACE, {"id": str(job_id), **content}).one_or_none()
    return Accepted(found.id, JobStatus(found.status), None, is_duplicate=True) if found is not None else None


_PRUNE: Final = sa.text("""
DELETE FROM unique_windows
 WHERE unique_key IN (SELECT unique_key FROM unique_windows WHERE until < now()
                       ORDER BY until LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def prune(connection: Connection, limit: int) -> int:
    """Forget times that are over.

    Returns:
        How many.
    """
    return connection.execute(_PRUNE, {"limit": limit}).rowcount
