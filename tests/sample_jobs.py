"""Jobs that the tests run in real workers."""

import asyncio
import ctypes
import logging
import os
import threading
import time
from pathlib import Path

import sqlalchemy as sa

from jobledger import BaseJob, Cancel, Failure, GiveUp, Retry, Snooze, Unique

EFFECTS = "CREATE TABLE IF NOT EXISTS effects (job_id uuid, attempt int, note text, at timestamptz DEFAULT now())"


class Effect(BaseJob):
    """Writes one row through its session; the table has no unique constraint, so that doubles are seen."""

    def _perform(self, note: str = "", sleep_seconds: float = 0.0) -> str:
        self.session.execute(
            sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, :note)"),
            {"id": self.job_id, "attempt": self.attempt, "note": note},
        )
        time.sleep(sleep_seconds)
        return note


class UniqueEffect(Effect):
    """One of each note at a time."""

    unique = Unique("note")


class Echo(BaseJob):
    """Takes any JSON object and gives it back."""

    def _perform(self) -> object:
        return self.payload


class Fails(BaseJob):
    """Raises until an attempt, then completes."""

    retry = Retry(5, backoff="fixed", base=0.2, jitter=False, give_up_on=(KeyError,))

    def _perform(self, until: int = 100, error: str = "ValueError", trace_file: str = "") -> int:
        if trace_file:
            with Path(trace_file).open("a") as trace:
                trace.write(f"{time.time()}\n")
        if self.attempt < until:
            raise {"ValueError": ValueError, "KeyError": KeyError, "SystemExit": SystemExit}[error]("as asked")
        return self.attempt


class Asking(BaseJob):
    """Asks for something until an attempt, then completes."""

    retry = Retry(5)

    def _perform(self, what: str, until: int) -> int:
        if self.attempt < until:
            asked = {
                "snooze": Snooze("100ms"),
                "retry": Retry.in_("100ms"),
                "cancel": Cancel("as asked"),
                "give up": GiveUp("as asked"),
            }
            raise asked[what]
        return self.attempt


class Failing(BaseJob):
    """Fails at once, and says so in `on_failed`."""

    def _perform(self, how: str) -> None:
        if how == "raise":
            raise RuntimeError("no luck")
        os.kill(os.getpid(), 9)

    def on_failed(self, error: Failure) -> None:
        self.session.execute(
            sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, :note)"),
            {"id": self.job_id, "attempt": error.attempt, "note": f"{error.reason}: {self.payload['how']}"},
        )


class Stubborn(BaseJob):
    """Outlives its timeout in one way or another."""

    timeout = 1

    def _perform(self, how: str) -> None:
        match how:
            case "except":
                while True:
                    try:
                        time.sleep(10)
                    except Exception:
                        self.log.info("swallowed")
            case "sql":
                self.session.execute(sa.text("SELECT pg_sleep(60)"))
            case "lock":
                self.session.execute(sa.text("LOCK TABLE effects IN ACCESS EXCLUSIVE MODE"))
            case "c":
                (b"x" * 40_000_000).translate(None, b"y") and sum(range(10**10))
            case "deadlock":  # in C, where nothing of Python's can interrupt it; with a lock in the database
                self.session.execute(sa.text("LOCK TABLE effects IN ACCESS EXCLUSIVE MODE"))
                mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
                libc.pthread_mutex_lock(mutex)
                libc.pthread_mutex_lock(mutex)
            case "gil":  # the same with the interpreter's lock: no other thread of the process can run either
                mutex, python = ctypes.create_string_buffer(64), ctypes.PyDLL(None)
                python.pthread_mutex_lock(mutex)
                python.pthread_mutex_lock(mutex)


class Asks(BaseJob):
    """An async job."""

    async def _perform(self, seconds: float = 0.01) -> str:
        await asyncio.sleep(seconds)
        return "asked"


class Parent(BaseJob):
    """Dispatches children from inside, in its own transaction."""

    def _perform(self, children: int, fail: bool = False) -> list[str]:
        ids = [str(Effect.dispatch(note=f"child {n}", session=self.session).id) for n in range(children)]
        self.session.commit()  # ends a savepoint only
        if fail:
            raise RuntimeError("the children must go with me")
        return ids


class Reports(BaseJob):
    """Reports progress and log lines, then waits to be looked at."""

    def _perform(self, release_file: str) -> None:
        self.log.info("halfway", rows=5)
        self.progress(5, 10, "five of ten")
        while not Path(release_file).exists():
            time.sleep(0.02)


class Locks(BaseJob):
    """Locks a table in its transaction; the first attempt then waits to be frozen."""

    def _perform(self) -> None:
        self.session.execute(sa.text("LOCK TABLE effects IN ACCESS EXCLUSIVE MODE"))
        if self.attempt == 1:
            self.progress(note="locked")
            time.sleep(60)


class Ticked(BaseJob):
    """Gives back the tick that dispatched it."""

    def _perform(self) -> object:
        tick = self.tick
        if tick is None:
            return None
        return {
            "schedule": tick.schedule,
            "logical_time": tick.logical_time.isoformat(),
            "previous": tick.previous.isoformat() if tick.previous else None,
        }


LIBRARY = logging.getLogger("some.library")


class Logs(BaseJob):
    """Says the same in each way that there is, and fails the first time."""

    title = "Logs {text}"
    retry = Retry(3, backoff="fixed", base=0.2, jitter=False)

    def _perform(self, text: str, fail: bool = False) -> None:
        text += "\x00\ud800"  # what a payload cannot hold
        self.log.info("by the job", text=text)
        LIBRARY.info("by a library: %s", text)
        thread = threading.Thread(target=LIBRARY.info, args=("in a thread: %s", text))
        thread.start()
        thread.join()
        if self.attempt == 1 or fail:
            raise RuntimeError(text)


class LogsAsync(BaseJob):
    """Its library logs in a coroutine and in a thread."""

    async def _perform(self) -> None:
        LIBRARY.info("in a coroutine")
        await asyncio.to_thread(LIBRARY.info, "in the coroutine's thread")
