"""Which queued jobs are in Redis, as far as is known: `pushed_at` and `push_count`. No status moves here."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.wake import Wake

_TAKE_UNPUSHED: Final = sa.text("""
WITH taken AS (
    UPDATE job_statuses SET pushed_at = now(), push_count = push_count + 1
     WHERE id IN (SELECT id FROM job_statuses
                   WHERE status = 'queued' AND held_by IS NULL AND pushed_at IS NULL AND queue = :queue
                   ORDER BY priority, queued_at, id LIMIT :limit FOR UPDATE SKIP LOCKED)
       AND status = 'queued'
    RETURNING id, queue, job_type, title, timeout_seconds, push_count, priority, queued_at
)
SELECT id, queue, job_type, title, timeout_seconds, push_count FROM taken ORDER BY priority, queued_at, id
""")


def take_unpushed(connection: Connection, queue: str, limit: int) -> list[Wake]:
    """Mark queued rows that nobody has pushed as pushed, by priority and age. The caller pushes, then commits."""
    rows = connection.execute(_TAKE_UNPUSHED, {"queue": queue, "limit": limit})
    return [Wake(**row._mapping) for row in rows]


_UNPUSH: Final = sa.text("""
WITH lost AS (
    SELECT j.id FROM job_statuses j
      JOIN unnest(CAST(:ids AS uuid[]), CAST(:counts AS int[])) AS seen(id, push_count) ON j.id = seen.id
     WHERE j.push_count = seen.push_count AND j.status = 'queued' AND j.held_by IS NULL
     ORDER BY j.id FOR NO KEY UPDATE OF j
)
UPDATE job_statuses j SET pushed_at = NULL FROM lost WHERE j.id = lost.id AND j.status = 'queued'
""")


def unpush(connection: Connection, wakes: Sequence[tuple[UUID, int]]) -> int:
    """Say that these wake-ups are not in Redis, so that the relay pushes them.

    Args:
        wakes: ids with the push count that was seen: a push that somebody made since then stands.

    Returns:
        How many rows that was still true of.
    """
    return connection.execute(
        _UNPUSH, {"ids": [str(one) for one, _ in wakes], "counts": [count for _, count in wakes]}
    ).rowcount
