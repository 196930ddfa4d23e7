"""When a schedule fires, to the second."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fire_times import CREATED, SECOND, cron, fields, fired, intervals, moment, moments, triggers
from jobledger import ScheduleError
from jobledger.schedules.triggers import (
    INSTANT,
    CronFields,
    CronText,
    Interval,
    Once,
    OnWall,
    Trigger,
    between,
    in_words,
    last_between,
    previous,
)

PRAGUE, NEW_YORK = "Europe/Prague", "America/New_York"


# -- any trigger


@given(triggers, moments)
def test_fire_times_come_one_after_the_other(trigger: Trigger, since: datetime) -> None:
    times = list(between(trigger, since, datetime.max.replace(tzinfo=UTC), 20))

    assert all(later - earlier >= SECOND for earlier, later in pairwise([*times]))
    assert all(one > since and one.tzinfo is UTC for one in times)


@given(triggers, moments, st.floats(0, 0.99))
def test_from_one_fire_time_to_the_next_every_moment_has_the_same_next_one(
    trigger: Trigger, since: datetime, part: float
) -> None:
    times = list(between(trigger, since, datetime.max.replace(tzinfo=UTC), 5))

    for earlier, later in pairwise([since, *times]):
        assert trigger.next_after(earlier + (later - earlier) * part) == later
        assert trigger.next_after(later - INSTANT) == later


@given(triggers, moments, st.timedeltas(timedelta(0), timedelta(days=3)))
def test_the_last_fire_time_of_a_stretch_is_the_last_of_all_in_it(
    trigger: Trigger, since: datetime, length: timedelta
) -> None:
    times = list(between(trigger, since, since + length, 3000))
    assume(len(times) < 3000)

    assert last_between(trigger, since, since + length) == (times[-1] if times else None)
    assert last_between(trigger, since, since) is None


@given(triggers, moments)
def test_the_previous_fire_time_of_the_next_one_is_the_one_before(trigger: Trigger, since: datetime) -> None:
    times = list(between(trigger, since, datetime.max.replace(tzinfo=UTC), 2))
    assume(len(times) == 2 and times[1] - times[0] < timedelta(days=3000))

    assert previous(trigger, times[1]) == times[0]
    assert previous(trigger, times[0] + INSTANT) == times[0]
    before = previous(trigger, times[0])
    assert before is None or (before <= since and trigger.next_after(before) == times[0])


def test_the_limit_bounds_the_fire_times_and_not_their_range() -> None:
    every_second = cron("* * * * * *", PRAGUE)

    assert len(list(between(every_second, CREATED, datetime.max.replace(tzinfo=UTC), 7))) == 7
    assert list(between(every_second, CREATED, CREATED, 7)) == []
    assert list(between(every_second, CREATED, CREATED + SECOND, 0)) == []


# -- intervals


@given(intervals, moments)
def test_an_interval_does_not_drift(trigger: Interval, since: datetime) -> None:
    step = timedelta(seconds=trigger.seconds)

    for one in between(trigger, since, datetime.max.replace(tzinfo=UTC), 5):
        assert (one - trigger.anchor) % step == timedelta(0)
        assert trigger.start is None or one >= trigger.start
        assert trigger.end is None or one <= trigger.end


def test_intervals_count_from_their_anchor_for_years() -> None:
    often = Interval(1.1, CREATED)

    assert often.next_after(CREATED + timedelta(days=3650)) == CREATED + 286_690_910 * timedelta(seconds=1.1)
    assert fired(Interval(600, CREATED), "2013-01-01 10:00:00", "2013-01-01 10:30:00") == [
        "2013-01-01 10:07:30",
        "2013-01-01 10:17:30",
        "2013-01-01 10:27:30",
    ]


@pytest.mark.parametrize("seconds_later", [0, 1, 299, 300, 599])
def test_every_process_means_the_same_fire_times_whenever_it_looks(seconds_later: int) -> None:
    since = CREATED + timedelta(hours=3, seconds=seconds_later)

    assert Interval(600, CREATED).next_after(since) == CREATED + timedelta(hours=3, minutes=10)


def test_an_interval_is_as_long_in_a_night_when_clocks_are_changed() -> None:
    daily = Interval(86400, moment("2026-03-28 01:30:00"))

    assert fired(daily, "2026-03-28 02:00:00", "2026-03-31 00:00:00") == ["2026-03-29 01:30:00", "2026-03-30 01:30:00"]


# -- bounds


@pytest.mark.parametrize("make", [
    lambda start, end: OnWall(CronText("0 * * * *"), ZoneInfo(PRAGUE), start, end),
    lambda start, end: OnWall(CronFields((("minute", "0"),)), ZoneInfo(PRAGUE), start, end),
    lambda start, end: Interval(3600, moment("2020-01-01 00:00:00"), start, end),
])  # fmt: skip
def test_start_and_end_may_themselves_be_fire_times(make: Callable[[datetime, datetime], Trigger]) -> None:
    trigger = make(moment("2026-01-01 10:00:00"), moment("2026-01-01 12:00:00"))

    assert fired(trigger, "2025-01-01 00:00:00", "2027-01-01 00:00:00") == [
        "2026-01-01 10:00:00",
        "2026-01-01 11:00:00",
        "2026-01-01 12:00:00",
    ]
    assert previous(trigger, moment("2026-01-01 10:00:00")) is None
    assert previous(trigger, moment("2030-01-01 00:00:00")) == moment("2026-01-01 12:00:00")
    assert trigger.words.endswith(", from 2026-01-01 10:00:00 UTC, until 2026-01-01 12:00:00 UTC")


def test_a_single_moment_fires_once() -> None:
    once = Once(moment("2026-01-01 10:00:00"))

    assert fired(once, "2026-01-01 10:00:00", "2027-01-01 00:00:00") == ["2026-01-01 10:00:00"]
    assert fired(once, "2026-01-01 10:00:01", "2027-01-01 00:00:00") == []
    assert fired(once, "2025-01-01 00:00:00", "2026-01-01 09:59:59") == []
    assert previous(once, once.at) is None


@pytest.mark.parametrize("zone", [PRAGUE, NEW_YORK, "Pacific/Kiritimati", "UTC"])
@pytest.mark.parametrize("text", ["* * * * * *", "0 0 * * *", "0 0 29 2 *", "0 0 1 1 *"])
def test_at_the_end_of_all_time_nothing_fires_any_more(zone: str, text: str) -> None:
    latest = datetime.max.replace(tzinfo=UTC)

    seconds, leap_days = fields(zone, second="*"), fields(zone, month=2, day=29)
    for trigger in (cron(text, zone), seconds, leap_days, Interval(7.5e6, CREATED)):
        assert trigger.next_after(latest) is None
        for days in (1, 40, 400):
            times = list(between(trigger, latest - timedelta(days=days), latest, 3))
            assert times == sorted(set(times))
    assert fired(Interval(86400, CREATED), "9999-12-30 11:00:00", "9999-12-31 23:59:59") == ["9999-12-31 10:07:30"]


# -- cron


def test_cron_understands_days_as_debian_does() -> None:
    """Day of month or day of week, if both are given; 0 and 7 are Sunday."""
    assert fired(cron("0 0 13 * fri", "UTC"), "2026-03-01 00:00:00", "2026-03-15 00:00:00") == [
        "2026-03-06 00:00:00",
        "2026-03-13 00:00:00",
    ]
    assert cron("0 0 * * 0", "UTC").next_after(CREATED) == cron("0 0 * * 7", "UTC").next_after(CREATED)


def test_fields_understand_days_as_apscheduler_does() -> None:
    """Day and day of week, if both are given; 0 is Monday. Fields after the last given one are at their least."""
    trigger = fields("UTC", day=13, day_of_week=4)

    assert fired(trigger, "2026-01-01 00:00:00", "2026-12-31 00:00:00") == [
        "2026-02-13 00:00:00",
        "2026-03-13 00:00:00",
        "2026-11-13 00:00:00",
    ]


def test_a_leap_day_on_a_given_weekday_comes_in_the_end() -> None:
    assert cron("0 0 29 2 */7", "UTC").next_after(moment("2004-03-01 00:00:00")) == moment("2032-02-29 00:00:00")
    assert fields("UTC", month=2, day=29, day_of_week="sun").next_after(moment("2004-03-01 00:00:00")) == moment(
        "2032-02-29 00:00:00"
    )


@pytest.mark.parametrize(("make", "said"), [
    (lambda: CronText("nonsense"), "cron 'nonsense': Wrong number of fields"),
    (lambda: CronText("99 * * * *"), "cron '99 .*': Bad minute"),
    (lambda: CronFields((("hour", "25"),)), "cron 'hour=25': .*25"),
    (lambda: CronFields((("our", "2"),)), "cron 'our=2': .*our"),
])  # fmt: skip
def test_what_this_process_does_not_understand_is_a_schedule_error(make: Callable[[], object], said: str) -> None:
    """Also if it stands in the ledger, where another version of the code may have written it."""
    with pytest.raises(ScheduleError, match=said):
        make()


# -- words


@pytest.mark.parametrize(("seconds", "words"), [
    (1, "1 second"), (0, "0 seconds"), (1.5, "1.5 seconds"), (60, "1 minute"), (5400, "1 hour 30 minutes"),
    (86400, "1 day"), (90061, "1 day 1 hour 1 minute 1 second"), (315360000, "3650 days"),
])  # fmt: skip
def test_lengths_are_said_as_people_do(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(("trigger", "words"), [
    (cron("0 2 * * mon-fri", PRAGUE), "At 02:00 on Monday through Friday"),
    (fields(PRAGUE, hour=2, day_of_week="mon-fri"), "At 02:00 on Monday through Friday"),
    (fields(PRAGUE, hour=2, day="last"), "When day is last and hour is 2"),
    (Interval(900, CREATED), "Every 15 minutes"),
    (Once(CREATED), "Once, at 2013-01-01 10:07:30 UTC"),
])  # fmt: skip
def test_triggers_can_be_read_by_people(trigger: Trigger, words: str) -> None:
    assert trigger.words == words


@pytest.mark.parametrize("part", ["*", "1", "1-5", "*/2", "1-5/2", "1,3", "1/2", "*,1", "1-2,4-5/2"])
@pytest.mark.parametrize("place", range(6))
def test_whatever_fires_can_be_read(part: str, place: int) -> None:
    text = " ".join(part if place == index else "1" for index in range(6))

    assert cron(text, "UTC").words


@pytest.mark.parametrize("text", ["0 0 L * *", "0 0 LW * *", "0 0 * * 5L", "0 0 * * mon#2", "0 0 1 jan-mar *"])
def test_rare_words_can_be_read(text: str) -> None:
    assert cron(text, "UTC").words


# -- cost


def test_a_look_in_the_hour_that_comes_twice_is_as_cheap_as_any(cpu_seconds: Callable[[], float]) -> None:
    """An every-second schedule has 3600 times on the wall there that were all shown before."""
    trigger = cron("* * * * * *", PRAGUE)

    assert {trigger.next_after(moment("2026-10-25 01:00:01") + n * SECOND) for n in range(500)} == {
        moment("2026-10-25 02:00:00")
    }
    assert cpu_seconds() < 1


def test_many_threads_may_ask_one_trigger() -> None:
    trigger = fields(PRAGUE, minute="*/7")
    since = [CREATED + n * timedelta(hours=5) for n in range(400)]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(trigger.next_after, since)) == [trigger.next_after(one) for one in since]


@pytest.fixture
def cpu_seconds() -> Callable[[], float]:
    """How long this process has worked since the test began."""
    began = time.process_time()
    return lambda: time.process_time() - began
