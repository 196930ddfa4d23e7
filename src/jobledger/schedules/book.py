"""Definitions of schedules in code: `@schedule(…)`, and APScheduler's `@scheduler.scheduled_job(…)`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final, TypeVar

from jobledger.domain.options import Duration, seconds
from jobledger.domain.tick import Tick
from jobledger.errors import OptionError, ScheduleError
from jobledger.schedules import parse
from jobledger.schedules import target as targets
from jobledger.schedules.definition import CatchUp, Definition, Overlap, When

Target = TypeVar("Target", bound=Callable[..., Any])

LONGEST_NAME: Final = 200
LONGEST_JITTER_SECONDS: Final = 86400.0
SHORTEST_LATENESS_SECONDS: Final = 1.0
"""Smallest `max_lateness`. Schedulers look for due fire times once a second, so a smaller one would never fire."""

_WITHOUT_MEANING: Final = ("name", "replace_existing", "max_instances", "jobstore", "executor")
"""APScheduler's arguments that have no effect here: a definition replaces its former one, and ticks fire singly."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule in this process: its definition and its target.

    Attributes:
        definition: its data, in this version of the code; in UTC if it names no time zone.
        target: a function that dispatches jobs, or a job class.
        read: makes its `When` for a time zone, if it names none; else None.
        args: positional arguments of the function.
        kwargs: keyword arguments of the function.
    """

    definition: Definition
    target: Any
    read: Callable[[str], When] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the schedule in the ledger."""
        return self.definition.name

    @property
    def expression(self) -> str:
        """The expression for its fire times, as it was written."""
        return self.definition.when.text

    def in_zone(self, timezone: str) -> "Schedule":
        """A copy in this time zone, if the definition names none."""
        if self.read is None:
            return self
        return replace(self, definition=replace(self.definition, when=self.read(timezone)), read=None)

    def call(self, definition: Definition, tick: Tick) -> None:
        """Call the target for a tick.

        Args:
            definition: the ledger's definition.
            tick: passed to a function with a parameter `tick`.

        Raises:
            Exception: any exception of the function.
            ScheduleError: the function did not run, because it is `async`.
        """
        if definition.target != self.definition.target:
            definition = self.definition  # the ledger's belongs to another target that had this name
        if targets.is_job_class(self.target):
            self.target.set(**definition.options).dispatch_many([definition.payload or {}])
        else:
            targets.call(self.target, tick, self.args, self.kwargs)


class ScheduleBook:
    """The schedules that the code of a process defines; the scheduler process reads them."""

    def __init__(self) -> None:
        self._schedules: dict[str, Schedule] = {}

    def __iter__(self) -> Iterator[Schedule]:
        return iter(list(self._schedules.values()))

    def schedule(
        self,
        cron: str | None = None,
        /,
        *,
        every: Duration | None = None,
        tz: str | None = None,
        name: str | None = None,
        catch_up: str = "latest",
        max_lateness: Duration | None = None,
        overlap: str = "allow",
        jitter: Duration = 0,
        payload: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Callable[[Target], Target]:
        """Return a decorator for a function that dispatches jobs, or for a job class; it leaves its argument unchanged.

        Args:
            cron: five fields (minute, hour, day of month, month, day of week), or six with seconds first.
            every: instead of cron: an interval, counted from the schedule's creation. A time here is a number of
                seconds, a timedelta, or a text such as "15m".
            tz: time zone of cron, such as "Europe/Prague"; default: JOBLEDGER_TIMEZONE.
            name: name in the ledger; default: the function's full name, or the job type.
            catch_up: policy for missed fire times: "skip", "latest" (the newest one is fired) or "all".
            max_lateness: no fire time is fired later than this time; None for no limit.
            overlap: policy while earlier jobs have not ended: "allow", "skip" or "queue" (fire when they have).
            jitter: each job is delayed by a random time up to this, at most a day; the fire time does not change.
            payload: payload of the job, for a job class.
            **options: options of the dispatch, for a job class, as for its `set`: queue, priority, timeout, and so on.

        Raises:
            ScheduleError: an argument is invalid, or the name is taken.
        """
        if (cron is None) == (every is None):
            raise ScheduleError('Say either a cron expression, @schedule("0 2 * * *"), or a distance, every="15m".')

        @cache  # called again in each pass
        def read(timezone: str) -> When:
            return parse.cron_expression(cron, timezone) if every is None else parse.every(every, timezone)

        when = read("UTC" if tz is None else parse.zone_name(tz))

        def define(target: Target) -> Target:
            called = name or targets.name_of(target)
            job_payload, job_options = targets.for_dispatch(called, target, payload, options)
            definition = Definition(
                name=called,
                when=when,
                target=targets.name_of(target),
                catch_up=_word(CatchUp, "catch_up", catch_up),
                max_lateness_seconds=None if max_lateness is None else _length(max_lateness, "max_lateness"),
                overlap=_word(Overlap, "overlap", overlap),
                jitter_seconds=_length(jitter, "jitter"),
                payload=job_payload,
                options=job_options,
            )
            self._add(Schedule(definition, target, read if tz is None else None))
            return target

        return define

    def scheduled_job(self, trigger: str, /, **options: Any) -> Callable[[Target], Target]:
        """Decorate a function that dispatches jobs, as with APScheduler's method of this name.

        Args:
            trigger: "cron", "interval" or "date".
            **options: the trigger's arguments (`hour=2`, `day_of_week="mon-fri"`, `minutes=5`, `timezone=…`); and
                `id` (the schedule's name; the function's full name unless said), `args`, `kwargs`,
                `misfire_grace_time` in seconds (as `max_lateness`), `coalesce` (False is `catch_up="all"`), `jitter`.

        Raises:
            ScheduleError: the trigger is not understood, or the name is taken.
        """

        def define(function: Target) -> Target:
            self.add_job(function, trigger, **options)
            return function

        return define

    def add_job(self, function: Callable[..., Any], trigger: str, /, **options: Any) -> Schedule:
        """Define a schedule without decorating; the arguments are those of `scheduled_job`.

        Raises:
            ScheduleError: the trigger is not understood, or the name is taken.
        """
        name = str(options.pop("id", None) or targets.name_of(function))
        args, kwargs = options.pop("args", None) or (), options.pop("kwargs", None) or {}
        if isinstance(args, str) or not isinstance(kwargs, Mapping):
            raise ScheduleError(f"Schedule {name!r}: args is a list or tuple, kwargs a dictionary.")
        if targets.is_job_class(function):
            raise ScheduleError(f"Schedule {name!r}: scheduled_job takes a function; for a job class say @schedule(…).")
        if "next_run_time" in options:
            raise ScheduleError(f"Schedule {name!r}: next_run_time means nothing here; say start_date, or pause it.")
        targets.refuse_unfit(name, function, tuple(args), kwargs)
        lateness, jitter = options.pop("misfire_grace_time", None), options.pop("jitter", None) or 0
        catch_up = CatchUp.LATEST if options.pop("coalesce", True) else CatchUp.ALL
        arguments = {key: value for key, value in options.items() if key not in _WITHOUT_MEANING}

        @cache  # called again in each pass
        def read(timezone: str) -> When:
            return parse.apscheduler_trigger(trigger, arguments, timezone)

        try:
            when = read("UTC")
        except ScheduleError as error:
            raise ScheduleError(f"Schedule {name!r}: {error}") from None
        definition = Definition(
            name=name,
            when=when,
            target=targets.name_of(function),
            catch_up=catch_up,
            max_lateness_seconds=None if lateness is None else _length(lateness, "misfire_grace_time"),
            jitter_seconds=_length(jitter, "jitter"),
        )
        is_zoneless = arguments.get("timezone") is None
        return self._add(Schedule(definition, function, read if is_zoneless else None, tuple(args), dict(kwargs)))

    def _add(self, schedule: Schedule) -> Schedule:
        name = schedule.name
        if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
            raise ScheduleError(f"Schedule {name!r:.300}: a name has 1 to {LONGEST_NAME} printable characters.")
        if schedule.definition.jitter_seconds > LONGEST_JITTER_SECONDS:
            raise ScheduleError(f"Schedule {schedule.name!r}: jitter is at most a day.")
        lateness = schedule.definition.max_lateness_seconds
        if lateness is not None and lateness < SHORTEST_LATENESS_SECONDS:
            raise ScheduleError(
                f"Schedule {schedule.name!r}: max_lateness (misfire_grace_time) of {lateness:g} seconds is too short; "
                "say at least a second, better a minute."
            )
        known = self._schedules.get(schedule.name)
        if known is not None and not _is_again(known, schedule):
            raise ScheduleError(
                f"Two schedules are called {schedule.name!r}: of {known.definition.target} and of "
                f"{schedule.definition.target}. Give one of them another name (name=, or id= in scheduled_job)."
            )
        self._schedules[schedule.name] = schedule
        return schedule


def _is_again(known: Schedule, new: Schedule) -> bool:
    """Whether both are the same definition, written twice or in a module that was loaded twice."""
    code, other = targets.code_of(known.target), targets.code_of(new.target)
    if code is other:
        same = known.target == new.target and (known.read is None) == (new.read is None)
        return same and (known.definition, known.args, known.kwargs) == (new.definition, new.args, new.kwargs)
    lines = [getattr(one, "co_firstlineno", None) for one in (code, other)]
    return known.definition.target == new.definition.target and lines[0] == lines[1]


def _word(words: type[CatchUp] | type[Overlap], what: str, value: object) -> Any:
    try:
        return words(str(value))
    except ValueError:
        raise ScheduleError(f"{what}={value!r} is none of {', '.join(words)}.") from None


def _length(value: Duration, what: str) -> float:
    try:
        return seconds(value, what)
    except OptionError as error:
        raise ScheduleError(str(error)) from None


scheduler: Final = ScheduleBook()
"""The process's book: a schedule is in it from its definition on."""

schedule: Final = scheduler.schedule
"""`@schedule("0 2 * * mon-fri", tz="Europe/Prague")`, in the process's book."""
