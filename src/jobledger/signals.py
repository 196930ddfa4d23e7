"""What a job raises to say what shall become of it. Ordinary exceptions: `except Exception` takes them, too."""

from jobledger.options import Duration, seconds


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
