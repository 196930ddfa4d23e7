"""The exceptions that end an attempt: signals that a job raises on purpose, and interrupts from outside.

Signals are ordinary exceptions: `except Exception` in a job catches them. Interrupts derive from BaseException, so
that `except Exception` does not swallow them.
"""

from jobledger.domain.options import Duration, seconds


class Signal(Exception):
    """Raised in `_perform`, it ends the attempt; writes through `self.session` are rolled back.

    Args:
        why: reason for people; stored with the attempt.
    """

    def __init__(self, why: str = "") -> None:
        super().__init__(str(why))


class Snooze(Signal):
    """Run this job again later. It is no error: it uses up no attempt, however often it is raised.

    Args:
        delay: seconds as a number, timedelta, or a text such as "30s".
        why: reason for people; stored with the attempt.

    Raises:
        OptionError: the delay is no length of time.
    """

    wait_seconds: float = 0.0

    def __init__(self, delay: Duration, why: str = "") -> None:
        super().__init__(why)
        self.wait_seconds = seconds(delay, "Snooze")


class RetryIn(Signal):
    """An error that sets the wait before the next attempt; made by `Retry.in_`.

    It counts as a failed attempt like any other error; the last attempt's fails the job.
    """

    wait_seconds: float = 0.0

    def __init__(self, delay: Duration, why: str = "") -> None:
        super().__init__(why)
        self.wait_seconds = seconds(delay, "Retry.in_")


class Cancel(Signal):
    """Cancel this job. Its children do as their `on_parent_failure` says: by default they are canceled, too."""


class GiveUp(Signal):
    """Fail this job at once, without a retry."""


class Interrupt(BaseException):
    """Ends an attempt from outside."""


class JobTimeout(Interrupt):
    """The attempt exceeded its timeout."""


class FencedOut(Interrupt):
    """Another attempt of this job may be running: this attempt must not write."""


class HandedBack(Interrupt):
    """The worker is stopping and the job did not end in the grace period: another worker runs it."""


class JobCanceled(Interrupt):
    """The job was canceled while it ran. The text names the requester and the reason."""
