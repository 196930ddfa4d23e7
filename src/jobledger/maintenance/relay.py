"""Queues what has become due, and pushes what nobody has pushed (R1 and R2).

One pusher for all that waits in Postgres: by priority and age, as much as the window of each queue has room for, and at
a bounded rate. It pushes inside the transaction that records it: if Redis is away or this process dies, the rows stay
as they were, and at worst a wake-up is delivered twice, which the claim absorbs.
"""

from typing import Final

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import heartbeats, moves, pauses, stats, wakeups
from jobledger.process import this_process

BATCH: Final = 500
PASS: Final = 5000
"""Wake-ups that one pass pushes at most, in all; the next one follows after `relay_seconds`."""

DEADLINE_SECONDS: Final = 15.0


def relay(connections: Connections, *, is_sweep: bool = True) -> int:
    """Queue what is due, then push what has room.

    Args:
        connections: the servers.
        is_sweep: whether the caller does it again and again, and is recorded as somebody who relays.

    Returns:
        How many wake-ups were pushed.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; what was due is queued.
    """
    relay_due(connections)
    release_resumed(connections)
    return relay_unpushed(connections, is_sweep=is_sweep)


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
            queued = moves.promote_due(connection, BATCH)
        total += queued
        if queued < BATCH:
            break
    return total


def release_resumed(connections: Connections) -> int:
    """Release what is still held by a pause that has ended: whoever ended it was interrupted.

    Returns:
        How many, at most as many as a pass pushes.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        ended = pauses.ended(connection)
    return sum(_release(connections, held_by) for held_by in ended)


def _release(connections: Connections, held_by: str) -> int:
    total = 0
    while total < PASS:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            released = pauses.release(connection, held_by, BATCH)
        total += released
        if released < BATCH:
            break
    return total


def relay_unpushed(connections: Connections, *, is_sweep: bool = True) -> int:
    """Push queued jobs that are in no Redis list, in the order of priority and age; queues take turns. Jobs of a paused
    queue or type are held instead.

    Args:
        connections: the servers.
        is_sweep: as of `relay`. A pass that fails is not recorded: who cannot push does not relay.

    Returns:
        How many.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; nothing changed.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        names = stats.queues_with_unpushed(connection)
    left, total = PASS, 0
    while names and left > 0:
        for name in list(names):
            pushed, held = _push_batch(connections, name, min(BATCH, left))
            left -= pushed + held
            total += pushed
            if pushed + held < BATCH:
                names.remove(name)
    if is_sweep:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            gap_seconds = heartbeats.longest_gap_seconds(connections.settings.relay_seconds)
            heartbeats.record(connection, heartbeats.RELAY, this_process(), gap_seconds, gap_seconds)
    return total


def _push_batch(connections: Connections, queue: str, limit: int) -> tuple[int, int]:
    client = connections.maintenance_redis
    room = min(limit, connections.settings.queue_window - queues.length(client, queue))
    if room <= 0:
        return 0, 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        wakes, held = wakeups.take_unpushed(connection, queue, room)
        queues.push(client, wakes)
        reach(Failpoint.AFTER_RELAY_PUSH)
    return len(wakes), held
