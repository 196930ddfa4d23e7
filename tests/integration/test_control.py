"""What people ask for: retry and cancel, allowed and refused, and whoever else moves the job at the same moment."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.orm import Session

from harness import Stack, eventually, one_value
from jobledger import Connections, JobHandle, JobStatus, Outcome, Reason, control
from jobledger.control import Verdict
from jobledger.domain.records import Evidence, Runner
from jobledger.embedded import free_port
from jobledger.ledger import moves
from jobledger.lifecycle.children import propagate_due
from jobledger.lifecycle.finish import Again, CancelRunning, Decision, Fail, HandBack, complete, settle
from jobledger.maintenance.prune import prune
from jobledger.queues import waiting
from jobledger.worker import run_job
from sample_jobs import Echo, Fails

ME = Runner(worker="tester", host="here", pid=1, version="1")


def claim(connections: Connections, handle: JobHandle) -> object:
    with connections.transaction() as connection:
        return moves.claim(connection, handle.id, ME, 30)


def started() -> JobHandle:
    handle = Echo.dispatch()
    assert claim(handle._connections, handle)
    return handle.refresh()


def completed() -> JobHandle:
    handle = Echo.dispatch()
    run_job(str(handle.id))
    return handle.refresh()


def failed() -> JobHandle:
    handle = Fails.dispatch(error="KeyError")
    with pytest.raises(KeyError):
        run_job(str(handle.id))
    return handle.refresh()


def canceled() -> JobHandle:
    handle = Echo.dispatch()
    assert handle.cancel().is_done
    return handle.refresh()


JOB_IN: dict[JobStatus, Callable[[], JobHandle]] = {
    JobStatus.DEFERRED: lambda: Echo.dispatch(after=Echo.dispatch()),
    JobStatus.SCHEDULED: lambda: Echo.dispatch_in("1h"),
    JobStatus.QUEUED: Echo.dispatch,
    JobStatus.STARTED: started,
    JobStatus.COMPLETED: completed,
    JobStatus.FAILED: failed,
    JobStatus.CANCELED: canceled,
}
WAITING = {JobStatus.DEFERRED, JobStatus.SCHEDULED, JobStatus.QUEUED}
ENDED_BADLY = {JobStatus.FAILED, JobStatus.CANCELED}


def row(connections: Connections, handle: JobHandle) -> dict[str, Any]:
    with connections.transaction() as connection:
        found = connection.execute(sa.text("SELECT * FROM job_statuses WHERE id = :id"), {"id": handle.id}).one()
        return dict(found._mapping)


# -- cancel


@pytest.mark.parametrize("status", sorted(WAITING))
def test_a_job_that_waits_is_canceled_with_who_and_why(connections: Connections, status: JobStatus) -> None:
    handle = JOB_IN[status]()

    answer = control.cancel(connections, handle.id, "ann@desk", "a typo")

    assert (answer.verdict, answer.status) == (Verdict.DONE, JobStatus.CANCELED)
    assert status in answer.message
    assert handle.refresh().status is JobStatus.CANCELED
    assert handle.reason == "canceled by ann@desk: a typo"
    assert claim(connections, handle) is None


@pytest.mark.parametrize("status", sorted(set(JobStatus) - WAITING - {JobStatus.STARTED}))
def test_a_job_that_has_ended_is_not_canceled(connections: Connections, status: JobStatus) -> None:
    handle = JOB_IN[status]()
    before = row(connections, handle)

    answer = control.cancel(connections, handle.id, "ann")

    assert (answer.verdict, answer.status) == (Verdict.REFUSED, status)
    assert answer.message
    assert row(connections, handle) == before


def test_of_a_running_job_the_end_is_requested_and_the_first_reason_stands(connections: Connections) -> None:
    handle = started()

    answers = [control.cancel(connections, handle.id, by) for by in ("ann", "bob")]

    assert [(one.verdict, one.status) for one in answers] == [(Verdict.REQUESTED, JobStatus.STARTED)] * 2
    assert all(one.is_granted and not one.is_done for one in answers)
    assert handle.refresh().status is JobStatus.STARTED
    assert one_value(connections, "SELECT reason FROM cancel_requests WHERE job_id = :id", id=handle.id) == (
        "canceled by ann"
    )
    answer = control.wait_for_cancel(connections, handle.id, 0.1)
    assert (answer.verdict, answer.status) == (Verdict.REQUESTED, JobStatus.STARTED)


@pytest.mark.parametrize(
    "decision", [Again(0.0, {"errors": 1}), HandBack(), Fail(Reason.ERROR, {"errors": 1}), CancelRunning("by itself")]
)
def test_a_requested_job_ends_as_canceled_whatever_was_decided(connections: Connections, decision: Decision) -> None:
    handle = started()
    child = Echo.dispatch(after=handle)
    control.cancel(connections, handle.id, "ann", "enough")

    with connections.transaction() as connection:
        settled = settle(connection, handle.id, 1, Outcome.ERROR, decision, Evidence())

    assert settled is not None
    assert settled.status is handle.refresh().status is JobStatus.CANCELED
    assert handle.reason == "canceled by ann: enough"
    assert child.refresh().status is JobStatus.CANCELED
    assert control.wait_for_cancel(connections, handle.id).is_done


def test_a_requested_job_that_completes_has_completed(connections: Connections) -> None:
    handle = started()
    control.cancel(connections, handle.id, "ann")

    with connections.transaction() as connection:
        assert complete(connection, handle.id, 1, None, Evidence()) is not None

    answer = control.wait_for_cancel(connections, handle.id)
    assert (answer.verdict, answer.status) == (Verdict.REFUSED, JobStatus.COMPLETED)


def test_a_retry_forgets_who_wanted_it_canceled(connections: Connections) -> None:
    handle = started()
    control.cancel(connections, handle.id, "ann")
    with connections.transaction() as connection:
        settle(connection, handle.id, 1, Outcome.CANCELED, CancelRunning("by itself"), Evidence())

    assert handle.retry().is_done
    assert claim(connections, handle)

    control.cancel(connections, handle.id, "bob")
    with connections.transaction() as connection:
        settle(connection, handle.id, 2, Outcome.CANCELED, CancelRunning("by itself"), Evidence())
    assert handle.refresh().reason == "canceled by bob"


def test_requests_are_forgotten_when_their_jobs_have_ended(connections: Connections) -> None:
    running, ended = started(), started()
    for handle in (running, ended):
        control.cancel(connections, handle.id, "ann")
    with connections.transaction() as connection:
        settle(connection, ended.id, 1, Outcome.CANCELED, CancelRunning("by itself"), Evidence())
        connection.exec_driver_sql("UPDATE cancel_requests SET requested_at = now() - interval '2 days'")

    prune(connections)

    assert one_value(connections, "SELECT array_agg(job_id) FROM cancel_requests") == [running.id]


def test_a_held_job_is_canceled_too(connections: Connections) -> None:
    handle = Echo.dispatch()
    with connections.transaction() as connection:
        connection.exec_driver_sql("UPDATE job_statuses SET held_by = 'limit:api'")

    assert handle.cancel().is_done


def test_all_that_waits_for_a_canceled_job_is_canceled(connections: Connections) -> None:
    parent = Echo.dispatch()
    child = Echo.dispatch(after=parent)
    grandchild = Echo.dispatch(after=child)
    other = Echo.dispatch()

    control.cancel(connections, parent.id, "ann")

    assert child.refresh().reason == f"parent {parent.id} was canceled"
    assert grandchild.refresh().reason == f"parent {child.id} was canceled"
    assert {one.status for one in (child, grandchild)} == {JobStatus.CANCELED}
    assert other.refresh().status is JobStatus.QUEUED


def test_a_reason_of_any_text_is_kept_as_far_as_postgres_can(connections: Connections) -> None:
    handle = Echo.dispatch()

    assert handle.cancel("\x00\ud800" + "x" * 5000).is_done

    reason = handle.refresh().reason
    assert reason is not None
    assert reason.startswith("canceled by the application: \\x00\\ud800xxx")
    assert len(reason) == control.LONGEST_REASON


# -- retry


@pytest.mark.parametrize("status", sorted(ENDED_BADLY))
def test_a_job_that_ended_badly_is_queued_again(connections: Connections, status: JobStatus) -> None:
    handle = JOB_IN[status]()
    attempt, pushes = row(connections, handle)["attempt"], row(connections, handle)["push_count"]
    with connections.transaction() as connection:
        connection.exec_driver_sql("UPDATE job_statuses SET expires_at = now() - interval '1 hour'")

    answer = control.retry(connections, handle.id, "ann")

    now = row(connections, handle)
    assert (answer.verdict, answer.status) == (Verdict.DONE, JobStatus.QUEUED)
    assert (now["status"], now["reason"], now["result"], now["finished_at"]) == ("queued", None, None, None)
    assert (now["errors"], now["crashes"], now["losses"], now["waiting_parents"]) == (0, 0, 0, 0)
    assert (now["attempt"], now["push_count"]) == (attempt, pushes + 1)
    assert str(handle.id) in waiting(connections.redis, "default")
    assert claim(connections, handle)


@pytest.mark.parametrize("status", sorted(set(JobStatus) - ENDED_BADLY))
def test_a_job_that_waits_runs_or_is_done_is_not_queued_again(connections: Connections, status: JobStatus) -> None:
    handle = JOB_IN[status]()
    before = row(connections, handle)

    answer = control.retry(connections, handle.id, "ann")

    assert (answer.verdict, answer.status) == (Verdict.REFUSED, status)
    assert answer.message
    assert row(connections, handle) == before


def test_a_retried_job_has_all_its_attempts_before_it_and_the_old_ones_behind_it(connections: Connections) -> None:
    handle = Fails.set(max_attempts=2).dispatch()
    for expected in (JobStatus.SCHEDULED, JobStatus.FAILED):
        with connections.transaction() as connection:
            connection.exec_driver_sql("UPDATE job_statuses SET available_at = now() WHERE status = 'scheduled'")
            moves.promote_due(connection, 10)
        with pytest.raises(ValueError, match="as asked") if expected is JobStatus.FAILED else contextlib.nullcontext():
            run_job(str(handle.id))
        assert handle.refresh().status is expected

    assert handle.retry().is_done
    run_job(str(handle.id))

    assert handle.refresh().status is JobStatus.SCHEDULED
    assert [one.number for one in handle.attempts] == [1, 2, 3]
    assert row(connections, handle)["errors"] == 1


def test_a_child_that_is_retried_runs_however_its_parents_ended(connections: Connections) -> None:
    parent = Echo.dispatch()
    child = Echo.dispatch(after=parent)
    parent.cancel()

    assert child.retry().is_done
    run_job(str(parent.id))  # releases what waits for it, and nothing else

    assert child.refresh().status is JobStatus.QUEUED
    run_job(str(child.id))
    assert child.refresh().status is JobStatus.COMPLETED


def test_without_redis_a_retried_job_is_left_to_the_relay(connections: Connections) -> None:
    handle = canceled()
    away = Connections(connections.settings.model_copy(update={"redis_url": None}))
    away._redis = redis.Redis(port=free_port())

    assert control.retry(away, handle.id, "ann").is_done

    assert row(connections, handle)["pushed_at"] is None
    away.close()


def test_a_retried_job_runs_in_a_stock_worker(connections: Connections, system: Stack) -> None:
    system.worker()
    handle = Fails.dispatch(until=2, error="KeyError")
    assert handle.wait().status is JobStatus.FAILED

    assert handle.retry().is_done

    assert handle.wait().status is JobStatus.COMPLETED
    assert [one.outcome for one in handle.attempts] == ["error", "completed"]


# -- both


@pytest.mark.parametrize("ask", [control.retry, control.cancel])
def test_a_job_that_is_not_there_is_not_found(connections: Connections, ask: Callable[..., control.Answer]) -> None:
    answer = ask(connections, uuid4(), "ann")

    assert (answer.verdict, answer.status) == (Verdict.NOT_FOUND, None)
    assert "no such job" in answer.message


def test_a_handle_knows_what_came_of_it(connections: Connections) -> None:
    handle = completed()

    assert not handle.cancel().is_done
    assert not handle.retry().is_done
    assert handle.status is JobStatus.COMPLETED

    handle = Echo.dispatch()
    handle.cancel("no need", by="the shop")
    assert handle.status is JobStatus.CANCELED
    assert handle.refresh().reason == "canceled by the shop: no need"
    handle.retry()
    assert handle.status is JobStatus.QUEUED
    assert handle.reason is None


def test_a_job_is_not_retried_before_its_parent_has_ended(connections: Connections) -> None:
    parent = Echo.dispatch()
    child = Echo.dispatch(after=parent)
    parent.cancel(by="ann")
    assert parent.retry(by="ann").is_done

    answer = child.retry(by="ann")

    assert (answer.verdict, answer.status) == (Verdict.REFUSED, JobStatus.CANCELED)
    assert f"its parent {parent.id} is queued" in answer.message
    run_job(str(parent.id))
    assert child.retry(by="ann").is_done


# -- at the same moment


def test_a_cancel_waits_for_a_claim_that_came_first_and_is_a_request(connections: Connections) -> None:
    handle = Echo.dispatch()
    with ThreadPoolExecutor(1) as other, connections.transaction() as first:
        assert moves.claim(first, handle.id, ME, 30)
        cancel = other.submit(control.cancel, connections, handle.id, "ann")
        eventually(lambda: _waits(connections), what="the cancel waits")

    assert cancel.result().verdict is Verdict.REQUESTED
    assert handle.refresh().status is JobStatus.STARTED


def test_a_claim_waits_for_a_cancel_that_came_first_and_finds_nothing(connections: Connections) -> None:
    handle = Echo.dispatch()
    with ThreadPoolExecutor(1) as other, connections.transaction() as first:
        assert moves.cancel(first, handle.id, "canceled by ann")
        delivery = other.submit(claim, connections, handle)
        eventually(lambda: _waits(connections), what="the claim waits")

    assert delivery.result() is None
    assert handle.refresh().status is JobStatus.CANCELED


def test_a_child_that_another_transaction_has_locked_keeps_no_job_from_being_canceled(connections: Connections) -> None:
    parent = Echo.dispatch()
    child, other = Echo.dispatch_many([{}] * 2, after=parent)
    with Session(connections.engine) as session:
        Echo.dispatch(after=child, session=session)
        assert parent.cancel().is_done
        assert (child.refresh().status, other.refresh().status) == (JobStatus.DEFERRED, JobStatus.CANCELED)
        waits = parent.retry()
        session.rollback()

    assert waits.verdict is Verdict.REFUSED
    assert "are still being told of its end; try again" in waits.message
    assert parent.refresh().status is JobStatus.CANCELED
    eventually(lambda: propagate_due(connections, 1.0), what="a scheduler tells the child")
    assert child.refresh().status is JobStatus.CANCELED
    assert parent.retry().is_done


@pytest.mark.parametrize(("ask", "status"), [(control.cancel, JobStatus.QUEUED), (control.retry, JobStatus.FAILED)])
def test_a_job_that_somebody_holds_is_refused_and_stays(
    connections: Connections,
    ask: Callable[..., control.Answer],
    status: JobStatus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobledger.control.jobs.LOCK_SECONDS", 0.1)
    handle = JOB_IN[status]()
    with connections.transaction() as other:
        moves.lock_parents(other, [handle.id])
        answer = ask(connections, handle.id, "ann")

    assert (answer.verdict, answer.status) == (Verdict.REFUSED, status)
    assert "try again" in answer.message
    assert ask(connections, handle.id, "ann").is_done


def _waits(connections: Connections) -> bool:
    here = "datname = current_database() AND wait_event_type = 'Lock'"
    return bool(one_value(connections, f"SELECT count(*) FROM pg_stat_activity WHERE {here}"))


def test_of_a_claim_and_a_cancel_at_once_exactly_one_wins(connections: Connections) -> None:
    handles = Echo.dispatch_many([{}] * 30)
    gate = threading.Barrier(2)

    def claim_all() -> list[bool]:
        gate.wait(10)
        return [claim(connections, one) is not None for one in handles]

    def cancel_all() -> list[bool]:
        gate.wait(10)
        return [control.cancel(connections, one.id, "ann").is_done for one in reversed(handles)][::-1]

    with ThreadPoolExecutor(2) as both:
        claims, cancels = both.submit(claim_all), both.submit(cancel_all)

    assert [a != b for a, b in zip(claims.result(), cancels.result(), strict=True)] == [True] * 30
    assert any(claims.result())
    assert any(cancels.result())


def test_of_many_retries_at_once_exactly_one_is_done(connections: Connections) -> None:
    handles = [canceled() for _ in range(5)]
    gate = threading.Barrier(4)

    def retry_all() -> int:
        gate.wait(10)
        return sum(control.retry(connections, one.id, "ann").is_done for one in handles)

    with ThreadPoolExecutor(4) as people:
        done = [one.result() for one in [people.submit(retry_all) for _ in range(4)]]

    assert sum(done) == 5
    assert {row(connections, one)["push_count"] for one in handles} == {2}
