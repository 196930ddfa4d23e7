"""Queues and job types whose jobs are not started for now. No status moves here: a held job stays `queued`.

A relay or a claim that meets a job of a paused queue or type writes `held_by` into its row instead of pushing or
starting it, and locks the pause until that is committed. So the end of the pause sees all jobs that it holds. Queries
for pauses and limits that hold jobs begin with `HOLDERS`, which has each `held_by` once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.status import PauseKind

HOLDERS: Final = """
WITH RECURSIVE holders AS (  -- one step along the index for each value, however many jobs it holds
    (SELECT held_by FROM job_statuses WHERE held_by IS NOT NULL ORDER BY held_by LIMIT 1)
    UNION ALL
    SELECT (SELECT j.held_by FROM job_statuses j WHERE j.held_by > h.held_by ORDER BY j.held_by LIMIT 1)
      FROM holders h WHERE h.held_by IS NOT NULL
)"""


@dataclass(frozen=True, slots=True)
class Pause:
    """A queue or a job type that is paused.

    Attributes:
        name: of the queue, or the type.
        paused_by, reason: for people.
    """

    kind: PauseKind
    name: str
    paused_at: datetime
    paused_by: str
    reason: str | None

    @property
    def held_by(self) -> str:
        """The value of `held_by` in the rows that it holds."""
        return f"pause:{self.kind}:{self.name}"


_SET: Final = sa.text("""
INSERT INTO pauses (kind, name, paused_by, reason) VALUES (:kind, :name, :by, :reason)
ON CONFLICT (kind, name) DO UPDATE SET name = excluded.name
RETURNING kind, name, paused_at, paused_by, reason
""")
_DELETE: Final = sa.text(
    "DELETE FROM pauses WHERE kind = :kind AND name = :name RETURNING kind, name, paused_at, paused_by, reason"
)
_ALL: Final = sa.text("SELECT kind, name, paused_at, paused_by, reason FROM pauses ORDER BY kind, name")


def pause(connection: Connection, kind: PauseKind, name: str, by: str, reason: str | None) -> Pause:
    """Begin a pause, or return the existing one unchanged."""
    row = connection.execute(_SET, {"kind": kind, "name": name, "by": by, "reason": reason}).one()
    return _pause(row)


def resume(connection: Connection, kind: PauseKind, name: str) -> Pause | None:
    """End a pause; None if there is none. Its jobs are released by `release`, in later transactions."""
    row = connection.execute(_DELETE, {"kind": kind, "name": name}).one_or_none()
    return _pause(row) if row is not None else None


def list_all(connection: Connection) -> list[Pause]:
    """All pauses, by kind and name."""
    return [_pause(row) for row in connection.execute(_ALL)]


def _pause(row: sa.Row[tuple[object, ...]]) -> Pause:
    return Pause(**{**row._mapping, "kind": PauseKind(row.kind)})


_ENDED: Final = sa.text(f"""
{HOLDERS}
SELECT held_by FROM holders
 WHERE held_by LIKE 'pause:%'
   AND NOT EXISTS (SELECT FROM pauses p WHERE 'pause:' || p.kind || ':' || p.name = held_by)
""")  # noqa: S608 - put together from constants
_RELEASE: Final = sa.text("""
WITH first AS (
    SELECT id FROM job_statuses WHERE held_by = :held_by
     ORDER BY priority, queued_at, id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE job_statuses j SET held_by = NULL, pushed_at = NULL, updated_at = now()
  FROM first WHERE j.id = first.id AND j.status = 'queued' AND j.held_by = :held_by
""")


def ended(connection: Connection) -> Sequence[str]:
    """The values of `held_by` whose pause has ended."""
    return connection.execute(_ENDED).scalars().all()


def release(connection: Connection, held_by: str, limit: int) -> int:
    """Let the relay push the jobs that a pause held, in the order of priority and age.

    Returns:
        The number of jobs.
    """
    return connection.execute(_RELEASE, {"held_by": held_by, "limit": limit}).rowcount
