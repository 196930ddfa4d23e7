"""A process dies, freezes or fails at each narrow place of a job's path: nothing is lost, and effects happen once."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from harness import SHORT, Process, Stack, backdate_sweeps, effects, eventually, one_value, started
from jobledger import Connections, JobHandle, JobStatus
from jobledger.failpoints import Action, Failpoint
from sample_jobs import EFFECTS, Effect

DISPATCH = "from sample_jobs import Effect; print('accepted', Effect.dispatch(note='narrow').id)"
EVERY = pytest.mark.parametrize("action", list(Action))
DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


@pytest.fixture(autouse=True)
def _ground(connections: Connections) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(EFFECTS))
    backdate_sweeps(connections)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that the process creates which acts."""
    return tmp_path / "reached"


def planned(place: Failpoint, action: Action, marker: Path) -> dict[str, str]:
    return {"JOBLEDGER_FAILPOINTS": f"{place}={action}:{marker}"}


def reached(marker: Path) -> psutil.Process | None:
    """The process that has reached the place, unless it is gone."""
    eventually(lambda: marker.exists() and marker.read_text(), seconds=30, what="the failpoint")
    try:
        return psutil.Process(int(marker.read_text()))
    except psutil.NoSuchProcess:
        return None


@contextmanager
def at_the_place(action: Action, marker: Path) -> Iterator[None]:
    """From the moment at which the place was reached; a frozen process goes on at the end."""
    process = reached(marker)
    if action is not Action.FREEZE:
        yield
        return
    assert process is not None
    eventually(lambda: process.status() == psutil.STATUS_STOPPED, what="its standstill")
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):  # the reaper has its worker kill what does not end itself
            process.resume()


def the_job(connections: Connections) -> JobHandle:
    """The one job that there is."""
    job_id = one_value(connections, "SELECT id FROM job_statuses")
    return JobHandle(job_id, JobStatus.QUEUED, connections).refresh()


def outcomes(job: JobHandle) -> list[str | None]:
    return [one.outcome for one in job.attempts]


def at_rest(connections: Connections, workers: list[Process]) -> None:
    """Nothing runs any more, and no session sits in a transaction."""
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in tr%'"
    eventually(lambda: not any(worker.children() for worker in workers), seconds=30, what="the work-horses' end")
    eventually(lambda: one_value(connections, sessions) == 0, what="the transactions' end")


# -- dispatch


@EVERY
def test_between_insert_and_commit(connections: Connections, system: Stack, marker: Path, action: Action) -> None:
    system.scheduler(**SHORT)
    worker = system.worker(**SHORT)
    dispatcher = system.start(sys.executable, "-c", DISPATCH, **planned(Failpoint.AFTER_INSERT, action, marker))
    with at_the_place(action, marker):
        assert one_value(connections, "SELECT count(*) FROM job_statuses") == 0, "nobody sees what is not committed"
    code = dispatcher.wait()
    assert (code == 0) == dispatcher.output().startswith("accepted ")
    if code == 0:
        assert the_job(connections).wait(30).status is JobStatus.COMPLETED
    at_rest(connections, [worker])
    assert one_value(connections, "SELECT count(*) FROM effects") == one_value(
        connections, "SELECT count(*) FROM job_statuses"
    )
    assert action is Action.FREEZE or one_value(connections, "SELECT count(*) FROM job_statuses") == 0


@EVERY
def test_between_commit_and_push(connections: Connections, system: Stack, marker: Path, action: Action) -> None:
    with connections.transaction() as connection:  # the grace of a wake-up is long; this one is already over
        connection.execute(sa.text("ALTER TABLE job_statuses ALTER COLUMN push_count SET DEFAULT 0"))
    system.scheduler(**SHORT)
    worker = system.worker(**SHORT)
    system.start(sys.executable, "-c", DISPATCH, **planned(Failpoint.BEFORE_PUSH, action, marker))
    with at_the_place(action, marker):
        job = the_job(connections)
        assert job.wait(60).status is JobStatus.COMPLETED, "it is accepted, so it runs whatever becomes of its push"
    at_rest(connections, [worker])
    assert outcomes(job) == ["completed"]
    assert effects(connections, job) == 1


# -- the run

BEFORE_THE_END = {Action.KILL: "crashed", Action.FREEZE: "lost", Action.RAISE: "error"}


def run_through(
    connections: Connections, system: Stack, marker: Path, place: Failpoint, action: Action
) -> tuple[JobHandle, list[Any]]:
    """Let a job meet its failpoint in a worker; another worker is there in case that one stays frozen."""
    system.scheduler(**SHORT)
    workers = [system.worker(**SHORT, **planned(place, action, marker)) for _ in range(2)]
    job = Effect.set(max_attempts=3).dispatch(note="narrow")
    with at_the_place(action, marker):
        assert job.wait(60).status is JobStatus.COMPLETED
    at_rest(connections, workers)
    return job.refresh(), outcomes(job)


@EVERY
@pytest.mark.parametrize("place", [Failpoint.AFTER_CLAIM, Failpoint.BEFORE_FINISH])
def test_before_the_end_is_written(
    connections: Connections, system: Stack, marker: Path, place: Failpoint, action: Action
) -> None:
    job, ends = run_through(connections, system, marker, place, action)
    assert ends == [BEFORE_THE_END[action], "completed"]
    assert effects(connections, job) == 1
    assert one_value(connections, "SELECT attempt FROM effects") == 2


@EVERY
@pytest.mark.parametrize("place", [Failpoint.COMMIT_SENT, Failpoint.AFTER_FINISH])
def test_after_the_end_is_written(
    connections: Connections, system: Stack, marker: Path, place: Failpoint, action: Action
) -> None:
    job, ends = run_through(connections, system, marker, place, action)
    assert ends == ["completed"], "what is committed is committed: it does not run again"
    assert job.status is JobStatus.COMPLETED
    assert effects(connections, job) == 1


# -- repair


@EVERY
def test_relay_between_push_and_its_record(
    connections: Connections, system: Stack, marker: Path, action: Action
) -> None:
    job = Effect.dispatch(note="narrow")
    connections.redis.flushall()
    with connections.transaction() as connection:
        connection.execute(sa.text("UPDATE job_statuses SET pushed_at = NULL"))
    system.scheduler(**SHORT, **planned(Failpoint.AFTER_RELAY_PUSH, action, marker))
    with at_the_place(action, marker):
        system.scheduler(**SHORT)
        worker = system.worker(**SHORT)
        assert job.wait(60).status is JobStatus.COMPLETED, "a frozen relay keeps nobody from the row for long"
    at_rest(connections, [worker])
    assert outcomes(job) == ["completed"]
    assert effects(connections, job) == 1


@EVERY
def test_reaper_between_look_and_act(connections: Connections, system: Stack, marker: Path, action: Action) -> None:
    doomed = system.worker(**SHORT)
    job = Effect.dispatch(note="narrow", sleep_seconds=1)
    started(job)
    doomed.kill_tree()
    reapers = [system.scheduler(**SHORT, **planned(Failpoint.REAPER_DECIDED, action, marker)) for _ in range(2)]
    worker = system.worker(**SHORT)
    with at_the_place(action, marker):
        assert job.wait(60).status is JobStatus.COMPLETED
    at_rest(connections, [worker])
    assert outcomes(job) == ["lost", "completed"]
    assert effects(connections, job) == 1
    assert one_value(connections, "SELECT losses FROM job_statuses") == 1
    assert sum(one.popen.poll() is None for one in reapers) == (1 if action is Action.KILL else 2)


# -- the clock


@EVERY
def test_between_tick_and_job(connections: Connections, system: Stack, marker: Path, action: Action) -> None:
    modules = {"JOBLEDGER_JOB_MODULES": "sample_jobs,clock_schedules"}
    plan = planned(Failpoint.TICK_TAKEN, action, marker)
    for _ in range(2):
        system.scheduler(**SHORT, **modules, **plan)
    worker = system.worker(**SHORT, **modules)
    with at_the_place(action, marker):
        created_at = one_value(connections, "SELECT created_at FROM schedules")
        if action is Action.FREEZE:  # its turn is kept for it, so that nothing is fired out of order
            assert one_value(connections, "SELECT count(*) FROM schedule_ticks WHERE fire_at < now()") is not None
    until = "SELECT extract(epoch FROM decided_until - :since) FROM schedules"
    seconds = eventually(
        lambda: (n := float(one_value(connections, until, since=created_at))) >= 4 and n, seconds=60, what="four ticks"
    )
    for process in system.processes:
        if process is not worker:
            process.signal(signal.SIGKILL)
    system.scheduler(**SHORT, JOBLEDGER_JOB_MODULES="sample_jobs")  # repairs, for some died before their push
    unfinished = "SELECT count(*) FROM job_statuses WHERE finished_at IS NULL"
    eventually(lambda: one_value(connections, unfinished) == 0, seconds=60, what="every job has ended")
    notes = "SELECT count(*), count(DISTINCT note) FROM effects"
    with connections.transaction() as connection:
        fired, moments = connection.execute(sa.text(notes)).one()
    assert fired == moments >= int(seconds), "each second once, none missing"
    assert marker.exists()
