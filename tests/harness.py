"""What the tests share: waiting for conditions, and real processes of ours with their output kept."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import sqlalchemy as sa

from preloaded import start_fresh, start_process

T = TypeVar("T")
TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent


def eventually(condition: Callable[[], T], seconds: float = 20.0, what: str = "the condition") -> T:
    """The first true value of a condition that is looked at again and again."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s (last: {value!r})"
        time.sleep(0.02)


def leads_a_group(pid: int) -> bool:
    """Whether a process is the first of its process group; not if it is gone."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


class Process:
    """A child process in a session of its own, with its output in a file."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        log: Path,
        directory: Path = TESTS,
        start: Callable[..., Any] = start_process,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = start(command, environment, directory, output.fileno(), output.fileno())
        self.pid = self.popen.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        return self.popen.wait(seconds)

    def children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def horses(self) -> list[psutil.Process]:
        """Of a worker's children those that run jobs: RQ gives each a process group of its own."""
        return [one for one in self.children() if leads_a_group(one.pid)]

    def kill_tree(self) -> None:
        """SIGKILL for the process and all below it, at once: as if its machine were lost."""
        if self.popen.poll() is not None:
            return  # its pid may be somebody else's by now
        everyone = [*self.children()]
        with contextlib.suppress(psutil.NoSuchProcess):
            everyone.insert(0, psutil.Process(self.pid))
        for one in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.popen.wait(10)

    def stop(self, seconds: float = 20) -> None:
        """SIGTERM, then SIGKILL for whatever is left."""
        stop_all([self], seconds)


def stop_all(processes: list[Process], seconds: float = 20) -> None:
    """SIGTERM for all at once; then SIGKILL for what is left of each."""
    running = [one for one in processes if one.popen.poll() is None]
    for one in running:
        one.popen.terminate()
    for one in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.popen.wait(seconds)
        one.kill_tree()


class Stack:
    """Starts real processes against the servers of one test, and stops them all at its end."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        self.environment = environment
        self.logs = logs
        self.processes: list[Process] = []
        self.fresh = False
        """Whether each process is an interpreter of its own: for tests that look for a command line."""

    def start(self, *command: str, **environment: str) -> Process:
        path = os.pathsep.join([str(TESTS), str(REPOSITORY)])
        # Bytecode is kept, whatever the environment says: many processes are started.
        ours = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""}
        merged = {**os.environ, **ours, **self.environment, **environment}
        name = f"{len(self.processes)}-{Path(command[0]).name}.log"
        process = Process(list(command), merged, self.logs / name, start=start_fresh if self.fresh else start_process)
        self.processes.append(process)
        return process

    def worker(self, *arguments: str, **environment: str) -> Process:
        """A stock `rq worker` with our configuration, ready to take jobs."""
        rq = str(Path(sys.executable).parent / "rq")
        queues = [] if any(not one.startswith("-") for one in arguments) else ["high", "default", "low", "etl"]
        process = self.start(rq, "worker", "-c", "jobledger.rq_config", *arguments, *queues, **environment)
        eventually(lambda: "Listening on" in process.output() or process.popen.poll() is not None, 60, "worker start")
        assert process.popen.poll() is None, process.output()
        return process

    def scheduler(self, **environment: str) -> Process:
        """A scheduler process that has started its chores."""
        process = self.start(sys.executable, "-m", "jobledger", "scheduler", **environment)
        eventually(lambda: "Scheduler started" in process.output() or process.popen.poll() is not None, 60)
        assert process.popen.poll() is None, process.output()
        return process

    def api(self, **environment: str) -> str:
        """The URL of an API process that answers."""
        process = self.start(sys.executable, "-m", "jobledger", "api", "--port", "0", **environment)
        found = eventually(lambda: re.search(r"running on (http://\S+)|Error|jobledger: ", process.output()), 60)
        assert found[1], process.output()
        return found[1]

    def stop(self) -> None:
        stop_all(self.processes)


@contextlib.contextmanager
def stack(environment: dict[str, str], logs: Path) -> Iterator[Stack]:
    running = Stack(environment, logs)
    try:
        yield running
    finally:
        running.stop()


def one_value(connections: Any, sql: str, **parameters: Any) -> Any:
    """The first column of the first row of a query."""
    with connections.transaction() as connection:
        return connection.execute(sa.text(sql), parameters).scalar()


SHORT = {"JOBLEDGER_LEASE_SECONDS": "3", "JOBLEDGER_SWEEP_SECONDS": "0.5", "JOBLEDGER_RELAY_SECONDS": "0.2"}
"""What notices a dead worker within seconds."""


def effects(connections: Any, job: Any) -> int:
    """How many rows a job has written to the table of effects, which has no unique constraint."""
    return int(one_value(connections, "SELECT count(*) FROM effects WHERE job_id = :id", id=job.id))


def started(job: Any, attempt: int = 1) -> Any:
    """The running attempt of this number, once there is one."""
    return eventually(
        lambda: next((a for a in job.attempts if a.number == attempt and a.outcome is None), None),
        what=f"attempt {attempt}",
        seconds=60,
    )


def begun(job: Any) -> int:
    """The process of the first attempt, once a job of `long_work` is in the middle of it."""
    eventually(lambda: any(one.progress_note == "begun" for one in job.attempts), 60, "the job's beginning")
    return int(job.attempts[0].pid)


def backdate_sweeps(connections: Any) -> None:
    """As if somebody had been sweeping for long: the test need not wait for a lease to pass first."""
    with connections.transaction() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO sweeps VALUES ('reap', now(), now() - interval '1 hour', 'test') ON CONFLICT DO NOTHING"
            )
        )


def execute(connections: Any, statement: str, **parameters: Any) -> int:
    """Execute SQL behind everybody's back; how many rows it changed."""
    with connections.transaction() as connection:
        return int(connection.execute(sa.text(statement), parameters).rowcount)


def row_of(connections: Any, handle: Any) -> Any:
    """The row of a job."""
    with connections.transaction() as connection:
        return connection.execute(sa.text("SELECT * FROM job_statuses WHERE id = :id"), {"id": handle.id}).one()
