"""Ends jobs that were not started in time: they fail as `expired`, and never run."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from jobledger import finish, slots
from jobledger.connections import Connections
from jobledger.ledger import expiry
from jobledger.pushing import push_quietly

BATCH: Final = 500
PASS: Final = 5000
"""Jobs that one pass ends at most; the next one follows soon."""

DEADLINE_SECONDS: Final = 15.0


def expire(connections: Connections) -> int:
    """Fail what has expired, call its `on_failed`, and tell what waits for it.

    Returns:
        How many jobs expired.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    total = 0
    while total < PASS:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            found = expiry.overdue(connection, BATCH)
        expired = _expire_childless(connections, [one.id for one in found if not one.has_children])
        expired += sum(_expire_parent(connections, one.id) for one in found if one.has_children)
        total += expired
        if len(found) < BATCH or not expired:
            break
    return total


def _expire_childless(connections: Connections, ids: Sequence[UUID]) -> int:
    if not ids:
        return 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        failed = expiry.expire(connection, ids, with_children=False)
    push_quietly(connections, [one.callback for one in failed if one.callback is not None])
    slots.pass_on(connections, ids)
    return len(failed)


def _expire_parent(connections: Connections, job_id: UUID) -> int:
    """One at a time: its children are locked after it, in the order that all who end a parent keep to."""
    with connections.transaction(DEADLINE_SECONDS) as connection:
        failed = expiry.expire(connection, [job_id], with_children=True)
        wakes = finish.tell_descendants(connection, job_id) if failed else []
    push_quietly(connections, [*(one.callback for one in failed if one.callback is not None), *wakes])
    slots.pass_on(connections, [job_id])
    return len(failed)
