"""A schedule's definition: data that code writes into the ledger and that every scheduler reads back from there.

What fires is decided by the definition in the row, so that schedulers with different versions of the code agree.
"""

import hashlib
import json
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Self
from zoneinfo import ZoneInfo

from jobledger.errors import ScheduleError
from jobledger.schedules.triggers import CronFields, CronText, Interval, Once, OnWall, Trigger, in_words

LONGEST_TEXT: Final = 200
SHORTEST_INTERVAL_SECONDS: Final = 1.0
LONGEST_INTERVAL_SECONDS: Final = 10 * 365 * 86400.0


class CatchUp(StrEnum):
    """What happens to fire times that were missed, because no scheduler ran or the function failed."""

    SKIP = "skip"
    LATEST = "latest"
    ALL = "all"


class Overlap(StrEnum):
    """What happens to a fire time while jobs of an earlier one have not ended."""

    ALLOW = "allow"
    SKIP = "skip"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class When:
    """Which fire times: exactly one of the first four is given.

    Attributes:
        cron: an expression of five fields, or six with seconds first.
        cron_fields: fields by the names of APScheduler's cron trigger.
        every_seconds: a distance.
        at: a single moment.
        start: the first moment at which it may fire; an interval is counted from it.
        end: the last moment at which it may fire.
        timezone: in which cron is read; a name of the IANA database.
    """

    timezone: str
    cron: str | None = None
    cron_fields: tuple[tuple[str, str], ...] = ()
    every_seconds: float | None = None
    at: datetime | None = None
    start: datetime | None = None
    end: datetime | None = None

    def trigger(self, anchor: datetime) -> Trigger:
        """What knows the fire times.

        Args:
            anchor: when the schedule was created: intervals count from there, not from a process's start, so that all
                processes mean the same fire times.

        Raises:
            ScheduleError: this process does not understand it, or does not know the time zone.
        """
        zone = self._zone()
        if self.cron is not None:
            return OnWall(CronText(self.cron), zone, self.start, self.end)
        if self.cron_fields:
            return OnWall(CronFields(self.cron_fields), zone, self.start, self.end)
        if self.every_seconds is not None:
            return Interval(self.every_seconds, (self.start or anchor).astimezone(UTC), self.start, self.end)
        if self.at is not None:
            return Once(self.at)
        raise ScheduleError("A schedule without cron, interval or moment never fires.")

    def _zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            raise ScheduleError(f"This process has no time zone {self.timezone!r}; is its tzdata too old?") from None

    @property
    def text(self) -> str:
        """The expression, in one line."""
        if self.cron is not None:
            return self.cron
        if self.cron_fields:
            return "cron " + " ".join(f"{name}={value}" for name, value in self.cron_fields)
        if self.every_seconds is not None:
            return f"every {in_words(self.every_seconds)}"
        return f"at {self.at.isoformat()}" if self.at is not None else ""


@dataclass(frozen=True, slots=True)
class Definition:
    """All that is data of a schedule.

    Attributes:
        name: what the ledger knows it by; unique.
        when: its fire times.
        catch_up: what happens to missed ones.
        max_lateness_seconds: no fire time is fired later than this; None for no limit.
        overlap: what happens while earlier jobs have not ended.
        jitter_seconds: each of its jobs waits a random time up to this.
        target: the function that is called, or the type of the job that is dispatched.
        payload: of the job; None for a function.
        options: of the dispatch.
    """

    name: str
    when: When
    target: str
    catch_up: CatchUp = CatchUp.LATEST
    max_lateness_seconds: float | None = None
    overlap: Overlap = Overlap.ALLOW
    jitter_seconds: float = 0.0
    payload: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For the row; the name stands in a column of its own."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("name", "when")}
        when = {one.name: getattr(self.when, one.name) for one in fields(self.when)}
        when["cron_fields"] = dict(self.when.cron_fields)
        for name in ("at", "start", "end"):
            when[name] = when[name].isoformat() if when[name] is not None else None
        return {**values, "when": {name: value for name, value in when.items() if value not in (None, {})}}

    @classmethod
    def from_json(cls, name: str, stored: dict[str, Any]) -> Self:
        """The definition in a row.

        Raises:
            ScheduleError: it was written by a version of jobledger that knows more than this one.
        """
        try:
            values = dict(stored)
            when = dict(values.pop("when"))
            for moment in ("at", "start", "end"):
                when[moment] = datetime.fromisoformat(when[moment]) if when.get(moment) else None
            when["cron_fields"] = tuple(sorted(when.get("cron_fields", {}).items()))
            values |= {"catch_up": CatchUp(values["catch_up"]), "overlap": Overlap(values["overlap"])}
            return cls(name=name, when=When(**when), **values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ScheduleError(
                f"The definition of schedule {name!r} in the ledger is not understood ({error}). Was it written by a "
                "newer jobledger? Then upgrade this process too."
            ) from error

    @property
    def fingerprint(self) -> str:
        """Equal for equal definitions."""
        text = json.dumps(self.as_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
