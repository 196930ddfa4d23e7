"""A process dies, freezes or fails at each narrow place of a job's path: nothing is lost, and effects happen once."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from harness import SHORT, Process, Stack, backdate_sweeps, effects, eventually, one_value, started
from jobledger import BaseJob, Connections, JobHandle, JobStatus
from jobledger.failpoints import Action, Failpoint
from jobledger.queues import waiting
from sample_jobs import EFFECTS, Echo, Effect

DISPATCH = "from sample_jobs import Effect; print('accepted', Effect.dispatch(note='narrow').id)"
DISPATCH_IN_SESSION = """
from sqlalchemy.orm import Session
from jobledger.connections.default import default_connections
from sample_jobs import Effect
with Session(default_connections().engine) as session:
    job = Effect.dispatch(note="narrow", session=session)
    session.commit()
print("accepted", job.id)
"""
UNENDED = "SELECT count(*) FROM job_statuses WHERE finished_at IS NULL"
EVERY = pytest.mark.parametrize(
    "action", [pytest.param(one, marks=[] if one is Action.KILL else [pytest.mark.chaos]) for one in Action]
)
"""A kill shows most of what can go wrong; what fails or freezes there is for `scripts/chaos --tests`."""
LEASE_SECONDS = float(SHORT["JOBLEDGER_LEASE_SECONDS"])


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
def at_the_place(connections: Connections, action: Action, marker: Path) -> Iterator[psutil.Process | None]:
    """From the moment at which the place was reached; or if a process froze there, from one at which whatever lease it
    had has run out, by the database's clock, until it goes on.

    Yields:
        The process that is frozen.
    """
    process = reached(marker)
    if action is not Action.FREEZE:
        yield None
        return
    assert process is not None
    eventually(lambda: process.status() == psutil.STATUS_STOPPED, what="its standstill")
    run_out_at = one_value(connections, "SELECT clock_timestamp() + make_interval(secs => :lease)", lease=LEASE_SECONDS)
    eventually(lambda: one_value(connections, "SELECT clock_timestamp() > :at", at=run_out_at), what="the lease's end")
    assert process.status() == psutil.STATUS_STOPPED, "only the test lets it go on"
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):  # the reaper has its worker kill what does not end itself
            process.resume()


def the_job(connections: Connections) -> JobHandle:
    """The one job that there is."""
    job_id = one_value(connections, "SELECT id FROM job_statuses")
    return JobHandle(job_id, JobStatus.QUEUED, connections).refresh()


def outcomes(job: JobHandle) -> list[str | None]:
    return [one.outcome for one in job.attempts]


def swept(connections: Connections, name: str = "reap", by: psutil.Process | None = None) -> None:
    """Somebody, or this process, has begun to look for what is to be repaired, and done what it found."""
    sql = "SELECT count(*) FROM sweeps WHERE name = :name AND swept_at > :since AND swept_by LIKE :by"
    who = f"%:{by.pid}" if by is not None else "%"

    def is_since(moment: object) -> bool:
        return bool(one_value(connections, sql, name=name, since=moment, by=who))

    for what in ("a look's beginning", "the next one's, after its end"):
        now = one_value(connections, "SELECT clock_timestamp()")
        eventually(partial(is_since, now), seconds=30, what=what)


def at_rest(connections: Connections, workers: list[Process]) -> None:
    """Nothing runs any more, and no session sits in a transaction."""
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in tr%'"
    eventually(lambda: not any(worker.horses() for worker in workers), seconds=30, what="the work-horses' end")
    eventually(lambda: one_value(connections, sessions) == 0, what="the transactions' end")


# -- dispatch

EXITS = {Action.KILL: -signal.SIGKILL, Action.FREEZE: 0, Action.RAISE: 1}


@EVERY
def test_between_insert_and_commit(connections: Connections, system: Stack, marker: Path, action: Action) -> None:
    system.scheduler(**SHORT)
    worker = system.worker(**SHORT)
    dispatcher = system.start(sys.executable, "-c", DISPATCH, **planned(Failpoint.AFTER_INSERT, action, marker))
    with at_the_place(connections, action, marker):
        assert one_value(connections, "SELECT count(*) FROM job_statuses") == 0, "nobody sees what is not committed"
    if action is not Action.FREEZE:
        assert dispatcher.wait() == EXITS[action]
        assert one_value(connections, "SELECT count(*) FROM job_statuses") == 0
    elif dispatcher.wait() == 0:
        assert dispatcher.output().startswith("accepted ")
        assert the_job(connections).wait(30).status is JobStatus.COMPLETED
    else:  # its own deadline was over, too: nothing can be said of its commit, and that it does
        assert "jobledger.errors.LedgerUnavailable" in dispatcher.output()
    eventually(lambda: one_value(connections, UNENDED) == 0, seconds=30, what="the end of what was accepted")
    at_rest(connections, [worker])
    assert one_value(connections, "SELECT count(*) FROM effects") == one_value(
        connections, "SELECT count(*) FROM job_statuses"
    )


@pytest.mark.chaos
def test_frozen_between_insert_and_the_caller_s_own_commit(
    connections: Connections, system: Stack, marker: Path
) -> None:
    system.scheduler(**SHORT)
    worker = system.worker(**SHORT)
    plan = planned(Failpoint.AFTER_INSERT, Action.FREEZE, marker)
    dispatcher = system.start(sys.executable, "-c", DISPATCH_IN_SESSION, **plan)
    with at_the_place(connections, Action.FREEZE, marker):
        assert one_value(connections, "SELECT count(*) FROM job_statuses") == 0, "nobody sees what is not committed"
    assert dispatcher.wait() == 0
    assert dispatcher.output().startswith("accepted ")
    job = the_job(connections)
    assert job.wait(30).status is JobStatus.COMPLETED
    at_rest(connections, [worker])
    assert outcomes(job) == ["completed"]
    assert effects(connections, job) == 1


@pytest.mark.chaos
@EVERY
def test_between_commit_and_push(connections: Connections, system: Stack, marker: Path, action: Action) -> None:
    with connections.transaction() as connection:  # the grace of a wake-up is long; this one is already over
        connection.execute(sa.text("ALTER TABLE job_statuses ALTER COLUMN push_count SET DEFAULT 0"))
    system.scheduler(**SHORT)
    worker = system.worker(**SHORT)
    dispatcher = system.start(sys.executable, "-c", DISPATCH, **planned(Failpoint.BEFORE_PUSH, action, marker))
    with at_the_place(connections, action, marker):
        job = the_job(connections)
        assert job.wait(60).status is JobStatus.COMPLETED, "it is accepted, so it runs whatever becomes of its push"
    assert dispatcher.wait() == EXITS[action]
    eventually(lambda: not waiting(connections.redis, "default"), what="the end of a push that came too late")
    at_rest(connections, [worker])
    assert outcomes(job) == ["completed"]
    assert effects(connections, job) == 1


# -- the run

BEFORE_THE_END = {Action.KILL: "crashed", Action.FREEZE: "lost", Action.RAISE: "error"}


def run_through(
    connections: Connections, system: Stack, marker: Path, place: Failpoint, action: Action, job_class: type[BaseJob]
) -> tuple[JobHandle, list[Any]]:
    """Let a job meet its failpoint in a worker; another worker is there in case that one stays frozen."""
    system.scheduler(**SHORT)
    workers = [system.worker(**SHORT, **planned(place, action, marker)) for _ in range(2)]
    job = job_class.set(max_attempts=3).dispatch(note="narrow")
    with at_the_place(connections, action, marker):
        assert job.wait(60).status is JobStatus.COMPLETED
        swept(connections)
    at_rest(connections, workers)
    swept(connections)
    return job.refresh(), outcomes(job)


@EVERY
@pytest.mark.parametrize("place", [Failpoint.AFTER_CLAIM, Failpoint.BEFORE_FINISH])
def test_before_the_end_is_written(
    connections: Connections, system: Stack, marker: Path, place: Failpoint, action: Action
) -> None:
    job, ends = run_through(connections, system, marker, place, action, Effect)
    assert ends == [BEFORE_THE_END[action], "completed"]
    assert effects(connections, job) == 1
    assert one_value(connections, "SELECT attempt FROM effects") == 2


@EVERY
@pytest.mark.parametrize("place", [Failpoint.COMMIT_SENT, Failpoint.AFTER_FINISH])
def test_after_the_end_is_written(
    connections: Connections, system: Stack, marker: Path, place: Failpoint, action: Action
) -> None:
    job, ends = run_through(connections, system, marker, place, action, Effect)
    assert ends == ["completed"], "what is committed is committed: it does not run again"
    assert (job.status, job.result) == (JobStatus.COMPLETED, "narrow")
    assert effects(connections, job) == 1


@EVERY
def test_after_one_statement_has_completed_a_job_without_effects(
    connections: Connections, system: Stack, marker: Path, action: Action
) -> None:
    job, ends = run_through(connections, system, marker, Failpoint.COMMIT_SENT, action, Echo)
    assert ends == ["completed"], "what is committed is committed: it does not run again"
    assert (job.status, job.result) == (JobStatus.COMPLETED, {"note": "narrow"})


# -- repair


def all_but_the_killed(schedulers: list[Process], action: Action) -> bool:
    """Of these schedulers only the one that was killed is gone."""
    return sum(one.popen.poll() is None for one in schedulers) == len(schedulers) - (action is Action.KILL)


@EVERY
def test_relay_between_push_and_its_record(
    connections: Connections, system: Stack, marker: Path, action: Action
) -> None:
    job = Effect.dispatch(note="narrow")
    connections.redis.flushall()
    with connections.transaction() as connection:
        connection.execute(sa.text("UPDATE job_statuses SET pushed_at = NULL"))
    relays = [system.scheduler(**SHORT, **planned(Failpoint.AFTER_RELAY_PUSH, action, marker))]
    with at_the_place(connections, action, marker) as frozen:
        relays.append(system.scheduler(**SHORT))
        worker = system.worker(**SHORT)
        assert job.wait(60).status is JobStatus.COMPLETED, "a frozen relay keeps nobody from the row for long"
    swept(connections, "relay", frozen)
    eventually(lambda: not waiting(connections.redis, "default"), what="the end of what was pushed twice")
    at_rest(connections, [worker])
    assert outcomes(job) == ["completed"]
    assert effects(connections, job) == 1
    assert all_but_the_killed(relays, action)


@EVERY
def test_reaper_between_look_and_act(connections: Connections, system: Stack, marker: Path, action: Action) -> None:
    doomed = system.worker(**SHORT)
    job = Effect.dispatch(note="narrow", sleep_seconds=1)
    started(job)
    doomed.kill_tree()
    reapers = [system.scheduler(**SHORT, **planned(Failpoint.REAPER_DECIDED, action, marker)) for _ in range(2)]
    worker = system.worker(**SHORT)
    with at_the_place(connections, action, marker) as frozen:
        assert job.wait(60).status is JobStatus.COMPLETED
    swept(connections, by=frozen)  # it does what it had decided, first
    at_rest(connections, [worker])
    assert outcomes(job) == ["lost", "completed"]
    assert effects(connections, job) == 1
    assert one_value(connections, "SELECT losses FROM job_statuses") == 1
    assert all_but_the_killed(reapers, action)


# -- the clock

FIRST_TICK = "SELECT scheduler FROM schedule_ticks ORDER BY fire_at LIMIT 1"


@EVERY
def test_between_tick_and_job(connections: Connections, system: Stack, marker: Path, action: Action) -> None:
    modules = {"JOBLEDGER_JOB_MODULES": "sample_jobs,clock_schedules"}
    plan = planned(Failpoint.TICK_TAKEN, action, marker)
    for _ in range(2):
        system.scheduler(**SHORT, **modules, **plan)
    worker = system.worker(**SHORT, **modules)
    with at_the_place(connections, action, marker) as frozen:
        created_at = one_value(connections, "SELECT created_at FROM schedules")
        if frozen is not None:
            ticks = one_value(connections, "SELECT count(*) FROM schedule_ticks")
            assert ticks == 0, "its turn is kept for it, so that nothing is fired out of order"
    if frozen is not None:
        eventually(lambda: one_value(connections, FIRST_TICK), what="the tick that was kept")
        assert one_value(connections, FIRST_TICK).endswith(f":{frozen.pid}"), "fired by whom it was kept for"
    until = "SELECT extract(epoch FROM decided_until - :since) FROM schedules"
    seconds = eventually(
        lambda: (n := float(one_value(connections, until, since=created_at))) >= 4 and n, seconds=60, what="four ticks"
    )
    for process in system.processes:
        if process is not worker:
            process.signal(signal.SIGKILL)
    system.scheduler(**SHORT, JOBLEDGER_JOB_MODULES="sample_jobs")  # repairs, for some died before their push
    eventually(lambda: one_value(connections, UNENDED) == 0, seconds=60, what="every job has ended")
    notes = "SELECT count(*), count(DISTINCT note) FROM effects"
    with connections.transaction() as connection:
        fired, moments = connection.execute(sa.text(notes)).one()
    assert fired == moments >= int(seconds), "each second once, none missing"
    assert marker.exists()
