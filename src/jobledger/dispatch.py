"""The one door in: validate, write the row, and push its wake-up after the commit.

The row is written in the caller's transaction, in that of a schedule's tick, or in one of its own. The push follows
the commit; if Redis is away, or the list is full (`queues.window`), the row says so, and the relay pushes it in its
turn.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from uuid import UUID

import redis
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction, scoped_session
from uuid6 import uuid7

from jobledger import queues
from jobledger.admission import RIVAL_SECONDS, Request, admit
from jobledger.connections import Connections, default_connections
from jobledger.errors import LedgerUnavailable, OptionError
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import pushes
from jobledger.ledger.rows import NewJob
from jobledger.observe.log import get_logger
from jobledger.options import DEFAULT_PRIORITY
from jobledger.status import JobStatus
from jobledger.wake import Accepted, Wake

log: Final = get_logger(__name__)

DEADLINE_SECONDS: Final = 1.5
"""A dispatch in a transaction of its own answers within this, also when Postgres is frozen; one that may have to wait
for another transaction, within `RIVAL_SECONDS` more."""


@dataclass(frozen=True, slots=True)
class _Tick:
    """A schedule's tick whose transaction the dispatches inside it join."""

    session: Session
    schedule_id: UUID
    fire_at: datetime
    jitter_seconds: float


_tick: ContextVar[_Tick | None] = ContextVar("jobledger_tick", default=None)


@contextmanager
def joining_tick(session: Session, schedule_id: UUID, fire_at: datetime, jitter_seconds: float = 0.0) -> Iterator[None]:
    """Let every dispatch inside that names no session join this one, marked with the schedule and its fire time.

    Args:
        jitter_seconds: each job waits a random time up to this, so that many do not begin at the same moment.
    """
    token = _tick.set(_Tick(session, schedule_id, fire_at, jitter_seconds))
    try:
        yield
    finally:
        _tick.reset(token)


def dispatch(
    requests: Sequence[Request],
    session: Session | scoped_session[Session] | None = None,
    into: Connections | None = None,
) -> list[Accepted]:
    """Write rows, in one statement, and push the wake-ups of those that may run.

    Args:
        requests: what to dispatch; all with the same `after` parents.
        session: the caller's transaction; None for a tick's, if inside one, or an own one.
        into: which servers; None for the process's default.

    Returns:
        What became of each, in the order of the requests.

    Raises:
        ParentNotFound: a parent is not in the ledger; nothing was written.
        IdempotencyConflict: the key was used for something else; nothing was written.
        DispatchContended: somebody who dispatches the same does not come to an end; nothing was written.
        LedgerUnavailable: Postgres is away; without a session this means that it is unknown whether the jobs
            were accepted if the connection was lost during the commit.
    """
    connections = into or default_connections()
    _ = connections.redis  # a wrong setting must say so before anything is written
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
        waits = any(request.may_be_known for request in requests)
        with connections.transaction(DEADLINE_SECONDS + RIVAL_SECONDS * waits) as connection:
            accepted = admit(connection, rows, requests)
        (_push if asks_first else push_quietly)(connections, _due(accepted, wakes))
        return accepted
    accepted = admit(session.connection(), rows, requests)
    hold_wakes(session, until_commit=True).add(session, connections, _due(accepted, wakes), has_room=asks_first)
    return accepted


def _due(accepted: Sequence[Accepted], wakes: Mapping[UUID, Wake]) -> list[Wake]:
    """The wake-ups of new jobs that may run now; what is known already was pushed when it was new."""
    return [
        wakes[one.id] for one in accepted if one.status is JobStatus.QUEUED and not one.is_duplicate and one.id in wakes
    ]


async def dispatch_async(
    requests: Sequence[Request], session: AsyncSession, into: Connections | None = None
) -> list[Accepted]:
    """The same in the transaction of an AsyncSession."""
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
        restrictions=request.restrictions,
    )


def _ask_for_room(connections: Connections, rows: list[NewJob]) -> list[NewJob]:
    """Before anything is written: which of the rows will be pushed, if they are queued at once."""
    now = time.time()  # only to leave out what will surely wait: the database decides
    soon = [row for row in rows if row.delay_seconds <= 0 and (row.available_at_epoch or 0) <= now]
    room = _room(connections, Counter(row.queue for row in soon))
    if all(room[name] >= count for name, count in Counter(row.queue for row in soon).items()):
        return rows
    asked = {row.id for row in soon}
    fitted = []
    for row in rows:
        fits = row.id not in asked or room[row.queue] > 0
        room[row.queue] -= row.id in asked
        fitted.append(row if fits else replace(row, pushed=False))
    return fitted


def _room(connections: Connections, wanted: Mapping[str, int]) -> Counter[str]:
    """How many wake-ups of each queue may be pushed now; none if Redis is away."""
    room: Counter[str] = Counter()
    window = queues.window_of(connections)
    try:
        for name, count in wanted.items():
            room[name] = window.grant(connections.redis, name, count)
    except redis.RedisError as error:
        log.warning("Redis is away: the relay will push", error=str(error))
    return room


def push_quietly(connections: Connections, wakes: Sequence[Wake]) -> bool:
    """Push what has room; and write into the rows of the rest that it was not pushed, so that the relay does it.

    Args:
        connections: the servers.
        wakes: of rows that are committed, and say that they were pushed.

    Returns:
        Whether Redis took all. Nothing is raised: the jobs are accepted, and repair will wake them.
    """
    if not wakes:
        return True
    room = _room(connections, Counter(wake.queue for wake in wakes))
    fitting: list[Wake] = []
    rest: list[Wake] = []
    for wake in wakes:
        (fitting if room[wake.queue] > 0 else rest).append(wake)
        room[wake.queue] -= 1
    _note_unpushed(connections, rest)
    return _push(connections, fitting) and not rest


def _push(connections: Connections, wakes: Sequence[Wake]) -> bool:
    """Push what has room; the same if Redis is away."""
    if not wakes:
        return True
    reach(Failpoint.BEFORE_PUSH)
    try:
        queues.push(connections.redis, wakes)
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
        with connections.transaction(DEADLINE_SECONDS) as connection:
            pushes.unpush(connection, [(wake.id, wake.push_count) for wake in wakes])
    except (LedgerUnavailable, SQLAlchemyError) as unwritten:  # accepted all the same; the reconciler will see
        log.warning("Not noted as not pushed", wakes=len(wakes), error=str(unwritten))


_HELD: Final = "jobledger_held_wakes"
"""Key in `session.info` of the wake-ups that wait for the session's commit."""


@dataclass(slots=True)
class HeldWakes:
    """The wake-ups of one session that wait for its commit, each with the (sub)transaction it was written in."""

    _connections: Connections | None = None
    _waiting: list[tuple[SessionTransaction | None, Wake, bool]] = field(default_factory=list)

    def add(self, session: Session, connections: Connections, wakes: Sequence[Wake], *, has_room: bool) -> None:
        self._connections = connections
        written_in = session.get_nested_transaction() or session.get_transaction()
        self._waiting.extend((written_in, wake, has_room) for wake in wakes)

    def push(self) -> None:
        """Push what was committed."""
        waiting, self._waiting = self._waiting, []
        if self._connections is not None:
            _push(self._connections, [wake for _, wake, has_room in waiting if has_room])
            push_quietly(self._connections, [wake for _, wake, has_room in waiting if not has_room])

    def _rolled_back(self, _: Session, rolled_back: SessionTransaction) -> None:
        self._waiting = [one for one in self._waiting if not _is_inside(one[0], rolled_back)]

    def _committed(self, session: Session) -> None:
        # SQLAlchemy calls this for the release of a savepoint too: only the outermost commit is one.
        if session.get_nested_transaction() is None:
            self.push()

    def _ended(self, _: Session, ended: SessionTransaction) -> None:
        # What was committed is pushed by now. `session.close()` rolls back without saying so.
        if ended.parent is None:
            self._waiting.clear()


def hold_wakes(session: Session, *, until_commit: bool) -> HeldWakes:
    """Keep the wake-ups of dispatches in this session back, and drop those whose (sub)transaction is rolled back.

    Args:
        until_commit: push them when the session commits; False if whoever asks will call `push()`, because the
            session's commit is not yet that of the database.
    """
    held: HeldWakes | None = session.info.get(_HELD)
    if held is None:
        held = session.info[_HELD] = HeldWakes()
        sa.event.listen(session, "after_soft_rollback", held._rolled_back)
        if until_commit:
            sa.event.listen(session, "after_commit", held._committed)
            sa.event.listen(session, "after_transaction_end", held._ended)
    return held


def _is_inside(where: SessionTransaction | None, rolled_back: SessionTransaction) -> bool:
    while where is not None:
        if where is rolled_back:
            return True
        where = where.parent
    return False
