"""Repair when Redis was emptied, when wake-ups fail, when lists are full, and when they hold what they should not."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import redis
from rq import Queue, Worker
from rq.job import Job
from rq.job import JobStatus as RQStatus
from rq.results import Result
from sqlalchemy.orm import Session

from harness import eventually, execute, one_value, row_of
from jobledger import BaseJob, Connections, Failure, JobHandle, JobStatus, Reason, Settings, configure, queues
from jobledger.domain.records import Runner, Wake
from jobledger.ledger import moves, wakeups
from jobledger.lifecycle.children import propagate_due
from jobledger.maintenance.clean import clean
from jobledger.maintenance.prune import prune
from jobledger.maintenance.reconcile import MAX_LOST_WAKES, reconcile
from jobledger.maintenance.redis_restarts import find_late_workers, notice_redis_restart
from jobledger.maintenance.relay import relay, relay_unpushed
from jobledger.maintenance.stuck_children import release_stuck_children
from jobledger.queues.server import EPOCH_KEY
from jobledger.worker import run_job
from sample_jobs import Echo

pytestmark = pytest.mark.one_database  # each empties it first

LIST = "rq:queue:default"
TAKEN = "rq:queue:default:intermediate"
BEGUN = "rq:wip:default"


@pytest.fixture(autouse=True)
def _empty(connections: Connections) -> None:
    for table in ("job_statuses", "job_propagations", "sweeps", "lost_wakes", "redis_epoch"):
        execute(connections, f"DELETE FROM {table}")


@pytest.fixture
def known(connections: Connections) -> None:
    """The ledger knows the Redis that is there."""
    notice_redis_restart(connections)


@pytest.fixture
def settled(connections: Connections) -> None:
    """Somebody has been comparing for long."""
    execute(connections, "INSERT INTO sweeps (name, swept_by, resumed_at) VALUES ('reconcile', 'me', 'epoch')")


def listed(connections: Connections, queue: str = "default") -> list[str]:
    return queues.waiting(connections.redis, queue)


def ids(*handles: JobHandle) -> list[str]:
    return [str(one.id) for one in handles]


def sweep(connections: Connections) -> int:
    """As the scheduler does it, at a time when all has been well for long."""
    return reconcile(connections, settled_seconds=0.0)


# -- another Redis


@pytest.mark.usefixtures("known")
def test_an_emptied_redis_is_noticed_at_once_and_all_is_pushed_again(connections: Connections) -> None:
    handles = Echo.dispatch_many([{}] * 300)
    other = Echo.dispatch(queue="low")
    connections.redis.flushall()

    assert notice_redis_restart(connections) == 301
    assert relay_unpushed(connections) == 301

    assert listed(connections) == ids(*handles)
    assert listed(connections, "low") == ids(other)
    assert notice_redis_restart(connections) == 0


@pytest.mark.usefixtures("known")
def test_what_an_emptied_redis_has_lost_is_nobody_s_fault(connections: Connections) -> None:
    Echo.dispatch_many([{}] * 3)
    connections.redis.flushall()

    assert notice_redis_restart(connections) == 3
    assert one_value(connections, "SELECT count(*) FROM lost_wakes") == 0


@pytest.mark.usefixtures("known")
def test_only_what_is_missing_is_pushed_again(connections: Connections) -> None:
    kept, lost, held = Echo.dispatch(), Echo.dispatch(), Echo.dispatch()
    execute(connections, "UPDATE job_statuses SET held_by = 'pause:default' WHERE id = :id", id=held.id)
    connections.redis.lrem(LIST, 0, str(lost.id))
    connections.redis.lrem(LIST, 0, str(held.id))
    connections.redis.delete(EPOCH_KEY)  # as after a restart from an old append-only file

    assert notice_redis_restart(connections) == 1
    relay_unpushed(connections)

    assert listed(connections) == ids(kept, lost)
    assert row_of(connections, kept).push_count == 1


@pytest.mark.usefixtures("known")
def test_a_redis_that_stays_is_left_alone(connections: Connections) -> None:
    Echo.dispatch()
    connections.redis.delete(LIST)

    assert notice_redis_restart(connections) == 0


def test_the_run_of_the_server_is_part_of_its_epoch(connections: Connections) -> None:
    mark = connections.redis.get(EPOCH_KEY)
    epoch = queues.read_epoch(connections.redis)

    assert mark is None
    assert epoch.split() == [connections.redis.get(EPOCH_KEY).decode(), connections.redis.info("server")["run_id"]]
    assert queues.read_epoch(connections.redis) == epoch


def test_without_the_permission_to_ask_for_it_the_mark_is_all(connections: Connections) -> None:
    connections.redis.execute_command("ACL", "SETUSER", "shy", "on", ">secret", "~*", "+@all", "-info")
    try:
        address = connections.redis.connection_pool.connection_kwargs
        with redis.Redis(address["host"], address["port"], username="shy", password="secret") as shy:
            epoch = queues.read_epoch(shy)
            assert epoch == shy.get(EPOCH_KEY).decode()
    finally:
        connections.redis.execute_command("ACL", "DELUSER", "shy")


def test_a_redis_without_room_keeps_its_epoch(connections: Connections) -> None:
    epoch = queues.read_epoch(connections.redis)
    connections.redis.config_set("maxmemory", 1)
    try:
        assert queues.read_epoch(connections.redis) == epoch
        connections.redis.delete(EPOCH_KEY)
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            queues.read_epoch(connections.redis)
    finally:
        connections.redis.config_set("maxmemory", 0)


@pytest.mark.usefixtures("known")
def test_an_epoch_that_somebody_else_has_noted_stands(connections: Connections) -> None:
    with connections.transaction() as connection:
        seen = wakeups.known_redis(connection)
        assert seen is not None
        assert wakeups.note_redis(connection, seen.epoch, "theirs")
        assert not wakeups.note_redis(connection, seen.epoch, "mine")
        assert wakeups.known_redis(connection) is not None
        assert wakeups.known_redis(connection).epoch == "theirs"  # type: ignore[union-attr]


def test_a_redis_that_is_away_is_not_judged(connections: Connections, settings: Settings) -> None:
    away = Connections(settings.model_copy(update={"redis_url": type(settings.redis_url)("redis://127.0.0.1:1")}))  # type: ignore[call-arg, misc]
    Echo.dispatch()

    with pytest.raises(redis.RedisError):
        notice_redis_restart(away)
    away.close()
    assert one_value(connections, "SELECT count(*) FROM redis_epoch") == 0


@pytest.mark.usefixtures("known")
def test_living_workers_are_found_again_after_a_flush(connections: Connections) -> None:
    client = connections.redis
    busy, idle, dead = (Worker(["default"], name=name, connection=client) for name in ("busy", "idle", "dead"))
    client.flushall()
    busy.register_birth()
    idle.heartbeat()
    dead.register_birth()
    client.delete("rq:workers", "rq:workers:default")
    client.hset("rq:worker:dead", "death", "2026-01-01T00:00:00.000000Z")
    client.sadd("rq:worker:busy:executions", "an entry")  # no hash
    notice_redis_restart(connections)

    assert find_late_workers(connections) == 2

    assert client.smembers("rq:workers") == {b"rq:worker:busy", b"rq:worker:idle"}
    assert client.smembers("rq:workers:default") == {b"rq:worker:busy"}
    assert {(one.name, one.queues) for one in queues.workers(client)} == {("busy", ("default",)), ("idle", ())}
    assert find_late_workers(connections) == 0


@pytest.mark.usefixtures("known")
def test_workers_are_not_looked_for_for_ever(connections: Connections) -> None:
    Worker(["default"], name="busy", connection=connections.redis).heartbeat()
    execute(connections, "UPDATE redis_epoch SET since = now() - interval '11 minutes'")

    assert find_late_workers(connections) == 0


def test_ten_thousand_jobs_are_pushed_again_in_few_passes(connections: Connections) -> None:
    """Above one process's share of a second: pass follows pass without a pause."""
    for _ in range(10):
        Echo.dispatch_many([{}] * 1000)
    notice_redis_restart(connections)
    connections.maintenance_redis.flushall()
    began = time.monotonic()

    assert notice_redis_restart(connections) == 10_000
    assert relay(connections) == 10_000
    assert time.monotonic() - began < 30
    assert queues.length(connections.redis, "default") == 10_000


def test_the_rate_of_the_relay_is_a_setting(settings: Settings) -> None:
    slow = configure(settings.model_copy(update={"relay_rate": 100, "relay_seconds": 0.5}))
    handles = Echo.dispatch_many([{}] * 120)
    slow.redis.flushall()
    execute(slow, "UPDATE job_statuses SET pushed_at = NULL")

    assert [relay(slow) for _ in range(4)] == [50, 50, 20, 0]
    assert listed(slow) == ids(*handles)


def test_a_relay_that_is_to_stop_ends_after_its_pass(settings: Settings) -> None:
    hurried = configure(settings.model_copy(update={"relay_seconds": 0.1, "relay_rate": 10_000_000}))
    for _ in range(12):
        Echo.dispatch_many([{}] * 1000)
    hurried.redis.flushall()
    execute(hurried, "UPDATE job_statuses SET pushed_at = NULL")
    stopping = threading.Event()
    stopping.set()

    pushed = relay(hurried, stopping=stopping)

    assert 0 < pushed < 12_000
    assert queues.length(hurried.redis, "default") == pushed


# -- wake-ups that fail


def let_rq_say(connections: Connections, handle: JobHandle, words: str) -> None:
    """What RQ's worker writes when a work-horse has taken a wake-up and ended badly."""
    connections.redis.lrem(LIST, 0, str(handle.id))
    job = Job.fetch(str(handle.id), connection=connections.redis)
    job.set_status(RQStatus.FAILED)
    Result.create_failure(job, ttl=60, exc_string=words, worker_name="w")


def pushed_ago(connections: Connections, seconds: float) -> None:
    execute(connections, "UPDATE job_statuses SET pushed_at = now() - make_interval(secs => :s)", s=seconds)


def losses(connections: Connections) -> int | None:
    value: int | None = one_value(connections, "SELECT losses FROM lost_wakes")
    return value


DEATH = "Work-horse terminated unexpectedly; waitpid returned 9 (signal 9); "


@pytest.mark.usefixtures("settled")
def test_a_work_horse_that_died_before_its_claim_costs_seconds(connections: Connections) -> None:
    handle = Echo.dispatch()
    let_rq_say(connections, handle, DEATH)
    assert sweep(connections) == 0, "RQ may still be about to say so"
    pushed_ago(connections, 2)

    assert sweep(connections) == 1
    relay_unpushed(connections)

    assert listed(connections) == ids(handle)
    assert losses(connections) == 1
    assert connections.redis.hget(f"rq:job:{handle.id}", "status") == b"queued"


@pytest.mark.usefixtures("settled")
def test_a_wake_up_that_fails_again_waits_longer_and_longer(connections: Connections) -> None:
    handle = Echo.dispatch()
    execute(connections, "INSERT INTO lost_wakes (job_id, attempt, losses) VALUES (:id, 0, 1)", id=handle.id)
    for lost in range(2, MAX_LOST_WAKES):
        let_rq_say(connections, handle, DEATH)
        grace = 15 * 2 ** (lost - 1)
        pushed_ago(connections, grace - 2)
        assert sweep(connections) == 0
        pushed_ago(connections, grace + 2)
        assert sweep(connections) == 1
        assert losses(connections) == lost
        assert relay_unpushed(connections) == 1
    assert handle.refresh().status is JobStatus.QUEUED


class NeverStarted(BaseJob):
    """Has an `on_failed`, which says what it was told."""

    told: list[Failure] = []

    def _perform(self) -> None: ...

    def on_failed(self, error: Failure) -> None:
        self.told.append(error)


@pytest.mark.usefixtures("settled")
def test_the_fifth_loss_is_the_end_with_its_callback_and_its_children(connections: Connections) -> None:
    handle = NeverStarted.dispatch()
    child = Echo.dispatch(after=handle)
    execute(connections, "INSERT INTO lost_wakes (job_id, attempt, losses) VALUES (:id, 0, 4)", id=handle.id)
    connections.redis.delete(LIST)
    pushed_ago(connections, 15 * 16 + 1)

    assert sweep(connections) == 1

    assert (handle.refresh().status, handle.reason) == (JobStatus.FAILED, Reason.UNDISPATCHABLE)
    assert handle.attempts == []
    assert child.refresh().status is JobStatus.CANCELED
    assert losses(connections) == MAX_LOST_WAKES
    (callback,) = listed(connections)
    run_job(callback)
    assert [(one.reason, one.attempt) for one in NeverStarted.told] == [("undispatchable", 0)]
    assert "wake-ups were lost" in NeverStarted.told[0].message


@pytest.mark.usefixtures("settled")
def test_what_somebody_holds_keeps_nobody_from_giving_up_the_others(connections: Connections) -> None:
    held, free = Echo.dispatch(), Echo.dispatch()
    child = Echo.dispatch(after=held)
    execute(connections, "INSERT INTO lost_wakes SELECT id, 0, 4 FROM job_statuses WHERE status = 'queued'")
    connections.redis.delete(LIST)
    pushed_ago(connections, 15 * 16 + 1)
    with Session(connections.engine) as session:
        Echo.dispatch(after=held, session=session)

        assert sweep(connections) == 1
        assert (held.refresh().status, free.refresh().status) == (JobStatus.QUEUED, JobStatus.FAILED)
        session.rollback()

    assert sweep(connections) == 1
    assert (held.refresh().reason, child.refresh().status) == (Reason.UNDISPATCHABLE, JobStatus.CANCELED)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("loses", ["flushall", "delete"])
def test_a_job_that_somebody_holds_keeps_nobody_from_waking_the_others(connections: Connections, loses: str) -> None:
    held, free = Echo.dispatch(), Echo.dispatch()
    if loses == "flushall":
        connections.redis.flushall()
    else:
        connections.redis.delete(LIST)
    pushed_ago(connections, 16)
    with Session(connections.engine) as session:
        Echo.dispatch(after=held, session=session)

        assert notice_redis_restart(connections) + reconcile(connections) == 1
        assert relay_unpushed(connections) == 1
        assert listed(connections) == ids(free)
        session.rollback()

    assert reconcile(connections) == 1


@pytest.mark.usefixtures("settled")
def test_a_claim_starts_the_count_anew(connections: Connections) -> None:
    handle = Echo.dispatch()
    execute(connections, "INSERT INTO lost_wakes (job_id, attempt, losses) VALUES (:id, 0, 4)", id=handle.id)
    execute(connections, "UPDATE job_statuses SET attempt = 1, started_at = now()")
    connections.redis.delete(LIST)
    pushed_ago(connections, 16)

    assert sweep(connections) == 1
    assert losses(connections) == 1


@pytest.mark.usefixtures("settled")
def test_a_person_s_retry_starts_the_count_anew(connections: Connections) -> None:
    handle = Echo.dispatch()
    execute(connections, "INSERT INTO lost_wakes (job_id, attempt, losses) VALUES (:id, 0, 5)", id=handle.id)
    handle.cancel()

    assert handle.retry().is_done
    assert losses(connections) is None


@pytest.mark.usefixtures("settled")
def test_a_wake_up_that_could_not_reach_postgres_is_not_to_blame(connections: Connections) -> None:
    handle = Echo.dispatch()
    let_rq_say(connections, handle, "Traceback\n  …\njobledger.errors.LedgerUnavailable: Postgres is away: refused")
    pushed_ago(connections, 2)

    assert sweep(connections) == 1
    assert row_of(connections, handle).pushed_at is None
    assert losses(connections) is None


def test_losses_do_not_count_when_nobody_has_compared_for_a_while(connections: Connections) -> None:
    Echo.dispatch()
    connections.redis.delete(LIST)
    pushed_ago(connections, 16)

    assert reconcile(connections) == 1
    assert losses(connections) is None


@pytest.mark.usefixtures("settled")
def test_losses_do_not_count_just_after_a_start_of_postgres(connections: Connections) -> None:
    Echo.dispatch()
    connections.redis.delete(LIST)
    pushed_ago(connections, 16)

    assert reconcile(connections, settled_seconds=86400.0) == 1
    assert losses(connections) is None


@pytest.mark.usefixtures("settled")
def test_two_that_compare_at_once_count_a_loss_once(connections: Connections) -> None:
    Echo.dispatch()
    connections.redis.delete(LIST)
    pushed_ago(connections, 16)

    assert [sweep(connections), sweep(connections)] == [1, 0]
    assert losses(connections) == 1


def test_losses_of_long_ago_are_forgotten(connections: Connections) -> None:
    execute(
        connections,
        "INSERT INTO lost_wakes (job_id, attempt, losses, lost_at) VALUES"
        " (gen_random_uuid(), 0, 1, now() - interval '8 days'), (gen_random_uuid(), 0, 2, now())",
    )

    assert prune(connections) == 1
    assert losses(connections) == 2


# -- a window of wake-ups


@pytest.fixture
def narrow(connections: Connections, settings: Settings) -> Iterator[Connections]:
    """The process's default: the same servers, with room for a hundred wake-ups of a queue."""
    made = configure(settings.model_copy(update={"queue_window": 100}))
    yield made
    made.close()


def work(connections: Connections, number: int) -> list[str]:
    """Take and run as many jobs as a worker would; what it took, in order."""
    taken = []
    for _ in range(number):
        first = connections.redis.lpop(LIST)
        if first is None:
            break
        taken.append(first.decode())
        run_job(taken[-1])
    return taken


def test_a_thousand_jobs_pass_through_a_window_of_a_hundred_in_order(narrow: Connections) -> None:
    from_bulk = dispatch_into(narrow, 900)
    singly = [dispatch_into(narrow, 1)[0] for _ in range(100)]
    assert queues.length(narrow.redis, "default") == 100
    assert one_value(narrow, "SELECT count(*) FROM job_statuses WHERE pushed_at IS NULL AND push_count = 0") == 900

    order: list[str] = []
    while done := work(narrow, 40):
        order += done
        relay(narrow)
        assert queues.length(narrow.redis, "default") <= 100

    assert order == [str(one) for one in (*from_bulk, *singly)]
    assert one_value(narrow, "SELECT count(*) FROM job_statuses WHERE status = 'completed'") == 1000


def dispatch_into(connections: Connections, number: int) -> list[UUID]:
    handles = Echo.dispatch_many([{}] * number)
    return [one.id for one in handles]


def test_urgent_jobs_go_first_among_those_that_wait(narrow: Connections) -> None:
    handles = dispatch_into(narrow, 150)
    execute(narrow, "UPDATE job_statuses SET priority = 1 WHERE id = :id", id=handles[-1])

    taken = work(narrow, 100)
    relay(narrow)

    assert taken == [str(one) for one in handles[:100]]
    assert work(narrow, 2) == [str(handles[-1]), str(handles[100])]


def test_children_that_have_no_room_wait_too(narrow: Connections) -> None:
    parent = Echo.dispatch()
    Echo.set(after=parent).dispatch_many([{}] * 150)

    work(narrow, 1)

    assert queues.length(narrow.redis, "default") <= 100
    assert one_value(narrow, "SELECT count(*) FROM job_statuses WHERE status = 'queued' AND pushed_at IS NULL") >= 50
    done = len(work(narrow, 200))
    relay(narrow)
    assert done + len(work(narrow, 200)) == 150


def test_each_queue_has_a_window_of_its_own(narrow: Connections) -> None:
    for name in ("low", "high"):
        Echo.set(queue=name).dispatch_many([{}] * 200)
    narrow.redis.delete("rq:queue:low", "rq:queue:high")

    assert relay(narrow) == 200
    assert (queues.length(narrow.redis, "low"), queues.length(narrow.redis, "high")) == (100, 100)


# -- what lies about in Redis


def claimed(connections: Connections, handle: JobHandle) -> None:
    with connections.transaction() as connection:
        assert moves.claim(connection, handle.id, Runner("w", "h", 1, "1"), 30)


def ended_ago(connections: Connections, handle: JobHandle, seconds: float) -> None:
    execute(
        connections,
        "UPDATE job_statuses SET finished_at = now() - make_interval(secs => :seconds) WHERE id = :id",
        seconds=seconds,
        id=handle.id,
    )


def test_wake_ups_that_nobody_needs_are_removed(connections: Connections) -> None:
    canceled, held, running, waits = (Echo.dispatch() for _ in range(4))
    canceled.cancel()
    execute(connections, "UPDATE job_statuses SET held_by = 'pause:default' WHERE id = :id", id=held.id)
    claimed(connections, running)

    assert clean(connections) == {"listed, and not queued": 3}

    assert listed(connections) == ids(waits)
    exists = [connections.redis.exists(f"rq:job:{one.id}") for one in (canceled, held, running, waits)]
    assert exists == [0, 0, 1, 1], "what RQ keeps of a running job stays"
    assert clean(connections) == {}


def test_a_wake_up_that_is_listed_twice_is_listed_once(connections: Connections) -> None:
    first, second = Echo.dispatch(), Echo.dispatch()
    connections.redis.rpush(LIST, str(first.id), str(first.id))

    assert clean(connections) == {"listed twice": 1}
    assert listed(connections) == ids(first, second)


def orphan(client: redis.Redis, pushed_ago_seconds: float) -> str:
    """A wake-up of ours that has no row."""
    wake = Wake(uuid4(), "default", "Echo", None, 60)
    queues.push(client, [wake])
    at = datetime.now(UTC) - timedelta(seconds=pushed_ago_seconds)
    client.hset(f"rq:job:{wake.id}", "enqueued_at", at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    return str(wake.id)


def test_wake_ups_without_a_row_are_dropped_after_a_minute(
    connections: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    old, young = orphan(connections.redis, 70), orphan(connections.redis, 5)

    assert clean(connections) == {"listed, and without a row": 1}

    assert listed(connections) == [young]
    assert not connections.redis.exists(f"rq:job:{old}")
    assert old in caplog.text


def test_jobs_of_others_in_our_queues_stay(connections: Connections) -> None:
    theirs = Queue("default", connection=connections.redis).enqueue("os.getpid")
    at = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    connections.redis.hset(theirs.key, "enqueued_at", at)
    connections.redis.rpush(LIST, "no-uuid", str(uuid4()))

    assert clean(connections) == {}
    assert queues.length(connections.redis, "default") == 3


def test_a_part_of_a_long_list_is_seen_at_a_time_and_all_of_it_in_the_end(connections: Connections) -> None:
    handles = Echo.dispatch_many([{}] * 40)
    execute(connections, "UPDATE job_statuses SET status = 'canceled', reason = 'x', finished_at = now()")

    assert clean(connections, limit=10) == {"listed, and not queued": 10}
    for _ in range(10):
        clean(connections, limit=10)
    assert listed(connections) == []
    assert len(handles) == 40


def test_rq_does_not_run_a_finished_job_again(connections: Connections) -> None:
    """Left where its worker died, RQ's maintenance would call the job failed some day."""
    done, taken = Echo.dispatch(), Echo.dispatch()
    run_job(str(done.id))
    connections.redis.delete(LIST)
    connections.redis.rpush(TAKEN, str(done.id), str(taken.id), "no-uuid")

    assert clean(connections) == {"taken, and ended": 1}
    assert connections.redis.lrange(TAKEN, 0, -1) == [str(taken.id).encode(), b"no-uuid"]


def test_a_wake_up_that_is_pushed_again_is_in_nobody_s_hand(connections: Connections) -> None:
    handle = Echo.dispatch()
    connections.redis.rename(LIST, TAKEN)
    execute(connections, "UPDATE job_statuses SET pushed_at = NULL")

    relay(connections)

    assert listed(connections) == ids(handle)
    assert not connections.redis.exists(TAKEN)


def test_rq_forgets_that_it_began_what_ended_long_ago(connections: Connections) -> None:
    long_ago, lately, running = (Echo.dispatch() for _ in range(3))
    for one in (long_ago, lately):
        run_job(str(one.id))
    ended_ago(connections, long_ago, 61)
    claimed(connections, running)
    connections.redis.delete(LIST)
    for one in (long_ago, lately, running):
        connections.redis.zadd(BEGUN, {f"{one.id}:execution": time.time()})

    assert clean(connections) == {"begun, and ended long ago": 1}

    assert connections.redis.zcard(BEGUN) == 2
    assert 0 < connections.redis.ttl(f"rq:job:{long_ago.id}") <= 500


# -- jobs that wait for nobody


def test_a_job_whose_parents_have_all_ended_is_let_go(connections: Connections) -> None:
    parent = Echo.dispatch()
    released, waiting = Echo.dispatch(after=parent), Echo.dispatch(after=Echo.dispatch())
    execute(
        connections,
        "UPDATE job_statuses SET status = 'completed', attempt = 1, started_at = now(), finished_at = now()"
        " WHERE id = :id",
        id=parent.id,
    )

    assert release_stuck_children(connections) == 1

    assert released.refresh().status is JobStatus.QUEUED
    assert waiting.refresh().status is JobStatus.DEFERRED
    assert release_stuck_children(connections) == 0


def test_a_child_that_somebody_holds_keeps_none_from_being_let_go(connections: Connections) -> None:
    failed, completed = Echo.dispatch(), Echo.dispatch()
    held, released = Echo.dispatch(after=failed), Echo.dispatch(after=completed)
    ended = "UPDATE job_statuses SET status = :status, reason = :reason, attempt = 1, started_at = now(),"
    ended += " finished_at = now() WHERE id = :id"
    execute(connections, ended, status="failed", reason="error", id=failed.id)
    execute(connections, ended, status="completed", reason=None, id=completed.id)
    with Session(connections.engine) as session:
        Echo.dispatch(after=held, session=session)

        assert release_stuck_children(connections) == 2
        assert (held.refresh().status, released.refresh().status) == (JobStatus.DEFERRED, JobStatus.QUEUED)
        assert release_stuck_children(connections) == 0, "it is known"
        session.rollback()

    eventually(lambda: propagate_due(connections, 1.0), what="a scheduler tells the child")
    assert held.refresh().status is JobStatus.CANCELED


def test_a_job_whose_parent_failed_is_canceled_with_all_that_waits_for_it(connections: Connections) -> None:
    parent = Echo.dispatch()
    child = Echo.dispatch(after=parent)
    grandchild = Echo.dispatch(after=child)
    execute(
        connections,
        "UPDATE job_statuses SET status = 'failed', reason = 'error', finished_at = now() WHERE id = :id",
        id=parent.id,
    )

    assert release_stuck_children(connections) == 1
    assert (child.refresh().status, grandchild.refresh().status) == (JobStatus.CANCELED, JobStatus.CANCELED)
    assert str(parent.id) in (child.reason or "")
