"""Definitions of schedules: a function, and the moments at which it dispatches; APScheduler's triggers do the sums."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final, TypeVar

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from jobledger.errors import ScheduleError

Function = TypeVar("Function", bound=Callable[..., Any])

_TRIGGERS: Final[dict[str, type[BaseTrigger]]] = {
    "cron": CronTrigger,
    "interval": IntervalTrigger,
    "date": DateTrigger,
}
_STEP: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule, as it is defined in code.

    Attributes:
        name: what the database knows it by; unique.
        kind: cron, interval or date.
        arguments: of APScheduler's trigger.
        function: called at each fire time; it dispatches jobs.
        grace_seconds: how late a fire time may still be fired; None for the settings'.
        coalesce: of several fire times that are due at once, fire the newest only.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    grace_seconds: float | None = None
    coalesce: bool = True

    @property
    def expression(self) -> str:
        """The trigger, as people read it."""
        return f"{self.kind} " + " ".join(f"{name}={value}" for name, value in sorted(self.arguments.items()))

    def trigger(self, zone: tzinfo, anchor: datetime) -> BaseTrigger:
        """The trigger, in this time zone unless the definition names one.

        Args:
            zone: the settings' time zone.
            anchor: when the schedule was created. Intervals count from there, not from a process's start, so that
                all processes mean the same fire times.
        """
        arguments: dict[str, Any] = {"timezone": zone, **self.arguments}
        if self.kind == "interval":
            arguments.setdefault("start_date", anchor)
        return _TRIGGERS[self.kind](**arguments)

    def fire_times(self, zone: tzinfo, anchor: datetime, since: datetime, until: datetime) -> Iterator[datetime]:
        """The fire times after `since`, up to and with `until`."""
        trigger = self.trigger(zone, anchor)
        moment = trigger.get_next_fire_time(None, since + _STEP)
        while moment is not None and moment <= until:
            if moment > since:
                yield moment
            if self.kind == "date":
                return
            moment = trigger.get_next_fire_time(None, moment + _STEP)


class ScheduleBook:
    """Where schedules are defined; the scheduler process reads it."""

    def __init__(self) -> None:
        self._schedules: dict[str, Schedule] = {}

    def __iter__(self) -> Iterator[Schedule]:
        return iter(list(self._schedules.values()))

    def scheduled_job(self, trigger: str, /, **options: Any) -> Callable[[Function], Function]:
        """Decorate a function that dispatches jobs, as with APScheduler's method of this name.

        Args:
            trigger: "cron", "interval" or "date".
            **options: the trigger's arguments (`hour=2`, `day_of_week="mon-fri"`, `minutes=5`, `timezone=…`); and
                `id` (the schedule's name; the function's full name unless said), `args`, `kwargs`,
                `misfire_grace_time` in seconds, `coalesce`.

        Raises:
            ScheduleError: the trigger is not understood, or the name is taken.
        """

        def define(function: Function) -> Function:
            self.add_job(function, trigger, **options)
            return function

        return define

    def add_job(self, function: Callable[..., Any], trigger: str, /, **options: Any) -> Schedule:
        """Define a schedule without decorating; the arguments are those of `scheduled_job`.

        Raises:
            ScheduleError: the trigger is not understood, or the name is taken.
        """
        name = str(options.pop("id", None) or f"{function.__module__}.{function.__qualname__}")
        options.pop("name", None)  # APScheduler's second name, for people; ours is the id
        schedule = Schedule(
            name=name,
            kind=trigger,
            function=function,
            args=tuple(options.pop("args", None) or ()),
            kwargs=dict(options.pop("kwargs", None) or {}),
            grace_seconds=options.pop("misfire_grace_time", None),
            coalesce=bool(options.pop("coalesce", True)),
            arguments=options,
        )
        _check(schedule)
        known = self._schedules.get(name)
        if known is not None and known.function.__code__ is not function.__code__:
            raise ScheduleError(f"Two schedules are called {name!r}. Give one of them another id=.")
        self._schedules[name] = schedule
        return schedule


def _check(schedule: Schedule) -> None:
    if schedule.kind not in _TRIGGERS:
        raise ScheduleError(f"Schedule {schedule.name!r}: trigger {schedule.kind!r} is none of cron, interval, date.")
    if schedule.arguments.get("jitter"):
        raise ScheduleError(
            f"Schedule {schedule.name!r}: jitter would give each scheduler process another fire time. Delay the job "
            "instead: dispatch_in(random.uniform(0, 60), …)."
        )
    if not 1 <= len(schedule.name) <= 200:
        raise ScheduleError(f"Schedule {schedule.name!r}: a name has 1 to 200 characters.")
    try:
        now = datetime.now().astimezone()
        schedule.trigger(now.tzinfo or timedelta, now)  # type: ignore[arg-type]
    except (TypeError, ValueError, LookupError) as error:
        raise ScheduleError(f"Schedule {schedule.name!r}: {error}") from error


scheduler: Final = ScheduleBook()
"""The process's book: a schedule is in it from its definition on."""
