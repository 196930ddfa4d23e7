"""Triggers compute fire times: cron expressions and fields, intervals, single moments. Pure: they read no clock.

Cron expressions have the semantics of Debian's cron (cronsim): 0 and 7 are Sunday, and if both the day of the month
and the day of the week are given, either matches. Fields have APScheduler's semantics.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger
from cronsim import CronSim, CronSimError

from jobledger.errors import ScheduleError
from jobledger.schedules.wall_clock import latest_wall, moment_of

INSTANT: Final = timedelta(microseconds=1)
_FINEST: Final = timedelta(seconds=1)
"""Two fire times of one trigger are at least this far apart."""

_LONG_AGO: Final = timedelta(days=3700)
_FARTHEST_YEARS: Final = 60
"""A fire time that does not come within 50 years counts as never."""

_SOME_WALL: Final = datetime(2000, 1, 1)


class Trigger(Protocol):
    """Computes fire times; equal triggers have equal fire times."""

    @property
    def words(self) -> str:
        """The fire times in English."""

    def next_after(self, moment: datetime) -> datetime | None:
        """The first fire time after a moment, in UTC; None if there is none up to the year 9999."""


class Walls(Protocol):
    """Computes local times without a time zone, as on a wall clock that is never changed."""

    @property
    def words(self) -> str: ...
    def next_after(self, wall: datetime) -> datetime | None: ...


@dataclass(frozen=True, slots=True)
class CronText:
    """A cron expression of five fields, or of six with seconds first.

    Raises:
        ScheduleError: the text is invalid.
    """

    text: str

    def __post_init__(self) -> None:
        _check_cron_text(self.text)

    @property
    def words(self) -> str:
        cron = CronSim(self.text, _SOME_WALL)
        return f"{cron.explain()}, whichever comes" if not cron.day_and else str(cron.explain())

    def next_after(self, wall: datetime) -> datetime | None:
        return next(CronSim(self.text, wall), None)


@lru_cache(4096)
def _check_cron_text(text: str) -> None:
    try:
        CronSim(text, _SOME_WALL)
    except CronSimError as error:
        raise ScheduleError(
            f"cron {text!r}: {error}. Five fields are minute, hour, day of month, month, day of week; seconds may "
            'stand before them. For example "0 2 * * mon-fri".'
        ) from None


@dataclass(frozen=True, slots=True)
class CronFields:
    """The fields of APScheduler's cron trigger that were given, such as (("hour", "2"),).

    Raises:
        ScheduleError: they are not understood.
    """

    fields: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        _cron_trigger(self.fields, _SOME_WALL.year)

    @property
    def words(self) -> str:
        expression = self._as_expression()
        if expression is not None:
            return expression.words
        return "When " + " and ".join(f"{name.replace('_', ' ')} is {value}" for name, value in self.fields)

    def _as_expression(self) -> CronText | None:
        """An equivalent cron expression; None if the two languages differ for these fields."""
        given = dict(self.fields)
        if not given.keys() <= _FIRST_VALUES.keys() or not all(_SAME_IN_BOTH.fullmatch(one) for one in given.values()):
            return None
        weekday = given.get("day_of_week", "*")
        if any(one.isdigit() for one in weekday) or (weekday != "*" and given.get("day", "*") != "*"):
            return None  # APScheduler's Monday is 0, and both days must match
        order = list(_FIRST_VALUES)
        finest = max(order.index(name) for name in given)
        month, day, weekday, hour, minute, second = (
            given.get(name, "*" if number < finest else _FIRST_VALUES[name]) for number, name in enumerate(order)
        )
        try:
            return CronText(" ".join([*([second] if second != "0" else []), minute, hour, day, month, weekday]))
        except ScheduleError:  # such as days from Saturday to Monday, or the last one
            return None

    def next_after(self, wall: datetime) -> datetime | None:
        trigger = _cron_trigger(self.fields, wall.year - wall.year % 10 + _FARTHEST_YEARS)
        found = trigger.get_next_fire_time(None, wall.replace(tzinfo=UTC) + INSTANT)
        return found.replace(tzinfo=None) if found is not None else None


_FIRST_VALUES: Final = {"month": "1", "day": "1", "day_of_week": "*", "hour": "0", "minute": "0", "second": "0"}
"""APScheduler's defaults for fields finer than the given ones; coarser fields match any value."""

_SAME_IN_BOTH: Final = re.compile(r"\*(/\d+)?|[a-z0-9]+(-[a-z0-9]+)?(,[a-z0-9]+(-[a-z0-9]+)?)*")


@lru_cache(4096)
def _cron_trigger(fields: tuple[tuple[str, str], ...], last_year: int) -> CronTrigger:
    """APScheduler's trigger. The last year bounds the search for impossible times, such as week 53 in June."""
    end = datetime(min(last_year, MAXYEAR), 12, 31, 23, 59, 59, tzinfo=UTC)
    try:
        return CronTrigger(timezone=UTC, end_date=end, **dict(fields))  # UTC, because it has no clock changes
    except (TypeError, ValueError) as error:
        said = " ".join(f"{name}={value}" for name, value in fields)
        raise ScheduleError(f"cron {said!r}: {error}.") from None


@dataclass(frozen=True, slots=True)
class OnWall:
    """Fires at local times of a time zone, each once, see `wall_clock`.

    Attributes:
        start: earliest fire time.
        end: latest fire time.
    """

    walls: Walls
    zone: ZoneInfo
    start: datetime | None = None
    end: datetime | None = None

    @property
    def words(self) -> str:
        return _bounded(self.walls.words, self.start, self.end)

    def next_after(self, moment: datetime) -> datetime | None:
        if self.start is not None:
            moment = max(moment, self.start - INSTANT)
        try:
            wall = self.walls.next_after(latest_wall(moment, self.zone))
            found = moment_of(wall, self.zone) if wall is not None else None
        except OverflowError:
            return None
        return found if found is not None and (self.end is None or found <= self.end) else None


@dataclass(frozen=True, slots=True)
class Interval:
    """Fires at equal intervals.

    Attributes:
        seconds: the interval, at least 1.
        anchor: the moment from which intervals are counted, forwards and backwards.
        start: earliest fire time.
        end: latest fire time.
    """

    seconds: float
    anchor: datetime
    start: datetime | None = None
    end: datetime | None = None

    @property
    def words(self) -> str:
        return _bounded(f"Every {in_words(self.seconds)}", self.start, self.end)

    def next_after(self, moment: datetime) -> datetime | None:
        if self.start is not None:
            moment = max(moment, self.start - INSTANT)
        step = timedelta(seconds=self.seconds)
        try:
            found = self.anchor + ((moment - self.anchor) // step + 1) * step
        except OverflowError:
            return None
        return found if self.end is None or found <= self.end else None


@dataclass(frozen=True, slots=True)
class Once:
    """Fires at one moment."""

    at: datetime

    @property
    def words(self) -> str:
        return f"Once, at {self.at:%Y-%m-%d %H:%M:%S} UTC"

    def next_after(self, moment: datetime) -> datetime | None:
        return self.at if self.at > moment else None


def between(trigger: Trigger, since: datetime, until: datetime, limit: int) -> Iterator[datetime]:
    """The first fire times after `since`, up to and including `until`, at most `limit`."""
    moment = trigger.next_after(since)
    for _ in range(limit):
        if moment is None or moment > until:
            return
        yield moment
        moment = trigger.next_after(moment)


def last_between(trigger: Trigger, since: datetime, until: datetime) -> datetime | None:
    """The last fire time after `since`, up to and including `until`; found by bisection."""
    last = trigger.next_after(since)
    if last is None or last > until:
        return None
    above = until
    while above - last >= _FINEST:
        middle = last + (above - last) / 2
        found = trigger.next_after(middle)
        if found is not None and found <= until:
            last = found
        else:
            above = middle
    return last


def previous(trigger: Trigger, moment: datetime) -> datetime | None:
    """The last fire time before a moment, if there is one within ten years."""
    return last_between(trigger, moment - _LONG_AGO, moment - INSTANT)


def in_words(seconds: float) -> str:
    """A length of time in words: 5400 is "1 hour 30 minutes"."""
    parts = []
    left = seconds
    for name, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count:g} {name}{'s' if count > 1 else ''}")
    if left or not parts:
        parts.append(f"{left:g} second{'s' if left != 1 else ''}")
    return " ".join(parts)


def _bounded(words: str, start: datetime | None, end: datetime | None) -> str:
    since = f", from {start:%Y-%m-%d %H:%M:%S} UTC" if start is not None else ""
    until = f", until {end:%Y-%m-%d %H:%M:%S} UTC" if end is not None else ""
    return words + since + until
