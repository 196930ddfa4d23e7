"""Notices that Redis was emptied, restarted or replaced, and has all that it lost pushed again.

The ledger knows the Redis of which it last compared everything: by a mark in its data, and by the run of its server. If
it finds another one, what is missing is marked as not pushed at once, without the grace that a single wake-up has; only
then the new one is noted, so that a process that dies in between, or does this at the same time, does no harm.
"""

from typing import Final

from redis.exceptions import NoPermissionError

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.ledger import stats, wakeups
from jobledger.observe.log import get_logger
from jobledger.queues.server import EPOCH_KEY

log: Final = get_logger(__name__)

BATCH: Final = 5000
DEADLINE_SECONDS: Final = 15.0

LATE_WORKERS_SECONDS: Final = 600.0
"""An idle worker gives its next sign of life within seven minutes: until then it is in no set, and has no hash."""


def notice_redis_restart(connections: Connections) -> int:
    """Compare the Redis that is there with the one that the ledger knows.

    Returns:
        How many wake-ups another Redis does not have; they are marked, and the relay pushes them. No job is to blame
        for them. 0 if this user may not touch the mark: the reconciler finds single ones without it.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away, or takes no writes; nothing is judged.
    """
    client = connections.maintenance_redis
    try:
        epoch = f"{queues.read_epoch(client)} {connections.settings.queue_prefix}".strip()  # other names, other lists
    except NoPermissionError as error:
        log.warning(
            "Redis lets this user have no mark in it: an emptied one is not noticed at once",
            key=EPOCH_KEY,
            error=str(error),
        )
        return 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        known = wakeups.known_redis(connection)
        names = stats.queues_with_work(connection) if known is None or known.epoch != epoch else []
    if known is not None and known.epoch == epoch:
        return 0
    missing = sum(_unpush_missing(connections, name) for name in names)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        noted = wakeups.note_redis(connection, known.epoch if known else None, epoch)
    if noted and known is not None:
        log.warning("Another Redis, or an emptied one", missing=missing, was=known.epoch, now=epoch)
    return missing


def _unpush_missing(connections: Connections, queue: str) -> int:
    with connections.transaction(DEADLINE_SECONDS) as connection:
        until = stats.now(connection)
    # Read after that moment: what was pushed before it is there, unless it was lost or taken. One that a dispatch is
    # about to push is pushed twice at worst.
    listed = set(queues.waiting(connections.maintenance_redis, connections.settings.queue_in_redis(queue)))
    missing, last = 0, None
    while True:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            page = wakeups.pushed_until(connection, queue, until, last, BATCH)
            lost = [(one.id, one.push_count) for one in page if str(one.id) not in listed]
            if lost:
                missing += wakeups.unpush(connection, lost)
        if len(page) < BATCH:
            return missing
        last = page[-1]


def find_late_workers(connections: Connections) -> int:
    """Put workers that an emptied Redis has forgotten back among all workers, as they give signs of life.

    Returns:
        How many.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        known = wakeups.known_redis(connection)
    if known is None or known.age_seconds > LATE_WORKERS_SECONDS:
        return 0
    return queues.put_back_workers(connections.maintenance_redis)
