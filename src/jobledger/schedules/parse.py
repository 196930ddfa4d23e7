"""Parses the input of users to a schedule's `When`. Input is bounded, and refused with the reason."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from jobledger.domain.options import Duration, seconds
from jobledger.errors import OptionError, ScheduleError
from jobledger.schedules.definition import LONGEST_INTERVAL_SECONDS, LONGEST_TEXT, SHORTEST_INTERVAL_SECONDS, When
from jobledger.schedules.triggers import INSTANT, in_words
from jobledger.schedules.wall_clock import moment_of
from jobledger.settings import zone_names

_NICKNAMES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_CRON_TEXT_FIELDS: Final = {"second": 60, "minute": 60, "hour": 24, "day of month": 31, "month": 12, "day of week": 7}
"""The number of values of each field."""

_CRON_FIELDS: Final = ("year", "month", "day", "week", "day_of_week", "hour", "minute", "second")
_CRON_FIELD_PART: Final = re.compile(
    r"(\*|\d{1,4}(-\d{1,4})?)(/\d{1,4})?|[a-z]{3}(-[a-z]{3})?|last|([1-5][a-z]{2}|last) +[a-z]{3}",
    re.ASCII | re.IGNORECASE,
)
"""A complete part between commas; APScheduler would ignore text after the part that it recognizes."""

_INTERVAL_PARTS: Final = ("weeks", "days", "hours", "minutes", "seconds")
_YEARS: Final = range(1970, 9999)
"""Years that moments may have."""

_SOME_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)


def cron_expression(text: object, timezone: str) -> When:
    """Read a cron expression.

    Raises:
        ScheduleError: it is invalid, or it never fires.
    """
    if not isinstance(text, str):
        raise ScheduleError(f'{text!r} is no cron expression; say a text such as "0 2 * * mon-fri".')
    if len(text) > LONGEST_TEXT:
        raise ScheduleError(f"A cron expression has at most {LONGEST_TEXT} characters; this one has {len(text)}.")
    when = When(timezone, cron=_NICKNAMES.get(text.strip().lower(), " ".join(text.split())))
    if when.trigger(_SOME_TIME).next_after(_SOME_TIME) is None:
        raise ScheduleError(f"cron {text!r}: such a day does not come within 50 years.")
    _refuse_long_steps(text)
    return when


def _refuse_long_steps(text: str) -> None:
    """Refuse a step that is larger than its field: "*/90 * * * *" would fire once an hour."""
    fields = text.split()
    for field, (name, count) in zip(reversed(fields), reversed(_CRON_TEXT_FIELDS.items()), strict=False):
        for step in re.findall(r"/(\d+)", field):
            if int(step) > count:
                raise ScheduleError(f"cron {text!r}: a step of {step} is longer than the {name}, which has {count}.")


def every(length: Duration, timezone: str) -> When:
    """Read an interval.

    Raises:
        ScheduleError: it is no length of time from a second to ten years.
    """
    try:
        distance = seconds(length, "every")
    except OptionError as error:
        raise ScheduleError(str(error)) from None
    if not SHORTEST_INTERVAL_SECONDS <= distance <= LONGEST_INTERVAL_SECONDS:
        raise ScheduleError(f"{in_words(distance)}: an interval is at least 1 second and at most 10 years long.")
    return When(timezone, every_seconds=distance)


def apscheduler_trigger(kind: str, arguments: Mapping[str, Any], default_timezone: str) -> When:
    """Read the arguments of one of APScheduler's triggers: cron, interval or date.

    Raises:
        ScheduleError: an argument is not understood.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    timezone = zone_name(given.pop("timezone")) if "timezone" in given else default_timezone
    match kind:
        case "cron":
            when = _within_bounds(_cron_fields(given, timezone), given)
        case "interval":
            when = _within_bounds(_interval(given, timezone), given)
        case "date":
            if "run_date" not in given:
                raise ScheduleError("A date needs run_date=.")
            when = When(timezone, at=moment(given.pop("run_date"), timezone, "run_date"))
        case _:
            raise ScheduleError(f"trigger {kind!r:.60} is none of cron, interval, date.")
    if given:
        raise ScheduleError(f"{kind} does not know {', '.join(sorted(given))}.")
    return when


def _cron_fields(given: dict[str, Any], timezone: str) -> When:
    found = {name: _cron_field(name, given.pop(name)) for name in _CRON_FIELDS if name in given}
    if not found:
        raise ScheduleError(f"cron needs at least one of {', '.join(_CRON_FIELDS)}.")
    when = When(timezone, cron_fields=tuple(sorted(found.items())))
    if when.trigger(_SOME_TIME).next_after(_SOME_TIME) is None:
        raise ScheduleError(f"{when.text}: such a day does not come within 50 years of 2000.")
    return when


def _cron_field(name: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _YEARS.stop:
        return str(int(value))
    if not isinstance(value, str):
        raise ScheduleError(f"cron {name}= takes a number such as 2, or a text such as '*/5'.")
    if len(value) > LONGEST_TEXT:
        raise ScheduleError(f"cron {name}= has at most {LONGEST_TEXT} characters; this one has {len(value)}.")
    for part in value.split(","):
        if not _CRON_FIELD_PART.fullmatch(part.strip()):
            raise ScheduleError(f"cron {name}={value!r}: {part!r} is not understood.")
    return " ".join(value.split())


def _interval(given: dict[str, Any], timezone: str) -> When:
    parts = {name: given.pop(name) for name in _INTERVAL_PARTS if name in given}
    wrong = [name for name, value in parts.items() if not isinstance(value, int | float) or isinstance(value, bool)]
    if wrong or not parts:
        raise ScheduleError(f"interval needs numbers for {', '.join(wrong or _INTERVAL_PARTS)}.")
    try:
        distance = timedelta(**parts)
    except (OverflowError, ValueError):  # infinite, or not a number
        raise ScheduleError("An interval is at least 1 second and at most 10 years long.") from None
    return every(distance, timezone)


def _within_bounds(when: When, given: dict[str, Any]) -> When:
    start, end = (
        moment(given.pop(name), when.timezone, name) if name in given else None for name in ("start_date", "end_date")
    )
    bounded = replace(when, start=start, end=end)
    since = start or _SOME_TIME
    if bounded.trigger(since).next_after(since - INSTANT) is None:
        raise ScheduleError(f"{when.text}: never fires between start_date and end_date.")
    return bounded


def moment(value: object, timezone: str, what: str) -> datetime:
    """Read a moment: a datetime, a date, or a text in ISO 8601; in `timezone` if it names none.

    Raises:
        ScheduleError: it is no moment of the years 1970 to 9998.
    """
    found = value
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value.strip() if len(value) <= LONGEST_TEXT else "")
        except ValueError:
            raise ScheduleError(f"{what}={value!r:.60} is no date or time; say 2026-03-29T02:30.") from None
    if isinstance(found, date) and not isinstance(found, datetime):
        found = datetime.combine(found, time())
    if not isinstance(found, datetime):
        raise ScheduleError(
            f"{what}={value!r:.60} is no date or time; say a datetime, or a text such as 2026-03-29T02:30."
        )
    if found.year not in _YEARS:
        raise ScheduleError(f"{what}={found.isoformat()}: the year must be one from {_YEARS[0]} to {_YEARS[-1]}.")
    return found.astimezone(UTC) if found.tzinfo is not None else moment_of(found, ZoneInfo(timezone))


def zone_name(value: object) -> str:
    """The name of a time zone, given as a text or as an object.

    Raises:
        ScheduleError: the IANA database does not have it.
    """
    name = str(value) if isinstance(value, str | tzinfo) else ""
    if name not in zone_names():
        raise ScheduleError(f"{value!r:.60} is no time zone of the IANA database, such as Europe/Prague.")
    return name
