"""Canonical JSON: equal values have one text, which depends on the value alone and loses nothing of it.

pydantic writes a value as JSON. These functions walk the value and its JSON side by side, because the JSON alone does
not tell sets from lists, or numbers and moments from text.

- `settled` gives the stored form: the members of sets in order, a time of day with the name of its zone.
- `comparable` gives the form for comparing jobs: in addition, one spelling of each number and each moment.
- `alike` tells whether a value has come back from its JSON unchanged. `==` cannot: for it, a datetime in the hour of a
  clock change equals none in another zone, and a time of day with a zone may equal one without.
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
"""A decimal with more zeros is written with an exponent."""

_TIME_IN_ZONE: Final = re.compile(r"(\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?)\[([A-Za-z0-9_+/-]{1,100})\]")


class MergedKeys(ValueError):
    """Two keys of a dictionary are the same key in JSON."""


def parsed(text: str) -> Any:
    """Parse JSON that was made of a Python value.

    Raises:
        MergedKeys: an object has a key twice, as for `{1: …, "1": …}`: one entry would be lost.
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
    """The stored form of a value, as JSON.

    Args:
        value: the Python value.
        plain: its JSON as pydantic writes it: dict, list, str, int, float, bool and None.
    """
    return _walk(value, plain, _stored_leaf)


def comparable(value: Any, plain: Any) -> Any:
    """The form of a value for comparing it with others, as JSON; see `settled`."""
    return _walk(value, plain, _comparable_leaf)


def alike(one: Any, other: Any) -> bool:
    """Whether two values mean the same: equal moments, equal members; a list may be a tuple.

    Values of a class without its own `__eq__` count as alike: only their JSON can be compared. The private attributes
    of a model are ignored, because no JSON holds them.
    """
    return bool(_meaning(one) == _meaning(other))


def in_order(values: Sequence[Any], plain: Sequence[Any]) -> list[Any]:
    """Sort values by their JSON."""
    return [value for _, value in sorted(zip(map(_order, plain), values, strict=True), key=lambda one: one[0])]


def has_times_in_zones(text: str) -> bool:
    """Whether a JSON text may hold a time of day with the name of its zone, which pydantic does not read."""
    return _TIME_IN_ZONE.search(text) is not None


def with_times_in_zones(plain: Any) -> Any:
    """The JSON with each "02:30:00[Europe/Prague]" replaced by a Python `time`."""
    if isinstance(plain, dict):
        return {with_times_in_zones(key): with_times_in_zones(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [with_times_in_zones(item) for item in plain]
    if not isinstance(plain, str):
        return plain
    found = _TIME_IN_ZONE.fullmatch(plain)
    try:
        return time.fromisoformat(found[1]).replace(tzinfo=ZoneInfo(found[2])) if found else plain
    except (ValueError, KeyError, OSError):  # no such time or zone, or the name of a directory of zones
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
    """Members are matched by key or, if JSON spells a key differently, by position."""
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
    """Walk the JSON inside a text that `pydantic.Json` wrote. Any other text stays as it is."""
    try:
        inner = json.loads(plain)
    except ValueError:
        return plain
    if not isinstance(inner, dict | list) or _compact(inner) != plain:
        return plain
    return _compact(_walk(value, inner, leaf), sort_keys=True)


def _members_by_alias(value: Any, plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a model or dataclass, by their keys in its JSON."""
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
    """Sort key: numbers by size, as sets of small numbers are ordered anyway; other values by their text."""
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
            return _utc(value) or plain  # pydantic drops the seconds of an offset, which historical zones have
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
    """Whether a text is the moment itself, and not the output of a user's serializer."""
    try:
        return bool(_meaning(kind.fromisoformat(text)) == _meaning(value))
    except ValueError:
        return False


def _instant(value: datetime, offset: timedelta) -> timedelta:
    """Time since the year 1 in UTC; no datetime, which would overflow in the first and last hours of the calendar."""
    return value.replace(tzinfo=None) - datetime.min - offset


def _utc(value: datetime) -> str | None:
    """A moment in UTC, as pydantic writes it; None if it has no zone, or lies outside the calendar in UTC."""
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
    # Python compares times of different offsets by this value; a time on another day in UTC equals no time in UTC.
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


# -- comparing meanings


def _meaning(value: Any) -> Any:
    """A hashable value that is equal for values that are alike."""
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
    """A value of an unknown class."""

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
        except Exception:  # an array's `==` gives no bool, and a user's may raise
            return True
