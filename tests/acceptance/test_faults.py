"""Whole processes, killed with real signals: what the README promises about them."""

import os
import signal
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from harness import SHORT, Stack, backdate_sweeps, effects, eventually, one_value, started
from jobledger import Connections, JobHandle, JobStatus
from jobledger.queues import waiting
from sample_jobs import EFFECTS, Effect, Failing, Fails, Locks, Stubborn


@pytest.fixture(autouse=True)
def _effects(connections: Connections) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(EFFECTS))


def test_a_killed_work_horse_runs_again_within_ten_seconds_and_its_effects_happen_once(
    connections: Connections, system: Stack
) -> None:
    system.worker()
    system.scheduler()
    job = Effect.dispatch(note="killed", sleep_seconds=3)
    first = started(job)
    killed_at = time.monotonic()
    os.kill(first.pid, signal.SIGKILL)
    again = started(job, 2)
    assert time.monotonic() - killed_at < 10
    assert again.pid != first.pid
    assert job.wait(30).status is JobStatus.COMPLETED
    assert [attempt.outcome for attempt in job.attempts] == ["crashed", "completed"]
    assert "signal 9" in job.attempts[0].error_message
    assert effects(connections, job) == 1


def test_a_job_that_always_kills_its_process_ends_failed_and_its_on_failed_runs_once(
    connections: Connections, system: Stack
) -> None:
    system.worker()
    system.scheduler(**SHORT)
    job = Failing.dispatch(how="kill")
    assert job.wait(60).status is JobStatus.FAILED
    assert job.reason == "crashed"
    assert [attempt.outcome for attempt in job.attempts] == ["crashed"] * 3
    eventually(lambda: effects(connections, job) == 1, what="on_failed")
    assert one_value(connections, "SELECT note FROM effects WHERE job_id = :id", id=job.id) == "crashed: kill"


def test_a_whole_worker_tree_killed_is_noticed_when_its_lease_runs_out(connections: Connections, system: Stack) -> None:
    backdate_sweeps(connections)
    system.scheduler(**SHORT)
    doomed = system.worker(**SHORT)
    job = Effect.dispatch(note="tree", sleep_seconds=2)
    started(job)
    doomed.kill_tree()
    killed_at = time.monotonic()
    system.worker(**SHORT)
    started(job, 2)
    assert time.monotonic() - killed_at < 45
    assert job.wait(30).status is JobStatus.COMPLETED
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "completed"]
    assert effects(connections, job) == 1


def test_a_work_horse_dies_with_its_worker(connections: Connections, system: Stack) -> None:
    worker = system.worker()
    job = Effect.dispatch(sleep_seconds=60)
    horse = psutil.Process(started(job).pid)
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: not horse.is_running() or horse.status() == psutil.STATUS_ZOMBIE, seconds=5, what="its death")
    assert effects(connections, job) == 0


def test_a_run_that_sleeps_past_its_lease_commits_nothing(connections: Connections, system: Stack) -> None:
    backdate_sweeps(connections)
    system.scheduler(**SHORT)
    first, second = system.worker(**SHORT), system.worker(**SHORT)
    job = Effect.dispatch(note="frozen", sleep_seconds=2)
    frozen = psutil.Process(started(job).pid)
    parent = psutil.Process(frozen.ppid())
    assert parent.pid in (first.pid, second.pid)
    backend = one_value(connections, "SELECT backend_pid FROM job_attempts WHERE job_id = :id", id=job.id)
    parent.suspend()
    frozen.suspend()
    try:
        assert started(job, 2).pid != frozen.pid
        alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"
        assert one_value(connections, alive, pid=backend) == 0, "the zombie's session was ended"
        assert job.wait(30).status is JobStatus.COMPLETED
    finally:
        parent.resume()
        frozen.resume()
    eventually(lambda: not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE, what="the zombie's end")
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "completed"]
    assert effects(connections, job) == 1


def test_a_frozen_run_keeps_no_locks(connections: Connections, system: Stack) -> None:
    backdate_sweeps(connections)
    system.scheduler(**SHORT)
    system.worker(**SHORT)
    system.worker(**SHORT)
    job = Locks.dispatch()
    first = psutil.Process(started(job).pid)
    eventually(lambda: job.attempts[0].progress_note == "locked", what="the lock")
    psutil.Process(first.ppid()).suspend()
    first.suspend()
    try:
        assert job.wait(40).status is JobStatus.COMPLETED
    finally:
        psutil.Process(first.ppid()).resume()
        first.resume()
    assert job.attempts[-1].number == 2


def test_a_run_that_nothing_can_interrupt_leaves_no_locks_behind(connections: Connections, system: Stack) -> None:
    system.worker()
    system.scheduler()
    job = Stubborn.dispatch(how="deadlock")
    assert job.wait(60).status is JobStatus.FAILED
    assert job.reason == "timeout"
    # Its worker has nothing else to do; the session that it lent to the work-horse must not outlive that.
    locked = "SELECT count(*) FROM pg_locks WHERE relation = 'effects'::regclass AND mode = 'AccessExclusiveLock'"
    eventually(lambda: one_value(connections, locked) == 0, seconds=5, what="the lock's end")


def test_a_run_that_keeps_the_interpreter_keeps_its_worker_from_others_no_longer_than_its_lease(
    connections: Connections, system: Stack
) -> None:
    backdate_sweeps(connections)
    system.scheduler(**SHORT)
    worker = system.worker(**SHORT)
    stuck = Stubborn.dispatch(how="gil")
    horse = psutil.Process(started(stuck).pid)
    others = Effect.dispatch_many([{"note": "behind it"}] * 3)
    for other in others:
        assert other.wait(30).status is JobStatus.COMPLETED, "RQ itself would end the process after a minute and a half"
    assert not horse.is_running()
    assert worker.popen.poll() is None


def test_a_flushed_redis_loses_no_job(connections: Connections, system: Stack) -> None:
    jobs = Effect.dispatch_many([{"note": str(number)} for number in range(1000)])
    connections.redis.flushall()
    assert waiting(connections.redis, "default") == []
    system.scheduler(**SHORT)
    eventually(lambda: len(waiting(connections.redis, "default")) == len(jobs), seconds=30, what="all pushed again")
    system.worker("--burst", "default")
    done = "SELECT count(*) FROM job_statuses WHERE status = 'completed'"
    eventually(lambda: one_value(connections, done) >= 20, seconds=60, what="work going on")


def test_retries_wait_as_the_class_says(connections: Connections, system: Stack, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    system.scheduler(**SHORT)
    system.worker()
    job = Fails.dispatch(until=3, trace_file=str(trace))
    assert job.wait(30).result == 3
    assert [attempt.outcome for attempt in job.attempts] == ["error", "error", "completed"]
    moments = [float(line) for line in trace.read_text().split()]
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(moments))


def test_rq_shows_our_jobs_with_readable_descriptions_and_the_failed_ones_as_failed(
    connections: Connections, system: Stack
) -> None:
    system.worker()
    done = Effect.set(title="a good one").dispatch()
    failed = Failing.dispatch(how="raise")
    assert done.wait(20).status is JobStatus.COMPLETED
    assert failed.wait(20).status is JobStatus.FAILED
    client = connections.redis

    def fields(job: JobHandle) -> tuple[bytes | None, bytes | None]:
        return client.hget(f"rq:job:{job.id}", "status"), client.hget(f"rq:job:{job.id}", "description")

    eventually(lambda: fields(done) == (b"finished", b"Effect: a good one"), what="RQ's finished")
    eventually(lambda: fields(failed) == (b"failed", b"Failing"), what="RQ's failed")


def test_a_plain_worker_without_our_configuration_runs_jobs(connections: Connections, system: Stack) -> None:
    rq = str(Path(os.sys.executable).parent / "rq")
    system.start(rq, "worker", "--url", connections.settings.require_redis_url(), "high", "default", "low")
    job = Effect.dispatch(note="plain")
    assert job.wait(30).status is JobStatus.COMPLETED
    assert effects(connections, job) == 1


def test_two_schedulers_fire_a_tick_once(connections: Connections, system: Stack) -> None:
    environment = {"JOBLEDGER_JOB_MODULES": "sample_jobs,sample_schedules"}
    schedulers = [system.scheduler(**environment) for _ in range(2)]
    ticks = (
        "SELECT count(*) FROM schedule_ticks t JOIN schedules s ON s.id = t.schedule_id WHERE s.name = 'every second'"
    )
    eventually(lambda: one_value(connections, ticks) >= 5, seconds=30, what="five ticks")
    for process in schedulers:
        process.stop()
    doubled = """SELECT count(*) FROM (SELECT schedule_id, fire_at FROM job_statuses WHERE job_type = 'Effect'
                 GROUP BY 1, 2 HAVING count(*) <> 1) AS d"""
    assert one_value(connections, doubled) == 0
    jobs = one_value(connections, "SELECT count(*) FROM job_statuses WHERE job_type = 'Effect'")
    assert jobs == one_value(connections, ticks)
    raising = "SELECT count(*) FROM schedule_ticks t JOIN schedules s ON s.id = t.schedule_id WHERE s.name = 'raises'"
    assert one_value(connections, raising) == 0, "a function that raises leaves no tick"
    assert one_value(connections, "SELECT count(*) FROM job_statuses WHERE job_type = 'Echo'") == 0


def test_time_is_the_database_s(connections: Connections) -> None:
    before = one_value(connections, "SELECT now()")
    job = Effect.dispatch_in("10m")
    row = one_value(connections, "SELECT available_at FROM job_statuses WHERE id = :id", id=job.id)
    assert 600 <= (row - before).total_seconds() < 660
    assert abs((before - datetime.now(UTC)).total_seconds()) < 5
