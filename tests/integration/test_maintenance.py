"""Repair: what was never pushed, is due, was lost in Redis, or has lost its run, comes right; what is old, goes."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
import redis
import sqlalchemy as sa
from pydantic import SecretStr
from rq.job import Job
from rq.job import JobStatus as RQStatus
from rq.results import Result
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from harness import eventually, execute, one_value, row_of
from jobledger import (
    BaseJob,
    Connections,
    Failure,
    JobHandle,
    JobNotFound,
    JobStatus,
    Outcome,
    Reason,
    Settings,
    queues,
)
from jobledger.domain.records import Evidence, Runner, Wake
from jobledger.ledger import leases, moves, wakeups
from jobledger.ledger.heartbeats import GAP_SECONDS
from jobledger.ledger.leases import Progress
from jobledger.lifecycle.children import propagate_due
from jobledger.maintenance.prune import prune
from jobledger.maintenance.reaper import reap
from jobledger.maintenance.reconcile import reconcile
from jobledger.maintenance.relay import relay, relay_due, relay_unpushed
from jobledger.worker import run_job
from sample_jobs import Echo

pytestmark = pytest.mark.one_database  # each empties it first

ME = Runner(worker="rq-1", host="here", pid=1, version="1")
LEASE = 1.0


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_seconds": LEASE})


@pytest.fixture(autouse=True)
def _empty(connections: Connections) -> None:
    execute(connections, "DELETE FROM job_statuses")
    execute(connections, "DELETE FROM sweeps")
    execute(connections, "DELETE FROM schedules")
    execute(connections, "DELETE FROM lost_wakes")
    execute(connections, "DELETE FROM redis_epoch")


def set_all(connections: Connections, change: str) -> None:
    """Change all rows behind everybody's back, instead of waiting."""
    execute(connections, f"UPDATE job_statuses SET {change}")


def pushed(connections: Connections, queue: str = "default") -> list[str]:
    return [one.decode() for one in connections.redis.lrange(f"rq:queue:{queue}", 0, -1)]


def ids(*handles: JobHandle) -> list[str]:
    return [str(one.id) for one in handles]


def statuses(*handles: JobHandle) -> list[JobStatus | None]:
    return [one.refresh().status for one in handles]


def at_once(action: Callable[[], int], times: int = 2) -> list[int]:
    """Do the same at the same moment in several threads."""
    gate = threading.Barrier(times)

    def act() -> int:
        gate.wait(10)
        return action()

    with ThreadPoolExecutor(times) as threads:
        return [future.result(30) for future in [threads.submit(act) for _ in range(times)]]


@pytest.fixture
def without_redis(settings: Settings) -> Iterator[Connections]:
    """The same Postgres, and a Redis that is away."""
    away = Connections(settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1")}))
    yield away
    away.close()


# -- the relay: jobs that are due


def test_a_job_that_is_due_is_queued_and_pushed(connections: Connections) -> None:
    due, later = Echo.dispatch_in("1h"), Echo.dispatch_in("1h")
    execute(connections, "UPDATE job_statuses SET available_at = now() WHERE id = :id", id=due.id)

    assert relay(connections) == 1

    assert pushed(connections) == ids(due)
    row = row_of(connections, due)
    assert (row.status, row.push_count) == ("queued", 1)
    assert row.queued_at < row.pushed_at
    assert later.refresh().status is JobStatus.SCHEDULED
    assert relay(connections) == 0


def test_all_that_is_due_is_queued_however_much_it_is(connections: Connections) -> None:
    handles = Echo.set(delay=60).dispatch_many([{}] * 1100)
    set_all(connections, "available_at = now()")

    assert relay(connections) == 1100
    assert sorted(pushed(connections)) == sorted(ids(*handles))


def test_what_becomes_due_while_redis_is_away_is_pushed_later(
    connections: Connections, without_redis: Connections
) -> None:
    handle = Echo.dispatch_in("1h")
    set_all(connections, "available_at = now()")

    assert relay_due(without_redis) == 1

    assert handle.refresh().status is JobStatus.QUEUED
    assert row_of(connections, handle).pushed_at is None
    assert relay_unpushed(connections) == 1
    assert pushed(connections) == ids(handle)


def test_a_due_job_is_pushed_when_a_worker_can_see_that_it_is_queued(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Echo.dispatch_in("1h")
    set_all(connections, "available_at = now()")
    seen: list[JobStatus] = []
    push = queues.push

    def look_and_push(client: redis.Redis, wakes: Sequence[Wake], **options: Any) -> None:
        seen.append(JobHandle(handle.id, handle.status, connections).refresh().status)
        push(client, wakes, **options)

    monkeypatch.setattr(queues, "push", look_and_push)
    relay(connections)

    assert seen == [JobStatus.QUEUED]


def test_two_relays_at_once_queue_each_job_once(connections: Connections) -> None:
    handles = Echo.set(delay=60).dispatch_many([{}] * 600)
    set_all(connections, "available_at = now()")

    assert sum(at_once(lambda: relay_due(connections), 3)) == 600
    relay_unpushed(connections)
    assert sorted(pushed(connections)) == sorted(ids(*handles))


# -- the relay: jobs that were never pushed


def test_what_was_never_pushed_is_pushed_by_priority_then_age(connections: Connections) -> None:
    handles = dict(zip("abcd", Echo.dispatch_many([{}] * 4), strict=True))
    connections.redis.flushall()
    set_all(connections, "pushed_at = NULL")
    for name, priority, age in (("a", 9, 30), ("b", 5, 10), ("c", 5, 20), ("d", 1, 0)):
        execute(
            connections,
            "UPDATE job_statuses SET priority = :priority, queued_at = now() - make_interval(secs => :age)"
            " WHERE id = :id",
            id=handles[name].id,
            priority=priority,
            age=age,
        )

    assert relay_unpushed(connections) == 4

    assert pushed(connections) == ids(*(handles[name] for name in "dcba"))
    assert row_of(connections, handles["a"]).push_count == 2
    assert relay_unpushed(connections) == 0


def test_each_queue_gets_its_own(connections: Connections) -> None:
    one, other = Echo.dispatch(queue="high"), Echo.dispatch(queue="low")
    connections.redis.flushall()
    set_all(connections, "pushed_at = NULL")

    assert relay_unpushed(connections) == 2
    assert (pushed(connections, "high"), pushed(connections, "low")) == (ids(one), ids(other))


def test_what_is_held_is_not_pushed(connections: Connections) -> None:
    Echo.dispatch()
    connections.redis.flushall()
    set_all(connections, "pushed_at = NULL, held_by = 'pause:default'")

    assert relay_unpushed(connections) == 0
    assert pushed(connections) == []


def test_what_was_never_pushed_stays_so_while_redis_is_away(
    connections: Connections, without_redis: Connections
) -> None:
    handle = Echo.dispatch()
    set_all(connections, "pushed_at = NULL")

    with pytest.raises(redis.RedisError):
        relay_unpushed(without_redis)

    row = row_of(connections, handle)
    assert (row.pushed_at, row.push_count) == (None, 1)


def test_two_relays_at_once_push_each_job_once(connections: Connections) -> None:
    handles = Echo.dispatch_many([{}] * 600)
    connections.redis.flushall()
    set_all(connections, "pushed_at = NULL")

    assert sum(at_once(lambda: relay_unpushed(connections), 3)) == 600
    assert sorted(pushed(connections)) == sorted(ids(*handles))


# -- the reconciler: jobs that Redis has lost


def push_long_ago(connections: Connections) -> None:
    set_all(connections, "pushed_at = now() - interval '16 s'")


def test_a_wake_up_that_was_lost_is_pushed_again(connections: Connections) -> None:
    handle = Echo.dispatch()
    connections.redis.delete("rq:queue:default")
    push_long_ago(connections)

    assert reconcile(connections) == 1
    assert relay_unpushed(connections) == 1

    assert pushed(connections) == ids(handle)
    assert reconcile(connections) == 0


def test_a_wake_up_that_was_taken_a_moment_ago_is_left_alone(connections: Connections) -> None:
    Echo.dispatch()
    connections.redis.delete("rq:queue:default")
    set_all(connections, "pushed_at = now() - interval '14 s'")

    assert reconcile(connections) == 0


def test_a_wake_up_that_waits_in_its_list_is_left_alone(connections: Connections) -> None:
    handles = Echo.dispatch_many([{}] * 3)
    push_long_ago(connections)

    assert reconcile(connections) == 0
    assert pushed(connections) == ids(*handles)


def test_a_wake_up_in_the_hand_of_a_dead_worker_is_lost(connections: Connections) -> None:
    """RQ moves it to an intermediate list first, and leaves it there for many minutes if the worker dies."""
    Echo.dispatch()
    connections.redis.rename("rq:queue:default", "rq:queue:default:intermediate")
    push_long_ago(connections)

    assert reconcile(connections) == 1


def test_a_wake_up_that_was_lost_before_others_is_found_although_they_wait(connections: Connections) -> None:
    lost, waiting = Echo.dispatch(), Echo.dispatch()
    connections.redis.lrem("rq:queue:default", 1, str(lost.id))
    push_long_ago(connections)

    assert reconcile(connections) == 1
    assert row_of(connections, lost).pushed_at is None
    assert row_of(connections, waiting).pushed_at is not None


def test_a_list_that_is_headed_by_a_stranger_is_reconciled_all_the_same(connections: Connections) -> None:
    Echo.dispatch()
    connections.redis.delete("rq:queue:default")
    connections.redis.rpush("rq:queue:default", "no-uuid", "\udcff".encode("utf-8", "surrogateescape"))
    push_long_ago(connections)

    assert reconcile(connections) == 1


def test_a_thousand_queued_jobs_survive_an_emptied_redis(connections: Connections) -> None:
    handles = Echo.dispatch_many([{}] * 1000)
    connections.redis.flushall()
    push_long_ago(connections)

    assert reconcile(connections) == 1000
    assert relay_unpushed(connections) == 1000
    assert sorted(pushed(connections)) == sorted(ids(*handles))


def test_a_job_that_was_claimed_or_has_ended_is_left_alone(connections: Connections) -> None:
    claimed, ended = Echo.dispatch(), Echo.dispatch()
    run_job(str(ended.id))
    claim(connections, claimed)
    connections.redis.flushall()
    push_long_ago(connections)

    assert reconcile(connections) == 0


def test_a_push_that_somebody_made_meanwhile_stands(connections: Connections) -> None:
    handle = Echo.dispatch()
    set_all(connections, "push_count = 2")

    with connections.transaction() as connection:
        assert wakeups.unpush(connection, [(handle.id, 1)]) == 0
    assert row_of(connections, handle).pushed_at is not None


def test_nothing_is_taken_for_lost_while_redis_is_away(connections: Connections, without_redis: Connections) -> None:
    handle = Echo.dispatch()
    push_long_ago(connections)

    with pytest.raises(redis.RedisError):
        reconcile(without_redis)
    assert row_of(connections, handle).pushed_at is not None


# -- the reaper: runs that have vanished


class Mourned(BaseJob):
    """Has an `on_failed`."""

    def _perform(self) -> None: ...

    def on_failed(self, error: Failure) -> None: ...


def claim(connections: Connections, handle: JobHandle) -> None:
    """As a run does, which has a connection of its own: the reaper will end it."""
    engine = sa.create_engine(connections.engine.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        assert moves.claim(connection, handle.id, ME, 30)


def started(connections: Connections, job_class: type[BaseJob] = Echo, **options: Any) -> JobHandle:
    handle = job_class.set(**options).dispatch()
    claim(connections, handle)
    return handle.refresh()


def let_leases_run_out(connections: Connections) -> None:
    execute(connections, "UPDATE job_attempts SET lease_expires_at = now() - interval '1 ms'")


@pytest.fixture
def settled(connections: Connections) -> None:
    """Somebody has been sweeping, and Postgres has been up, for more than a lease."""
    up = "SELECT now() - pg_postmaster_start_time() > make_interval(secs => :lease)"
    eventually(lambda: one_value(connections, up, lease=LEASE), what="Postgres is up for a lease")
    execute(
        connections,
        "INSERT INTO sweeps (name, swept_by, resumed_at) VALUES ('reap', 'me', now() - interval '1 h')",
    )


@pytest.mark.usefixtures("settled")
def test_a_run_that_has_vanished_is_lost_and_its_job_runs_again_at_once(connections: Connections) -> None:
    handle = started(connections)
    let_leases_run_out(connections)

    assert reap(connections) == 1

    row = row_of(connections, handle)
    assert (row.status, row.losses, row.errors, row.crashes) == ("scheduled", 1, 0, 0)
    assert row.available_at == row.updated_at
    (attempt,) = handle.attempts
    assert (attempt.outcome, attempt.finished_at is not None) == (Outcome.LOST, True)
    assert "the lease ran out" in (attempt.error_message or "")
    assert reap(connections) == 0
    relay_due(connections)
    run_job(str(handle.id))
    assert handle.refresh().status is JobStatus.COMPLETED


@pytest.mark.usefixtures("settled")
def test_a_run_that_renews_its_lease_is_left_alone(connections: Connections) -> None:
    handle = started(connections)
    let_leases_run_out(connections)
    with connections.transaction() as connection:
        assert leases.renew(connection, handle.id, 1, 30, Progress())

    assert reap(connections) == 0
    assert handle.refresh().status is JobStatus.STARTED


@pytest.mark.usefixtures("settled")
def test_the_loss_of_the_last_attempt_is_the_end_with_its_callback_and_its_children(connections: Connections) -> None:
    handle = started(connections, Mourned)
    child = Echo.dispatch(after=handle)
    execute(connections, "UPDATE job_statuses SET attempt = 20, losses = 19 WHERE id = :id", id=handle.id)
    execute(connections, "UPDATE job_attempts SET number = 20")
    let_leases_run_out(connections)

    assert reap(connections) == 1

    assert (handle.refresh().status, handle.reason) == (JobStatus.FAILED, Reason.LOST)
    assert child.refresh().status is JobStatus.CANCELED
    callback = one_value(connections, "SELECT id FROM job_statuses WHERE job_type = 'jobledger.on_failed'")
    assert str(callback) in pushed(connections)


@pytest.mark.usefixtures("settled")
def test_two_reapers_at_once_end_an_attempt_once(connections: Connections) -> None:
    handles = [started(connections) for _ in range(10)]
    let_leases_run_out(connections)

    assert sum(at_once(lambda: reap(connections), 3)) == 10
    assert {(row_of(connections, one).losses, len(one.attempts)) for one in handles} == {(1, 1)}


@pytest.mark.usefixtures("settled")
def test_an_end_that_the_run_wrote_itself_stands(connections: Connections) -> None:
    handle = started(connections)
    let_leases_run_out(connections)
    with connections.transaction() as connection:
        assert moves.complete(connection, handle.id, 1, None, Evidence())

    assert reap(connections) == 0
    assert handle.refresh().status is JobStatus.COMPLETED


def test_nothing_is_reaped_before_somebody_has_swept_for_a_lease(connections: Connections) -> None:
    handle = started(connections)
    let_leases_run_out(connections)

    assert reap(connections) == 0
    assert handle.refresh().status is JobStatus.STARTED
    eventually(lambda: reap(connections), what="it is reaped after a lease")


@pytest.mark.usefixtures("settled")
def test_after_a_gap_between_sweeps_nothing_is_reaped_for_a_lease(connections: Connections) -> None:
    started(connections)
    let_leases_run_out(connections)
    execute(connections, "UPDATE sweeps SET swept_at = now() - make_interval(secs => :gap)", gap=GAP_SECONDS + 1)

    assert reap(connections) == 0
    eventually(lambda: reap(connections), what="it is reaped after a lease")


@pytest.mark.usefixtures("settled")
def test_a_short_gap_between_sweeps_is_none(connections: Connections) -> None:
    started(connections)
    let_leases_run_out(connections)
    execute(connections, "UPDATE sweeps SET swept_at = now() - make_interval(secs => :gap)", gap=GAP_SECONDS - 5)

    assert reap(connections) == 1


@pytest.mark.usefixtures("settled")
def test_after_a_start_of_postgres_nothing_is_reaped_for_a_lease(connections: Connections) -> None:
    handle = started(connections)
    let_leases_run_out(connections)
    patient = Connections(connections.settings.model_copy(update={"lease_seconds": 3600.0}))
    execute(connections, "UPDATE sweeps SET resumed_at = now() - interval '1 day'")

    assert reap(patient) == 0
    assert handle.refresh().status is JobStatus.STARTED
    patient.close()


@pytest.mark.usefixtures("settled")
def test_a_row_that_somebody_has_locked_stops_no_reaper(connections: Connections) -> None:
    locked, other = started(connections), started(connections)
    let_leases_run_out(connections)
    with connections.engine.connect() as holder, holder.begin():
        moves.lock_parents(holder, [locked.id])

        assert reap(connections) == 1
        assert other.refresh().status is JobStatus.SCHEDULED

    assert locked.refresh().status is JobStatus.STARTED
    assert reap(connections) == 1, "the next sweep sees to it"


@pytest.mark.usefixtures("settled")
def test_a_child_that_another_transaction_has_locked_keeps_no_reaper_from_any_job(connections: Connections) -> None:
    parent, other = started(connections), started(connections)
    child = Echo.dispatch(after=parent)
    let_leases_run_out(connections)
    last_one = "UPDATE job_attempts SET number = 20, lease_expires_at = now() - interval '1 h' WHERE job_id = :id"
    execute(connections, last_one, id=parent.id)
    execute(connections, "UPDATE job_statuses SET attempt = 20, losses = 19 WHERE id = :id", id=parent.id)
    with Session(connections.engine) as session:
        Echo.dispatch(after=child, session=session)

        assert reap(connections) == 2
        assert statuses(parent, other, child) == [JobStatus.FAILED, JobStatus.SCHEDULED, JobStatus.DEFERRED]
        session.rollback()

    eventually(lambda: propagate_due(connections, 1.0), what="a scheduler tells the child")
    assert statuses(child) == [JobStatus.CANCELED]


def is_slow(connections: Connections, seconds: float, *handles: JobHandle) -> None:
    """From now on each change of these rows takes a while."""
    slow = ", ".join(f"'{one.id}'" for one in handles)
    execute(
        connections,
        "CREATE OR REPLACE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS $$"
        f" BEGIN IF NEW.id IN ({slow}) THEN PERFORM pg_sleep({seconds}); END IF; RETURN NEW; END $$",
    )
    execute(
        connections,
        "CREATE TRIGGER slow BEFORE UPDATE ON job_statuses FOR EACH ROW EXECUTE FUNCTION be_slow()",
    )


@pytest.fixture
def quick(connections: Connections) -> Iterator[None]:
    """Afterwards no change takes long."""
    yield
    execute(connections, "DROP TRIGGER IF EXISTS slow ON job_statuses")


@pytest.mark.usefixtures("settled", "quick")
def test_a_job_that_takes_too_long_keeps_no_reaper_from_the_others(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobledger.maintenance.one_by_one.STATEMENT_SECONDS", 2.0)
    slow, other = started(connections), started(connections)
    let_leases_run_out(connections)
    first = "UPDATE job_attempts SET lease_expires_at = now() - interval '1 h' WHERE job_id = :id"
    execute(connections, first, id=slow.id)
    is_slow(connections, 60, slow)

    assert reap(connections) == 1

    assert statuses(slow, other) == [JobStatus.STARTED, JobStatus.SCHEDULED]


@pytest.mark.usefixtures("settled")
def test_a_long_sweep_is_recorded_again_and_again_so_that_it_is_no_gap(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobledger.maintenance.one_by_one.RECORD_SECONDS", 0.0)
    handles = [started(connections) for _ in range(3)]
    let_leases_run_out(connections)

    assert reap(connections) == 3

    ended = sorted(row_of(connections, one).updated_at for one in handles)
    assert one_value(connections, "SELECT swept_at FROM sweeps WHERE name = 'reap'") > ended[1]
    assert one_value(connections, "SELECT now() - resumed_at > interval '50 minutes' FROM sweeps WHERE name = 'reap'")


def test_what_is_done_once_is_recorded_by_no_part_of_it(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobledger.maintenance.one_by_one.RECORD_SECONDS", 0.0)
    handle = started(connections)
    execute(connections, "UPDATE job_statuses SET cancel_requested_at = now() - interval '1 h'")

    assert reap(connections, is_sweep=False) == 1

    assert handle.refresh().status is JobStatus.CANCELED
    assert one_value(connections, "SELECT count(*) FROM sweeps") == 0


@pytest.mark.usefixtures("settled")
def test_what_postgres_refuses_of_one_job_keeps_no_reaper_from_the_others(connections: Connections) -> None:
    odd, other = started(connections), started(connections)
    let_leases_run_out(connections)
    execute(
        connections, "UPDATE job_attempts SET lease_expires_at = now() - interval '1 h' WHERE job_id = :id", id=odd.id
    )
    odd_one = f"ALTER TABLE job_statuses ADD CONSTRAINT odd CHECK (id <> '{odd.id}' OR losses = 0)"
    execute(connections, odd_one)
    try:
        with pytest.raises(IntegrityError):
            reap(connections)
    finally:
        execute(connections, "ALTER TABLE job_statuses DROP CONSTRAINT odd")

    assert statuses(odd, other) == [JobStatus.STARTED, JobStatus.SCHEDULED]
    assert reap(connections) == 1


@pytest.mark.usefixtures("settled")
def test_a_lease_that_was_renewed_after_the_look_saves_its_run(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = started(connections)
    let_leases_run_out(connections)
    look = leases.running

    def look_then_renew(connection: sa.Connection, cancel_seconds: float, limit: int) -> list[leases.Running]:
        found = look(connection, cancel_seconds, limit)
        assert found[0].lease_stale
        assert leases.renew(connection, handle.id, 1, 30, Progress())
        return found

    monkeypatch.setattr(leases, "running", look_then_renew)

    assert reap(connections) == 0
    assert handle.refresh().status is JobStatus.STARTED


@pytest.mark.usefixtures("settled")
def test_slow_sweeps_reap_all_the_same(connections: Connections) -> None:
    slow = Connections(connections.settings.model_copy(update={"sweep_seconds": 60.0}))
    started(connections)
    let_leases_run_out(connections)
    execute(connections, "UPDATE sweeps SET swept_at = now() - interval '60 seconds'")
    try:
        assert reap(slow) == 1
    finally:
        slow.close()


@pytest.mark.usefixtures("settled")
def test_leases_are_judged_without_redis(connections: Connections, without_redis: Connections) -> None:
    started(connections)
    let_leases_run_out(connections)

    assert reap(without_redis) == 1


@pytest.mark.usefixtures("settled")
def test_a_zombie_loses_its_session_and_its_locks(connections: Connections) -> None:
    execute(connections, "CREATE TABLE IF NOT EXISTS guarded ()")
    handle = Echo.dispatch()
    with sa.create_engine(connections.engine.url, poolclass=sa.NullPool).connect() as zombie:
        with zombie.begin():
            assert moves.claim(zombie, handle.id, ME, 30)
        zombie.execute(sa.text("LOCK TABLE guarded"))
        let_leases_run_out(connections)

        assert reap(connections) == 1

        execute(connections, "LOCK TABLE guarded IN ACCESS EXCLUSIVE MODE NOWAIT")
        with pytest.raises(sa.exc.OperationalError) as loss:
            zombie.execute(sa.text("SELECT 1"))
        assert isinstance(loss.value.orig, psycopg2.Error)
        zombie.invalidate()


@pytest.mark.usefixtures("settled")
def test_a_zombie_that_outlived_its_session_commits_nothing(connections: Connections) -> None:
    handle = started(connections)
    let_leases_run_out(connections)
    reap(connections)
    relay_due(connections)
    claim(connections, handle)

    with connections.transaction() as connection:
        assert moves.complete(connection, handle.id, 1, '"late"', Evidence()) is None
        assert not leases.renew(connection, handle.id, 1, 30, Progress())
    assert handle.refresh().status is JobStatus.STARTED


# -- the reaper: runs of which RQ knows the end


def let_rq_say(connections: Connections, handle: JobHandle, words: str, worker: str = ME.worker) -> None:
    """What RQ's worker writes when a work-horse has ended badly."""
    job = Job.fetch(str(handle.id), connection=connections.redis)
    job.set_status(RQStatus.FAILED)
    Result.create_failure(job, ttl=60, exc_string=words, worker_name=worker)


DEATH = "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9); "


def test_a_work_horse_that_died_has_crashed_its_job_which_waits_for_its_retry(connections: Connections) -> None:
    handle = started(connections)
    let_rq_say(connections, handle, DEATH)

    assert reap(connections) == 1

    row = row_of(connections, handle)
    assert (row.status, row.crashes, row.losses, row.errors) == ("scheduled", 1, 0, 0)
    assert 1 <= (row.available_at - row.updated_at).total_seconds() < 2.5
    (attempt,) = handle.attempts
    assert (attempt.outcome, attempt.error_message) == (Outcome.CRASHED, DEATH.strip())


def test_the_third_crash_is_the_end(connections: Connections) -> None:
    handle = Mourned.dispatch()
    for _ in range(3):
        claim(connections, handle)
        let_rq_say(connections, handle, DEATH)
        assert reap(connections) == 1
        execute(connections, "UPDATE job_statuses SET available_at = now() WHERE status = 'scheduled'")
        relay_due(connections)

    assert (handle.refresh().status, handle.reason) == (JobStatus.FAILED, Reason.CRASHED)
    assert [one.outcome for one in handle.attempts] == [Outcome.CRASHED] * 3
    callback = one_value(connections, "SELECT id FROM job_statuses WHERE job_type = 'jobledger.on_failed'")
    assert str(callback) in pushed(connections)


def test_a_run_that_raised_outside_of_its_job_is_lost(connections: Connections) -> None:
    handle = started(connections)
    let_rq_say(connections, handle, "Traceback …\nLedgerUnavailable: Postgres is away")

    assert reap(connections) == 1
    (attempt,) = handle.attempts
    assert (attempt.outcome, attempt.error_message) == (Outcome.LOST, "LedgerUnavailable: Postgres is away")


def test_what_another_worker_says_of_an_earlier_attempt_means_nothing(connections: Connections) -> None:
    handle = started(connections)
    let_rq_say(connections, handle, DEATH, worker="rq-2")

    assert reap(connections) == 0
    assert handle.refresh().status is JobStatus.STARTED


def test_without_a_word_of_rq_a_run_with_a_lease_is_left_alone(connections: Connections) -> None:
    started(connections)

    assert reap(connections) == 0


def test_a_report_of_an_older_snapshot_of_redis_ends_no_healthy_attempt(connections: Connections) -> None:
    handle = Mourned.dispatch()
    claim(connections, handle)
    job = Job.fetch(str(handle.id), connection=connections.redis)
    job.set_status(RQStatus.FAILED)
    Result.create_failure(job, ttl=60, exc_string=DEATH, worker_name=ME.worker)
    (_, entry), *_ = connections.redis.xrevrange(f"rq:results:{job.id}", count=1)  # type: ignore[misc, union-attr]
    seconds, _ = connections.redis.time()  # type: ignore[misc]
    connections.redis.delete(f"rq:results:{job.id}")
    connections.redis.xadd(f"rq:results:{job.id}", entry, id=f"{(seconds - 60) * 1000}-0")  # type: ignore[arg-type]

    assert reap(connections) == 0
    assert handle.refresh().status is JobStatus.STARTED


def test_a_report_about_a_process_that_others_shared_is_a_loss(connections: Connections) -> None:
    handle = Mourned.dispatch()
    claim(connections, handle)
    execute(connections, "UPDATE job_attempts SET isolated = false")
    let_rq_say(connections, handle, DEATH)

    assert reap(connections) == 1
    assert [one.outcome for one in handle.attempts] == [Outcome.LOST]


def test_a_retry_after_a_crash_is_not_taken_for_dead_by_the_old_report(connections: Connections) -> None:
    handle = started(connections)
    let_rq_say(connections, handle, DEATH)
    reap(connections)
    set_all(connections, "available_at = now()")
    relay(connections)
    claim(connections, handle)

    assert reap(connections) == 0
    assert handle.refresh().status is JobStatus.STARTED


# -- prune


def ended(connections: Connections, status: str, days_ago: float) -> JobHandle:
    """A job that ended so long ago."""
    handle = started(connections)
    reason = {"failed": "'error'", "canceled": "'by ada'"}.get(status, "NULL")
    execute(
        connections,
        f"UPDATE job_statuses SET status = :status, reason = {reason},"
        " finished_at = now() - make_interval(secs => :age) WHERE id = :id",
        id=handle.id,
        status=status,
        age=days_ago * 86400,
    )
    return handle


@pytest.mark.parametrize(
    ("status", "days_ago", "stays"),
    [
        ("completed", 6.9, True),
        ("completed", 7.1, False),
        ("canceled", 6.9, True),
        ("canceled", 7.1, False),
        ("failed", 7.1, True),
        ("failed", 89.9, True),
        ("failed", 90.1, False),
    ],
)
def test_an_ended_job_stays_for_its_time(connections: Connections, status: str, days_ago: float, stays: bool) -> None:
    handle = ended(connections, status, days_ago)

    assert prune(connections) == (0 if stays else 1)
    assert one_value(connections, "SELECT count(*) FROM job_statuses WHERE id = :id", id=handle.id) == stays


def test_an_unfinished_job_stays_however_old_it_is(connections: Connections) -> None:
    parent = Echo.dispatch()
    Echo.dispatch(after=parent)
    Echo.dispatch_in("1h")
    started(connections)
    set_all(connections, "created_at = now() - interval '10 years', updated_at = now() - interval '10 years'")

    assert prune(connections) == 0
    assert one_value(connections, "SELECT count(*) FROM job_statuses") == 4


def test_with_a_job_its_attempts_and_dependencies_go(connections: Connections) -> None:
    parent = started(connections)
    child = Echo.dispatch(after=parent)
    execute(
        connections,
        "UPDATE job_statuses SET status = 'completed', finished_at = now() - interval '8 days' WHERE id = :id",
        id=parent.id,
    )

    assert prune(connections) == 1

    with pytest.raises(JobNotFound):
        parent.refresh()
    assert one_value(connections, "SELECT count(*) FROM job_attempts") == 0
    assert one_value(connections, "SELECT count(*) FROM job_dependencies") == 0
    assert child.refresh().status is JobStatus.DEFERRED


def test_ticks_stay_so_that_no_fire_time_is_fired_again(connections: Connections) -> None:
    ended(connections, "completed", 8)
    execute(
        connections,
        "INSERT INTO schedules (id, name, trigger, timezone) VALUES (gen_random_uuid(), 'nightly', 'cron', 'UTC')",
    )
    execute(
        connections,
        "INSERT INTO schedule_ticks (schedule_id, fire_at, scheduler)"
        " SELECT id, now() - interval '8 days', 'me' FROM schedules",
    )
    execute(connections, "UPDATE job_statuses SET schedule_id = (SELECT id FROM schedules)")

    assert prune(connections) == 1
    assert one_value(connections, "SELECT count(*) FROM schedule_ticks") == 1


def test_all_that_is_old_goes_however_much_it_is(connections: Connections) -> None:
    Echo.dispatch_many([{}] * 2100)
    set_all(
        connections,
        "status = 'completed', attempt = 1, started_at = now(), finished_at = now() - interval '8 days'",
    )

    assert prune(connections) == 2100


def test_two_that_prune_at_once_delete_each_job_once(connections: Connections) -> None:
    Echo.dispatch_many([{}] * 50)
    set_all(
        connections,
        "status = 'completed', attempt = 1, started_at = now(), finished_at = now() - interval '8 days'",
    )

    assert sum(at_once(lambda: prune(connections), 3)) == 50
