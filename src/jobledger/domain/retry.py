"""The wait before a retry: pure arithmetic, no I/O.

As in Sidekiq, Oban and Laravel: a maximum of attempts, a growing wait, and jitter, so that jobs that failed together
are not retried together.
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
"""Jitter makes a wait longer by up to this share, never shorter: the backoff is a minimum."""

LONGEST_CAP_SECONDS = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Retry:
    """The retry policy of a job class.

    Args:
        max_attempts: attempts that may end in an error or a timeout, 1 to 1000, the first included; 1 means no retry.
        backoff: the wait before the n-th retry: `exponential` is base ** n, `linear` is base * n, `fixed` is base.
        base: base of the backoff, in seconds (for exponential: the base of the power).
        cap: the longest wait, in seconds, before jitter; at most a year.
        jitter: lengthen each wait by a random share of up to 25 %.
        on: exception classes that are retried; a timeout is a `TimeoutError`.
        give_up_on: exception classes that are never retried; takes precedence over `on`.

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
        """An error to raise in `_perform` that sets its own wait: `raise Retry.in_("1m") from error`.

        Args:
            delay: seconds as a number, timedelta, or a text such as "1m"; used without jitter.
            why: reason for people; stored with the attempt.

        Returns:
            The exception; the caller raises it.

        Raises:
            OptionError: the delay is no length of time.
        """
        return RetryIn(delay, why)

    def allows(self, error: BaseException) -> bool:
        """Whether this class of error may be retried; `RetryIn` always may."""
        kind = type(error)  # not the instance, whose `__class__` may be a user's code
        return issubclass(kind, RetryIn) or (issubclass(kind, self.on) and not issubclass(kind, self.give_up_on))

    def wait_seconds(self, retry_number: int) -> float:
        """The wait before the n-th retry (the first is 1), in seconds, without jitter."""
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
        """The wait with this policy's jitter added, in seconds."""
        if not self.jitter:
            return wait_seconds
        return wait_seconds * (1 + random.random() * JITTER)  # noqa: S311 - spreads load, guards nothing


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
