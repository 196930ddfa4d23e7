"""Jobs that wait for others: told apart at dispatch, released by the last parent, canceled with one that fails.

Like `transitions`, this writes statuses: each move is one guarded statement. Rows are locked in the order of their ids,
parents before children, so that families that move at once cannot deadlock. Nothing here commits.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobledger.ledger.direct import Executor
from jobledger.status import JobStatus
from jobledger.wake import Wake

_ADOPT: Final = sa.text("""
UPDATE job_statuses SET has_children = true
 WHERE id IN (SELECT id FROM job_statuses WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE)
RETURNING id, status, reason
""")
_LINK: Final = sa.text("""
INSERT INTO job_dependencies (parent_id, child_id)
SELECT parent_id, child_id FROM unnest(CAST(:parents AS uuid[])) AS p(parent_id),
                                unnest(CAST(:children AS uuid[])) AS c(child_id)
""")


def adopt(connection: Connection, parents: Sequence[UUID]) -> dict[UUID, JobStatus]:
    """Lock the parents of a job that is about to be inserted, and tell them that they have children.

    The finish of a parent waits for this transaction, then reads `has_children` from the row as it is now; its
    children are looked up by a later statement, which sees what this transaction inserted.

    Returns:
        The status of each parent that exists.
    """
    rows = connection.execute(_ADOPT, {"ids": [str(one) for one in parents]})
    return {row.id: JobStatus(row.status) for row in rows}


def link(connection: Connection, parents: Sequence[UUID], children: Sequence[UUID]) -> None:
    """Record that each child waits for each parent."""
    connection.execute(_LINK, {"parents": [str(one) for one in parents], "children": [str(one) for one in children]})


_RELEASE: Final = sa.text("""
WITH waiting AS (
    SELECT c.id FROM job_dependencies d JOIN job_statuses c ON c.id = d.child_id
     WHERE d.parent_id = CAST(:id AS uuid) AND c.status = 'deferred' ORDER BY c.id FOR NO KEY UPDATE OF c
), released AS (
    UPDATE job_statuses c
       SET waiting_parents = c.waiting_parents - 1, updated_at = statement_timestamp(),
           status = CASE WHEN c.waiting_parents > 1 THEN 'deferred'
                         WHEN c.available_at > statement_timestamp() THEN 'scheduled' ELSE 'queued' END,
           queued_at = CASE WHEN c.waiting_parents = 1 AND c.available_at <= statement_timestamp()
                            THEN statement_timestamp() END,
           pushed_at = CASE WHEN c.waiting_parents = 1 AND c.available_at <= statement_timestamp()
                            THEN statement_timestamp() END,
           push_count = CASE WHEN c.waiting_parents = 1 AND c.available_at <= statement_timestamp() THEN 1 ELSE 0 END
      FROM waiting
     WHERE c.id = waiting.id AND c.status = 'deferred'
    RETURNING c.id, c.queue, c.job_type, c.title, c.timeout_seconds, c.status
)
SELECT * FROM released WHERE status = 'queued' ORDER BY id
""")


def release_children(connection: Executor, parent_id: UUID) -> list[Wake]:
    """deferred -> queued (or scheduled, if delayed) for children whose last parent this was.

    Children are locked in the order of their ids, so that two parents that end at once cannot deadlock.

    Returns:
        The children to push after the commit.
    """
    rows = connection.execute(_RELEASE, {"id": str(parent_id)})
    return [Wake(row.id, row.queue, row.job_type, row.title, row.timeout_seconds) for row in rows]


_CANCEL_CHILDREN: Final = sa.text("""
WITH waiting AS (
    SELECT c.id, min(CAST(d.parent_id AS text)) AS parent_id
      FROM job_dependencies d JOIN job_statuses c ON c.id = d.child_id
     WHERE d.parent_id = ANY(CAST(:ids AS uuid[])) AND c.status = 'deferred'
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
    """deferred -> canceled for all that wait for these parents.

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
             WHERE d.child_id = c.id AND p.finished_at IS NULL)
"""
_ORPHANS: Final = sa.text(f"""
SELECT c.id, (SELECT d.parent_id FROM job_dependencies d JOIN job_statuses p ON p.id = d.parent_id
               WHERE d.child_id = c.id AND p.status IN ('failed', 'canceled') ORDER BY p.id LIMIT 1) AS dead_parent_id
  FROM (SELECT id FROM job_statuses WHERE status = 'deferred' AND id >= CAST(:first AS uuid)
         ORDER BY id LIMIT :limit) AS c
 WHERE {_NO_PARENT_LEFT}
""")  # noqa: S608 - put together from constants


def orphans(connection: Connection, first: UUID, limit: int) -> dict[UUID, UUID | None]:
    """Jobs that wait although all of their parents have ended, each with a parent that did not complete, if any.

    Args:
        first: the id to begin with.
        limit: so many jobs that wait are looked at.
    """
    rows = connection.execute(_ORPHANS, {"first": str(first), "limit": limit})
    return {row.id: row.dead_parent_id for row in rows}


_RELEASE_ORPHANS: Final = sa.text(f"""
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


def release_orphans(connection: Connection, ids: Sequence[UUID]) -> int:
    """deferred -> queued (or scheduled, if delayed) for jobs whose parents have all ended; the relay pushes them.

    Returns:
        How many.
    """
    return connection.execute(_RELEASE_ORPHANS, {"ids": [str(one) for one in ids]}).rowcount
