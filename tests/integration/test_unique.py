"""Unique jobs: of equal ones there is one at a time, whoever dispatches, and however many at once."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from harness import Process, Stack, eventually, one_value
from jobledger import AlreadyDispatched, BaseJob, Connections, DispatchContended, JobHandle, JobStatus, Retry, Unique
from jobledger.dispatch.accept import dispatch
from jobledger.maintenance.prune import prune
from jobledger.maintenance.relay import relay, relay_due
from jobledger.schedules.book import ScheduleBook
from jobledger.schedules.ticks import due, fire, write_definitions
from jobledger.worker import run_job
from sample_jobs import EFFECTS, Echo, UniqueEffect

pytestmark = pytest.mark.one_database  # each uses payloads of its own

notes = (f"note {number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def _effects(connections: Connections) -> None:
    execute(connections, EFFECTS)


@pytest.fixture
def note() -> str:
    return next(notes)


class Existing(BaseJob):
    unique = Unique("note")
    retry = Retry(3)

    def _perform(self, note: str, rows: int = 1) -> int:
        if rows < 0:
            raise ValueError("as asked")
        return rows


class Replacing(Existing):
    unique = Unique("note", on_conflict="replace")


class Strict(Existing):
    unique = Unique("note", on_conflict="error")


class Hourly(Existing):
    unique = Unique("note", within="1h")


class Whole(Existing):
    unique = Unique()


ALL: list[type[BaseJob]] = [Existing, Replacing, Strict, Hourly]


def execute(connections: Connections, statement: str, **parameters: Any) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(statement), parameters)


def count(connections: Connections, note: str) -> int:
    return int(one_value(connections, "SELECT count(*) FROM job_statuses WHERE payload->>'note' = :note", note=note))


def column(connections: Connections, handle: JobHandle, name: str) -> Any:
    return one_value(connections, f"SELECT {name} FROM job_statuses WHERE id = :id", id=handle.id)


def pushes(connections: Connections, handle: JobHandle) -> int:
    return [one.decode() for one in connections.redis.lrange("rq:queue:default", 0, -1)].count(str(handle.id))


# -- one at a time


def test_an_equal_job_is_given_back_and_not_pushed_again(connections: Connections, note: str) -> None:
    first = Existing.dispatch(note=note)
    again = Existing.dispatch(note=note, rows=5, priority=1)

    assert (again.id, again.status, again.is_duplicate, first.is_duplicate) == (first.id, JobStatus.QUEUED, True, False)
    assert (count(connections, note), pushes(connections, first)) == (1, 1)
    assert column(connections, first, "payload->>'rows'") == "1"


def test_other_fields_and_other_types_are_other_jobs(connections: Connections, note: str) -> None:
    handles = [Existing.dispatch(note=note), Existing.dispatch(note=note + "!"), Strict.dispatch(note=note)]
    handles += [Whole.dispatch(note=note), Whole.dispatch(note=note, rows=2)]

    assert len({one.id for one in handles}) == 5
    assert Whole.dispatch(rows=1, note=note).is_duplicate


@pytest.mark.parametrize("status", ["completed", "failed", "canceled"])
def test_a_job_that_has_ended_is_in_nobodys_way(connections: Connections, note: str, status: str) -> None:
    first = Existing.dispatch(note=note, rows=-1 if status == "failed" else 1, max_attempts=1)
    if status == "canceled":
        first.cancel()
    elif status == "completed":
        run_job(str(first.id))
    else:
        with pytest.raises(ValueError, match="as asked"):
            run_job(str(first.id))
    assert first.refresh().status == status

    assert not Existing.dispatch(note=note).is_duplicate


def test_a_job_that_waits_for_its_retry_has_not_ended(connections: Connections, note: str) -> None:
    first = Existing.dispatch(note=note, rows=-1)
    run_job(str(first.id))

    again = Existing.dispatch(note=note)
    assert (again.id, again.status) == (first.id, JobStatus.SCHEDULED)


def test_an_error_names_the_job_that_is_there(connections: Connections, note: str) -> None:
    first = Strict.dispatch(note=note)

    with pytest.raises(AlreadyDispatched, match=f"Strict: an equal job, {first.id}, is queued") as refused:
        Strict.dispatch(note=note)
    assert refused.value.job_id == first.id


def test_a_duplicate_gets_no_parents(connections: Connections, note: str) -> None:
    first = Existing.dispatch(note=note)
    parent = Echo.dispatch()
    again = Existing.dispatch(note=note, after=parent)

    assert (again.id, again.status) == (first.id, JobStatus.QUEUED)
    assert run_job(str(parent.id)) == "completed"
    assert run_job(str(first.id)) == "completed"


def test_a_key_sent_again_is_that_of_the_job_that_was_there(connections: Connections, note: str) -> None:
    first = Existing.dispatch(note=note)
    assert Existing.dispatch(note=note, idempotency_key=note).id == first.id
    run_job(str(first.id))

    again = Existing.dispatch(note=note, idempotency_key=note)
    assert (again.id, again.status) == (first.id, JobStatus.COMPLETED)


# -- several at once


@pytest.mark.parametrize("job_class", [Existing, Hourly])
def test_equal_jobs_of_one_dispatch_are_one(connections: Connections, note: str, job_class: type[BaseJob]) -> None:
    known = job_class.dispatch(note=note)
    payloads = [{"note": f"{note} a"}, {"note": note}, {"note": f"{note} b"}, {"note": f"{note} a", "rows": 2}]

    handles = job_class.dispatch_many(payloads)

    assert [one.is_duplicate for one in handles] == [False, True, False, True]
    assert (handles[1].id, handles[3].id) == (known.id, handles[0].id)
    assert [pushes(connections, one) for one in handles] == [1] * 4
    assert column(connections, handles[0], "payload->>'rows'") == "1"


def test_of_equal_jobs_of_one_dispatch_that_replace_each_other_the_last_counts(
    connections: Connections, note: str
) -> None:
    handles = Replacing.dispatch_many([{"note": note, "rows": rows} for rows in (1, 2, 3)])

    assert len({one.id for one in handles}) == 1
    assert column(connections, handles[0], "payload->>'rows'") == "3"


def test_equal_jobs_of_one_dispatch_are_an_error_if_the_class_says_so(connections: Connections, note: str) -> None:
    with pytest.raises(AlreadyDispatched, match="two of these jobs are equal") as refused:
        Strict.dispatch_many([{"note": note}, {"note": note}])

    assert (refused.value.job_id, count(connections, note)) == (None, 0)


def test_unique_and_plain_jobs_go_together(connections: Connections, note: str) -> None:
    requests = [Existing.set().request({"note": note}), Echo.set().request({"note": note})] * 2

    accepted = dispatch(requests)

    assert [one.is_duplicate for one in accepted] == [False, False, True, False]
    assert count(connections, note) == 3


def test_many_that_are_dispatched_in_another_order_at_once_do_not_deadlock(connections: Connections, note: str) -> None:
    payloads = [{"note": f"{note} {number}"} for number in range(50)]

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda order: Existing.dispatch_many(payloads[::order]), [1, -1] * 6))

    assert len({one.id for handles in done for one in handles}) == 50
    assert sum(not one.is_duplicate for handles in done for one in handles) == 50


# -- replacing


def test_a_job_that_waits_is_replaced_in_place(connections: Connections, note: str) -> None:
    first = Replacing.set(title="first").dispatch(note=note)

    again = Replacing.set(title="second", owner="ada", expires_in="1h").dispatch(
        note=note, rows=7, timeout=5, priority=2, max_attempts=9
    )

    assert (again.id, again.is_duplicate, again.status) == (first.id, True, JobStatus.QUEUED)
    names = ("title", "owner", "timeout_seconds", "priority", "max_attempts", "queue")
    assert [column(connections, first, name) for name in names] == ["second", "ada", 5, 2, 9, "default"]
    assert column(connections, first, "expires_at - available_at") == timedelta(hours=1)
    assert run_job(str(first.id)) == "completed"
    assert first.refresh().result == 7


def test_a_delay_that_is_spoken_again_begins_anew(connections: Connections, note: str) -> None:
    first = Replacing.dispatch_in("5m", note=note, rows=1)
    again = Replacing.dispatch_in("1h", note=note, rows=2)

    assert (again.id, again.status) == (first.id, JobStatus.SCHEDULED)
    left = column(connections, first, "extract(epoch FROM available_at - updated_at)")
    assert float(left) == 3600


def test_a_queued_job_is_put_off(connections: Connections, note: str) -> None:
    first = Replacing.dispatch(note=note)
    assert Replacing.dispatch_in("1h", note=note, rows=2).status is JobStatus.SCHEDULED

    assert run_job(str(first.id)).startswith("nothing to do")
    execute(connections, "UPDATE job_statuses SET available_at = now() WHERE id = :id", id=first.id)
    relay(connections)
    assert pushes(connections, first) >= 1
    assert run_job(str(first.id)) == "completed"
    assert first.refresh().result == 2


def test_a_scheduled_job_is_brought_forward(connections: Connections, note: str) -> None:
    first = Replacing.dispatch_at(datetime.now(UTC) + timedelta(days=1), note=note)
    Replacing.dispatch(note=note, rows=2)

    relay_due(connections)
    assert run_job(str(first.id)) == "completed"


def test_a_job_that_waits_for_parents_goes_on_waiting(connections: Connections, note: str) -> None:
    parent = Echo.dispatch()
    first = Replacing.dispatch(note=note, after=parent)
    assert Replacing.dispatch(note=note, rows=2).status is JobStatus.DEFERRED

    run_job(str(parent.id))
    assert run_job(str(first.id)) == "completed"
    assert first.refresh().result == 2


def test_a_job_that_was_started_is_not_replaced(connections: Connections, note: str) -> None:
    first = Replacing.dispatch(note=note, rows=-1)
    run_job(str(first.id))

    again = Replacing.dispatch(note=note, rows=7)
    assert (again.id, again.status, again.is_duplicate) == (first.id, JobStatus.SCHEDULED, True)
    assert column(connections, first, "payload->>'rows'") == "-1"


# -- within a time


def test_within_its_time_no_equal_job_is_dispatched_even_if_the_first_has_ended(
    connections: Connections, note: str
) -> None:
    first = Hourly.dispatch(note=note)
    run_job(str(first.id))
    again = Hourly.dispatch(note=note)
    assert (again.id, again.status, again.is_duplicate) == (first.id, JobStatus.COMPLETED, True)

    execute(connections, "UPDATE unique_windows SET until = now() WHERE job_id = :id", id=first.id)
    next_one = Hourly.dispatch(note=note)
    assert (next_one.is_duplicate, Hourly.dispatch(note=note).id) == (False, next_one.id)


def test_a_time_ends_while_the_first_job_waits(connections: Connections, note: str) -> None:
    first = Hourly.dispatch(note=note)
    execute(connections, "UPDATE unique_windows SET until = now() WHERE job_id = :id", id=first.id)

    assert not Hourly.dispatch(note=note).is_duplicate
    assert count(connections, note) == 2


def test_a_job_of_a_time_that_was_pruned_has_no_status(connections: Connections, note: str) -> None:
    first = Hourly.dispatch(note=note)
    execute(connections, "DELETE FROM job_statuses WHERE id = :id", id=first.id)

    again = Hourly.dispatch(note=note)
    assert (again.id, again.status) == (first.id, None)


def test_times_that_are_over_are_pruned(connections: Connections, note: str) -> None:
    over, running = Hourly.dispatch(note=note), Hourly.dispatch(note=note + "!")
    execute(connections, "UPDATE unique_windows SET until = now() - interval '1 s' WHERE job_id = :id", id=over.id)
    prune(connections)

    left = "SELECT count(*) FROM unique_windows WHERE job_id = :id"
    assert [one_value(connections, left, id=one.id) for one in (over, running)] == [0, 1]


# -- in transactions


@pytest.mark.parametrize("job_class", ALL)
def test_what_is_rolled_back_is_in_nobodys_way(connections: Connections, note: str, job_class: type[BaseJob]) -> None:
    with Session(connections.engine) as session:
        job_class.dispatch(note=note, session=session)
        session.rollback()

    assert not job_class.dispatch(note=note).is_duplicate


def test_conflicts_leave_the_callers_transaction_as_it_was(connections: Connections, note: str) -> None:
    Existing.dispatch(note=note)
    Strict.dispatch(note=note)
    with Session(connections.engine) as session:
        before = Echo.dispatch(session=session)
        assert Existing.dispatch(note=note, session=session).is_duplicate
        with pytest.raises(AlreadyDispatched):
            Strict.dispatch(note=note, session=session)
        new = Existing.dispatch(note=note + "!", session=session)
        assert Existing.dispatch(note=note + "!", session=session).id == new.id
        session.commit()

    assert [before.refresh().status, new.refresh().status] == [JobStatus.QUEUED] * 2
    assert [pushes(connections, one) for one in (before, new)] == [1, 1]


@pytest.mark.parametrize("job_class", [Existing, Hourly])
@pytest.mark.parametrize("commits", [True, False])
def test_a_rival_is_waited_for(connections: Connections, note: str, job_class: type[BaseJob], commits: bool) -> None:
    with Session(connections.engine) as session, ThreadPoolExecutor(1) as pool:
        first = job_class.dispatch(note=note, session=session)
        other = pool.submit(lambda: job_class.dispatch(note=note))
        eventually(lambda: one_value(connections, "SELECT count(*) FROM pg_locks WHERE NOT granted"), what="the wait")
        session.commit() if commits else session.rollback()

        assert (other.result(10).id == first.id, other.result().is_duplicate) == (commits, commits)


@pytest.mark.parametrize("job_class", ALL)
def test_a_rival_that_does_not_end_is_not_waited_for_for_ever(
    connections: Connections, note: str, job_class: type[BaseJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobledger.connections.locks.CONFLICT_SECONDS", 1)
    with Session(connections.engine) as rival, Session(connections.engine) as session:
        job_class.dispatch(note=note, session=rival)
        kept = Echo.dispatch(session=session)
        with pytest.raises(DispatchContended):
            job_class.dispatch(note=note, session=session)
        session.commit()

    assert kept.refresh().status is JobStatus.QUEUED


@pytest.mark.timed
def test_looking_at_a_time_that_runs_locks_nothing(connections: Connections, note: str) -> None:
    Hourly.dispatch(note=note)
    with Session(connections.engine) as session:
        assert Hourly.dispatch(note=note, session=session).is_duplicate
        began = time.monotonic()
        assert Hourly.dispatch(note=note).is_duplicate
        assert time.monotonic() - began < 2


class Dispatches(BaseJob):
    """Dispatches equal jobs in its own transaction."""

    def _perform(self, note: str) -> list[bool]:
        first, again, hourly = (job.dispatch(note=note, session=self.session) for job in (Existing, Existing, Hourly))
        Strict.dispatch(note=note, session=self.session)
        with contextlib.suppress(AlreadyDispatched):
            Strict.dispatch(note=note, session=self.session)
        keyed = [Echo.dispatch(note=note, idempotency_key=note, session=self.session) for _ in range(2)]
        self.session.commit()  # ends a savepoint only
        return [one.is_duplicate for one in (first, again, hourly, *keyed)]


def test_a_job_dispatches_them_in_its_own_transaction(connections: Connections, note: str) -> None:
    job = Dispatches.dispatch(note=note)

    assert run_job(str(job.id)) == "completed"
    assert job.refresh().result == [False, True, False, False, True]
    assert count(connections, note) == 5
    assert pushes(connections, Existing.dispatch(note=note)) == 1


async def dispatch_in_async_session(connections: Connections, note: str) -> list[JobHandle]:
    engine = create_async_engine(connections.settings.require_database_url().replace("psycopg2", "asyncpg"))
    try:
        async with AsyncSession(engine) as session:
            handles = [await job.adispatch(note=note, session=session) for job in (*ALL, Existing, Replacing, Hourly)]
            with pytest.raises(AlreadyDispatched):
                await Strict.adispatch(note=note, session=session)
            await session.commit()
    finally:
        await engine.dispose()
    return handles


def test_an_async_session_has_the_same(connections: Connections, note: str) -> None:
    handles = asyncio.run(dispatch_in_async_session(connections, note))

    assert [one.is_duplicate for one in handles] == [False] * 4 + [True] * 3
    assert count(connections, note) == 4


# -- people and schedules


def test_a_retry_that_would_make_two_is_refused(connections: Connections, note: str) -> None:
    first = Existing.dispatch(note=note)
    first.cancel()
    second = Existing.dispatch(note=note)

    answer = first.retry()

    assert (answer.is_done, answer.status) == (False, JobStatus.CANCELED)
    assert answer.message == f"an equal job is there: {second.id} is queued"
    run_job(str(second.id))
    assert first.retry().is_done
    assert Existing.dispatch(note=note).id == first.id


@pytest.mark.parametrize("job_class", ALL)
def test_a_schedule_goes_on_while_its_job_is_there(
    connections: Connections, note: str, job_class: type[BaseJob]
) -> None:
    book = ScheduleBook()
    book.schedule(every="1s", name=note, payload={"note": note}, catch_up="all")(job_class)
    write_definitions(connections, book)
    execute(connections, "UPDATE schedules SET decided_until = now() - interval '5 s' WHERE name = :name", name=note)
    moments = due(connections, book)
    assert len(moments) >= 3

    assert [fire(connections, one) for one in moments] == [True] * len(moments)
    assert count(connections, note) == 1
    assert one_value(connections, "SELECT error FROM schedules WHERE name = :name", name=note) is None


@pytest.mark.parametrize("job_class", ALL)
def test_a_function_of_a_schedule_dispatches_what_is_not_there(
    connections: Connections, note: str, job_class: type[BaseJob], caplog: pytest.LogCaptureFixture
) -> None:
    there = job_class.dispatch(note=note)
    given: list[JobHandle] = []

    def dispatch_all() -> None:
        given.append(job_class.dispatch(note=note))
        given.extend(job_class.dispatch_many([{"note": note}, {"note": f"{note}, too"}, {"note": f"{note}, too"}]))

    book = ScheduleBook()
    book.schedule(every="1s", name=note)(dispatch_all)
    write_definitions(connections, book)
    execute(connections, "UPDATE schedules SET decided_until = now() - interval '2 s' WHERE name = :name", name=note)

    with caplog.at_level("INFO"):
        assert fire(connections, due(connections, book)[0])
    assert [(one.id == there.id, one.is_duplicate) for one in given] == [
        (True, True), (True, True), (False, False), (False, True)
    ]  # fmt: skip
    assert (count(connections, note), count(connections, f"{note}, too")) == (1, 1)
    assert one_value(connections, "SELECT error FROM schedules WHERE name = :name", name=note) is None
    said = [one.getMessage() for one in caplog.records if "an equal job is there" in one.getMessage()]
    assert len(said) == (3 if job_class is Strict else 0)
    if job_class is Strict:
        with pytest.raises(AlreadyDispatched):  # outside of a tick it is an error as ever
            job_class.dispatch(note=note)


# -- equal payloads have one text


class UniquePrice(BaseJob):
    unique = Unique("note", "price", "at")

    def _perform(self, note: str, price: Decimal, at: datetime, words: frozenset[str] = frozenset()) -> None: ...


class HourlyPrice(UniquePrice):
    unique = Unique(within="1h")


@pytest.mark.parametrize("job_class", [UniquePrice, HourlyPrice])
def test_a_number_or_a_moment_may_be_spelled_as_one_likes(
    connections: Connections, note: str, job_class: type[BaseJob]
) -> None:
    first = job_class.dispatch(note=note, price="1.5", at="2026-10-25T00:30:00Z")
    prague = ZoneInfo("Europe/Prague")
    for price, at in (("1.50", "2026-10-25T02:30+02:00"), (1.5, datetime(2026, 10, 25, 2, 30, tzinfo=prague))):
        assert job_class.dispatch(note=note, price=price, at=at).id == first.id
    assert (
        job_class.dispatch(note=note, price=1.5, at=datetime(2026, 10, 25, 2, 30, tzinfo=prague, fold=1)).id != first.id
    )


@pytest.mark.parametrize("job_class", [UniquePrice, HourlyPrice])
def test_what_an_earlier_version_left_in_the_ledger_is_there(
    connections: Connections, note: str, job_class: type[BaseJob]
) -> None:
    payload = {"note": note, "price": "1.50", "at": "2026-10-25T02:30:00+02:00", "words": []}
    unique = job_class.unique
    assert unique is not None
    first = job_class.dispatch(**payload)
    new, old = first_key(connections, first), unique.key(job_class.job_type, payload)  # as it was made before
    assert new != old
    execute(connections, "UPDATE job_statuses SET unique_key = :old WHERE unique_key = :new", old=old, new=new)
    execute(connections, "UPDATE unique_windows SET unique_key = :old WHERE unique_key = :new", old=old, new=new)

    assert job_class.dispatch(**payload).id == first.id
    again = job_class.dispatch_many([{**payload, "price": "1.5"}, payload])

    assert [(one.id, one.is_duplicate) for one in again] == [(first.id, True)] * 2
    assert count(connections, note) == 1


def first_key(connections: Connections, job: JobHandle) -> str:
    """The key by which this job is unique."""
    of_window = "SELECT unique_key FROM unique_windows WHERE job_id = :id"
    return str(
        one_value(
            connections, f"SELECT coalesce(unique_key, ({of_window})) FROM job_statuses WHERE id = :id", id=job.id
        )
    )


SETS = """
import sys
from test_unique import UniquePrice
job = UniquePrice.set(idempotency_key=sys.argv[1]).dispatch(
    note=sys.argv[1], price=1, at="2026-01-01T00:00:00Z", words={"one", "two", "three", "four", "five"}
)
print(job.id)
"""


def test_sets_are_the_same_in_every_process(connections: Connections, environment: dict[str, str], note: str) -> None:
    here = str(Path(__file__).parent)
    said = [
        subprocess.run(
            [sys.executable, "-c", SETS, note],
            env={**os.environ, **environment, "PYTHONPATH": f"{here}:{Path(here).parent}", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    ]

    assert len(set(said)) == 1
    assert count(connections, note) == 1


# -- with real processes

DISPATCHING = """
import sys, time
from sample_jobs import UniqueEffect
time.sleep(max(0, float(sys.argv[2]) - time.time()))
handle = UniqueEffect.dispatch(note=sys.argv[1])
print("job", handle.id, handle.is_duplicate, flush=True)
"""


def at_once(system: Stack, processes: int, note: str) -> list[Process]:
    moment = str(time.time() + 0.15 * processes)
    return [system.start(sys.executable, "-c", DISPATCHING, note, moment) for _ in range(processes)]


def said(processes: list[Process]) -> list[tuple[str, bool]]:
    lines = [line.split() for one in processes for line in one.output().splitlines() if line.startswith("job ")]
    return [(line[1], line[2] == "True") for line in lines]


def test_fifty_processes_at_once_dispatch_one_job(connections: Connections, system: Stack, note: str) -> None:
    processes = at_once(system, 50, note)
    assert [one.wait(120) for one in processes] == [0] * 50

    answers = said(processes)
    assert len({job_id for job_id, _ in answers}) == 1
    assert sorted(duplicate for _, duplicate in answers) == [False] + [True] * 49
    assert count(connections, note) == 1


def test_processes_that_are_killed_in_the_middle_leave_one_job_that_runs(
    connections: Connections, system: Stack, note: str
) -> None:
    processes = at_once(system, 20, note)
    eventually(lambda: said(processes), 60, "the first dispatch")
    for one in processes[::2]:
        if one.popen.poll() is None:
            os.kill(one.pid, signal.SIGKILL)
    for one in processes:
        one.wait(60)

    handle = UniqueEffect.dispatch(note=note)
    assert {job_id for job_id, _ in said(processes)} == {str(handle.id)}
    assert count(connections, note) == 1
    system.worker()
    system.scheduler()
    assert handle.wait(60).status is JobStatus.COMPLETED
    assert not UniqueEffect.dispatch(note=note).is_duplicate
