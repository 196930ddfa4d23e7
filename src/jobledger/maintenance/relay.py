"""Queues what has become due, and pushes jobs whose push failed.

One pusher for all that waits in Postgres: by priority and age, as much as the window of each queue has room for, as
fast as the servers allow, and at no higher rate than is set. It pushes inside the transaction that records it: if Redis
is away or this process dies, the rows stay as they were, and at worst a wake-up is delivered twice, which the claim
absorbs.
"""

import threading
import time
from typing import Final

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import heartbeats, moves, pauses, stats, wakeups
from jobledger.ledger.identity import ledger_name
from jobledger.process import this_process

BATCH: Final = 2000
"""In one transaction. Larger ones are hardly quicker, and keep workers from their rows for longer."""

STAY_SECONDS: Final = 5.0
"""While more waits, pass follows pass without a pause, for so long; then a stop of the process gets its turn."""

DEADLINE_SECONDS: Final = 15.0


class _Pass:
    """What is left of a pass: of the rate's share of the pause between passes, and of that time.

    Attributes:
        left: rows that it may still touch.
    """

    def __init__(self, connections: Connections) -> None:
        settings = connections.settings
        self.left = max(1, round(settings.relay_rate * settings.relay_seconds))
        self._ends_at = time.monotonic() + settings.relay_seconds

    @property
    def goes_on(self) -> bool:
        """Whether another batch is for this pass."""
        return self.left > 0 and time.monotonic() < self._ends_at

    def count(self, rows: int) -> None:
        """Some rows were touched."""
        self.left -= rows


def relay(connections: Connections, *, is_sweep: bool = True, stopping: threading.Event | None = None) -> int:
    """Queue what is due, then push what has room; and again, for some seconds, while only time ended the pass.

    Args:
        connections: the servers.
        is_sweep: whether the caller does it again and again, and is recorded as a process that relays.
        stopping: set when the process is to end.

    Returns:
        How many wake-ups were pushed.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; what was due is queued.
    """
    total, ends_at = 0, time.monotonic() + STAY_SECONDS
    while True:
        relay_due(connections)
        release_resumed(connections)
        one = _Pass(connections)
        total += _push_pass(connections, one, is_sweep)
        is_done = one.goes_on or one.left <= 0
        if is_done or time.monotonic() > ends_at or (stopping is not None and stopping.is_set()):
            return total


def relay_due(connections: Connections) -> int:
    """Queue jobs whose time has come (delays, retries), without pushing them.

    The push follows this commit: a worker that is quicker than the commit would find the row not yet queued, and throw
    its wake-up away.

    Returns:
        How many, at most as many as a pass pushes.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    total, one = 0, _Pass(connections)
    while one.goes_on:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            queued = moves.promote_due(connection, min(BATCH, one.left))
        total += queued
        one.count(queued)
        if queued < BATCH:
            break
    return total


def release_resumed(connections: Connections) -> int:
    """Release the jobs that a pause still holds although it has ended: its end was interrupted.

    Returns:
        How many, at most as many as a pass pushes.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        ended = pauses.ended(connection)
    return sum(_release(connections, held_by) for held_by in ended)


def _release(connections: Connections, held_by: str) -> int:
    total, one = 0, _Pass(connections)
    while one.goes_on:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            released = pauses.release(connection, held_by, min(BATCH, one.left))
        total += released
        one.count(released)
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
    return _push_pass(connections, _Pass(connections), is_sweep)


def _push_pass(connections: Connections, one: _Pass, is_sweep: bool) -> int:
    with connections.transaction(DEADLINE_SECONDS) as connection:
        names = stats.queues_with_unpushed(connection)
    total = 0
    while names and one.goes_on:
        for name in list(names):
            wanted = min(BATCH, one.left)
            pushed, held = _push_batch(connections, name, wanted)
            one.count(pushed + held)
            total += pushed
            if pushed + held < wanted:
                names.remove(name)
    if is_sweep:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            gap_seconds = heartbeats.longest_gap_seconds(connections.settings.relay_seconds)
            heartbeats.record(connection, heartbeats.RELAY, this_process(), gap_seconds, gap_seconds)
    return total


def _push_batch(connections: Connections, queue: str, limit: int) -> tuple[int, int]:
    client, settings = connections.maintenance_redis, connections.settings
    room = min(limit, settings.queue_window - queues.length(client, settings.queue_in_redis(queue)))
    if room <= 0:
        return 0, 0
    name = ledger_name(connections)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        wakes, held = wakeups.take_unpushed(connection, queue, room)
        queues.push(client, wakes, prefix=settings.queue_prefix, ledger=name.id if name is not None else None)
        reach(Failpoint.AFTER_RELAY_PUSH)
    return len(wakes), held
