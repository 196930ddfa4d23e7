"""One text for equal values, and what counts as having come back."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from pydantic import BaseModel, ConfigDict, PrivateAttr, RootModel, TypeAdapter
from pydantic_core import to_json

from jobledger.domain.canonical import MergedKeys, alike, comparable, parsed, settled

PRAGUE = ZoneInfo("Europe/Prague")
TWICE = datetime(2026, 10, 25, 2, 30, tzinfo=PRAGUE)
NEVER = datetime(2026, 3, 29, 2, 30, tzinfo=PRAGUE)


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Tags(BaseModel):
    model_config = ConfigDict(frozen=True)
    names: frozenset[str] = frozenset()
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Label:
    words: frozenset[str]


class Pair(NamedTuple):
    left: int
    right: frozenset[str]


class Words(RootModel[set[str]]):
    pass


def plain_of(kind: Any, value: Any) -> Any:
    """What pydantic alone writes."""
    return json.loads(TypeAdapter(kind).dump_json(value))


def stored(kind: Any, value: Any) -> str:
    return json.dumps(settled(value, plain_of(kind, value)), sort_keys=True)


def compared(kind: Any, value: Any) -> str:
    return json.dumps(comparable(value, plain_of(kind, value)), sort_keys=True)


# -- sets

WORDS = frozenset(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
IN_ORDER = json.dumps(sorted(WORDS))


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (set[str], set(WORDS), IN_ORDER),
        (frozenset[str], WORDS, IN_ORDER),
        (dict[str, set[str]], {"a": set(WORDS)}, f'{{"a": {IN_ORDER}}}'),
        (dict[int, set[str]], {1: set(WORDS)}, f'{{"1": {IN_ORDER}}}'),
        (list[tuple[int, set[str]]], [(1, set(WORDS))], f"[[1, {IN_ORDER}]]"),
        (set[frozenset[str]], {WORDS, frozenset("z")}, f'[{IN_ORDER}, ["z"]]'),
        (Tags, Tags(names=WORDS), f'{{"at": null, "names": {IN_ORDER}}}'),
        (set[Tags], {Tags(names=WORDS), Tags()}, f'[{{"at": null, "names": {IN_ORDER}}}, {{"at": null, "names": []}}]'),
        (Label, Label(WORDS), f'{{"words": {IN_ORDER}}}'),
        (Pair, Pair(1, WORDS), f"[1, {IN_ORDER}]"),
        (Words, Words(set(WORDS)), IN_ORDER),
        (set[Colour], {Colour.RED, Colour.GREEN}, '["green", "red"]'),
        (set[int | str], {10, 9, "10", "a"}, '[9, 10, "10", "a"]'),
        (set[float], {10.5, 9.0, -1.0}, "[-1.0, 9.0, 10.5]"),
        (set[date], {date(2026, 2, 1), date(2026, 1, 1)}, '["2026-01-01", "2026-02-01"]'),
    ],
)
def test_the_members_of_a_set_are_in_their_order(kind: Any, value: Any, text: str) -> None:
    assert stored(kind, value) == text


PRINT = """
import json, sys
sys.path.insert(0, {here!r})
from test_canonical import *
for kind, value in [
    (set[str], set(WORDS)), (set[frozenset[str]], {{WORDS, frozenset("abc"), frozenset()}}),
    (set[Tags], {{Tags(names=WORDS), Tags()}}), (set[Label], {{Label(WORDS), Label(frozenset("xyz"))}}),
    (set[Colour], set(Colour)), (set[Decimal], {{Decimal("1.50"), Decimal("2"), Decimal("10")}}),
    (dict[str, frozenset[bytes]], {{"a": frozenset([b"x", b"y", b"z"])}}),
]:
    print(stored(kind, value), compared(kind, value))
"""


def test_it_is_the_same_in_every_process() -> None:
    code = PRINT.format(here=str(Path(__file__).parent))
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert len(said) == 1
    assert len(said.pop().splitlines()) == 7


# -- moments

FIXED = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (time(2, 30, tzinfo=PRAGUE), "02:30:00[Europe/Prague]"),
        (time(2, 30, 0, 5, tzinfo=PRAGUE), "02:30:00.000005[Europe/Prague]"),
        (time(2, 30, tzinfo=FIXED), "02:30:00+02:00"),
        (time(2, 30), "02:30:00"),
        (TWICE, "2026-10-25T02:30:00+02:00"),
        (TWICE.replace(fold=1), "2026-10-25T02:30:00+01:00"),
        (NEVER, "2026-03-29T02:30:00+01:00"),
        (datetime(1850, 1, 1, tzinfo=PRAGUE), "1849-12-31T23:02:16Z"),  # its offset has seconds
        (datetime(2026, 1, 1), "2026-01-01T00:00:00"),
    ],
)
def test_what_is_stored_of_a_moment_says_all_of_it(value: Any, text: str) -> None:
    assert stored(type(value), value) == json.dumps(text)


def test_the_text_that_a_serializer_of_the_users_wrote_stays() -> None:
    assert settled(time(2, 30, tzinfo=PRAGUE), "half past two") == "half past two"
    assert comparable(TWICE, "a night in October") == "a night in October"
    assert comparable(Decimal("1.50"), "1.50 EUR") == "1.50 EUR"
    assert settled({"b", "a"}, '["b", "a"]') == '["b", "a"]'  # with a space: not as pydantic.Json writes it


# -- one spelling for what is equal


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Decimal, [Decimal("1.5"), Decimal("1.50"), Decimal("15E-1"), Decimal("0001.5")]),
        (Decimal, [Decimal("0"), Decimal("-0.00"), Decimal("0E+5")]),
        (Decimal, [Decimal("1200"), Decimal("12E+2"), Decimal("1.2e3"), Decimal("1200.0")]),
        (Decimal, [Decimal("1E+400"), Decimal("10E+399")]),
        (set[Decimal], [{Decimal("1.0"), Decimal("10")}, {Decimal("1"), Decimal("1E1")}]),
        (dict[Decimal, int], [{Decimal("1.0"): 5}, {Decimal("1"): 5}]),
        (float, [0.0, -0.0]),
        (datetime, [TWICE, datetime(2026, 10, 25, 0, 30, tzinfo=UTC), TWICE.astimezone(FIXED)]),
        (dict[datetime, int], [{TWICE: 1}, {TWICE.astimezone(UTC): 1}]),
        (time, [time(12, tzinfo=UTC), time(14, tzinfo=FIXED)]),
        (time, [time(1, tzinfo=FIXED), time(2, tzinfo=timezone(timedelta(hours=3)))]),
        (Tags, [Tags(at=TWICE), Tags(at=TWICE.astimezone(UTC))]),
        (Fraction, [Fraction(1, 2), Fraction(2, 4)]),
    ],
)
def test_equal_values_have_one_text_to_be_compared_by(kind: Any, values: list[Any]) -> None:
    assert len({compared(kind, value) for value in values}) == 1


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Decimal, [Decimal("1.5"), Decimal("15"), Decimal("-1.5"), Decimal("0.15")]),
        (Decimal, [Decimal(10**60), Decimal(10**60 + 1)]),
        (datetime, [TWICE, TWICE.replace(fold=1), TWICE.replace(tzinfo=None)]),
        (time, [time(2, 30), time(2, 30, tzinfo=UTC), time(2, 30, tzinfo=PRAGUE), time(2, 30, tzinfo=ZoneInfo("UTC"))]),
        (set[str], [{"ab"}, {"a", "b"}, set()]),
        (float, [1.0, 1.5]),
    ],
)
def test_and_others_have_others(kind: Any, values: list[Any]) -> None:
    assert len({compared(kind, value) for value in values}) == len(values) - (kind is time)  # a UTC is a UTC


@settings(max_examples=200)
@given(some.decimals(allow_nan=False, allow_infinity=False), some.decimals(allow_nan=False, allow_infinity=False))
def test_decimals_have_one_text_if_and_only_if_they_are_equal(one: Decimal, other: Decimal) -> None:
    assert (compared(Decimal, one) == compared(Decimal, other)) == (one == other)
    assert Decimal(json.loads(compared(Decimal, one))) == one


moments = some.datetimes(
    timezones=some.timezones() | some.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
)


@settings(max_examples=200)
@given(moments, some.timezones())
def test_a_moment_has_one_text_in_all_zones(moment: datetime, zone: ZoneInfo) -> None:
    try:
        elsewhere = moment.astimezone(UTC).astimezone(zone)
    except OverflowError:
        return
    assert compared(datetime, moment) == compared(datetime, elsewhere)
    assert alike(moment, elsewhere)


# -- what has come back


class Private(BaseModel):
    value: int
    _lock: Any = PrivateAttr(default_factory=object)


class Child(Tags):
    floor: int = 1


class Unknown:
    """A class without `__eq__`."""


class Array:
    def __eq__(self, other: object) -> Any:
        raise ValueError("the truth value of an array is ambiguous")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TWICE, datetime(2026, 10, 25, 2, 30, tzinfo=FIXED)),
        ({TWICE}, {datetime(2026, 10, 25, 2, 30, tzinfo=FIXED)}),
        ({"a": [TWICE]}, {"a": [TWICE.astimezone(UTC)]}),
        (Tags(at=NEVER), Tags(at=NEVER.astimezone(UTC))),
        ((1, 2), [1, 2]),
        (float("nan"), float("nan")),
        (Private(value=1), Private(value=1)),
        (Unknown(), Unknown()),
        (Array(), Array()),
    ],
)
def test_alike(one: Any, other: Any) -> None:
    assert alike(one, other)
    assert alike(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TWICE, TWICE.replace(fold=1)),
        (TWICE, TWICE.replace(tzinfo=None)),
        (time(2, 30, tzinfo=PRAGUE), time(2, 30)),
        (time(2, 30, tzinfo=PRAGUE), time(2, 30, tzinfo=ZoneInfo("Europe/Berlin"))),
        ({1, 2}, [1, 2]),
        ({1: "a", "1": "b"}, {"1": "b"}),
        (Pair(1, frozenset()), [1, []]),
        (Child(), Tags()),
        (Private(value=1), {"value": 1}),
        (Label(frozenset("a")), Label(frozenset("b"))),
        (date(2026, 1, 1), "2026-01-01"),
        (b"a", "a"),
        (Unknown(), Array()),
    ],
)
def test_not_alike(one: Any, other: Any) -> None:
    assert not alike(one, other)
    assert not alike(other, one)


# -- what would be lost


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({1: "a", "1": "b"}, "1"),
        ({"x": [{True: 1, "true": 2}]}, "true"),
        ({None: 1, "None": 2}, "None"),
        ({(1, 2): 1, "1,2": 2}, "1,2"),
    ],
)
def test_keys_of_which_json_would_make_one_are_named(value: Any, key: str) -> None:
    with pytest.raises(MergedKeys, match=f"two keys of a dictionary would both be '{key}'"):
        parsed(to_json(value).decode())
    assert parsed(to_json({1: [2], "a": {}}).decode()) == {"1": [2], "a": {}}
