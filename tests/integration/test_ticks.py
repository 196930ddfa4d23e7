"""Ticks: a fire time happens once, in one transaction with the jobs that it dispatches."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from harness import eventually, one_value
from jobledger import BaseJob, Connections, JobHandle, Settings
from jobledger.domain.tick import Tick, TickKind
from jobledger.schedules import Schedule, ScheduleBook
from jobledger.schedules.definition import CatchUp
from jobledger.schedules.ticks import Due, due, fire, write_definitions
from jobledger.worker import run_job
from sample_jobs import Echo

pytestmark = pytest.mark.one_database  # each looks at a schedule of its own

Define = Callable[..., Schedule]

HOURLY: dict[str, Any] = {"hours": 1, "misfire_grace_time": 7200}
"""An interval that is due once, half an hour ago, if it was created 90 minutes ago."""
LONG_AGO = "90 minutes"
PRAGUE = ZoneInfo("Europe/Prague")


@pytest.fixture
def define(connections: Connections, request: pytest.FixtureRequest) -> Define:
    """Defines this test's schedule, in code and in the database, where it was created some time ago."""

    def define(function: Callable[..., Any], trigger: str, created_ago: str = "0 s", **options: Any) -> Schedule:
        schedule = ScheduleBook().add_job(function, trigger, id=request.node.name, **options)
        write_definitions(connections, [schedule])
        with connections.transaction() as connection:
            backdate = """UPDATE schedules SET created_at = created_at - CAST(:ago AS interval),
                                               decided_until = decided_until - CAST(:ago AS interval)
                           WHERE name = :name"""
            connection.execute(sa.text(backdate), {"ago": created_ago, "name": schedule.name})
        return schedule

    return define


def row_of(connections: Connections, schedule: Schedule) -> Any:
    with connections.transaction() as connection:
        named = sa.text("SELECT * FROM schedules WHERE name = :name")
        return connection.execute(named, {"name": schedule.name}).one()


def ticks_of(connections: Connections, schedule: Schedule) -> list[Any]:
    with connections.transaction() as connection:
        ticks = "SELECT * FROM schedule_ticks WHERE schedule_id = :id ORDER BY fire_at"
        return list(connection.execute(sa.text(ticks), {"id": row_of(connections, schedule).id}))


def jobs_of(connections: Connections, schedule: Schedule) -> list[Any]:
    with connections.transaction() as connection:
        jobs = "SELECT * FROM job_statuses WHERE schedule_id = :id ORDER BY id"
        return list(connection.execute(sa.text(jobs), {"id": row_of(connections, schedule).id}))


def pushed(connections: Connections) -> list[str]:
    return [one.decode() for one in connections.redis.lrange("rq:queue:default", 0, -1)]


def fire_times(connections: Connections, schedule: Schedule) -> list[datetime]:
    """The fire times that are due, oldest first."""
    return [one.fire_at for one in due(connections, [schedule])]


def only_due(connections: Connections, schedule: Schedule) -> Due:
    (one,) = due(connections, [schedule])
    return one


# -- what a tick is


def test_a_fire_time_leaves_a_tick_and_the_jobs_that_it_dispatched(connections: Connections, define: Define) -> None:
    schedule = define(lambda: Echo.dispatch_many([{"n": 1}, {"n": 2}]), "interval", LONG_AGO, **HOURLY)
    one = only_due(connections, schedule)

    assert fire(connections, one)

    (tick,) = ticks_of(connections, schedule)
    assert tick.fire_at == one.fire_at == row_of(connections, schedule).created_at + timedelta(hours=1)
    assert tick.scheduler == f"{socket.gethostname()}:{os.getpid()}"
    jobs = jobs_of(connections, schedule)
    assert [job.payload for job in jobs] == [{"n": 1}, {"n": 2}]
    assert {job.fire_at for job in jobs} == {one.fire_at}
    assert pushed(connections) == [str(job.id) for job in jobs]


def test_a_function_gets_the_arguments_of_its_definition(connections: Connections, define: Define) -> None:
    arguments = {"args": ("flights",), "kwargs": {"source": "api"}}
    schedule = define(
        lambda table, source: Echo.dispatch(table=table, source=source), "interval", LONG_AGO, **HOURLY, **arguments
    )

    fire(connections, only_due(connections, schedule))

    (job,) = jobs_of(connections, schedule)
    assert job.payload == {"table": "flights", "source": "api"}


class OfMoment(BaseJob):
    def _perform(self, at: datetime, of_day: time) -> str:
        return f"{at.astimezone(UTC):%H:%M}, {of_day.tzinfo}"


@pytest.mark.parametrize(
    "fire_at",
    [
        datetime(2026, 10, 25, 0, 30, tzinfo=UTC),  # 02:30 in Prague, for the first time
        datetime(2026, 10, 25, 1, 30, tzinfo=UTC),  # and for the second
        datetime(2026, 3, 29, 1, 0, tzinfo=UTC),
    ],
)
def test_a_function_passes_its_fire_time_on_in_the_night_of_a_clock_change(
    connections: Connections, define: Define, fire_at: datetime
) -> None:
    handles: list[JobHandle] = []

    def dispatching(tick: Tick) -> None:
        handles.append(OfMoment.dispatch(at=tick.logical_time, of_day=tick.logical_time.timetz()))

    schedule = define(dispatching, "interval", LONG_AGO, **HOURLY, timezone="Europe/Prague")

    assert fire(connections, replace(only_due(connections, schedule), fire_at=fire_at, kind=TickKind.BACKFILL))
    run_job(str(handles[0].id))

    assert handles[0].refresh().result == f"{fire_at:%H:%M}, Europe/Prague"


def test_a_job_class_keeps_its_payload_whatever_its_types(connections: Connections) -> None:
    book = ScheduleBook()
    payload = {"at": datetime(2026, 10, 25, 2, 30, tzinfo=PRAGUE), "of_day": time(2, 30, tzinfo=PRAGUE)}
    schedule = book.schedule(every="1h", name="of a moment", payload=payload)(OfMoment)
    (defined,) = book
    write_definitions(connections, book)
    with connections.transaction() as connection:
        connection.execute(
            sa.text("UPDATE schedules SET decided_until = now() - interval '90 minutes' WHERE name = 'of a moment'")
        )

    assert schedule is OfMoment
    assert defined.definition.payload == {"at": "2026-10-25T02:30:00+02:00", "of_day": "02:30:00[Europe/Prague]"}
    assert fire(connections, only_due(connections, defined))
    (job,) = jobs_of(connections, defined)
    assert job.payload == defined.definition.payload


def test_the_jobs_of_a_tick_are_seen_and_pushed_after_its_commit_only(connections: Connections, define: Define) -> None:
    seen: list[tuple[int, list[str]]] = []

    def dispatching() -> None:
        job = Echo.dispatch()
        others_see = one_value(connections, "SELECT count(*) FROM job_statuses WHERE id = :id", id=job.id)
        seen.append((others_see, pushed(connections)))

    schedule = define(dispatching, "interval", LONG_AGO, **HOURLY)
    fire(connections, only_due(connections, schedule))

    assert seen == [(0, [])]
    assert pushed(connections) == [str(job.id) for job in jobs_of(connections, schedule)]


def test_a_job_that_is_dispatched_beside_a_tick_is_none_of_its_jobs(connections: Connections, define: Define) -> None:
    schedule = define(lambda: None, "interval", LONG_AGO, **HOURLY)

    fire(connections, only_due(connections, schedule))
    job = Echo.dispatch()

    assert jobs_of(connections, schedule) == []
    assert one_value(connections, "SELECT fire_at FROM job_statuses WHERE id = :id", id=job.id) is None


def test_a_job_that_a_tick_dispatched_runs_like_any_other(connections: Connections, define: Define) -> None:
    handles: list[JobHandle] = []
    schedule = define(lambda: handles.append(Echo.dispatch(n=5)), "interval", LONG_AGO, **HOURLY)
    fire(connections, only_due(connections, schedule))

    run_job(str(handles[0].id))

    assert handles[0].refresh().result == {"n": 5}


# -- once


def test_a_fire_time_that_another_scheduler_is_firing_is_left_to_it(
    connections: Connections, settings: Settings, define: Define
) -> None:
    answers: list[bool] = []
    other = Connections(settings)

    def dispatching() -> None:
        Echo.dispatch()
        answers.append(fire(other, one))  # which does not wait

    schedule = define(dispatching, "interval", LONG_AGO, **HOURLY)
    one = only_due(connections, schedule)

    assert fire(connections, one)

    assert answers == [False]
    assert len(ticks_of(connections, schedule)) == 1
    (job,) = jobs_of(connections, schedule)
    assert pushed(connections) == [str(job.id)]
    other.close()


def test_what_one_scheduler_failed_to_fire_another_one_fires(
    connections: Connections, settings: Settings, define: Define
) -> None:
    calls: list[int] = []

    def failing_at_first() -> None:
        calls.append(len(calls))
        Echo.dispatch(call=len(calls))
        if len(calls) == 1:
            raise RuntimeError("as asked")

    schedule = define(failing_at_first, "interval", LONG_AGO, **HOURLY)
    other = Connections(settings)
    one = only_due(other, schedule)

    with pytest.raises(RuntimeError, match="as asked"):
        fire(connections, one)
    assert row_of(connections, schedule).error == "RuntimeError: as asked"
    assert fire(other, one)

    assert len(ticks_of(connections, schedule)) == 1
    assert [job.payload for job in jobs_of(connections, schedule)] == [{"call": 2}]
    assert row_of(connections, schedule).error is None
    other.close()


def test_what_was_fired_is_not_due_and_is_not_fired_again(connections: Connections, define: Define) -> None:
    schedule = define(Echo.dispatch, "interval", LONG_AGO, **HOURLY)
    one = only_due(connections, schedule)
    fire(connections, one)

    assert due(connections, [schedule]) == []
    assert not fire(connections, one)
    assert len(jobs_of(connections, schedule)) == 1


def test_a_function_that_raises_leaves_no_tick_and_no_job_and_is_due_again(
    connections: Connections, define: Define
) -> None:
    calls: list[int] = []

    def failing_at_first() -> None:
        calls.append(len(calls))
        Echo.dispatch()
        if len(calls) == 1:
            raise RuntimeError("as asked")

    schedule = define(failing_at_first, "interval", LONG_AGO, **HOURLY)
    one = only_due(connections, schedule)

    with pytest.raises(RuntimeError, match="as asked"):
        fire(connections, one)

    assert ticks_of(connections, schedule) == jobs_of(connections, schedule) == pushed(connections) == []
    assert only_due(connections, schedule).fire_at == one.fire_at
    assert fire(connections, one)
    assert len(jobs_of(connections, schedule)) == 1


def test_fire_times_keep_their_order_when_one_fails(connections: Connections, define: Define) -> None:
    schedule = define(Echo.dispatch, "interval", "150 minutes", hours=1, misfire_grace_time=7200, coalesce=False)
    first, second = due(connections, [schedule])

    assert not fire(connections, second)  # the first one failed, or another scheduler is firing it

    assert fire_times(connections, schedule) == [first.fire_at, second.fire_at]


# -- when


def test_nothing_fires_for_times_before_the_creation(connections: Connections, define: Define) -> None:
    every_second = define(Echo.dispatch, "cron", second="*", coalesce=False, misfire_grace_time=3600)

    created_at = row_of(connections, every_second).created_at
    assert all(fire_at > created_at for fire_at in fire_times(connections, every_second))


def test_a_moment_that_had_passed_when_it_was_defined_never_comes(connections: Connections, define: Define) -> None:
    passed = datetime.now(UTC) - timedelta(seconds=10)
    schedule = define(Echo.dispatch, "date", run_date=passed, misfire_grace_time=3600)

    assert due(connections, [schedule]) == []


def test_a_moment_that_came_after_the_definition_is_fired_once(connections: Connections, define: Define) -> None:
    passed = datetime.now(UTC) - timedelta(seconds=10)
    schedule = define(Echo.dispatch, "date", "1 minute", run_date=passed)

    assert fire_times(connections, schedule) == [passed]
    fire(connections, only_due(connections, schedule))
    assert due(connections, [schedule]) == []


def test_of_many_missed_fire_times_only_the_newest_is_fired(connections: Connections, define: Define) -> None:
    schedule = define(Echo.dispatch, "interval", "65 minutes", minutes=10, misfire_grace_time=3600)

    created_at = row_of(connections, schedule).created_at
    assert fire_times(connections, schedule) == [created_at + timedelta(minutes=60)]


def test_every_missed_fire_time_is_fired_if_that_is_asked_for(connections: Connections, define: Define) -> None:
    schedule = define(Echo.dispatch, "interval", "65 minutes", minutes=10, misfire_grace_time=86400, coalesce=False)

    created_at = row_of(connections, schedule).created_at
    all_due = due(connections, [schedule])
    assert [one.fire_at for one in all_due] == [created_at + timedelta(minutes=10 * n) for n in range(1, 7)]
    assert [fire(connections, one) for one in all_due] == [True] * 6
    fire_times_of_jobs = [job.fire_at for job in jobs_of(connections, schedule)]
    assert fire_times_of_jobs == [tick.fire_at for tick in ticks_of(connections, schedule)]
    assert len(fire_times_of_jobs) == 6


def test_what_is_later_than_its_grace_is_not_fired(connections: Connections, define: Define) -> None:
    schedule = define(Echo.dispatch, "interval", "65 minutes", minutes=10, misfire_grace_time=1800, coalesce=False)

    created_at = row_of(connections, schedule).created_at
    assert fire_times(connections, schedule) == [created_at + timedelta(minutes=minutes) for minutes in (40, 50, 60)]


def test_the_settings_say_how_long_a_fire_time_is_on_time(
    connections: Connections, settings: Settings, define: Define
) -> None:
    schedule = define(Echo.dispatch, "interval", "65 minutes", minutes=10, coalesce=False)
    skipping = replace(
        schedule, definition=replace(schedule.definition, catch_up=CatchUp.SKIP, max_lateness_seconds=None)
    )
    write_definitions(connections, [skipping])
    patient = Connections(settings.model_copy(update={"tick_grace_seconds": 600}))

    assert len(due(patient, [skipping])) == 1
    assert due(connections, [skipping]) == []
    assert due(patient, [skipping]) == []  # it was given up, and that stands
    patient.close()


def test_processes_that_start_at_different_times_mean_the_same_fire_times(
    connections: Connections, settings: Settings, define: Define
) -> None:
    define(Echo.dispatch, "interval", "65 minutes", minutes=10, misfire_grace_time=3600)
    later = define(Echo.dispatch, "interval", minutes=10, misfire_grace_time=3600)
    (one,) = fire_times(connections, later)

    other = Connections(settings)
    again = define(Echo.dispatch, "interval", minutes=10, misfire_grace_time=3600)

    assert fire_times(other, again) == [one]
    assert one - row_of(connections, again).created_at == timedelta(hours=1)
    other.close()


def test_a_schedule_that_was_not_there_begins_when_it_is_first_looked_at(connections: Connections) -> None:
    new = ScheduleBook().add_job(Echo.dispatch, "interval", seconds=1, id="new")

    assert due(connections, [new]) == []
    assert eventually(lambda: due(connections, [new]))
    assert due(connections, []) == []


# -- definitions


def test_a_definition_that_changes_keeps_its_id_and_its_creation(connections: Connections, define: Define) -> None:
    before = row_of(connections, define(Echo.dispatch, "interval", hours=1))

    after = row_of(connections, define(Echo.dispatch, "cron", hour=2, timezone="Europe/Prague"))

    assert (before.trigger, before.timezone) == ("every 1 hour", "UTC")
    assert (after.trigger, after.timezone) == ("cron hour=2", "Europe/Prague")
    assert (after.id, after.created_at) == (before.id, before.created_at)
    assert after.updated_at > before.updated_at


def test_a_definition_that_stays_the_same_is_not_touched(connections: Connections, define: Define) -> None:
    before = row_of(connections, define(Echo.dispatch, "interval", hours=1))

    assert row_of(connections, define(Echo.dispatch, "interval", hours=1)) == before


def test_processes_that_define_the_same_schedules_at_once_do_not_disturb_each_other(
    connections: Connections, settings: Settings, request: pytest.FixtureRequest
) -> None:
    names = [f"{request.node.name} {number}" for number in range(20)]
    processes = [Connections(settings) for _ in range(4)]

    def write(number: int) -> None:
        book = ScheduleBook()
        for name in names if number % 2 else reversed(names):
            book.add_job(Echo.dispatch, "interval", hours=number + 1, id=name)
        write_definitions(processes[number], book)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))

    written = "SELECT count(*) FROM schedules WHERE name = ANY(CAST(:names AS text[]))"
    assert one_value(connections, written, names=names) == 20
    for process in processes:
        process.close()
