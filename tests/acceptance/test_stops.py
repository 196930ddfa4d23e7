"""A worker that is told to stop in the middle of a job, with real signals: nothing is lost, spent or done twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from harness import Process, Stack, begun, eventually, one_value, stack
from jobledger import Connections, JobHandle, JobStatus
from jobledger.embedded import EmbeddedServers
from jobledger.maintenance.relay import relay_unpushed
from sample_jobs import EFFECTS
from stop_jobs import Interrupted, LeavesOff

SHORT_DRAIN = {"JOBLEDGER_DRAIN_SECONDS": "1", "JOBLEDGER_JOB_MODULES": "stop_jobs"}
LONG_DRAIN = {"JOBLEDGER_DRAIN_SECONDS": "30", "JOBLEDGER_JOB_MODULES": "stop_jobs"}


@pytest.fixture(autouse=True)
def _effects(connections: Connections) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(EFFECTS))


def spent(connections: Connections, job: JobHandle) -> list[int]:
    with connections.transaction() as connection:
        row = connection.execute(
            sa.text("SELECT errors, crashes, losses FROM job_statuses WHERE id = :id"), {"id": job.id}
        )
        return list(row.one())


def outcomes(job: JobHandle) -> list[str | None]:
    return [attempt.outcome for attempt in job.attempts]


def effects(connections: Connections, job: JobHandle) -> list[int]:
    with connections.transaction() as connection:
        rows = connection.execute(sa.text("SELECT attempt FROM effects WHERE job_id = :id"), {"id": job.id})
        return list(rows.scalars())


def is_handed_back_and_runs_elsewhere(connections: Connections, system: Stack, job: JobHandle) -> None:
    """Without any scheduler: whoever hands it back wakes the next one."""
    assert job.refresh().status is JobStatus.QUEUED
    system.worker(**SHORT_DRAIN)
    assert job.wait(20).status is JobStatus.COMPLETED
    assert outcomes(job) == ["handed_back", "completed"]
    assert spent(connections, job) == [0, 0, 0]
    assert effects(connections, job) == [2]


@pytest.mark.parametrize("how", ["sleep", "sql", "swallow", "turn"])
def test_a_job_that_does_not_end_in_the_drain_is_handed_back(connections: Connections, system: Stack, how: str) -> None:
    worker = system.worker(**SHORT_DRAIN)
    job = Interrupted.dispatch(how=how)
    begun(job)
    place = one_value(connections, "SELECT queued_at FROM job_statuses WHERE id = :id", id=job.id)

    worker.signal(signal.SIGTERM)

    assert worker.wait(20) == 0, worker.output()
    assert one_value(connections, "SELECT queued_at FROM job_statuses WHERE id = :id", id=job.id) == place
    is_handed_back_and_runs_elsewhere(connections, system, job)


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_job_that_ends_in_the_drain_completes(connections: Connections, system: Stack, whole_group: bool) -> None:
    worker = system.worker(**LONG_DRAIN)
    job = Interrupted.dispatch(how="sleep", seconds=4)
    pid = begun(job)

    worker.signal(signal.SIGTERM)
    if whole_group:
        os.kill(pid, signal.SIGTERM)

    assert worker.wait(30) == 0, worker.output()
    assert job.wait(5).status is JobStatus.COMPLETED
    assert outcomes(job) == ["completed"]
    assert effects(connections, job) == [1]


def test_a_signal_to_everybody_hands_the_job_back(connections: Connections, system: Stack) -> None:
    worker = system.worker(**SHORT_DRAIN)
    job = Interrupted.dispatch(how="sleep")
    horse = begun(job)

    for pid in (worker.pid, horse):  # as systemd's KillMode=control-group does
        os.kill(pid, signal.SIGTERM)

    assert worker.wait(20) == 0, worker.output()
    is_handed_back_and_runs_elsewhere(connections, system, job)


def test_a_work_horse_that_is_told_twice_dies_and_the_job_runs_again(connections: Connections, system: Stack) -> None:
    system.scheduler(JOBLEDGER_SWEEP_SECONDS="0.5", JOBLEDGER_RELAY_SECONDS="0.2")
    worker = system.worker(**LONG_DRAIN)
    job = Interrupted.dispatch(how="sleep")
    horse = psutil.Process(begun(job))

    horse.terminate()
    eventually(lambda: horse.status() == psutil.STATUS_SLEEPING, what="it goes on after the first")
    assert horse.is_running()
    horse.terminate()

    assert job.wait(30).status is JobStatus.COMPLETED
    assert outcomes(job) == ["crashed", "completed"]
    assert effects(connections, job) == [2]
    worker.stop()


def test_a_worker_that_is_told_twice_kills_its_job_which_runs_again(connections: Connections, system: Stack) -> None:
    short = {"JOBLEDGER_LEASE_SECONDS": "3", "JOBLEDGER_SWEEP_SECONDS": "0.5", "JOBLEDGER_RELAY_SECONDS": "0.2"}
    with connections.transaction() as connection:  # as if somebody had been sweeping for long
        connection.execute(sa.text("INSERT INTO sweeps VALUES ('reap', now(), now() - interval '1 hour', 'test')"))
    system.scheduler(**short)
    worker = system.worker(**{**LONG_DRAIN, **short})
    job = Interrupted.dispatch(how="sleep")
    begun(job)

    worker.signal(signal.SIGTERM)
    eventually(lambda: "warm shut down" in worker.output(), what="the first is heard")
    time.sleep(1.1)  # RQ ignores a second one within a second
    worker.signal(signal.SIGTERM)
    worker.wait(10)
    system.worker(**{**LONG_DRAIN, **short})

    assert job.wait(40).status is JobStatus.COMPLETED
    assert outcomes(job) == ["lost", "completed"]
    assert effects(connections, job) == [2]


def test_a_job_sees_that_its_worker_stops_and_may_leave_off(
    connections: Connections, system: Stack, tmp_path: Path
) -> None:
    worker = system.worker(**LONG_DRAIN)
    job = LeavesOff.dispatch(begun_file=str(tmp_path / "begun"))
    eventually((tmp_path / "begun").exists, 60, "the job's beginning")

    worker.signal(signal.SIGTERM)

    assert worker.wait(20) == 0, worker.output()
    assert job.wait(5).result == "left off"
    assert outcomes(job) == ["completed"]


def test_an_idle_worker_of_ours_ends_at_once_and_well(connections: Connections, system: Stack) -> None:
    worker = system.start(sys.executable, "-m", "jobledger", "worker")
    eventually(lambda: "Listening on" in worker.output(), 60, "the worker's start")

    worker.signal(signal.SIGTERM)

    assert worker.wait(10) == 0, worker.output()


def test_a_worker_that_has_to_give_up_ends_with_an_error(connections: Connections, system: Stack) -> None:
    """What RQ's loop makes of what it did not expect, here a job of a form that it cannot read."""
    worker = system.start(sys.executable, "-m", "jobledger", "worker", "broken")
    eventually(lambda: "Listening on" in worker.output(), 60, "the worker's start")

    connections.redis.hset("rq:job:poison", mapping={"data": b"x", "created_at": "no time", "status": "no status"})
    connections.redis.rpush("rq:queue:broken", "poison")

    assert worker.wait(20) == 1, worker.output()


# -- as the first process


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a PID namespace needs root and unshare"
)
def test_the_first_process_of_a_container_hands_back_and_ends(connections: Connections, system: Stack) -> None:
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
        "-m",
        "jobledger",
        "worker",
    ]
    if subprocess.run([*command[:5], "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no namespace of pids")
    container = system.start(*command, **SHORT_DRAIN)
    eventually(lambda: "Listening on" in container.output() or container.popen.poll() is not None, 60, "its start")
    (init,) = psutil.Process(container.pid).children()
    job = Interrupted.dispatch(how="sleep")
    begun(job)

    init.terminate()

    assert container.wait(20) == 0, container.output()
    is_handed_back_and_runs_elsewhere(connections, system, job)


# -- while Redis is away


def test_a_stop_while_redis_is_away_hands_the_job_back(
    own: tuple[EmbeddedServers, Connections], tmp_path: Path
) -> None:
    servers, connections = own
    environment = {
        "JOBLEDGER_DATABASE_URL": servers.database_url,
        "JOBLEDGER_REDIS_URL": servers.redis_url,
        **SHORT_DRAIN,
    }
    with stack(environment, tmp_path) as system:
        worker: Process = system.start(sys.executable, "-m", "jobledger", "worker")
        eventually(lambda: "Listening on" in worker.output(), 60, "the worker's start")
        job = Interrupted.dispatch(how="sleep")
        horse = begun(job)
        servers.redis.stop()

        for pid in (worker.pid, horse):
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: job.refresh().status is JobStatus.QUEUED, 20, "the job is handed back")
        servers.redis.start()

        assert worker.wait(40) in (0, 1), worker.output()
        relay_unpushed(connections)  # the push did not work
        is_handed_back_and_runs_elsewhere(connections, system, job)
