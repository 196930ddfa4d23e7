"""Jobs of which only so many may run, or start."""

import contextlib
import fcntl
import time
from pathlib import Path

import sqlalchemy as sa

from jobledger import BaseJob, Limit, Rate


class Guarded(BaseJob):
    """One at a time."""

    limit = Limit(1)

    def _perform(self, n: int = 0, seconds: float = 0.0) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(0.05)
        return n


class Sourced(BaseJob):
    """Two at a time of each source."""

    limit = Limit(2, key="import:{source}")

    def _perform(self, source: str) -> str:
        return source


class Metered(BaseJob):
    """Three starts a minute of each source."""

    rate = Rate(3, per="1m", key="api:{source}")

    def _perform(self, source: str) -> str:
        return source


class Pair(BaseJob):
    """One at a time, and two starts a minute."""

    limit = Limit(1, key="pair")
    rate = Rate(2, per="1m", key="pair")

    def _perform(self) -> None: ...


class Witnessed(BaseJob):
    """Two at a time of each group, and the kernel is the witness: a process that dies lets go of its lock."""

    limit = Limit(2, key="witnessed:{group}")

    def _perform(self, group: str, directory: str, seconds: float) -> int:
        with contextlib.ExitStack() as stack:
            for place in range(2):
                file = stack.enter_context(Path(directory, f"{group}-{place}").open("w"))
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
            else:
                Path(directory, f"over-{group}-{self.job_id}").touch()
            self.session.execute(
                sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, :note)"),
                {"id": self.job_id, "attempt": self.attempt, "note": str(place)},
            )
            time.sleep(seconds)
        return place
