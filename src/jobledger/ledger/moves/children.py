"""Jobs that wait for others: linked at dispatch, released by the last parent, canceled or kept if one fails.

Rows are locked in the order of their ids, parents before children; children that are locked already are skipped. So
families that move at once cannot deadlock. Children that could not be told of an end are noted, and told later.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.records import Untold, Wake
from jobledger.domain.status import TERMINAL, JobStatus, OnParentFailure
from jobledger.ledger.direct import Executor

_LOCK_PARENTS: Final = sa.text("""
UPDATE job_statuses SET has_children = true
 WHERE id IN (SELECT id FROM job_statuses WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE)
RETURNING id, status, reason
""")
_LINK: Final = sa.text("""
INSERT INTO job_dependencies (parent_id, child_id, on_parent_failure, is_over)
SELECT parent_id, child_id, on_parent_failure,
       parent_id = ANY(CAST(:completed AS uuid[]))
       OR on_parent_failure = 'run' AND parent_id = ANY(CAST(:dead AS uuid[]))
  FROM unnest(CAST(:parents AS uuid[])) AS p(parent_id),
       unnest(CAST(:children AS uuid[]), CAST(:on_parent_failure AS text[])) AS c(child_id, on_parent_failure)
""")


def lock_parents(connection: Connection, parents: Sequence[UUID]) -> dict[UUID, JobStatus]:
    """Lock the parents of a job that is about to be inserted, and mark them as having children.

    The finish of a parent waits for this transaction, then reads `has_children` from the row as it is now; its
    children are looked up by a later statement, which sees what this transaction inserted.

    Returns:
        The status of each parent that exists.
    """
    rows = connection.execute(_LOCK_PARENTS, {"ids": [str(one) for one in parents]})
    return {row.id: JobStatus(row.status) for row in rows}


def link(connection: Connection, parents: Mapping[UUID, JobStatus], children: Mapping[UUID, OnParentFailure]) -> None:
    """Record that each child waits for each parent, or that the wait is over already.

    Args:
        connection: in the transaction that has the parents locked.
        parents: the status of each.
        children: the `on_parent_failure` of each.
    """
    ended = {one: status for one, status in parents.items() if status in TERMINAL}
    connection.execute(
        _LINK,
        {
            "parents": [str(one) for one in parents],
            "children": [str(one) for one in children],
            "on_parent_failure": list(children.values()),
            "completed": [str(one) for one, status in ended.items() if status is JobStatus.COMPLETED],
            "dead": [str(one) for one, status in ended.items() if status is not JobStatus.COMPLETED],
        },
    )


# The first children of each range, in the order of their ids. Those that are to move are locked, unless another
# transaction has them locked. `status || ''` leaves the plan only the primary key: many jobs may be deferred.
_NEXT_CHILDREN: Final = sa.text("""
WITH ranges AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:parents AS uuid[]), CAST(:firsts AS uuid[]), CAST(:lasts AS uuid[]))
                  WITH ORDINALITY AS r(parent_id, first_child_id, last_child_id, number)
), part AS MATERIALIZED (
    SELECT r.number, r.parent_id, p.status AS parent_status, d.child_id, d.on_parent_failure,
           NOT d.is_over AND (p.status = 'completed' OR d.on_parent_failure <> 'hold') AS is_concerned
      FROM ranges r JOIN job_statuses p ON p.id = r.parent_id AND p.finished_at IS NOT NULL
     CROSS JOIN LATERAL (SELECT * FROM job_dependencies d
                          WHERE d.parent_id = r.parent_id AND d.child_id BETWEEN r.first_child_id AND r.last_child_id
                          ORDER BY d.child_id LIMIT :each) AS d
), locked AS (
    SELECT c.id FROM job_statuses c
     WHERE c.id IN (SELECT child_id FROM part WHERE is_concerned) AND c.status || '' = 'deferred'
     ORDER BY c.id FOR NO KEY UPDATE OF c SKIP LOCKED
)
SELECT part.number - 1 AS range, part.parent_id, part.parent_status, part.child_id, part.on_parent_failure,
       part.is_concerned AND c.status = 'deferred' AS waits, locked.id IS NOT NULL AS is_locked
  FROM part JOIN job_statuses c ON c.id = part.child_id LEFT JOIN locked ON locked.id = part.child_id
 ORDER BY part.number, part.child_id
""")


@dataclass(frozen=True, slots=True)
class Child:
    """A child of a job that has ended.

    Attributes:
        range: the place of its range among those that were asked for.
        waits: whether it waits for this job, and is to move now.
        is_locked: whether this transaction has it locked, if it waits.
    """

    range: int
    parent_id: UUID
    parent_status: JobStatus
    child_id: UUID
    on_parent_failure: OnParentFailure
    waits: bool
    is_locked: bool


def next_children(connection: Executor, ranges: Sequence[Untold], each: int) -> list[Child]:
    """The next children of jobs that have ended, in the order of the ranges and of their ids.

    Those that wait are locked, unless they are locked already: so this waits for no other transaction, and cannot
    deadlock.

    Args:
        connection: in a transaction.
        ranges: the jobs, and their children. A job that has not ended gives none.
        each: children of each range at most.
    """
    parameters = {
        "parents": [str(one.parent_id) for one in ranges],
        "firsts": [str(one.first_child_id) for one in ranges],
        "lasts": [str(one.last_child_id) for one in ranges],
        "each": each,
    }
    return [
        Child(
            row.range,
            row.parent_id,
            JobStatus(row.parent_status),
            row.child_id,
            OnParentFailure(row.on_parent_failure),
            row.waits,
            row.is_locked,
        )
        for row in connection.execute(_NEXT_CHILDREN, parameters)
    ]


# A wait that is over is not counted twice: a failed parent may be retried, and complete.
_RELEASE: Final = sa.text("""
WITH over AS (
    UPDATE job_dependencies d SET is_over = true
      FROM unnest(CAST(:parents AS uuid[]), CAST(:children AS uuid[])) AS ended(parent_id, child_id)
     WHERE d.parent_id = ended.parent_id AND d.child_id = ended.child_id AND NOT d.is_over
    RETURNING d.child_id
), counted AS (
    SELECT child_id, count(*) AS parents FROM over GROUP BY child_id
), released AS (
    UPDATE job_statuses c
       SET waiting_parents = greatest(c.waiting_parents - counted.parents, 0), updated_at = statement_timestamp(),
           status = CASE WHEN c.waiting_parents > counted.parents THEN 'deferred'
                         WHEN c.available_at > statement_timestamp() THEN 'scheduled' ELSE 'queued' END,
           queued_at = CASE WHEN c.waiting_parents <= counted.parents AND c.available_at <= statement_timestamp()
                            THEN statement_timestamp() END,
           pushed_at = CASE WHEN c.waiting_parents <= counted.parents AND c.available_at <= statement_timestamp()
                            THEN statement_timestamp() END,
           push_count = CASE WHEN c.waiting_parents <= counted.parents AND c.available_at <= statement_timestamp()
                             THEN 1 ELSE 0 END
      FROM counted
     WHERE c.id = counted.child_id AND c.status = 'deferred'
    RETURNING c.id, c.queue, c.job_type, c.title, c.timeout_seconds, c.status
)
SELECT * FROM released WHERE status = 'queued' ORDER BY id
""")


def release_children(connection: Executor, ended: Collection[tuple[UUID, UUID]]) -> list[Wake]:
    """deferred -> queued (or scheduled, if delayed) for children whose last parent has ended.

    Args:
        connection: in the transaction that has them locked.
        ended: pairs of a parent and a child that waits for it no longer. A repeated pair counts once.

    Returns:
        The children to push after the commit.
    """
    parameters = {"parents": [str(one) for one, _ in ended], "children": [str(one) for _, one in ended]}
    rows = connection.execute(_RELEASE, parameters)
    return [Wake(row.id, row.queue, row.job_type, row.title, row.timeout_seconds) for row in rows]


_CANCEL_CHILDREN: Final = sa.text("""
UPDATE job_statuses c
   SET status = 'canceled', reason = given.reason,
       finished_at = statement_timestamp(), updated_at = statement_timestamp()
  FROM unnest(CAST(:ids AS uuid[]), CAST(:reasons AS text[])) AS given(child_id, reason)
 WHERE c.id = given.child_id AND c.status = 'deferred'
RETURNING c.id, c.has_children
""")


def cancel_children(connection: Executor, reasons: Mapping[UUID, str]) -> list[UUID]:
    """deferred -> canceled for children that are canceled with a parent.

    Args:
        connection: in the transaction that has them locked.
        reasons: the reason of each.

    Returns:
        The canceled jobs that have children themselves.
    """
    parameters = {"ids": [str(one) for one in reasons], "reasons": list(reasons.values())}
    return [row.id for row in connection.execute(_CANCEL_CHILDREN, parameters) if row.has_children]


_NOTE_UNTOLD: Final = sa.text("""
INSERT INTO job_propagations AS known (parent_id, first_child_id, last_child_id, due_at)
SELECT u.parent_id, u.first_child_id,
       least(u.last_child_id, (SELECT d.child_id FROM job_dependencies d
                                WHERE d.parent_id = u.parent_id ORDER BY d.child_id DESC LIMIT 1)),
       statement_timestamp() + make_interval(secs => :wait_seconds)
  FROM unnest(CAST(:parents AS uuid[]), CAST(:firsts AS uuid[]), CAST(:lasts AS uuid[]))
       AS u(parent_id, first_child_id, last_child_id)
ON CONFLICT (parent_id, first_child_id) DO UPDATE
   SET last_child_id = greatest(known.last_child_id, excluded.last_child_id),
       due_at = least(known.due_at, excluded.due_at)
RETURNING parent_id
""")


def note_untold(connection: Executor, ranges: Sequence[Untold], wait_seconds: float = 0.0) -> None:
    """Note the children that are still to be told of a job's end, in the transaction that ended it or told others.

    Args:
        connection: in that transaction.
        ranges: of children dispatched until now; later dispatches see the end themselves.
        wait_seconds: before other processes take the notes.
    """
    connection.execute(
        _NOTE_UNTOLD,
        {
            "parents": [str(one.parent_id) for one in ranges],
            "firsts": [str(one.first_child_id) for one in ranges],
            "lasts": [str(one.last_child_id) for one in ranges],
            "wait_seconds": wait_seconds,
        },
    )


_TAKE_UNTOLD: Final = """
WITH taken AS (
    SELECT parent_id, first_child_id FROM job_propagations WHERE {which}
     ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM job_propagations p USING taken
 WHERE p.parent_id = taken.parent_id AND p.first_child_id = taken.first_child_id
RETURNING p.parent_id, p.first_child_id, p.last_child_id
"""
_TAKE_DUE: Final = sa.text(_TAKE_UNTOLD.format(which="due_at <= statement_timestamp()"))
_TAKE_OF: Final = sa.text(_TAKE_UNTOLD.format(which="parent_id = ANY(CAST(:parents AS uuid[]))"))


def take_untold(connection: Connection, limit: int, parents: Collection[UUID] | None = None) -> list[Untold]:
    """Take notes of children that are still to be told; the caller notes the rest again in the same transaction.

    Args:
        connection: in a transaction.
        limit: notes at most.
        parents: only of these jobs, also before they are due; None for all due notes, the longest due first.
    """
    if parents is None:
        rows = connection.execute(_TAKE_DUE, {"limit": limit})
    else:
        rows = connection.execute(_TAKE_OF, {"limit": limit, "parents": [str(one) for one in parents]})
    return [Untold(row.parent_id, row.first_child_id, row.last_child_id) for row in rows]


_DEFERRED_BETWEEN: Final = sa.text("""
(SELECT id FROM job_statuses WHERE status = 'deferred' ORDER BY id LIMIT 1) UNION ALL
(SELECT id FROM job_statuses WHERE status = 'deferred' ORDER BY id DESC LIMIT 1)
""")


def deferred_between(connection: Connection) -> tuple[UUID, UUID] | None:
    """The first and the last id of deferred jobs; None if there is none."""
    ids = connection.execute(_DEFERRED_BETWEEN).scalars().all()
    return (ids[0], ids[1]) if ids else None


_NO_PARENT_LEFT: Final = """
NOT EXISTS (SELECT FROM job_dependencies d JOIN job_statuses p ON p.id = d.parent_id
             WHERE d.child_id = c.id AND NOT d.is_over
               AND (p.finished_at IS NULL OR (d.on_parent_failure = 'hold' AND p.status <> 'completed')
                    OR EXISTS (SELECT FROM job_propagations n
                                WHERE n.parent_id = p.id AND c.id BETWEEN n.first_child_id AND n.last_child_id)))
"""
_STUCK: Final = sa.text(f"""
SELECT c.id, (SELECT d.parent_id FROM job_dependencies d JOIN job_statuses p ON p.id = d.parent_id
               WHERE d.child_id = c.id AND p.status IN ('failed', 'canceled') AND d.on_parent_failure = 'cancel'
               ORDER BY p.id LIMIT 1) AS dead_parent_id
  FROM (SELECT id FROM job_statuses WHERE status = 'deferred' AND id >= CAST(:first AS uuid)
         ORDER BY id LIMIT :limit) AS c
 WHERE {_NO_PARENT_LEFT}
""")  # noqa: S608 - put together from constants


def stuck_children(connection: Connection, first: UUID, limit: int) -> dict[UUID, UUID | None]:
    """Jobs that wait although all of their parents have ended, each with the parent that it is to be canceled with.

    Args:
        first: the id to begin with.
        limit: deferred jobs to look at, at most.
    """
    rows = connection.execute(_STUCK, {"first": str(first), "limit": limit})
    return {row.id: row.dead_parent_id for row in rows}


_RELEASE_STUCK: Final = sa.text(f"""
WITH stuck AS (
    SELECT c.id FROM job_statuses c
     WHERE c.id = ANY(CAST(:ids AS uuid[])) AND c.status = 'deferred' AND {_NO_PARENT_LEFT}
     ORDER BY c.id FOR NO KEY UPDATE OF c SKIP LOCKED
)
UPDATE job_statuses c
   SET status = CASE WHEN c.available_at > statement_timestamp() THEN 'scheduled' ELSE 'queued' END,
       queued_at = CASE WHEN c.available_at <= statement_timestamp() THEN statement_timestamp() END,
       waiting_parents = 0, pushed_at = NULL, updated_at = statement_timestamp()
  FROM stuck WHERE c.id = stuck.id AND c.status = 'deferred'
""")  # noqa: S608 - put together from constants


def release_stuck(connection: Connection, ids: Sequence[UUID]) -> int:
    """deferred -> queued (or scheduled, if delayed) for jobs whose parents have all ended; the relay pushes them.

    Returns:
        The number of jobs.
    """
    return connection.execute(_RELEASE_STUCK, {"ids": [str(one) for one in ids]}).rowcount
