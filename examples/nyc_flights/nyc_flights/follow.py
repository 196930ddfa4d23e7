"""Watching jobs from outside: one line for each move, read from the ledger."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Final

from jobledger import JobStatus
from nyc_flights.pipeline import Step

PAUSE_SECONDS: Final = 0.2
PATIENCE_SECONDS: Final = 20.0
GIVE_UP_SECONDS: Final = 300.0

ENDED: Final = (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED)


class Follower:
    """Prints what becomes of jobs. Only appends lines, so that a log reads as a terminal does."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._said: dict[str, str] = {}

    def until_ended(self, steps: Sequence[Step]) -> bool:
        """Print every move until all jobs have ended.

        Returns:
            Whether all have completed; False too if nothing has moved for five minutes.
        """
        moved, warned = time.monotonic(), False
        while True:
            if self._look(steps):
                moved, warned = time.monotonic(), False
            if all(step.job.status in ENDED for step in steps):
                return all(step.job.status is JobStatus.COMPLETED for step in steps)
            still = time.monotonic() - moved
            if still > GIVE_UP_SECONDS:
                print("Nothing moves: giving up. The jobs stay in the ledger.", file=sys.stderr)
                return False
            if still > PATIENCE_SECONDS and not warned:
                print("Nothing has moved for a while: are workers running for these queues?", file=sys.stderr)
                warned = True
            time.sleep(PAUSE_SECONDS)

    def _look(self, steps: Iterable[Step]) -> bool:
        """Read all jobs that have not ended; whether anything has changed."""
        changed = False
        for step in steps:
            if step.title in self._said and step.job.status in ENDED:
                continue
            state = describe(step)
            if self._said.get(step.title) != state:
                self._said[step.title] = state
                changed = True
                since = time.monotonic() - self._began
                print(f"{since:6.1f} s  {step.queue:<8}{step.title:<28}{state}".rstrip(), flush=True)
        return changed


def describe(step: Step) -> str:
    """The state of a job in a few words, read now."""
    job = step.job.refresh()
    if job.status is JobStatus.COMPLETED:
        rows = job.result.get("rows_read") if isinstance(job.result, dict) else None
        return "completed" if rows is None else f"completed  {rows:,} rows"
    if job.status is JobStatus.CANCELED:
        return f"canceled  {job.reason}"
    attempts = job.attempts
    last = attempts[-1] if attempts else None
    if job.status is JobStatus.STARTED and last is not None and last.progress_done is not None:
        return f"started  {last.progress_done:,} rows, {last.progress_note}"
    if last is not None and last.error_message:
        return f"{job.status.value}  {last.error_type}: {last.error_message}"
    return job.status.value
