"""The spare connection: one session of Postgres for one work-horse after another, and never for two at once."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from harness import Stack, eventually, one_value
from jobledger import Connections, JobStatus, Settings, configure
from jobledger.connections.postgres import make_engine
from jobledger.domain.records import Evidence, Runner
from jobledger.embedded import EmbeddedPostgres, EmbeddedServers
from jobledger.ledger import moves
from jobledger.ledger.migrate import upgrade
from jobledger.worker.connection import RunConnection
from jobledger.worker.spare import SpareConnection
from sample_jobs import EFFECTS, Echo, Effect

# Python 3.12 and later warn of every fork beside threads; RQ's workers fork, and so do these tests.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.one_database,  # each looks at jobs of its own
]

ME = Runner(worker="tester", host="here", pid=1, version="1")


@pytest.fixture
def spare(connections: Connections) -> Iterator[SpareConnection]:
    """What a worker keeps. Here it is prepared by hand before each fork, because hooks of a fork stay for ever."""
    made = SpareConnection(connections)
    yield made
    if made._raw is not None:
        made._discard()


class WorkHorse:
    """A forked child of this worker that works over its spare connection, if it can get it."""

    def __init__(self, spare: SpareConnection, work: Callable[[RunConnection], Any]) -> None:
        spare.prepare()
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            self._be_it(spare, work, writing)
        os.close(writing)
        self._answer = os.fdopen(reading, "rb")

    def _be_it(self, spare: SpareConnection, work: Callable[[RunConnection], Any], writing: int) -> None:
        try:
            connection = RunConnection(spare._connections, spare)
            connection.autocommit()
            os.write(writing, json.dumps(work(connection)).encode() + b"\n")
            connection.release()
        finally:
            os._exit(0)

    def said(self) -> Any:
        """What the work returned."""
        return json.loads(self._answer.readline())

    def wait(self) -> Any:
        """What the work returned; then the child is gone."""
        with self._answer:
            said = self.said()
        os.waitpid(self.pid, 0)
        return said

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait_for_its_death()

    def wait_for_its_death(self) -> None:
        os.waitpid(self.pid, 0)
        self._answer.close()


def session_of(connection: RunConnection) -> int:
    with connection.raw.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def is_over(connections: Connections, session: int) -> bool:
    """Whether a session of Postgres has ended."""
    return one_value(connections, "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid", pid=session) == 0


def session_of_attempt(connections: Connections, job_id: UUID) -> int:
    """The session that claimed a job, as its newest attempt says."""
    recorded = "SELECT backend_pid FROM job_attempts WHERE job_id = :id ORDER BY number DESC LIMIT 1"
    return int(one_value(connections, recorded, id=job_id))


def claim(job_id: UUID) -> Callable[[RunConnection], Any]:
    def work(connection: RunConnection) -> Any:
        claimed = moves.claim(connection.direct, job_id, ME, 30)
        return claimed and claimed.attempt

    return work


def claim_and_complete(job_id: UUID) -> Callable[[RunConnection], Any]:
    def work(connection: RunConnection) -> bool:
        claim(job_id)(connection)
        return moves.complete(connection.direct, job_id, 1, "5", Evidence()) is not None

    return work


# -- from one work-horse to the next


def test_one_work_horse_after_another_claims_and_completes_over_the_same_session(
    connections: Connections, spare: SpareConnection
) -> None:
    jobs = Echo.dispatch_many([{}] * 3)

    assert [WorkHorse(spare, claim_and_complete(job.id)).wait() for job in jobs] == [True] * 3

    assert {job.refresh().status for job in jobs} == {JobStatus.COMPLETED}
    assert {job.result for job in jobs} == {5}
    (session,) = {session_of_attempt(connections, job.id) for job in jobs}
    assert session != one_value(connections, "SELECT pg_backend_pid()")


def test_a_delivery_that_finds_nothing_to_do_gives_the_session_back(
    connections: Connections, spare: SpareConnection
) -> None:
    job = Echo.dispatch()
    assert WorkHorse(spare, claim(job.id)).wait() == 1

    assert WorkHorse(spare, claim(job.id)).wait() is None

    assert WorkHorse(spare, session_of).wait() == session_of_attempt(connections, job.id)


def test_a_session_that_a_job_has_written_through_is_not_used_again(
    connections: Connections, spare: SpareConnection
) -> None:
    def write(connection: RunConnection) -> int:
        session = connection.for_session()
        session.execute(sa.text("CREATE TEMP TABLE leftover ()"))
        connection.commit()
        connection.autocommit()
        return session_of(connection)

    before = WorkHorse(spare, session_of).wait()
    assert WorkHorse(spare, write).wait() == before

    assert WorkHorse(spare, session_of).wait() != before
    assert eventually(lambda: is_over(connections, before), what="the end of the session")


def test_a_session_that_was_left_in_a_transaction_is_not_used_again(
    connections: Connections, spare: SpareConnection
) -> None:
    def begin(connection: RunConnection) -> int:
        connection.begin()
        return session_of(connection)

    before = WorkHorse(spare, begin).wait()

    assert WorkHorse(spare, session_of).wait() != before
    assert eventually(lambda: is_over(connections, before), what="the end of the session")


def test_a_session_that_was_cut_is_not_used_again(connections: Connections, spare: SpareConnection) -> None:
    def cut(connection: RunConnection) -> int:
        session = session_of(connection)
        connection.cut()
        return session

    before = WorkHorse(spare, cut).wait()

    assert WorkHorse(spare, session_of).wait() != before
    assert eventually(lambda: is_over(connections, before), what="the end of the session")


# -- a work-horse that is killed


def test_the_session_of_a_killed_work_horse_ends_with_what_it_had_begun(
    connections: Connections, spare: SpareConnection
) -> None:
    job = Echo.dispatch()

    def claim_and_wait(connection: RunConnection) -> None:
        os.write(told, b"%d\n" % session_of(connection))
        connection.begin()
        claim(job.id)(connection)
        os.write(told, b"claimed\n")
        signal.pause()

    listening, told = os.pipe()
    killed = WorkHorse(spare, claim_and_wait)
    with os.fdopen(listening, "rb") as said:
        before = int(said.readline())
        assert said.readline() == b"claimed\n"
    killed.kill()
    os.close(told)

    assert WorkHorse(spare, session_of).wait() != before

    eventually(lambda: is_over(connections, before), what="the end of the session")
    assert job.refresh().status is JobStatus.QUEUED
    assert WorkHorse(spare, claim_and_complete(job.id)).wait()


def test_the_message_that_a_killed_work_horse_had_begun_is_never_finished(
    connections: Connections, spare: SpareConnection
) -> None:
    job = Echo.dispatch()

    def send_all_but_two_bytes_and_die(connection: RunConnection) -> None:
        query = b"UPDATE job_statuses SET title = 'written by the dead' --.\x00"
        # A farewell to the server, the X and zeros of PQfinish, would be just what is missing.
        os.write(connection.raw.fileno(), b"Q" + (len(query) + 4).to_bytes(4, "big") + query[:-2])
        os.kill(os.getpid(), signal.SIGKILL)

    before = WorkHorse(spare, session_of).wait()
    WorkHorse(spare, send_all_but_two_bytes_and_die).wait_for_its_death()

    assert WorkHorse(spare, claim_and_complete(job.id)).wait()
    eventually(lambda: is_over(connections, before), what="the end of the session")
    assert one_value(connections, "SELECT title FROM job_statuses WHERE id = :id", id=job.id) is None


# -- who may take it


def test_a_second_child_connects_for_itself_while_the_first_works(
    connections: Connections, spare: SpareConnection
) -> None:
    released, release = os.pipe()

    def hold(connection: RunConnection) -> int:
        session = session_of(connection)
        os.write(begun, b"x")
        os.read(released, 1)
        return session

    beginning, begun = os.pipe()
    first = WorkHorse(spare, hold)
    os.read(beginning, 1)
    second_pid = os.fork()
    if second_pid == 0:
        os._exit(0 if spare.take() is None else 1)
    _, status = os.waitpid(second_pid, 0)
    os.write(release, b"x")
    first.wait()
    for one in (released, release, beginning, begun):
        os.close(one)

    assert os.waitstatus_to_exitcode(status) == 0


def test_neither_the_worker_itself_nor_a_grandchild_gets_the_session(spare: SpareConnection) -> None:
    spare.prepare()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if spare.take() is None else 1)
        _, status = os.waitpid(grandchild, 0)
        os._exit(os.waitstatus_to_exitcode(status))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert spare.take() is None


def test_a_fork_of_a_work_horse_leaves_the_session_alone(spare: SpareConnection) -> None:
    def prepare_again(connection: RunConnection) -> list[int]:
        before = session_of(connection)
        spare.prepare()  # what the hook of a fork does in a job that forks
        return [before, session_of(connection)]

    before, after = WorkHorse(spare, prepare_again).wait()

    assert before == after
    assert WorkHorse(spare, session_of).wait() == before


# -- when Postgres goes and comes


def test_a_session_that_the_server_has_ended_is_replaced(connections: Connections, spare: SpareConnection) -> None:
    before = WorkHorse(spare, session_of).wait()
    one_value(connections, "SELECT pg_terminate_backend(:pid, 5000)", pid=before)

    assert WorkHorse(spare, session_of).wait() != before


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that a test may restart; its schema is there."""
    server = EmbeddedPostgres(tmp_path / "own-postgres", persistent=False)
    server.start()
    engine = make_engine(server.url, "template")
    upgrade(engine)
    engine.dispose()
    yield server
    server.stop()


def test_the_next_fork_after_a_restart_of_postgres_works(
    own_postgres: EmbeddedPostgres, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobledger.worker.spare.PAUSE_AFTER_FAILURE_SECONDS", 0.0)
    connections = configure(database_url=own_postgres.url, redis_url=redis_url)
    spare = SpareConnection(connections)
    before = WorkHorse(spare, session_of).wait()

    own_postgres.restart()
    after = WorkHorse(spare, session_of).wait()
    own_postgres.stop()
    spare.prepare()  # as before a fork while the server is away
    own_postgres.start()
    job = Echo.dispatch()

    assert before != after
    assert WorkHorse(spare, claim_and_complete(job.id)).wait()
    assert WorkHorse(spare, session_of).wait() == session_of_attempt(connections, job.id) != after
    connections.close()


# -- a real worker


def test_a_real_worker_hands_its_session_from_job_to_job(connections: Connections, system: Stack) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(EFFECTS))
    first, second, writing, third = Echo.dispatch(), Echo.dispatch(), Effect.dispatch(), Echo.dispatch()
    killed = Effect.dispatch(sleep_seconds=60)
    system.worker()

    attempt = eventually(lambda: killed.attempts, what="the last job begins")[0]
    os.kill(attempt.pid, signal.SIGKILL)
    last = Echo.dispatch()
    last.wait(20)

    before, between, after = (session_of_attempt(connections, job.id) for job in (first, third, last))
    assert session_of_attempt(connections, second.id) == session_of_attempt(connections, writing.id) == before
    assert session_of_attempt(connections, killed.id) == between != before
    assert after not in (before, between)
    assert eventually(lambda: is_over(connections, before) and is_over(connections, between), what="their end")
    assert one_value(connections, "SELECT count(*) FROM effects WHERE job_id = :id", id=killed.id) == 0


def test_a_worker_starts_before_the_schema_is_there(
    servers: EmbeddedServers, system: Stack, environment: dict[str, str], settings: Settings
) -> None:
    servers.postgres.create_database("unmigrated")
    url = servers.postgres.url_for("unmigrated")

    worker = system.worker(JOBLEDGER_DATABASE_URL=url)
    assert "No spare connection" in worker.output()
    connections = configure(database_url=url, redis_url=environment["JOBLEDGER_REDIS_URL"])
    upgrade(connections.engine)

    assert Echo.dispatch(n=5).wait(20).result == {"n": 5}
    connections.close()
    worker.stop()
    servers.postgres.drop_database("unmigrated")
