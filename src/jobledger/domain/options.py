"""The options of a dispatch besides its payload, checked before anything is written."""

import math
import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Self
from uuid import UUID

from jobledger.domain.status import OnParentFailure
from jobledger.errors import OptionError

Duration = float | int | timedelta | str
"""A length of time: seconds as a number, a timedelta, or a text such as "30s", "5m", "1h30m", "2d"."""

DISPATCH_OPTIONS: Final = (
    "queue",
    "session",
    "after",
    "timeout",
    "max_attempts",
    "priority",
    "expires_in",
    "idempotency_key",
    "idempotency_scope",
    "on_parent_failure",
)
"""The options that `dispatch(**payload, …)` takes beside the payload."""

SPOKEN_OPTIONS: Final = ("queue", "priority", "expires_in", "timeout", "max_attempts", "title", "owner")
"""The options that a schedule takes."""

SET_OPTIONS: Final = (
    *SPOKEN_OPTIONS,
    "delay",
    "after",
    "on_parent_failure",
    "idempotency_key",
    "idempotency_scope",
)
"""The options that `set(…)` takes."""

RESERVED_NAMES: Final = frozenset({*DISPATCH_OPTIONS, "unique", "owner", "title", "tags"})
"""Names that no payload parameter may have: `dispatch(queue="low")` must have one meaning, also in later versions."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION_PART: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d|w)")
_QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
LONGEST_SECONDS: Final = 100 * 365 * 86400.0
LONGEST_TEXT: Final = 100
LONGEST_KEY: Final = 255

DEFAULT_QUEUE: Final = "default"
HIGHEST_PRIORITY: Final = 1
DEFAULT_PRIORITY: Final = 5
LOWEST_PRIORITY: Final = 10


def seconds(value: Duration, what: str = "duration") -> float:
    """Convert a length of time to seconds.

    Args:
        value: a number of seconds, a timedelta, or a text such as "30s", "5m" or "1h30m".
        what: name of the value in the error.

    Raises:
        OptionError: not a length of time, negative, or over 100 years.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, str):
        text = "".join(value.split())
        if not text or len(text) > LONGEST_TEXT or _DURATION_PART.sub("", text):
            raise OptionError(f'{what}={value!r} is no length of time; say seconds or "30s", "5m", "1h30m", "2d".')
        result = sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        result = float(value) if abs(value) <= LONGEST_SECONDS else math.inf  # an int may be too large for a float
    else:
        raise OptionError(f"{what}={value!r} is no length of time; say seconds, a timedelta or a text.")
    if not math.isfinite(result) or not 0 <= result <= LONGEST_SECONDS:
        raise OptionError(f"{what}={value!r} must lie between 0 seconds and 100 years.")
    return result


def epoch(value: object, what: str) -> float:
    """Convert a moment to seconds since 1970 UTC.

    Raises:
        OptionError: it is no datetime, or has no time zone.
    """
    if not isinstance(value, datetime):
        raise OptionError(f"{what}={value!r:.60} is no moment: say a datetime with its time zone.")
    if value.utcoffset() is None:
        raise OptionError(f"{what}={value}: say the time zone, for example datetime(…, tzinfo=UTC).")
    try:
        return value.timestamp()
    except (OverflowError, ValueError):  # in the first and last hours of the calendar
        raise OptionError(f"{what}={value}: this moment lies beyond the calendar.") from None


def queue_name(value: object) -> str:
    """Check the name of a queue.

    Raises:
        OptionError: not a text of 1 to 100 letters, digits, `_`, `.` or `-`.
    """
    if not isinstance(value, str) or not _QUEUE_NAME.fullmatch(value):
        raise OptionError(f"queue={value!r}: a queue's name is 1 to 100 letters, digits, '_', '.' or '-'.")
    return value


def priority_number(value: object) -> int:
    """Check a priority and clamp it to its range: 1 is the highest, 10 the lowest.

    Raises:
        OptionError: not a whole number.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionError(f"priority={value!r}: say a whole number from 1, the highest, to 10.")
    return min(max(value, HIGHEST_PRIORITY), LOWEST_PRIORITY)


def queue_of_priority(priority: int) -> str:
    """The queue for a priority, for jobs that name no queue."""
    if priority <= 3:
        return "high"
    return DEFAULT_QUEUE if priority <= 7 else "low"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one dispatch. `None` means: the job class's value.

    Attributes:
        queue: name of the queue; None to choose it by the priority.
        priority: 1, the highest, to 10.
        expires_in_seconds: the job must start within this time after it may first start.
        timeout_seconds: longest duration of one attempt.
        max_attempts: attempts in all, the first one included.
        title: the job's description for people.
        owner: on whose behalf the job runs.
        delay_seconds: earliest start, in seconds from now.
        available_at_epoch: earliest start, in seconds since 1970 UTC.
        after: ids of the jobs that must complete first.
        on_parent_failure: the fate of the job when one of those fails or is canceled.
        idempotency_key: a second dispatch with the same key returns the job of the first.
        idempotency_scope: namespace of the key, such as a client's name.
    """

    queue: str | None = None
    priority: int | None = None
    expires_in_seconds: float | None = None
    timeout_seconds: float | None = None
    max_attempts: int | None = None
    title: str | None = None
    owner: str | None = None
    delay_seconds: float = 0.0
    available_at_epoch: float | None = None
    after: tuple[UUID, ...] = ()
    on_parent_failure: OnParentFailure = OnParentFailure.CANCEL
    idempotency_key: str | None = None
    idempotency_scope: str = "python"

    @property
    def chosen_queue(self) -> str:
        """The queue in which the job waits."""
        return self.queue or queue_of_priority(self.priority or DEFAULT_PRIORITY)

    def but(self, **spoken: Any) -> Self:
        """A copy with the given options (those that are not None) checked and replaced.

        Raises:
            OptionError: a value does not make sense.
        """
        changes: dict[str, Any] = {}
        for name, value in spoken.items():
            if value is None:
                continue
            field, checked = _check(name, value)
            changes[field] = checked
        return replace(self, **changes) if changes else self


def _check(name: str, value: Any) -> tuple[str, Any]:
    match name:
        case "queue":
            return "queue", queue_name(value)
        case "priority":
            return "priority", priority_number(value)
        case "timeout":
            timeout = seconds(value, "timeout")
            if timeout < 0.1:
                raise OptionError(f"timeout={value!r}: an attempt needs at least 0.1 seconds.")
            return "timeout_seconds", timeout
        case "expires_in":
            expires_in = seconds(value, "expires_in")
            if expires_in < 0.1:
                raise OptionError(f"expires_in={value!r}: a job needs at least 0.1 seconds to be started.")
            return "expires_in_seconds", expires_in
        case "max_attempts":
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1000:
                raise OptionError(f"max_attempts={value!r}: say a whole number from 1 to 1000.")
            return "max_attempts", value
        case "title" | "owner":
            if not isinstance(value, str) or "\x00" in value or not _is_unicode(value) or len(value) > 500:
                raise OptionError(f"{name}={value!r}: say a text of at most 500 characters.")
            return name, value
        case "delay":
            return "delay_seconds", seconds(value, "delay")
        case "idempotency_key" | "idempotency_scope":
            if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_KEY or not value.isprintable():
                raise OptionError(f"{name}={value!r:.60}: say a text of 1 to {LONGEST_KEY} printable characters.")
            return name, value
        case "after":
            return "after", _ids(value)
        case "on_parent_failure":
            try:
                return name, OnParentFailure(value)
            except ValueError:
                raise OptionError(f'on_parent_failure={value!r}: say "cancel", "run" or "hold".') from None
        case _:
            raise OptionError(f"There is no option {name!r}; there are {', '.join(SET_OPTIONS)}.")


def _ids(value: Any) -> tuple[UUID, ...]:
    many = value if isinstance(value, list | tuple | set | frozenset) else [value]
    ids = []
    for one in many:
        candidate = getattr(one, "id", one)
        try:
            ids.append(candidate if isinstance(candidate, UUID) else UUID(str(candidate)))
        except ValueError:
            raise OptionError(f"after={one!r} is neither a job handle nor a job id.") from None
    return tuple(dict.fromkeys(ids))


def _is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogates, which no encoding can write."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def filled_in(title: str, payload: dict[str, Any]) -> str:
    """A title with payload fields filled in; a title that does not fit the payload stays unchanged."""
    try:
        return title.format(**payload)[:500]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        return title
