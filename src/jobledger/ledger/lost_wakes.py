"""Wake-ups that were lost on their way to a claim: how often, and the end of a job that loses all.

One of the writers of statuses, for its one move. What is counted stands for the row's present `attempt`: a claim starts
it anew. Nothing here commits.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.ledger import failing
from jobledger.ledger.rows import Failed
from jobledger.ledger.suspects import Suspect
from jobledger.status import ON_FAILED_TYPE

# What somebody else holds is left for the next time, so that it keeps nobody from the others.
_RECORD: Final = sa.text("""
WITH lost AS (
    SELECT j.id, j.attempt, seen.is_counted FROM job_statuses j
      JOIN unnest(CAST(:ids AS uuid[]), CAST(:counts AS int[]), CAST(:counted AS bool[]))
           AS seen(id, push_count, is_counted) ON j.id = seen.id
     WHERE j.push_count = seen.push_count AND j.status = 'queued' AND j.held_by IS NULL AND j.pushed_at IS NOT NULL
     ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), unpushed AS (
    UPDATE job_statuses j SET pushed_at = NULL FROM lost
     WHERE j.id = lost.id AND j.status = 'queued' AND j.pushed_at IS NOT NULL
    RETURNING j.id, j.attempt, lost.is_counted
), counted AS (
    INSERT INTO lost_wakes AS l (job_id, attempt, losses) SELECT id, attempt, 1 FROM unpushed WHERE is_counted
    ON CONFLICT (job_id) DO UPDATE
       SET losses = CASE WHEN l.attempt = excluded.attempt THEN l.losses + 1 ELSE 1 END,
           attempt = excluded.attempt, lost_at = now()
)
SELECT count(*) FROM unpushed
""")


def record(connection: Connection, lost: Sequence[tuple[Suspect, bool]]) -> int:
    """Say that these wake-ups are not in Redis, so that the relay pushes them, and count those that shall count.

    Returns:
        How many rows that was still true of: what was pushed, claimed or held since then stands, and so
        does, for now, what is locked.
    """
    return int(
        connection.execute(
            _RECORD,
            {
                "ids": [str(one.id) for one, _ in lost],
                "counts": [one.push_count for one, _ in lost],
                "counted": [is_counted for _, is_counted in lost],
            },
        ).scalar_one()
    )


_GIVE_UP: Final = sa.text(f"""
WITH moved AS (
    UPDATE job_statuses
       SET status = 'failed', reason = 'undispatchable',
           finished_at = statement_timestamp(), updated_at = statement_timestamp()
     WHERE id = CAST(:id AS uuid) AND status = 'queued' AND held_by IS NULL
       AND attempt = :attempt AND push_count = :push_count AND pushed_at IS NOT NULL
    RETURNING {failing.COLUMNS}, CAST(:callback_id AS uuid) AS callback_id
), counted AS (
    INSERT INTO lost_wakes AS l (job_id, attempt, losses) SELECT id, attempt, 1 FROM moved
    ON CONFLICT (job_id) DO UPDATE SET losses = l.losses + 1, lost_at = now()
), {failing.CALLBACK}
{failing.FAILED}
""")  # noqa: S608 - put together from constants


def give_up(connection: Connection, one: Suspect, callback_id: UUID) -> Failed | None:
    """queued -> failed, because no wake-up of this job has led to a claim; inserts its `on_failed` job.

    There is no attempt to be closed: none has begun.

    Returns:
        None if the job was claimed, pushed, held or ended meanwhile.
    """
    row = connection.execute(
        _GIVE_UP,
        {
            "id": str(one.id),
            "attempt": one.attempt,
            "push_count": one.push_count,
            "callback_id": str(callback_id),
            "callback_type": ON_FAILED_TYPE,
        },
    ).one_or_none()
    return failing.failed(row) if row is not None else None


_PRUNE: Final = sa.text("""
DELETE FROM lost_wakes
 WHERE job_id IN (SELECT job_id FROM lost_wakes WHERE lost_at < now() - make_interval(secs => :seconds)
                   ORDER BY lost_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def prune(connection: Connection, seconds: float, limit: int) -> int:
    """Forget losses of long ago.

    Returns:
        How many were forgotten.
    """
    return connection.execute(_PRUNE, {"seconds": seconds, "limit": limit}).rowcount
