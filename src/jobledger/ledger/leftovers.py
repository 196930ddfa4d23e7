"""What the ledger knows of ids that lie about in Redis."""

from collections.abc import Collection
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.status import JobStatus

_STANDING: Final = sa.text("""
SELECT id, status, held_by IS NOT NULL AS is_held, queue FROM job_statuses WHERE id = ANY(CAST(:ids AS uuid[]))
""")


def standing(connection: Connection, ids: Collection[UUID]) -> dict[UUID, tuple[JobStatus, bool, str]]:
    """Where these jobs stand, whether they are held, and their queues; what has no row is missing."""
    rows = connection.execute(_STANDING, {"ids": [str(one) for one in ids]})
    return {row.id: (JobStatus(row.status), row.is_held, row.queue) for row in rows}


# In no order of locks: rows that somebody has locked are left out, so nobody waits for anybody.
_LOCK_IDLE: Final = sa.text("""
SELECT id, status FROM job_statuses
 WHERE id = ANY(CAST(:ids AS uuid[])) AND (status <> 'queued' OR held_by IS NOT NULL)
   FOR NO KEY UPDATE SKIP LOCKED
""")


def lock_idle(connection: Connection, ids: Collection[UUID]) -> dict[UUID, JobStatus]:
    """Of these jobs, those that need no wake-up; nobody can queue them before this transaction has ended."""
    if not ids:
        return {}
    rows = connection.execute(_LOCK_IDLE, {"ids": [str(one) for one in ids]})
    return {row.id: JobStatus(row.status) for row in rows}


_LONG_ENDED: Final = sa.text("""
SELECT id FROM job_statuses
 WHERE id = ANY(CAST(:ids AS uuid[])) AND finished_at < now() - make_interval(secs => :seconds)
""")


def long_ended(connection: Connection, ids: Collection[UUID], seconds: float) -> set[UUID]:
    """Of these jobs, those that ended longer ago."""
    return set(connection.execute(_LONG_ENDED, {"ids": [str(one) for one in ids], "seconds": seconds}).scalars())
