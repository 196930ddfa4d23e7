"""Handles: what the ledger says of a job, now or once it has ended."""

import math
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy.orm import Session

from jobledger import (
    Connections,
    JobHandle,
    JobNotFound,
    JobStatus,
    LedgerUnavailable,
    OptionError,
    Outcome,
    WaitTimeout,
    control,
)
from jobledger.domain.records import Runner
from jobledger.domain.status import PauseKind
from jobledger.embedded import EmbeddedServers
from jobledger.ledger import moves
from jobledger.maintenance.relay import relay_due
from jobledger.worker import run_job
from sample_jobs import Echo, Fails

pytestmark = pytest.mark.one_database  # each looks at jobs of its own


def run(handle: JobHandle) -> None:
    run_job(str(handle.id))


def test_a_handle_says_what_was_true_at_the_last_look(connections: Connections) -> None:
    job = Echo.dispatch(n=5)
    run(job)

    assert (job.status, job.result) == (JobStatus.QUEUED, None)
    assert job.refresh() is job
    assert (job.status, job.result, job.reason) == (JobStatus.COMPLETED, {"n": 5}, None)
    assert repr(job) == f"<JobHandle {job.id} completed>"


def test_a_job_that_failed_says_why(connections: Connections) -> None:
    job = Fails.dispatch(error="KeyError")
    with pytest.raises(KeyError):
        run(job)

    job.refresh()

    assert (job.status, job.reason, job.result) == (JobStatus.FAILED, "error", None)


def test_a_handle_for_a_known_id_reads_the_same_row(connections: Connections) -> None:
    job = Echo.dispatch()
    run(job)

    found = JobHandle(job.id, JobStatus.QUEUED, connections).refresh()

    assert (found.status, found.result) == (JobStatus.COMPLETED, {})


def test_an_id_that_is_not_in_the_ledger_is_not_found(connections: Connections) -> None:
    unknown = JobHandle(uuid4(), JobStatus.QUEUED, connections)

    with pytest.raises(JobNotFound, match=str(unknown.id)):
        unknown.refresh()
    with pytest.raises(JobNotFound):
        unknown.wait(10)
    assert unknown.attempts == []


def test_a_job_is_found_once_its_transaction_has_committed(connections: Connections) -> None:
    with Session(connections.engine) as session:
        job = Echo.dispatch(session=session)
        with pytest.raises(JobNotFound, match="not yet committed"):
            job.refresh()
        session.commit()

    assert job.refresh().status is JobStatus.QUEUED


@pytest.mark.parametrize("kind", [str, lambda one: one], ids=["text", "UUID"])
def test_a_handle_comes_from_an_id(connections: Connections, kind: Callable[[UUID], Any]) -> None:
    job = Echo.dispatch(n=5)
    run(job)

    found = JobHandle.fetch(kind(job.id))

    assert (found.id, found.status, found.result) == (job.id, JobStatus.COMPLETED, {"n": 5})
    assert not found.retry().is_done


def test_no_handle_comes_from_an_id_that_the_ledger_does_not_have(connections: Connections) -> None:
    unknown = uuid4()

    with pytest.raises(JobNotFound, match=str(unknown)):
        JobHandle.fetch(unknown)


@pytest.mark.parametrize("wrong", ["42", "", "x" * 1000, 42, None, b"01970000-0000-7000-8000-000000000000"])
def test_no_handle_comes_from_what_is_no_id(connections: Connections, wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"^job_id=.* is no job's id: say a UUID") as refused:
        JobHandle.fetch(wrong)
    assert len(str(refused.value)) < 150


def test_a_handle_says_who_wants_its_job_canceled_and_why(connections: Connections) -> None:
    job = Echo.dispatch()
    with connections.transaction() as connection:
        moves.claim(connection, job.id, Runner("worker", "host", 1, "1"), 30)
    assert (job.refresh().cancel_requested_at, job.cancel_reason) == (None, None)

    job.cancel("too large", by="ann")

    assert job.refresh().cancel_reason == "canceled by ann: too large"
    assert job.cancel_requested_at is not None
    with pytest.raises(WaitTimeout, match=r"is still started after 0 s, to be canceled by ann: too large\.$"):
        job.wait(0)


# -- waiting


def test_waiting_ends_when_the_job_does(connections: Connections) -> None:
    job = Echo.dispatch(n=5)

    with ThreadPoolExecutor(1) as another:
        waiting = another.submit(JobHandle(job.id, job.status, connections).wait, 20)
        run(job)

    assert (waiting.result().status, waiting.result().result) == (JobStatus.COMPLETED, {"n": 5})


def test_waiting_ends_when_the_job_fails(connections: Connections) -> None:
    job = Fails.dispatch(error="KeyError")

    with ThreadPoolExecutor(1) as another:
        waiting = another.submit(job.wait, 20)
        with pytest.raises(KeyError):
            run(job)

    assert waiting.result() is job
    assert job.status is JobStatus.FAILED


def test_waiting_goes_on_while_a_job_waits_for_its_next_attempt(connections: Connections) -> None:
    job = Fails.dispatch(until=2)
    run(job)

    with pytest.raises(WaitTimeout):
        job.wait(0)

    assert job.status is JobStatus.SCHEDULED


def test_waiting_for_a_job_that_has_ended_takes_one_look(connections: Connections) -> None:
    job = Echo.dispatch()
    run(job)

    assert job.wait(0).status is JobStatus.COMPLETED


@pytest.mark.timed
def test_waiting_gives_up_at_its_timeout(connections: Connections) -> None:
    job = Echo.dispatch()

    started = time.monotonic()
    with pytest.raises(WaitTimeout, match=rf"Job {job.id} is still queued after 0.2 s") as given_up:
        job.wait(0.2)

    assert str(given_up.value).endswith("after 0.2 s.")
    assert 0.2 <= time.monotonic() - started < 1
    assert isinstance(given_up.value, TimeoutError)


@pytest.mark.parametrize("timeout", [None, "soon", True, math.nan, date(2026, 1, 1), {}])
def test_a_wait_that_is_no_length_of_time_is_refused(connections: Connections, timeout: Any) -> None:
    job = Echo.dispatch()

    with pytest.raises(OptionError, match=r"timeout=.* (is no length of time|must lie between)"):
        job.wait(timeout)
    with pytest.raises(OptionError, match=r"wait=.* (is no length of time|must lie between)"):
        job.cancel("no need", wait=timeout)
    assert job.refresh().status is JobStatus.QUEUED


@pytest.mark.parametrize("timeout", [0.05, "50ms", timedelta(milliseconds=50), -1, -0.5])
def test_a_wait_has_many_spellings(connections: Connections, timeout: Any) -> None:
    with pytest.raises(WaitTimeout, match="is still queued after"):
        Echo.dispatch().wait(timeout)


def test_a_wait_may_be_without_an_end(connections: Connections) -> None:
    job = Echo.dispatch()
    run(job)

    assert job.wait(math.inf).status is JobStatus.COMPLETED


def test_waiting_in_vain_says_what_the_job_waits_for(connections: Connections) -> None:
    parent = Echo.dispatch_in("1h")
    child = Echo.dispatch(after=parent)
    control.pause(connections, PauseKind.QUEUE, "held", "ann")
    held = Echo.dispatch(queue="held")
    run(held)

    with pytest.raises(WaitTimeout, match=r"is still queued after 0 s, held by pause:queue:held\.$"):
        held.wait(0)
    with pytest.raises(WaitTimeout, match=r"is still deferred after 0 s; it waits for 1 of its parents\.$"):
        child.wait(0)
    with pytest.raises(WaitTimeout, match=r"is still scheduled after 0 s; it waits until 20\d\d-.*\+00:00\.$"):
        parent.wait(0)


def test_waiting_for_a_ledger_that_is_away_is_no_timeout(connections: Connections, servers: EmbeddedServers) -> None:
    nowhere = SecretStr(servers.postgres.url_for("nowhere"))
    gone = Connections(connections.settings.model_copy(update={"database_url": nowhere}))

    with pytest.raises(LedgerUnavailable):
        JobHandle(uuid4(), JobStatus.QUEUED, gone).wait(10)


# -- attempts


def test_a_job_that_nobody_has_claimed_has_no_attempts(connections: Connections) -> None:
    assert Echo.dispatch().attempts == []


def test_every_attempt_is_told_in_order(connections: Connections) -> None:
    job = Fails.dispatch(until=2)
    run(job)
    while job.refresh().status is JobStatus.SCHEDULED:
        relay_due(connections)
    run(job)

    first, second = job.attempts

    assert (first.number, first.outcome) == (1, Outcome.ERROR)
    assert (first.error_type, first.error_message) == ("ValueError", "as asked")
    assert first.traceback is not None
    assert first.traceback.endswith("ValueError: as asked\n")
    assert (second.number, second.outcome, second.error_type) == (2, Outcome.COMPLETED, None)
    assert (second.host, second.pid) == (socket.gethostname(), os.getpid())
    assert first.finished_at is not None
    assert first.started_at < first.finished_at < second.started_at
    assert job.refresh().result == 2
