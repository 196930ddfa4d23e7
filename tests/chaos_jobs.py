"""The jobs of the chaos runs. Each says to an observer outside of the system that it starts, and how it ends.

Effects go through the job's session into a table without any unique constraint, so that doubles are seen.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from jobledger import BaseJob, Limit, Rate, Retry, Unique

EFFECTS = """
CREATE TABLE effects (job_id uuid, key text, attempt int, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE ticks_seen (job_id uuid, moment text);
"""

MEMORY_BYTES = 64 * 1024 * 1024
"""How much more a job may take that wants all of it."""


MUTEX_BYTES = 64
"""At least as many as a pthread_mutex_t has; all zero, it is an unlocked one."""


def deadlock(libc: ctypes.CDLL) -> None:
    """Wait for a lock that is held by oneself. A signal does not end that, as it ends a sleep."""
    mutex = ctypes.create_string_buffer(MUTEX_BYTES)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


class Observed(BaseJob):
    """What all of them do."""

    @contextlib.contextmanager
    def said(self, key: str) -> Iterator[None]:
        """Tell the observer of the start, and of the end if there is one."""
        self._say("started", key=key)
        how = "raised"
        try:
            yield
            how = "returned"
        finally:
            self._say("ended", key=key, how=how)

    def effect(self, key: str) -> None:
        """The row that there must be exactly one of in the end."""
        self.session.execute(
            sa.text("INSERT INTO effects (job_id, key, attempt) VALUES (:id, :key, :attempt)"),
            {"id": self.job_id, "key": key, "attempt": self.attempt},
        )

    def _say(self, event: str, **fields: Any) -> None:
        """Synchronous: what was said before a SIGKILL has been heard."""
        said = {"event": event, "id": str(self.job_id), "attempt": self.attempt, "pid": os.getpid(), **fields}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.sendto(json.dumps({**said, "worker": str(os.getppid())}).encode(), os.environ["CHAOS_OBSERVER"])


class Quick(Observed):
    """Nothing but its effect."""

    api_dispatchable = True

    def _perform(self, key: str) -> str:
        with self.said(key):
            self.effect(key)
            return key


class UniqueQuick(Quick):
    """There is one of each key, however often it is dispatched."""

    unique = Unique("key", within="1d")


class Brief(Observed):
    """Takes a moment, with its effect open."""

    api_dispatchable = True

    def _perform(self, key: str, seconds: float) -> str:
        with self.said(key):
            self.effect(key)
            time.sleep(seconds)
            return key


class Raising(Observed):
    """Raises twice, each time after its effect, which must go with it."""

    retry = Retry(5, backoff="fixed", base=0.3, jitter=False)

    def _perform(self, key: str, raises: int = 2) -> str:
        with self.said(key):
            self.effect(key)
            errors = sa.text("SELECT errors FROM job_statuses WHERE id = :id")
            if self.session.execute(errors, {"id": self.job_id}).scalar_one() < raises:
                raise RuntimeError("as asked")
            return key


class Long(Observed):
    """Takes long, and says how far it is."""

    def _perform(self, key: str, seconds: float) -> str:
        with self.said(key):
            self.effect(key)
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                self.progress(int(100 * (1 - left / seconds)), 100)
                time.sleep(min(left, 0.5))
            return key


class External(Observed):
    """Has an effect that no transaction covers: what it says to the observer."""

    def _perform(self, key: str) -> str:
        with self.said(key):
            return key


class Limited(Observed):
    """Of a group at most two run at once, these and `Paced` ones together."""

    limit = Limit(2, key="chaos:{group}")

    def _perform(self, key: str, group: str, seconds: float) -> str:
        with self.said(key):
            self.effect(key)
            time.sleep(seconds)
            return key


class Paced(Limited):
    """Of a group at most three start within two seconds, too."""

    rate = Rate(3, per="2s", key="chaos:{group}")


class Stopped(Observed):
    """Takes longer than it is left; looks whether it was canceled, or not."""

    def _perform(self, key: str, seconds: float, checks: bool) -> str:
        with self.said(key):
            self.effect(key)
            end = time.monotonic() + seconds
            while checks and time.monotonic() < end:
                self.check()
                time.sleep(0.1)
            time.sleep(max(0.0, end - time.monotonic()))
            return key


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Poison(Observed):
    """Ends its process, outlives its time, or returns too much, as asked. Its effect must never be seen."""

    timeout = 2

    def _perform(self, key: str, how: str) -> object:
        with self.said(key):
            self.effect(key)
            return getattr(self, f"_{how}")()

    def _exit(self) -> None:
        os._exit(3)

    def _exit_zero(self) -> None:
        os._exit(0)

    def _exec(self) -> None:
        os.execvp("true", ["true"])

    def _fork(self) -> str:
        """A child that leaves the job must not end it; nor keep what the parent has written."""
        if os.fork() == 0:
            return "child"
        os.wait()
        raise RuntimeError("in the parent")

    def _group(self) -> None:
        async def sleep_on() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.to_thread(time.sleep, 0.1))
                while True:
                    time.sleep(0.05)

        asyncio.run(sleep_on())

    def _unprintable(self) -> None:
        raise Unprintable

    def _segv(self) -> None:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)

    def _memory(self) -> int:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115, PTH123
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
        return len(bytearray(10 * MEMORY_BYTES))

    def _oom(self) -> None:
        """As the kernel does it when memory is short: SIGKILL for the work-horse alone."""
        os.kill(os.getpid(), signal.SIGKILL)

    def _c(self) -> None:
        """In C, where no signal handler of Python's runs."""
        deadlock(ctypes.CDLL(None))

    def _gil(self) -> None:
        """The same with the interpreter's lock: no other thread of the process can run either."""
        deadlock(ctypes.PyDLL(None))

    def _swallow(self) -> None:
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(600)

    def _large(self) -> str:
        return "x" * 10_000_000


class TickSeen(BaseJob):
    """What the schedule of the scheduler classes dispatches; its witness is a table of its own."""

    def _perform(self, moment: str) -> None:
        self.session.execute(
            sa.text("INSERT INTO ticks_seen (job_id, moment) VALUES (:id, :moment)"),
            {"id": self.job_id, "moment": moment},
        )
