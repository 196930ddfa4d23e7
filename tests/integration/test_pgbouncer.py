"""A real PgBouncer before Postgres: workers run over a pool in session mode; all others in transaction mode, too."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from harness import SHORT, Stack, eventually, execute, one_value
from jobledger import BaseJob, Connections, JobStatus, LedgerUnavailable, Settings, configure
from jobledger.connections.postgres import SESSION_SETTINGS
from jobledger.connections.sessions import has_sessions
from jobledger.worker import run_job, work_horse
from pgbouncer import pgbouncer
from sample_jobs import EFFECTS, Effect

IGNORING = "ignore_startup_parameters = options"
MODES = [
    pytest.param(mode, settings, id=f"{mode}{'-ignoring' * bool(settings)}")
    for mode in ("session", "transaction")
    for settings in ((), (IGNORING,))
]
SESSION = [one for one in MODES if one.values[0] == "session"]
TRANSACTION = [one for one in MODES if one.values[0] == "transaction"]


@pytest.fixture
def pooled(
    connections: Connections, tmp_path: Path, mode: str, pooler_settings: tuple[str, ...]
) -> Iterator[Connections]:
    """The process's default connections, over a pooler."""
    execute(connections, EFFECTS)
    settings = connections.settings
    with pgbouncer(settings.require_database_url(), tmp_path / "pgbouncer", mode, *pooler_settings) as url:
        made = configure(Settings(database_url=url, redis_url=settings.require_redis_url()))
        yield made
        made.close()


class Sees(BaseJob):
    """What is set in the session of a job."""

    def _perform(self) -> dict[str, str]:
        text = "SELECT name, setting FROM pg_settings WHERE name = ANY(:names)"
        return {
            row.name: row.setting for row in self.session.execute(sa.text(text), {"names": ["idle_session_timeout"]})
        }


@pytest.mark.parametrize(("mode", "pooler_settings"), SESSION)
def test_workers_run_jobs_over_a_pool_in_session_mode(pooled: Connections, system: Stack) -> None:
    name = sa.make_url(pooled.settings.require_database_url()).database
    execute(pooled, f"ALTER DATABASE {name} SET idle_session_timeout = '1h'")
    assert has_sessions(pooled)
    url = pooled.settings.require_database_url()
    worker = system.start(sys.executable, "-m", "jobledger", "worker", "default", JOBLEDGER_DATABASE_URL=url)
    eventually(lambda: "Listening on" in worker.output() or worker.popen.poll() is not None, 60, "the worker's start")
    assert worker.popen.poll() is None, worker.output()

    jobs = [Effect.dispatch(note=str(number)) for number in range(5)]
    assert [job.wait(30).status for job in jobs] == [JobStatus.COMPLETED] * 5
    assert one_value(pooled, "SELECT count(*) FROM effects") == 5
    sees = Sees.dispatch(queue="etl")
    assert run_job(str(sees.id)) == "completed"
    assert sees.refresh().result == {"idle_session_timeout": "0"}
    assert "No spare connection" not in worker.output()


@pytest.mark.parametrize(("mode", "pooler_settings"), TRANSACTION)
def test_all_but_workers_work_over_a_pool_in_transaction_mode(
    pooled: Connections, connections: Connections, system: Stack
) -> None:
    assert not has_sessions(pooled)
    url = pooled.settings.require_database_url()
    modules = "sample_jobs,command_schedules"
    scheduler = system.scheduler(**SHORT, JOBLEDGER_DATABASE_URL=url, JOBLEDGER_JOB_MODULES=modules)
    api = system.api(JOBLEDGER_DATABASE_URL=url)
    system.worker()  # over no pooler

    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda number: Effect.dispatch(note=str(number)), range(40)))
        jobs += pool.map(lambda number: Effect.dispatch_in(1, note=str(number)), range(20))
    assert {job.wait(60).status for job in jobs} == {JobStatus.COMPLETED}
    assert one_value(pooled, "SELECT count(*) FROM effects") == 60
    health = httpx.get(f"{api}/health").json()
    assert (health["postgres"], health["redis"]) == ("ok", "ok")
    assert "Chore failed" not in scheduler.output()
    assert left_in_sessions(connections) == 0


def left_in_sessions(connections: Connections) -> object:
    """Whether the sessions of the pooler hold a lock, as an advisory lock of a session would be."""
    return one_value(connections, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")


@pytest.mark.parametrize(("mode", "pooler_settings"), TRANSACTION)
def test_nothing_is_set_in_a_session_that_others_share(pooled: Connections) -> None:
    Effect.dispatch()
    names = list(SESSION_SETTINGS)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Effect.dispatch(), range(20)))

    assert one_value(
        pooled, "SELECT count(*) FROM pg_settings WHERE name = ANY(:names) AND source = 'session'", names=names
    ) in (0, 1)  # the isolation level of this transaction


@pytest.mark.parametrize(("mode", "pooler_settings"), TRANSACTION)
def test_workers_and_migrations_refuse_a_pool_in_transaction_mode(pooled: Connections, system: Stack) -> None:
    url = pooled.settings.require_database_url()
    rq = str(Path(sys.executable).parent / "rq")
    for code, words, *command in (
        (2, "workers need a session", sys.executable, "-m", "jobledger", "worker"),
        (2, "a migration needs a session", sys.executable, "-m", "jobledger", "migrate"),
        (1, "workers need a session", rq, "worker", "-c", "jobledger.rq_config", "default"),
    ):
        process = system.start(*command, JOBLEDGER_DATABASE_URL=url)
        assert process.wait(60) == code, process.output()
        assert f"leads to a pooler in transaction mode, but {words}" in process.output()


@pytest.mark.parametrize(("mode", "pooler_settings"), TRANSACTION)
def test_a_run_without_a_check_at_start_begins_no_job(pooled: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_horse, "LEDGER_PATIENCE_SECONDS", 0.2)
    job = Effect.dispatch()

    with pytest.raises(LedgerUnavailable, match="pooler in transaction mode"):
        run_job(str(job.id))

    assert job.refresh().status is JobStatus.QUEUED
    assert job.attempts == []
