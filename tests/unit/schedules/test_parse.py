"""What people write about fire times: what is understood, and what is refused, at once."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as time_of_day
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from fire_times import CREATED, moment
from jobledger import ScheduleError
from jobledger.schedules.definition import When
from jobledger.schedules.parse import apscheduler_trigger, cron_expression, every, zone_name
from jobledger.schedules.parse import moment as read_moment

PRAGUE = "Europe/Prague"
AT_ONCE_SECONDS = 0.5
"""Five times what the longest takes, on a busy machine."""

TEN_KILOBYTES = "x" * 10_000
MANY_DIGITS = 10**5000
"""More digits than Python turns into text."""


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """No text makes this process work for long."""
    began = time.process_time()
    yield
    assert time.process_time() - began < AT_ONCE_SECONDS


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(ScheduleError) as caught:
        read()
    assert len(str(caught.value)) < 600
    return str(caught.value)


# -- cron expressions


@pytest.mark.parametrize(("text", "kept"), [
    ("0 2 * * mon-fri", "0 2 * * mon-fri"),
    ("  0\t2  * *\nMON-FRI ", "0 2 * * MON-FRI"),
    ("30 0 2 * * *", "30 0 2 * * *"),
    ("0 0 29 2 *", "0 0 29 2 *"),
    ("0 0 29 2 mon#5", "0 0 29 2 mon#5"),
    ("0 0 L * *", "0 0 L * *"),
    ("0 0 LW * *", "0 0 LW * *"),
    ("*/60 * * * *", "*/60 * * * *"),
    ("0 0 */31 */12 */7", "0 0 */31 */12 */7"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    (" @Hourly ", "0 * * * *"),
])  # fmt: skip
def test_a_cron_expression(text: str, kept: str) -> None:
    assert cron_expression(text, PRAGUE) == When(PRAGUE, cron=kept)


@pytest.mark.parametrize(("text", "said"), [
    ("0 0 1--100000000 * *", "Bad day-of-month"),
    ("* " * 5000, "at most 200 characters; this one has 10000"),
    (TEN_KILOBYTES, "at most 200 characters; this one has 10000"),
    (",".join(["*"] * 97) + " * * * *", "at most 200 characters"),
    ("*/100000000 * * * *", "a step of 100000000 is longer than the minute, which has 60"),
    ("*/61 * * * *", "a step of 61 is longer than the minute"),
    ("*/61 * * * * *", "a step of 61 is longer than the second"),
    ("0 0/25 * * *", "a step of 25 is longer than the hour"),
    ("0 0 * * 1-5,*/8", "a step of 8 is longer than the day of week"),
    ("0-59/99999999999999999999 * * * *", "longer than the minute"),
    ("*/0 * * * *", "Bad minute"),
    ("99999999999999999999 * * * *", "Bad minute"),
    ("0-31536000 * * * * *", "Bad second"),
    ("0 0 31 2 *", "Bad day-of-month"),
    ("0 0 30 2 *", "Bad day-of-month"),
    ("0 0 31 2,4,6,9,11 *", "Bad day-of-month"),
    ("0 0 32 * *", "Bad day-of-month"),
    ("0 0 * * 8", "Bad day-of-week"),
    ("0 0 * * 1#6", "Bad day-of-week"),
    ("\u0660 \u0660 * * *", "Bad minute"),
    ("\uff10 0 * * *", "Bad minute"),
    ("0 \u00b2 * * *", "Bad hour"),
    ("0 0 * * *\0", "Bad day-of-week"),
    ("0 0 * * *; DROP TABLE jobs", "Wrong number of fields|Bad"),
    ("@reboot", "Wrong number of fields"),
    ("", "Wrong number of fields"),
    ("* * * * * * *", "Wrong number of fields"),
])  # fmt: skip
def test_what_is_no_cron_expression_is_refused_with_what_is_wrong(text: str, said: str) -> None:
    message = refused(lambda: cron_expression(text, PRAGUE))

    assert any(one in message for one in said.split("|"))


@pytest.mark.parametrize("value", [None, 5, b"0 0 * * *", ["0", "0"], lambda: None])
def test_a_cron_expression_is_a_text(value: object) -> None:
    assert 'say a text such as "0 2 * * mon-fri"' in refused(lambda: cron_expression(value, PRAGUE))


@pytest.mark.parametrize("text", [
    ",".join(["0-59"] * 38) + " * * * *",
    ",".join(["*/1"] * 48) + " * * * *",
    " ".join([",".join(["*"] * 19)] * 5),
    "*" + "/1" * 90 + " * * * *",
    "-".join(["1"] * 90) + " * * * *",
])  # fmt: skip
def test_whatever_fits_into_200_characters_is_read_or_refused_at_once(text: str) -> None:
    assert len(text) <= 200
    with contextlib.suppress(ScheduleError):
        assert cron_expression(text, PRAGUE).trigger(CREATED).next_after(CREATED) is not None


# -- intervals


@pytest.mark.parametrize(("length", "seconds"), [
    ("15m", 900), (900, 900), (timedelta(minutes=15), 900), (1, 1), (1.5, 1.5), ("1d", 86400), ("3650d", 315360000),
])  # fmt: skip
def test_an_interval(length: Any, seconds: float) -> None:
    assert every(length, PRAGUE) == When(PRAGUE, every_seconds=seconds)


@pytest.mark.parametrize(("length", "said"), [
    (0, "0 seconds: an interval is at least 1 second and at most 10 years long"),
    (0.999, "at least 1 second"),
    (timedelta(0), "at least 1 second"),
    ("3651d", "3651 days: an interval is at least 1 second and at most 10 years long"),
    (-1, "must lie between 0 seconds and 100 years"),
    (float("nan"), "must lie between"),
    (float("inf"), "must lie between"),
    (1e308, "must lie between"),
    ("soon", "is no length of time"),
    ("", "is no length of time"),
    (True, "is no length of time"),
    (None, "is no length of time"),
])  # fmt: skip
def test_what_is_no_interval_is_refused(length: Any, said: str) -> None:
    assert said in refused(lambda: every(length, PRAGUE))


# -- APScheduler's arguments


def read(kind: str, **given: Any) -> When:
    return apscheduler_trigger(kind, given, PRAGUE)


@pytest.mark.parametrize("given", [
    {"hour": 2}, {"hour": "2", "minute": None}, {"day": "last"}, {"day": "2nd fri, last mon"}, {"day": "5th fri"},
    {"day_of_week": "mon-fri"}, {"day_of_week": "MON,wed , sun"}, {"month": "jan-mar", "day": 1}, {"week": "1-53/2"},
    {"year": "2026-2030", "second": "*/10"}, {"month": 2, "day": 29}, {"hour": "*"}, {"hour": "8-18/2,23"},
])  # fmt: skip
def test_the_fields_of_a_cron_trigger(given: dict[str, Any]) -> None:
    when = read("cron", **given)

    assert when.timezone == PRAGUE
    assert dict(when.cron_fields) == {name: str(value) for name, value in given.items() if value is not None}


@pytest.mark.parametrize(("given", "said"), [
    ({}, "cron needs at least one of year, month"),
    ({"hour": None}, "cron needs at least one of"),
    ({"our": 2}, "cron needs at least one of"),
    ({"hour": 2, "our": 2}, "cron does not know our"),
    ({"hour": 2, "jitter": 5}, "cron does not know jitter"),
    ({"hour": 25}, "25"),
    ({"second": 60}, "60"),
    ({"day": "1--100000000"}, "day='1--100000000': '1--100000000' is not understood"),
    ({"hour": "*/100000000"}, "not understood"),
    ({"hour": "*/24"}, "the step value (24) is higher than the total range"),
    ({"second": "0-31536000"}, "not understood"),
    ({"hour": "x" * 201}, "cron hour= has at most 200 characters; this one has 201"),
    ({"hour": TEN_KILOBYTES}, "cron hour= has at most 200 characters; this one has 10000"),
    ({"hour": ",".join(["*"] * 101)}, "has at most 200 characters"),
    ({"hour": "9" * 190}, "not understood"),
    ({"hour": MANY_DIGITS}, "takes a number such as 2"),
    ({"hour": -1}, "takes a number such as 2"),
    ({"hour": True}, "takes a number such as 2"),
    ({"hour": 1.5}, "takes a number such as 2"),
    ({"hour": [1, 2]}, "takes a number such as 2"),
    ({"hour": "\u0663"}, "not understood"),
    ({"hour": "2\0"}, "not understood"),
    ({"hour": ""}, "not understood"),
    ({"hour": "1,,2"}, "'' is not understood"),
    ({"day_of_week": "mon-fri; sat"}, "'mon-fri; sat' is not understood"),
    ({"day_of_week": "mon/2"}, "'mon/2' is not understood"),
    ({"day": "last-1"}, "'last-1' is not understood"),
    ({"day": "6th fri"}, "not understood"),
    ({"day": "last xyz"}, "xyz"),
    ({"month": "jan-xxx"}, "xxx"),
    ({"day_of_week": "fri-mon"}, "minimum value in a range"),
    ({"month": 2, "day": 30}, "such a day does not come"),
    ({"month": 6, "week": 53}, "such a day does not come"),
    ({"month": "1-11", "week": 53, "day": "4-31", "second": "*"}, "such a day does not come"),
    ({"year": 1999}, "such a day does not come"),
    ({"year": 9999}, "such a day does not come"),
    ({"hour": 2, "timezone": "Mars/Olympus"}, "'Mars/Olympus' is no time zone"),
    ({"hour": 2, "start_date": "2030-01-01", "end_date": "2020-01-01"}, "never fires between start_date and end_date"),
    ({"year": 2013, "start_date": "2030-01-01"}, "never fires between"),
    ({"hour": 2, "start_date": "2030-01-01 03:00", "end_date": "2030-01-01 04:00"}, "never fires between"),
])  # fmt: skip
def test_fields_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    assert said in refused(lambda: read("cron", **given))


@pytest.mark.parametrize("value", [",".join(["*"] * 100), ",".join(["0-23"] * 40), ",".join(["1-9/1"] * 33)])
def test_many_parts_of_a_field_are_read_at_once(value: str) -> None:
    assert read("cron", hour=value).trigger(CREATED).next_after(CREATED) is not None


@pytest.mark.parametrize(("given", "seconds"), [
    ({"minutes": 10}, 600), ({"hours": 1, "minutes": 30}, 5400), ({"seconds": 1.5}, 1.5), ({"weeks": 2}, 1209600),
    ({"days": 3650}, 315360000), ({"days": 1, "hours": -1}, 82800),
])  # fmt: skip
def test_the_parts_of_an_interval(given: dict[str, Any], seconds: float) -> None:
    assert read("interval", **given) == When(PRAGUE, every_seconds=seconds)


@pytest.mark.parametrize(("given", "said"), [
    ({}, "interval needs numbers for weeks, days, hours, minutes, seconds"),
    ({"months": 1}, "interval needs numbers for"),
    ({"seconds": 1, "months": 1}, "interval does not know months"),
    ({"seconds": "many"}, "interval needs numbers for seconds"),
    ({"seconds": True}, "interval needs numbers for seconds"),
    ({"seconds": 0}, "at least 1 second and at most 10 years"),
    ({"seconds": -1}, "must lie between 0 seconds"),
    ({"seconds": float("nan")}, "at least 1 second and at most 10 years"),
    ({"seconds": float("inf")}, "at least 1 second and at most 10 years"),
    ({"seconds": 1e308, "weeks": 1e308}, "at least 1 second and at most 10 years"),
    ({"seconds": MANY_DIGITS, "weeks": 1.0}, "at least 1 second and at most 10 years"),
    ({"days": 3651}, "at most 10 years"),
    ({"hours": 1, "start_date": "2020-01-02", "end_date": "2020-01-01"}, "never fires between"),
    ({"hours": 1, "end_date": "1990-01-01"}, "never fires between"),
])  # fmt: skip
def test_an_interval_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refused(lambda: read("interval", **given))


def test_bounds_are_read_in_the_time_zone_of_the_trigger() -> None:
    when = read("cron", hour=2, start_date="2026-01-01", end_date=date(2026, 7, 1), timezone="America/New_York")

    assert (when.timezone, when.start, when.end) == (
        "America/New_York",
        moment("2026-01-01 05:00:00"),
        moment("2026-07-01 04:00:00"),
    )


def test_an_interval_may_fire_once_only() -> None:
    when = read("interval", hours=1, start_date="2020-01-01", end_date="2020-01-01")

    assert when.trigger(CREATED).next_after(CREATED) == when.start == when.end


@pytest.mark.parametrize(("kind", "said"), [
    ("hourly", "'hourly' is none of cron, interval, date"),
    (TEN_KILOBYTES, "is none of cron, interval, date"),
    (None, "None is none of cron, interval, date"),
])  # fmt: skip
def test_a_trigger_is_one_of_three(kind: Any, said: str) -> None:
    assert said in refused(lambda: read(kind, hour=2))


def test_a_date_needs_its_date() -> None:
    assert refused(lambda: read("date")) == "A date needs run_date=."
    assert refused(lambda: read("date", run_date="2026-03-29", hour=2)) == "date does not know hour."


# -- moments


@pytest.mark.parametrize(("value", "expected"), [
    ("2026-03-29T02:30", "2026-03-29 01:00:00"),  # does not exist
    ("2026-10-25 02:30", "2026-10-25 00:30:00"),  # comes twice
    ("2026-03-29T02:30Z", "2026-03-29 02:30:00"),
    (" 2026-03-29T02:30+05:00 ", "2026-03-28 21:30:00"),
    ("2026-03-29", "2026-03-28 23:00:00"),
    ("20260329", "2026-03-28 23:00:00"),
    (date(2026, 3, 29), "2026-03-28 23:00:00"),
    (datetime(2026, 3, 29, 12), "2026-03-29 10:00:00"),
    (datetime(2026, 3, 29, 12, tzinfo=ZoneInfo("Asia/Tokyo")), "2026-03-29 03:00:00"),
    (datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo(PRAGUE)), "2026-10-25 01:30:00"),
    ("1970-01-02", "1970-01-01 23:00:00"),
    ("9998-12-31T23:59:59", "9998-12-31 22:59:59"),
])  # fmt: skip
def test_a_moment(value: object, expected: str) -> None:
    found = read_moment(value, PRAGUE, "run_date")

    assert (found, found.tzinfo) == (moment(expected), UTC)
    assert read("date", run_date=value) == When(PRAGUE, at=moment(expected))


@pytest.mark.parametrize(("value", "said"), [
    ("tomorrow", "run_date='tomorrow' is no date or time; say 2026-03-29T02:30"),
    ("", "is no date or time"),
    ("\0", "is no date or time"),
    ("2026-02-30", "is no date or time"),
    ("2026-03-29T02:30[Europe/Prague]", "is no date or time"),
    ("\u0662\u0660\u0662\u0666-03-29", "is no date or time"),
    (TEN_KILOBYTES, "is no date or time"),
    ("2026-03-29" + "0" * 10_000, "is no date or time"),
    ("2026-03-29" + " " * 300, "is no date or time"),
    (0, "is no date or time; say a datetime"),
    (True, "is no date or time"),
    (1774751400.0, "is no date or time"),
    (time_of_day(1), "is no date or time"),
    ("0001-01-01", "the year must be one from 1970 to 9998"),
    ("9999-12-31", "the year must be one from 1970 to 9998"),
    ("0001-01-01T00:00+14:00", "the year must be one from"),
    ("9999-12-31T23:59:59-12:00", "the year must be one from"),
    (date.min, "the year must be one from"),
    (date.max, "the year must be one from"),
    (datetime.min, "the year must be one from"),
    (datetime.max, "the year must be one from"),
    (datetime.min.replace(tzinfo=UTC), "the year must be one from"),
])  # fmt: skip
def test_what_is_no_moment_is_refused(value: object, said: str) -> None:
    assert said in refused(lambda: read("date", run_date=value))
    assert said.removeprefix("run_date") in refused(lambda: read("cron", hour=2, start_date=value))


# -- time zones


@pytest.mark.parametrize("value", [PRAGUE, ZoneInfo(PRAGUE)])
def test_a_time_zone_may_be_named_or_given(value: object) -> None:
    assert zone_name(value) == PRAGUE
    assert zone_name(UTC) == "UTC"


@pytest.mark.parametrize("value", [
    "Mars/Olympus", "europe/prague", "", "../etc/passwd", "/etc/localtime", "localtime", "Factory",
    "posix/Europe/Prague", "right/Europe/Prague", "Europe", "Europe/Prague\0", TEN_KILOBYTES,
    timezone(timedelta(hours=1)), 5, None,
])  # fmt: skip
def test_what_is_no_time_zone_everywhere_is_refused(value: object) -> None:
    assert "is no time zone of the IANA database" in refused(lambda: zone_name(value))
