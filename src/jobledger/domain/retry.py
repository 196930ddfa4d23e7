"""When a failed attempt runs again: pure arithmetic, no I/O.

Sidekiq, Oban and Laravel agree on the shape: a limit of attempts, a growing wait, some randomness so that
jobs that failed together do not come back together.
"""

import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from jobledger.domain.endings import RetryIn
from jobledger.domain.options import Duration
from jobledger.errors import ConfigurationError

Backoff = Literal["exponential", "linear", "fixed"]

JITTER = 0.25
"""With jitter a wait is up to this share longer, never shorter: a promised pause is a pause."""

LONGEST_CAP_SECONDS = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Retry:
    """The retry policy of a job class.

    Args:
        max_attempts: attempts that may end in an error or a timeout, the first one included; 1 means no retry.
        backoff: how the n-th wait grows: `exponential` is base ** n, `linear` is base * n, `fixed` is base.
        base: base of the backoff, in seconds (for exponential: the number that is raised).
        cap: the longest wait, in seconds, before jitter; at most a year.
        jitter: spread each wait by up to 25 % upwards.
        on: only these exceptions are retried; a timeout is a `TimeoutError`.
        give_up_on: these exceptions are never retried; wins over `on`.

    Raises:
        ConfigurationError: a value is out of range.
    """

    max_attempts: int = 1
    backoff: Backoff = "exponential"
    base: float = 2
    cap: float = 600
    jitter: bool = True
    on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if not _is_number(self.max_attempts, int) or not 1 <= self.max_attempts <= 1000:
            raise ConfigurationError(f"Retry(max_attempts={self.max_attempts!r}): say 1 to 1000 attempts.")
        if self.backoff not in ("exponential", "linear", "fixed"):
            raise ConfigurationError(f"Retry(backoff={self.backoff!r}): say 'exponential', 'linear' or 'fixed'.")
        is_said = _is_number(self.base, int | float) and _is_number(self.cap, int | float)
        if not is_said or not 0 < self.base < math.inf or not 0 < self.cap <= LONGEST_CAP_SECONDS:
            raise ConfigurationError(
                f"Retry(base={self.base!r}, cap={self.cap!r}): both must be numbers above 0 seconds, and cap at most a "
                "year."
            )
        if not isinstance(self.jitter, bool):
            raise ConfigurationError(f"Retry(jitter={self.jitter!r}): say True or False.")
        for name in ("on", "give_up_on"):
            spoken = getattr(self, name)
            kinds = (spoken,) if isinstance(spoken, type) else spoken
            is_many = isinstance(kinds, Collection)
            if not is_many or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
                raise ConfigurationError(f"Retry({name}={spoken!r}): say exception classes.")
            object.__setattr__(self, name, tuple(kinds))

    @staticmethod
    def in_(delay: Duration, why: str = "") -> RetryIn:
        """An error to be raised that chooses its own wait: `raise Retry.in_("1m") from error`.

        Args:
            delay: seconds, timedelta, or a text such as "1m"; taken as it is, without jitter.
            why: for people.

        Raises:
            OptionError: the delay is no length of time.
        """
        return RetryIn(delay, why)

    def allows(self, error: BaseException) -> bool:
        """Whether this kind of error may be retried at all; one that asks for a retry may."""
        kind = type(error)  # not the instance, whose `__class__` may be a user's code
        return issubclass(kind, RetryIn) or (issubclass(kind, self.on) and not issubclass(kind, self.give_up_on))

    def wait_seconds(self, retry_number: int) -> float:
        """The wait before the n-th retry (1 is the first), in seconds, before jitter."""
        if self.backoff == "fixed":
            wait = self.base
        elif self.backoff == "linear":
            wait = self.base * retry_number
        else:
            try:
                wait = float(self.base) ** retry_number
            except OverflowError:
                wait = self.cap
        return min(wait, self.cap)

    def jittered(self, wait_seconds: float) -> float:
        """The same wait with this policy's randomness, in seconds."""
        if not self.jitter:
            return wait_seconds
        return wait_seconds * (1 + random.random() * JITTER)  # noqa: S311 - spreads load, guards nothing


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
