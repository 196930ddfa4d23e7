"""Removes stale entries from Redis: needless wake-ups, doubled ones, and leftovers of RQ.

They do no harm, because no delivery does anything without a claim; but RQ's own maintenance would call finished jobs
failed, and people would see wrong figures in Redis. A pass reads a part of each list, so that a long list does not make
it long. RQ jobs of other applications and other ledgers in the same queues are left alone.
"""

from collections import Counter
from typing import Final
from uuid import UUID

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.domain.status import JobStatus
from jobledger.ledger import wakeups
from jobledger.ledger.identity import ledger_name
from jobledger.observe.log import get_logger
from jobledger.queues import Slice
from jobledger.queues.keys import intermediate_of, list_of
from jobledger.queues.stale import ENDED_SECONDS, STALE_SECONDS

log: Final = get_logger(__name__)

LIMIT: Final = 5000
"""Entries of each list that one pass reads."""

MOST_NAMED: Final = 5
DEADLINE_SECONDS: Final = 15.0


def clean(connections: Connections, limit: int = LIMIT) -> Counter[str]:
    """Read a part of each list, and remove the stale entries.

    Returns:
        The number of entries removed, by kind.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away.
    """
    client = connections.maintenance_redis
    removed: Counter[str] = Counter()
    settings = connections.settings
    for name in map(settings.queue_in_redis, queues.names(client, settings.queue_prefix)):
        removed += _clean_list(connections, queues.read_slice(client, list_of(name), limit))
        removed += _clean_intermediate(connections, queues.read_slice(client, intermediate_of(name), limit))
        removed["begun, and ended long ago"] += _clean_begun(connections, name, limit)
    return +removed


def _clean_list(connections: Connections, found: Slice) -> Counter[str]:
    times = Counter(found.ids)
    if not times:
        return Counter()
    client, ledger = connections.maintenance_redis, ledger_name(connections)
    name = ledger.id if ledger is not None else None
    with connections.transaction(DEADLINE_SECONDS) as connection:
        standing = wakeups.standing(connection, times)
    idle = [one for one, (status, is_held, _) in standing.items() if status is not JobStatus.QUEUED or is_held]
    others = queues.pushed_by_others(client, idle, name)  # of a copy of this database, which has the same ids
    needless = [one for one in idle if one not in others]
    stale = queues.ours_of(client, [one for one in times if one not in standing], STALE_SECONDS, name)
    gone = set(queues.remove(client, found, stale, stale))
    if gone:
        log.warning("Wake-ups without a row", count=len(gone), first=[str(one) for one in sorted(gone)[:MOST_NAMED]])
    doubled = {one: count for one, count in times.items() if count > 1 and one in standing and one not in idle}
    return Counter(
        {
            "listed, and not queued": _remove_idle(connections, found, needless),
            "listed, and without a row": len(gone),
            "listed twice": queues.remove_doubles(client, found, doubled),
        }
    )


def _clean_intermediate(connections: Connections, found: Slice) -> Counter[str]:
    with connections.transaction(DEADLINE_SECONDS) as connection:
        ended = wakeups.long_ended(connection, set(found.ids), 0.0) if found.ids else set()
    gone = queues.remove(connections.maintenance_redis, found, ended, ())
    return Counter({"taken, and ended": len(gone)})


def _remove_idle(connections: Connections, found: Slice, ids: list[UUID]) -> int:
    """Remove wake-ups of jobs that are not queued, under a lock: a job queued meanwhile would lose its new wake-up.

    The RQ hash of a running job stays: only its second wake-up is in the list, and the first is running.
    """
    if not ids:
        return 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        idle = wakeups.lock_idle(connection, ids)
        with_hash = {one for one, status in idle.items() if status is not JobStatus.STARTED}
        return len(queues.remove(connections.maintenance_redis, found, list(idle), with_hash))


def _clean_begun(connections: Connections, queue: str, limit: int) -> int:
    client = connections.maintenance_redis
    begun = queues.read_begun(client, queue, limit)
    if not begun:
        return 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        ended = wakeups.long_ended(connection, {one.job_id for one in begun}, ENDED_SECONDS)
    entries = [one for one in begun if one.job_id in ended]
    queues.remove_begun(client, queue, entries)
    return len(entries)
