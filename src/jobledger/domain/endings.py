"""What ends an attempt: exceptions that a job raises on purpose, and interrupts from outside.

The first are ordinary exceptions: `except Exception` takes them, too. Interrupts derive from BaseException, so that
`except Exception` in a job does not swallow them.
"""

from jobledger.domain.options import Duration, seconds


class Signal(Exception):
    """Raised in `_perform`, it ends the attempt; what was written through `self.session` is rolled back.

    Args:
        why: for people; kept with the attempt.
    """

    def __init__(self, why: str = "") -> None:
        super().__init__(str(why))


class Snooze(Signal):
    """Run this job again later. Nothing went wrong, so nothing is spent, however often.

    Args:
        delay: seconds, timedelta, or a text such as "30s".
        why: for people.

    Raises:
        OptionError: the delay is no length of time.
    """

    wait_seconds: float = 0.0

    def __init__(self, delay: Duration, why: str = "") -> None:
        super().__init__(why)
        self.wait_seconds = seconds(delay, "Snooze")


class RetryIn(Signal):
    """An error that says itself when the job is tried again; made by `Retry.in_`.

    It spends an attempt like any other error; the last one fails the job.
    """

    wait_seconds: float = 0.0

    def __init__(self, delay: Duration, why: str = "") -> None:
        super().__init__(why)
        self.wait_seconds = seconds(delay, "Retry.in_")


class Cancel(Signal):
    """Cancel this job; what waits for it does as its `on_parent_failure` says: by default it is canceled, too."""


class GiveUp(Signal):
    """Fail this job at once: no retry would help."""


class Interrupt(BaseException):
    """Ends a run from outside."""


class JobTimeout(Interrupt):
    """The attempt outlived its timeout."""


class FencedOut(Interrupt):
    """Another attempt of this job may be running: this one must not write anything."""


class HandedBack(Interrupt):
    """The worker stops, and the time that it had for the job is up: another worker runs it."""


class JobCanceled(Interrupt):
    """Somebody has canceled this job while it ran. It says who, and why."""
