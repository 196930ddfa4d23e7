"""Jobs that must be started in time, or not at all."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from harness import SHORT, Stack, eventually, one_value
from jobledger import BaseJob, Connections, Failure, JobHandle, JobStatus, OptionError, Reason
from jobledger.ledger import moves
from jobledger.lifecycle.children import propagate_due
from jobledger.maintenance.expire import expire
from jobledger.maintenance.relay import relay_due
from jobledger.worker import run_job
from sample_jobs import EFFECTS, Asking, Echo, Effect, Reports

pytestmark = pytest.mark.one_database  # each looks at jobs of its own


@pytest.fixture(autouse=True)
def _effects(connections: Connections) -> None:
    execute(connections, EFFECTS)


class Perishable(BaseJob):
    expires_in = "6h"
    failures: list[Failure] = []

    def _perform(self) -> str:
        return "in time"

    def on_failed(self, error: Failure) -> None:
        self.failures.append(error)


def execute(connections: Connections, statement: str, **parameters: Any) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(statement), parameters)


def let_expire(connections: Connections, *handles: JobHandle) -> None:
    execute(
        connections,
        "UPDATE job_statuses SET expires_at = now() - interval '1 ms' WHERE id = ANY(:ids)",
        ids=[one.id for one in handles],
    )


def expires_after(connections: Connections, handle: JobHandle, since: str = "created_at") -> float:
    sql = f"SELECT extract(epoch FROM expires_at - {since}) FROM job_statuses WHERE id = :id"
    return float(one_value(connections, sql, id=handle.id))


# -- when


def test_a_job_expires_as_its_class_says_or_its_dispatch(connections: Connections) -> None:
    assert expires_after(connections, Perishable.dispatch()) == 6 * 3600
    assert expires_after(connections, Perishable.dispatch(expires_in="5m")) == 300
    assert expires_after(connections, Echo.set(expires_in=timedelta(days=1)).dispatch()) == 86400
    assert one_value(connections, "SELECT expires_at FROM job_statuses WHERE id = :id", id=Echo.dispatch().id) is None


def test_the_time_of_a_delayed_job_runs_from_the_end_of_its_delay(connections: Connections) -> None:
    late = Perishable.dispatch_in("1d")
    past = Perishable.dispatch_at(datetime.now(UTC) - timedelta(days=365))

    assert expires_after(connections, late, "available_at") == 6 * 3600
    assert expires_after(connections, past) == 6 * 3600


@pytest.mark.parametrize("spoken", [0, "50ms", -1, "soon", True])
def test_a_time_that_makes_no_sense_is_refused(spoken: Any) -> None:
    with pytest.raises(OptionError, match="expires_in="):
        Echo.dispatch(expires_in=spoken)


# -- what becomes of a job that was not started


def test_a_job_that_was_not_started_in_time_fails_and_never_runs(connections: Connections) -> None:
    handle = Effect.dispatch(note="late", expires_in=60)
    let_expire(connections, handle)

    assert expire(connections) == 1
    assert run_job(str(handle.id)).startswith("nothing to do")
    assert (handle.refresh().status, handle.reason, handle.attempts) == (JobStatus.FAILED, Reason.EXPIRED, [])
    assert one_value(connections, "SELECT count(*) FROM effects WHERE job_id = :id", id=handle.id) == 0


def test_a_wake_up_that_comes_too_late_starts_nothing_before_anybody_has_looked(connections: Connections) -> None:
    handle = Echo.dispatch(expires_in=60)
    let_expire(connections, handle)

    assert run_job(str(handle.id)).startswith("nothing to do")
    assert (handle.refresh().status, handle.attempts) == (JobStatus.QUEUED, [])
    assert expire(connections) == 1


def test_a_job_expires_wherever_it_waits(connections: Connections) -> None:
    parent, held = Echo.dispatch(), Echo.dispatch(expires_in=60)
    waiting = [Echo.dispatch(expires_in=60, after=parent), Echo.set(expires_in=60).dispatch_in("1d"), held]
    execute(connections, "UPDATE job_statuses SET held_by = 'pause:default' WHERE id = :id", id=held.id)
    let_expire(connections, *waiting)

    assert expire(connections) == 3
    assert {one.refresh().reason for one in waiting} == {"expired"}
    assert run_job(str(parent.id)) == "completed"
    assert waiting[0].refresh().status is JobStatus.FAILED


def test_its_on_failed_is_called(connections: Connections) -> None:
    handle = Perishable.set(queue="etl", priority=2).dispatch()
    let_expire(connections, handle)
    Perishable.failures.clear()

    expire(connections)

    [callback] = [one.decode() for one in connections.redis.lrange("rq:queue:etl", -1, -1)]
    assert run_job(callback) == "completed"
    [failure] = Perishable.failures
    assert (failure.reason, failure.error_type, failure.attempt) == ("expired", None, 0)
    assert failure.message == "No attempt has begun: the job was not started in time."
    assert one_value(connections, "SELECT priority FROM job_statuses WHERE id = CAST(:id AS uuid)", id=callback) == 2


def test_what_waits_for_it_is_canceled(connections: Connections) -> None:
    handle = Echo.dispatch(expires_in=60)
    child = Echo.dispatch(after=handle)
    grandchild = Echo.dispatch(after=child)
    let_expire(connections, handle)

    assert expire(connections) == 1
    assert child.refresh().reason == f"parent {handle.id} failed"
    assert grandchild.refresh().status is JobStatus.CANCELED


def test_a_job_that_expired_can_be_retried_and_does_not_expire_again(connections: Connections) -> None:
    handle = Perishable.dispatch()
    let_expire(connections, handle)
    expire(connections)

    assert handle.retry().is_done
    assert expire(connections) == 0
    assert run_job(str(handle.id)) == "completed"


def test_many_expire_in_one_pass(connections: Connections) -> None:
    handles = Perishable.dispatch_many([{}] * 1203)
    let_expire(connections, *handles)

    assert expire(connections) == 1203
    count = (
        "SELECT count(*) FROM job_statuses WHERE job_type = 'jobledger.on_failed' AND payload->>'job_id' = ANY(:ids)"
    )
    assert one_value(connections, count, ids=[str(one.id) for one in handles]) == 1203


# -- what does not expire


def test_a_job_that_was_started_does_not_expire_whatever_becomes_of_its_attempt(connections: Connections) -> None:
    handle = Asking.dispatch(what="snooze", until=2, expires_in=60)
    run_job(str(handle.id))
    execute(connections, "UPDATE job_statuses SET available_at = now() WHERE id = :id", id=handle.id)
    let_expire(connections, handle)
    relay_due(connections)

    assert expire(connections) == 0
    assert run_job(str(handle.id)) == "completed"


def test_what_somebody_holds_expires_later(connections: Connections) -> None:
    held, free = Echo.dispatch(expires_in=60), Echo.dispatch(expires_in=60)
    let_expire(connections, held, free)
    with connections.engine.begin() as other:
        other.execute(sa.text("SELECT FROM job_statuses WHERE id = :id FOR UPDATE"), {"id": held.id})
        assert expire(connections) == 1

    assert (held.refresh().status, free.refresh().status) == (JobStatus.QUEUED, JobStatus.FAILED)
    assert expire(connections) == 1


def test_a_job_that_another_transaction_has_locked_keeps_no_other_from_expiring(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobledger.maintenance.expire.BATCH", 1)
    parents = [Echo.dispatch(expires_in=60) for _ in range(2)]
    child, other = Echo.dispatch(after=parents[0]), Echo.dispatch(after=parents[1])
    let_expire(connections, parents[0])
    let_expire(connections, parents[1])
    with Session(connections.engine) as session:
        Echo.dispatch(after=parents[0], session=session)

        assert expire(connections) == 1
        assert (parents[0].refresh().status, child.refresh().status) == (JobStatus.QUEUED, JobStatus.DEFERRED)
        assert (parents[1].refresh().reason, other.refresh().status) == ("expired", JobStatus.CANCELED)
        session.rollback()

    assert expire(connections) == 1
    assert child.refresh().status is JobStatus.CANCELED


def test_a_child_that_another_transaction_has_locked_keeps_its_parent_from_nothing(connections: Connections) -> None:
    parent = Echo.dispatch(expires_in=60)
    child = Echo.dispatch(after=parent)
    let_expire(connections, parent)
    with Session(connections.engine) as session:
        Echo.dispatch(after=child, session=session)

        assert expire(connections) == 1
        assert (parent.refresh().reason, child.refresh().status) == ("expired", JobStatus.DEFERRED)
        session.rollback()

    eventually(lambda: propagate_due(connections, 1.0), what="a scheduler tells the child")
    assert child.refresh().status is JobStatus.CANCELED


def test_one_that_has_got_children_meanwhile_is_left_to_whoever_cancels_them(connections: Connections) -> None:
    handle = Echo.dispatch(expires_in=60)
    Echo.dispatch(after=handle)
    let_expire(connections, handle)
    with connections.transaction() as connection:
        assert moves.expire(connection, [handle.id], with_children=False) == []

    assert expire(connections) == 1


def test_several_schedulers_expire_each_job_once(connections: Connections) -> None:
    handles = Perishable.dispatch_many([{}] * 300)
    let_expire(connections, *handles)

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: expire(connections), range(4)))

    assert sum(counts) == 300
    count = (
        "SELECT count(*) FROM job_statuses WHERE job_type = 'jobledger.on_failed' AND payload->>'job_id' = ANY(:ids)"
    )
    assert one_value(connections, count, ids=[str(one.id) for one in handles]) == 300


# -- with real processes


def test_a_job_that_waits_behind_a_long_one_expires_and_one_that_runs_does_not(
    connections: Connections, system: Stack, tmp_path: Any
) -> None:
    release = tmp_path / "release"
    system.worker(**SHORT)
    system.scheduler(**SHORT)
    running = Reports.dispatch(release_file=str(release), expires_in="2s")
    eventually(lambda: running.refresh().status is JobStatus.STARTED, what="the long job starts")

    late = Effect.dispatch(note="late", expires_in="1s")
    patient = Effect.dispatch(note="patient", expires_in="1h")

    assert late.wait(30).reason == "expired"
    release.touch()
    assert running.wait(30).status is JobStatus.COMPLETED
    assert patient.wait(30).status is JobStatus.COMPLETED
    assert late.refresh().attempts == []
