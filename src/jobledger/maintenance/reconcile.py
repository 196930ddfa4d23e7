"""Compares the ledger with Redis: what is queued and was pushed, but is in no Redis list, is pushed again (R3).

A worker that died between taking a wake-up and claiming its row, or a Redis that came back empty, leaves such rows.
"""

from typing import Final

from jobledger import queues
from jobledger.connections import Connections
from jobledger.ledger import pushes, queries
from jobledger.wake import Wake

PUSH_GRACE_SECONDS: Final = 15.0
"""A wake-up that was taken is claimed within this; younger pushes are not looked at."""

BATCH: Final = 5000
DEADLINE_SECONDS: Final = 15.0


def reconcile(connections: Connections, grace_seconds: float = PUSH_GRACE_SECONDS) -> int:
    """Mark lost wake-ups as not pushed, so that the relay pushes them again.

    Returns:
        How many were lost.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; nothing changed.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        names = queries.queues_with_work(connection)
    return sum(_reconcile_queue(connections, name, grace_seconds) for name in names)


def _reconcile_queue(connections: Connections, queue: str, grace_seconds: float) -> int:
    head = queues.head(connections.redis, queue)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        suspects = queries.pushed_before(connection, queue, grace_seconds, head, BATCH)
    if not suspects:
        return 0
    # Read after the suspects: whatever is pushed in between is in the list, whatever is taken is claimed soon.
    listed = set(queues.waiting(connections.redis, queue))
    lost: list[Wake] = [wake for wake in suspects if str(wake.id) not in listed]
    if not lost:
        return 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        return pushes.unpush(connection, [(wake.id, wake.push_count) for wake in lost])
