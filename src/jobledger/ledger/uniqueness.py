"""Unique jobs and idempotency keys: they find the job that was dispatched before.

A unique index allows one unfinished job of a key; a row in `unique_windows` allows one job within a time. An
idempotency key is a row, written in the dispatch's own transaction.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from jobledger.domain.status import JobStatus

INDEX: Final = "uq_job_statuses_unique_key"


@dataclass(frozen=True, slots=True)
class Holder:
    """The job that has a key; without a status, it was pruned."""

    id: UUID
    status: JobStatus | None


_UNFINISHED: Final = sa.text("SELECT id, status FROM job_statuses WHERE unique_key = :key AND finished_at IS NULL")


def unfinished(connection: Connection, key: str) -> Holder | None:
    """The unfinished job of a key."""
    row = connection.execute(_UNFINISHED, {"key": key}).one_or_none()
    return Holder(row.id, JobStatus(row.status)) if row is not None else None


_LOOK: Final = sa.text("SELECT status FROM job_statuses WHERE id = CAST(:id AS uuid)")


def look(connection: Connection, job_id: UUID) -> JobStatus | None:
    """The status of a job; None if it was pruned."""
    word = connection.execute(_LOOK, {"id": str(job_id)}).scalar_one_or_none()
    return JobStatus(word) if word is not None else None


_CONFLICTING: Final = sa.text("""
SELECT o.id, o.status FROM job_statuses j JOIN job_statuses o ON o.unique_key = j.unique_key AND o.finished_at IS NULL
 WHERE j.id = CAST(:id AS uuid) AND o.id <> j.id
""")


def conflicting(connection: Connection, job_id: UUID) -> Holder | None:
    """The unfinished job that has the unique key of this one, which has ended."""
    row = connection.execute(_CONFLICTING, {"id": str(job_id)}).one_or_none()
    return Holder(row.id, JobStatus(row.status)) if row is not None else None


def is_collision(error: IntegrityError) -> bool:
    """Whether a statement failed because a key would have had two unfinished jobs."""
    return INDEX in str(error.orig)


_IN_WINDOW: Final = sa.text("""
SELECT w.job_id, j.status FROM unique_windows w LEFT JOIN job_statuses j ON j.id = w.job_id
 WHERE w.unique_key = :key AND w.until > statement_timestamp()
""")


def in_window(connection: Connection, key: str) -> Holder | None:
    """The job that was dispatched within the key's window; nothing is locked."""
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
    """Begin a key's window with this job. Waits for another transaction that begins it.

    Returns:
        False if it had begun before.
    """
    parameters = {"key": key, "seconds": seconds, "job_id": str(job_id)}
    return connection.execute(_OPEN_WINDOW, parameters).one_or_none() is not None


_TAKE_KEY: Final = sa.text("""
INSERT INTO idempotency_keys (scope, key, payload_hash, job_id, created_at)
VALUES (:scope, :key, :payload_hash, CAST(:job_id AS uuid), statement_timestamp())
ON CONFLICT DO NOTHING RETURNING job_id
""")


def take_key(connection: Connection, scope: str, key: str, payload_hash: str, job_id: UUID) -> bool:
    """Take an idempotency key for this job. Waits for another transaction that takes it.

    Returns:
        False if it was taken before.
    """
    parameters = {"scope": scope, "key": key, "payload_hash": payload_hash, "job_id": str(job_id)}
    return connection.execute(_TAKE_KEY, parameters).one_or_none() is not None


_POINT_KEY_TO: Final = sa.text("""
UPDATE idempotency_keys SET job_id = CAST(:job_id AS uuid) WHERE scope = :scope AND key = :key
""")


def point_key_to(connection: Connection, scope: str | None, key: str, job_id: UUID) -> None:
    """Let a key that was just taken point to an equal job that was dispatched before."""
    connection.execute(_POINT_KEY_TO, {"scope": scope, "key": key, "job_id": str(job_id)})


@dataclass(frozen=True, slots=True)
class TakenKey:
    """A key that was taken, and the status of its job; without a status, the job was pruned."""

    job_id: UUID
    payload_hash: str
    status: JobStatus | None


_FIND_KEY: Final = sa.text("""
SELECT k.job_id, k.payload_hash, j.status
  FROM idempotency_keys k LEFT JOIN job_statuses j ON j.id = k.job_id WHERE k.scope = :scope AND k.key = :key
""")


def find_key(connection: Connection, scope: str, key: str) -> TakenKey | None:
    """The job that a key was taken for; None if it was not taken."""
    row = connection.execute(_FIND_KEY, {"scope": scope, "key": key}).one_or_none()
    return TakenKey(row.job_id, row.payload_hash, JobStatus(row.status) if row.status else None) if row else None
