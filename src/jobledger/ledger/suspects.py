"""Queued jobs whose wake-up should have led to a claim by now: lost, unless Redis still has it."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True, slots=True)
class Suspect:
    """A queued job whose wake-up should have led to a claim by now.

    Attributes:
        losses: of wake-ups since its last claim.
    """

    id: UUID
    push_count: int
    attempt: int
    losses: int


# Along ix_job_statuses_queued: (queue, pushed_at) of what may run now. A list is taken from in the order of its pushes,
# so whatever was pushed before its head should be gone from it: started, or lost.
_SUSPECTS: Final = """
SELECT j.id, j.push_count, j.attempt, coalesce(l.losses, 0) AS losses
  FROM job_statuses j LEFT JOIN lost_wakes l ON l.job_id = j.id AND l.attempt = j.attempt
 WHERE j.status = 'queued' AND j.held_by IS NULL AND j.queue = :queue
   AND j.pushed_at < now() - make_interval(secs => :age_seconds) AND {}
   AND (CAST(:head_id AS uuid) IS NULL
        OR j.pushed_at <= (SELECT pushed_at FROM job_statuses WHERE id = CAST(:head_id AS uuid))
        OR NOT EXISTS (SELECT FROM job_statuses WHERE id = CAST(:head_id AS uuid) AND pushed_at IS NOT NULL))
 ORDER BY j.pushed_at LIMIT :limit
"""
_OVERDUE: Final = sa.text(
    _SUSPECTS.format("j.pushed_at < now() - make_interval(secs => :age_seconds * 2 ^ coalesce(l.losses, 0))")
)
_RECENT: Final = sa.text(
    _SUSPECTS.format("j.pushed_at >= now() - make_interval(secs => :until_seconds) AND l.job_id IS NULL")
)


def overdue(
    connection: Connection, queue: str, grace_seconds: float, head_id: UUID | None, limit: int
) -> list[Suspect]:
    """Jobs whose wake-up has led to nothing for longer than their grace, which doubles with each loss.

    Args:
        grace_seconds: of a job that has lost none.
        head_id: what heads the list now.
    """
    parameters = {"queue": queue, "age_seconds": grace_seconds, "head_id": head_id and str(head_id), "limit": limit}
    return [Suspect(**row._mapping) for row in connection.execute(_OVERDUE, parameters)]


def recent(
    connection: Connection, queue: str, age_seconds: float, grace_seconds: float, head_id: UUID | None, limit: int
) -> list[Suspect]:
    """Jobs that have lost no wake-up yet, and whose first was pushed a moment ago, within the grace."""
    parameters = {
        "queue": queue,
        "age_seconds": age_seconds,
        "until_seconds": grace_seconds,
        "head_id": head_id and str(head_id),
        "limit": limit,
    }
    return [Suspect(**row._mapping) for row in connection.execute(_RECENT, parameters)]
