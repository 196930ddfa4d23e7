"""Compares the ledger with Redis: what is queued and was pushed, but is in no Redis list, is pushed again.

A worker that died between taking a wake-up and claiming its row leaves such rows. One that noticed the death of its
work-horse says so to RQ: then the wake-up is lost at once; otherwise after a grace. Each loss counts against the row's
present attempt, and doubles the grace: a wake-up that fails every time must not turn in a busy loop. The fifth ends the
job as `undispatchable`. Five, because a worker that is broken loses one every few tenths of a second, and another one
that is not may take the next.

A loss does not count if it was not the wake-up's: Postgres was away or had no room, says the run; or it has started,
or no process has compared, within the last moments; or Redis is another one (`redis_restarts`); or a worker of another
ledger took it, which says so itself (its delivery ended well, and the row is still queued) or is seen by what its
ledger leaves in Redis.
"""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy.engine import Connection
from uuid6 import uuid7

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.ledger import heartbeats, moves, stats, wakeups
from jobledger.ledger.identity import ledger_name
from jobledger.ledger.wakeups import PUSH_GRACE_SECONDS, Suspect
from jobledger.lifecycle.finish import Settled, announce, settled_as_failed
from jobledger.maintenance.one_by_one import OneByOne
from jobledger.observe.log import get_logger
from jobledger.process import this_process
from jobledger.queues import Death, owner
from jobledger.queues.stale import as_id

log: Final = get_logger(__name__)

REPORT_GRACE_SECONDS: Final = 1.0
MAX_LOST_WAKES: Final = 5
SETTLED_SECONDS: Final = 30.0
"""Losses count when Postgres has been up, and a process has compared, for so long."""

LEDGER_AWAY: Final = "jobledger.errors.LedgerUnavailable"
"""So begins what RQ says of a run that could not reach Postgres, or whose claim Postgres could not write."""

LOOKED_AT: Final = 100
"""Of a list in which another ledger's wake-ups may be."""

BATCH: Final = 5000
DEADLINE_SECONDS: Final = 15.0


def reconcile(
    connections: Connections,
    grace_seconds: float = PUSH_GRACE_SECONDS,
    settled_seconds: float = SETTLED_SECONDS,
    *,
    is_sweep: bool = True,
) -> int:
    """Mark lost wake-ups as not pushed, so that the relay pushes them again; end jobs that have lost too many.

    Args:
        connections: the servers.
        grace_seconds: of a wake-up that RQ says nothing of, and that is the first.
        settled_seconds: for how long all must have been well for losses to count.
        is_sweep: whether the caller does it again and again, and is recorded as a process that repairs.

    Returns:
        How many were lost.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; nothing changed.
    """
    connections.maintenance_redis.ping()  # who has not reached Redis has not compared
    gap_seconds = heartbeats.longest_gap_seconds(connections.settings.sweep_seconds)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        by = this_process() if is_sweep else None
        settled = heartbeats.record(connection, heartbeats.RECONCILE, by, gap_seconds, settled_seconds)
        names = stats.queues_with_work(connection)
    settled = settled and not _others_keep_queues(connections)
    each = OneByOne(connections, DEADLINE_SECONDS, sweep=heartbeats.RECONCILE if is_sweep else None)
    lost = 0
    for name in names:
        each.record_again()
        lost += _reconcile_queue(connections, each, name, grace_seconds, settled)
    each.end()
    return lost


def _reconcile_queue(connections: Connections, each: OneByOne, queue: str, grace_seconds: float, settled: bool) -> int:
    client, name = connections.maintenance_redis, connections.settings.queue_in_redis(queue)
    head = queues.head(client, name)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        overdue = wakeups.overdue(connection, queue, grace_seconds, head, BATCH)
        recent = wakeups.recent(connection, queue, REPORT_GRACE_SECONDS, grace_seconds, head, BATCH)
    if not (overdue or recent):
        return 0
    suspects = [one.id for one in (*overdue, *recent)]
    deaths, strayed = queues.reported_deaths(client, suspects), queues.ended_well(client, suspects)
    found = [*overdue, *(one for one in recent if one.id in deaths or one.id in strayed)]
    if not found:
        return 0
    # Read after the suspects: whatever is pushed in between is in the list, whatever is taken is claimed soon.
    listed = queues.waiting(client, name)
    lost = _without(found, listed)
    if not lost:
        return 0
    if taken := [one for one in lost if one.id in strayed]:
        log.warning("Wake-ups were taken by workers that have no such job", queue=queue, count=len(taken))
    settled = settled and not _others_push(connections, listed)
    return _mark(connections, each, lost, deaths, set() if not settled else {one.id for one in lost} - strayed)


def _without(found: Sequence[Suspect], listed: Sequence[str]) -> list[Suspect]:
    there = set(listed)
    return [one for one in found if str(one.id) not in there]


def _others_keep_queues(connections: Connections) -> bool:
    """Whether processes of another ledger say that these queues are its own."""
    name = ledger_name(connections)
    found = owner.owner(connections.maintenance_redis, connections.settings.queue_prefix)
    return name is not None and found is not None and found.id != name.id


def _others_push(connections: Connections, listed: Sequence[str]) -> bool:
    """Whether wake-ups of another ledger are among the next ones of a list."""
    name = ledger_name(connections)
    ids = [one for one in map(as_id, listed[:LOOKED_AT]) if one is not None]
    return name is not None and bool(queues.pushed_by_others(connections.maintenance_redis, ids, name.id))


def _mark(
    connections: Connections, each: OneByOne, lost: Sequence[Suspect], deaths: Mapping[UUID, Death], counts: set[UUID]
) -> int:
    """Mark them as lost; of those in `counts` it counts, unless the run says that Postgres was away."""
    marked: list[tuple[Suspect, bool]] = []
    ended = 0
    for one in lost:
        death = deaths.get(one.id)
        is_counted = one.id in counts and not (death is not None and death.report.startswith(LEDGER_AWAY))
        if is_counted and one.losses + 1 >= MAX_LOST_WAKES:
            ended += _give_up(connections, each, one, death)
        else:
            marked.append((one, is_counted))
    if not marked:
        return ended
    with connections.transaction(DEADLINE_SECONDS) as connection:
        return ended + wakeups.record_lost(connection, marked)


def _give_up(connections: Connections, each: OneByOne, one: Suspect, death: Death | None) -> int:
    settled = each.do(one.id, lambda connection: _end_family(connection, one))
    if settled is None:
        return 0
    words = death.report if death is not None else "no worker said anything of them"
    log.error("Failed: no wake-up led to a claim", job_id=str(one.id), wake_ups=MAX_LOST_WAKES, last=words)
    announce(connections, settled, freed=[one.id])
    return 1


def _end_family(connection: Connection, one: Suspect) -> Settled | None:
    failed = moves.give_up(connection, one, UUID(int=uuid7().int))
    return settled_as_failed(connection, one.id, failed) if failed is not None else None
