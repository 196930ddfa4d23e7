"""What is done around the slots of limits and rates: a claim with its keys, and passing on what has become free.

Whoever ends a job with limits passes its slots on, in transactions after that of the end: no job's own transaction ever
holds a key. Who dies in between leaves that to a chore; so does what is noted here and not raised.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final
from uuid import UUID

import psycopg2
from sqlalchemy.exc import SQLAlchemyError

from jobledger.connections.deadlines import DISPATCH_SECONDS
from jobledger.connections.default import Connections
from jobledger.connections.locks import limit_silence
from jobledger.domain.records import Claim, Runner, Wake
from jobledger.errors import LedgerUnavailable
from jobledger.ledger import moves
from jobledger.ledger.direct import Direct, Executor
from jobledger.lifecycle.push import push_quietly
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

MOST_AT_ONCE: Final = 100
"""Jobs of one key, or of all keys of a dispatch, that are released in a row; the chore goes on."""

NEAR: Final = 2_000
"""How far down a line whoever passes a slot on looks for somebody whom nothing else keeps; the chore looks farther."""

MOST_ASIDE: Final = 500
"""Jobs that are moved to another line at once, so that it takes no longer than a dispatch may."""

LONGEST_SILENCE_SECONDS: Final = 5.0


def claim(connections: Connections, direct: Direct, job_id: UUID, runner: Runner, lease_seconds: float) -> Claim | None:
    """Start a job that has limits, if it may; otherwise it is held, and a slot that it leaves goes to the next.

    Args:
        direct: in autocommit.

    Returns:
        None for a job that has none, is held, or is not there to be started.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    answer = moves.claim_limited(direct, job_id, runner, lease_seconds)
    while answer is not None and answer.lacks_keys:
        moves.make_limit_keys(direct, job_id)
        answer = moves.claim_limited(direct, job_id, runner, lease_seconds)
    if answer is None:  # it may have had a slot, and be held by a pause
        pass_on(connections, [job_id], direct)
        return None
    if answer.refused_by is not None:
        log.info("Held", job_id=str(job_id), held_by=answer.refused_by)
        for key in answer.free_keys:
            release(connections, key, direct)
    return answer.claim


def pass_on(connections: Connections, ids: Sequence[UUID], direct: Direct | None = None) -> int:
    """Take the slots of jobs that may not have one any more, and give each to the oldest that waits.

    Args:
        ids: jobs that have ended, or wait for something else; of others nothing is taken.
        direct: in autocommit; None for a connection of its own.

    Returns:
        How many jobs were released. Nothing is raised: the chore does what is left undone.
    """
    try:
        with _one_by_one(connections, direct) as connection:
            given = moves.give_back_slots(connection, ids)
        released = sum(release(connections, key, direct) for key in given.keys)
        if not released:  # whoever has the same limits may stand in the line of the other one
            released = sum(release(connections, key, direct, most=len(ids)) for key in given.other_keys)
        return released
    except (LedgerUnavailable, SQLAlchemyError, psycopg2.Error) as error:
        log.warning("Slots are passed on later", jobs=len(ids), error=str(error))
        return 0


def release_new(connections: Connections, keys: Iterable[str]) -> None:
    """Give slots to jobs that were dispatched just now, as far as there are some; the chore goes on if they are many.

    Args:
        keys: what holds the jobs.
    """
    left = MOST_AT_ONCE
    try:
        for key in dict.fromkeys(keys):
            left -= 1 + release(connections, key, at_front=False, most=left)
            if left <= 0:
                break
    except (LedgerUnavailable, SQLAlchemyError) as error:
        log.warning("Slots are given later", error=str(error))


def release(
    connections: Connections,
    key: str,
    direct: Direct | None = None,
    *,
    at_front: bool = True,
    most: int = MOST_AT_ONCE,
    depth: int = NEAR,
) -> int:
    """Release the oldest jobs that a key holds, as many as it has free slots, and push them.

    Those that need something else besides, of which nothing is left, hold up nobody who stands behind them.

    Args:
        connections: the servers.
        key: as `held_by` has it.
        direct: in autocommit; None for a connection of its own.
        at_front: before all others in Redis: they have stood in line.
        most: so many at most; the chore goes on.
        depth: how far down the line to look, if those at its head wait for something else.

    Returns:
        How many.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    wakes = list[Wake]()
    moved_to = set[str]()
    try:
        for _ in range(most):
            with _one_by_one(connections, direct) as connection:
                looked = moves.release_oldest(connection, key)
                if looked is not None and looked.lacks_keys:
                    moves.make_limit_keys(connection, looked.job_id)
            if looked is None:
                break
            if looked.held_by is not None and not looked.held_by.startswith("pause:"):
                if looked.is_blocked:
                    with _one_by_one(connections, direct) as connection:
                        goes_on = moves.make_way(connection, key, depth, MOST_ASIDE)
                else:  # whoever shares that key, too, would go there and come back
                    goes_on = looked.held_by not in moved_to
                    moved_to.add(looked.held_by)
                if not goes_on:
                    break
            if looked.wake is not None:
                wakes.append(replace(looked.wake, at_front=at_front))
    finally:  # what is released is committed, and says that it was pushed
        push_quietly(connections, wakes)
    return len(wakes)


@contextmanager
def _one_by_one(connections: Connections, direct: Direct | None) -> Iterator[Executor]:
    """A connection for a short transaction, or in autocommit.

    A process that is frozen inside of it keeps nobody from a key for long: Postgres ends it.
    """
    if direct is not None:
        yield direct
    else:
        with connections.transaction(DISPATCH_SECONDS) as connection:
            limit_silence(connection, LONGEST_SILENCE_SECONDS)
            yield connection
