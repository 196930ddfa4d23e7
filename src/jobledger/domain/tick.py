"""A tick: one fire time of a schedule, as the schedule's function and its jobs see it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class TickKind(StrEnum):
    """The origin of a tick."""

    SCHEDULED = "scheduled"
    MANUAL = "manual"
    BACKFILL = "backfill"


class TickOutcome(StrEnum):
    """The outcome of a tick."""

    WAITING = "waiting"
    FIRED = "fired"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Tick:
    """One fire time.

    Attributes:
        schedule: the schedule's name.
        logical_time: the fire time, in the schedule's time zone. It identifies the day or hour of the work, however
            late the work is done: use it instead of the clock.
        previous: the fire time before it, in the same zone; None if there is none. A periodic import covers the
            interval from `previous` to `logical_time`.
        fired_at: time of firing, by the database's clock.
        kind: scheduled, manual (run now) or backfill.
    """

    schedule: str
    logical_time: datetime
    previous: datetime | None
    fired_at: datetime
    kind: TickKind = TickKind.SCHEDULED
