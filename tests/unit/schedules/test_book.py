"""Where schedules are defined: names, what is refused, and what a definition keeps."""

import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest

from fire_times import CREATED, moment
from jobledger import BaseJob, ScheduleError, Tick
from jobledger.schedules import Schedule, ScheduleBook
from jobledger.schedules.definition import CatchUp, Overlap, When
from jobledger.schedules.policy import judge

TICK = Tick("nightly", datetime(2026, 3, 29, 1, tzinfo=UTC), None, datetime(2026, 3, 29, 1, 0, 1, tzinfo=UTC))


class BookLoad(BaseJob):
    def _perform(self, table: str, rows: int = 5) -> None: ...


class BookOther(BaseJob):
    def _perform(self) -> None: ...


def nothing() -> None: ...


def scheduled(*cron: Any, target: Any = nothing, **options: Any) -> Schedule:
    """What `@schedule(…)` defines."""
    book = ScheduleBook()
    assert book.schedule(*cron, **options)(target) is target
    (found,) = book
    return found


def defined(trigger: Any, **options: Any) -> Schedule:
    """What `@scheduler.scheduled_job(…)` defines."""
    book = ScheduleBook()
    assert book.scheduled_job(trigger, **options)(nothing) is nothing
    (found,) = book
    return found


# -- @schedule


def test_all_that_a_schedule_may_say() -> None:
    found = scheduled(
        "0 2 * * mon-fri",
        target=BookLoad,
        tz="Europe/Prague",
        name="nightly",
        catch_up="all",
        max_lateness="6h",
        overlap="skip",
        jitter="5m",
        payload={"table": "flights"},
        queue="etl",
        timeout="15m",
    ).definition

    assert found.name == "nightly"
    assert found.when == When("Europe/Prague", cron="0 2 * * mon-fri")
    assert (found.catch_up, found.max_lateness_seconds, found.overlap) == (CatchUp.ALL, 21600, Overlap.SKIP)
    assert (found.jitter_seconds, found.target) == (300, "BookLoad")
    assert (found.payload, found.options) == ({"table": "flights", "rows": 5}, {"queue": "etl", "timeout": 900.0})


def test_what_a_schedule_is_if_nothing_is_said() -> None:
    found = scheduled("0 2 * * *").definition

    assert found.name == found.target == f"{__name__}.nothing"
    assert (found.catch_up, found.max_lateness_seconds, found.overlap) == (CatchUp.LATEST, None, Overlap.ALLOW)
    assert (found.jitter_seconds, found.payload, found.options) == (0, None, {})


def test_a_job_class_is_known_by_its_type() -> None:
    assert scheduled(every="1h", target=BookOther).name == "BookOther"
    assert scheduled(every="1h", target=BookOther).definition.payload == {}


@pytest.mark.parametrize("length", ["15m", 900, timedelta(minutes=15)])
def test_an_interval_counts_from_the_creation_of_the_schedule(length: Any) -> None:
    trigger = scheduled(every=length).definition.when.trigger(CREATED)

    assert trigger.next_after(CREATED) == CREATED + timedelta(minutes=15)


@pytest.mark.parametrize(("cron", "options", "said"), [
    ((), {}, "Say either a cron expression"),
    (("0 2 * * *",), {"every": "15m"}, "Say either a cron expression"),
    ((nothing,), {}, "is no cron expression"),
    (("nonsense",), {}, "cron 'nonsense'"),
    (("0 0 1--100000000 * *",), {}, "Bad day-of-month"),
    ((), {"every": 0}, "at least 1 second"),
    (("0 2 * * *",), {"tz": "Mars/Olympus"}, "'Mars/Olympus' is no time zone"),
    (("0 2 * * *",), {"catch_up": "some"}, "catch_up='some' is none of skip, latest, all"),
    (("0 2 * * *",), {"catch_up": True}, "catch_up=True is none of"),
    (("0 2 * * *",), {"overlap": "never"}, "overlap='never' is none of allow, skip, queue"),
    (("0 2 * * *",), {"max_lateness": "soon"}, "max_lateness='soon' is no length of time"),
    (("0 2 * * *",), {"max_lateness": -1}, "max_lateness=-1"),
    (("0 2 * * *",), {"max_lateness": 0}, "max_lateness .* is too short; say at least a second"),
    (("0 2 * * *",), {"max_lateness": 0.5}, "is too short"),
    (("0 2 * * *",), {"max_lateness": "200000w"}, "100 years"),
    (("0 2 * * *",), {"jitter": "1d1s"}, "jitter is at most a day"),
    (("0 2 * * *",), {"jitter": -1}, "jitter=-1"),
    (("0 2 * * *",), {"jitter": float("nan")}, "jitter=nan"),
    (("0 2 * * *",), {"name": "x" * 201}, "1 to 200 printable characters"),
    (("0 2 * * *",), {"name": "two\nlines"}, "printable characters"),
    (("0 2 * * *",), {"name": "NUL\0"}, "printable characters"),
    (("0 2 * * *",), {"name": "half \ud800"}, "printable characters"),
    (("0 2 * * *",), {"name": 5}, "printable characters"),
    (("0 2 * * *",), {"payload": {"table": "a"}}, "payload: only a job class takes these"),
    (("0 2 * * *",), {"queue": "low"}, "queue: only a job class takes these"),
    (("0 2 * * *",), {"target": BookLoad}, "table: Field required"),
    (("0 2 * * *",), {"target": lambda table: None}, "cannot be called: missing a required argument: 'table'"),
    (("0 2 * * *",), {"target": 5}, "neither a function nor a job class"),
])  # fmt: skip
def test_a_schedule_that_cannot_work_is_refused(cron: tuple[Any, ...], options: dict[str, Any], said: str) -> None:
    book = ScheduleBook()
    target = options.pop("target", nothing)

    with pytest.raises(ScheduleError, match=said):
        book.schedule(*cron, **options)(target)

    assert list(book) == []


def test_the_longest_bounds() -> None:
    found = scheduled("0 2 * * *", jitter="1d", max_lateness=1, name="x" * 200).definition

    assert (found.jitter_seconds, found.max_lateness_seconds, len(found.name)) == (86400, 1, 200)


def test_an_async_function_is_refused() -> None:
    async def nightly() -> None: ...

    with pytest.raises(ScheduleError, match="would not run when it is called"):
        ScheduleBook().schedule("0 2 * * *")(nightly)


# -- @scheduler.scheduled_job


def test_a_schedule_is_known_by_its_id_if_it_has_one() -> None:
    assert defined("cron", hour=2, id="nightly", name="The nightly import").name == "nightly"
    assert defined("cron", hour=2).name == f"{__name__}.nothing"


def test_apschedulers_arguments() -> None:
    found = defined("cron", hour=2, day_of_week="mon-fri", misfire_grace_time=300, coalesce=False, jitter=30).definition

    assert found.when == When("UTC", cron_fields=(("day_of_week", "mon-fri"), ("hour", "2")))
    assert (found.max_lateness_seconds, found.catch_up, found.jitter_seconds) == (300, CatchUp.ALL, 30)
    assert found.overlap is Overlap.ALLOW


def test_what_apscheduler_needs_and_a_ledger_does_not_is_accepted() -> None:
    found = defined(
        "interval", minutes=5, replace_existing=True, max_instances=3, jobstore="default", executor="default"
    )

    assert found.definition.when.every_seconds == 300
    assert found.definition.catch_up is CatchUp.LATEST


def test_the_trigger_can_be_read_by_people() -> None:
    assert defined("cron", hour=1, day_of_week="mon-fri").expression == "cron day_of_week=mon-fri hour=1"
    assert scheduled("0 2 * * *").expression == "0 2 * * *"


@pytest.mark.parametrize(("trigger", "options", "said"), [
    ("cron", {"hour": 25}, f"Schedule '{__name__}.nothing': .*25"),
    ("cron", {"our": 2}, "cron needs at least one of"),
    ("cron", {"hour": 2, "our": 2}, "cron does not know our"),
    ("cron", {"hour": 2, "timezone": "Mars/Olympus"}, "Mars/Olympus"),
    ("interval", {"seconds": "many"}, "seconds"),
    ("date", {"run_date": "tomorrow"}, "run_date='tomorrow'"),
    ("hourly", {}, "'hourly' is none of cron, interval, date"),
    ("cron", {"hour": 2, "id": "x" * 201}, "1 to 200 printable characters"),
    ("cron", {"hour": 2, "misfire_grace_time": 0}, "misfire_grace_time.* is too short"),
    ("cron", {"hour": 2, "misfire_grace_time": "soon"}, "misfire_grace_time='soon'"),
    ("cron", {"hour": 2, "jitter": 86401}, "jitter is at most a day"),
    ("cron", {"hour": 2, "next_run_time": None}, "next_run_time means nothing here"),
    ("cron", {"hour": 2, "args": "abc"}, "args is a list or tuple"),
    ("cron", {"hour": 2, "kwargs": ["table"]}, "kwargs a dictionary"),
    ("cron", {"hour": 2, "args": [1]}, "cannot be called: too many positional arguments"),
])  # fmt: skip
def test_a_scheduled_job_that_cannot_work_is_refused(trigger: str, options: dict[str, Any], said: str) -> None:
    book = ScheduleBook()

    with pytest.raises(ScheduleError, match=said):
        book.add_job(nothing, trigger, **options)

    assert list(book) == []


def test_scheduled_job_is_for_functions() -> None:
    """Its args and kwargs would not become the payload."""
    with pytest.raises(ScheduleError, match=r"scheduled_job takes a function; for a job class say @schedule"):
        ScheduleBook().add_job(BookOther, "cron", hour=2)


# -- calls


def test_a_function_is_called_with_its_arguments_and_its_tick() -> None:
    called: list[Any] = []
    book = ScheduleBook()

    def nightly(schema: str, table: str, tick: Tick) -> None:
        called.append((schema, table, tick))

    found = book.add_job(nightly, "cron", hour=2, args=["public"], kwargs={"table": "flights"})
    found.call(found.definition, TICK)

    assert called == [("public", "flights", TICK)]


# -- time zones


def test_a_schedule_without_a_time_zone_is_read_in_that_of_the_settings() -> None:
    for found in (scheduled("0 2 * * *"), defined("cron", hour=2), defined("cron", hour=2, timezone=None)):
        assert found.definition.when.timezone == "UTC"

        there = found.in_zone("Europe/Prague")

        assert there.definition.when.timezone == "Europe/Prague"
        assert there.definition.when.trigger(CREATED).next_after(CREATED) == moment("2013-01-02 01:00:00")
        assert there.in_zone("Asia/Tokyo") is there


def test_moments_without_a_time_zone_are_read_in_that_of_the_settings_too() -> None:
    once = defined("date", run_date="2013-01-04 09:00").in_zone("Europe/Prague")

    assert once.definition.when.at == moment("2013-01-04 08:00:00")


def test_a_schedule_with_a_time_zone_keeps_it() -> None:
    for found in (
        scheduled("0 2 * * *", tz="America/New_York"),
        defined("cron", hour=2, timezone="America/New_York"),
    ):
        assert found.in_zone("Europe/Prague") is found
        assert found.definition.when.timezone == "America/New_York"


# -- names that are taken


def test_two_functions_of_one_name_are_refused() -> None:
    book = ScheduleBook()
    book.add_job(nothing, "cron", hour=2, id="nightly")

    with pytest.raises(ScheduleError, match=r"Two schedules are called 'nightly'.*name=, or id="):
        book.schedule("0 3 * * *", name="nightly")(lambda: None)
    with pytest.raises(ScheduleError, match=r"called 'nightly': of .*nothing and of BookOther"):
        book.schedule("0 3 * * *", name="nightly")(BookOther)

    assert [one.expression for one in book] == ["cron hour=2"]


@pytest.mark.parametrize("target", [nothing, BookOther])
def test_two_schedules_of_one_target_need_two_names(target: Any) -> None:
    """One of them would silently not be there."""
    book = ScheduleBook()
    book.schedule("0 2 * * *")(target)

    with pytest.raises(ScheduleError, match="Two schedules are called"):
        book.schedule("0 14 * * *")(target)
    book.schedule("0 14 * * *", name="afternoon")(target)

    assert [one.expression for one in book] == ["0 2 * * *", "0 14 * * *"]


def test_closures_partials_and_arguments_that_differ_need_names_too() -> None:
    def load(table: str) -> None: ...

    def of(table: str) -> Callable[[], None]:
        return lambda: load(table)

    pairs: list[list[tuple[Any, dict[str, Any]]]] = [
        [(of("a"), {}), (of("b"), {})],
        [(functools.partial(load, "a"), {}), (functools.partial(load, "b"), {})],
        [(load, {"args": ["a"]}), (load, {"args": ["b"]})],
        [(load, {"kwargs": {"table": "a"}}), (load, {"kwargs": {"table": "b"}})],
    ]
    for (one, first), (other, second) in pairs:
        book = ScheduleBook()
        book.add_job(one, "cron", hour=2, **first)
        with pytest.raises(ScheduleError, match="Two schedules are called"):
            book.add_job(other, "cron", hour=2, **second)


def test_the_same_said_twice_is_one_schedule() -> None:
    book = ScheduleBook()
    for _ in range(2):
        book.add_job(nothing, "cron", hour=2)
        book.schedule(every="1h", payload={"table": "a"})(BookLoad)

    assert [one.name for one in book] == [f"{__name__}.nothing", "BookLoad"]


MODULE = """
def nightly(): ...
book.schedule({cron!r})(nightly)
"""


def test_a_module_that_is_loaded_again_defines_its_schedules_anew() -> None:
    book = ScheduleBook()
    for cron in ("0 2 * * *", "0 3 * * *"):
        module = ModuleType("jobs_of_a_test")
        module.__dict__["book"] = book
        exec(compile(MODULE.format(cron=cron), "jobs_of_a_test.py", "exec"), module.__dict__)

    (found,) = book

    assert (found.name, found.expression) == ("jobs_of_a_test.nightly", "0 3 * * *")
    assert found.target is module.__dict__["nightly"]


def test_a_second_function_of_the_same_name_in_a_module_is_refused() -> None:
    module = ModuleType("jobs_of_a_test")
    module.__dict__["book"] = ScheduleBook()
    text = MODULE.format(cron="0 2 * * *")

    with pytest.raises(ScheduleError, match=r"Two schedules are called 'jobs_of_a_test.nightly'"):
        exec(compile(text + text, "jobs_of_a_test.py", "exec"), module.__dict__)


# -- cost


def test_a_look_at_many_schedules_is_cheap() -> None:
    """It happens once a second, in each scheduler."""
    book = ScheduleBook()
    for number in range(500):
        match number % 3:
            case 0:
                book.schedule(f"{number % 60} 2 * * mon-fri", name=str(number))(nothing)
            case 1:
                book.schedule(every=60 + number, name=str(number))(nothing)
            case 2:
                book.add_job(nothing, "cron", hour=2, minute=number % 60, id=str(number))
    now = moment("2026-03-27 12:00:00")
    began = time.process_time()

    for one in book:
        definition = one.in_zone("Europe/Prague").definition
        assert definition.fingerprint
        trigger = definition.when.trigger(CREATED)
        judge(trigger, definition.catch_up, definition.max_lateness_seconds, now - timedelta(seconds=1), now, 15)

    assert time.process_time() - began < 0.5
