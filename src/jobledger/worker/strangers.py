"""Puts back a wake-up of another ledger that a worker of this one took, or drops it.

The reconciler of its own ledger finds a dropped wake-up: the delivery ended well and the row is still queued, so it
pushes the job again, and counts no loss. So a wake-up is put back a few times only, each time later; and not at all if
this ledger owns the queues, because its own jobs must not wait for those of a ledger that only dispatches.
"""

import time
from typing import Final
from uuid import UUID

import redis
from rq import get_current_job

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.ledger import wakeups
from jobledger.ledger.identity import LedgerName, ledger_name
from jobledger.observe.log import get_logger
from jobledger.queues import owner

log: Final = get_logger(__name__)

MOST_RETURNS: Final = 5
PAUSE_SECONDS: Final = 0.2
"""The pause for each earlier return: two workers must not exchange a wake-up at full speed."""

DEADLINE_SECONDS: Final = 5.0


def hand_on(connections: Connections, job_id: UUID) -> str | None:
    """Put back a wake-up that led to no claim, if it is another ledger's.

    Returns:
        The result, in a few words; None if the wake-up is not another ledger's, as far as is known.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    name, job = ledger_name(connections), get_current_job()
    if name is None or job is None:
        return None
    client = connections.maintenance_redis
    try:
        theirs = queues.pushed_by_others(client, [job_id], name.id).get(job_id)
        if theirs is None or _has_row(connections, job_id):
            return None
        returns = owner.count_return(client, job_id) - 1
        back = returns < MOST_RETURNS and not _owns_queues(connections, name)
        if back:
            time.sleep(PAUSE_SECONDS * returns)
            owner.put_back(client, job_id, job.origin)
    except redis.RedisError as error:
        log.warning("Redis is away: a wake-up of another ledger was not put back", job_id=str(job_id), error=str(error))
        return None
    log.warning("A wake-up of another ledger", job_id=str(job_id), of=theirs, this=name.id, put_back=back)
    return f"of ledger {theirs}, not of {name.id}: {'put back' if back else 'left to its reconciler'}"


def _owns_queues(connections: Connections, name: LedgerName) -> bool:
    found = owner.owner(connections.maintenance_redis, connections.settings.queue_prefix)
    return found is not None and found.id == name.id


def _has_row(connections: Connections, job_id: UUID) -> bool:
    with connections.transaction(DEADLINE_SECONDS) as connection:
        return job_id in wakeups.standing(connection, [job_id])
