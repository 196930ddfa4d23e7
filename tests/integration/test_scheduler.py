"""The scheduler process: its chores outlive errors, repair what is to be repaired, and fire what is due."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from harness import eventually, one_value
from jobledger import Connections, JobHandle, JobStatus, Outcome, Settings
from jobledger.domain.records import Runner
from jobledger.ledger import moves
from jobledger.scheduler.process import Repeated, SchedulerProcess
from jobledger.schedules import ScheduleBook, ticks
from jobledger.schedules.ticks import Due, write_definitions
from sample_jobs import Echo

pytestmark = pytest.mark.one_database  # each looks at jobs and schedules of its own


@pytest.fixture
def book() -> ScheduleBook:
    return ScheduleBook()


class Schedulers:
    """Starts scheduler processes, as far as they are threads, with short pauses."""

    def __init__(self, settings: Settings, book: ScheduleBook) -> None:
        self.settings = settings.model_copy(update={"sweep_seconds": 0.2, "relay_seconds": 0.1, "lease_seconds": 1})
        self.book = book
        self.running: list[tuple[SchedulerProcess, Connections]] = []

    def start(self) -> None:
        connections = Connections(self.settings)
        process = SchedulerProcess(connections, self.book)
        self.running.append((process, connections))
        process.start()

    def stop(self) -> None:
        while self.running:
            process, connections = self.running.pop()
            process.stop()
            connections.close()


@pytest.fixture
def schedulers(connections: Connections, settings: Settings, book: ScheduleBook) -> Iterator[Schedulers]:
    started = Schedulers(settings, book)
    yield started
    started.stop()


def change(connections: Connections, sql: str, **parameters: Any) -> None:
    with connections.transaction() as connection:
        connection.execute(sa.text(sql), parameters)


def is_pushed(connections: Connections, job: JobHandle) -> bool:
    return str(job.id).encode() in connections.redis.lrange("rq:queue:default", 0, -1)


# -- chores


class Flaky:
    """Something to do that fails as often as it was told, and remembers when it was tried."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.tried_at: list[float] = []

    def __call__(self) -> int:
        self.tried_at.append(time.monotonic())
        if len(self.tried_at) <= self.failures:
            raise RuntimeError("as asked")
        return 1


def test_a_chore_that_works_is_done_whenever_it_is_asked_for() -> None:
    chore, action = Repeated("test"), Flaky(failures=0)

    for _ in range(3):
        chore.do(action)

    assert len(action.tried_at) == 3
    assert chore.failures == 0


def test_a_chore_that_fails_is_left_alone_for_a_while_and_then_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chore, action = Repeated("test"), Flaky(failures=2)

    def tried(times: int) -> bool:
        chore.do(action)
        return len(action.tried_at) == times

    chore.do(action)
    assert chore.failures == 1
    eventually(lambda: tried(2), what="the second try")
    assert chore.failures == 2
    eventually(lambda: tried(3), what="the third try")

    first, second, third, *_ = action.tried_at
    assert second - first >= 1
    assert third - second >= 2
    assert chore.failures == 0
    assert tried(4)
    assert [record.getMessage().splitlines()[0] for record in caplog.records if record.levelname == "ERROR"] == [
        "Chore failed chore='test' failures=1 wait_seconds=1.0",
        "Chore failed chore='test' failures=2 wait_seconds=2.0",
    ]


# -- repair


def test_a_job_whose_time_has_come_is_queued_and_pushed(connections: Connections, schedulers: Schedulers) -> None:
    schedulers.start()
    job = Echo.dispatch_in(0.2)
    assert job.status is JobStatus.SCHEDULED

    eventually(lambda: is_pushed(connections, job), what="the push")

    assert eventually(lambda: job.refresh().status is JobStatus.QUEUED)


def test_a_job_that_could_not_be_pushed_is_pushed(connections: Connections, schedulers: Schedulers) -> None:
    job = Echo.dispatch()
    connections.redis.flushall()
    change(connections, "UPDATE job_statuses SET pushed_at = NULL WHERE id = :id", id=job.id)

    schedulers.start()

    eventually(lambda: is_pushed(connections, job), what="the push")


def test_a_job_that_redis_has_lost_is_pushed_again(connections: Connections, schedulers: Schedulers) -> None:
    job = Echo.dispatch()
    connections.redis.flushall()
    change(connections, "UPDATE job_statuses SET pushed_at = now() - interval '1 minute' WHERE id = :id", id=job.id)

    schedulers.start()

    eventually(lambda: is_pushed(connections, job), what="the push")


def test_a_job_whose_worker_has_vanished_is_queued_again(
    connections: Connections, settings: Settings, schedulers: Schedulers
) -> None:
    job = Echo.dispatch()
    connections.redis.flushall()
    vanished = Connections(settings)
    with vanished.transaction() as connection:
        assert moves.claim(connection, job.id, Runner("gone", "here", 1, "1"), lease_seconds=0)
    vanished.close()
    change(
        connections,
        "INSERT INTO sweeps (name, swept_by, resumed_at) VALUES ('reap', 'test', 'epoch') ON CONFLICT DO NOTHING",
    )

    schedulers.start()

    eventually(lambda: job.refresh().status is JobStatus.QUEUED, what="the next attempt may begin")
    assert [attempt.outcome for attempt in job.attempts] == [Outcome.LOST]
    eventually(lambda: is_pushed(connections, job), what="the push")


def test_jobs_that_ended_long_ago_are_pruned(connections: Connections, schedulers: Schedulers) -> None:
    job = Echo.dispatch()
    long_ago = "status = 'canceled', reason = 'test', finished_at = now() - interval '1 year'"
    change(connections, f"UPDATE job_statuses SET {long_ago} WHERE id = :id", id=job.id)

    schedulers.start()

    eventually(
        lambda: one_value(connections, "SELECT count(*) FROM job_statuses WHERE id = :id", id=job.id) == 0,
        what="the prune",
    )


def test_the_clock_goes_on_while_redis_is_away(connections: Connections, settings: Settings) -> None:
    nowhere = {"redis_url": "redis://127.0.0.1:1", "relay_seconds": "0.1", "database_url": settings.database_url}
    own = Connections(Settings(**nowhere))
    process = SchedulerProcess(own, ScheduleBook())
    job = Echo.dispatch_in(0.01)
    swept = one_value(connections, "SELECT max(swept_at) FROM sweeps WHERE name = 'reap'")

    process.start()
    try:
        since = "coalesce(CAST(:swept AS timestamptz), '-infinity')"
        newer = f"SELECT count(*) FROM sweeps WHERE name = 'reap' AND swept_at > {since}"
        eventually(lambda: one_value(connections, newer, swept=swept), what="a sweep")
    finally:
        process.stop()
        own.close()

    assert job.refresh().status is JobStatus.QUEUED
    assert one_value(connections, "SELECT pushed_at FROM job_statuses WHERE id = :id", id=job.id) is None


# -- schedules


def define(connections: Connections, book: ScheduleBook, function: Callable[..., Any], name: str) -> None:
    """Define a schedule that is due once, now."""
    book.add_job(function, "interval", hours=1, misfire_grace_time=7200, id=name)
    write_definitions(connections, book)
    long_ago = "created_at = now() - interval '90 minutes', decided_until = now() - interval '90 minutes'"
    change(connections, f"UPDATE schedules SET {long_ago} WHERE name = :name", name=name)


def jobs_of(connections: Connections, name: str) -> int:
    jobs = "SELECT count(*) FROM job_statuses j JOIN schedules s ON s.id = j.schedule_id WHERE s.name = :name"
    return int(one_value(connections, jobs, name=name))


def ticks_of(connections: Connections, name: str) -> int:
    ticks = "SELECT count(*) FROM schedule_ticks t JOIN schedules s ON s.id = t.schedule_id WHERE s.name = :name"
    return int(one_value(connections, ticks, name=name))


def test_a_schedule_of_the_book_is_written_and_fired(
    connections: Connections, book: ScheduleBook, schedulers: Schedulers
) -> None:
    book.add_job(Echo.dispatch, "interval", seconds=1, id="of the book")

    schedulers.start()

    eventually(lambda: jobs_of(connections, "of the book"), what="the first job")


def test_of_two_scheduler_processes_one_fires(
    connections: Connections, book: ScheduleBook, schedulers: Schedulers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[bool] = []

    def fire(own: Connections, one: Due) -> bool:
        answers.append(ticks.fire(own, one))
        return answers[-1]

    def dispatching() -> None:
        Echo.dispatch()
        eventually(lambda: False in answers, what="the other one has tried")

    monkeypatch.setattr("jobledger.scheduler.process.ticks", SimpleNamespace(**{**vars(ticks), "fire": fire}))
    define(connections, book, dispatching, "of two")
    schedulers.start()
    schedulers.start()

    eventually(lambda: jobs_of(connections, "of two"), what="the job")
    schedulers.stop()

    assert (jobs_of(connections, "of two"), ticks_of(connections, "of two")) == (1, 1)


def test_a_function_that_failed_is_called_again(
    connections: Connections, book: ScheduleBook, schedulers: Schedulers
) -> None:
    flaky = Flaky(failures=1)

    def dispatching() -> None:
        Echo.dispatch()
        flaky()

    define(connections, book, dispatching, "flaky")
    schedulers.start()

    eventually(lambda: jobs_of(connections, "flaky"), what="the job")
    assert len(flaky.tried_at) == 2
    assert flaky.tried_at[1] - flaky.tried_at[0] >= 1
    assert (jobs_of(connections, "flaky"), ticks_of(connections, "flaky")) == (1, 1)


def test_a_slow_function_holds_up_none_but_itself(
    connections: Connections, book: ScheduleBook, schedulers: Schedulers
) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        release.wait(20)

    define(connections, book, slow, "slow")
    schedulers.start()
    assert entered.wait(10)
    try:
        for other in ("quick", "quicker"):
            define(connections, book, Echo.dispatch, other)
            eventually(lambda name=other: jobs_of(connections, name), what="the job of the other schedule")
        assert ticks_of(connections, "slow") == 0
    finally:
        release.set()

    eventually(lambda: ticks_of(connections, "slow"), what="the tick of the slow schedule")


def test_what_is_being_fired_is_done_before_the_process_ends(
    connections: Connections, book: ScheduleBook, schedulers: Schedulers
) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow() -> None:
        Echo.dispatch()
        entered.set()
        release.wait(20)

    define(connections, book, slow, "at the end")
    schedulers.start()
    assert entered.wait(10)

    with ThreadPoolExecutor(1) as another:
        stopping = another.submit(schedulers.stop)
        with pytest.raises(TimeoutError):
            stopping.result(0.2)
        release.set()
        stopping.result(10)

    assert jobs_of(connections, "at the end") == 1


# -- who is there


def test_only_a_scheduler_in_touch_removes_and_never_its_own_schedules(
    connections: Connections, book: ScheduleBook, schedulers: Schedulers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobledger.scheduler.process.PRESENCE_SECONDS", 0.1)
    monkeypatch.setattr("jobledger.scheduler.process.REMOVED_SECONDS", 1.5)
    define(connections, book, lambda: None, "mine")
    define(connections, ScheduleBook(), lambda: None, "somebody's")
    change(connections, "UPDATE schedules SET seen_at = now() - interval '1 day'")
    removed_at = "SELECT removed_at FROM schedules WHERE name = :name"

    schedulers.start()
    eventually(lambda: one_value(connections, removed_at, name="somebody's"), what="the removal")

    assert one_value(connections, removed_at, name="mine") is None
    in_touch = (
        "SELECT extract(epoch FROM s.removed_at - p.started_at) FROM schedules s, schedulers p WHERE s.name = :name"
    )
    assert one_value(connections, in_touch, name="somebody's") > 1


def test_a_scheduler_that_does_not_get_to_its_schedules_does_not_say_that_it_is_there(
    connections: Connections, book: ScheduleBook, schedulers: Schedulers, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = threading.Event()

    def due(*of: Any, **options: Any) -> list[Due]:
        if failing.is_set():
            raise RuntimeError("as asked")
        return ticks.due(*of, **options)

    monkeypatch.setattr("jobledger.scheduler.process.PRESENCE_SECONDS", 0.1)
    monkeypatch.setattr("jobledger.scheduler.process.LONGEST_GAP_SECONDS", 2.5)
    monkeypatch.setattr("jobledger.scheduler.process.ticks", SimpleNamespace(**{**vars(ticks), "due": due}))
    define(connections, book, lambda: None, "of nobody")
    schedulers.start()
    silent_for = "SELECT extract(epoch FROM now() - max(seen_at)) FROM schedulers"
    eventually(lambda: (one_value(connections, silent_for) or 9) < 1, what="it is there")

    failing.set()

    eventually(lambda: one_value(connections, silent_for) > 3, what="it is silent")


def test_a_clock_that_is_set_back_stops_no_chore(connections: Connections, settings: Settings) -> None:
    ahead = 3600.0
    process = SchedulerProcess(Connections(settings), ScheduleBook(), wall=lambda: time.time() + ahead)
    process.start()
    try:
        # What APScheduler has planned while the clock was an hour ahead.
        for chore in process._clock.get_jobs():
            chore.modify(next_run_time=datetime.now(UTC) + timedelta(seconds=ahead))
        swept = "SELECT swept_at FROM sweeps WHERE name = 'relay'"
        before = one_value(connections, swept)
        ahead = 0.0
        eventually(lambda: one_value(connections, swept) != before, seconds=10, what="the next pass of the relay")
    finally:
        process.stop()
