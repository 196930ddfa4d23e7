"""When a schedule fires."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from jobledger import ScheduleError
from jobledger.schedules import Schedule, ScheduleBook

PRAGUE = ZoneInfo("Europe/Prague")
CREATED = datetime(2013, 1, 1, 10, 7, 30, tzinfo=UTC)


def nothing() -> None: ...


def defined(trigger: str, **options: Any) -> Schedule:
    return ScheduleBook().add_job(nothing, trigger, **options)


def fire_times(schedule: Schedule, since: datetime, until: datetime, zone: Any = UTC) -> list[datetime]:
    return list(schedule.fire_times(zone, CREATED, since, until))


def at(*parts: int, zone: Any = UTC) -> datetime:
    return datetime(2013, *parts, tzinfo=zone)


# -- cron


def test_cron_fires_at_the_times_it_names() -> None:
    nightly = defined("cron", day_of_week="mon-fri", hour=1)

    # 2013-01-04 is a Friday.
    assert fire_times(nightly, at(1, 4), at(1, 8)) == [at(1, 4, 1), at(1, 7, 1)]


def test_cron_counts_in_the_time_zone_of_the_settings() -> None:
    assert fire_times(defined("cron", hour=2), at(1, 4), at(1, 5), PRAGUE) == [at(1, 4, 1)]


def test_cron_counts_in_its_own_time_zone_if_it_names_one() -> None:
    nightly = defined("cron", hour=2, timezone="America/New_York")

    assert fire_times(nightly, at(1, 4), at(1, 5), PRAGUE) == [at(1, 4, 7)]


def test_a_moment_that_was_fired_is_not_fired_again() -> None:
    hourly = defined("cron", minute=0)

    assert fire_times(hourly, since=at(1, 4, 9), until=at(1, 4, 10)) == [at(1, 4, 10)]
    assert fire_times(hourly, since=at(1, 4, 10), until=at(1, 4, 10)) == []
    assert fire_times(hourly, since=at(1, 4, 10), until=at(1, 4, 10, 59)) == []


# -- interval


def test_intervals_count_from_the_creation_of_the_schedule() -> None:
    every_ten = defined("interval", minutes=10)

    assert fire_times(every_ten, CREATED, CREATED + timedelta(minutes=25)) == [
        CREATED + timedelta(minutes=10),
        CREATED + timedelta(minutes=20),
    ]


@pytest.mark.parametrize("seconds_later", [0, 1, 299, 300, 599])
def test_every_process_means_the_same_fire_times_whenever_it_looks(seconds_later: int) -> None:
    every_ten = defined("interval", minutes=10)
    since = CREATED + timedelta(hours=3, seconds=seconds_later)

    assert fire_times(every_ten, since, since + timedelta(minutes=10)) == [CREATED + timedelta(hours=3, minutes=10)]


def test_an_interval_may_name_its_own_beginning() -> None:
    every_hour = defined("interval", hours=1, start_date=at(1, 1, 0, 15))

    assert fire_times(every_hour, at(1, 4, 9), at(1, 4, 11)) == [at(1, 4, 9, 15), at(1, 4, 10, 15)]


# -- date


def test_a_date_fires_once() -> None:
    once = defined("date", run_date=at(1, 4, 9))

    assert fire_times(once, at(1, 4), at(1, 5)) == [at(1, 4, 9)]
    assert fire_times(once, at(1, 4, 9), at(1, 5)) == []
    assert fire_times(once, at(1, 5), at(1, 6)) == []
    assert fire_times(once, at(1, 3), at(1, 4, 8)) == []


# -- definitions


def test_a_decorated_function_stays_what_it_is() -> None:
    book = ScheduleBook()

    decorated = book.scheduled_job("cron", hour=2)(nothing)

    assert decorated is nothing
    assert [(one.name, one.function) for one in book] == [(f"{__name__}.nothing", nothing)]


def test_a_schedule_is_known_by_its_id_if_it_has_one() -> None:
    assert defined("cron", hour=2, id="nightly", name="The nightly import").name == "nightly"


def test_a_schedule_knows_what_to_call_its_function_with() -> None:
    schedule = defined("cron", hour=2, args=["public"], kwargs={"table": "flights"})

    assert (schedule.args, schedule.kwargs) == (("public",), {"table": "flights"})


def test_a_schedule_keeps_how_late_and_how_often_it_may_fire() -> None:
    schedule = defined("cron", hour=2, misfire_grace_time=300, coalesce=False)

    assert (schedule.grace_seconds, schedule.coalesce) == (300, False)


def test_the_trigger_can_be_read_by_people() -> None:
    assert defined("cron", hour=1, day_of_week="mon-fri").expression == "cron day_of_week=mon-fri hour=1"


@pytest.mark.parametrize(
    ("trigger", "options", "said"),
    [
        ("cron", {"hour": 25}, "25"),
        ("cron", {"our": 2}, "our"),
        ("cron", {"hour": 2, "timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ("interval", {"seconds": "many"}, "many|seconds|str"),
        ("date", {"run_date": "tomorrow"}, "date"),
        ("hourly", {}, "'hourly' is none of cron, interval, date"),
        ("cron", {"hour": 2, "id": "x" * 201}, "1 to 200 characters"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_when_it_is_defined(
    trigger: str, options: dict[str, Any], said: str
) -> None:
    book = ScheduleBook()

    with pytest.raises(ScheduleError, match=said):
        book.add_job(nothing, trigger, **options)
    assert list(book) == []


@pytest.mark.parametrize("trigger", ["cron", "interval"])
def test_jitter_is_refused_because_each_process_would_mean_another_time(trigger: str) -> None:
    with pytest.raises(ScheduleError, match=r"jitter.*dispatch_in"):
        defined(trigger, jitter=30)


def test_two_schedules_of_one_name_are_refused() -> None:
    book = ScheduleBook()
    book.add_job(nothing, "cron", hour=2, id="nightly")

    with pytest.raises(ScheduleError, match="Two schedules are called 'nightly'"):
        book.add_job(lambda: None, "cron", hour=3, id="nightly")


def test_the_same_function_defined_anew_takes_the_place_of_the_old_definition() -> None:
    """As a reloaded module does."""
    book = ScheduleBook()
    book.add_job(nothing, "cron", hour=2)

    book.add_job(nothing, "cron", hour=3)

    assert [one.expression for one in book] == ["cron hour=3"]
