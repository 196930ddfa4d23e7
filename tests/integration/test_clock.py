"""The clock's policies, on a real ledger: catch-up, overlap, pauses, requests, and definitions that change."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from harness import eventually, one_value
from jobledger import Connections, LedgerUnavailable, ScheduleError, ScheduleNotFound, Settings, Tick
from jobledger.ledger import schedules as rows
from jobledger.maintenance.prune import prune
from jobledger.schedules import Schedule, ScheduleBook, control, ticks
from jobledger.schedules.ticks import due, fire, write_definitions
from jobledger.worker import run_job
from sample_jobs import Echo, Ticked

pytestmark = pytest.mark.one_database  # each looks at a schedule of its own

Define = Callable[..., Schedule]
ME = "somebody"


def change(connections: Connections, sql: str, **parameters: Any) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(sql), parameters)


def ago(connections: Connections, name: str, seconds: float) -> None:
    """As if the schedule had been created, and decided about last, so many seconds ago."""
    change(
        connections,
        """UPDATE schedules SET created_at = now() - make_interval(secs => :seconds),
                                decided_until = now() - make_interval(secs => :seconds) WHERE name = :name""",
        seconds=seconds,
        name=name,
    )


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)[:200]


@pytest.fixture
def define(connections: Connections, name: str) -> Define:
    """Defines this test's schedule, in code and in the ledger."""

    def define(target: Any, *cron: str, seconds_ago: float = 0, **options: Any) -> Schedule:
        book = ScheduleBook()
        book.schedule(*cron, name=name, **options)(target)
        (schedule,) = book
        write_definitions(connections, [schedule])
        if seconds_ago:
            ago(connections, name, seconds_ago)
        return schedule

    return define


def row_of(connections: Connections, name: str) -> rows.ScheduleRow:
    with connections.transaction() as connection:
        return rows.named(connection, [name])[name]


def ticks_of(connections: Connections, name: str) -> list[Any]:
    with connections.transaction() as connection:
        sql = "SELECT t.* FROM schedule_ticks t JOIN schedules s ON s.id = t.schedule_id WHERE s.name = :name"
        return list(connection.execute(sa.text(f"{sql} ORDER BY fire_at"), {"name": name}))


def outcomes(connections: Connections, name: str) -> list[str]:
    return [tick.outcome for tick in ticks_of(connections, name)]


def jobs_of(connections: Connections, name: str) -> list[Any]:
    with connections.transaction() as connection:
        sql = (
            "SELECT j.* FROM job_statuses j JOIN schedules s ON s.id = j.schedule_id WHERE s.name = :name ORDER BY j.id"
        )
        return list(connection.execute(sa.text(sql), {"name": name}))


def end_jobs(connections: Connections, name: str) -> None:
    for job in jobs_of(connections, name):
        run_job(str(job.id))


def look(connections: Connections, schedule: Schedule) -> list[bool]:
    """Do what a scheduler process does when it looks."""
    answers = (fire(connections, one) for one in due(connections, [schedule]))
    return list(itertools.takewhile(bool, answers))


def recording(seen: list[Tick]) -> Callable[[Tick], None]:
    def function(tick: Tick) -> None:
        seen.append(tick)
        Echo.dispatch(at=tick.logical_time.isoformat())

    return function


# -- what a function and a job are told


def test_a_function_is_told_its_tick_in_the_schedule_s_time_zone(connections: Connections, define: Define) -> None:
    seen: list[Tick] = []
    schedule = define(recording(seen), "0 * * * *", tz="Asia/Kolkata", seconds_ago=3700)

    look(connections, schedule)

    (tick,) = seen
    assert (tick.schedule, tick.kind) == (schedule.name, "scheduled")
    assert str(tick.logical_time.tzinfo) == "Asia/Kolkata"
    assert (tick.logical_time.minute, tick.logical_time.second) == (0, 0)
    assert tick.previous == tick.logical_time - timedelta(hours=1)
    assert timedelta(0) <= tick.fired_at - tick.logical_time < timedelta(hours=1)


def test_a_job_is_told_its_tick_however_late_it_runs(connections: Connections, define: Define, name: str) -> None:
    look(connections, define(Ticked, "30 2 * * *", tz="Europe/Prague", seconds_ago=86400))
    (job,) = jobs_of(connections, name)

    run_job(str(job.id))

    result = one_value(connections, "SELECT result FROM job_statuses WHERE id = :id", id=job.id)
    assert result["schedule"] == name
    logical, previous = (datetime.fromisoformat(result[key]) for key in ("logical_time", "previous"))
    assert logical == job.fire_at
    assert result["logical_time"][11:19] == "02:30:00"  # on Prague's wall
    assert timedelta(hours=22) < logical - previous < timedelta(hours=26)


def test_a_job_that_no_schedule_dispatched_has_no_tick(connections: Connections) -> None:
    job = Ticked.dispatch()

    run_job(str(job.id))

    assert job.refresh().result is None


def test_jitter_moves_the_job_and_not_the_fire_time(connections: Connections, define: Define, name: str) -> None:
    def many() -> None:
        Echo.dispatch_many([{"n": number} for number in range(50)])

    look(connections, define(many, every="1h", jitter="10m", seconds_ago=3700))

    jobs, (tick,) = jobs_of(connections, name), ticks_of(connections, name)
    waits = [(job.available_at - job.created_at).total_seconds() for job in jobs]
    assert all(0 <= wait <= 600 for wait in waits)
    assert len({round(wait) for wait in waits}) > 10
    assert {job.fire_at for job in jobs} == {tick.fire_at}
    assert tick.fire_at == row_of(connections, name).created_at + timedelta(hours=1)


def test_a_job_class_is_dispatched_with_its_payload_and_options(
    connections: Connections, define: Define, name: str
) -> None:
    look(connections, define(Echo, every="1h", payload={"day": 1}, queue="etl", title="Hourly", seconds_ago=3700))

    (job,) = jobs_of(connections, name)
    assert (job.job_type, job.payload, job.queue, job.title) == ("Echo", {"day": 1}, "etl", "Hourly")


# -- overlap


def test_overlap_skip_leaves_a_fire_time_out_while_earlier_jobs_have_not_ended(
    connections: Connections, define: Define, name: str
) -> None:
    schedule = define(Echo, every="1h", catch_up="all", overlap="skip", seconds_ago=2 * 3600 + 60)

    assert look(connections, schedule) == [True, True]
    assert outcomes(connections, name) == ["fired", "skipped"]
    assert ticks_of(connections, name)[1].reason == "earlier jobs had not ended"
    assert len(jobs_of(connections, name)) == 1

    end_jobs(connections, name)
    change(
        connections, "UPDATE schedules SET created_at = created_at - interval '1 hour' WHERE name = :name", name=name
    )
    change(connections, "UPDATE schedules SET decided_until = now() - interval '1 hour' WHERE name = :name", name=name)
    change(connections, "DELETE FROM schedule_ticks WHERE outcome = 'skipped'")
    look(connections, schedule)
    assert len(jobs_of(connections, name)) == 2


def test_overlap_queue_fires_every_fire_time_in_its_turn(connections: Connections, define: Define, name: str) -> None:
    schedule = define(Echo, every="1h", catch_up="all", overlap="queue", seconds_ago=3 * 3600 + 60)

    look(connections, schedule)
    assert outcomes(connections, name) == ["fired", "waiting", "waiting"]
    assert look(connections, schedule) == []  # nothing changes as long as the job has not ended

    for turn in (2, 3):
        end_jobs(connections, name)
        look(connections, schedule)
        assert len(jobs_of(connections, name)) == turn
    assert outcomes(connections, name) == ["fired"] * 3
    assert [job.fire_at for job in jobs_of(connections, name)] == [one.fire_at for one in ticks_of(connections, name)]


def test_what_waits_for_too_long_is_skipped(connections: Connections, define: Define, name: str) -> None:
    limits = {"catch_up": "all", "overlap": "queue", "max_lateness": "90m"}
    schedule = define(Echo, every="1h", seconds_ago=3600 + 60, **limits)
    look(connections, schedule)
    change(
        connections,
        """INSERT INTO schedule_ticks (schedule_id, fire_at, outcome, fired_at)
           SELECT id, now() - interval '2 hours', 'waiting', NULL FROM schedules WHERE name = :name""",
        name=name,
    )

    look(connections, schedule)

    assert outcomes(connections, name) == ["skipped", "fired"]


def test_a_long_row_of_waiting_fire_times_has_an_end(
    connections: Connections, define: Define, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticks, "MOST_QUEUED", 2)

    look(connections, define(Echo, every="1h", catch_up="all", overlap="queue", seconds_ago=5 * 3600 + 60))

    assert outcomes(connections, name) == ["fired", "waiting", "waiting", "skipped", "skipped"]


# -- pauses


def test_a_paused_schedule_fires_nothing_and_makes_up_for_nothing(
    connections: Connections, define: Define, name: str
) -> None:
    schedule = define(Echo, every="1h", catch_up="all")

    control.pause(connections, name, ME, reason="the source is being moved")
    ago(connections, name, 3 * 3600)
    change(connections, "UPDATE schedules SET paused_at = created_at WHERE name = :name", name=name)
    assert due(connections, [schedule]) == []
    row = row_of(connections, name)
    assert (row.is_paused, row.paused_by, row.pause_reason) == (True, ME, "the source is being moved")
    assert control.overview(connections, name).next_times == ()

    assert control.resume(connections, name)
    assert due(connections, [schedule]) == []
    assert ticks_of(connections, name) == []
    assert not control.resume(connections, name)


def test_a_pause_may_end_by_itself(connections: Connections, define: Define, name: str) -> None:
    schedule = define(Echo, every="1h", catch_up="all")

    control.pause(connections, name, ME, until=datetime.now(UTC) + timedelta(hours=1))
    ago(connections, name, 3 * 3600 + 60)
    assert due(connections, [schedule]) == []
    change(
        connections,
        "UPDATE schedules SET paused_at = now() - interval '1 day', paused_until = now() - interval '90 minutes'"
        " WHERE name = :name",
        name=name,
    )

    assert [one.fire_at for one in due(connections, [schedule])] == [
        row_of(connections, name).created_at + timedelta(hours=number) for number in (2, 3)
    ]


def test_what_had_come_before_a_pause_waits_for_its_end(connections: Connections, define: Define, name: str) -> None:
    schedule = define(Echo, every="1h", catch_up="all", seconds_ago=3 * 3600 + 60)

    control.pause(connections, name, ME)
    assert look(connections, schedule) == []
    control.resume(connections, name)

    assert look(connections, schedule) == [True] * 3
    assert look(connections, schedule) == []


def test_a_pause_that_has_passed_is_refused(connections: Connections, define: Define, name: str) -> None:
    define(Echo, every="1h")

    with pytest.raises(ScheduleError, match="that has passed"):
        control.pause(connections, name, ME, until=datetime.now(UTC) - timedelta(seconds=1))
    assert not row_of(connections, name).is_paused


# -- run now


@pytest.mark.parametrize("paused", [False, True])
def test_what_is_run_now_fires_at_the_next_look(
    connections: Connections, define: Define, name: str, paused: bool
) -> None:
    seen: list[Tick] = []
    schedule = define(recording(seen), "0 2 1 1 *")
    if paused:
        control.pause(connections, name, ME)

    asked = control.run_now(connections, name, ME)
    assert outcomes(connections, name) == ["waiting"]
    look(connections, schedule)

    (tick,) = seen
    assert (tick.kind, tick.logical_time) == ("manual", asked)
    assert tick.previous is not None
    assert (tick.previous.month, tick.previous.day, tick.previous.hour) == (1, 1, 2)
    assert outcomes(connections, name) == ["fired"]
    assert ticks_of(connections, name)[0].requested_by == ME
    assert look(connections, schedule) == []
    assert len(jobs_of(connections, name)) == 1


def test_what_is_run_now_waits_for_no_backfill(connections: Connections, define: Define, name: str) -> None:
    schedule = define(Echo, every="1h", overlap="skip", seconds_ago=10 * 3600 + 60)
    look(connections, schedule)
    end_jobs(connections, name)
    created_at = row_of(connections, name).created_at
    control.backfill(connections, name, created_at, created_at + timedelta(hours=9), ME)
    asked = control.run_now(connections, name, ME)

    look(connections, schedule)

    assert jobs_of(connections, name)[-1].fire_at == asked


# -- backfill


def test_a_backfill_fires_the_past_once_however_often_it_is_asked_for(
    connections: Connections, define: Define, name: str
) -> None:
    seen: list[Tick] = []
    schedule = define(recording(seen), "30 2 * * *", tz="Europe/Prague")
    march = datetime(2026, 3, 27, tzinfo=UTC), datetime(2026, 3, 31, tzinfo=UTC)

    rehearsed = control.backfill(connections, name, *march, ME, dry_run=True)
    assert (len(rehearsed.fire_times), rehearsed.added, ticks_of(connections, name)) == (4, (), [])
    first = control.backfill(connections, name, *march, ME)
    again = control.backfill(connections, name, *march, ME)
    assert (first.added, again.added) == (first.fire_times, ())
    look(connections, schedule)
    once_more = control.backfill(connections, name, *march, ME)
    assert once_more.added == ()
    assert look(connections, schedule) == []

    assert [tick.logical_time.isoformat() for tick in seen] == [
        "2026-03-27T02:30:00+01:00",
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:00:00+02:00",  # the clocks were put forward from 02:00 to 03:00
        "2026-03-30T02:30:00+02:00",
    ]
    assert [tick.previous for tick in seen][1:] == [tick.logical_time for tick in seen][:-1]
    assert {tick.kind for tick in seen} == {"backfill"}
    assert len(jobs_of(connections, name)) == 4
    assert {one.outcome for one in control.progress(connections, name, first.fire_times)} == {"fired"}


def test_a_backfill_makes_up_for_what_was_skipped_and_leaves_what_was_fired(
    connections: Connections, define: Define, name: str
) -> None:
    schedule = define(Echo, every="1h", catch_up="all", overlap="skip", seconds_ago=3 * 3600 + 60)
    look(connections, schedule)
    assert outcomes(connections, name) == ["fired", "skipped", "skipped"]
    created_at = row_of(connections, name).created_at

    asked = control.backfill(connections, name, created_at, created_at + timedelta(hours=3), ME)

    assert list(asked.added) == [created_at + timedelta(hours=number) for number in (0, 2, 3)]
    assert len(asked.fire_times) == 4  # with the moment of the creation, from which the interval counts
    for _ in range(3):
        end_jobs(connections, name)
        look(connections, schedule)
    assert len(jobs_of(connections, name)) == 4


def test_a_backfill_stops_while_its_schedule_is_paused(connections: Connections, define: Define, name: str) -> None:
    schedule = define(Echo, every="1h")
    now = row_of(connections, name).created_at
    control.backfill(connections, name, now - timedelta(hours=3), now - timedelta(hours=1), ME)
    control.pause(connections, name, ME)

    assert look(connections, schedule) == []
    control.resume(connections, name)
    assert look(connections, schedule) == [True] * 3


def test_a_tick_that_fails_again_and_again_is_given_up_and_blocks_nothing(
    connections: Connections, define: Define, name: str
) -> None:
    def picky(tick: Tick) -> None:
        if tick.logical_time == bad:
            raise RuntimeError("this hour is broken")
        Echo.dispatch()

    schedule = define(picky, every="1h")
    now = row_of(connections, name).created_at
    bad = now - timedelta(hours=3)
    control.backfill(connections, name, bad, now - timedelta(hours=1), ME)

    for _ in range(ticks.MOST_ERRORS):
        with pytest.raises(RuntimeError):
            look(connections, schedule)
    look(connections, schedule)

    assert outcomes(connections, name) == ["failed", "fired", "fired"]
    assert ticks_of(connections, name)[0].reason == "RuntimeError: this hour is broken"
    assert row_of(connections, name).error is None
    assert control.backfill(connections, name, bad, bad, ME).added == (bad,)


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        (timedelta(days=-365), timedelta(0), "more than 10000 fire times.*in parts.*until"),
        (timedelta(hours=-1), timedelta(hours=1), "to come"),
        (timedelta(0), timedelta(hours=-1), "before it begins"),
    ],
)
def test_a_backfill_that_makes_no_sense_is_refused_at_once(
    connections: Connections, define: Define, name: str, since: timedelta, until: timedelta, said: str
) -> None:
    define(Echo, every="1s")
    now = row_of(connections, name).created_at

    with pytest.raises(ScheduleError, match=said):
        control.backfill(connections, name, now + since, now + until, ME)
    assert ticks_of(connections, name) == []


def test_a_schedule_that_is_not_there_is_named(connections: Connections) -> None:
    for ask in (control.overview, control.resume, lambda *of: control.run_now(*of, ME)):
        with pytest.raises(ScheduleNotFound, match="There is no schedule 'nightly'; there are: "):
            ask(connections, "nightly")


# -- what is kept


def test_ticks_outlive_the_pruning_of_their_jobs(
    connections: Connections, settings: Settings, define: Define, name: str
) -> None:
    schedule = define(Echo, every="1h", seconds_ago=3700)
    look(connections, schedule)
    end_jobs(connections, name)
    hasty = Connections(settings.model_copy(update={"keep_completed_days": 1e-9, "keep_failed_days": 1e-9}))

    eventually(lambda: prune(hasty) or not jobs_of(connections, name), what="the job is pruned")

    assert outcomes(connections, name) == ["fired"]
    fire_at = ticks_of(connections, name)[0].fire_at
    assert control.backfill(connections, name, fire_at, fire_at, ME).added == ()
    hasty.close()


def test_ticks_are_forgotten_after_their_own_time(
    connections: Connections, settings: Settings, define: Define, name: str
) -> None:
    look(connections, define(Echo, every="1h", seconds_ago=3700))
    asked = control.run_now(connections, name, ME)
    change(connections, "UPDATE schedule_ticks SET created_at = now() - interval '399 days'")
    prune(connections)
    assert len(ticks_of(connections, name)) == 2

    change(connections, "UPDATE schedule_ticks SET created_at = now() - interval '401 days'")
    prune(connections)

    assert [tick.fire_at for tick in ticks_of(connections, name)] == [asked]  # it has not been fired yet


# -- definitions that change


def other_code(target: Any, *cron: str, name: str, **options: Any) -> Schedule:
    """The same schedule, as another version of the code has it."""
    book = ScheduleBook()
    book.schedule(*cron, name=name, **options)(target)
    (schedule,) = book
    return schedule


def test_a_new_definition_counts_at_once_for_old_code_too(connections: Connections, define: Define, name: str) -> None:
    old = define(Echo, every="1h", catch_up="all", payload={"version": "old"})
    new = other_code(Echo, every="2h", catch_up="all", payload={"version": "new"}, name=name)
    write_definitions(connections, [new])
    ago(connections, name, 5 * 3600)

    look(connections, old)  # a process that still has the old code fires by the ledger's definition

    created_at = row_of(connections, name).created_at
    assert [job.fire_at for job in jobs_of(connections, name)] == [created_at + timedelta(hours=n) for n in (2, 4)]
    assert [job.payload for job in jobs_of(connections, name)] == [{"version": "new"}] * 2
    assert row_of(connections, name).trigger == "every 2 hours"


def test_an_old_process_that_restarts_does_not_bring_its_definition_back(
    connections: Connections, define: Define, name: str
) -> None:
    old = define(Echo, every="1h")
    write_definitions(connections, [other_code(Echo, every="2h", name=name)])

    write_definitions(connections, [old])

    assert row_of(connections, name).trigger == "every 2 hours"


def test_a_deployment_that_is_rolled_back_brings_its_definition_back(
    connections: Connections, define: Define, name: str
) -> None:
    old = define(Echo, every="1h")
    write_definitions(connections, [other_code(Echo, every="2h", name=name)])
    change(connections, "UPDATE schedules SET seen_at = now() - interval '91 s' WHERE name = :name", name=name)

    due(connections, [old], in_touch=False)  # it may have been this process that was away
    assert row_of(connections, name).trigger == "every 2 hours"

    due(connections, [old], in_touch=True)
    assert row_of(connections, name).trigger == "every 1 hour"


def test_a_new_expression_begins_now_and_a_new_policy_does_not(
    connections: Connections, define: Define, name: str
) -> None:
    define(Echo, every="1h", catch_up="all", seconds_ago=3 * 3600 + 60)
    assert len(due(connections, [other_code(Echo, every="1h", catch_up="all", overlap="skip", name=name)])) == 3

    found = due(connections, [other_code(Echo, every="90m", catch_up="all", overlap="skip", name=name)])
    assert [one for one in found if not one.waits] == []


def test_fire_times_that_have_come_are_fired_although_their_definition_changes(
    connections: Connections, define: Define, name: str
) -> None:
    define(Echo, every="1h", catch_up="all", payload={"version": "old"}, seconds_ago=3 * 3600 + 60)
    new = other_code(Echo, every="100m", catch_up="all", payload={"version": "new"}, name=name)

    look(connections, new)

    assert row_of(connections, name).trigger == "every 1 hour 40 minutes"
    assert outcomes(connections, name) == ["fired"] * 3
    assert [job.payload for job in jobs_of(connections, name)] == [{"version": "new"}] * 3


def test_a_schedule_of_every_second_takes_its_new_definition_too(
    connections: Connections, define: Define, name: str
) -> None:
    define(Echo, every="1s", seconds_ago=5)

    look(connections, other_code(Echo, every="2s", name=name))

    assert row_of(connections, name).trigger == "every 2 seconds"


def test_a_schedule_that_nobody_defines_any_more_is_marked_and_comes_back_when_it_is(
    connections: Connections, define: Define, name: str
) -> None:
    schedule = define(Echo, every="1h", catch_up="all", seconds_ago=3 * 3600 + 60)
    change(connections, "UPDATE schedules SET seen_at = now() - interval '2 minutes' WHERE name = :name", name=name)
    with connections.transaction() as connection:
        assert name not in rows.mark_removed(connection, [name], 60)
        assert name in rows.mark_removed(connection, [], 60)
    overview = control.overview(connections, name)
    assert (overview.state, overview.next_times) == ("removed", ())
    with pytest.raises(ScheduleNotFound, match="is removed: no running scheduler"):
        control.run_now(connections, name, ME)

    assert len(due(connections, [schedule])) == 3  # soon after, as after an outage
    assert control.overview(connections, name).state == "active"

    removed = "UPDATE schedules SET removed_at = now() - interval '2 hours' WHERE name = :name"
    change(connections, removed, name=name)
    assert due(connections, [schedule]) == []  # and anew later: months of fire times do not fire at once


def test_a_running_scheduler_s_schedules_are_seen(connections: Connections, define: Define, name: str) -> None:
    schedule = define(Echo, every="1h")
    change(connections, "UPDATE schedules SET seen_at = now() - interval '20 s' WHERE name = :name", name=name)

    due(connections, [schedule])

    assert row_of(connections, name).seen_seconds_ago < 5


def test_a_definition_that_only_a_newer_version_understands_is_left_alone(
    connections: Connections, define: Define, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = define(Echo, every="1h", seconds_ago=3700)
    newer = """UPDATE schedules SET definition = definition || '{"catch_up": "clever"}', fingerprint = 'newer',
                      seen_at = now(), known_fingerprints = known_fingerprints || '{newer}' WHERE name = :name"""
    change(connections, newer, name=name)

    assert due(connections, [schedule]) == []
    assert "cannot be read" in caplog.text
    assert control.overview(connections, name).words == "every 1 hour"


def test_what_a_version_without_definitions_has_fired_is_not_looked_at_again(
    connections: Connections, define: Define, name: str
) -> None:
    schedule = define(recording([]), every="1s", catch_up="all", seconds_ago=300.5)
    change(
        connections,
        "UPDATE schedules SET definition = NULL, fingerprint = NULL, known_fingerprints = '{}' WHERE name = :name",
        name=name,
    )
    change(
        connections,
        """INSERT INTO schedule_ticks (schedule_id, fire_at, scheduler)
           SELECT id, created_at + make_interval(secs => second), 'old'
             FROM schedules, generate_series(1, 299) AS second
            WHERE name = :name""",
        name=name,
    )

    first = due(connections, [schedule])[0]

    assert first.fire_at == row_of(connections, name).created_at + timedelta(seconds=300)


# -- a scheduler that is stuck


def test_a_function_that_is_silent_for_too_long_is_undone_and_fired_elsewhere(
    connections: Connections, settings: Settings, define: Define, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticks, "LONGEST_SILENCE_SECONDS", 0.2)
    stuck = [True]

    def silent() -> None:
        Echo.dispatch()
        if stuck:
            ended = "SELECT count(*) = 0 FROM pg_stat_activity WHERE state = 'idle in transaction'"
            eventually(lambda: one_value(connections, f"{ended} AND datname = current_database()"))

    schedule = define(silent, every="1h", seconds_ago=3700)
    first, other = Connections(settings), Connections(settings)
    with pytest.raises(Exception, match=r"terminat|closed|Postgres is away"):
        look(first, schedule)
    stuck.clear()

    assert look(other, schedule) == [True]
    assert len(jobs_of(connections, name)) == 1
    first.close()
    other.close()


@pytest.mark.parametrize("broken", ['{"every_seconds": "5"}', '{"every_seconds": 0}', '{"timezone": 5}'])
def test_one_row_that_cannot_be_read_stops_no_other_schedule(
    connections: Connections, define: Define, name: str, broken: str
) -> None:
    schedule = define(Echo, every="1h", seconds_ago=3700)
    other = other_code(Echo, every="1h", name=f"{name} beside it"[-200:])
    write_definitions(connections, [other])
    ago(connections, other.name, 3700)
    spoilt = """UPDATE schedules SET definition = jsonb_set(definition, '{when}', (definition -> 'when') || :broken)
                 WHERE name = :name"""
    change(connections, spoilt.replace(":broken", "CAST(:broken AS jsonb)"), broken=broken, name=name)

    assert [one.row.name for one in due(connections, [schedule, other])] == [other.name]


def test_no_fire_time_is_fired_later_than_its_limit(connections: Connections, define: Define, name: str) -> None:
    schedule = define(Echo, every="1h", catch_up="all", max_lateness="3h", seconds_ago=2 * 3600 + 60)
    first, second = due(connections, [schedule])
    fire(connections, first)
    late = replace(second, definition=replace(second.definition, max_lateness_seconds=30.0))  # as if it had waited

    assert fire(connections, late)

    assert outcomes(connections, name) == ["fired", "skipped"]
    assert "too late, by" in ticks_of(connections, name)[1].reason


def test_a_function_that_meets_another_database_s_absence_has_failed(
    connections: Connections, define: Define, name: str
) -> None:
    def elsewhere() -> None:
        raise LedgerUnavailable("the warehouse is away")

    schedule = define(elsewhere, every="1h")
    control.run_now(connections, name, ME)

    for _ in range(ticks.MOST_ERRORS):
        with pytest.raises(LedgerUnavailable):
            look(connections, schedule)

    assert outcomes(connections, name) == ["failed"]
    assert "the warehouse is away" in (row_of(connections, name).error or "")
