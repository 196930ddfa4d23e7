"""Postgres has no connection left to give: what runs goes on, and no job is begun that could not be kept alive."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa

from deadly_jobs import HoldsTheLock
from harness import Stack, eventually, execute, stack
from jobledger import Connections, JobStatus, Outcome
from sample_jobs import Echo

LEASE_SECONDS = 3


@pytest.fixture
def limited(connections: Connections) -> Iterator[Callable[[int], str]]:
    """Sets how many connections a role may have, and gives the URL of its user."""
    execute(connections, "CREATE ROLE short LOGIN PASSWORD 'short' CONNECTION LIMIT 0")
    execute(connections, "GRANT ALL ON ALL TABLES IN SCHEMA public TO short")

    def limit(connections_of_role: int) -> str:
        execute(connections, f"ALTER ROLE short CONNECTION LIMIT {connections_of_role}")
        url = sa.make_url(connections.settings.require_database_url()).set(username="short", password="short")
        return url.render_as_string(hide_password=False)

    yield limit
    execute(connections, "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE usename = 'short'")
    execute(connections, "DROP OWNED BY short")
    execute(connections, "DROP ROLE short")


@pytest.fixture
def fleet(environment: dict[str, str], tmp_path: Path) -> Iterator[Stack]:
    short = {
        "JOBLEDGER_JOB_MODULES": "sample_jobs,deadly_jobs",
        "JOBLEDGER_LEASE_SECONDS": str(LEASE_SECONDS),
        "JOBLEDGER_SWEEP_SECONDS": "1",
        "JOBLEDGER_RELAY_SECONDS": "0.3",
    }
    with stack({**environment, **short}, tmp_path) as running:
        running.scheduler()
        yield running


def test_a_running_job_keeps_its_lease_when_no_connection_is_left(
    connections: Connections, fleet: Stack, limited: Callable[[int], str]
) -> None:
    fleet.worker(JOBLEDGER_DATABASE_URL=limited(2))  # the keeper's and the spare one
    job = HoldsTheLock.dispatch(seconds=4 * LEASE_SECONDS)

    job.wait(60)

    assert job.status is JobStatus.COMPLETED
    assert [one.outcome for one in job.attempts] == [Outcome.COMPLETED]


@pytest.mark.parametrize("left", [0, 1])
def test_no_job_is_begun_that_could_not_be_kept_alive(
    connections: Connections, fleet: Stack, limited: Callable[[int], str], left: int
) -> None:
    url = limited(1 + left)
    taken = psycopg2.connect(url.replace("+psycopg2", ""))  # another client's, before the worker starts
    worker = fleet.worker(JOBLEDGER_DATABASE_URL=url)
    job = Echo.dispatch(n=5)

    said = ("too many connections", "The lease keeper has no connection to Postgres")  # by who comes first
    eventually(lambda: any(one in worker.output() for one in said), 60, "a word of it in the log")
    eventually(lambda: job.refresh().status is JobStatus.QUEUED and not connections.redis.llen("rq:queue:default"), 60)
    assert job.attempts == []
    taken.close()
    limited(4)

    job.wait(90)
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETED, 1)
