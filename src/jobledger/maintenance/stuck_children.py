"""Lets go of jobs that wait for parents that have all ended.

Whoever ends a parent releases its children in the same transaction, so there is no known way for a job to be left. If
one is, it would wait for ever; so a part of those that wait is looked at now and then.
"""

import random
from functools import partial
from typing import Final
from uuid import UUID

from jobledger.connections.default import Connections
from jobledger.domain.status import JobStatus
from jobledger.ledger import moves
from jobledger.lifecycle.finish import Settled, announce, propagate_end
from jobledger.maintenance.one_by_one import OneByOne
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

LIMIT: Final = 1000
"""Jobs that one look sees: so many from the oldest, and so many from a random place."""

DEADLINE_SECONDS: Final = 15.0


def release_stuck_children(connections: Connections) -> int:
    """Queue those whose parents have completed, or are not there any more; cancel those of which one did not.

    What somebody holds is left for the next look.

    Returns:
        How many.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        between = moves.deferred_between(connection)
        if between is None:
            return 0
        oldest, newest = between
        somewhere = UUID(int=random.randint(oldest.int, newest.int))  # noqa: S311
        found = moves.stuck_children(connection, oldest, LIMIT) | moves.stuck_children(connection, somewhere, LIMIT)
    if not found:
        return 0
    each = OneByOne(connections, DEADLINE_SECONDS)
    let_go = 0
    for parent in sorted({one for one in found.values() if one is not None}):
        wakes = each.do(parent, partial(propagate_end, job_id=parent, how="ended without completing"))
        if wakes is not None:
            let_go += sum(one == parent for one in found.values())
            announce(connections, Settled(JobStatus.CANCELED, wakes))
    with connections.transaction(DEADLINE_SECONDS) as connection:
        ready = sorted(one for one, parent in found.items() if parent is None)
        let_go += moves.release_stuck(connection, ready)
    each.end()
    if let_go:
        log.error("Waited for parents that had ended", count=let_go, first=str(min(found)))
    return let_go
