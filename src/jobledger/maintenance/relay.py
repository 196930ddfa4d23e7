"""Pushes what nobody has pushed, and queues what has become due (R1 and R2).

What was never pushed is pushed inside the transaction that records it: if Redis is away or this process dies, the rows
stay as they were, and at worst a wake-up is delivered twice, which the claim absorbs.
"""

from typing import Final

from jobledger import queues
from jobledger.connections import Connections
from jobledger.dispatch import push_quietly
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import pushes, queries, transitions

BATCH: Final = 500
DEADLINE_SECONDS: Final = 15.0


def relay_due(connections: Connections) -> int:
    """Queue and push jobs whose time has come (delays, retries).

    The push follows the commit: a worker that is quicker than the commit would find the row not yet queued, and throw
    its wake-up away.

    Returns:
        How many.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    total = 0
    while True:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            wakes = transitions.promote_due(connection, BATCH)
        push_quietly(connections, wakes)
        total += len(wakes)
        if len(wakes) < BATCH:
            return total


def relay_unpushed(connections: Connections) -> int:
    """Push queued jobs that are in no Redis list because their push failed, in the order of priority and age.

    Returns:
        How many.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; nothing changed.
    """
    total = 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        names = queries.queues_with_unpushed(connection)
    for name in names:
        while True:
            with connections.transaction(DEADLINE_SECONDS) as connection:
                wakes = pushes.take_unpushed(connection, name, BATCH)
                queues.push(connections.redis, wakes)
                reach(Failpoint.AFTER_RELAY_PUSH)
            total += len(wakes)
            if len(wakes) < BATCH:
                break
    return total
