"""What a job asks for itself: to run again later, to be tried again at a time, to be canceled, or to fail at once."""

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from harness import SHORT, Stack, one_value
from jobledger import (
    BaseJob,
    Cancel,
    Connections,
    Failure,
    GiveUp,
    JobHandle,
    JobStatus,
    Outcome,
    Reason,
    Retry,
    Snooze,
)
from jobledger.maintenance.relay import relay_due
from jobledger.worker import run_job
from sample_jobs import EFFECTS, Asking, Effect

pytestmark = pytest.mark.one_database  # each looks at jobs of its own


@pytest.fixture(autouse=True)
def _effects(connections: Connections) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(EFFECTS))


class Signals(BaseJob):
    """Does what the test says."""

    retry = Retry(3, backoff="fixed", base=600, jitter=False, on=(OSError,))
    what: ClassVar[Callable[["Signals"], Any]]
    failures: ClassVar[list[Failure]] = []

    def _perform(self) -> Any:
        return type(self).what(self)

    def on_failed(self, error: Failure) -> None:
        type(self).failures.append(error)


class SignalsAsync(BaseJob):
    async def _perform(self) -> None:
        raise Snooze("1m")


def deliver(handle: JobHandle) -> JobHandle:
    """One delivery; what a job that failed for good raises is RQ's to show."""
    with contextlib.suppress(Exception):
        run_job(str(handle.id))
    return handle.refresh()


def deliver_again(connections: Connections, handle: JobHandle) -> JobHandle:
    with connections.transaction() as connection:
        connection.execute(sa.text("UPDATE job_statuses SET available_at = now() WHERE id = :id"), {"id": handle.id})
    relay_due(connections)
    return deliver(handle)


def dispatched(what: Callable[[Signals], Any], **options: Any) -> JobHandle:
    Signals.what = what
    Signals.failures.clear()
    return Signals.dispatch(**options)


def raising(error: Exception) -> Callable[[Signals], Any]:
    def what(job: Signals) -> None:
        job.session.execute(
            sa.text("INSERT INTO effects (job_id, attempt) VALUES (:id, :attempt)"),
            {"id": job.job_id, "attempt": job.attempt},
        )
        Effect.dispatch(session=job.session)
        raise error

    return what


def wait_seconds(connections: Connections, handle: JobHandle) -> float:
    """From its last move to its next attempt."""
    sql = "SELECT extract(epoch FROM available_at - updated_at) FROM job_statuses WHERE id = :id"
    return float(one_value(connections, sql, id=handle.id))


def spent(connections: Connections, handle: JobHandle) -> tuple[int, int, int]:
    with connections.transaction() as connection:
        row = connection.execute(
            sa.text("SELECT errors, crashes, losses FROM job_statuses WHERE id = :id"), {"id": handle.id}
        ).one()
    return (row.errors, row.crashes, row.losses)


@pytest.mark.parametrize("error", [Snooze(30), Retry.in_(30), Cancel("no need"), GiveUp("no use")])
def test_what_was_written_in_the_session_is_gone(connections: Connections, error: Exception) -> None:
    jobs = one_value(connections, "SELECT count(*) FROM job_statuses WHERE job_type = 'Effect'")

    handle = deliver(dispatched(raising(error)))

    assert one_value(connections, "SELECT count(*) FROM effects WHERE job_id = :id", id=handle.id) == 0
    assert one_value(connections, "SELECT count(*) FROM job_statuses WHERE job_type = 'Effect'") == jobs


# -- Snooze


def test_a_snoozed_job_runs_again_after_the_wait_that_it_chose(connections: Connections) -> None:
    handle = deliver(dispatched(raising(Snooze("30s", "the file is not there yet"))))

    assert handle.status is JobStatus.SCHEDULED
    assert wait_seconds(connections, handle) == 30
    [attempt] = handle.attempts
    assert (attempt.outcome, attempt.error_type, attempt.traceback) == (Outcome.SNOOZED, None, None)
    assert attempt.error_message == "the file is not there yet"


def test_snoozing_spends_nothing_however_often(connections: Connections) -> None:
    def snooze_five_times(job: Signals) -> int:
        if job.attempt <= 5:
            raise Snooze(60)
        return job.attempt

    handle = deliver(dispatched(snooze_five_times, max_attempts=1))
    for _ in range(5):
        assert handle.status is JobStatus.SCHEDULED
        deliver_again(connections, handle)

    assert (handle.status, handle.result) == (JobStatus.COMPLETED, 6)
    assert spent(connections, handle) == (0, 0, 0)
    assert [one.outcome for one in handle.attempts] == [Outcome.SNOOZED] * 5 + [Outcome.COMPLETED]


def test_an_async_job_snoozes_too(connections: Connections) -> None:
    handle = deliver(SignalsAsync.dispatch())

    assert (handle.status, handle.attempts[0].outcome) == (JobStatus.SCHEDULED, Outcome.SNOOZED)


def test_a_snooze_that_an_error_led_to_is_a_snooze(connections: Connections) -> None:
    def work(job: Signals) -> None:
        try:
            raise ConnectionError("busy")
        except ConnectionError as error:
            raise Snooze(5) from error

    assert deliver(dispatched(work, max_attempts=1)).status is JobStatus.SCHEDULED


# -- Retry.in_


def test_an_error_chooses_its_own_wait_and_spends_an_attempt(connections: Connections) -> None:
    handle = deliver(dispatched(raising(Retry.in_("1m", "busy"))))

    assert handle.status is JobStatus.SCHEDULED
    assert wait_seconds(connections, handle) == 60
    assert spent(connections, handle) == (1, 0, 0)
    assert handle.attempts[0].outcome is Outcome.ERROR
    assert (handle.attempts[0].error_type, handle.attempts[0].error_message) == ("RetryIn", "busy")


def test_the_last_error_fails_the_job_even_if_it_asks_for_a_retry(connections: Connections) -> None:
    handle = deliver(dispatched(raising(Retry.in_("1m")), max_attempts=2))
    assert handle.status is JobStatus.SCHEDULED

    deliver_again(connections, handle)

    assert (handle.status, handle.reason) == (JobStatus.FAILED, Reason.ERROR)


def test_the_traceback_says_what_led_to_the_retry(connections: Connections) -> None:
    def work(job: Signals) -> None:
        try:
            raise ValueError("nonsense")
        except ValueError as error:
            raise Retry.in_(5) from error

    assert "ValueError: nonsense" in (deliver(dispatched(work)).attempts[0].traceback or "")


# -- Cancel


def test_a_job_cancels_itself_with_all_that_waits_for_it(connections: Connections) -> None:
    handle = dispatched(raising(Cancel("the customer is gone")))
    child = Effect.dispatch(after=handle)
    grandchild = Effect.dispatch(after=child)

    callbacks = one_value(connections, "SELECT count(*) FROM job_statuses WHERE title = 'Signals.on_failed'")

    deliver(handle)

    assert (handle.status, handle.reason) == (JobStatus.CANCELED, "canceled by itself: the customer is gone")
    assert child.refresh().reason == f"parent {handle.id} was canceled"
    assert grandchild.refresh().status is JobStatus.CANCELED
    assert handle.attempts[0].outcome is Outcome.CANCELED
    assert one_value(connections, "SELECT count(*) FROM job_statuses WHERE title = 'Signals.on_failed'") == callbacks


def test_a_job_that_canceled_itself_can_be_retried(connections: Connections) -> None:
    handle = deliver(dispatched(raising(Cancel())))
    assert handle.reason == "canceled by itself"
    Signals.what = lambda job: job.attempt

    assert handle.retry().is_done
    assert deliver(handle).result == 2


@pytest.mark.parametrize("why", ["nul \x00 and \ud800", "long " * 1000])
def test_whatever_a_job_says_of_its_cancellation_is_kept(connections: Connections, why: str) -> None:
    handle = deliver(dispatched(raising(Cancel(why))))

    assert handle.status is JobStatus.CANCELED
    assert (handle.reason or "").startswith(f"canceled by itself: {why[:3]}")


# -- GiveUp


def test_a_job_that_gives_up_fails_at_once_and_calls_on_failed(connections: Connections) -> None:
    handle = dispatched(raising(GiveUp("no such customer")), max_attempts=9)
    child = Effect.dispatch(after=handle)

    with pytest.raises(GiveUp, match="no such customer"):  # RQ's tools show it as failed
        run_job(str(handle.id))
    handle.refresh()

    assert (handle.status, handle.reason) == (JobStatus.FAILED, Reason.ERROR)
    assert handle.attempts[0].outcome is Outcome.GAVE_UP
    assert child.refresh().reason == f"parent {handle.id} failed"
    sql = "SELECT id FROM job_statuses WHERE title = 'Signals.on_failed' ORDER BY id DESC LIMIT 1"
    assert run_job(str(one_value(connections, sql))) == "completed"
    [failure] = Signals.failures
    assert (failure.reason, failure.error_type, failure.message) == ("error", "GiveUp", "no such customer")


# -- in real workers


def test_signals_work_in_workers(connections: Connections, system: Stack) -> None:
    for _ in range(2):
        system.worker(**SHORT)
    system.scheduler(**SHORT)
    snoozing = Asking.dispatch(what="snooze", until=4)
    retrying = Asking.dispatch(what="retry", until=3)
    canceling = Asking.dispatch(what="cancel", until=2)
    giving_up = Asking.dispatch(what="give up", until=2)

    assert [snoozing.wait(60).result, retrying.wait(60).result] == [4, 3]
    assert canceling.wait(60).status is JobStatus.CANCELED
    assert giving_up.wait(60).reason == "error"
    assert [len(one.attempts) for one in (snoozing, retrying, canceling, giving_up)] == [4, 3, 1, 1]
