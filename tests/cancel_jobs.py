"""Jobs that are in the middle of something when somebody cancels them."""

import contextlib
import os
import signal
import time
from pathlib import Path

from jobledger import BaseJob, JobCanceled, Retry, Snooze
from long_work import WAYS, begin, go_on


class Busy(BaseJob):
    """Writes a row, says that it has begun, and then does something for long."""

    retry = Retry(5, backoff="fixed", base=0.1, jitter=False)

    def _perform(self, how: str, release_file: str = "", seconds: float = 120.0) -> str:
        begin(self, how)
        match how:
            case _ if how in WAYS:
                go_on(self, how, seconds)
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
