"""One text for equal values: what JSON makes of a value must depend on the value alone, and must say all of it.

pydantic writes a value as JSON; here the two are walked side by side, since the JSON alone does not say what was a set,
a number or a moment.

- `settled` is what is stored: the members of sets in their order, the zone of a time of day beside it.
- `comparable` is what equal jobs have in common: also one spelling of each number and each moment.
- `alike` says whether a value has come back from its JSON. `==` does not: it finds two datetimes in the hour of a
  clock change unequal to everything, and takes a time of day with a zone for equal to one without.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel, RootModel

_Leaf = Callable[[Any, Any], Any]

_SIMPLE: Final = (str, int, bool, type(None))
_HASHABLE: Final = (str, bytes, int, float, complex, type(None), Decimal, UUID, date, timedelta, Enum, PurePath)
_MINUTE: Final = timedelta(minutes=1)
_DAY: Final = timedelta(days=1)
_TO_SECONDS: Final = len("2026-01-31T12:00:00")
_PLAIN_DECIMAL_DIGITS: Final = 40
"""A decimal with more than so many zeros is written with an exponent."""

_TIME_IN_ZONE: Final = re.compile(r"(\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?)\[([A-Za-z0-9_+/-]{1,100})\]")


class MergedKeys(ValueError):
    """Two keys of a dictionary are the same key in JSON."""


def parsed(text: str) -> Any:
    """What JSON says that was made of a value of Python.

    Raises:
        MergedKeys: it names an entry twice, as it does for `{1: …, "1": …}`: one would be lost.
    """
    return _decoder.decode(text)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise MergedKeys(f"two keys of a dictionary would both be {twice!r}")
    return members


_decoder: Final = json.JSONDecoder(object_pairs_hook=_members)


def settled(value: Any, plain: Any) -> Any:
    """The JSON of a value as it is stored.

    Args:
        value: as Python has it.
        plain: the same as pydantic writes it: dict, list, str, int, float, bool and None.
    """
    return _walk(value, plain, _stored_leaf)


def comparable(value: Any, plain: Any) -> Any:
    """The JSON by which a value is compared with others; see `settled`."""
    return _walk(value, plain, _comparable_leaf)


def alike(one: Any, other: Any) -> bool:
    """Whether two values mean the same: equal moments, equal members; a list may be a tuple.

    A class without an `__eq__` of its own is taken for alike: its JSON alone says what it is. So is what a model keeps
    in private attributes, which no JSON has.
    """
    return bool(_meaning(one) == _meaning(other))


def in_order(values: Sequence[Any], plain: Sequence[Any]) -> list[Any]:
    """Values in the order of their JSON."""
    return [value for _, value in sorted(zip(map(_order, plain), values, strict=True), key=lambda one: one[0])]


def has_times_in_zones(text: str) -> bool:
    """Whether a JSON text may hold a time of day with the name of its zone, which pydantic does not read."""
    return _TIME_IN_ZONE.search(text) is not None


def with_times_in_zones(plain: Any) -> Any:
    """The JSON with each "02:30:00[Europe/Prague]" as a `time` of Python."""
    if isinstance(plain, dict):
        return {with_times_in_zones(key): with_times_in_zones(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [with_times_in_zones(item) for item in plain]
    if not isinstance(plain, str):
        return plain
    found = _TIME_IN_ZONE.fullmatch(plain)
    try:
        return time.fromisoformat(found[1]).replace(tzinfo=ZoneInfo(found[2])) if found else plain
    except (ValueError, KeyError, OSError):  # no such time, no such zone, a directory of zones
        return plain


# -- the walk


def _walk(value: Any, plain: Any, leaf: _Leaf) -> Any:
    if type(value) in _SIMPLE:
        return plain
    if isinstance(value, RootModel):
        return _walk(value.root, plain, leaf)
    if isinstance(plain, dict):
        return _walk_object(value, plain, leaf)
    if isinstance(plain, list):
        return _walk_array(value, plain, leaf)
    if isinstance(plain, str) and (isinstance(value, Mapping | Set | list | tuple | BaseModel) or _is_dataclass(value)):
        return _walk_json_in_text(value, plain, leaf)
    return leaf(value, plain)


def _walk_object(value: Any, plain: dict[str, Any], leaf: _Leaf) -> dict[str, Any]:
    """Members are found by their key, or, if that is written differently, by their place."""
    if isinstance(value, Mapping):
        members = dict(value)
    elif isinstance(value, BaseModel) or _is_dataclass(value):
        members = dict(_members_by_alias(value, plain))
    else:
        return plain
    by_place = list(members.items()) if len(members) == len(plain) else None
    walked = {}
    for place, (key, item) in enumerate(plain.items()):
        if key in members:
            walked[key] = _walk(members[key], item, leaf)
        elif by_place is not None:
            own_key, member = by_place[place]
            walked[leaf(own_key, key)] = _walk(member, item, leaf)
        else:
            walked[key] = item
    return walked


def _walk_array(value: Any, plain: list[Any], leaf: _Leaf) -> list[Any]:
    walked = plain
    if isinstance(value, Set | Sequence) and len(value) == len(plain):
        walked = []
        for member, item in zip(value, plain, strict=True):
            walked.append(_walk(member, item, leaf))
    return sorted(walked, key=_order) if isinstance(value, Set) else walked


def _walk_json_in_text(value: Any, plain: str, leaf: _Leaf) -> str:
    """What `pydantic.Json` writes: JSON inside of a text. Any other text stays as it is."""
    try:
        inner = json.loads(plain)
    except ValueError:
        return plain
    if not isinstance(inner, dict | list) or _compact(inner) != plain:
        return plain
    return _compact(_walk(value, inner, leaf), sort_keys=True)


def _members_by_alias(value: Any, plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a model or dataclass, by the keys that they have in its JSON."""
    infos = getattr(type(value), "__pydantic_fields__", {})
    for name, member in _fields(value):
        info = infos.get(name)
        aliases = (info.serialization_alias, info.alias) if info is not None else ()
        yield next((one for one in aliases if one is not None and one in plain), name), member


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, BaseModel):
        yield from ((one.name, getattr(value, one.name, None)) for one in dataclasses.fields(value))
        return
    for name in type(value).__pydantic_fields__:
        yield name, value.__dict__.get(name)
    yield from (value.__pydantic_extra__ or {}).items()


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _order(plain: Any) -> tuple[int, float, str]:
    """Numbers by size, as sets of small numbers have them anyway; all else by its text."""
    if isinstance(plain, int | float) and not isinstance(plain, bool):
        return 0, plain, ""
    return 1, 0, json.dumps(plain, sort_keys=True)


def _compact(plain: Any, *, sort_keys: bool = False) -> str:
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)


# -- leaves


def _stored_leaf(value: Any, plain: Any) -> Any:
    if not isinstance(plain, str):
        return plain
    if isinstance(value, time) and value.tzinfo is not None and value.utcoffset() is None:
        zone = getattr(value.tzinfo, "key", None)
        return f"{plain}[{zone}]" if zone and _reads(time, plain, value.replace(tzinfo=None)) else plain
    if isinstance(value, datetime):
        offset = value.utcoffset()
        if offset is not None and offset % _MINUTE and plain[:_TO_SECONDS] == value.isoformat()[:_TO_SECONDS]:
            return _utc(value) or plain  # pydantic drops the seconds of the offset, which zones had long ago
    return plain


def _comparable_leaf(value: Any, written: Any) -> Any:
    plain = _stored_leaf(value, written)
    if isinstance(value, float):
        return 0.0 if plain == 0 and isinstance(plain, float) else plain  # not -0.0
    if not isinstance(plain, str):
        return plain
    if isinstance(value, Decimal):
        return _decimal(value) if value.is_finite() and plain == str(value) else plain
    if isinstance(value, datetime):
        return (_utc(value) if _reads(datetime, plain, value) else None) or plain
    if isinstance(value, time):
        return _time_in_utc(value) if value.utcoffset() is not None and _reads(time, plain, value) else plain
    return plain


def _reads(kind: Any, text: str, value: Any) -> bool:
    """Whether a text is that of a moment, and not what a serializer of the user's has made of it."""
    try:
        return bool(_meaning(kind.fromisoformat(text)) == _meaning(value))
    except ValueError:
        return False


def _instant(value: datetime, offset: timedelta) -> timedelta:
    """Since the year 1; not as a datetime, which the first and last hours of the calendar would overflow."""
    return value.replace(tzinfo=None) - datetime.min - offset


def _utc(value: datetime) -> str | None:
    """A moment as pydantic writes it if its zone is UTC; None if it has no zone, or lies beyond the calendar."""
    offset = value.utcoffset()
    if offset is None:
        return None
    try:
        return f"{(datetime.min + _instant(value, offset)).isoformat()}Z"
    except OverflowError:
        return None


def _time_in_utc(value: time) -> str:
    offset = value.utcoffset() or timedelta(0)
    since = datetime.combine(datetime.min, value.replace(tzinfo=None)) - datetime.min - offset
    # Python takes times of two offsets for equal if this is; one of another day equals none of UTC.
    return f"{(datetime.min + since).time().isoformat()}Z" if timedelta(0) <= since < _DAY else f"{since}"


def _decimal(value: Decimal) -> str:
    """One spelling of equal decimals: 1.5, not 1.50 or 15E-1. `Decimal.normalize` would round."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    number = "".join(map(str, digits)).rstrip("0")
    if not number:
        return "0"
    exponent += len(digits) - len(number)
    number = number.lstrip("0")
    short = Decimal((sign, tuple(map(int, number)), exponent))
    return format(short, "f") if abs(exponent) <= _PLAIN_DECIMAL_DIGITS else f"{'-' * sign}{number}E{exponent}"


# -- what a value means


def _meaning(value: Any) -> Any:
    """Equal for values that are alike, and hashable."""
    if isinstance(value, float) and value != value:
        return "nan", float
    if isinstance(value, datetime):
        offset = value.utcoffset()
        return value if offset is None else ("instant", _instant(value, offset))
    if isinstance(value, time):
        offset = value.utcoffset()
        zone = value.tzinfo if offset is None else offset
        return "time", value.replace(tzinfo=None), getattr(zone, "key", None) or zone
    if isinstance(value, _HASHABLE):
        return value
    if isinstance(value, Mapping):
        return "map", frozenset((_meaning(key), _meaning(item)) for key, item in value.items())
    if isinstance(value, Set):
        return "set", frozenset(map(_meaning, value))
    if isinstance(value, Sequence) and not isinstance(value, bytearray | memoryview):
        kind = type(value) if hasattr(value, "_fields") else "list"  # a named tuple is more than its members
        return kind, tuple(map(_meaning, value))
    if isinstance(value, BaseModel):
        return type(value), tuple((name, _meaning(item)) for name, item in _fields(value))
    if _is_dataclass(value):
        counted = {one.name for one in dataclasses.fields(value) if one.compare}
        return type(value), tuple((name, _meaning(item)) for name, item in _fields(value) if name in counted)
    return _Opaque(value)


class _Opaque:
    """A value of a class of which nothing is known."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return hash(type(self._value))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Opaque) or type(self._value) is not type(other._value):
            return False
        equality: Any = type(self._value).__eq__
        if equality is object.__eq__:
            return True
        try:
            return bool(self._value == other._value)
        except Exception:  # an array's `==` is no bool, and a user's may raise
            return True
