"""Jobs of which only so many may run, or start."""

import time

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


class Import(BaseJob):
    """Two at a time of each source."""

    limit = Limit(2, key="import:{source}")

    def _perform(self, source: str) -> str:
        return source


class Paced(BaseJob):
    """Three starts a minute of each source."""

    rate = Rate(3, per="1m", key="api:{source}")

    def _perform(self, source: str) -> str:
        return source


class Pair(BaseJob):
    """One at a time, and two starts a minute."""

    limit = Limit(1, key="pair")
    rate = Rate(2, per="1m", key="pair")

    def _perform(self) -> None: ...
