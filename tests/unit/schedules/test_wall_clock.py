"""From times on the wall to moments, in the nights when clocks are changed."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fire_times import SECOND, ZONES, moment
from jobledger.schedules.wall_clock import latest_wall, moment_of

TINY = timedelta(microseconds=1)

# zone, the moment at which the clocks are changed, what they show then instead of what
FORWARD = [
    ("Europe/Prague", "2024-03-31 01:00:00", "2024-03-31 02:00:00", "2024-03-31 03:00:00"),
    ("Europe/Prague", "2025-03-30 01:00:00", "2025-03-30 02:00:00", "2025-03-30 03:00:00"),
    ("Europe/Prague", "2026-03-29 01:00:00", "2026-03-29 02:00:00", "2026-03-29 03:00:00"),
    ("Europe/Prague", "1947-02-23 02:00:00", "1947-02-23 02:00:00", "1947-02-23 03:00:00"),  # the end of winter time
    ("America/New_York", "2024-03-10 07:00:00", "2024-03-10 02:00:00", "2024-03-10 03:00:00"),
    ("America/New_York", "2026-03-08 07:00:00", "2026-03-08 02:00:00", "2026-03-08 03:00:00"),
    ("Australia/Lord_Howe", "2025-10-04 15:30:00", "2025-10-05 02:00:00", "2025-10-05 02:30:00"),
    ("Africa/Cairo", "2024-04-25 22:00:00", "2024-04-26 00:00:00", "2024-04-26 01:00:00"),  # no midnight
    ("America/Sao_Paulo", "2018-11-04 03:00:00", "2018-11-04 00:00:00", "2018-11-04 01:00:00"),
    ("Pacific/Apia", "2011-12-30 10:00:00", "2011-12-30 00:00:00", "2011-12-31 00:00:00"),  # no such day
    ("Antarctica/Troll", "2024-03-31 01:00:00", "2024-03-31 01:00:00", "2024-03-31 03:00:00"),
]
BACK = [
    ("Europe/Prague", "2024-10-27 01:00:00", "2024-10-27 03:00:00", "2024-10-27 02:00:00"),
    ("Europe/Prague", "2025-10-26 01:00:00", "2025-10-26 03:00:00", "2025-10-26 02:00:00"),
    ("Europe/Prague", "2026-10-25 01:00:00", "2026-10-25 03:00:00", "2026-10-25 02:00:00"),
    ("Europe/Prague", "1946-12-01 02:00:00", "1946-12-01 03:00:00", "1946-12-01 02:00:00"),  # winter time
    ("America/New_York", "2024-11-03 06:00:00", "2024-11-03 02:00:00", "2024-11-03 01:00:00"),
    ("America/New_York", "2026-11-01 06:00:00", "2026-11-01 02:00:00", "2026-11-01 01:00:00"),
    ("Australia/Lord_Howe", "2025-04-05 15:00:00", "2025-04-06 02:00:00", "2025-04-06 01:30:00"),
    ("Africa/Cairo", "2024-10-31 21:00:00", "2024-11-01 00:00:00", "2024-10-31 23:00:00"),  # over midnight
    ("Europe/Dublin", "2025-10-26 01:00:00", "2025-10-26 02:00:00", "2025-10-26 01:00:00"),  # winter is the exception
]


def wall(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(("name", "change", "old", "new"), FORWARD)
def test_a_time_that_does_not_exist_means_the_first_moment_after_the_gap(
    name: str, change: str, old: str, new: str
) -> None:
    zone, at = ZoneInfo(name), moment(change)
    gap = wall(new) - wall(old)

    for missing in (wall(old), wall(old) + TINY, wall(old) + gap / 2, wall(new) - SECOND, wall(new) - TINY):
        assert moment_of(missing, zone) == at
    assert moment_of(wall(new), zone) == at
    assert moment_of(wall(new) + TINY, zone) == at + TINY
    assert moment_of(wall(old) - TINY, zone) == at - TINY


@pytest.mark.parametrize(("name", "change", "old", "new"), BACK)
def test_a_time_that_comes_twice_means_the_first_of_the_two(name: str, change: str, old: str, new: str) -> None:
    zone, at = ZoneInfo(name), moment(change)
    again = wall(old) - wall(new)

    assert moment_of(wall(new), zone) == at - again
    assert moment_of(wall(new) + again / 2, zone) == at - again / 2
    assert moment_of(wall(old) - TINY, zone) == at - TINY
    assert moment_of(wall(old), zone) == at + again
    assert moment_of(wall(new) - TINY, zone) == at - again - TINY


def test_the_fold_of_a_time_on_the_wall_says_nothing() -> None:
    """`datetime.fold` is how Python tells the two apart; a schedule never means the second."""
    twice = wall("2026-10-25 02:30:00").replace(fold=1)

    assert moment_of(twice, ZoneInfo("Europe/Prague")) == moment("2026-10-25 00:30:00")


@pytest.mark.parametrize(("name", "change", "old", "new"), FORWARD)
def test_the_wall_has_shown_what_it_shows(name: str, change: str, old: str, new: str) -> None:
    zone, at = ZoneInfo(name), moment(change)

    assert latest_wall(at - TINY, zone) == wall(old) - TINY
    assert latest_wall(at, zone) == wall(new)
    assert latest_wall(at + TINY, zone) == wall(new) + TINY


@pytest.mark.parametrize(("name", "change", "old", "new"), BACK)
def test_a_wall_that_was_set_back_has_shown_more_than_it_shows(name: str, change: str, old: str, new: str) -> None:
    zone, at = ZoneInfo(name), moment(change)
    again = wall(old) - wall(new)

    for later in (TINY - TINY, TINY, SECOND, again / 2, again - TINY):
        assert latest_wall(at + later, zone) == wall(old) - TINY
    assert latest_wall(at - TINY, zone) == wall(old) - TINY
    assert latest_wall(at + again, zone) == wall(old)


@given(
    st.sampled_from([*ZONES, "Pacific/Apia", "America/Sao_Paulo", "Asia/Gaza", "Europe/Dublin", "America/St_Johns"]),
    st.datetimes(datetime(1905, 1, 1), datetime(2060, 1, 1)),
    st.timedeltas(TINY, timedelta(days=400)),
)
def test_later_times_on_the_wall_never_mean_earlier_moments(name: str, one: datetime, later: timedelta) -> None:
    zone = ZoneInfo(name)

    assert moment_of(one, zone) <= moment_of(one + later, zone)


@given(
    st.sampled_from(FORWARD + BACK),
    st.timedeltas(timedelta(hours=-30), timedelta(hours=30)),
    st.timedeltas(TINY, timedelta(hours=3)),
)
def test_what_the_wall_shows_next_means_a_later_moment(
    night: tuple[str, str, str, str], away: timedelta, later: timedelta
) -> None:
    zone, at = ZoneInfo(night[0]), moment(night[1]) + away

    latest = latest_wall(at, zone)

    assert moment_of(latest, zone) <= at < moment_of(latest + later, zone)


@given(st.sampled_from(FORWARD + BACK), st.timedeltas(timedelta(hours=-30), timedelta(hours=30)))
def test_a_moment_may_come_in_any_time_zone(night: tuple[str, str, str, str], away: timedelta) -> None:
    zone, at = ZoneInfo(night[0]), moment(night[1]) + away

    assert latest_wall(at.astimezone(zone), zone) == latest_wall(at, zone)
    assert latest_wall(at.astimezone(ZoneInfo("Asia/Kolkata")), zone) == latest_wall(at, zone)
    assert moment_of(latest_wall(at, zone), zone).tzinfo is UTC
