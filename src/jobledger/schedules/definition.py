"""A schedule's definition: data that code writes into the ledger and that every scheduler reads from there.

The definition in the row decides what fires, so that schedulers with different versions of the code agree.
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
    """Policy for fire times that were missed because no scheduler ran or the function failed."""

    SKIP = "skip"
    LATEST = "latest"
    ALL = "all"


class Overlap(StrEnum):
    """Policy for a fire time while jobs of an earlier fire time have not ended."""

    ALLOW = "allow"
    SKIP = "skip"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class When:
    """The fire times of a schedule: exactly one of the first four attributes is set.

    Attributes:
        cron: an expression of five fields, or six with seconds first.
        cron_fields: fields by the names of APScheduler's cron trigger.
        every_seconds: an interval.
        at: a single moment.
        start: earliest fire time; an interval is counted from it.
        end: latest fire time.
        timezone: time zone of cron; a name of the IANA database.
    """

    timezone: str
    cron: str | None = None
    cron_fields: tuple[tuple[str, str], ...] = ()
    every_seconds: float | None = None
    at: datetime | None = None
    start: datetime | None = None
    end: datetime | None = None

    def trigger(self, anchor: datetime) -> Trigger:
        """The trigger, which computes the fire times.

        Args:
            anchor: creation time of the schedule. Intervals count from it, not from a process's start, so that all
                processes compute the same fire times.

        Raises:
            ScheduleError: this process does not understand the definition, or does not know the time zone.
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
    """The data of a schedule.

    Attributes:
        name: its name in the ledger; unique.
        when: its fire times.
        catch_up: policy for missed fire times.
        max_lateness_seconds: no fire time is fired later than this; None for no limit.
        overlap: policy while earlier jobs have not ended.
        jitter_seconds: each of its jobs is delayed by a random time up to this.
        target: name of the function, or type of the job.
        payload: payload of the job; None for a function.
        options: options of the dispatch.
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
        """The definition as stored in the row; the name has its own column."""
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
            ScheduleError: a newer version of jobledger wrote it, and this version does not understand it.
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
