"""What a job may be in the middle of when it is to end."""

import contextlib
import time

import sqlalchemy as sa

from jobledger import BaseJob

WAYS = ("sleep", "sql", "swallow", "turn")


def begin(job: BaseJob, how: str) -> None:
    """Write a row of effects, and say that the work has begun."""
    job.session.execute(
        sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, :note)"),
        {"id": job.job_id, "attempt": job.attempt, "note": how},
    )
    job.progress(note="begun")


def go_on(job: BaseJob, how: str, seconds: float) -> None:
    """Do something for long, in one of the `WAYS`."""
    match how:
        case "sleep":
            time.sleep(seconds)
        case "sql":
            job.session.execute(sa.text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
        case "swallow":
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                with contextlib.suppress(BaseException):
                    time.sleep(0.2)
        case "turn":
            try:
                time.sleep(seconds)
            except BaseException as error:
                raise ValueError("not what it was") from error
