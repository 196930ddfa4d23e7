"""The jobs that the benchmarks drain: a plain function for bare RQ, a job class for us; neither does anything."""

from jobledger import BaseJob


class Noop(BaseJob):
    """Does nothing."""

    def _perform(self, number: int) -> None:
        pass
