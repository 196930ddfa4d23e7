"""Releases or cancels jobs that wait although their parents have all ended.

The process that ends a parent tells its children in the same transaction, or notes them to be told, so no way is known
for a child to be forgotten. A forgotten child would wait for ever; so a part of the deferred jobs is checked now and
then.
"""

import random
from typing import Final
from uuid import UUID

from jobledger.connections.default import Connections
from jobledger.domain.records import Untold
from jobledger.ledger import moves
from jobledger.lifecycle.children import propagate_due
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

LIMIT: Final = 1000
"""Jobs that one pass checks from the oldest on, and as many from a random place."""

DEADLINE_SECONDS: Final = 15.0
TELL_SECONDS: Final = 5.0


def release_stuck_children(connections: Connections) -> int:
    """Queue stuck jobs whose parents all completed or were pruned; cancel those of which a parent did not complete.

    A job that another transaction has locked is left for later.

    Returns:
        The number of jobs queued or canceled.

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
        dead = [Untold(parent, one, one) for one, parent in found.items() if parent is not None]
        released = moves.release_stuck(connection, sorted(one for one, parent in found.items() if parent is None))
        if dead:
            moves.note_untold(connection, dead)
    if dead:
        propagate_due(connections, TELL_SECONDS)
    let_go = released + len(dead)
    if let_go:
        log.error("Waited for parents that had ended", count=let_go, first=str(min(found)))
    return let_go
