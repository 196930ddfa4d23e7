"""From the previous version to this one while jobs run, and back: nothing is lost and nothing is done twice.

The previous version is its wheel, tests/upgrades, unpacked: real workers, schedulers and dispatchers of that code.
"""

import os
import signal
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from harness import TESTS, Process, Stack, eventually, one_value
from jobledger import Connections, __version__
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import revisions
from sample_jobs import EFFECTS

UPGRADES = TESTS / "upgrades"
PREVIOUS_VERSION, PREVIOUS_REVISION, NEWEST_REVISION = "0.1.0", "0001", revisions()[0]
SECONDS = 120.0
DONE, FAILED, WRONG = 0, 1, 2

_numbers = count(1)


@pytest.fixture
def database_url(servers: EmbeddedServers) -> Iterator[str]:
    """A database with nothing in it, instead of a migrated one."""
    name = f"upgrade_{next(_numbers)}"
    servers.postgres.create_database(name)
    yield servers.postgres.url_for(name)
    servers.postgres.drop_database(name)


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join([str(UPGRADES), str(TESTS)])
    return {**environment, "JOBLEDGER_JOB_MODULES": "work_of_both", "PYTHONPATH": path}


@pytest.fixture
def previous(tmp_path: Path, system: Stack, connections: Connections) -> dict[str, str]:
    """The environment of the previous version's processes; it has migrated the database."""
    package = tmp_path / "previous"
    with zipfile.ZipFile(UPGRADES / f"jobledger-{PREVIOUS_VERSION}-py3-none-any.whl") as wheel:
        wheel.extractall(package)
    found = {"PYTHONPATH": os.pathsep.join([str(package), system.environment["PYTHONPATH"]])}
    asked = system.start(sys.executable, "-c", "import jobledger as it; print(it.__version__, it.__file__)", **found)
    assert asked.wait(SECONDS) == DONE
    assert asked.output().split() == [PREVIOUS_VERSION, str(package / "jobledger" / "__init__.py")]
    migration = system.start(sys.executable, "-m", "jobledger", "migrate", **found)
    assert migration.wait(SECONDS) == DONE, migration.output()
    assert revision(connections) == PREVIOUS_REVISION
    with connections.transaction() as connection:
        connection.execute(sa.text(EFFECTS))
    return found


def test_both_versions_work_side_by_side(
    connections: Connections, system: Stack, previous: dict[str, str], tmp_path: Path
) -> None:
    old_workers = [system.worker(**previous) for _ in range(3)]
    old_scheduler = system.scheduler(**previous)
    dispatcher = dispatching(system, **previous)
    release = tmp_path / "release"
    dispatching(system, str(release), **previous)
    eventually(lambda: ran(connections, "Long", "started"), SECONDS, "the long job runs")
    goes_on(connections, ("Noted", "Retried"))

    migration = migrate(system)
    eventually(lambda: revision(connections) == "0002", SECONDS, "no table is changed that the long job has locked")
    eventually(lambda: "idle in transaction" in migration.output(), SECONDS, "it says that it waits for the long job")
    goes_on(connections, ("Noted", "Retried"))
    release.touch()
    assert migration.wait(SECONDS) == DONE, migration.output()
    assert revision(connections) == NEWEST_REVISION
    goes_on(connections, ("Noted", "Retried"))

    scheduler = system.scheduler()
    defined = "SELECT definition IS NOT NULL FROM schedules"
    eventually(lambda: one_value(connections, defined), SECONDS, "the schedule is data")
    goes_on(connections, ("Noted", "Retried"))
    old_scheduler.stop()
    eventually(lambda: noted(connections, __version__, PREVIOUS_VERSION), SECONDS, "old workers run new jobs")
    worker = system.worker()
    eventually(lambda: noted(connections, PREVIOUS_VERSION, __version__), SECONDS, "new workers run old jobs")
    ends_well(dispatcher)
    for one in old_workers:
        one.stop(SECONDS)
    eventually(lambda: noted(connections, __version__, __version__), SECONDS, "the new version goes on alone")
    scheduler.stop(SECONDS)
    nothing_is_lost_or_doubled(connections, system)
    worker.stop(SECONDS)


def test_the_way_back(connections: Connections, system: Stack, previous: dict[str, str]) -> None:
    assert migrate(system).wait(SECONDS) == DONE
    scheduler = system.scheduler()
    worker = system.worker()
    eventually(lambda: noted(connections, __version__, __version__), SECONDS, "the new version works")
    worker.stop(SECONDS)
    jobs = "SELECT count(*) FROM job_statuses WHERE status = 'queued'"
    eventually(lambda: one_value(connections, jobs), SECONDS, "a job waits for a worker")
    scheduler.stop(SECONDS)

    back = migrate(system, "--to", PREVIOUS_REVISION, "--down", "--yes")
    assert back.wait(SECONDS) == DONE, back.output()
    assert back.output() == f"Migrated the schema from {NEWEST_REVISION} to {PREVIOUS_REVISION}.\n"
    old_scheduler = system.scheduler(**previous)
    old_worker = system.worker(**previous)
    eventually(lambda: noted(connections, __version__, PREVIOUS_VERSION), SECONDS, "what waited is run")
    eventually(lambda: noted(connections, PREVIOUS_VERSION, PREVIOUS_VERSION), SECONDS, "the old version works")
    old_scheduler.stop(SECONDS)
    old_worker.stop(SECONDS)

    assert migrate(system).wait(SECONDS) == DONE
    scheduler = system.scheduler()
    worker = system.worker()
    eventually(lambda: noted(connections, PREVIOUS_VERSION, __version__) or unfinished(connections) == 0, SECONDS)
    goes_on(connections, ("Noted",))
    scheduler.stop(SECONDS)
    nothing_is_lost_or_doubled(connections, system, every_second=False)
    worker.stop(SECONDS)


def test_going_back_is_asked_for(connections: Connections, system: Stack, previous: dict[str, str]) -> None:
    assert migrate(system).wait(SECONDS) == DONE
    for options, why in (
        (("--to", PREVIOUS_REVISION), "needs --down"),
        (("--down",), "--down needs --to"),
        (("--to", PREVIOUS_REVISION, "--down"), "say --yes"),
    ):
        refused = migrate(system, *options)
        assert refused.wait(SECONDS) == WRONG
        assert why in refused.output()
    assert revision(connections) == NEWEST_REVISION


# -- locks


def test_a_migration_gives_up_rather_than_hold_up_others(
    connections: Connections, system: Stack, previous: dict[str, str]
) -> None:
    with locked(connections, "LOCK TABLE schedule_ticks IN ROW EXCLUSIVE MODE") as pid, writing(connections) as writer:
        migration = migrate(system, "--wait", "8s")
        assert migration.wait(SECONDS) == FAILED
    assert "Other transactions had a table of the migration locked for 8 s. Nothing is half done: run it again" in (
        migration.output()
    )
    assert f"pid {pid} (test-locks, idle in transaction, " in migration.output()
    assert writer.errors == []
    assert writer.writes > 0
    assert revision(connections) == PREVIOUS_REVISION

    again = migrate(system)
    assert again.wait(SECONDS) == DONE, again.output()
    assert revision(connections) == NEWEST_REVISION


def test_a_migration_tries_again_by_itself(connections: Connections, system: Stack, previous: dict[str, str]) -> None:
    with locked(connections, "LOCK TABLE schedules IN ROW EXCLUSIVE MODE"):
        migration = migrate(system)
        eventually(lambda: "migrating for 5 s" in migration.output(), SECONDS, "it has tried several times")
        assert migration.popen.poll() is None
    assert migration.wait(SECONDS) == DONE, migration.output()


def test_a_migration_that_was_killed_goes_on(connections: Connections, system: Stack, previous: dict[str, str]) -> None:
    index = "ix_job_statuses_unfinished_of_schedule"
    valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('{index}')"
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'jobledger-migrate'"
    assert migrate(system, "--to", "0002").wait(SECONDS) == DONE
    with locked(connections, "LOCK TABLE job_statuses IN ROW EXCLUSIVE MODE"):
        migration = migrate(system)
        eventually(lambda: one_value(connections, valid) is False, SECONDS, "the index is being built")
        migration.signal(signal.SIGKILL)
        migration.wait(SECONDS)
        eventually(lambda: one_value(connections, sessions) == 0, SECONDS, "the server has noticed")
        assert revision(connections) == "0002"
        assert one_value(connections, valid) is False
        built_before = one_value(connections, f"SELECT CAST(to_regclass('{index}') AS oid)")
        again = migrate(system)
        eventually(lambda: "may have to wait" in again.output(), SECONDS, "it waits for the same transaction")
    assert again.wait(SECONDS) == DONE, again.output()
    assert revision(connections) == NEWEST_REVISION
    assert one_value(connections, valid) is True
    assert one_value(connections, f"SELECT CAST(to_regclass('{index}') AS oid)") != built_before


# -- what they share


def migrate(system: Stack, *options: str) -> Process:
    return system.start(sys.executable, "-m", "jobledger", "migrate", *options)


def dispatching(system: Stack, *arguments: str, **environment: str) -> Process:
    return system.start(sys.executable, str(UPGRADES / "dispatch_work.py"), *arguments, **environment)


def ends_well(process: Process) -> None:
    process.signal(signal.SIGTERM)
    assert process.wait(int(SECONDS)) == DONE, process.output()


def revision(connections: Connections) -> object:
    return one_value(connections, "SELECT version_num FROM alembic_version")


def ran(connections: Connections, job_type: str, status: str) -> object:
    sql = "SELECT count(*) FROM job_statuses WHERE job_type = :job_type AND status = :status"
    return one_value(connections, sql, job_type=job_type, status=status)


def noted(connections: Connections, dispatched: str, by: str) -> object:
    note = f"{dispatched} dispatched, {by} ran"
    return one_value(connections, "SELECT count(*) FROM effects WHERE note = :note", note=note)


def unfinished(connections: Connections) -> object:
    return one_value(connections, "SELECT count(*) FROM job_statuses WHERE finished_at IS NULL")


def goes_on(connections: Connections, job_types: tuple[str, ...]) -> None:
    """From now on two more seconds fire, and jobs of each type are dispatched and completed."""
    now = one_value(connections, "SELECT clock_timestamp()")
    ticks = "SELECT count(*) >= 2 FROM schedule_ticks WHERE fire_at > :now"
    eventually(lambda: one_value(connections, ticks, now=now), SECONDS, "the schedule fires")
    completed = """
        SELECT count(DISTINCT job_type) FROM job_statuses
         WHERE job_type = ANY(:job_types) AND status = 'completed' AND created_at > :now
    """

    def all_completed() -> bool:
        return bool(one_value(connections, completed, job_types=list(job_types), now=now) == len(job_types))

    eventually(all_completed, SECONDS, "jobs complete")


def nothing_is_lost_or_doubled(connections: Connections, system: Stack, every_second: bool = True) -> None:
    """Nobody dispatches any more; a worker is there, and repair goes on: a worker that stops may lose a wake-up."""
    system.scheduler(JOBLEDGER_JOB_MODULES="sample_jobs")
    eventually(lambda: unfinished(connections) == 0, SECONDS, "every job has ended")
    with connections.transaction() as connection:
        jobs = dict(connection.execute(sa.text("SELECT id, status FROM job_statuses")).tuples().all())
        effects = Counter(connection.execute(sa.text("SELECT job_id FROM effects")).scalars())
        created_at = connection.execute(sa.text("SELECT created_at FROM schedules")).scalar_one()
        fired = Counter(
            connection.execute(sa.text("SELECT fire_at FROM job_statuses WHERE fire_at > '-infinity'")).scalars()
        )
    assert set(jobs.values()) == {"completed"}
    assert effects == Counter(jobs.keys())
    expected = Counter(seconds_since(created_at, max(fired)))
    assert fired <= expected, "a second was fired twice, or beside the second"
    if every_second:
        assert fired == expected, f"{len(expected - fired)} of {len(expected)} seconds were not fired"


def seconds_since(start: datetime, end: datetime) -> list[datetime]:
    return [start + timedelta(seconds=number) for number in range(1, round((end - start).total_seconds()) + 1)]


@contextmanager
def locked(connections: Connections, statement: str) -> Iterator[int]:
    """A transaction that holds a lock; gives its pid."""
    with connections.engine.connect() as connection:
        connection.execute(sa.text("SET application_name = 'test-locks'"))
        connection.commit()
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        connection.execute(sa.text(statement))
        yield pid
        connection.rollback()


class Writer:
    """Writes to the clock's tables again and again, and never waits long."""

    def __init__(self, connections: Connections) -> None:
        self.writes = 0
        self.errors: list[str] = []
        self._connections = connections
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._connections.transaction() as connection:
                    connection.execute(sa.text("SET LOCAL lock_timeout = '4s'"))
                    connection.execute(sa.text("UPDATE schedule_ticks SET scheduler = 'me'"))
                    connection.execute(sa.text("UPDATE schedules SET updated_at = now()"))
                self.writes += 1
            except sa.exc.OperationalError as error:
                self.errors.append(str(error))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


@contextmanager
def writing(connections: Connections) -> Iterator[Writer]:
    writer = Writer(connections)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()
