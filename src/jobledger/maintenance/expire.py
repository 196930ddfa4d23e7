"""Ends jobs that were not started in time: they fail as `expired`, and never run."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy.engine import Connection

from jobledger.connections.default import Connections
from jobledger.domain.status import JobStatus
from jobledger.ledger import moves
from jobledger.lifecycle.finish import Settled, announce, settled_as_failed
from jobledger.maintenance.one_by_one import OneByOne

BATCH: Final = 500
PASS: Final = 5000
"""Jobs that one pass looks at, at most; the next pass follows soon."""

DEADLINE_SECONDS: Final = 15.0


def expire(connections: Connections) -> int:
    """Fail expired jobs, dispatch their `on_failed`, and tell their children.

    A job that another transaction has locked is left for the next pass.

    Returns:
        The number of jobs that expired.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    each = OneByOne(connections, DEADLINE_SECONDS)
    total, looked_at, last = 0, 0, None
    while looked_at < PASS:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            found = moves.expired(connection, last, BATCH)
        total += _expire_childless(connections, [one.id for one in found if not one.has_children])
        total += sum(_expire_parent(connections, each, one.id) for one in found if one.has_children)
        looked_at += len(found)
        if len(found) < BATCH:
            break
        last = found[-1]
    each.end()
    return total


def _expire_childless(connections: Connections, ids: Sequence[UUID]) -> int:
    if not ids:
        return 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        failed = moves.expire(connection, ids, with_children=False)
    callbacks = [one.callback for one in failed if one.callback is not None]
    announce(connections, Settled(JobStatus.FAILED, callbacks), freed=ids)
    return len(failed)


def _expire_parent(connections: Connections, each: OneByOne, job_id: UUID) -> int:
    """One parent at a time: its children are locked after it, the order of locks of every end."""
    settled = each.do(job_id, lambda connection: _expire_family(connection, job_id))
    if settled is None:
        return 0
    announce(connections, settled, freed=[job_id])
    return 1


def _expire_family(connection: Connection, job_id: UUID) -> Settled | None:
    failed = moves.expire(connection, [job_id], with_children=True)
    return settled_as_failed(connection, job_id, failed[0]) if failed else None
