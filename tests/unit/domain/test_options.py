"""Options of a dispatch: lengths of time, queues, and all that is refused."""

import math
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as some

from jobledger import OptionError
from jobledger.domain.options import LONGEST_SECONDS, Options, queue_name, seconds

ONE = UUID("01890000-0000-7000-8000-000000000001")
OTHER = UUID("01890000-0000-7000-8000-000000000002")


@pytest.mark.parametrize(
    ("spoken", "expected"),
    [
        (0, 0),
        (30, 30),
        (1.5, 1.5),
        (timedelta(minutes=2), 120),
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (" 2d\n", 172800),
        ("1w", 604800),
        ("0.5h", 1800),
    ],
)
def test_a_length_of_time_has_many_spellings(spoken: Any, expected: float) -> None:
    assert seconds(spoken) == expected


@given(
    days=some.integers(0, 1000),
    hours=some.integers(0, 100),
    minutes=some.integers(0, 100),
    whole=some.integers(0, 100),
)
def test_a_text_means_what_a_timedelta_means(days: int, hours: int, minutes: int, whole: int) -> None:
    length = timedelta(days=days, hours=hours, minutes=minutes, seconds=whole)

    assert seconds(f"{days}d{hours}h{minutes}m{whole}s") == seconds(length)


@given(some.floats(0, LONGEST_SECONDS))
def test_a_number_is_seconds(number: float) -> None:
    assert seconds(number) == number


@given(some.text())
def test_any_text_is_a_length_of_time_or_refused(text: str) -> None:
    try:
        length = seconds(text)
    except OptionError:
        return
    assert 0 <= length <= LONGEST_SECONDS


@pytest.mark.parametrize(
    "spoken",
    ["", "  ", "5", "soon", "-5m", "5 minutes", "1h30", "m5", "1e3s", "1s" * 50 + "x", "0x10s"],
)
def test_a_text_that_is_no_length_of_time_is_refused(spoken: str) -> None:
    with pytest.raises(OptionError, match="delay="):
        seconds(spoken, "delay")


@pytest.mark.parametrize(
    "spoken", [-1, -0.001, math.nan, math.inf, 10**400, -(10**400), timedelta(seconds=-1), "9999999w"]
)
def test_a_length_of_time_outside_of_the_calendar_is_refused(spoken: Any) -> None:
    with pytest.raises(OptionError, match="between 0 seconds and 100 years"):
        seconds(spoken)


@pytest.mark.parametrize("spoken", [True, None, [5], b"5s", 5j])
def test_what_is_no_length_of_time_at_all_is_refused(spoken: Any) -> None:
    with pytest.raises(OptionError, match="is no length of time"):
        seconds(spoken)


@pytest.mark.parametrize("name", ["a", "default", "etl.nightly-2_b", "0", "x" * 100])
def test_a_queue_has_an_ordinary_name(name: str) -> None:
    assert queue_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 101, "low priority", "-low", ".low", "low\n", "größe", "a:b", None, 5, b"x"]
)
def test_a_queue_with_another_name_is_refused(name: Any) -> None:
    with pytest.raises(OptionError, match="queue="):
        queue_name(name)


def test_what_is_not_spoken_stays() -> None:
    spoken = Options().but(queue="low", timeout="5m", max_attempts=3)

    assert spoken.but(queue=None, timeout=None, max_attempts=None) == spoken


def test_what_is_spoken_later_wins() -> None:
    spoken = Options().but(queue="low", timeout=60).but(queue="high")

    assert (spoken.queue, spoken.timeout_seconds) == ("high", 60)


@pytest.mark.parametrize(
    ("spoken", "ids"),
    [
        (ONE, (ONE,)),
        (str(ONE), (ONE,)),
        (SimpleNamespace(id=ONE), (ONE,)),
        ([], ()),
        ([ONE, str(OTHER)], (ONE, OTHER)),
        ((OTHER, ONE, OTHER), (OTHER, ONE)),
    ],
)
def test_parents_are_named_by_handle_or_id_and_count_once(spoken: Any, ids: tuple[UUID, ...]) -> None:
    assert Options().but(after=spoken).after == ids


@pytest.mark.parametrize(
    "spoken",
    [
        {"timeout": 0},
        {"timeout": "50ms"},
        {"max_attempts": 0},
        {"max_attempts": 1001},
        {"max_attempts": True},
        {"max_attempts": "3"},
        {"title": 5},
        {"title": "a\x00b"},
        {"owner": "x" * 501},
        {"delay": -1},
        {"after": "yesterday"},
        {"after": [ONE, 5]},
        {"prio": 1},
        {"session": object()},
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_its_name(spoken: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(spoken))):
        Options().but(**spoken)


@pytest.mark.parametrize(("asked", "taken"), [(1, 1), (5, 5), (10, 10), (0, 1), (-(10**30), 1), (11, 10), (10**30, 10)])
def test_a_priority_is_brought_into_its_range(asked: int, taken: int) -> None:
    assert Options().but(priority=asked).priority == taken


@pytest.mark.parametrize("asked", ["high", "3", 2.5, 3.0, True, float("nan"), [1]])
def test_a_priority_that_is_no_whole_number_is_refused(asked: Any) -> None:
    with pytest.raises(OptionError, match="priority="):
        Options().but(priority=asked)


@pytest.mark.parametrize(
    ("priority", "queue"),
    [(1, "high"), (3, "high"), (4, "default"), (None, "default"), (7, "default"), (8, "low"), (10, "low")],
)
def test_the_priority_chooses_the_queue_of_whoever_names_none(priority: int | None, queue: str) -> None:
    assert Options().but(priority=priority).chosen_queue == queue
    assert Options().but(priority=priority, queue="etl").chosen_queue == "etl"


def test_an_option_that_there_is_not_names_all_that_there_are() -> None:
    with pytest.raises(OptionError) as refused:
        Options().but(retries=3)

    there_are = str(refused.value).partition("; there are ")[2].rstrip(".").split(", ")
    fields = [name.removesuffix("_seconds") for name in Options.__slots__ if name != "available_at_epoch"]
    assert str(refused.value).startswith("There is no option 'retries'")
    assert sorted(there_are) == sorted(fields)
