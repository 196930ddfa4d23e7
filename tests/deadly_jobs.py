"""Jobs that end their process, hold the interpreter's lock, fork, or take signals for themselves."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg2
import sqlalchemy as sa

from jobledger import BaseJob, JobledgerError, Retry

C = ctypes.PyDLL(None)
"""The C library; calls hold the interpreter's lock."""


class Ends(BaseJob):
    """Ends its process in a way that no exception tells of; with a file, only once."""

    def _perform(self, how: str, once: str = "") -> int:
        if once:
            if Path(once).exists():
                return self.attempt
            Path(once).touch()
        match how:
            case "os._exit(0)":
                os._exit(0)
            case "exec":
                os.execvp("true", ["true"])
            case "exit of C":
                C.exit(0)
            case "os._exit(7)":
                os._exit(7)
            case "in a thread":
                thread = threading.Thread(target=os._exit, args=(0,))
                thread.start()
                thread.join()
            case "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
        return 0


class HoldsTheLock(BaseJob):
    """Spends its time in one call of C that holds the interpreter's lock."""

    timeout = "5m"

    def _perform(self, seconds: int) -> int:
        C.sleep(seconds)
        return self.attempt


class Sleeper(BaseJob):
    """Sleeps, and lets other threads run."""

    def _perform(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.attempt


class Overstays(HoldsTheLock):
    """The same, for longer than it may."""

    timeout = 2
    retry = Retry(1)


class Forks(BaseJob):
    """Forks a child that leaves `_perform`."""

    retry = Retry(1)

    def _perform(self, how: str) -> str:
        if os.fork() == 0:
            match how:
                case "exits":
                    sys.exit(0)
                case "raises":
                    raise ValueError("in the child")
                case "interrupts":
                    raise KeyboardInterrupt
            return "child"
        os.wait()
        self.session.execute(
            sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, 1, 'parent')"), {"id": self.job_id}
        )
        return "parent"


class ForksAsync(BaseJob):
    """The same inside an event loop."""

    retry = Retry(1)

    async def _perform(self) -> str:
        await asyncio.sleep(0)
        if os.fork() == 0:
            return "child"
        os.wait()
        return "parent"


class TakesAlarm(BaseJob):
    """Takes SIGALRM for itself, and overstays."""

    timeout = 1
    retry = Retry(1)

    def _perform(self, how: str) -> None:
        handlers: dict[str, object] = {"takes": lambda *_: None, "ignores": signal.SIG_IGN, "resets": signal.SIG_DFL}
        if how == "blocks all":
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
        elif how == "own timer":
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        else:
            signal.signal(signal.SIGALRM, handlers[how])  # type: ignore[arg-type]
        while True:
            time.sleep(0.05)


class UsesAlarm(BaseJob):
    """Uses SIGALRM as any program may, and leaves it as it likes."""

    def _perform(self) -> str:
        rung = threading.Event()
        signal.signal(signal.SIGALRM, lambda *_: rung.set())
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert rung.wait(10)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return "rung"


def sleep_for_long() -> None:
    time.sleep(600)


class HasChildren(BaseJob):
    """Starts processes and ends them, or leaves them behind."""

    def _perform(self, how: str, pids_file: str = "") -> str:
        context = multiprocessing.get_context("fork")
        match how:
            case "terminates":
                process = context.Process(target=sleep_for_long)
                process.start()
                process.terminate()
                process.join(10)
                return f"exit code {process.exitcode}"
            case "pool":
                with context.Pool(2) as pool:
                    return str(pool.map(abs, [-1, -2]))
            case "forks twice":
                if os.fork() == 0:
                    child = os.getpid()
                    if os.fork() == 0:
                        os.setsid()
                        while os.getppid() == child:
                            time.sleep(0.01)
                        Path(pids_file + ".done").write_text("done")
                        os._exit(0)
                    os._exit(0)
                os.wait()
                deadline = time.monotonic() + 20
                while not Path(pids_file + ".done").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                return Path(pids_file + ".done").read_text()
            case "own handler":
                signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
                forked = os.fork()
                if forked == 0:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
                    sleep_for_long()
                is_blocked = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
                os.kill(forked, signal.SIGTERM)
                code = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
                return f"exit code {code}, blocked: {is_blocked}"
            case "dies":
                forked = context.Process(target=sleep_for_long)
                forked.start()
                started = subprocess.Popen(["sleep", "600"])
                Path(pids_file).write_text(f"{forked.pid} {started.pid}")
                os.kill(os.getpid(), signal.SIGKILL)
        return ""


class Misuses(BaseJob):
    """Tries to end the transaction in which it completes, after it has written."""

    retry = Retry(2, backoff="fixed", base=0.1, jitter=False)

    def _perform(self, how: str) -> int:
        self.session.execute(
            sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, 'by the job')"),
            {"id": self.job_id, "attempt": self.attempt},
        )
        if self.attempt == 1:
            MISUSES[how](self)
        return self.attempt


class AsksForAnotherConnection(BaseJob):
    """Uses the engine of its session, which has no other connection than the job's."""

    def _perform(self) -> str:
        self.session.execute(
            sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, 'by the job')"),
            {"id": self.job_id, "attempt": self.attempt},
        )
        try:
            with self.session.connection().engine.begin() as connection:
                connection.execute(sa.text("SELECT 1"))
        except JobledgerError as error:
            return str(error)
        return ""


class RaisesFromAttributes(BaseJob):
    """Raises an error of the database whose attributes raise."""

    retry = Retry(1)

    def _perform(self, how: str) -> None:
        raise (
            _RaisesAsDriver("by the job") if how == "driver" else _RaisesAsSqlAlchemy("by the job", None, ValueError())
        )


class EndlessContext(BaseJob):
    """Runs out of its time while it handles an error whose text takes for ever."""

    timeout = 2
    retry = Retry(1)

    def _perform(self) -> None:
        try:
            raise _Endless
        except _Endless:
            time.sleep(60)


class _Endless(Exception):
    def __str__(self) -> str:
        while True:
            time.sleep(0.01)


class _RaisesAsDriver(psycopg2.Error):
    @property
    def pgcode(self) -> str:
        raise RuntimeError("no code")


class _RaisesAsSqlAlchemy(sa.exc.DBAPIError):
    @property
    def orig(self) -> BaseException:
        raise RuntimeError("no original")

    @orig.setter
    def orig(self, _error: BaseException) -> None:
        pass


class ReportsAfterItsEnd(BaseJob):
    """Leaves a forked child behind that reports progress, also while the next job runs."""

    def _perform(self, file: str) -> None:
        forked = []

        def fork() -> None:  # in a thread, so that the child outlives the work-horse
            pid = os.fork()
            if pid == 0:
                os.setsid()
                while not Path(file).exists():
                    self.progress(1, 2)
                    time.sleep(2)
                os._exit(0)
            forked.append(pid)

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        time.sleep(0.2)


MISUSES: dict[str, Callable[[BaseJob], object]] = {
    "commit": lambda job: job.session.connection().commit(),
    "commit of the transaction": lambda job: job.session.connection().get_transaction().commit(),  # type: ignore[union-attr]
    "rollback": lambda job: job.session.connection().rollback(),
    "close": lambda job: job.session.connection().close(),
    "invalidate": lambda job: job.session.connection().invalidate(),
    "COMMIT": lambda job: job.session.execute(sa.text("COMMIT")),
    "END": lambda job: job.session.connection().exec_driver_sql("/* why */ end work"),
    "ROLLBACK": lambda job: job.session.execute(sa.text("  rollback")),
    "hidden COMMIT": lambda job: job.session.connection().exec_driver_sql("SELECT 1; COMMIT; SELECT 2"),
    "procedure": lambda job: job.session.execute(sa.text("CALL commits()")),
}


class LeavesSettings(BaseJob):
    """Leaves settings in its transaction that must not reach the finishing statement."""

    def _perform(self, how: str) -> int:
        self.session.execute(sa.text(how))
        return self.attempt
