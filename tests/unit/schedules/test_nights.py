"""When schedules fire in the nights when clocks are changed, to the second."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from fire_times import cron, fields, fired, moment, walked
from jobledger.schedules.triggers import INSTANT, Trigger, between

PRAGUE, NEW_YORK, LORD_HOWE, NAIROBI = "Europe/Prague", "America/New_York", "Australia/Lord_Howe", "Africa/Nairobi"

HOURLY: tuple[str, dict[str, Any]] = ("0 * * * *", {"minute": 0})
QUARTERS: tuple[str, dict[str, Any]] = ("*/15 * * * *", {"minute": "*/15"})


def daily(time_of_day: str) -> tuple[str, dict[str, Any]]:
    hour, minute, second = (int(part) for part in time_of_day.split(":"))
    return f"{second} {minute} {hour} * * *", {"hour": hour, "minute": minute, "second": second}


# -- the nights when clocks are changed

# zone, what fires, from and until which time of these days (in UTC), when it fires there
NIGHTS: list[tuple[str, tuple[str, ...], tuple[str, dict[str, Any]], str, str, list[str]]] = []


def night(
    zone: str, days: tuple[str, ...], what: tuple[str, dict[str, Any]], since: str, until: str, times: str
) -> None:
    NIGHTS.append((zone, days, what, since, until, [f"{one}:00"[:8] for one in times.split()]))


SPRING = ("2024-03-31", "2025-03-30", "2026-03-29")  # at 01:00 UTC, 02:00 becomes 03:00
night(PRAGUE, SPRING, HOURLY, "00:00:00", "03:59:59", "00:00 01:00 02:00 03:00")
night(PRAGUE, SPRING, QUARTERS, "00:30:00", "01:30:00", "00:30 00:45 01:00 01:15 01:30")
night(PRAGUE, SPRING, daily("02:00:00"), "00:00:00", "23:59:59", "01:00")
night(PRAGUE, SPRING, daily("02:30:00"), "00:00:00", "23:59:59", "01:00")
night(PRAGUE, SPRING, daily("02:59:59"), "00:00:00", "23:59:59", "01:00")
night(PRAGUE, SPRING, daily("03:00:00"), "00:00:00", "23:59:59", "01:00")
night(PRAGUE, SPRING, daily("01:59:59"), "00:00:00", "12:00:00", "00:59:59")
night(PRAGUE, SPRING, daily("03:00:01"), "00:00:00", "23:59:59", "01:00:01")
night(PRAGUE, SPRING, daily("12:00:00"), "00:00:00", "23:59:59", "10:00")

AUTUMN = ("2024-10-27", "2025-10-26", "2026-10-25")  # at 01:00 UTC, 03:00 becomes 02:00
night(PRAGUE, AUTUMN, HOURLY, "00:00:00", "03:59:59", "00:00 02:00 03:00")
night(PRAGUE, AUTUMN, QUARTERS, "00:00:00", "02:15:00", "00:00 00:15 00:30 00:45 02:00 02:15")
night(PRAGUE, AUTUMN, daily("02:00:00"), "00:00:00", "23:59:59", "00:00")
night(PRAGUE, AUTUMN, daily("02:30:00"), "00:00:00", "23:59:59", "00:30")
night(PRAGUE, AUTUMN, daily("02:59:59"), "00:00:00", "23:59:59", "00:59:59")
night(PRAGUE, AUTUMN, daily("03:00:00"), "00:00:00", "23:59:59", "02:00")
night(PRAGUE, AUTUMN, daily("12:00:00"), "00:00:00", "23:59:59", "11:00")

US_SPRING = ("2024-03-10", "2025-03-09", "2026-03-08")  # at 07:00 UTC, 02:00 becomes 03:00
night(NEW_YORK, US_SPRING, HOURLY, "05:00:00", "08:59:59", "05:00 06:00 07:00 08:00")
night(NEW_YORK, US_SPRING, QUARTERS, "06:30:00", "07:30:00", "06:30 06:45 07:00 07:15 07:30")
night(NEW_YORK, US_SPRING, daily("02:30:00"), "00:00:00", "23:59:59", "07:00")
night(NEW_YORK, US_SPRING, daily("01:30:00"), "00:00:00", "23:59:59", "06:30")

US_AUTUMN = ("2024-11-03", "2025-11-02", "2026-11-01")  # at 06:00 UTC, 02:00 becomes 01:00
night(NEW_YORK, US_AUTUMN, HOURLY, "04:00:00", "08:59:59", "04:00 05:00 07:00 08:00")
night(NEW_YORK, US_AUTUMN, QUARTERS, "05:30:00", "07:15:00", "05:30 05:45 07:00 07:15")
night(NEW_YORK, US_AUTUMN, daily("01:30:00"), "00:00:00", "23:59:59", "05:30")
night(NEW_YORK, US_AUTUMN, daily("02:00:00"), "00:00:00", "23:59:59", "07:00")

HALF_FORWARD = ("2024-10-05", "2025-10-04", "2026-10-03")  # at 15:30 UTC, 02:00 becomes 02:30
night(LORD_HOWE, HALF_FORWARD, HOURLY, "13:30:00", "17:59:59", "13:30 14:30 15:30 16:00 17:00")
night(LORD_HOWE, HALF_FORWARD, QUARTERS, "15:15:00", "15:45:00", "15:15 15:30 15:45")
night(LORD_HOWE, HALF_FORWARD, daily("02:15:00"), "12:00:00", "23:59:59", "15:30")
night(LORD_HOWE, HALF_FORWARD, daily("02:30:00"), "12:00:00", "23:59:59", "15:30")
night(LORD_HOWE, HALF_FORWARD, daily("02:45:00"), "12:00:00", "23:59:59", "15:45")

HALF_BACK = ("2024-04-06", "2025-04-05", "2026-04-04")  # at 15:00 UTC, 02:00 becomes 01:30
night(LORD_HOWE, HALF_BACK, HOURLY, "13:00:00", "16:59:59", "13:00 14:00 15:30 16:30")
night(LORD_HOWE, HALF_BACK, QUARTERS, "14:15:00", "15:45:00", "14:15 14:30 14:45 15:30 15:45")
night(LORD_HOWE, HALF_BACK, daily("01:45:00"), "12:00:00", "23:59:59", "14:45")
night(LORD_HOWE, HALF_BACK, daily("02:00:00"), "12:00:00", "23:59:59", "15:30")

night(NAIROBI, SPRING + AUTUMN, HOURLY, "00:00:00", "03:59:59", "00:00 01:00 02:00 03:00")
night(NAIROBI, SPRING + AUTUMN, daily("02:30:00"), "12:00:00", "23:59:59", "23:30")


@pytest.mark.parametrize(
    ("zone", "day", "what", "since", "until", "times"),
    [
        pytest.param(zone, day, what, since, until, times, id=f"{zone}-{day}-{what[0].replace(' ', '_')}")
        for zone, days, what, since, until, times in NIGHTS
        for day in days
    ],
)
def test_in_the_nights_when_clocks_are_changed(
    zone: str, day: str, what: tuple[str, dict[str, Any]], since: str, until: str, times: list[str]
) -> None:
    expected = [f"{day} {one}" for one in times]

    assert fired(cron(what[0], zone), f"{day} {since}", f"{day} {until}") == expected
    assert fired(fields(zone, **what[1]), f"{day} {since}", f"{day} {until}") == expected


@pytest.mark.parametrize("trigger", [cron("* * * * * *", PRAGUE), fields(PRAGUE, second="*")])
def test_every_second_misses_none_in_spring_and_waits_for_an_hour_in_autumn(trigger: Trigger) -> None:
    spring = fired(trigger, "2026-03-29 00:59:58", "2026-03-29 01:00:01")
    autumn = fired(trigger, "2026-10-25 00:59:58", "2026-10-25 02:00:01")

    assert [one[11:] for one in spring] == ["00:59:58", "00:59:59", "01:00:00", "01:00:01"]
    assert [one[11:] for one in autumn] == ["00:59:58", "00:59:59", "02:00:00", "02:00:01"]


def test_a_winter_time_that_is_behind_the_usual_one() -> None:
    """On 1 December 1946 at 02:00 UTC the clocks in Prague were set back from 03:00 to 02:00."""
    assert fired(cron("*/30 2,3 * * *", PRAGUE), "1946-11-30 12:00:00", "1946-12-01 12:00:00") == [
        "1946-12-01 01:00:00",
        "1946-12-01 01:30:00",
        "1946-12-01 03:00:00",
        "1946-12-01 03:30:00",
    ]


@pytest.mark.parametrize("trigger", [cron("0 12 * * *", "Pacific/Apia"), fields("Pacific/Apia", hour=12)])
def test_a_day_that_does_not_exist(trigger: Trigger) -> None:
    """Samoa had no 30 December 2011: what was due on that day came at its end, which was the next day's beginning."""
    assert fired(trigger, "2011-12-29 00:00:00", "2011-12-31 12:00:00") == [
        "2011-12-29 22:00:00",
        "2011-12-30 10:00:00",
        "2011-12-30 22:00:00",
    ]


@pytest.mark.parametrize("trigger", [cron("@daily", "Africa/Cairo"), fields("Africa/Cairo", hour=0)])
def test_a_midnight_that_does_not_exist_and_one_that_is_put_off(trigger: Trigger) -> None:
    assert fired(trigger, "2024-04-24 12:00:00", "2024-04-26 23:00:00") == [
        "2024-04-24 22:00:00",
        "2024-04-25 22:00:00",
        "2024-04-26 21:00:00",
    ]
    assert fired(trigger, "2024-10-30 12:00:00", "2024-11-02 00:00:00") == [
        "2024-10-30 21:00:00",
        "2024-10-31 22:00:00",
        "2024-11-01 22:00:00",
    ]


# -- the same, against a walk through every second

CHANGES = [
    (PRAGUE, "2025-03-30 01:00:00"),
    (PRAGUE, "2026-10-25 01:00:00"),
    (NEW_YORK, "2024-03-10 07:00:00"),
    (NEW_YORK, "2026-11-01 06:00:00"),
    (LORD_HOWE, "2025-04-05 15:00:00"),
    (LORD_HOWE, "2026-10-03 15:30:00"),
    ("Africa/Cairo", "2024-04-25 22:00:00"),
    ("Africa/Cairo", "2024-10-31 21:00:00"),
    ("Pacific/Apia", "2011-12-30 10:00:00"),
    (NAIROBI, "2026-03-29 01:00:00"),
]
Comes = Callable[[datetime], bool]
WALKS: list[tuple[str, dict[str, Any], Comes]] = [
    ("0 * * * *", {"minute": 0}, lambda wall: wall.minute == wall.second == 0),
    ("*/15 * * * *", {"minute": "*/15"}, lambda wall: wall.minute % 15 == 0 and wall.second == 0),
    ("30 2 * * *", {"hour": 2, "minute": 30}, lambda wall: (wall.hour, wall.minute, wall.second) == (2, 30, 0)),
    ("7 40 0,1,23 * * *", {"hour": "0,1,23", "minute": 40, "second": 7},
     lambda wall: wall.hour in (0, 1, 23) and (wall.minute, wall.second) == (40, 7)),
    ("*/20 59 1-3 * * *", {"hour": "1-3", "minute": 59, "second": "*/20"},
     lambda wall: 1 <= wall.hour <= 3 and wall.minute == 59 and wall.second % 20 == 0),
    ("0 0 * * sun", {"day_of_week": "sun", "hour": 0},
     lambda wall: wall.weekday() == 6 and wall.hour == wall.minute == wall.second == 0),
]  # fmt: skip


@pytest.mark.parametrize(("zone", "change"), CHANGES)
def test_a_walk_through_every_second_finds_the_same_fire_times(zone: str, change: str) -> None:
    since, until = moment(change) - timedelta(days=1), moment(change) + timedelta(days=1)
    expected: dict[str, list[datetime]] = {text: [] for text, _, _ in WALKS}
    for at, walls in walked(ZoneInfo(zone), since, until):
        for text, _, comes in WALKS:
            if any(map(comes, walls)):
                expected[text].append(at)

    for text, given, _ in WALKS:
        assert list(between(cron(text, zone), since - INSTANT, until, 10_000)) == expected[text]
        assert list(between(fields(zone, **given), since - INSTANT, until, 10_000)) == expected[text]


@pytest.mark.parametrize(("zone", "change"), CHANGES)
def test_a_walk_finds_the_same_seconds_of_an_every_second_schedule(zone: str, change: str) -> None:
    since, until = moment(change) - timedelta(minutes=2), moment(change) + timedelta(minutes=62)
    expected = [at for at, walls in walked(ZoneInfo(zone), since, until) if walls]

    assert list(between(cron("* * * * * *", zone), since - INSTANT, until, 10_000)) == expected
    assert list(between(fields(zone, second="*"), since - INSTANT, until, 10_000)) == expected
