"""Requests of people about schedules: run now, pause, resume, backfill. Each is a row that the schedulers read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

from sqlalchemy.engine import Connection

from jobledger.connections.default import Connections
from jobledger.connections.locks import LockTimeout
from jobledger.domain.tick import TickKind
from jobledger.errors import ScheduleError, ScheduleNotFound
from jobledger.ledger import heartbeats, ticks
from jobledger.ledger import schedules as rows
from jobledger.ledger.schedules import ScheduleRow
from jobledger.ledger.ticks import TickRow
from jobledger.schedules.ticks import keep_what_has_come, read
from jobledger.schedules.triggers import INSTANT, between, previous

DEADLINE_SECONDS: Final = 10.0
LARGEST_BACKFILL: Final = 10_000


@dataclass(frozen=True, slots=True)
class Overview:
    """A schedule, as shown to people.

    Attributes:
        words: its fire times in English; the expression if this process does not understand the definition.
        target: name of the function, or type of the job.
        state: "active", "paused" or "removed".
        next_times: its next fire times, in its time zone; none if it is not active, or never fires again.
        last: its newest tick that is not waiting.
    """

    row: ScheduleRow
    words: str
    target: str
    state: str
    next_times: tuple[datetime, ...]
    last: TickRow | None


def overviews(connections: Connections, count: int = 1) -> list[Overview]:
    """All schedules.

    Args:
        count: number of next fire times of each.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        last = ticks.last_of_each(connection)
        now = rows.now(connection)
        return [_overview(row, now, count, last.get(row.name)) for row in rows.list_all(connection)]


def overview(connections: Connections, name: str, count: int = 5) -> Overview:
    """One schedule.

    Raises:
        ScheduleNotFound: there is none of this name.
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        row = _row(connection, name)
        last = ticks.last_of_each(connection).get(name)
        return _overview(row, rows.now(connection), count, last)


def _overview(row: ScheduleRow, now: datetime, count: int, last: TickRow | None) -> Overview:
    state = "removed" if row.removed_at is not None else "paused" if row.is_paused else "active"
    try:
        definition, trigger = read(row)
    except ScheduleError:
        return Overview(row, row.trigger, "", state, (), last)
    times: tuple[datetime, ...] = ()
    if state != "removed" and not (row.is_paused and row.paused_until is None):
        since = max(now, row.paused_until) if row.is_paused and row.paused_until is not None else now
        zone = ZoneInfo(definition.when.timezone)
        times = tuple(
            one.astimezone(zone) for one in between(trigger, since, datetime.max.replace(tzinfo=now.tzinfo), count)
        )
    return Overview(row, trigger.words, definition.target, state, times, last)


def run_now(connections: Connections, name: str, by: str) -> datetime:
    """Fire a schedule now, also if it is paused; the first scheduler that sees the request does it.

    Returns:
        The fire time of the tick, which is the database's time now.

    Raises:
        ScheduleNotFound: there is none of this name, or it is removed.
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        row = _active_row(connection, name)
        definition, trigger = read(row)
        now = rows.now(connection)
        before = previous(trigger, now)
        with _unless_being_fired(name):
            ticks.request(connection, row.id, [(now, before)], definition.when.timezone, TickKind.MANUAL, by)
    return now


def pause(
    connections: Connections, name: str, by: str, until: datetime | None = None, reason: str | None = None
) -> None:
    """Pause a schedule, until a moment or until it is resumed; fire times in the pause are not caught up.

    Fire times before the pause that are still to be caught up wait for its end.

    Raises:
        ScheduleNotFound: there is none of this name, or it is removed.
        ScheduleError: the moment has passed.
        LedgerUnavailable: Postgres is away.
    """
    grace_seconds = connections.settings.tick_grace_seconds
    with connections.transaction(DEADLINE_SECONDS) as connection:
        row = _active_row(connection, name)
        if until is not None and until <= rows.now(connection):
            raise ScheduleError(f"Schedule {name!r} cannot be paused until {until.isoformat()}: that has passed.")
        with _unless_being_fired(name):
            was_kept = keep_what_has_come(connection, row, grace_seconds, by)
        if was_kept:
            rows.decide_until(connection, row.id, rows.now(connection))
        rows.pause(connection, name, until, by, reason)


def resume(connections: Connections, name: str) -> bool:
    """End a pause.

    Returns:
        False if the schedule was not paused.

    Raises:
        ScheduleNotFound: there is none of this name.
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        _row(connection, name)
        return rows.resume(connection, name)


@dataclass(frozen=True, slots=True)
class Backfill:
    """The result of a backfill.

    Attributes:
        fire_times: all fire times in the range.
        added: those that this backfill added; the others were fired before, or already wait.
    """

    fire_times: tuple[datetime, ...]
    added: tuple[datetime, ...]


def backfill(
    connections: Connections, name: str, since: datetime, until: datetime, by: str, *, dry_run: bool = False
) -> Backfill:
    """Fire all fire times of a range in the past, oldest first; a repetition adds nothing.

    Args:
        since: first moment of the range.
        until: last moment of the range.
        by: name of the requester.
        dry_run: change nothing; `added` is empty then.

    Raises:
        ScheduleNotFound: there is none of this name, or it is removed.
        ScheduleError: the range is not in the past, empty or too large.
        LedgerUnavailable: Postgres is away.
    """
    if since > until:
        raise ScheduleError(f"The range ends at {until.isoformat()}, before it begins at {since.isoformat()}.")
    with connections.transaction(DEADLINE_SECONDS) as connection:
        row = _active_row(connection, name)
        definition, trigger = read(row)
        if until > rows.now(connection):
            raise ScheduleError(f"A backfill is about the past; {until.isoformat()} is to come.")
        moments = list(between(trigger, since - INSTANT, until, LARGEST_BACKFILL + 1))
        if len(moments) > LARGEST_BACKFILL:
            raise ScheduleError(
                f"That is more than {LARGEST_BACKFILL} fire times; do it in parts, the first one until "
                f"{moments[LARGEST_BACKFILL - 1].isoformat()}."
            )
        if dry_run or not moments:
            return Backfill(tuple(moments), ())
        with_previous = list(pairwise([previous(trigger, moments[0]), *moments]))
        wanted = [(after, before) for before, after in with_previous if after is not None]
        with _unless_being_fired(name):
            added = ticks.request(connection, row.id, wanted, definition.when.timezone, TickKind.BACKFILL, by)
    return Backfill(tuple(moments), tuple(added))


def progress(connections: Connections, name: str, moments: tuple[datetime, ...]) -> list[TickRow]:
    """The ticks of these fire times.

    Raises:
        ScheduleNotFound: there is none of this name.
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        return ticks.among(connection, _row(connection, name).id, moments)


def is_anybody_firing(connections: Connections) -> bool:
    """Whether a scheduler process was seen recently; without a scheduler nothing fires.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    with connections.transaction(DEADLINE_SECONDS) as connection:
        return any(one.seen_seconds_ago <= heartbeats.SEEN_SECONDS for one in heartbeats.list_schedulers(connection))


@contextmanager
def _unless_being_fired(name: str) -> Iterator[None]:
    try:
        yield
    except LockTimeout as error:
        raise ScheduleError(f"A fire time of {name!r} is being fired now; try again.") from error


def _row(connection: Connection, name: str) -> ScheduleRow:
    row = rows.named(connection, [name]).get(name)
    if row is None:
        known = ", ".join(repr(one.name) for one in rows.list_all(connection)[:20]) or "none"
        raise ScheduleNotFound(f"There is no schedule {name!r}; there are: {known}.")
    return row


def _active_row(connection: Connection, name: str) -> ScheduleRow:
    row = _row(connection, name)
    if row.removed_at is not None:
        raise ScheduleNotFound(
            f"Schedule {name!r} is removed: no running scheduler has defined it since {row.removed_at.isoformat()}."
        )
    return row
