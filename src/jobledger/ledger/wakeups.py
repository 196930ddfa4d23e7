"""The queued jobs that are in Redis, by the ledger: `pushed_at`, `push_count`, `held_by`. No status moves here.

Also: lost wake-ups, counted for the row's current `attempt` (a claim starts the count anew); and the Redis that the
ledger knows: the last one whose losses were all noted.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.records import Wake
from jobledger.domain.status import JobStatus

PUSH_GRACE_SECONDS: Final = 15.0
"""A wake-up that a worker took leads to a claim within this after its push; twice as long after each loss. For younger
pushes only RQ's reports count."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A queued job whose wake-up should have led to a claim by now.

    Attributes:
        losses: lost wake-ups since its last claim.
    """

    id: UUID
    push_count: int
    attempt: int
    losses: int


KEEPS_ITS_PLACE: Final = """
CASE WHEN j.crashes + j.losses = 1
     THEN EXISTS (SELECT FROM job_attempts a
                   WHERE a.job_id = j.id AND a.number = j.attempt AND a.outcome IN ('crashed', 'lost'))
     ELSE false END"""
"""Whether the last attempt of `j` crashed or was lost, and no attempt before it did. A job that always kills its
process must not delay others again and again; a job that waits after a snooze or an error goes behind them.
"""


# Along ix_job_statuses_queued: (queue, pushed_at) of jobs that may run now. Workers take wake-ups in the order of the
# pushes, so a job that was pushed before the head of the list has left it: it was started, or its wake-up was lost.
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
        grace_seconds: of a job that has lost no wake-up.
        head_id: the job at the head of the list now.
    """
    parameters = {"queue": queue, "age_seconds": grace_seconds, "head_id": head_id and str(head_id), "limit": limit}
    return [Suspect(**row._mapping) for row in connection.execute(_OVERDUE, parameters)]


def recent(
    connection: Connection, queue: str, age_seconds: float, grace_seconds: float, head_id: UUID | None, limit: int
) -> list[Suspect]:
    """Jobs that have lost no wake-up yet, pushed a moment ago, within the grace."""
    parameters = {
        "queue": queue,
        "age_seconds": age_seconds,
        "until_seconds": grace_seconds,
        "head_id": head_id and str(head_id),
        "limit": limit,
    }
    return [Suspect(**row._mapping) for row in connection.execute(_RECENT, parameters)]


# A relay that is frozen while it pushes must not keep workers from these rows: Postgres ends its transaction soon.
_TAKE_UNPUSHED: Final = sa.text(f"""
WITH idle_limit AS MATERIALIZED (
    SELECT set_config('idle_in_transaction_session_timeout', '10s', true)
), pause AS MATERIALIZED (
    SELECT kind, name, 'pause:' || kind || ':' || name AS held_by FROM pauses
     WHERE kind = 'type' OR (kind = 'queue' AND name = :queue) FOR SHARE
), chosen AS MATERIALIZED (  -- once: a join might run a subquery again, which would lock other rows
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
              {KEEPS_ITS_PLACE} AS at_front
)
SELECT id, queue, job_type, title, timeout_seconds, push_count, at_front, held_by FROM taken CROSS JOIN idle_limit
 ORDER BY priority, queued_at, id
""")  # noqa: S608 - put together from constants


def take_unpushed(connection: Connection, queue: str, limit: int) -> tuple[list[Wake], int]:
    """Mark queued rows that were not pushed as pushed, by priority and age; or as held, if their queue or type is
    paused.

    A job whose last attempt crashed or was lost goes first, once, as it has waited already: see `KEEPS_ITS_PLACE`.

    Returns:
        The wake-ups that the caller pushes before it commits; and the number of held jobs.
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
    """Note that these wake-ups are not in Redis, so that the relay pushes them.

    A row that is locked, such as by a dispatch with `after=`, is left to the reconciler: it must not delay the others.

    Args:
        wakes: ids with the push count that was seen: a row that was pushed since then is left alone.

    Returns:
        The number of rows changed.
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
        after: the last row of the page before.
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


@dataclass(frozen=True, slots=True)
class KnownRedis:
    """The Redis that the ledger knows.

    Attributes:
        age_seconds: since it was noted.
    """

    epoch: str
    age_seconds: float


_KNOWN_REDIS: Final = sa.text(
    "SELECT epoch, CAST(extract(epoch FROM now() - since) AS float8) AS age_seconds FROM redis_epoch"
)


def known_redis(connection: Connection) -> KnownRedis | None:
    """The Redis that the ledger knows; None before the first look at it."""
    row = connection.execute(_KNOWN_REDIS).one_or_none()
    return KnownRedis(**row._mapping) if row is not None else None


_NOTE_REDIS: Final = sa.text("""
INSERT INTO redis_epoch AS e (epoch) VALUES (:new)
ON CONFLICT (only_row) DO UPDATE SET epoch = :new, since = now() WHERE e.epoch = :old
""")


def note_redis(connection: Connection, old: str | None, new: str) -> bool:
    """Note another Redis, if the known one is still `old`.

    Returns:
        False if another process has noted one meanwhile.
    """
    return connection.execute(_NOTE_REDIS, {"old": old, "new": new}).rowcount == 1


_STANDING: Final = sa.text("""
SELECT id, status, held_by IS NOT NULL AS is_held, queue FROM job_statuses WHERE id = ANY(CAST(:ids AS uuid[]))
""")


def standing(connection: Connection, ids: Collection[UUID]) -> dict[UUID, tuple[JobStatus, bool, str]]:
    """The status of these jobs, whether they are held, and their queues; jobs without a row are left out."""
    rows = connection.execute(_STANDING, {"ids": [str(one) for one in ids]})
    return {row.id: (JobStatus(row.status), row.is_held, row.queue) for row in rows}


# The order of locks does not matter: locked rows are skipped, so this waits for no transaction.
_LOCK_IDLE: Final = sa.text("""
SELECT id, status FROM job_statuses
 WHERE id = ANY(CAST(:ids AS uuid[])) AND (status <> 'queued' OR held_by IS NOT NULL)
   FOR NO KEY UPDATE SKIP LOCKED
""")


def lock_idle(connection: Connection, ids: Collection[UUID]) -> dict[UUID, JobStatus]:
    """Lock those of these jobs that need no wake-up, so that no other transaction can queue them."""
    if not ids:
        return {}
    rows = connection.execute(_LOCK_IDLE, {"ids": [str(one) for one in ids]})
    return {row.id: JobStatus(row.status) for row in rows}


_LONG_ENDED: Final = sa.text("""
SELECT id FROM job_statuses
 WHERE id = ANY(CAST(:ids AS uuid[])) AND finished_at < now() - make_interval(secs => :seconds)
""")


def long_ended(connection: Connection, ids: Collection[UUID], seconds: float) -> set[UUID]:
    """Those of these jobs that ended longer ago."""
    return set(connection.execute(_LONG_ENDED, {"ids": [str(one) for one in ids], "seconds": seconds}).scalars())


# A locked row is left for the next pass, so that it does not delay the others.
_RECORD_LOST: Final = sa.text("""
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


def record_lost(connection: Connection, lost: Sequence[tuple[Suspect, bool]]) -> int:
    """Note that these wake-ups are not in Redis, so that the relay pushes them, and count the marked ones as losses.

    Returns:
        The number of rows changed: those that were pushed, claimed or held since then, or are locked, are left alone.
    """
    return int(
        connection.execute(
            _RECORD_LOST,
            {
                "ids": [str(one.id) for one, _ in lost],
                "counts": [one.push_count for one, _ in lost],
                "counted": [is_counted for _, is_counted in lost],
            },
        ).scalar_one()
    )
