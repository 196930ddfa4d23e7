"""From what a clock on the wall shows to the moment that is meant, also in the nights when clocks are changed.

A time that does not exist means the first moment after the gap. A time that comes twice means the first of the two.
So each time on the wall means one moment, and later times never mean earlier moments.
"""

from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

_SECOND: Final = timedelta(seconds=1)


def moment_of(wall: datetime, zone: ZoneInfo) -> datetime:
    """The moment, in UTC, that a time on the wall means.

    Args:
        wall: without a time zone.
        zone: of the wall.

    Raises:
        OverflowError: in UTC that is before the year 1 or after the year 9999.
    """
    wall = wall.replace(fold=0)
    moment = wall.replace(tzinfo=zone).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None, fold=0) == wall:
        return moment
    # In a gap, fold=0 counts with the offset before it and fold=1 with the one after it (PEP 495): the first lands
    # behind the change of the clocks, the second before it.
    return _change_between(wall.replace(tzinfo=zone, fold=1).astimezone(UTC), moment, zone)


def latest_wall(moment: datetime, zone: ZoneInfo) -> datetime:
    """The latest time that the clock on the wall has shown up to a moment.

    This is what it shows; but after it was set back it is the time from which it was set back, until that comes again.
    So all later times on the wall mean later moments.

    Raises:
        OverflowError: the wall would show a time before the year 1 or after the year 9999.
    """
    local = moment.astimezone(zone)
    if local.fold:
        set_back = _change_between(local.replace(fold=0).astimezone(UTC), moment.astimezone(UTC), zone)
        local = (set_back - timedelta.resolution).astimezone(zone)
    return local.replace(tzinfo=None, fold=0)


def _change_between(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The moment at which the clocks were changed, to the second."""
    offset = before.astimezone(zone).utcoffset()
    before, after = before.replace(microsecond=0), after.replace(microsecond=0)
    while after - before > _SECOND:
        middle = before + timedelta(seconds=(after - before) // _SECOND // 2)
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
