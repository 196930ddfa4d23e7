"""Jobs whose first attempt is in the middle of something when its worker stops."""

import time
from pathlib import Path

from jobledger import BaseJob
from long_work import begin, go_on


class Interrupted(BaseJob):
    """Writes a row; then its first attempt does something long, and says when it has begun."""

    def _perform(self, how: str, seconds: float = 60.0) -> int:
        begin(self, how)
        if self.attempt > 1:
            return self.attempt
        go_on(self, how, seconds)
        return self.attempt


class LeavesOff(BaseJob):
    """Works until its worker stops, and keeps how far it came."""

    def _perform(self, begun_file: str) -> str:
        Path(begun_file).touch()
        until = time.monotonic() + 60
        while not self.stopping and time.monotonic() < until:
            time.sleep(0.05)
        return "left off" if self.stopping else "done"
