"""Jobs and a schedule that the previous version and this one run side by side.

Each effect says which version dispatched its job and which ran it.
"""

import time
from pathlib import Path

import sqlalchemy as sa

from jobledger import BaseJob, Retry, __version__
from jobledger.schedules import scheduler

_NOTE = sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, :note)")


class Noted(BaseJob):
    """Writes one row; the table has no unique constraint, so that doubles are seen."""

    def _perform(self, dispatched_by: str) -> None:
        note(self, dispatched_by)


class Retried(BaseJob):
    """The same, at its second attempt; what the first one wrote must not be there."""

    retry = Retry(3, backoff="fixed", base=0.2, jitter=False)

    def _perform(self, dispatched_by: str) -> None:
        note(self, dispatched_by)
        if self.attempt == 1:
            raise RuntimeError("as asked")


class Long(BaseJob):
    """The same, and holds its transaction, in which it has dispatched a job, open until a file is there."""

    def _perform(self, dispatched_by: str, release_file: str) -> None:
        note(self, dispatched_by)
        Noted.dispatch(dispatched_by=__version__, session=self.session)
        while not Path(release_file).exists():
            time.sleep(0.05)


def note(job: BaseJob, dispatched_by: str) -> None:
    job.session.execute(
        _NOTE, {"id": job.job_id, "attempt": job.attempt, "note": f"{dispatched_by} dispatched, {__version__} ran"}
    )


@scheduler.scheduled_job("interval", seconds=1, id="every second", coalesce=False)
def every_second() -> None:
    Noted.dispatch(dispatched_by=__version__)
