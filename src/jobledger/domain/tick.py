"""A tick: one fire time of a schedule, as its function and the jobs that it dispatches see it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class TickKind(StrEnum):
    """Why there is a tick."""

    SCHEDULED = "scheduled"
    MANUAL = "manual"
    BACKFILL = "backfill"


class TickOutcome(StrEnum):
    """What became of a tick."""

    WAITING = "waiting"
    FIRED = "fired"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Tick:
    """One fire time.

    Attributes:
        schedule: the schedule's name.
        logical_time: the fire time, in the schedule's time zone. It says which day or hour the work is about, however
            late it is done: use it instead of the clock.
        previous: the fire time before it, in the same zone; None if there is none. `previous` to `logical_time` is the
            stretch of time that a periodic import has to cover.
        fired_at: when it was fired, by the database's clock.
        kind: scheduled; manual for "run now"; or backfill.
    """

    schedule: str
    logical_time: datetime
    previous: datetime | None
    fired_at: datetime
    kind: TickKind = TickKind.SCHEDULED
