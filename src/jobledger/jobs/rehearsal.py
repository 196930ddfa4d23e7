"""The job that a worker rehearses with before it takes its first one; it does nothing."""

from jobledger.job import BaseJob


class Rehearsal(BaseJob):
    """Never dispatched: see `jobledger.worker.rehearsal`."""

    job_type = "jobledger.rehearsal"

    def _perform(self, number: int) -> None:
        pass
