"""`python -m jobledger scheduler`: APScheduler starts the chores; the rows decide what they do.

Any number of these processes may run: each chore consists of guarded statements.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from types import FrameType
from typing import Final

from apscheduler.schedulers.background import BackgroundScheduler

from jobledger.connections.default import Connections
from jobledger.errors import LedgerUnavailable
from jobledger.ledger import heartbeats, schedules
from jobledger.ledger.heartbeats import PRESENCE_SECONDS
from jobledger.ledger.schedules import UNSEEN_SECONDS
from jobledger.maintenance.chores import CHORES, Manner
from jobledger.maintenance.ownership import QueuesKeeper
from jobledger.observe.log import get_logger
from jobledger.process import this_process
from jobledger.schedules import ticks
from jobledger.schedules.book import ScheduleBook
from jobledger.schedules.ticks import DEADLINE_SECONDS, Due

log: Final = get_logger(__name__)

TICK_LOOK_SECONDS: Final = 1.0
REMOVED_SECONDS: Final = 180.0
"""A schedule that no running scheduler has defined for so long is removed, by a scheduler that ran all that time."""

LONGEST_GAP_SECONDS: Final = 10.0
"""Longest time between two successful passes of a scheduler that is in touch with the ledger."""

STOP_SECONDS: Final = 10.0
"""Longest wait at the stop for a schedule's function; without a commit its fire time is due again elsewhere."""

SIGNAL_LOOK_SECONDS: Final = 1.0
"""The wait for a signal is this long: Python handles a signal that came just before a wait only after it."""

CLOCK_LOOK_SECONDS: Final = 1.0
CLOCK_STEP_SECONDS: Final = 0.5
"""A larger difference between two looks at the clock means that it was set; drift is far smaller."""

LONGEST_BACKOFF_SECONDS: Final = 30.0
LONGEST_REPAIR_BACKOFF_SECONDS: Final = 5.0
"""Short, so that repair starts soon after the servers are back."""

FIRING_THREADS: Final = 10


class Repeated:
    """A repeated action that survives every error: it logs, counts and backs off.

    Attributes:
        failures: errors in a row.
    """

    def __init__(self, name: str, longest_backoff_seconds: float = LONGEST_BACKOFF_SECONDS) -> None:
        self.name = name
        self.failures = 0
        self._longest_backoff_seconds = longest_backoff_seconds
        self._not_before = 0.0

    def do(self, action: Callable[[], object]) -> None:
        """Do it, unless it is in backoff."""
        if time.monotonic() < self._not_before:
            return
        try:
            done = action()
        except Exception as error:  # this loop must survive any error of a server or of a user's function
            self.failures += 1
            wait = min(2.0 ** min(self.failures - 1, 10), self._longest_backoff_seconds)
            self._not_before = time.monotonic() + wait
            log.error("Chore failed", chore=self.name, failures=self.failures, wait_seconds=wait, exc_info=error)
            return
        if self.failures:
            log.info("Chore works again", chore=self.name, after_failures=self.failures)
        self.failures = 0
        if done:
            log.info("Chore done", chore=self.name, count=done)


class SchedulerProcess:
    """The scheduler of one process.

    Args:
        connections: the servers.
        book: the schedules to fire.
        wall: this host's clock, in seconds since 1970.
    """

    def __init__(self, connections: Connections, book: ScheduleBook, wall: Callable[[], float] = time.time) -> None:
        self._connections = connections
        self._book = book
        self._clock = BackgroundScheduler(
            timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )
        self._firing = ThreadPoolExecutor(FIRING_THREADS, thread_name_prefix="jobledger-tick")
        self._firings: dict[str, Repeated] = {}
        self._busy: dict[str, Future[None]] = {}
        self._looked_at = self._in_touch_since = time.monotonic()
        self._wall = wall
        self._stopping = threading.Event()
        self._queues = QueuesKeeper(connections)

    def start(self) -> None:
        """Start the chores, in background threads."""
        settings = self._connections.settings
        manner = Manner(stopping=self._stopping)
        repeated: list[tuple[str, Callable[[], object], float]] = [
            ("tick", self._tick, TICK_LOOK_SECONDS),
            ("presence", self._say_present, PRESENCE_SECONDS),
            *((one.name, partial(one.do, self._connections, manner), one.pause_seconds(settings)) for one in CHORES),
        ]
        for name, action, pause in repeated:
            self._clock.add_job(
                Repeated(name, LONGEST_REPAIR_BACKOFF_SECONDS).do,
                "interval",
                args=[action],
                id=name,
                seconds=pause,
                next_run_time=datetime.now(UTC),
            )
        self._clock.start()
        self._queues.start()
        threading.Thread(target=self._follow_clock, name="jobledger-clock", daemon=True).start()
        log.info("Scheduler started", pid=os.getpid(), schedules=len(list(self._book)))

    def stop(self) -> bool:
        """Stop after the current chores and firings.

        Returns:
            False if a schedule's function did not end in time.
        """
        self._stopping.set()
        self._clock.shutdown(wait=True)
        self._firing.shutdown(wait=False, cancel_futures=True)
        _, stuck = wait([one for one in self._busy.values() if not one.cancelled()], STOP_SECONDS)
        with contextlib.suppress(LedgerUnavailable), self._connections.transaction(DEADLINE_SECONDS) as connection:
            heartbeats.forget_scheduler(connection, this_process())
        self._queues.stop()
        log.info("Scheduler stopped", pid=os.getpid(), stuck=len(stuck))
        return not stuck

    def run_until_signal(self) -> None:
        """Start, wait for SIGTERM or SIGINT, stop. A stuck function is abandoned, and its transaction rolled back."""
        asked = threading.Event()

        def ask(_signal: int, _frame: FrameType | None) -> None:
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)
        self.start()
        while not asked.wait(SIGNAL_LOOK_SECONDS):
            pass
        if not self.stop():
            logging.shutdown()
            os._exit(0)

    def _follow_clock(self) -> None:
        """Restart the plan when this host's clock is set: after a step back, every chore would pause for as long."""
        ahead = self._wall() - time.monotonic()
        while not self._stopping.wait(CLOCK_LOOK_SECONDS):
            was, ahead = ahead, self._wall() - time.monotonic()
            if abs(ahead - was) < CLOCK_STEP_SECONDS:
                continue
            log.warning("The clock of this host was set", by_seconds=round(ahead - was, 1))
            for chore in self._clock.get_jobs():
                chore.modify(next_run_time=datetime.now(UTC))

    def _say_present(self) -> None:
        if time.monotonic() - self._looked_at > LONGEST_GAP_SECONDS:
            return  # a health check must see that this process does not do its work
        settings = self._connections.settings
        with self._connections.transaction(DEADLINE_SECONDS) as connection:
            heartbeats.heartbeat(connection, this_process(), socket.gethostname(), os.getpid(), settings.code_version)
            if self._in_touch_seconds() > REMOVED_SECONDS:
                for name in schedules.mark_removed(connection, [one.name for one in self._book], REMOVED_SECONDS):
                    log.warning("Removed: no running scheduler defines it", schedule=name)

    def _in_touch_seconds(self) -> float:
        """Seconds since the last gap in this process's passes, in which it may have missed other schedulers."""
        now = time.monotonic()
        return now - self._in_touch_since if now - self._looked_at <= LONGEST_GAP_SECONDS else 0.0

    def _tick(self) -> None:
        """Fire due fire times, each schedule in a thread, so that a slow function does not delay other schedules."""
        self._busy = {name: firing for name, firing in self._busy.items() if not firing.done()}
        in_touch = self._in_touch_seconds() > UNSEEN_SECONDS
        due = ticks.due(self._connections, self._book, busy=self._busy, in_touch=in_touch)
        now = time.monotonic()
        if now - self._looked_at > LONGEST_GAP_SECONDS:
            self._in_touch_since = now
        self._looked_at = now
        if len(self._busy) >= FIRING_THREADS:
            log.warning("All threads that fire schedules are busy: others wait", busy=sorted(self._busy))
        for name, moments in groupby(due, key=lambda one: one.row.name):
            self._busy[name] = self._firing.submit(self._fire, name, list(moments))

    def _fire(self, name: str, moments: list[Due]) -> None:
        """Decide one schedule's fire times in order, up to the first that fails or that another scheduler decides.

        Waiting ticks have their own rows: a failing fire time does not block them, nor the other way round.
        """
        for kind, group in groupby(moments, key=lambda one: "waiting tick" if one.waits else "tick"):
            chore = self._firings.setdefault(f"{kind} {name}", Repeated(f"{kind} of {name}"))
            some = list(group)
            chore.do(lambda some=some: self._decide(some))  # type: ignore[misc]

    def _decide(self, moments: list[Due]) -> None:
        for one in moments:
            if not ticks.fire(self._connections, one):
                return
