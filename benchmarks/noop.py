"""The jobs that the benchmarks drain: a plain function for bare RQ, a job class for us; neither does anything."""

import time

from jobledger import BaseJob, Limit


class Noop(BaseJob):
    """Does nothing."""

    def _perform(self, number: int) -> None:
        pass


class LimitedNoop(Noop):
    """Does nothing, and many may at once."""

    limit = Limit(1000)


class Other(Noop):
    """Does nothing, in another queue."""

    queue = "etl"


class Handed(Other):
    """The same, one at a time: each gets the slot of the one before."""

    limit = Limit(1)


class Holder(BaseJob):
    """Has the slot that others wait for."""

    queue = "etl"
    limit = Limit(1, key="Waiting")

    def _perform(self) -> None:
        time.sleep(600)


class Waiting(BaseJob):
    """Waits for the slot."""

    limit = Limit(1)

    def _perform(self) -> None: ...
