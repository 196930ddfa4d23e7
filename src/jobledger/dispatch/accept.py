"""Dispatch: validate, write the row, and push its wake-up after the commit.

The row is written in the caller's transaction, in that of a schedule's tick, or in one of its own. The push follows
the commit. If Redis is away, or the list is full (`queues.window`), the row records this, and the relay pushes the
wake-up later.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session
from uuid6 import uuid7

from jobledger.connections.deadlines import DISPATCH_SECONDS, within
from jobledger.connections.default import Connections, default_connections
from jobledger.connections.locks import CONFLICT_SECONDS
from jobledger.dispatch.admission import Request, admit
from jobledger.dispatch.after_commit import after_commit_of
from jobledger.dispatch.parts import in_batches, in_parts
from jobledger.domain.options import DEFAULT_PRIORITY
from jobledger.domain.records import Accepted, NewJob, Wake
from jobledger.domain.status import JobStatus
from jobledger.errors import LedgerUnavailable, OptionError
from jobledger.lifecycle import limits
from jobledger.lifecycle.push import ask_for_room, push, push_quietly
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

ANSWER_SECONDS: Final = 0.5
"""The part of `within_seconds` that is reserved for work other than waiting."""

COMMIT_SECONDS: Final = 5.0
"""Time for the commit of many rows, which waits for the disk and for standbys."""

SHORTEST_SECONDS: Final = 0.05
"""Time for a transaction that begins too late: it starts, and then runs out of time."""


@dataclass(frozen=True, slots=True)
class _Tick:
    """A schedule's tick whose transaction the dispatches inside it join."""

    session: Session
    schedule: str
    schedule_id: UUID
    fire_at: datetime
    jitter_seconds: float


_tick: ContextVar[_Tick | None] = ContextVar("jobledger_tick", default=None)


@contextmanager
def joining_tick(
    session: Session, schedule: str, schedule_id: UUID, fire_at: datetime, jitter_seconds: float = 0.0
) -> Iterator[None]:
    """Mark the dispatches inside with the schedule and its fire time; those without `session=` join this session.

    If an equal job of a unique class exists, it is returned; this is never an error.

    Args:
        schedule: the schedule's name, for the log.
        jitter_seconds: each job is delayed by a random time up to this, so that the jobs do not all start at once.
    """
    token = _tick.set(_Tick(session, schedule, schedule_id, fire_at, jitter_seconds))
    try:
        yield
    finally:
        _tick.reset(token)


def dispatch(
    requests: Sequence[Request],
    session: Session | scoped_session[Session] | None = None,
    into: Connections | None = None,
    within_seconds: float | None = None,
) -> list[Accepted]:
    """Write rows, all or none, and push the wake-ups of those that may run.

    One row is one statement; many are written in parts (`dispatch.parts`).

    Args:
        requests: the jobs to dispatch; all with the same `after` parents.
        session: the caller's transaction; None for that of the surrounding tick, or else a new one.
        into: the servers; None for the process's default.
        within_seconds: time within which the rows must be committed, if no session is given; for callers with a
            deadline. The wait for a transaction that dispatches an equal job ends half a second earlier, which
            leaves time for the error. The push takes additional time. None for no deadline.

    Returns:
        The outcome of each request, in their order.

    Raises:
        ParentNotFound: a parent is not in the ledger; nothing was written.
        IdempotencyConflict: the key was used for something else; nothing was written.
        DispatchContended: another transaction dispatches an equal job and does not end; nothing was written.
        LedgerUnavailable: Postgres is away, or too slow. If the connection was lost during the commit of a dispatch
            without a session, it is unknown whether the jobs were accepted.
    """
    begun = time.monotonic()
    connections = into or default_connections()
    _ = connections.redis  # a wrong setting must raise before anything is written
    tick = _tick.get()
    if session is None and tick is not None:
        session = tick.session
    if isinstance(session, scoped_session):
        session = session()
    if session is not None and not isinstance(session, Session):
        raise OptionError(
            f"session= is a {type(session).__name__}: say a SQLAlchemy Session, or `await X.adispatch(…)` with an "
            "AsyncSession."
        )
    rows = [_new_job(request, connections, tick) for request in requests]
    asks_first = not any(request.options.after for request in requests)  # children may wait for long
    if asks_first:
        rows = _ask_for_room(connections, rows)
    wakes = {
        row.id: Wake(row.id, row.queue, row.job_type, row.title, row.timeout_seconds) for row in rows if row.pushed
    }
    if session is None:
        accepted = _write(connections, rows, requests, within_seconds, begun)
        for batch in in_batches(_due(accepted, wakes)):
            (push if asks_first else push_quietly)(connections, batch)
        limits.release_new(connections, _keys(accepted, rows))
        return accepted
    accepted = _admit_all(session.connection(), rows, [_giving_back(one) for one in requests] if tick else requests)
    if tick is not None:
        _say_what_was_there(tick, requests, accepted)
    held = after_commit_of(session, until_commit=True)
    held.add(session, connections, _due(accepted, wakes), _keys(accepted, rows), has_room=asks_first)
    return accepted


def _write(
    connections: Connections,
    rows: list[NewJob],
    requests: Sequence[Request],
    within_seconds: float | None,
    begun: float,
) -> list[Accepted]:
    """Write rows in a transaction of their own."""
    if within_seconds is None and len(rows) > 1:
        return _write_many(connections, rows, requests)
    deadline, patience = _limits(requests, within_seconds, time.monotonic() - begun)
    with connections.transaction(deadline) as connection:
        return _admit_all(connection, rows, requests, patience)


def _write_many(connections: Connections, rows: list[NewJob], requests: Sequence[Request]) -> list[Accepted]:
    """Write rows in parts, each with its own deadline, and commit them together."""
    parts = in_parts(rows, requests)
    wait = CONFLICT_SECONDS * any(request.may_be_known for request in requests)
    accepted: dict[int, Accepted] = {}
    began, seconds = time.monotonic(), DISPATCH_SECONDS
    try:
        with connections.transaction(sum(part.seconds + wait for part in parts) + DISPATCH_SECONDS) as connection:
            for part in parts:
                began, seconds = time.monotonic(), part.seconds + wait
                with within(connection, seconds):
                    accepted |= zip(part.places, admit(connection, part.rows, part.requests), strict=True)
            began, seconds = time.monotonic(), COMMIT_SECONDS
            with within(connection, seconds):
                connection.commit()
    except LedgerUnavailable as error:
        if time.monotonic() - began < seconds:
            raise  # Postgres is away indeed
        if len(accepted) == len(rows):
            said = f"Postgres did not commit {len(rows):,} jobs within {seconds:.2g} s: whether it will is not known."
        else:
            said = (
                f"Postgres is too slow: it took {len(accepted):,} of {len(rows):,} jobs, and not the next ones within "
                f"{seconds:.2g} s. Nothing was written; dispatch fewer at once, or later."
            )
        raise LedgerUnavailable(said) from error
    return [accepted[place] for place in range(len(rows))]


def _admit_all(
    connection: Connection, rows: list[NewJob], requests: Sequence[Request], patience: float | None = None
) -> list[Accepted]:
    """Write rows, all or none, in a transaction that also holds other writes."""
    parts = in_parts(rows, requests) if len(rows) > 1 else []
    if len(parts) < 2:
        return admit(connection, rows, requests, patience)
    accepted: dict[int, Accepted] = {}
    with connection.begin_nested():
        for part in parts:
            accepted |= zip(part.places, admit(connection, part.rows, part.requests, patience), strict=True)
    return [accepted[place] for place in range(len(rows))]


def _limits(
    requests: Sequence[Request], within_seconds: float | None, spent_seconds: float
) -> tuple[float, float | None]:
    """Longest duration of a transaction of its own, and longest wait in it for a rival transaction, in seconds."""
    if within_seconds is not None:
        left = max(within_seconds - spent_seconds, SHORTEST_SECONDS)
        return left, max(left - ANSWER_SECONDS, 0.0)
    waits = any(request.may_be_known for request in requests)
    return DISPATCH_SECONDS + CONFLICT_SECONDS * waits, None


def _giving_back(request: Request) -> Request:
    """A request that returns an equal job where its class asks for an error: in a tick, an existing job must prevent
    neither the fire time nor the other dispatches."""
    unique = request.unique
    if unique is None or unique.on_conflict != "error":
        return request
    return replace(request, unique=unique.giving_back())


def _say_what_was_there(tick: _Tick, requests: Sequence[Request], accepted: Sequence[Accepted]) -> None:
    for request, one in zip(requests, accepted, strict=True):
        if one.is_duplicate and request.unique is not None and request.unique.on_conflict == "error":
            log.info(
                "Not dispatched: an equal job is there",
                schedule=tick.schedule,
                fire_at=tick.fire_at.isoformat(),
                job_type=request.job_type,
                job_id=str(one.id),
            )


def _due(accepted: Sequence[Accepted], wakes: Mapping[UUID, Wake]) -> list[Wake]:
    """The wake-ups of new jobs that may run now; duplicates were pushed at their own dispatch."""
    return [
        wakes[one.id] for one in accepted if one.status is JobStatus.QUEUED and not one.is_duplicate and one.id in wakes
    ]


def _keys(accepted: Sequence[Accepted], rows: Sequence[NewJob]) -> list[str]:
    """The `held_by` values of new jobs that wait for a slot."""
    held_by = {row.id: row.held_by for row in rows if row.held_by is not None}
    return [held_by[one.id] for one in accepted if one.status is JobStatus.QUEUED and one.id in held_by]


async def dispatch_async(
    requests: Sequence[Request], session: AsyncSession, into: Connections | None = None
) -> list[Accepted]:
    """`dispatch` in the transaction of an AsyncSession."""
    if not hasattr(session, "run_sync"):
        raise OptionError(f"session= is a {type(session).__name__}: say an AsyncSession, or call `X.dispatch(…)`.")
    return await session.run_sync(lambda sync_session: dispatch(requests, sync_session, into))


def _new_job(request: Request, connections: Connections, tick: _Tick | None) -> NewJob:
    options = request.options
    return NewJob(
        id=UUID(int=uuid7().int),
        job_type=request.job_type,
        queue=options.chosen_queue,
        priority=options.priority or DEFAULT_PRIORITY,
        payload=request.payload,
        title=options.title,
        owner=options.owner,
        timeout_seconds=options.timeout_seconds or connections.settings.default_timeout_seconds,
        max_attempts=options.max_attempts or 1,
        has_on_failed=request.has_on_failed,
        delay_seconds=options.delay_seconds + (random.uniform(0, tick.jitter_seconds) if tick else 0.0),  # noqa: S311
        available_at_epoch=options.available_at_epoch,
        expires_in_seconds=options.expires_in_seconds,
        schedule_id=tick.schedule_id if tick else None,
        fire_at_epoch=tick.fire_at.timestamp() if tick else None,
        idempotency_scope=options.idempotency_scope if options.idempotency_key is not None else None,
        idempotency_key=options.idempotency_key,
        applied_limits=request.applied_limits,
        pushed=not request.applied_limits,
    )


def _ask_for_room(connections: Connections, rows: list[NewJob]) -> list[NewJob]:
    """Decide, before anything is written, which rows will be pushed if they are queued at once."""
    now = time.time()  # only a filter for jobs that certainly wait: the database's clock decides
    soon = [row for row in rows if row.pushed and row.delay_seconds <= 0 and (row.available_at_epoch or 0) <= now]
    room = ask_for_room(connections, Counter(row.queue for row in soon))
    if all(room[name] >= count for name, count in Counter(row.queue for row in soon).items()):
        return rows
    asked = {row.id for row in soon}
    fitted = []
    for row in rows:
        fits = row.id not in asked or room[row.queue] > 0
        room[row.queue] -= row.id in asked
        fitted.append(row if fits else replace(row, pushed=False))
    return fitted
