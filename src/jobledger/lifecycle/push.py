"""Pushes that follow a commit: as many as have room, and never an error. The relay pushes the rest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import redis
from sqlalchemy.exc import SQLAlchemyError

from jobledger import queues
from jobledger.connections.deadlines import DISPATCH_SECONDS
from jobledger.connections.default import Connections
from jobledger.domain.records import Wake
from jobledger.errors import LedgerUnavailable
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import wakeups
from jobledger.ledger.identity import ledger_name
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)


def ask_for_room(connections: Connections, wanted: Mapping[str, int]) -> Counter[str]:
    """The number of wake-ups of each queue that may be pushed now; none if Redis is away."""
    room: Counter[str] = Counter()
    window = queues.window_of(connections)
    try:
        for name, count in wanted.items():
            room[name] = window.grant(connections.redis, name, count)
    except redis.RedisError as error:
        log.warning("Redis is away: the relay will push", error=str(error))
    return room


def push_quietly(connections: Connections, wakes: Sequence[Wake]) -> bool:
    """Push the wake-ups that have room, and mark the rows of the rest as not pushed, so that the relay pushes them.

    Args:
        connections: the servers.
        wakes: of rows that are committed, and say that they were pushed.

    Returns:
        Whether Redis took all. Nothing is raised: the jobs are accepted, and repair pushes the rest.
    """
    if not wakes:
        return True
    room = ask_for_room(connections, Counter(wake.queue for wake in wakes))
    fitting: list[Wake] = []
    rest: list[Wake] = []
    for wake in wakes:
        (fitting if room[wake.queue] > 0 else rest).append(wake)
        room[wake.queue] -= 1
    _note_unpushed(connections, rest)
    return push(connections, fitting) and not rest


def push(connections: Connections, wakes: Sequence[Wake]) -> bool:
    """Push wake-ups that are known to have room; if Redis is away, mark their rows as not pushed."""
    if not wakes:
        return True
    reach(Failpoint.BEFORE_PUSH)
    try:
        name = ledger_name(connections)
        queues.push(
            connections.redis,
            wakes,
            prefix=connections.settings.queue_prefix,
            ledger=name.id if name is not None else None,
        )
    except redis.RedisError as error:
        log.warning("Redis is away: the relay will push", wakes=len(wakes), error=str(error))
        queues.window_of(connections).close()
        _note_unpushed(connections, wakes)
        return False
    return True


def _note_unpushed(connections: Connections, wakes: Sequence[Wake]) -> None:
    if not wakes:
        return
    try:
        with connections.transaction(DISPATCH_SECONDS) as connection:
            wakeups.unpush(connection, [(wake.id, wake.push_count) for wake in wakes])
    except (LedgerUnavailable, SQLAlchemyError) as unwritten:  # accepted all the same; the reconciler finds them
        log.warning("Not noted as not pushed", wakes=len(wakes), error=str(unwritten))
