"""Triggers for tests, and when they must fire, found by walking through every second."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from jobledger.schedules.parse import apscheduler_trigger, cron_expression
from jobledger.schedules.triggers import Interval, Once, OnWall, Trigger, between

SECOND = timedelta(seconds=1)
CREATED = datetime(2013, 1, 1, 10, 7, 30, tzinfo=UTC)

ZONES = ("Europe/Prague", "America/New_York", "Australia/Lord_Howe", "Asia/Tokyo", "Africa/Cairo", "UTC")
CRONS = (
    "0 * * * *",
    "*/15 * * * *",
    "30 2 * * *",
    "0 0 * * mon-fri",
    "*/7 1-4 * * *",
    "59 59 23 L * *",
    "9 2,3 * * 0",
)
FIELDS: tuple[dict[str, Any], ...] = (
    {"hour": 2},
    {"minute": "*/20", "second": 5},
    {"day_of_week": "mon-fri", "hour": 1, "minute": 30},
    {"day": "last", "hour": "0-5/2"},
)


def cron(text: str, zone: str) -> Trigger:
    return cron_expression(text, zone).trigger(CREATED)


def fields(zone: str, **given: Any) -> Trigger:
    return apscheduler_trigger("cron", given, zone).trigger(CREATED)


def moment(text: str) -> datetime:
    """A moment in UTC, from "2024-03-31 01:00:00"."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fired(trigger: Trigger, since: str, until: str) -> list[str]:
    """The fire times from `since` to `until`, both included, as texts in UTC."""
    times = between(trigger, moment(since) - timedelta.resolution, moment(until), 1_000_000)
    return [f"{one.astimezone(UTC):%Y-%m-%d %H:%M:%S}" for one in times]


def walked(zone: ZoneInfo, since: datetime, until: datetime) -> Iterator[tuple[datetime, list[datetime]]]:
    """Each second, with the times that the wall has come to or jumped over then, and never before."""
    latest = (since - SECOND).astimezone(zone).replace(tzinfo=None)
    moment = since
    while moment <= until:
        wall, new = moment.astimezone(zone).replace(tzinfo=None), []
        while latest < wall:
            latest += SECOND
            new.append(latest)
        yield moment, new
        moment += SECOND


moments = st.datetimes(datetime(2001, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
bounds = st.one_of(st.none(), moments)

on_wall = st.builds(
    lambda walls, zone, start, end: OnWall(walls, ZoneInfo(zone), start, end),
    st.one_of(
        st.sampled_from([cron_expression(text, "UTC").trigger(CREATED).walls for text in CRONS]),
        st.sampled_from([apscheduler_trigger("cron", one, "UTC").trigger(CREATED).walls for one in FIELDS]),
    ),
    st.sampled_from(ZONES),
    bounds,
    bounds,
)
intervals = st.builds(Interval, st.floats(1, 1e6), moments, bounds, bounds)
triggers: st.SearchStrategy[Trigger] = st.one_of(on_wall, intervals, st.builds(Once, moments))
