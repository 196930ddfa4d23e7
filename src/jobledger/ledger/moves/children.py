"""Jobs that wait for others: linked at dispatch, released by the last parent, canceled or kept if one fails.

Rows are locked in the order of their ids, parents before children, so that families that move at once cannot
deadlock.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.domain.records import Wake
from jobledger.domain.status import JobStatus, OnParentFailure
from jobledger.ledger.direct import Executor

_LOCK_PARENTS: Final = sa.text("""
UPDATE job_statuses SET has_children = true
 WHERE id IN (SELECT id FROM job_statuses WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE)
RETURNING id, status, reason
""")
_LINK: Final = sa.text("""
INSERT INTO job_dependencies (parent_id, child_id, on_parent_failure, is_over)
SELECT parent_id, child_id, on_parent_failure, on_parent_failure = 'run' AND parent_id = ANY(CAST(:dead AS uuid[]))
  FROM unnest(CAST(:parents AS uuid[])) AS p(parent_id),
       unnest(CAST(:children AS uuid[]), CAST(:on_parent_failure AS text[])) AS c(child_id, on_parent_failure)
""")


def lock_parents(connection: Connection, parents: Sequence[UUID]) -> dict[UUID, JobStatus]:
    """Lock the parents of a job that is about to be inserted, and tell them that they have children.

    The finish of a parent waits for this transaction, then reads `has_children` from the row as it is now; its
    children are looked up by a later statement, which sees what this transaction inserted.

    Returns:
        The status of each parent that exists.
    """
    rows = connection.execute(_LOCK_PARENTS, {"ids": [str(one) for one in parents]})
    return {row.id: JobStatus(row.status) for row in rows}


def link(
    connection: Connection,
    parents: Sequence[UUID],
    children: Mapping[UUID, OnParentFailure],
    dead: Collection[UUID] = (),
) -> None:
    """Record that each child waits for each parent.

    Args:
        parents: what is waited for.
        children: who waits, and what becomes of it when a parent does not complete.
        dead: those of the parents that have failed or were canceled already.
    """
    connection.execute(
        _LINK,
        {
            "parents": [str(one) for one in parents],
            "children": [str(one) for one in children],
            "on_parent_failure": list(children.values()),
            "dead": [str(one) for one in dead],
        },
    )


# What is over is not counted twice: a parent that failed may be retried, and complete.
_RELEASE: Final = sa.text("""
WITH ended AS (
    SELECT child_id, count(*) AS parents FROM job_dependencies
     WHERE parent_id = ANY(CAST(:ids AS uuid[])) AND NOT is_over AND (:completed OR on_parent_failure = 'run')
     GROUP BY child_id
), waiting AS (
    SELECT c.id, ended.parents FROM ended JOIN job_statuses c ON c.id = ended.child_id
     WHERE c.status = 'deferred' ORDER BY c.id FOR NO KEY UPDATE OF c
), released AS (
    UPDATE job_statuses c
       SET waiting_parents = c.waiting_parents - waiting.parents, updated_at = statement_timestamp(),
           status = CASE WHEN c.waiting_parents > waiting.parents THEN 'deferred'
                         WHEN c.available_at > statement_timestamp() THEN 'scheduled' ELSE 'queued' END,
           queued_at = CASE WHEN c.waiting_parents = waiting.parents AND c.available_at <= statement_timestamp()
                            THEN statement_timestamp() END,
           pushed_at = CASE WHEN c.waiting_parents = waiting.parents AND c.available_at <= statement_timestamp()
                            THEN statement_timestamp() END,
           push_count = CASE WHEN c.waiting_parents = waiting.parents AND c.available_at <= statement_timestamp()
                             THEN 1 ELSE 0 END
      FROM waiting
     WHERE c.id = waiting.id AND c.status = 'deferred'
    RETURNING c.id, c.queue, c.job_type, c.title, c.timeout_seconds, c.status
), over AS (
    UPDATE job_dependencies d SET is_over = true FROM released
     WHERE NOT :completed AND d.child_id = released.id AND d.parent_id = ANY(CAST(:ids AS uuid[]))
)
SELECT * FROM released WHERE status = 'queued' ORDER BY id
""")


def release_children(connection: Executor, parent_id: UUID) -> list[Wake]:
    """deferred -> queued (or scheduled, if delayed) for children whose last parent this was.

    Children are locked in the order of their ids, so that two parents that end at once cannot deadlock.

    Returns:
        The children to push after the commit.
    """
    return _release(connection, [parent_id], completed=True)


def release_in_spite(connection: Connection, parents: Sequence[UUID]) -> list[Wake]:
    """The same for children that run although these parents, the last ones, have failed or were canceled."""
    return _release(connection, parents, completed=False)


def _release(connection: Executor, parents: Sequence[UUID], *, completed: bool) -> list[Wake]:
    rows = connection.execute(_RELEASE, {"ids": [str(one) for one in parents], "completed": completed})
    return [Wake(row.id, row.queue, row.job_type, row.title, row.timeout_seconds) for row in rows]


_LOCK_CHILDREN: Final = sa.text("""
SELECT c.id FROM job_dependencies d JOIN job_statuses c ON c.id = d.child_id
 WHERE d.parent_id = ANY(CAST(:ids AS uuid[])) AND c.status = 'deferred' ORDER BY c.id FOR NO KEY UPDATE OF c
""")


def lock_children(connection: Connection, parents: Sequence[UUID]) -> None:
    """Lock all that wait for these parents, in the order of their ids, before some are canceled and others released."""
    connection.execute(_LOCK_CHILDREN, {"ids": [str(one) for one in parents]})


_CANCEL_CHILDREN: Final = sa.text("""
WITH waiting AS (
    SELECT c.id, min(CAST(d.parent_id AS text)) AS parent_id
      FROM job_dependencies d JOIN job_statuses c ON c.id = d.child_id
     WHERE d.parent_id = ANY(CAST(:ids AS uuid[])) AND c.status = 'deferred' AND d.on_parent_failure = 'cancel'
     GROUP BY c.id
), locked AS (
    SELECT c.id, waiting.parent_id FROM job_statuses c JOIN waiting ON c.id = waiting.id
     WHERE c.status = 'deferred' ORDER BY c.id FOR NO KEY UPDATE OF c
)
UPDATE job_statuses c
   SET status = 'canceled', reason = 'parent ' || locked.parent_id || ' ' || CAST(:how AS text),
       finished_at = statement_timestamp(), updated_at = statement_timestamp()
  FROM locked
 WHERE c.id = locked.id AND c.status = 'deferred'
RETURNING c.id, c.has_children
""")


def cancel_children(connection: Connection, parents: Sequence[UUID], how: str) -> list[UUID]:
    """deferred -> canceled for those that wait for these parents and are canceled with them.

    Args:
        how: what the parents did, for the reason: "failed" or "was canceled".

    Returns:
        Those canceled jobs that have children themselves.
    """
    rows = connection.execute(_CANCEL_CHILDREN, {"ids": [str(one) for one in parents], "how": how})
    return [row.id for row in rows if row.has_children]


_DEFERRED_BETWEEN: Final = sa.text("""
(SELECT id FROM job_statuses WHERE status = 'deferred' ORDER BY id LIMIT 1) UNION ALL
(SELECT id FROM job_statuses WHERE status = 'deferred' ORDER BY id DESC LIMIT 1)
""")


def deferred_between(connection: Connection) -> tuple[UUID, UUID] | None:
    """The first and the last of the ids of jobs that wait for others; None if none does."""
    ids = connection.execute(_DEFERRED_BETWEEN).scalars().all()
    return (ids[0], ids[1]) if ids else None


_NO_PARENT_LEFT: Final = """
NOT EXISTS (SELECT FROM job_dependencies d JOIN job_statuses p ON p.id = d.parent_id
             WHERE d.child_id = c.id AND NOT d.is_over
               AND (p.finished_at IS NULL OR (d.on_parent_failure = 'hold' AND p.status <> 'completed')))
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
    """Jobs that wait although all of their parents have ended, each with a parent that it is to be canceled with.

    Args:
        first: the id to begin with.
        limit: so many jobs that wait are looked at.
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
        How many.
    """
    return connection.execute(_RELEASE_STUCK, {"ids": [str(one) for one in ids]}).rowcount
