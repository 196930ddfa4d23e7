"""The run of a delivery, in this process: what a job may do, how it can end, and what is kept of it."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

import psycopg2
import pytest
import sqlalchemy as sa
from pydantic import BaseModel, SecretStr
from rq import Queue, SimpleWorker
from rq.job import Job
from sqlalchemy.orm import Session

from harness import eventually, one_value
from jobledger import (
    BaseJob,
    Connections,
    Failure,
    JobHandle,
    JobStatus,
    Outcome,
    PayloadError,
    Reason,
    Retry,
    Settings,
    UnknownJobType,
    configure,
)
from jobledger.connections.default import default_connections
from jobledger.domain.endings import JobTimeout
from jobledger.ledger import moves
from jobledger.maintenance.relay import relay_due, relay_unpushed
from jobledger.registry import registry
from jobledger.worker import run_job
from sample_jobs import EFFECTS, Asks, Echo, Effect, Failing, Fails, Parent, Stubborn

pytestmark = pytest.mark.one_database  # each looks at jobs of its own


@pytest.fixture(autouse=True)
def _effects(connections: Connections) -> None:
    execute(EFFECTS)


class Does(BaseJob):
    """Does what the test says."""

    retry = Retry(3, backoff="fixed", base=60, jitter=False)
    what: ClassVar[Callable[["Does"], Any]]

    def _perform(self) -> Any:
        return type(self).what(self)

    @classmethod
    def now(cls, what: Callable[["Does"], Any], **options: Any) -> JobHandle:
        """Dispatch a job that does this, and run it."""
        cls.what = what
        return run(cls.set(**options).dispatch())


def run(handle: JobHandle) -> JobHandle:
    """One delivery; what a job that failed for good raises is RQ's to show."""
    with contextlib.suppress(Exception, SystemExit, JobTimeout):
        run_job(str(handle.id))
    return handle.refresh()


def run_again(handle: JobHandle) -> JobHandle:
    """The next delivery of a job that waits for its retry."""
    execute("UPDATE job_statuses SET available_at = now() WHERE id = :id", id=handle.id)
    relay_due(default_connections())
    return run(handle)


def execute(statement: str, **parameters: Any) -> None:
    """In a transaction of its own, as somebody else would."""
    with default_connections().transaction() as connection:
        connection.execute(sa.text(statement), parameters)


def value(sql: str, **parameters: Any) -> Any:
    return one_value(default_connections(), sql, **parameters)


def effects(handle: JobHandle) -> list[str]:
    with default_connections().transaction() as connection:
        rows = connection.execute(sa.text("SELECT note FROM effects WHERE job_id = :id"), {"id": handle.id})
        return sorted(rows.scalars())


def write(job: BaseJob, note: str = "written") -> None:
    job.session.execute(
        sa.text("INSERT INTO effects (job_id, attempt, note) VALUES (:id, :attempt, :note)"),
        {"id": job.job_id, "attempt": job.attempt, "note": note},
    )


def pushed(queue: str = "default") -> list[str]:
    return [one.decode() for one in default_connections().redis.lrange(f"rq:queue:{queue}", 0, -1)]


# -- to its end


def test_a_job_completes_with_its_effects_and_its_result() -> None:
    handle = run(Effect.dispatch(note="hello"))

    assert (handle.status, handle.result) == (JobStatus.COMPLETED, "hello")
    assert effects(handle) == ["hello"]


def test_a_run_says_in_words_what_became_of_the_job() -> None:
    assert run_job(str(Echo.dispatch().id)) == "completed"
    assert run_job(str(Fails.dispatch(until=2).id)) == "scheduled: runs again in 0.2 s"


def test_a_second_delivery_does_nothing() -> None:
    handle = run(Effect.dispatch(note="once"))

    assert run_job(str(handle.id)).startswith("nothing to do")
    assert effects(handle) == ["once"]
    assert len(handle.attempts) == 1


@pytest.mark.parametrize("deliveries", [1, 2])
def test_after_a_run_transactions_are_still_transactions(connections: Connections, deliveries: int) -> None:
    handle = Echo.dispatch()
    for _ in range(deliveries):
        run(handle)

    with contextlib.suppress(ZeroDivisionError), connections.transaction() as connection:
        connection.execute(sa.text("INSERT INTO effects (job_id, note) VALUES (:id, 'half')"), {"id": handle.id})
        raise ZeroDivisionError

    assert effects(handle) == []


def test_an_attempt_keeps_who_ran_it_and_how_it_ended(settings: Settings) -> None:
    connections = configure(settings.model_copy(update={"code_version": "1.2.3"}))

    handle = run(Echo.dispatch())

    (attempt,) = handle.attempts
    assert (attempt.number, attempt.outcome) == (1, Outcome.COMPLETED)
    assert (attempt.host, attempt.pid, attempt.version) == (socket.gethostname(), os.getpid(), "1.2.3")
    assert attempt.finished_at is not None
    assert attempt.peak_memory_bytes is not None
    assert attempt.peak_memory_bytes > 10_000_000
    connections.close()


def test_what_a_job_sees_of_itself() -> None:
    seen: dict[str, Any] = {}

    def look(job: Does) -> None:
        seen.update(job_id=job.job_id, attempt=job.attempt, payload=job.payload)

    handle = Does.now(look)

    assert seen == {"job_id": handle.id, "attempt": 1, "payload": {}}


def test_a_job_ends_when_it_ends_rather_than_when_its_transaction_began() -> None:
    handle = Does.now(lambda job: job.session.execute(sa.text("SELECT pg_sleep(0.2)")).scalar())

    (attempt,) = handle.attempts
    assert attempt.finished_at is not None
    assert attempt.finished_at - attempt.started_at >= timedelta(seconds=0.2)
    row = handle.refresh()._row
    assert row is not None
    assert row.finished_at == row.updated_at == attempt.finished_at


def test_a_child_dispatched_while_its_parent_ran_is_queued_by_its_end() -> None:
    children: list[JobHandle] = []

    def dispatch(job: Does) -> None:
        write(job)
        children.append(Echo.dispatch(after=job.job_id))

    Does.now(dispatch)

    assert children[0].status is JobStatus.DEFERRED
    assert children[0].refresh().status is JobStatus.QUEUED


def test_an_async_job_is_awaited() -> None:
    assert run(Asks.dispatch()).result == "asked"


def test_a_job_logs_and_reports_how_far_it_is() -> None:
    def work(job: Does) -> None:
        job.log.info("loaded", rows=5)
        job.log.warning("two\nlines")
        job.progress(1, 2)
        job.progress(2, 2, "done")

    (attempt,) = Does.now(work).attempts

    assert attempt.log_tail == "INFO loaded rows=5\nWARNING two\\nlines"
    assert (attempt.progress_done, attempt.progress_total, attempt.progress_note) == (2, 2, "done")


# -- results


class Answer(BaseModel):
    on: date
    rows: int


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (None, None),
        (False, False),
        ("", ""),
        ({"a": [1, 2.5, None]}, {"a": [1, 2.5, None]}),
        ((1, "two"), [1, "two"]),
        ({1, 2}, [1, 2]),
        (date(2013, 1, 1), "2013-01-01"),
        (datetime(2013, 1, 1, 12, tzinfo=UTC), "2013-01-01T12:00:00Z"),
        (timedelta(minutes=5), "PT5M"),
        (Decimal("1.50"), "1.50"),
        (Answer(on=date(2013, 1, 1), rows=5), {"on": "2013-01-01", "rows": 5}),
        ([Answer(on=date(2013, 1, 1), rows=5)], [{"on": "2013-01-01", "rows": 5}]),
        (Outcome.LOST, "lost"),
    ],
    ids=str,
)
def test_a_result_is_kept_as_json(result: Any, kept: Any) -> None:
    handle = Does.now(lambda _: result)

    assert (handle.status, handle.result) == (JobStatus.COMPLETED, kept)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (object(), "The result cannot be written as JSON"),
        ({"share": float("nan")}, "the result is not JSON"),
        ("a\x00b", "the result holds a NUL character"),
        ("\ud800", "The result cannot be written as JSON|the result is not JSON"),
        ("x" * 9_000_000, "the result has 9,000,002 bytes of JSON; the limit is 8,388,608"),
    ],
    ids=["object", "NaN", "NUL", "surrogate", "too long"],
)
def test_a_result_that_is_no_json_fails_the_attempt_and_undoes_its_effects(result: Any, said: str) -> None:
    def work(job: Does) -> Any:
        write(job)
        return result

    handle = Does.now(work)

    (attempt,) = handle.attempts
    assert (attempt.outcome, attempt.error_type) == (Outcome.ERROR, "PayloadError")
    assert attempt.error_message is not None
    assert any(words in attempt.error_message for words in said.split("|"))
    assert effects(handle) == []


# -- effects and their end, together


def raise_after_writing(job: Does) -> None:
    write(job)
    raise ValueError


def raise_after_committing(job: Does) -> None:
    write(job)
    job.session.commit()
    raise ValueError


def raise_after_a_savepoint(job: Does) -> None:
    with job.session.begin_nested():
        write(job)
    job.session.commit()
    raise ValueError


def raise_after_closing(job: Does) -> None:
    write(job)
    job.session.commit()
    job.session.close()
    raise ValueError


@pytest.mark.parametrize(
    "work", [raise_after_writing, raise_after_committing, raise_after_a_savepoint, raise_after_closing]
)
def test_a_job_that_raises_leaves_no_effect(work: Callable[[Does], None]) -> None:
    handle = Does.now(work)

    assert handle.status is JobStatus.SCHEDULED
    assert effects(handle) == []


def write_after_rolling_back(job: Does) -> None:
    write(job, "undone")
    job.session.rollback()
    write(job, "kept")


def write_after_committing(job: Does) -> None:
    write(job, "kept")
    job.session.commit()
    write(job, "undone")
    job.session.rollback()


def write_around_a_savepoint(job: Does) -> None:
    write(job, "kept")
    with contextlib.suppress(ZeroDivisionError), job.session.begin_nested():
        write(job, "undone")
        raise ZeroDivisionError


def write_around_an_error(job: Does) -> None:
    write(job, "kept")
    job.session.commit()
    with contextlib.suppress(sa.exc.ProgrammingError):
        job.session.execute(sa.text("SELECT nothing FROM nowhere"))
    job.session.rollback()


@pytest.mark.parametrize(
    "work", [write_after_rolling_back, write_after_committing, write_around_a_savepoint, write_around_an_error]
)
def test_a_job_may_roll_back_and_go_on(work: Callable[[Does], None]) -> None:
    handle = Does.now(work)

    assert handle.status is JobStatus.COMPLETED
    assert effects(handle) == ["kept"]


def test_nobody_sees_the_effects_before_the_end() -> None:
    seen = []

    def work(job: Does) -> None:
        write(job)
        job.session.commit()
        seen.append(value("SELECT count(*) FROM effects WHERE job_id = :id", id=job.job_id))

    handle = Does.now(work)

    assert seen == [0]
    assert effects(handle) == ["written"]


def test_a_constraint_that_is_checked_at_the_commit_fails_the_attempt() -> None:
    execute("CREATE TABLE IF NOT EXISTS single (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    def work(job: Does) -> None:
        write(job)
        job.session.execute(sa.text("INSERT INTO single VALUES (1), (1)"))

    handle = Does.now(work)

    (attempt,) = handle.attempts
    assert (handle.status, attempt.outcome) == (JobStatus.SCHEDULED, Outcome.ERROR)
    assert "duplicate key" in (attempt.error_message or "")
    assert effects(handle) == []


def test_the_session_is_read_committed() -> None:
    def work(job: Does) -> list[Any]:
        counts = sa.text("SELECT count(*) FROM effects WHERE job_id = :id")
        before = job.session.execute(counts, {"id": job.job_id}).scalar()
        execute("INSERT INTO effects (job_id) VALUES (:id)", id=job.job_id)
        after = job.session.execute(counts, {"id": job.job_id}).scalar()
        return [job.session.execute(sa.text("SHOW transaction_isolation")).scalar(), before, after]

    assert Does.now(work).result == ["read committed", 0, 1]


# -- jobs that dispatch jobs


def test_jobs_dispatched_in_the_session_are_accepted_and_pushed_with_the_end() -> None:
    seen: list[list[str]] = []

    def work(job: Does) -> str:
        child = Effect.dispatch(session=job.session)
        job.session.commit()
        seen.append(pushed())
        return str(child.id)

    handle = Does.now(work, queue="high")

    assert seen == [[]]
    assert pushed() == [handle.result]


def test_jobs_dispatched_in_the_session_of_a_job_that_fails_are_gone() -> None:
    before = value("SELECT count(*) FROM job_statuses WHERE job_type = 'Effect'")

    handle = run(Parent.set(queue="high").dispatch(children=3, fail=True))

    assert handle.status is JobStatus.FAILED
    assert value("SELECT count(*) FROM job_statuses WHERE job_type = 'Effect'") == before
    assert pushed() == []


def test_jobs_dispatched_without_a_session_stay_whatever_becomes_of_the_job() -> None:
    children: list[JobHandle] = []

    def work(_: Does) -> None:
        children.append(Echo.dispatch())
        raise ValueError

    Does.now(work)

    assert children[0].refresh().status is JobStatus.QUEUED


# -- errors and retries


class Doubling(BaseJob):
    retry = Retry(4, base=2, jitter=False)

    def _perform(self) -> None:
        raise ValueError("again")


def test_each_retry_waits_longer_and_the_last_error_is_the_end() -> None:
    handle = run(Doubling.dispatch())
    waits = []
    while handle.status is JobStatus.SCHEDULED:
        waits.append(
            value("SELECT extract(epoch FROM available_at - updated_at) FROM job_statuses WHERE id = :id", id=handle.id)
        )
        run_again(handle)

    assert waits == [2, 4, 8]
    assert (handle.status, handle.reason) == (JobStatus.FAILED, Reason.ERROR)
    assert [(one.number, one.outcome) for one in handle.attempts] == [(n, Outcome.ERROR) for n in (1, 2, 3, 4)]
    assert value("SELECT errors FROM job_statuses WHERE id = :id", id=handle.id) == 4


def test_a_retry_is_not_run_before_its_time() -> None:
    handle = run(Doubling.dispatch())

    relay_due(default_connections())

    assert run_job(str(handle.id)).startswith("nothing to do")
    assert handle.refresh().status is JobStatus.SCHEDULED


def test_a_retry_that_works_completes_the_job() -> None:
    handle = run(Fails.dispatch(until=3))
    run_again(handle)
    run_again(handle)

    assert (handle.status, handle.result) == (JobStatus.COMPLETED, 3)
    assert [one.outcome for one in handle.attempts] == [Outcome.ERROR, Outcome.ERROR, Outcome.COMPLETED]


def test_what_was_raised_is_kept() -> None:
    (attempt,) = run(Fails.dispatch()).attempts

    assert (attempt.error_type, attempt.error_message) == ("ValueError", "as asked")
    assert "in _perform" in (attempt.traceback or "")


def test_what_was_raised_is_kept_even_if_postgres_could_not_store_it() -> None:
    def work(_: Does) -> None:
        raise ValueError("a\x00b \ud800 " + "x" * 200_000)

    (attempt,) = Does.now(work).attempts

    assert attempt.error_type == "ValueError"
    assert len(attempt.error_message or "") == 100_000


def test_an_error_that_the_class_gives_up_on_is_the_end_at_once() -> None:
    handle = Fails.dispatch(error="KeyError")

    with pytest.raises(KeyError):
        run_job(str(handle.id))
    assert (handle.refresh().status, handle.reason) == (JobStatus.FAILED, Reason.ERROR)
    assert len(handle.attempts) == 1


def test_a_job_that_exits_has_failed_and_raises_for_rq() -> None:
    handle = Fails.dispatch(error="SystemExit")

    with pytest.raises(SystemExit):
        run_job(str(handle.id))
    assert (handle.refresh().status, handle.reason) == (JobStatus.FAILED, Reason.ERROR)
    assert handle.attempts[0].error_type == "SystemExit"


def test_the_attempts_that_a_dispatch_allows_are_those_of_the_job() -> None:
    assert run(Doubling.dispatch(max_attempts=1)).status is JobStatus.FAILED
    assert run(Echo.dispatch(max_attempts=1)).status is JobStatus.COMPLETED


def test_a_payload_that_no_longer_fits_the_class_is_an_error() -> None:
    handle = Effect.dispatch()
    execute("""UPDATE job_statuses SET payload = '{"note": 5}' WHERE id = :id""", id=handle.id)

    with pytest.raises(PayloadError, match="does not fit this version of the class: note"):
        run_job(str(handle.id))
    assert (handle.refresh().status, handle.reason) == (JobStatus.FAILED, Reason.ERROR)


# -- on_failed


def callbacks_of(handle: JobHandle) -> list[Any]:
    with default_connections().transaction() as connection:
        return list(
            connection.execute(
                sa.text(
                    "SELECT * FROM job_statuses WHERE job_type = 'jobledger.on_failed' AND payload->>'job_id' = :id"
                ),
                {"id": str(handle.id)},
            )
        )


def test_on_failed_runs_once_as_a_job_after_the_last_attempt() -> None:
    handle = run(Failing.dispatch(how="raise", queue="low"))

    assert (handle.status, handle.reason) == (JobStatus.FAILED, Reason.ERROR)
    (callback,) = callbacks_of(handle)
    assert (callback.status, callback.queue, callback.title) == ("queued", "low", "Failing.on_failed")
    assert pushed("low")[-1] == str(callback.id)
    assert run_job(str(callback.id)) == "completed"
    assert run_job(str(callback.id)).startswith("nothing to do")
    assert effects(handle) == ["error: raise"]


def test_a_job_that_runs_again_calls_no_on_failed() -> None:
    handle = run(Failing.dispatch(how="raise", max_attempts=2))

    assert handle.status is JobStatus.SCHEDULED
    assert callbacks_of(handle) == []
    run_again(handle)
    assert len(callbacks_of(handle)) == 1


def test_a_job_without_an_on_failed_has_no_callback() -> None:
    assert callbacks_of(run(Fails.dispatch(error="KeyError"))) == []


class Tells(BaseJob):
    """Keeps what its `on_failed` was told."""

    told: ClassVar[list[Any]] = []

    def _perform(self, n: int) -> None:
        raise ValueError(f"no {n}")

    def on_failed(self, error: Failure) -> None:
        self.told.append((self.job_id, self.payload, self.attempt, error))


def test_on_failed_is_told_what_happened() -> None:
    handle = run(Tells.dispatch(n=5))
    run_job(str(callbacks_of(handle)[0].id))

    job_id, payload, _, failure = Tells.told.pop()
    assert (job_id, payload) == (handle.id, {"n": 5})
    assert (failure.reason, failure.error_type, failure.message, failure.attempt) == ("error", "ValueError", "no 5", 1)
    assert "no 5" in (failure.traceback or "")


class FailsTwice(BaseJob):
    """Raises in its `on_failed` too."""

    def _perform(self) -> None:
        raise ValueError

    def on_failed(self, error: Failure) -> None:
        raise RuntimeError("on_failed has failed")


def test_an_on_failed_that_raises_is_retried() -> None:
    handle = run(FailsTwice.dispatch())
    callback = callbacks_of(handle)[0].id

    assert run_job(str(callback)).startswith("scheduled: runs again")
    assert len(callbacks_of(handle)) == 1


# -- time


@pytest.mark.parametrize("how", ["except", "sql", "lock"])
def test_a_job_that_outlives_its_timeout_is_ended(how: str, connections: Connections) -> None:
    with contextlib.ExitStack() as stack:
        if how == "lock":
            holder = stack.enter_context(connections.engine.connect())
            holder.execute(sa.text("LOCK TABLE effects"))
        handle = run(Stubborn.dispatch(how=how, timeout=0.3))

    assert (handle.status, handle.reason) == (JobStatus.FAILED, Reason.TIMEOUT)
    assert [one.outcome for one in handle.attempts] == [Outcome.TIMEOUT]


def test_a_statement_and_a_lock_have_the_time_that_the_job_has_left() -> None:
    limits = sa.text("SELECT setting::int FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout')")

    statement, lock = Does.now(lambda job: job.session.execute(limits).scalars().all(), timeout=60).result

    assert statement == lock
    assert 50_000 < statement <= 60_000


def test_a_timeout_is_retried_like_an_error() -> None:
    handle = run(Stubborn.dispatch(how="sql", timeout=0.2, max_attempts=2))

    assert handle.status is JobStatus.SCHEDULED
    assert value("SELECT errors FROM job_statuses WHERE id = :id", id=handle.id) == 1


def test_what_ran_out_of_time_leaves_no_effect() -> None:
    def work(job: Does) -> None:
        write(job)
        time.sleep(60)

    handle = Does.now(work, timeout=0.2)

    assert handle.attempts[0].outcome is Outcome.TIMEOUT
    assert effects(handle) == []


def test_a_statement_timeout_of_the_job_itself_is_its_error() -> None:
    def work(job: Does) -> None:
        job.session.execute(sa.text("SET LOCAL statement_timeout = '10ms'"))
        job.session.execute(sa.text("SELECT pg_sleep(60)"))

    assert Does.now(work).attempts[0].outcome is Outcome.ERROR


# -- types that nobody knows


@pytest.fixture
def unknown() -> Iterator[JobHandle]:
    """A job whose class this worker does not have."""
    handle = Tells.dispatch(n=1)
    registry.forget("Tells")
    yield handle
    registry.register("Tells", Tells)


def test_a_job_of_an_unknown_type_waits_for_another_worker_and_spends_nothing(unknown: JobHandle) -> None:
    handle = run(unknown)

    assert handle.status is JobStatus.SCHEDULED
    with default_connections().transaction() as connection:
        row = connection.execute(sa.text("SELECT * FROM job_statuses WHERE id = :id"), {"id": handle.id}).one()
    assert row.available_at - row.updated_at == timedelta(seconds=30)
    assert (row.attempt, row.errors, row.crashes, row.losses) == (1, 0, 0, 0)
    assert [one.outcome for one in handle.attempts] == [Outcome.UNKNOWN_TYPE]


def test_a_worker_that_knows_the_type_runs_it(unknown: JobHandle) -> None:
    handle = run(unknown)
    registry.register("Tells", Tells)

    assert run_again(handle).attempts[1].error_message == "no 1"


def test_a_type_that_nobody_knew_for_an_hour_is_the_end(unknown: JobHandle) -> None:
    handle = run(unknown)
    assert run_again(handle).status is JobStatus.SCHEDULED
    execute(
        "UPDATE job_attempts SET started_at = now() - interval '61 min' WHERE job_id = :id AND number = 1", id=handle.id
    )

    execute("UPDATE job_statuses SET available_at = now() WHERE id = :id", id=handle.id)
    relay_due(default_connections())
    with pytest.raises(UnknownJobType, match="Tells"):
        run_job(str(handle.id))
    assert (handle.refresh().status, handle.reason) == (JobStatus.FAILED, Reason.UNDISPATCHABLE)


def test_an_attempt_that_knew_the_type_begins_the_hour_anew(unknown: JobHandle) -> None:
    handle = run(unknown)
    registry.register("Tells", Tells)
    execute("UPDATE job_statuses SET max_attempts = 9 WHERE id = :id", id=handle.id)
    run_again(handle)
    registry.forget("Tells")
    execute("UPDATE job_attempts SET started_at = now() - interval '61 min' WHERE job_id = :id", id=handle.id)

    assert run_again(handle).status is JobStatus.SCHEDULED


# -- fenced out


def fence_out(job: BaseJob) -> None:
    """As if the attempt had been reaped and another were running."""
    execute(
        "UPDATE job_statuses SET attempt = attempt + 1 WHERE id = :id",
        id=job.job_id,
    )


def test_a_run_that_was_fenced_out_commits_nothing() -> None:
    def work(job: Does) -> str:
        write(job)
        fence_out(job)
        return "late"

    Does.what = work
    handle = Does.dispatch()

    assert run_job(str(handle.id)).startswith("fenced out")
    assert effects(handle) == []
    assert (handle.refresh().status, handle.result) == (JobStatus.STARTED, None)
    assert [one.outcome for one in handle.attempts] == [None]


def test_a_run_that_was_fenced_out_does_not_fail_the_job() -> None:
    def work(job: Does) -> None:
        fence_out(job)
        raise ValueError

    Does.what = work
    handle = Does.dispatch(max_attempts=1)

    assert run_job(str(handle.id)).startswith("fenced out")
    assert handle.refresh().status is JobStatus.STARTED


def test_a_run_that_was_fenced_out_is_told_with_its_next_renewal(settings: Settings) -> None:
    connections = configure(settings.model_copy(update={"lease_seconds": 1.0}))

    def work(job: Does) -> None:
        fence_out(job)
        time.sleep(60)

    Does.what = work
    started = time.monotonic()

    assert run_job(str(Does.dispatch().id)).startswith("fenced out")
    assert time.monotonic() - started < 10
    connections.close()


# -- the connection goes away


def test_a_job_whose_connection_is_killed_is_lost_and_runs_again_at_once() -> None:
    def work(job: Does) -> None:
        write(job)
        job.session.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    handle = Does.now(work)

    assert handle.status is JobStatus.SCHEDULED
    assert [one.outcome for one in handle.attempts] == [Outcome.LOST]
    assert value("SELECT losses FROM job_statuses WHERE id = :id", id=handle.id) == 1
    assert value("SELECT available_at = updated_at FROM job_statuses WHERE id = :id", id=handle.id)
    Does.what = write
    assert run_again(handle).status is JobStatus.COMPLETED
    assert effects(handle) == ["written"]


def kill_backend_of(job: BaseJob) -> None:
    """End the job's session from outside, so that it notices at its next statement only."""
    execute(
        "SELECT pg_terminate_backend(backend_pid, 5000) FROM job_attempts WHERE job_id = :id AND number = :number",
        id=job.job_id,
        number=job.attempt,
    )


def test_a_job_whose_connection_is_gone_at_its_end_is_lost_with_its_effects() -> None:
    def work(job: Does) -> None:
        write(job)
        job.session.commit()
        kill_backend_of(job)

    handle = Does.now(work)

    assert [one.outcome for one in handle.attempts] == [Outcome.LOST]
    assert effects(handle) == []


def test_a_job_that_swallows_the_loss_of_its_connection_is_lost() -> None:
    def work(job: Does) -> None:
        write(job)
        with contextlib.suppress(sa.exc.OperationalError):
            job.session.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    handle = Does.now(work)

    assert [one.outcome for one in handle.attempts] == [Outcome.LOST]
    assert effects(handle) == []


def test_a_job_that_wrote_nothing_through_its_connection_loses_nothing_with_it() -> None:
    def work(job: Does) -> str:
        kill_backend_of(job)
        return "done outside"

    handle = Does.now(work)

    assert (handle.status, handle.result) == (JobStatus.COMPLETED, "done outside")
    assert [one.outcome for one in handle.attempts] == [Outcome.COMPLETED]


class Cable:
    """A connection to Postgres that can be cut around a message: before it arrives, or before its answer does."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.cut: tuple[str, bytes] | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.server)
                lose_answer = threading.Event()
                ends = [client, server, lose_answer]
                threading.Thread(target=self._carry, args=ends, daemon=True).start()
                threading.Thread(target=self._carry_back, args=ends, daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket, lose_answer: threading.Event) -> None:
        with contextlib.suppress(OSError), client, server:
            while data := client.recv(65536):
                if self.cut is not None and self.cut[1] in data:
                    (when, _), self.cut = self.cut, None
                    if when == "before":
                        return
                    lose_answer.set()  # once it is there: what was asked has then happened for certain
                server.sendall(data)

    def _carry_back(self, client: socket.socket, server: socket.socket, lose_answer: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (data := server.recv(65536)) and not lose_answer.is_set():
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def cable(settings: Settings) -> Iterator[Cable]:
    """The process's default connections lead through it."""
    url = sa.make_url(settings.require_database_url())
    cable = Cable((str(url.host), int(url.port or 5432)))
    through = url.set(port=cable.port).render_as_string(hide_password=False)
    connections = configure(settings.model_copy(update={"database_url": SecretStr(through)}))
    yield cable
    connections.close()
    cable.close()


def test_a_commit_whose_answer_was_lost_has_happened_once(cable: Cable) -> None:
    def work(job: Does) -> None:
        write(job)
        cable.cut = ("after", b"COMMIT\0")

    handle = Does.now(work)

    assert cable.cut is None
    assert handle.status is JobStatus.COMPLETED
    assert effects(handle) == ["written"]
    assert [one.outcome for one in handle.attempts] == [Outcome.COMPLETED]


def test_what_a_job_dispatched_is_pushed_although_the_answer_to_its_commit_was_lost(cable: Cable) -> None:
    def work(job: Does) -> str:
        cable.cut = ("after", b"COMMIT\0")
        return str(Effect.dispatch(session=job.session).id)

    handle = Does.now(work, queue="high")

    assert cable.cut is None
    assert pushed() == [handle.result]


def test_a_commit_that_never_arrived_has_not_happened(cable: Cable) -> None:
    def work(job: Does) -> None:
        write(job)
        cable.cut = ("before", b"COMMIT\0")

    handle = Does.now(work)

    assert cable.cut is None
    assert handle.status is JobStatus.SCHEDULED
    assert effects(handle) == []
    assert [one.outcome for one in handle.attempts] == [Outcome.LOST]
    Does.what = write
    assert run_again(handle).status is JobStatus.COMPLETED
    assert effects(handle) == ["written"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_job_without_effects_completes_whatever_becomes_of_its_connection(cable: Cable, when: str) -> None:
    def work(_: Does) -> str:
        cable.cut = (when, b"completed")
        return "done"

    handle = Does.now(work)

    assert cable.cut is None
    assert (handle.status, handle.result) == (JobStatus.COMPLETED, "done")


# -- under RQ


@pytest.fixture
def work_off(connections: Connections) -> Iterator[Callable[[], None]]:
    """Let a worker of RQ run all that is in its queue, in this process."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in signals]
    worker = SimpleWorker([Queue("default", connection=connections.redis)], connection=connections.redis, name="rq-1")
    yield lambda: worker.work(burst=True, logging_level="ERROR") and None
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


def test_rq_runs_a_job_and_shows_it_as_finished(connections: Connections, work_off: Callable[[], None]) -> None:
    handle = Effect.dispatch(note="by rq")

    work_off()

    assert handle.refresh().status is JobStatus.COMPLETED
    assert handle.attempts[0].worker == "rq-1"
    assert effects(handle) == ["by rq"]
    assert Job.fetch(str(handle.id), connection=connections.redis).get_status() == "finished"


def test_rq_shows_a_failed_job_as_failed_and_an_attempt_that_runs_again_as_finished(
    connections: Connections, work_off: Callable[[], None]
) -> None:
    again, failed = Fails.dispatch(), Fails.dispatch(error="KeyError")

    work_off()

    statuses = [Job.fetch(str(one.id), connection=connections.redis).get_status() for one in (again, failed)]
    assert statuses == ["finished", "failed"]
    assert (again.refresh().status, failed.refresh().status) == (JobStatus.SCHEDULED, JobStatus.FAILED)


def test_rq_runs_the_retry_of_a_job_that_it_shows_as_finished(
    connections: Connections, work_off: Callable[[], None]
) -> None:
    handle = Fails.dispatch(until=2)
    work_off()
    execute("UPDATE job_statuses SET available_at = now() WHERE id = :id", id=handle.id)
    relay_due(connections)
    relay_unpushed(connections)

    work_off()

    assert (handle.refresh().status, handle.result) == (JobStatus.COMPLETED, 2)


def test_rq_runs_jobs_and_their_children_until_none_is_left(
    connections: Connections, work_off: Callable[[], None]
) -> None:
    parent = Parent.dispatch(children=3)
    last = Echo.dispatch(after=parent)

    work_off()

    assert last.refresh().status is JobStatus.COMPLETED
    assert value("SELECT count(*) FROM effects WHERE job_id::text = ANY(:ids)", ids=parent.refresh().result) == 3


# -- what a job may say without harm


def test_a_log_line_with_a_nul_does_not_end_the_renewals(settings: Settings) -> None:
    configure(settings.model_copy(update={"lease_seconds": 1.0}))

    def work(job: Does) -> None:
        job.log.info("a\x00b")
        lease = "SELECT lease_expires_at FROM job_attempts WHERE job_id = :id"
        first = one_value(default_connections(), lease, id=job.job_id)
        eventually(lambda: one_value(default_connections(), lease, id=job.job_id) > first, what="a renewal")

    done = Does.now(work)

    assert done.status is JobStatus.COMPLETED
    assert done.attempts[0].log_tail == "INFO a\\x00b"


def test_a_progress_note_with_a_nul_is_written_out() -> None:
    done = Does.now(lambda job: job.progress(1, 2, "a\x00b"))

    assert done.status is JobStatus.COMPLETED
    assert done.attempts[0].progress_note == "a\\x00b"


@pytest.mark.parametrize(("done", "note"), [("5", None), (2**63, None), (1, 5)])
def test_progress_that_the_ledger_cannot_hold_is_an_error_of_the_job(done: Any, note: Any) -> None:
    failed = Does.now(lambda job: job.progress(done, 10, note), max_attempts=1)

    assert failed.status is JobStatus.FAILED
    assert "progress" in (failed.attempts[0].error_message or "")


def test_an_error_that_cannot_be_printed_is_an_error_like_any_other() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def work(_: Does) -> None:
        raise Unprintable

    failed = Does.now(work, max_attempts=1)

    assert failed.status is JobStatus.FAILED
    assert [attempt.outcome for attempt in failed.attempts] == [Outcome.ERROR]


def test_a_timeout_of_months_leaves_the_session_usable() -> None:
    assert Does.now(write, timeout="30d").status is JobStatus.COMPLETED


def test_a_final_failure_waits_for_the_row_rather_than_run_again(connections: Connections) -> None:
    """A dispatch with `after=` in a long transaction holds the parent's row."""
    locked, release = threading.Event(), threading.Event()

    def hold(job_id: UUID) -> None:
        with Session(connections.engine) as session:
            Echo.dispatch(after=job_id, session=session)
            locked.set()
            release.wait(30)
            session.commit()

    def work(job: Does) -> None:
        threading.Thread(target=hold, args=[job.job_id]).start()
        assert locked.wait(10)
        threading.Timer(6, release.set).start()  # longer than one try to write takes
        raise RuntimeError("as asked")

    failed = Does.now(work, max_attempts=1)

    assert failed.status is JobStatus.FAILED
    assert [attempt.outcome for attempt in failed.attempts] == [Outcome.ERROR]


def test_a_claim_that_has_waited_too_long_for_a_lock_is_tried_again(connections: Connections) -> None:
    job = Echo.dispatch()
    tried = threading.Event()
    step = moves.claim

    def claim(connection: Any, *given: Any) -> Any:
        connection.execute(sa.text("SELECT set_config('lock_timeout', '200ms', false)"), {})
        try:
            return step(connection, *given)
        except psycopg2.errors.LockNotAvailable:
            tried.set()
            raise

    locked = threading.Event()

    def hold() -> None:
        with connections.transaction() as connection:
            connection.execute(sa.text("SELECT FROM job_statuses WHERE id = :id FOR UPDATE"), {"id": job.id})
            locked.set()
            assert tried.wait(20)

    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(moves, "claim", claim)
        holder = pool.submit(hold)
        assert locked.wait(20)
        assert run_job(str(job.id)) == "completed"
        holder.result(20)
