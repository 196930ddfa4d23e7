"""Jobs that are in the middle of something when somebody cancels them."""

import contextlib
import os
import signal
import time
from pathlib import Path

import sqlalchemy as sa

from jobledger import BaseJob, JobCanceled, Retry, Snooze


class Busy(BaseJob):
    """Writes a row, says that it has begun, and then does something for long."""

    retry = Retry(5, backoff="fixed", base=0.1, jitter=False)

    def _perform(self, how: str, release_file: str = "", seconds: float = 120.0) -> str:
        self.session.execute(
            sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, :note)"),
            {"id": self.job_id, "attempt": self.attempt, "note": how},
        )
        self.progress(note="begun")
        match how:
            case "sleep":
                time.sleep(seconds)
            case "sql":
                self.session.execute(sa.text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})
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
            case "c":
                time.sleep(3)  # for its beginning to be written: from here on no other thread runs
                sum(range(10**12))
            case "release":
                while not Path(release_file).exists():
                    with contextlib.suppress(JobCanceled):
                        time.sleep(0.02)
            case _:
                self._leave_off(how, release_file)
        return how

    def _leave_off(self, how: str, release_file: str) -> None:
        while not Path(release_file).exists():
            time.sleep(0.02)
            if how == "check":
                self.check()
        match how:
            case "raise":
                raise RuntimeError("on its own account")
            case "snooze":
                raise Snooze("50ms")
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
