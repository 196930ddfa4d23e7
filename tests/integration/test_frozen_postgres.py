"""Runs whose Postgres freezes or dies in the middle: nothing hangs, effects happen once, and nobody is to blame."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import psutil
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from harness import eventually, one_value
from jobledger import BaseJob, Connections, JobHandle, JobStatus, LedgerUnavailable, Outcome, Settings, configure
from jobledger.connections.postgres import make_engine
from jobledger.embedded import EmbeddedServers
from jobledger.ledger.migrate import upgrade
from jobledger.worker import run_job
from sample_jobs import EFFECTS

LEASE_SECONDS = 3.0
FROZEN_SECONDS = 9.0
"""Longer than a claim, a lease and their probes wait."""

LONGEST_RUN_SECONDS = 45.0
"""Of one delivery; without its deadlines it would hang for as long as Postgres does, or for ever."""


@pytest.fixture(scope="module")
def starter() -> Iterator[ThreadPoolExecutor]:
    """A thread that starts servers: the kernel ends them with it."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory, starter: ThreadPoolExecutor) -> Iterator[EmbeddedServers]:
    servers = EmbeddedServers(tmp_path_factory.mktemp("own-servers"), persistent=False)
    starter.submit(servers.start).result()
    engine = make_engine(servers.database_url, "template")
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text(EFFECTS))
    engine.dispose()
    yield servers
    servers.stop()


@pytest.fixture
def own(own_servers: EmbeddedServers) -> Iterator[Connections]:
    settings = Settings(
        database_url=SecretStr(own_servers.database_url),
        redis_url=SecretStr(own_servers.redis_url),
        lease_seconds=LEASE_SECONDS,
    )
    made = configure(settings)
    yield made
    made.close()


def _stands_still(process: psutil.Process) -> bool:
    """Whether it is frozen or gone: a signal takes a moment, in which a server may still answer."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


class Outage:
    """Makes Postgres go away for some seconds, beginning now."""

    def __init__(self, servers: EmbeddedServers, starter: ThreadPoolExecutor) -> None:
        self._postgres = servers.postgres
        self._starter = starter
        self._pending: list[Any] = []

    def freeze(self, seconds: float = FROZEN_SECONDS) -> None:
        """SIGSTOP for the server and all its children: the kernel still takes connections and data for them."""
        main = psutil.Process(self._postgres.pid)
        main.suspend()  # first, so that it starts no more children
        everyone = [*main.children(recursive=True), main]
        for one in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()
        eventually(lambda: all(map(_stands_still, everyone)), what="their standstill")

        def thaw() -> None:
            for one in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.resume()

        timer = threading.Timer(seconds, thaw)
        timer.start()
        self._pending.append(timer.join)

    def crash(self, seconds: float = 2.0) -> None:
        """As `pg_ctl stop -m immediate`, and a start later."""
        main = psutil.Process(self._postgres.pid)
        everyone = [*main.children(recursive=True), main]
        self._postgres.kill(signal.SIGQUIT)
        eventually(lambda: all(map(_stands_still, everyone)), what="their end")

        def start() -> None:
            time.sleep(seconds)  # the outage itself
            self._postgres.restart()

        self._pending.append(self._starter.submit(start).result)

    def over(self) -> None:
        for wait in self._pending:
            wait()


@pytest.fixture
def outage(own_servers: EmbeddedServers, starter: ThreadPoolExecutor) -> Iterator[Outage]:
    made = Outage(own_servers, starter)
    yield made
    made.over()


OUTAGES = pytest.mark.parametrize("begin", [Outage.freeze, Outage.crash])
Begin = Callable[[Outage], None]


class Meets(BaseJob):
    """Meets an outage in its first attempt."""

    what: ClassVar[Callable[["Meets"], Any]]

    def _perform(self) -> int:
        if self.attempt == 1:
            type(self).what(self)
        else:
            write(self)
        return self.attempt


def write(job: BaseJob) -> None:
    job.session.execute(
        sa.text("INSERT INTO effects (job_id, attempt) VALUES (:id, :attempt)"),
        {"id": job.job_id, "attempt": job.attempt},
    )


def run_to_the_end(connections: Connections, job: JobHandle, outage: Outage) -> None:
    """Deliver it until it has completed, as repair would; a delivery that Postgres kept waiting gives up in time."""
    due = "UPDATE job_statuses SET status = 'queued', queued_at = now() WHERE id = :id AND status = 'scheduled'"
    for _ in range(3):
        started = time.monotonic()
        with contextlib.suppress(LedgerUnavailable):
            run_job(str(job.id))
        assert time.monotonic() - started < LONGEST_RUN_SECONDS
        outage.over()
        if job.refresh().status is JobStatus.COMPLETED:
            return
        with connections.transaction() as connection:
            connection.execute(sa.text(due), {"id": job.id})


def effects(connections: Connections, job: JobHandle) -> int:
    return int(one_value(connections, "SELECT count(*) FROM effects WHERE job_id = :id", id=job.id))


def losses(connections: Connections, job: JobHandle) -> int:
    return int(one_value(connections, "SELECT losses FROM job_statuses WHERE id = :id", id=job.id))


@OUTAGES
def test_a_claim_that_meets_an_outage_is_made_once(own: Connections, outage: Outage, begin: Begin) -> None:
    Meets.what = write
    job = Meets.dispatch()  # and there is a pooled connection

    begin(outage)
    run_to_the_end(own, job, outage)

    assert job.refresh().status is JobStatus.COMPLETED
    assert [one.outcome for one in job.attempts] == [Outcome.COMPLETED]
    assert effects(own, job) == 1


@OUTAGES
def test_a_statement_of_a_job_that_meets_an_outage_ends_and_the_job_runs_again(
    own: Connections, outage: Outage, begin: Begin
) -> None:
    def work(job: Meets) -> None:
        write(job)
        begin(outage)
        job.session.execute(sa.text("SELECT 1"))

    Meets.what = work
    job = Meets.dispatch()

    run_to_the_end(own, job, outage)

    assert [one.outcome for one in job.attempts] == [Outcome.LOST, Outcome.COMPLETED]
    assert effects(own, job) == 1
    assert losses(own, job) == (begin is Outage.freeze), "a restart of Postgres is nobody's fault"


@OUTAGES
def test_the_end_of_a_job_without_effects_waits_for_postgres(own: Connections, outage: Outage, begin: Begin) -> None:
    Meets.what = lambda _: begin(outage)
    job = Meets.dispatch()

    started = time.monotonic()
    assert run_job(str(job.id)) == "completed"

    assert time.monotonic() - started < LONGEST_RUN_SECONDS
    outage.over()
    assert [one.outcome for one in job.refresh().attempts] == [Outcome.COMPLETED]
    assert job.result == 1


@OUTAGES
def test_the_end_of_a_job_with_effects_happens_once(own: Connections, outage: Outage, begin: Begin) -> None:
    def work(job: Meets) -> None:
        write(job)
        job.session.flush()
        begin(outage)

    Meets.what = work
    job = Meets.dispatch()

    run_to_the_end(own, job, outage)

    assert job.refresh().status is JobStatus.COMPLETED
    assert effects(own, job) == 1


def test_a_job_that_asks_postgres_for_nothing_survives_a_freeze(own: Connections, outage: Outage) -> None:
    def work(job: Meets) -> None:
        write(job)
        outage.freeze()
        outage.over()

    Meets.what = work
    job = Meets.dispatch()

    assert run_job(str(job.id)) == "completed"
    assert effects(own, job) == 1


def test_a_claim_that_waits_for_a_lock_is_left_to_wait(own: Connections) -> None:
    Meets.what = write
    job = Meets.dispatch()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with own.transaction() as connection:
            connection.execute(sa.text("SELECT 1 FROM job_statuses WHERE id = :id FOR UPDATE"), {"id": job.id})
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    threading.Timer(7, release.set).start()  # the claim has been looked after by then

    assert run_job(str(job.id)) == "completed"
    holder.join()
    assert [one.outcome for one in job.refresh().attempts] == [Outcome.COMPLETED]
    eventually(lambda: effects(own, job) == 1)
