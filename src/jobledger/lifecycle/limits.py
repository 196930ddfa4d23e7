"""Slots of limits and rates: a claim with its keys, and passing free slots on.

The process that ends a job with limits passes its slots on, in transactions after that of the end: no job's own
transaction ever locks a key. If the process dies in between, or an error is logged here, a chore does it.
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
"""Jobs of one key, or of all keys of a dispatch, that are released at once; the chore releases more."""

NEAR: Final = 2_000
"""How far down a line to look for a job that no other key holds, when a slot is passed on; the chore looks farther."""

MOST_ASIDE: Final = 500
"""Jobs that move to another line at once, so that it takes no longer than a dispatch may."""

LONGEST_SILENCE_SECONDS: Final = 5.0


def claim(connections: Connections, direct: Direct, job_id: UUID, runner: Runner, lease_seconds: float) -> Claim | None:
    """Start a job that has limits, if it gets its slots; otherwise hold it, and pass on a slot that it had.

    Args:
        direct: in autocommit.

    Returns:
        None for a job that has no limits, is held, or cannot be claimed.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    answer = moves.claim_limited(direct, job_id, runner, lease_seconds)
    while answer is not None and answer.lacks_keys:
        moves.make_limit_keys(direct, job_id)
        answer = moves.claim_limited(direct, job_id, runner, lease_seconds)
    if answer is None:  # a pause may hold it, and it may have a slot
        pass_on(connections, [job_id], direct)
        return None
    if answer.refused_by is not None:
        log.info("Held", job_id=str(job_id), held_by=answer.refused_by)
        for key in answer.free_keys:
            release(connections, key, direct)
    return answer.claim


def pass_on(connections: Connections, ids: Sequence[UUID], direct: Direct | None = None) -> int:
    """Take the slots of jobs that may not have one any more, and give each to the oldest held job.

    Args:
        ids: jobs that have ended, are held, or wait for a time; other jobs keep their slots.
        direct: in autocommit; None for a connection of its own.

    Returns:
        The number of jobs released. Nothing is raised: the chore does the rest.
    """
    try:
        with _one_by_one(connections, direct) as connection:
            given = moves.give_back_slots(connection, ids)
        released = sum(release(connections, key, direct) for key in given.keys)
        if not released:  # a job with the same limits may be in the line of the other key
            released = sum(release(connections, key, direct, most=len(ids)) for key in given.other_keys)
        return released
    except (LedgerUnavailable, SQLAlchemyError, psycopg2.Error) as error:
        log.warning("Slots are passed on later", jobs=len(ids), error=str(error))
        return 0


def release_new(connections: Connections, keys: Iterable[str]) -> None:
    """Give free slots to jobs that were dispatched just now; the chore goes on if they are many.

    Args:
        keys: those that hold the jobs.
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

    A job that also needs a slot of a full key does not delay the jobs behind it.

    Args:
        connections: the servers.
        key: as `held_by` has it.
        direct: in autocommit; None for a connection of its own.
        at_front: push them before all others in Redis, as they have waited already.
        most: jobs at most; the chore releases more.
        depth: how far down the line to look, if the jobs at its head wait for another key.

    Returns:
        The number of jobs released.

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
                else:  # jobs that share both keys would move to and fro
                    goes_on = looked.held_by not in moved_to
                    moved_to.add(looked.held_by)
                if not goes_on:
                    break
            if looked.wake is not None:
                wakes.append(replace(looked.wake, at_front=at_front))
    finally:  # the released rows are committed, and say that they were pushed
        push_quietly(connections, wakes)
    return len(wakes)


@contextmanager
def _one_by_one(connections: Connections, direct: Direct | None) -> Iterator[Executor]:
    """A connection for a short transaction, or in autocommit.

    Postgres soon ends the transaction of a process that is frozen in it, so that it does not lock a key for long.
    """
    if direct is not None:
        yield direct
    else:
        with connections.transaction(DISPATCH_SECONDS) as connection:
            limit_silence(connection, LONGEST_SILENCE_SECONDS)
            yield connection
