"""Converts local times of a time zone (wall times) to moments, also around clock changes.

A wall time in a gap means the first moment after the gap. A wall time that occurs twice means the first occurrence.
So each wall time means one moment, and a later wall time never means an earlier moment.
"""

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

_SECOND: Final = timedelta(seconds=1)


def moment_of(wall: datetime, zone: ZoneInfo) -> datetime:
    """The moment, in UTC, of a wall time.

    Args:
        wall: the wall time, without a time zone.
        zone: its time zone.

    Raises:
        OverflowError: the moment is before the year 1 or after the year 9999 in UTC.
    """
    wall = wall.replace(fold=0)
    moment = wall.replace(tzinfo=zone).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None, fold=0) == wall:
        return moment
    # In a gap, fold=0 uses the offset before it and fold=1 the offset after it (PEP 495): the first result lies after
    # the clock change, the second before it.
    return _change_between(wall.replace(tzinfo=zone, fold=1).astimezone(UTC), moment, zone)


def latest_wall(moment: datetime, zone: ZoneInfo) -> datetime:
    """The latest wall time that has occurred up to a moment.

    This is the current wall time, except after clocks were set back: then it is the wall time of the change, until
    that time occurs again. So all later wall times mean later moments.

    Raises:
        OverflowError: the wall time is before the year 1 or after the year 9999.
    """
    local = moment.astimezone(zone)
    if local.fold:
        set_back = _change_between(local.replace(fold=0).astimezone(UTC), moment.astimezone(UTC), zone)
        local = (set_back - timedelta.resolution).astimezone(zone)
    return local.replace(tzinfo=None, fold=0)


def _change_between(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The moment of the clock change, to the second."""
    offset = before.astimezone(zone).utcoffset()
    before, after = before.replace(microsecond=0), after.replace(microsecond=0)
    while after - before > _SECOND:
        middle = before + timedelta(seconds=(after - before) // _SECOND // 2)
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
