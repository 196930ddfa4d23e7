"""A claim that Postgres has no room for: the wake-up is lost for that, but the loss is not the job's."""

import signal
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from rq import Queue, SimpleWorker

from harness import execute, one_value
from jobledger import Connections, JobHandle, JobStatus, Reason
from jobledger.maintenance.one_by_one import OneByOne
from jobledger.maintenance.reconcile import MAX_LOST_WAKES, reconcile
from jobledger.maintenance.relay import relay_unpushed
from jobledger.queues import reported_deaths
from jobledger.worker import work_horse
from sample_jobs import Echo

DISK_FULL, IO_ERROR, DEADLOCK, LOCKED, OTHER = "53100", "58030", "40P01", "55P03", "22012"


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_horse, "LEDGER_PATIENCE_SECONDS", 0.3)


@pytest.fixture
def work_off(connections: Connections) -> Iterator[Callable[[], None]]:
    """Let a worker of RQ take all that is in its queue, in this process."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    worker = SimpleWorker([Queue("default", connection=connections.redis)], connection=connections.redis)
    yield lambda: worker.work(burst=True, logging_level="CRITICAL") and None
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def let_claims_fail(connections: Connections, state: str) -> None:
    """Whoever begins an attempt gets this error, as its server would say it; updates of the job's row still fit."""
    execute(
        connections,
        f"""
        CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'could not extend file "base/1/2"' USING ERRCODE = '{state}', HINT = 'Check free space.';
        END $$;
        CREATE TRIGGER no_room BEFORE INSERT ON job_attempts FOR EACH ROW EXECUTE FUNCTION no_room()
        """,
    )


def compare(connections: Connections) -> int:
    """As the scheduler does it, when all has been well for long and RQ's report is no longer fresh."""
    execute(connections, "UPDATE job_statuses SET pushed_at = now() - interval '1 hour'")
    execute(
        connections,
        "INSERT INTO sweeps (name, swept_by, resumed_at) VALUES ('reconcile', 'me', 'epoch') ON CONFLICT DO NOTHING",
    )
    return reconcile(connections, settled_seconds=0.0)


def lose_until_the_last(connections: Connections, handle: JobHandle) -> None:
    """The next loss that counts ends the job."""
    execute(
        connections,
        "INSERT INTO lost_wakes (job_id, attempt, losses) VALUES (:id, 0, :losses)",
        id=handle.id,
        losses=MAX_LOST_WAKES - 1,
    )


@pytest.mark.parametrize("state", [DISK_FULL, IO_ERROR, DEADLOCK, LOCKED])
def test_a_job_is_not_failed_for_a_claim_that_postgres_could_not_write(
    connections: Connections, work_off: Callable[[], None], state: str
) -> None:
    handle = Echo.dispatch()
    lose_until_the_last(connections, handle)
    let_claims_fail(connections, state)

    work_off()

    words = reported_deaths(connections.redis, [handle.id])[handle.id].report
    assert words.startswith("jobledger.errors.LedgerUnavailable: ")
    assert words.endswith('could not extend file "base/1/2"'), "what was wrong, without the server's hints"
    assert compare(connections) == 1
    assert handle.refresh().status is JobStatus.QUEUED
    assert one_value(connections, "SELECT losses FROM lost_wakes") == MAX_LOST_WAKES - 1

    execute(connections, "DROP TRIGGER no_room ON job_attempts")
    relay_unpushed(connections)
    work_off()
    assert handle.refresh().status is JobStatus.COMPLETED
    assert [one.outcome for one in handle.attempts] == ["completed"]


def test_a_job_whose_claim_fails_for_itself_is_failed_and_the_error_is_told(
    connections: Connections, work_off: Callable[[], None]
) -> None:
    handle = Echo.dispatch()
    lose_until_the_last(connections, handle)
    let_claims_fail(connections, OTHER)

    work_off()

    words = reported_deaths(connections.redis, [handle.id])[handle.id].report
    assert words == 'psycopg2.errors.DivisionByZero: could not extend file "base/1/2"'
    compare(connections)
    assert handle.refresh().reason == Reason.UNDISPATCHABLE


@pytest.mark.parametrize(("state", "goes_on"), [(DISK_FULL, False), (OTHER, True)])
def test_a_pass_over_many_jobs_ends_when_no_other_will_do_better(
    connections: Connections, state: str, goes_on: bool
) -> None:
    refuse = sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$")
    done = []

    def one_pass() -> None:
        each = OneByOne(connections, 5)
        each.do(uuid4(), lambda connection: connection.execute(refuse))
        each.do(uuid4(), lambda connection: done.append(connection))
        each.end()

    with pytest.raises(sa.exc.DBAPIError):
        one_pass()
    assert len(done) == goes_on
