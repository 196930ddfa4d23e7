"""Queues what has become due, and pushes what nobody has pushed (R1 and R2).

One pusher for all that waits in Postgres: by priority and age, as much as the window of each queue has room for, and at
a bounded rate. It pushes inside the transaction that records it: if Redis is away or this process dies, the rows stay
as they were, and at worst a wake-up is delivered twice, which the claim absorbs.
"""

from typing import Final

from jobledger import queues
from jobledger.connections import Connections
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import leases, pushes, queries, sweeps, transitions
from jobledger.process import this_process

BATCH: Final = 500
PASS: Final = 5000
"""Wake-ups that one pass pushes at most, in all; the next one follows after `relay_seconds`."""

GAP_SECONDS: Final = 15.0
DEADLINE_SECONDS: Final = 15.0


def relay(connections: Connections) -> int:
    """Queue what is due, then push what has room.

    Returns:
        How many wake-ups were pushed.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; what was due is queued.
    """
    relay_due(connections)
    return relay_unpushed(connections)


def relay_due(connections: Connections) -> int:
    """Queue jobs whose time has come (delays, retries), without pushing them.

    The push follows this commit: a worker that is quicker than the commit would find the row not yet queued, and throw
    its wake-up away.

    Returns:
        How many, at most as many as a pass pushes.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    total = 0
    while total < PASS:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            queued = transitions.promote_due(connection, BATCH)
        total += queued
        if queued < BATCH:
            break
    return total


def relay_unpushed(connections: Connections) -> int:
    """Push queued jobs that are in no Redis list, in the order of priority and age; queues take turns.

    Returns:
        How many.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; nothing changed.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        leases.record_sweep(connection, sweeps.RELAY, this_process(), GAP_SECONDS, GAP_SECONDS)
        names = queries.queues_with_unpushed(connection)
    left = PASS
    while names and left > 0:
        for name in list(names):
            pushed = _push_batch(connections, name, min(BATCH, left))
            left -= pushed
            if pushed < BATCH:
                names.remove(name)
    return PASS - left


def _push_batch(connections: Connections, queue: str, limit: int) -> int:
    client = connections.maintenance_redis
    room = min(limit, connections.settings.queue_window - queues.length(client, queue))
    if room <= 0:
        return 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        wakes = pushes.take_unpushed(connection, queue, room)
        queues.push(client, wakes)
        reach(Failpoint.AFTER_RELAY_PUSH)
    return len(wakes)
