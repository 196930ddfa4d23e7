"""Fires schedules: a fire time is a row that can be written once, in the transaction that its dispatches join."""

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session
from uuid6 import uuid7

from jobledger.connections import Connections, unavailable_as_error
from jobledger.dispatch import joining_tick
from jobledger.ledger import ticks
from jobledger.ledger.ticks import ScheduleRow
from jobledger.observe.log import get_logger
from jobledger.schedules.schedule import Schedule

log: Final = get_logger(__name__)

DEADLINE_SECONDS: Final = 10.0


def write_definitions(connections: Connections, schedules: Iterable[Schedule]) -> None:
    """Write the schedules that are defined in code into the database.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    zone = connections.settings.timezone
    with connections.transaction(DEADLINE_SECONDS) as connection:
        for schedule in sorted(schedules, key=lambda one: one.name):  # one order, so that two at once cannot deadlock
            timezone = str(schedule.arguments.get("timezone") or zone)
            ticks.upsert_schedule(connection, uuid7(), schedule.name, schedule.expression, timezone)


@dataclass(frozen=True, slots=True)
class Due:
    """A schedule's fire time that has come and was not fired yet, as far as was seen."""

    schedule: Schedule
    row: ScheduleRow
    fire_at: datetime


def due(connections: Connections, schedules: Iterable[Schedule]) -> list[Due]:
    """The fire times that should be fired now, by the database's clock.

    Raises:
        LedgerUnavailable: Postgres is away.
    """
    by_name = {schedule.name: schedule for schedule in schedules}
    if not by_name:
        return []
    with connections.transaction(DEADLINE_SECONDS) as connection:
        window = max(_grace_seconds(connections, schedule) for schedule in by_name.values())
        now, rows = ticks.schedules(connection, list(by_name), window)
    found: list[Due] = []
    for name, row in rows.items():
        schedule = by_name[name]
        moments = list(_moments(connections, schedule, row, now))
        wanted = moments[-1:] if schedule.coalesce else moments
        found += [Due(schedule, row, at) for at in wanted if at not in row.fired]
    return found


def _moments(connections: Connections, schedule: Schedule, row: ScheduleRow, now: datetime) -> Iterable[datetime]:
    since = max(row.created_at, now - timedelta(seconds=_grace_seconds(connections, schedule)))
    return schedule.fire_times(connections.settings.zone, row.created_at, since, now)


def _grace_seconds(connections: Connections, schedule: Schedule) -> float:
    given = schedule.grace_seconds
    return connections.settings.tick_grace_seconds if given is None else given


def fire(connections: Connections, one: Due) -> bool:
    """Fire a fire time: take its tick, call the function, commit; the jobs that it dispatched are pushed then.

    Returns:
        False if another scheduler has fired it.

    Raises:
        Exception: what the function raised. There is no tick then, and it will be due again.
        LedgerUnavailable: Postgres is away.
    """
    started = time.monotonic()
    with unavailable_as_error(), Session(connections.engine) as session:
        if not ticks.take_tick(session.connection(), one.row.id, one.fire_at, f"{socket.gethostname()}:{os.getpid()}"):
            return False
        with joining_tick(session, one.row.id, one.fire_at):
            one.schedule.function(*one.schedule.args, **one.schedule.kwargs)
        session.commit()
    log.info(
        "Fired",
        schedule=one.schedule.name,
        fire_at=one.fire_at.isoformat(),
        seconds=round(time.monotonic() - started, 3),
    )
    return True
