"""`python -m jobledger scheduler`: APScheduler wakes the chores; rows decide what they do.

Any number of these processes may run: every chore is made of guarded statements.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import groupby
from types import FrameType
from typing import Final

from apscheduler.schedulers.background import BackgroundScheduler

from jobledger.connections import Connections
from jobledger.maintenance.prune import prune
from jobledger.maintenance.reaper import reap
from jobledger.maintenance.reconcile import reconcile
from jobledger.maintenance.relay import relay_due, relay_unpushed
from jobledger.observe.log import get_logger
from jobledger.schedules import ticks
from jobledger.schedules.schedule import ScheduleBook
from jobledger.schedules.ticks import Due

log: Final = get_logger(__name__)

TICK_LOOK_SECONDS: Final = 1.0
PRUNE_SECONDS: Final = 3600.0
LONGEST_BACKOFF_SECONDS: Final = 30.0
FIRING_THREADS: Final = 10


class Chore:
    """Something done again and again that must outlive every error: it logs, counts and backs off.

    Attributes:
        failures: errors in a row.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0
        self._not_before = 0.0

    def do(self, action: Callable[[], object]) -> None:
        """Do it, unless it failed a moment ago."""
        if time.monotonic() < self._not_before:
            return
        try:
            done = action()
        except Exception as error:  # this loop must live, whatever a server or a user's function does
            self.failures += 1
            wait = min(2.0 ** min(self.failures - 1, 10), LONGEST_BACKOFF_SECONDS)
            self._not_before = time.monotonic() + wait
            log.error("Chore failed", chore=self.name, failures=self.failures, wait_seconds=wait, exc_info=error)
            return
        if self.failures:
            log.info("Chore works again", chore=self.name, after_failures=self.failures)
        self.failures = 0
        if done:
            log.info("Chore done", chore=self.name, count=done)


class SchedulerProcess:
    """The clock of one process.

    Args:
        connections: the servers.
        book: the schedules to fire.
    """

    def __init__(self, connections: Connections, book: ScheduleBook) -> None:
        self._connections = connections
        self._book = book
        self._clock = BackgroundScheduler(
            timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )
        self._firing = ThreadPoolExecutor(FIRING_THREADS, thread_name_prefix="jobledger-tick")
        self._firings: dict[str, Chore] = {}
        self._busy: set[str] = set()
        self._defined = False

    def start(self) -> None:
        """Begin, in background threads."""
        settings = self._connections.settings
        chores: list[tuple[str, Callable[[], object], float]] = [
            ("relay due", lambda: relay_due(self._connections), settings.relay_seconds),
            ("relay unpushed", lambda: relay_unpushed(self._connections), settings.relay_seconds),
            ("reap", lambda: reap(self._connections), settings.sweep_seconds),
            ("reconcile", lambda: reconcile(self._connections), settings.sweep_seconds),
            ("prune", lambda: prune(self._connections), PRUNE_SECONDS),
            ("tick", self._tick, TICK_LOOK_SECONDS),
        ]
        for name, action, pause in chores:
            self._clock.add_job(
                Chore(name).do,
                "interval",
                args=[action],
                id=name,
                seconds=pause,
                next_run_time=datetime.now(UTC),
            )
        self._clock.start()
        log.info("Scheduler started", pid=os.getpid(), schedules=len(list(self._book)))

    def stop(self) -> None:
        """End after what is being done is done."""
        self._clock.shutdown(wait=True)
        self._firing.shutdown(wait=True, cancel_futures=True)
        log.info("Scheduler stopped", pid=os.getpid())

    def run_until_signal(self) -> None:
        """Start, wait for SIGTERM or SIGINT, stop."""
        asked = threading.Event()

        def ask(_signal: int, _frame: FrameType | None) -> None:
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)
        self.start()
        asked.wait()
        self.stop()

    def _tick(self) -> None:
        """Fire what is due, each schedule in a thread, so that a slow function holds up none but itself."""
        if not self._defined:
            ticks.write_definitions(self._connections, self._book)
            self._defined = True
        due = ticks.due(self._connections, (s for s in self._book if s.name not in self._busy))
        for name, moments in groupby(due, key=lambda one: one.schedule.name):
            self._busy.add(name)
            self._firing.submit(self._fire, name, list(moments))

    def _fire(self, name: str, moments: list[Due]) -> None:
        """Fire one schedule's moments in their order, up to the first that fails."""
        chore = self._firings.setdefault(name, Chore(f"tick of {name}"))
        try:
            chore.do(lambda: sum(ticks.fire(self._connections, one) for one in moments))
        finally:
            self._busy.discard(name)
