"""Which queued jobs are in Redis, as far as is known: `pushed_at`, `push_count`, `held_by`. No status moves here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.ledger import returning
from jobledger.wake import Wake

# A relay that is frozen while it pushes must not keep workers from these rows: Postgres ends its transaction soon.
_TAKE_UNPUSHED: Final = sa.text(f"""
WITH patience AS MATERIALIZED (
    SELECT set_config('idle_in_transaction_session_timeout', '10s', true)
), pause AS MATERIALIZED (
    SELECT kind, name, 'pause:' || kind || ':' || name AS held_by FROM pauses
     WHERE kind = 'type' OR (kind = 'queue' AND name = :queue) FOR SHARE
), chosen AS MATERIALIZED (  -- once: a subquery that a join runs again would lock, and choose, others
    SELECT id, job_type FROM job_statuses
     WHERE status = 'queued' AND held_by IS NULL AND pushed_at IS NULL AND queue = :queue
     ORDER BY priority, queued_at, id LIMIT :limit FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE job_statuses j
       SET held_by = holder.held_by, pushed_at = CASE WHEN holder.held_by IS NULL THEN now() END,
           push_count = push_count + CASE WHEN holder.held_by IS NULL THEN 1 ELSE 0 END
      FROM chosen LEFT JOIN LATERAL (
               SELECT held_by FROM pause WHERE kind = 'queue' OR name = chosen.job_type ORDER BY kind LIMIT 1
           ) AS holder ON true
     WHERE j.id = chosen.id AND j.status = 'queued'
    RETURNING j.id, j.queue, j.job_type, j.title, j.timeout_seconds, j.push_count, j.priority, j.queued_at, j.held_by,
              {returning.KEEPS_ITS_PLACE} AS at_front
)
SELECT id, queue, job_type, title, timeout_seconds, push_count, at_front, held_by FROM taken CROSS JOIN patience
 ORDER BY priority, queued_at, id
""")  # noqa: S608 - put together from constants


def take_unpushed(connection: Connection, queue: str, limit: int) -> tuple[list[Wake], int]:
    """Mark queued rows that nobody has pushed as pushed, by priority and age; or as held, if their queue or type is
    paused.

    A job whose last attempt crashed or was lost goes before all others: it has stood in line already. Once: see
    `returning`.

    Returns:
        What the caller pushes before it commits; and how many are held.
    """
    rows = connection.execute(_TAKE_UNPUSHED, {"queue": queue, "limit": limit}).all()
    wakes = [
        Wake(row.id, row.queue, row.job_type, row.title, row.timeout_seconds, row.push_count, row.at_front)
        for row in rows
        if row.held_by is None
    ]
    return wakes, len(rows) - len(wakes)


_UNPUSH: Final = sa.text("""
WITH lost AS (
    SELECT j.id FROM job_statuses j
      JOIN unnest(CAST(:ids AS uuid[]), CAST(:counts AS int[])) AS seen(id, push_count) ON j.id = seen.id
     WHERE j.push_count = seen.push_count AND j.status = 'queued' AND j.held_by IS NULL AND j.pushed_at IS NOT NULL
     ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
)
UPDATE job_statuses j SET pushed_at = NULL FROM lost WHERE j.id = lost.id AND j.status = 'queued'
""")


def unpush(connection: Connection, wakes: Sequence[tuple[UUID, int]]) -> int:
    """Say that these wake-ups are not in Redis, so that the relay pushes them.

    What is locked at this moment, such as by a dispatch with `after=`, is left to the reconciler: it must not keep the
    others from being pushed.

    Args:
        wakes: ids with the push count that was seen: a push that somebody made since then stands.

    Returns:
        How many rows that was still true of.
    """
    return connection.execute(
        _UNPUSH, {"ids": [str(one) for one, _ in wakes], "counts": [count for _, count in wakes]}
    ).rowcount


@dataclass(frozen=True, slots=True)
class Pushed:
    """A queued row that was pushed."""

    id: UUID
    push_count: int
    pushed_at: datetime


_PUSHED: Final = sa.text("""
SELECT id, push_count, pushed_at FROM job_statuses
 WHERE status = 'queued' AND held_by IS NULL AND queue = :queue AND pushed_at < CAST(:until AS timestamptz)
   AND (CAST(:after_at AS timestamptz) IS NULL OR pushed_at >= CAST(:after_at AS timestamptz))
   AND (CAST(:after_at AS timestamptz) IS NULL
        OR (pushed_at, id) > (CAST(:after_at AS timestamptz), CAST(:after_id AS uuid)))
 ORDER BY pushed_at, id LIMIT :limit
""")


def pushed_until(connection: Connection, queue: str, until: datetime, after: Pushed | None, limit: int) -> list[Pushed]:
    """The queued rows of a queue that were pushed before a moment, oldest push first.

    Args:
        until: by the clock of the database.
        after: the last one of the page before.
    """
    rows = connection.execute(
        _PUSHED,
        {
            "queue": queue,
            "until": until,
            "after_at": after and after.pushed_at,
            "after_id": after and str(after.id),
            "limit": limit,
        },
    )
    return [Pushed(**row._mapping) for row in rows]


_NOW: Final = sa.text("SELECT clock_timestamp()")


def now(connection: Connection) -> datetime:
    """The clock of the database."""
    moment: datetime = connection.execute(_NOW).scalar_one()
    return moment
