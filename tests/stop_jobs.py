"""Jobs whose first attempt is in the middle of something when its worker stops."""

import contextlib
import time
from pathlib import Path

import sqlalchemy as sa

from jobledger import BaseJob


class Interrupted(BaseJob):
    """Writes a row; then its first attempt does something long, and says when it has begun."""

    def _perform(self, how: str, seconds: float = 60.0) -> int:
        self.session.execute(
            sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, :note)"),
            {"id": self.job_id, "attempt": self.attempt, "note": how},
        )
        self.progress(note="begun")
        if self.attempt > 1:
            return self.attempt
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
        return self.attempt


class LeavesOff(BaseJob):
    """Works until its worker stops, and keeps how far it came."""

    def _perform(self, begun_file: str) -> str:
        Path(begun_file).touch()
        until = time.monotonic() + 60
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.05)
        return "left off" if self.stopping else "done"
