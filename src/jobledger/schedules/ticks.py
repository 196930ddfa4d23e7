"""Fires schedules: a fire time is a unique row, written in the transaction that its dispatches join.

Due fire times are computed from the definitions in the ledger. The schedule's `decided_until` is the fence of a firing:
if it has moved, another scheduler was faster, and this scheduler computes them again.
"""

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session
from uuid6 import uuid7

from jobledger.connections.default import Connections
from jobledger.connections.locks import LockTimeout
from jobledger.connections.postgres import unavailable_as_error
from jobledger.dispatch.accept import joining_tick
from jobledger.domain.payload import storable
from jobledger.domain.tick import Tick, TickKind, TickOutcome
from jobledger.errors import LedgerUnavailable, ScheduleError
from jobledger.failpoints import Failpoint, reach
from jobledger.ledger import schedules as rows
from jobledger.ledger import ticks
from jobledger.ledger.schedules import NewDefinition, ScheduleRow
from jobledger.ledger.ticks import NewTick, WaitingTick
from jobledger.observe.log import get_logger
from jobledger.process import this_process
from jobledger.schedules.book import Schedule
from jobledger.schedules.definition import Definition, Overlap
from jobledger.schedules.policy import MOST_AT_ONCE, judge
from jobledger.schedules.triggers import Trigger, previous

log: Final = get_logger(__name__)

DEADLINE_SECONDS: Final = 10.0
SEE_SECONDS: Final = 10.0
LONGEST_SILENCE_SECONDS: Final = 300.0
"""Longest time between statements of a schedule's function. After it, Postgres ends the transaction, and the fire
time is due again."""

MOST_QUEUED: Final = 1000
MOST_ERRORS: Final = 5
LONGEST_ERROR: Final = 2000


@dataclass(frozen=True, slots=True)
class Due:
    """A fire time that was due when the ledger was read.

    Attributes:
        schedule: the schedule in this process.
        definition: the ledger's definition.
        row: the schedule's row when it was read.
        trigger: the trigger of the definition.
        fire_at: the fire time.
        after: the `decided_until` that the schedule must have for this fire time to be next; None for a waiting tick.
        kind: the origin of the tick.
        previous_at: the fire time before it, if known.
    """

    schedule: Schedule
    definition: Definition
    row: ScheduleRow
    trigger: Trigger
    fire_at: datetime
    after: datetime | None = None
    kind: TickKind = TickKind.SCHEDULED
    previous_at: datetime | None = None

    @property
    def waits(self) -> bool:
        """Whether the fire time already has a row, a waiting tick."""
        return self.after is None


def write_definitions(connections: Connections, schedules: Iterable[Schedule]) -> None:
    """Write the definitions of schedules in code into the ledger, see `ledger.schedules.replace`.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        _defined(connection, connections, schedules, in_touch=False)


def due(
    connections: Connections, schedules: Iterable[Schedule], busy: Collection[str] = (), *, in_touch: bool = False
) -> list[Due]:
    """The fire times that are due now, by the database's clock; in order for each schedule.

    Args:
        schedules: the schedules that this process can fire.
        busy: names of schedules that this process is firing; they are left out.
        in_touch: see `ledger.schedules.replace`.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        own = {one.name: one for one in schedules}
        if not own:
            return []
        now = rows.now(connection)
        active = [
            row
            for row in _defined(connection, connections, own.values(), in_touch=in_touch).values()
            if row.name not in busy and row.removed_at is None
        ]
        waiting = ticks.waiting(connection, [row.id for row in active], MOST_AT_ONCE)
        grace = connections.settings.tick_grace_seconds
        found: list[Due] = []
        for row in active:
            with _complaining(row.name):
                found += _waiting(own[row.name], row, waiting.get(row.id, ()))
                found += _come(connection, own[row.name], row, now, grace)
    return found


def _come(
    connection: Connection, schedule: Schedule, row: ScheduleRow, now: datetime, grace_seconds: float
) -> list[Due]:
    """The due fire times of a schedule; missed ones that are not caught up are recorded as decided."""
    if row.is_paused:
        return []
    definition, trigger = read(row)
    since = max(filter(None, (row.decided_until, row.paused_until)))
    verdict = judge(trigger, definition.catch_up, definition.max_lateness_seconds, since, now, grace_seconds)
    after = row.decided_until
    if verdict.given_up_until is not None:
        after = verdict.given_up_until
        rows.decide_until(connection, row.id, after)
        if row.error is None:  # a failing function is already logged
            times = {"since": row.decided_until.isoformat(), "until": after.isoformat()}
            log.warning("Missed fire times are not caught up", schedule=row.name, **times)
    come = [after, *verdict.fire]
    return [Due(schedule, definition, row, trigger, fire_at, before) for before, fire_at in pairwise(come)]


def _waiting(schedule: Schedule, row: ScheduleRow, waiting: Iterable[WaitingTick]) -> list[Due]:
    """The waiting ticks that may be tried; in a pause only those of manual runs."""
    definition, trigger = read(row)
    return [
        Due(schedule, definition, row, trigger, one.fire_at, None, one.kind, one.previous_at)
        for one in waiting
        if one.kind is TickKind.MANUAL or not row.is_paused
    ]


def read(row: ScheduleRow) -> tuple[Definition, Trigger]:
    """The definition in a row, and its trigger.

    Raises:
        ScheduleError: this version does not understand it.
    """
    if row.definition is None:
        raise ScheduleError(f"Schedule {row.name!r} was defined by an older jobledger only; it is not data yet.")
    definition = Definition.from_json(row.name, row.definition)
    return definition, definition.when.trigger(row.created_at)


@contextlib.contextmanager
def _complaining(name: str) -> Iterator[None]:
    try:
        yield
    except (ScheduleError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        log.error("A schedule cannot be read", schedule=name, error=str(error))


def _defined(
    connection: Connection, connections: Connections, schedules: Iterable[Schedule], *, in_touch: bool
) -> dict[str, ScheduleRow]:
    """The rows of these schedules, updated by their definitions in code."""
    settings = connections.settings
    own = {one.name: one.in_zone(settings.timezone).definition for one in schedules}
    names = sorted(own)  # a fixed order, so that two processes cannot deadlock
    found = rows.named(connection, names)
    changed = False
    for name in names:
        row, definition = found.get(name), own[name]
        when = definition.when
        new = NewDefinition(name, when.text, when.timezone, definition.as_json(), definition.fingerprint)
        if row is None:
            rows.insert(connection, uuid7(), new)
            changed = True
        elif row.fingerprint == new.fingerprint and row.removed_at is None:
            continue
        elif _replace(connection, row, new, settings.tick_grace_seconds, in_touch):
            log.info("Schedule defined", schedule=name, expression=new.trigger, timezone=new.timezone)
            changed = True
    seen = [row.id for row in found.values() if _is_own(row, own) and row.seen_seconds_ago > SEE_SECONDS]
    if seen:
        rows.heartbeat(connection, seen)
    return rows.named(connection, names) if changed else found


def _replace(
    connection: Connection, row: ScheduleRow, new: NewDefinition, grace_seconds: float, in_touch: bool
) -> bool:
    """Write a definition into its row, if it is newer; due fire times of the old definition become waiting ticks."""
    with contextlib.suppress(LockTimeout), connection.begin_nested() as savepoint:
        if not rows.replace(connection, row, new, in_touch=in_touch):
            return False
        moves = row.definition is not None and row.definition.get("when") != new.definition["when"]
        if not moves or keep_what_has_come(connection, row, grace_seconds, None):
            return True
        savepoint.rollback()
    return False


def _is_own(row: ScheduleRow, own: dict[str, Definition]) -> bool:
    return row.fingerprint == own[row.name].fingerprint


def keep_what_has_come(connection: Connection, row: ScheduleRow, grace_seconds: float, by: str | None) -> bool:
    """Keep due fire times as waiting ticks, to be fired later, because the schedule is about to change.

    Returns:
        False if another scheduler is firing the schedule now; nothing was kept.
    """
    if not ticks.take_turn(connection, row.id, LONGEST_SILENCE_SECONDS):
        return False
    if row.definition is None or row.removed_at is not None or row.is_paused:
        return True
    with _complaining(row.name):
        definition, trigger = read(row)
        since = max(filter(None, (row.decided_until, row.paused_until)))
        limit = definition.max_lateness_seconds
        now = rows.now(connection)
        come = judge(trigger, definition.catch_up, limit, since, now, grace_seconds, MOST_QUEUED).fire
        moments = [(one, previous(trigger, one)) for one in come]
        ticks.request(connection, row.id, moments, definition.when.timezone, TickKind.SCHEDULED, by)
    return True


def fire(connections: Connections, one: Due) -> bool:
    """Decide one fire time: write its tick, call the function, commit; then push the wake-ups of its dispatches.

    Returns:
        False if this process cannot decide it now: another scheduler is or was faster, or a waiting tick must go on
        waiting. Later fire times must be computed again.

    Raises:
        Exception: any exception of the function. No tick was written, and the fire time will be due again.
        LedgerUnavailable: Postgres is away.
    """
    started = time.monotonic()
    try:
        with unavailable_as_error(), Session(connections.engine) as session:
            outcome = _fire(session, one)
            session.commit()
    except Exception as error:  # also a LedgerUnavailable: the function may have called another database that is away
        _note_failure(connections, one, error)
        raise
    if outcome is not None:
        log.info(
            outcome.capitalize(),
            schedule=one.row.name,
            fire_at=one.fire_at.isoformat(),
            kind=str(one.kind),
            seconds=round(time.monotonic() - started, 3),
        )
    return outcome is not None


def _fire(session: Session, one: Due) -> TickOutcome | None:
    connection = session.connection()
    if not ticks.take_turn(connection, one.row.id, LONGEST_SILENCE_SECONDS) or not _is_next(connection, one):
        return None
    outcome, reason = _outcome(connection, one)
    if outcome is TickOutcome.WAITING and one.waits:
        return None
    previous_at = one.previous_at or previous(one.trigger, one.fire_at)
    if one.waits:
        taken = ticks.take_waiting(connection, one.row.id, one.fire_at, this_process(), outcome, reason)
    else:
        timezone = one.definition.when.timezone
        new = NewTick(one.row.id, one.fire_at, previous_at, timezone, this_process(), outcome, reason)
        taken = ticks.take(connection, new)
    if taken and outcome is TickOutcome.FIRED:
        reach(Failpoint.TICK_TAKEN)
        with joining_tick(session, one.row.name, one.row.id, one.fire_at, one.definition.jitter_seconds):
            one.schedule.call(one.definition, _tick(connection, one, previous_at))
    if outcome is TickOutcome.FIRED:
        rows.note_success(connection, one.row.id)
    if not one.waits:
        rows.decide_until(connection, one.row.id, one.fire_at)
    return outcome if taken else TickOutcome.SKIPPED


def _is_next(connection: Connection, one: Due) -> bool:
    """Whether the schedule is unchanged since the fire time was found due."""
    row = rows.named(connection, [one.row.name]).get(one.row.name)
    if row is None or row.removed_at is not None or row.fingerprint != one.row.fingerprint:
        return False
    if one.waits:
        return one.kind is TickKind.MANUAL or not row.is_paused
    return not row.is_paused and row.decided_until == one.after


def _outcome(connection: Connection, one: Due) -> tuple[TickOutcome, str | None]:
    """The outcome of a fire time, by the schedule's policy."""
    limit = one.definition.max_lateness_seconds
    if one.kind is TickKind.SCHEDULED and limit is not None:
        late = rows.now(connection) - one.fire_at
        if late > timedelta(seconds=limit):
            return TickOutcome.SKIPPED, f"too late, by {late.total_seconds() - limit:.1f} s"
    overlap = one.definition.overlap
    if overlap is Overlap.ALLOW:
        return TickOutcome.FIRED, None
    queued = 0 if one.waits or overlap is Overlap.SKIP else ticks.count_queued(connection, one.row.id, MOST_QUEUED)
    if not queued and not ticks.has_unfinished_jobs(connection, one.row.id):
        return TickOutcome.FIRED, None
    if one.waits or (overlap is Overlap.QUEUE and queued < MOST_QUEUED):
        return TickOutcome.WAITING, None
    return TickOutcome.SKIPPED, "earlier jobs had not ended"


def _tick(connection: Connection, one: Due, previous_at: datetime | None) -> Tick:
    zone = ZoneInfo(one.definition.when.timezone)
    return Tick(
        schedule=one.row.name,
        logical_time=one.fire_at.astimezone(zone),
        previous=previous_at.astimezone(zone) if previous_at is not None else None,
        fired_at=rows.now(connection).astimezone(zone),
        kind=one.kind,
    )


def _note_failure(connections: Connections, one: Due, error: Exception) -> None:
    """Store the error for people; if Postgres is away, only the log has it."""
    text = storable(f"{type(error).__name__}: {error}")[:LONGEST_ERROR]
    with contextlib.suppress(LedgerUnavailable), connections.transaction(DEADLINE_SECONDS) as connection:
        rows.note_error(connection, one.row.id, text)
        if one.waits:
            ticks.note_failure(connection, one.row.id, one.fire_at, this_process(), text, MOST_ERRORS)
