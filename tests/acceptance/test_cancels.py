"""Jobs that are canceled while they run, in real workers: ended in time, whatever they do, and never run again."""

import signal
import time
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from cancel_jobs import Busy
from harness import SHORT, Stack, backdate_sweeps, begun, effects, eventually, stack
from jobledger import Connections, JobHandle, JobStatus, control
from jobledger.control import Verdict
from jobledger.embedded import EmbeddedServers
from sample_jobs import EFFECTS

MODULES = {"JOBLEDGER_JOB_MODULES": "cancel_jobs"}
WHY = "canceled by ann: enough"


@pytest.fixture(autouse=True)
def _effects(connections: Connections) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(EFFECTS))


def canceled_in_time(connections: Connections, job: JobHandle) -> float:
    """Cancel it, wait, and give the seconds that it took by the ledger's clock."""
    answer = control.cancel(connections, job.id, "ann", "enough")
    assert (answer.verdict, answer.status) == (Verdict.REQUESTED, JobStatus.STARTED)
    ended = control.wait_for_cancel(connections, job.id, 40)
    assert (ended.verdict, ended.status) == (Verdict.DONE, JobStatus.CANCELED)
    assert job.refresh().reason == WHY
    with connections.transaction() as connection:
        took = "SELECT extract(epoch FROM finished_at - cancel_requested_at) FROM job_statuses WHERE id = :id"
        return float(connection.execute(sa.text(took), {"id": job.id}).scalar_one())


def outcomes(job: JobHandle) -> list[str | None]:
    return [attempt.outcome for attempt in job.attempts]


@pytest.mark.parametrize("how", ["check", "sleep", "sql", "swallow", "turn"])
def test_a_running_job_is_ended_within_15_seconds(
    connections: Connections, system: Stack, tmp_path: Path, how: str
) -> None:
    """Without any scheduler: the process of the job does it."""
    worker = system.worker(**MODULES)
    job = Busy.dispatch(how=how, release_file=str(tmp_path / "never"))
    child = Busy.dispatch(how="raise", after=job)
    horse = begun(job)

    assert canceled_in_time(connections, job) < (7 if how == "check" else 15)

    assert outcomes(job) == ["canceled"]
    assert effects(connections, job) == 0
    assert child.refresh().reason == f"parent {job.id} was canceled"
    eventually(lambda: not psutil.pid_exists(horse), 20, "its process has ended")
    after = Busy.dispatch(how="nothing", release_file=str(Path(__file__)))
    assert after.wait(20).status is JobStatus.COMPLETED, worker.output()


def test_a_job_that_lets_no_other_thread_run_is_ended_by_the_reaper(connections: Connections, system: Stack) -> None:
    worker = system.worker(**MODULES)
    system.scheduler(**MODULES)
    job = Busy.dispatch(how="c")
    horse = begun(job)
    time.sleep(3)  # it has to get there: nothing can be seen of that from outside

    assert canceled_in_time(connections, job) < 15

    assert outcomes(job) == ["canceled"]
    assert effects(connections, job) == 0
    eventually(lambda: not psutil.pid_exists(horse), 20, "its worker has killed its process")
    after = Busy.dispatch(how="nothing", release_file=str(Path(__file__)))
    assert after.wait(30).status is JobStatus.COMPLETED, worker.output()


def test_a_frozen_job_is_ended_by_the_reaper(connections: Connections, system: Stack) -> None:
    system.worker(**MODULES)
    system.scheduler(**MODULES)
    job = Busy.dispatch(how="sleep")
    psutil.Process(begun(job)).send_signal(signal.SIGSTOP)

    assert canceled_in_time(connections, job) < 15
    assert outcomes(job) == ["canceled"]


@pytest.mark.parametrize(("how", "outcome"), [("raise", "error"), ("snooze", "snoozed"), ("crash", "crashed")])
def test_a_job_that_ends_otherwise_does_not_run_again(
    connections: Connections, system: Stack, tmp_path: Path, how: str, outcome: str
) -> None:
    backdate_sweeps(connections)
    system.worker(**MODULES, **SHORT)
    system.scheduler(**MODULES, **SHORT)
    job = Busy.dispatch(how=how, release_file=str(tmp_path / "release"))
    begun(job)

    assert control.cancel(connections, job.id, "ann", "enough").verdict is Verdict.REQUESTED
    (tmp_path / "release").touch()

    assert job.wait(30).status is JobStatus.CANCELED
    assert job.reason == WHY
    assert outcomes(job) == [outcome]


def test_a_job_whose_machine_is_lost_does_not_run_again(connections: Connections, system: Stack) -> None:
    backdate_sweeps(connections)
    worker = system.worker(**MODULES, **SHORT)
    job = Busy.dispatch(how="sleep")
    begun(job)
    assert control.cancel(connections, job.id, "ann", "enough").verdict is Verdict.REQUESTED
    worker.kill_tree()

    system.scheduler(**MODULES, **SHORT)

    assert job.wait(40).status is JobStatus.CANCELED
    assert job.reason == WHY
    assert outcomes(job) in (["lost"], ["canceled"])


def test_what_completes_before_it_is_ended_has_completed(
    connections: Connections, system: Stack, tmp_path: Path
) -> None:
    system.worker(**MODULES)
    job = Busy.dispatch(how="release", release_file=str(tmp_path / "release"))
    begun(job)

    assert control.cancel(connections, job.id, "ann", "enough").verdict is Verdict.REQUESTED
    (tmp_path / "release").touch()

    answer = control.wait_for_cancel(connections, job.id)
    assert (answer.verdict, answer.status) == (Verdict.REFUSED, JobStatus.COMPLETED)
    assert effects(connections, job) == 1


def test_a_canceled_job_that_is_retried_runs_to_its_end(
    connections: Connections, system: Stack, tmp_path: Path
) -> None:
    system.worker(**MODULES)
    release = tmp_path / "release"
    job = Busy.dispatch(how="check", release_file=str(release))
    begun(job)
    assert job.cancel("enough", by="ann", wait=15).is_done
    assert job.status is JobStatus.CANCELED

    assert job.retry().is_done
    eventually(lambda: len(job.attempts) == 2, 30, "it runs again")
    time.sleep(4)  # for the second attempt to look for a request, and to find none

    assert job.refresh().status is JobStatus.STARTED
    assert job.cancel("changed my mind", by="bob", wait=15).is_done
    assert job.refresh().reason == "canceled by bob: changed my mind"
    assert outcomes(job) == ["canceled", "canceled"]


# -- while Redis is away


def test_a_cancel_while_redis_is_away_ends_the_job(own: tuple[EmbeddedServers, Connections], tmp_path: Path) -> None:
    servers, connections = own
    environment = {
        "JOBLEDGER_DATABASE_URL": servers.database_url,
        "JOBLEDGER_REDIS_URL": servers.redis_url,
        **MODULES,
    }
    with stack(environment, tmp_path) as system:
        system.worker()
        job = Busy.dispatch(how="swallow")
        begun(job)
        servers.redis.stop()

        assert canceled_in_time(connections, job) < 15
        assert outcomes(job) == ["canceled"]
