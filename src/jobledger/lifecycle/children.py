"""Tells the children of a job that it has ended, in parts, so that an end with many children takes a bounded time.

The first part belongs to the transaction of the end: small families are told at once. The other children of a large
family are noted in that transaction, and told afterwards, part by part: by the process that wrote the end, for a
moment, and by schedulers. A child that another transaction has locked delays itself alone.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from jobledger.connections.default import Connections
from jobledger.connections.locks import limit_silence
from jobledger.connections.postgres import LACKS_RESOURCES, has_state, is_connection_loss
from jobledger.domain.records import Untold, Wake
from jobledger.domain.status import JobStatus, OnParentFailure
from jobledger.errors import LedgerUnavailable
from jobledger.ledger import moves
from jobledger.ledger.direct import Executor
from jobledger.ledger.moves import Child
from jobledger.lifecycle.push import push_quietly
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

RANGES: Final = 20
"""Jobs whose children are looked at in one step."""

DEADLINE_SECONDS: Final = 15.0
LONGEST_SILENCE_SECONDS: Final = 5.0

FIRST_PAUSE_SECONDS: Final = 0.01
LONGEST_PAUSE_SECONDS: Final = 0.1
"""Parents that end at the same moment lock their children for milliseconds: the pauses, which double, cover that. A
child that is locked for longer is left to schedulers."""

LOCKED_SECONDS: Final = 1.0
"""A child that another transaction has locked is left alone for so long."""

REFUSED_SECONDS: Final = 60.0
"""A child that Postgres refuses to move is left alone for so long."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a part.

    Attributes:
        children: to look at, at most.
        steps: of two or three statements, at most; one step tells one generation of a chain.
    """

    children: int
    steps: int


WITH_END: Final = Size(children=200, steps=20)
AFTERWARDS: Final = Size(children=500, steps=100)


@dataclass(slots=True)
class Told:
    """The result of a part.

    Attributes:
        wakes: jobs that may run now, to be pushed after the commit.
        count: jobs that were told.
        left: children that have yet to be told.
        locked: children that another transaction has locked.
        refused: children that Postgres refuses to move.
    """

    wakes: list[Wake] = field(default_factory=list)
    count: int = 0
    left: list[Untold] = field(default_factory=list)
    locked: list[Untold] = field(default_factory=list)
    refused: list[Untold] = field(default_factory=list)

    @property
    def untold(self) -> frozenset[UUID]:
        """The jobs whose children have yet to be told."""
        return frozenset(one.parent_id for one in (*self.left, *self.locked, *self.refused))


def propagate_end(connection: Executor, job_id: UUID) -> Told:
    """Tell the children of a job that it has ended, and theirs if they are canceled, in the transaction of its end.

    They are released, canceled or left waiting, as its status and their `on_parent_failure` say. The rest is noted.
    """
    told = _tell(connection, [Untold(job_id)], WITH_END)
    _note(connection, told, locked_seconds=0.0)
    return told


def propagate_quietly(connections: Connections, parents: Collection[UUID], seconds: float) -> None:
    """Tell more children of some jobs that have ended, for a moment. Nothing is raised: schedulers do the rest.

    Args:
        connections: the servers.
        parents: `untold` of those ends.
        seconds: no part begins after this.
    """
    until, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    known = frozenset(parents)
    try:
        while known and time.monotonic() < until and pause <= LONGEST_PAUSE_SECONDS:
            told = _tell_part(connections, known)
            if told is None:
                break
            known |= told.untold
            if not told.left and told.locked:
                time.sleep(pause)
                pause *= 2
    except (LedgerUnavailable, SQLAlchemyError) as error:
        log.warning("Children are told later", parents=len(known), error=str(error))


def propagate_due(connections: Connections, seconds: float) -> int:
    """Tell children of all jobs that have ended, the longest due first.

    Args:
        connections: the servers.
        seconds: no part begins after this.

    Returns:
        The number of jobs told.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    until, count = time.monotonic() + seconds, 0
    while True:
        told = _tell_part(connections, None)
        count += told.count if told is not None else 0
        if told is None or time.monotonic() >= until:
            return count


def _tell_part(connections: Connections, parents: Collection[UUID] | None) -> Told | None:
    """One part in its own transaction, and its pushes; None if nothing is left that no other process has locked."""
    try:
        told = _in_transaction(connections, parents, lambda connection, taken: _tell(connection, taken, AFTERWARDS))
    except SQLAlchemyError as error:
        if has_state(error, LACKS_RESOURCES):
            raise
        log.error("Postgres refuses to move some children: they are told one by one", exc_info=error)
        told = _in_transaction(connections, parents, _tell_one_of_each)
    if told is not None:
        push_quietly(connections, told.wakes)
    return told


def _in_transaction(
    connections: Connections, parents: Collection[UUID] | None, tell: Callable[[Connection, Sequence[Untold]], Told]
) -> Told | None:
    with connections.transaction(DEADLINE_SECONDS) as connection:
        limit_silence(connection, LONGEST_SILENCE_SECONDS)
        taken = moves.take_untold(connection, RANGES, parents)
        if not taken:
            return None
        told = tell(connection, taken)
        _note(connection, told, LOCKED_SECONDS)
    return told


def _note(connection: Executor, told: Told, locked_seconds: float) -> None:
    for ranges, wait_seconds in (
        (told.left, 0.0),
        (told.locked, locked_seconds),
        (told.refused, REFUSED_SECONDS),
    ):
        if ranges:
            moves.note_untold(connection, list(dict.fromkeys(ranges)), wait_seconds)


def _tell(connection: Executor, ranges: Sequence[Untold], size: Size) -> Told:
    """Tell children, and their children if they are canceled, step by step."""
    told, looked_at = Told(left=list(ranges)), 0
    for _ in range(size.steps):
        if not told.left or looked_at >= size.children:
            break
        now, rest = told.left[:RANGES], told.left[RANGES:]
        each = max(1, (size.children - looked_at) // len(now))
        found = moves.next_children(connection, now, each)
        looked_at += len(found)
        step = plan(now, found, each)
        told.left = [*step.left, *rest, *_do(connection, step, told)]
        told.locked += step.locked
    return told


def _tell_one_of_each(connection: Connection, ranges: Sequence[Untold]) -> Told:
    """Tell the next child of each range, in a savepoint: a child that Postgres refuses to move delays itself alone."""
    told = Told()
    for one in ranges:
        found = moves.next_children(connection, [one], 1)
        step = plan([one], found, 1)
        told.left += step.left
        told.locked += step.locked
        try:
            with connection.begin_nested():
                told.left += _do(connection, step, told)
        except SQLAlchemyError as error:
            if is_connection_loss(error):
                raise
            told.refused += [Untold(child.parent_id, child.child_id, child.child_id) for child in found]
            log.error("Not told: Postgres refuses to move it", job_id=str(found[0].child_id), exc_info=error)
    return told


def _do(connection: Executor, step: "Step", told: Told) -> list[Untold]:
    """Move the children of a step, and return the children of the canceled ones."""
    canceled = moves.cancel_children(connection, step.cancels) if step.cancels else []
    wakes = moves.release_children(connection, step.releases) if step.releases else []
    told.wakes += wakes
    told.count += len(step.cancels) + len(step.releases)
    return [Untold(one) for one in canceled]


@dataclass(frozen=True, slots=True)
class Step:
    """A plan for some children.

    Attributes:
        cancels: children to cancel, each with its reason.
        releases: pairs of a parent and a child that waits for it no longer.
        left: children after these.
        locked: children that another transaction has locked.
    """

    cancels: Mapping[UUID, str]
    releases: Sequence[tuple[UUID, UUID]]
    left: Sequence[Untold]
    locked: Sequence[Untold]


_HOW: Final = {JobStatus.FAILED: "failed", JobStatus.CANCELED: "was canceled"}


def plan(ranges: Sequence[Untold], found: Sequence[Child], each: int) -> Step:
    """Decide about children of jobs that have ended. Pure.

    Args:
        ranges: the jobs, and their children.
        found: the next children of each range, in order.
        each: the number of children that was asked for, of each range.
    """
    counts = Counter(child.range for child in found)
    last = {child.range: child.child_id for child in found}
    left = [
        replace(one, first_child_id=UUID(int=last[number].int + 1))
        for number, one in enumerate(ranges)
        if counts[number] >= each and last[number] < one.last_child_id
    ]
    cancels: dict[UUID, str] = {}
    releases: list[tuple[UUID, UUID]] = []
    locked: list[Untold] = []
    for child in sorted(found, key=lambda child: child.parent_id):
        if not child.waits:
            continue
        if not child.is_locked:
            locked.append(Untold(child.parent_id, child.child_id, child.child_id))
        elif child.parent_status is JobStatus.COMPLETED or child.on_parent_failure is OnParentFailure.RUN:
            releases.append((child.parent_id, child.child_id))
        else:
            cancels.setdefault(child.child_id, f"parent {child.parent_id} {_HOW[child.parent_status]}")
    return Step(cancels, [pair for pair in releases if pair[1] not in cancels], left, locked)
