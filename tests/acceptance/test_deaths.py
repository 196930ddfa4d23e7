"""Processes that end without a word, cannot be interrupted, or fork: each attempt ends as what it was, once."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from deadly_jobs import (
    MISUSES,
    AsksForAnotherConnection,
    EndlessContext,
    Ends,
    Forks,
    ForksAsync,
    HasChildren,
    HoldsTheLock,
    LeavesSettings,
    Misuses,
    Overstays,
    RaisesFromAttributes,
    ReportsAfterItsEnd,
    Sleeper,
    TakesAlarm,
    UsesAlarm,
)
from harness import Process, Stack, eventually, execute, one_value, stack
from jobledger import Connections, JobHandle, JobStatus, Outcome, Settings, configure
from sample_jobs import EFFECTS, Echo, Effect

pytestmark = pytest.mark.one_database

LEASE_SECONDS = 3
SOON = 30.0
"""What takes a second or two on a quiet machine."""


@pytest.fixture(scope="module")
def fleet(module_database_url: str, servers: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker and one scheduler for all tests of this module."""
    directory = tmp_path_factory.mktemp("deaths")
    environment = {
        "JOBLEDGER_DATABASE_URL": module_database_url,
        "JOBLEDGER_REDIS_URL": servers.redis.url,  # type: ignore[attr-defined]
        "JOBLEDGER_JOB_MODULES": "sample_jobs,deadly_jobs",
        "JOBLEDGER_LEASE_SECONDS": str(LEASE_SECONDS),
        "JOBLEDGER_SWEEP_SECONDS": "1",
        "JOBLEDGER_RELAY_SECONDS": "0.3",
        "JOBLEDGER_DATA_DIR": str(directory),
    }
    with stack(environment, directory) as running:
        running.worker()
        running.scheduler()
        yield running


@pytest.fixture
def connections(fleet: Stack) -> Iterator[Connections]:
    made = configure(Settings(**{k.removeprefix("JOBLEDGER_").lower(): v for k, v in fleet.environment.items()}))
    execute(made, EFFECTS)
    yield made
    made.close()


def worker_of(fleet: Stack) -> Process:
    return fleet.processes[0]


def outcomes(job: JobHandle) -> list[Outcome | None]:
    return [one.outcome for one in job.attempts]


def effects(connections: Connections, job: JobHandle) -> int:
    return int(one_value(connections, "SELECT count(*) FROM effects WHERE job_id = :id", id=job.id))


@pytest.mark.parametrize("how", ["os._exit(0)", "exec", "exit of C", "in a thread", "os._exit(7)", "SIGKILL"])
def test_a_process_that_ends_in_the_middle_of_a_job_has_crashed(
    connections: Connections, fleet: Stack, tmp_path: Path, how: str
) -> None:
    job = Ends.dispatch(how=how, once=str(tmp_path / "once"))

    job.wait(SOON)

    assert (job.status, job.result) == (JobStatus.COMPLETED, 2)
    assert outcomes(job) == [Outcome.CRASHED, Outcome.COMPLETED]
    assert worker_of(fleet).popen.poll() is None


def test_a_job_that_always_ends_its_process_spends_three_crashes(connections: Connections, fleet: Stack) -> None:
    job = Ends.dispatch(how="os._exit(0)")

    job.wait(2 * SOON)

    assert (job.status, job.reason) == (JobStatus.FAILED, "crashed")
    assert outcomes(job) == [Outcome.CRASHED] * 3
    assert worker_of(fleet).popen.poll() is None
    assert Echo.dispatch().wait(SOON).status is JobStatus.COMPLETED


def test_a_stop_for_a_job_whose_process_is_gone_kills_neither_worker_nor_bystander(
    connections: Connections, fleet: Stack, tmp_path: Path
) -> None:
    job = Ends.dispatch(how="os._exit(0)", once=str(tmp_path / "once"))
    job.wait(SOON)
    name = job.attempts[0].worker

    known = connections.redis.hget(f"rq:worker:{name}", "current_job")

    assert known is None or known.decode() != str(job.id) or job.refresh().status is JobStatus.COMPLETED  # type: ignore[union-attr]
    assert psutil.Process(worker_of(fleet).pid).is_running()


def test_a_job_that_holds_the_interpreters_lock_past_its_lease_completes_at_its_first_attempt(
    connections: Connections,
) -> None:
    job = HoldsTheLock.dispatch(seconds=3 * LEASE_SECONDS)

    job.wait(2 * SOON)

    assert (job.status, job.result) == (JobStatus.COMPLETED, 1)
    assert outcomes(job) == [Outcome.COMPLETED]


def test_code_that_holds_the_lock_past_its_timeout_is_ended(connections: Connections) -> None:
    job = Overstays.dispatch(seconds=600)

    job.wait(SOON)

    assert (job.status, job.reason) == (JobStatus.FAILED, "timeout")
    assert outcomes(job) == [Outcome.TIMEOUT]
    assert Echo.dispatch().wait(SOON).status is JobStatus.COMPLETED, "its worker is free again"


def test_a_cancel_ends_a_job_that_holds_the_interpreters_lock(connections: Connections) -> None:
    job = HoldsTheLock.dispatch(seconds=600)
    eventually(lambda: job.refresh().status is JobStatus.STARTED, SOON)

    job.cancel("not wanted", by="ann", wait=SOON)

    assert job.refresh().status is JobStatus.CANCELED
    assert Echo.dispatch().wait(SOON).status is JobStatus.COMPLETED


@pytest.mark.parametrize("how", ["returns", "exits", "raises", "interrupts"])
def test_a_forked_child_that_leaves_the_job_ends_nothing(connections: Connections, how: str) -> None:
    job = Forks.dispatch(how=how)

    job.wait(SOON)

    assert (job.status, job.result) == (JobStatus.COMPLETED, "parent")
    assert effects(connections, job) == 1
    assert outcomes(job) == [Outcome.COMPLETED]


def test_a_child_that_is_forked_in_an_event_loop_ends_nothing(connections: Connections) -> None:
    job = ForksAsync.dispatch().wait(SOON)

    assert (job.status, job.result) == (JobStatus.COMPLETED, "parent")


@pytest.mark.parametrize("how", ["takes", "ignores", "resets", "own timer", "blocks all"])
def test_a_job_that_takes_the_alarm_times_out_once(connections: Connections, how: str) -> None:
    job = TakesAlarm.dispatch(how=how)

    job.wait(SOON)

    assert (job.status, job.reason) == (JobStatus.FAILED, "timeout")
    assert outcomes(job) == [Outcome.TIMEOUT]


def test_a_job_may_use_the_alarm_for_itself(connections: Connections) -> None:
    assert UsesAlarm.dispatch().wait(SOON).result == "rung"


@pytest.mark.parametrize(
    ("how", "result"),
    [
        ("terminates", "exit code -15"),
        ("pool", "[1, 2]"),
        ("own handler", "exit code 42, blocked: True"),
        ("forks twice", "done"),
    ],
)
def test_children_take_signals_as_processes_do(connections: Connections, tmp_path: Path, how: str, result: str) -> None:
    job = HasChildren.dispatch(how=how, pids_file=str(tmp_path / "pids")).wait(SOON)

    assert (job.status, job.result) == (JobStatus.COMPLETED, result)


def test_children_die_with_their_work_horse(connections: Connections, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    job = HasChildren.dispatch(how="dies", pids_file=str(file))
    pids = [int(one) for one in eventually(lambda: file.exists() and file.read_text().split(), SOON)]

    eventually(lambda: not any(_lives(pid) for pid in pids), SOON, "the death of the children")

    job.cancel("end of the test")


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_engine_of_a_session_opens_no_second_connection(connections: Connections) -> None:
    job = AsksForAnotherConnection.dispatch().wait(SOON)

    assert "opens no connection of its own" in str(job.result)
    assert outcomes(job) == [Outcome.COMPLETED]
    assert effects(connections, job) == 1


@pytest.mark.parametrize("how", ["driver", "sqlalchemy"])
def test_an_error_whose_attributes_raise_is_an_error(connections: Connections, how: str) -> None:
    job = RaisesFromAttributes.dispatch(how=how).wait(SOON)

    assert outcomes(job) == [Outcome.ERROR]


def test_an_error_in_the_context_that_has_no_end_holds_up_no_worker(connections: Connections, fleet: Stack) -> None:
    job = EndlessContext.dispatch().wait(SOON)
    assert outcomes(job) == [Outcome.TIMEOUT]

    assert Echo.dispatch().wait(SOON).status is JobStatus.COMPLETED


def test_a_child_that_a_job_left_behind_touches_no_other_lease(connections: Connections, tmp_path: Path) -> None:
    file = tmp_path / "over"
    assert ReportsAfterItsEnd.dispatch(file=str(file)).wait(SOON).status is JobStatus.COMPLETED

    job = Sleeper.dispatch(seconds=3 * LEASE_SECONDS).wait(3 * SOON)
    file.touch()

    assert outcomes(job) == [Outcome.COMPLETED]


@pytest.mark.parametrize("how", MISUSES)
def test_a_job_cannot_end_the_transaction_in_which_it_completes(connections: Connections, how: str) -> None:
    execute(connections, "CREATE OR REPLACE PROCEDURE commits() LANGUAGE plpgsql AS 'BEGIN COMMIT; END'")
    job = Misuses.dispatch(how=how).wait(SOON)

    assert (job.status, job.result) == (JobStatus.COMPLETED, 2)
    assert outcomes(job) == [Outcome.ERROR, Outcome.COMPLETED]
    assert effects(connections, job) == 1
    if how != "procedure":  # Postgres itself refuses that one
        assert job.attempts[0].error_type == "TransactionMisused"


@pytest.mark.parametrize(
    "how",
    [
        "SET LOCAL search_path TO pg_catalog",
        "SET search_path TO pg_catalog",
        "SET LOCAL ROLE pg_monitor",
        "SET LOCAL statement_timeout = '1ms'",
        "DEALLOCATE ALL",
    ],
)
def test_what_a_job_sets_does_not_reach_its_end(connections: Connections, how: str) -> None:
    job = LeavesSettings.dispatch(how=how).wait(SOON)

    assert (job.status, job.result) == (JobStatus.COMPLETED, 1)
    assert len(job.attempts) == 1


def test_a_lock_on_the_table_of_attempts_ends_no_healthy_run(connections: Connections, fleet: Stack) -> None:
    execute(connections, EFFECTS)
    job = Effect.dispatch(note="once", sleep_seconds=4 * LEASE_SECONDS)
    eventually(lambda: job.refresh().status is JobStatus.STARTED, SOON)

    with connections.engine.connect() as builder, builder.begin():  # as CREATE INDEX does, which lets others read
        builder.execute(sa.text("LOCK TABLE job_attempts IN SHARE MODE"))
        eventually(
            lambda: "the table of attempts is locked" in fleet.processes[1].output(), SOON, "a word of the reaper"
        )
        eventually(lambda: one_value(connections, STALE, id=job.id), SOON, "a stale lease")
    job.wait(2 * SOON)

    assert outcomes(job) == [Outcome.COMPLETED]
    assert effects(connections, job) == 1


STALE = "SELECT lease_expires_at < now() - interval '2 s' FROM job_attempts WHERE job_id = :id"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_job_outlives_the_keeper_of_its_lease_and_the_next_one_has_another(
    connections: Connections, fleet: Stack, number: signal.Signals
) -> None:
    worker = psutil.Process(worker_of(fleet).pid)
    (keeper,) = eventually(lambda: worker.children() if len(worker.children()) == 1 else [], SOON, "an idle worker")
    job = Sleeper.dispatch(seconds=3 * LEASE_SECONDS)
    eventually(lambda: job.refresh().status is JobStatus.STARTED, SOON)

    keeper.send_signal(number)
    job.wait(2 * SOON)

    assert outcomes(job) == [Outcome.COMPLETED]
    if number is signal.SIGSTOP:
        keeper.kill()
    assert Echo.dispatch().wait(SOON).status is JobStatus.COMPLETED
    eventually(lambda: [one for one in worker.children() if one.pid != keeper.pid], SOON, "another keeper")


# -- other workers than ours


@pytest.fixture
def plain(fleet: Stack) -> Iterator[Process]:
    """A plain `rq worker`, of the queue `plain`; the lease is longer than the tests."""
    rq = str(Path(sys.executable).parent / "rq")
    url = fleet.environment["JOBLEDGER_REDIS_URL"]
    worker = fleet.start(rq, "worker", "--url", url, "plain", JOBLEDGER_LEASE_SECONDS="120")
    eventually(lambda: "Listening on" in worker.output(), SOON, "worker start")
    yield worker
    worker.stop()


@pytest.fixture
def simple(fleet: Stack) -> Iterator[Process]:
    """A SimpleWorker, of the queue `simple`."""
    worker = fleet.worker("-w", "rq.SimpleWorker", "simple")
    yield worker
    worker.stop()


def test_exit_code_0_is_a_crash_in_a_plain_worker(connections: Connections, plain: Process, tmp_path: Path) -> None:
    job = Ends.dispatch(how="os._exit(0)", once=str(tmp_path / "once"), queue="plain")

    job.wait(2 * SOON)

    assert outcomes(job) == [Outcome.CRASHED, Outcome.COMPLETED]
    assert plain.popen.poll() is None


@pytest.mark.parametrize(("how", "result"), [("terminates", "exit code -15"), ("pool", "[1, 2]")])
def test_children_of_a_simple_worker_take_sigterm_as_processes_do(
    connections: Connections, simple: Process, how: str, result: str
) -> None:
    job = HasChildren.dispatch(how=how, queue="simple").wait(SOON)

    assert (job.status, job.result, outcomes(job)) == (JobStatus.COMPLETED, result, [Outcome.COMPLETED])
    assert Echo.dispatch(queue="simple").wait(SOON).status is JobStatus.COMPLETED
    assert simple.popen.poll() is None


def test_a_simple_worker_has_another_keeper_after_the_first_one_died(connections: Connections, simple: Process) -> None:
    assert Echo.dispatch(queue="simple").wait(SOON).status is JobStatus.COMPLETED
    (keeper,) = simple.children()
    keeper.kill()

    assert Echo.dispatch(queue="simple").wait(SOON).status is JobStatus.COMPLETED

    eventually(lambda: [one for one in simple.children() if one.pid != keeper.pid], SOON, "another keeper")


def test_no_process_is_left_behind(fleet: Stack) -> None:
    worker = psutil.Process(worker_of(fleet).pid)
    left = [one for one in worker.children(recursive=True) if one.pid != os.getpid()]
    eventually(lambda: len(worker.children(recursive=True)) <= 1, SOON, f"only the keeper beside the worker: {left}")
