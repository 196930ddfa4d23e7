"""Counts whether every unfinished job is in exactly one place, and every wake-up in Redis belongs to a job.

The counts are for health checks, metrics and `doctor`. Jobs move while they are counted, so apparent errors are checked
again a moment later. About once a minute a scheduler counts and stores the result: with 50,000 wake-ups in Redis, and
as many jobs that wait for room there, this takes less than a second of one core.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Final
from uuid import UUID

from jobledger import queues
from jobledger.connections.default import Connections
from jobledger.domain.status import JobStatus
from jobledger.ledger import heartbeats, limit_counts, stats, wakeups
from jobledger.ledger.identity import ledger_name
from jobledger.ledger.wakeups import PUSH_GRACE_SECONDS
from jobledger.observe.log import get_logger
from jobledger.process import this_process
from jobledger.queues.keys import intermediate_of, list_of
from jobledger.queues.stale import ENDED_SECONDS, STALE_SECONDS

log: Final = get_logger(__name__)

COUNT_SECONDS: Final = 60.0
SECOND_LOOK_SECONDS: Final = 0.5
MOST_ENTRIES: Final = 200_000
"""Most entries that are read of a list; the counts of a longer list are not exact."""

HEAD: Final = 100
"""Unpushed jobs at the head of the line that are checked: a working relay has pushed them one pass later."""

LONGEST_RELAY_PAUSE_SECONDS: Final = 2.0
"""Longest pause of a relay for which a count waits."""

CHUNK: Final = 5000
DEADLINE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Conservation:
    """Numbers of jobs, wake-ups and slots by place.

    Attributes:
        listed: queued, and in their Redis list.
        on_the_way: queued; not pushed yet, or just taken by a worker.
        running: started, with a valid lease.
        lost: queued, pushed longer ago than their grace, and in no list.
        doubled: surplus entries of jobs that are in lists more than once, or in the list of another queue.
        needless: listed, although they are not queued, or are held.
        without_row: wake-ups in lists that belong to no job.
        unattended: started, with an expired lease.
        leftovers: in RQ's intermediate queues or started registries, although they have ended.
        unpushed: queued for long and not pushed, although their list has room: no relay runs, or Redis takes no
            writes.
        is_exact: whether all lists were read completely.
        astray: slots held by jobs that may not have one, and keys with a wrong count.
    """

    listed: int
    on_the_way: int
    held: int
    scheduled: int
    deferred: int
    running: int
    lost: int
    doubled: int
    needless: int
    without_row: int
    unattended: int
    leftovers: int
    is_exact: bool
    astray: int = 0
    unpushed: int = 0

    @property
    def drift(self) -> int:
        """Number of jobs in no place or in two, and of entries and slots without a job."""
        in_redis = self.lost + self.doubled + self.needless + self.without_row + self.leftovers
        return in_redis + self.unpushed + self.unattended + self.astray


@dataclass(slots=True)
class _Lists:
    """The findings in all queues together."""

    listed: int = 0
    doubled: int = 0
    leftovers: int = 0
    is_exact: bool = True
    lost: dict[UUID, int] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)
    """Room in the lists that are less than half full."""
    needless: dict[str, set[UUID]] = field(default_factory=dict)
    without_row: int = 0


def count(connections: Connections) -> Conservation:
    """Count all places.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away.
    """
    found = _Lists()
    with connections.transaction(DEADLINE_SECONDS) as connection:
        names = set(stats.queues_with_work(connection))
    names.update(queues.names(connections.maintenance_redis, connections.settings.queue_prefix))
    for name in sorted(names):
        _look(connections, name, found)
    if found.lost or found.needless:
        time.sleep(SECOND_LOOK_SECONDS)
    lost = _still_lost(connections, names, found.lost)
    needless = sum(_still_listed(connections, name, ids) for name, ids in found.needless.items())
    unpushed = _unpushed(connections, found.room)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        rows = stats.unfinished(connection)
    return Conservation(
        listed=found.listed,
        on_the_way=max(rows.queued - found.listed - lost - unpushed, 0),
        held=rows.held,
        scheduled=rows.scheduled,
        deferred=rows.deferred,
        running=rows.running,
        lost=lost,
        doubled=found.doubled,
        needless=needless,
        without_row=found.without_row,
        unattended=rows.unattended,
        leftovers=found.leftovers,
        is_exact=found.is_exact,
        astray=_astray(connections),
        unpushed=unpushed,
    )


def _astray(connections: Connections) -> int:
    """Slots astray in two looks. The end of a job passes its slot on a moment later, so one look is not enough."""
    seen = _slots_astray(connections)
    if not seen:
        return 0
    time.sleep(SECOND_LOOK_SECONDS)
    return len(seen & _slots_astray(connections))


def _slots_astray(connections: Connections) -> set[object]:
    with connections.transaction(DEADLINE_SECONDS) as connection:
        return {*limit_counts.leaked(connection, CHUNK), *limit_counts.miscounted(connection, CHUNK)}


def _look(connections: Connections, queue: str, found: _Lists) -> None:
    client, settings, ledger = connections.maintenance_redis, connections.settings, ledger_name(connections)
    name = ledger.id if ledger is not None else None
    with connections.transaction(DEADLINE_SECONDS) as connection:
        overdue = wakeups.overdue(connection, queue, PUSH_GRACE_SECONDS, None, MOST_ENTRIES)
    entries = queues.read_slice(
        client, list_of(settings.queue_in_redis(queue)), MOST_ENTRIES
    )  # after the suspects: see `reconcile`
    found.is_exact &= entries.is_whole
    window = settings.queue_window
    if 2 * entries.length < window:
        found.room[queue] = window - entries.length
    times = Counter(entries.ids)
    if entries.is_whole:
        found.lost.update({one.id: one.push_count for one in overdue if one.id not in times})
    for chunk in _chunks(times):
        with connections.transaction(DEADLINE_SECONDS) as connection:
            standing = wakeups.standing(connection, chunk)
        strange = [one for one in chunk if one not in standing]
        found.without_row += len(queues.ours_of(client, strange, STALE_SECONDS, name))
        idle = [one for one, (status, is_held, _) in standing.items() if status is not JobStatus.QUEUED or is_held]
        others = queues.pushed_by_others(client, idle, name)
        for one, (status, is_held, own_queue) in standing.items():
            if status is not JobStatus.QUEUED or is_held:
                if one not in others:
                    found.needless.setdefault(queue, set()).add(one)
            elif own_queue != queue:
                found.doubled += times[one]
            else:
                found.listed += 1
                found.doubled += times[one] - 1
    found.leftovers += _leftovers(connections, queue)


def _leftovers(connections: Connections, queue: str) -> int:
    client, name = connections.maintenance_redis, connections.settings.queue_in_redis(queue)
    taken = queues.read_slice(client, intermediate_of(name), CHUNK).ids
    begun = [one.job_id for one in queues.read_begun(client, name, CHUNK)]
    if not (taken or begun):
        return 0
    with connections.transaction(DEADLINE_SECONDS) as connection:
        ended = wakeups.long_ended(connection, {*taken, *begun}, ENDED_SECONDS)
    return sum(one in ended for one in (*taken, *begun))


def _still_lost(connections: Connections, names: Iterable[str], seen: dict[UUID, int]) -> int:
    """Lost jobs that were neither claimed nor pushed since the first look."""
    if not seen:
        return 0
    total = 0
    for name in names:
        with connections.transaction(DEADLINE_SECONDS) as connection:
            again = wakeups.overdue(connection, name, PUSH_GRACE_SECONDS, None, MOST_ENTRIES)
        total += sum(seen.get(one.id) == one.push_count for one in again)
    return total


def _unpushed(connections: Connections, room: Mapping[str, int]) -> int:
    """Jobs that the relay has not pushed for longer than a pass, in lists that had room all the time."""
    pause = connections.settings.relay_seconds
    grace_seconds = max(PUSH_GRACE_SECONDS, 3 * pause)
    with connections.transaction(DEADLINE_SECONDS) as connection:
        first = {
            name: set(stats.overdue_unpushed(connection, name, grace_seconds, min(HEAD, free)))
            for name, free in room.items()
        }
        left = {name: ids for name, ids in first.items() if ids}
    if not left:
        return 0
    time.sleep(SECOND_LOOK_SECONDS + min(pause, LONGEST_RELAY_PAUSE_SECONDS))
    total = 0
    for name, ids in left.items():
        with connections.transaction(DEADLINE_SECONDS) as connection:
            again = stats.overdue_unpushed(connection, name, grace_seconds, room[name])
        total += len(again) if ids <= set(again) else 0  # otherwise the relay is at work: a whole list may be ahead
    return total


def _still_listed(connections: Connections, queue: str, ids: Collection[UUID]) -> int:
    """Entries that no worker has taken since the first look."""
    name = connections.settings.queue_in_redis(queue)
    listed = set(queues.read_slice(connections.maintenance_redis, list_of(name), MOST_ENTRIES).ids)
    return sum(one in listed for one in ids)


def _chunks(ids: Iterable[UUID]) -> Iterator[list[UUID]]:
    rest = iter(ids)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def count_places(connections: Connections) -> None:
    """Count all places and store the result, unless another scheduler has done so within about a minute.

    Raises:
        LedgerUnavailable: Postgres is away.
        redis.RedisError: Redis is away; nothing is written.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        last = heartbeats.last_count(connection)
    if last is not None and last.age_seconds < COUNT_SECONDS * 3 / 4:
        return
    counted = count(connections)
    found = {**asdict(counted), "drift": counted.drift}
    with connections.transaction(DEADLINE_SECONDS) as connection:
        heartbeats.note_count(connection, this_process(), found)
    if counted.drift:
        log.info("Jobs were out of place", **{name: value for name, value in found.items() if value})
