"""Idempotency keys: which job was dispatched with one. Written in the dispatch's own transaction."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.status import JobStatus

_TAKE: Final = sa.text("""
INSERT INTO idempotency_keys (scope, key, payload_hash, job_id, created_at)
VALUES (:scope, :key, :payload_hash, CAST(:job_id AS uuid), statement_timestamp())
ON CONFLICT DO NOTHING RETURNING job_id
""")


def take(connection: Connection, scope: str, key: str, payload_hash: str, job_id: UUID) -> bool:
    """Say that a key is this job's. Waits for whoever is taking it.

    Returns:
        False if it was taken before.
    """
    parameters = {"scope": scope, "key": key, "payload_hash": payload_hash, "job_id": str(job_id)}
    return connection.execute(_TAKE, parameters).one_or_none() is not None


_POINT_TO: Final = sa.text("""
UPDATE idempotency_keys SET job_id = CAST(:job_id AS uuid) WHERE scope = :scope AND key = :key
""")


def point_to(connection: Connection, scope: str | None, key: str, job_id: UUID) -> None:
    """Say that a key which was just taken is another job's: an equal one that was there already."""
    connection.execute(_POINT_TO, {"scope": scope, "key": key, "job_id": str(job_id)})


@dataclass(frozen=True, slots=True)
class Taken:
    """A key that was taken, and where its job stands; without a status, the job was pruned."""

    job_id: UUID
    payload_hash: str
    status: JobStatus | None


_FIND: Final = sa.text("""
SELECT k.job_id, k.payload_hash, j.status
  FROM idempotency_keys k LEFT JOIN job_statuses j ON j.id = k.job_id WHERE k.scope = :scope AND k.key = :key
""")


def find(connection: Connection, scope: str, key: str) -> Taken | None:
    """What a key was taken for; None if it was not."""
    row = connection.execute(_FIND, {"scope": scope, "key": key}).one_or_none()
    return Taken(row.job_id, row.payload_hash, JobStatus(row.status) if row.status else None) if row else None


# A job that waits for longer than that still has its key: sent again, it would be dispatched twice.
_PRUNE: Final = sa.text("""
DELETE FROM idempotency_keys
 WHERE (scope, key) IN (SELECT scope, key FROM idempotency_keys k
                         WHERE created_at < now() - make_interval(secs => :seconds)
                           AND NOT EXISTS (SELECT FROM job_statuses j WHERE j.id = k.job_id AND j.finished_at IS NULL)
                         ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def prune(connection: Connection, seconds: float, limit: int) -> int:
    """Forget keys that were taken long ago, unless their job has not ended.

    Returns:
        How many were forgotten.
    """
    return connection.execute(_PRUNE, {"seconds": seconds, "limit": limit}).rowcount
