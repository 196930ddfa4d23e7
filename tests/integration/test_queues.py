"""Wake-ups in Redis: what is pushed, and what is read of what RQ, or anybody, has put there."""

import base64
import contextlib
import os
import pickle
import socket
import tracemalloc
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from rq import Queue, Worker
from rq.job import Job
from rq.job import JobStatus as RqStatus

from harness import Stack, eventually
from jobledger import Connections
from jobledger.connections.redis import make_redis
from jobledger.domain.records import Wake
from jobledger.queues import head, push, reported_deaths, waiting, wakes, workers
from sample_jobs import Echo, Failing, Fails

pytestmark = pytest.mark.one_database  # few look at it


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with contextlib.closing(make_redis(redis_url)) as client:
        yield client


def wake(queue: str = "low", **values: Any) -> Wake:
    return Wake(**{"id": uuid4(), "queue": queue, "job_type": "Import", "title": None, "timeout_seconds": 60, **values})


def rq_job(client: redis.Redis, pushed: Wake) -> Job:
    return Job.fetch(str(pushed.id), connection=client)


# -- push


def test_a_wake_up_is_an_rq_job_that_carries_an_id_and_nothing_else(client: redis.Redis) -> None:
    pushed = wake(timeout_seconds=1.5)

    push(client, [pushed])

    job = rq_job(client, pushed)
    assert job.id == str(pushed.id)
    assert job.func_name == "jobledger.worker.run_job"
    assert (job.args, job.kwargs, job.meta) == ((str(pushed.id),), {}, {})
    assert (job.origin, job.get_status(), job.timeout) == ("low", "queued", 2 + 30)
    assert (job.result_ttl, job.failure_ttl) == (500, 86400)
    assert job.enqueued_at is not None
    assert client.ttl(job.key) == -1


@pytest.mark.parametrize("title", [None, "of flights"])
def test_a_wake_up_is_what_rq_itself_would_have_written(client: redis.Redis, title: str | None) -> None:
    pushed, moment = wake(title=title), datetime.now(UTC)
    theirs = Job.create(
        "jobledger.worker.run_job",
        args=(str(pushed.id),),
        connection=client,
        id=str(pushed.id),
        origin=pushed.queue,
        status=RqStatus.QUEUED,
        description=f"Import: {title}" if title else "Import",
        timeout=90,
        result_ttl=500,
        failure_ttl=86400,
    )
    theirs.created_at = theirs.enqueued_at = moment

    assert wakes.rq_job(pushed, moment) == theirs.to_dict()


def test_a_wake_up_asks_rq_for_none_of_its_own_features(client: redis.Redis) -> None:
    pushed = wake()

    push(client, [pushed])

    job = rq_job(client, pushed)
    assert (job.retries_left, job.dependency_ids) == (None, [])
    assert (job.success_callback, job.failure_callback, job.stopped_callback) == (None, None, None)


@pytest.mark.parametrize(("title", "description"), [(None, "Import"), ("of flights", "Import: of flights")])
def test_people_see_type_and_title_in_rqs_tools(client: redis.Redis, title: str | None, description: str) -> None:
    pushed = wake(title=title)

    push(client, [pushed])

    assert rq_job(client, pushed).description == description


def test_wake_ups_are_taken_in_the_order_of_their_push(client: redis.Redis) -> None:
    wakes = [wake("low"), wake("low"), wake("high"), wake("low"), wake("high")]

    push(client, wakes[:2])
    push(client, wakes[2:])

    assert Queue("low", connection=client).job_ids == [str(wakes[n].id) for n in (0, 1, 3)]
    assert Queue("high", connection=client).job_ids == [str(wakes[n].id) for n in (2, 4)]
    assert {queue.name for queue in Queue.all(connection=client)} == {"low", "high"}


def test_nothing_is_pushed_without_asking_redis() -> None:
    nobody = make_redis("redis://127.0.0.1:1")

    push(nobody, [])

    with pytest.raises(redis.ConnectionError):
        push(nobody, [wake()])


def test_a_wake_up_that_is_pushed_again_forgets_how_the_last_one_ended(client: redis.Redis) -> None:
    first = wake()
    push(client, [first])
    queue = Queue("low", connection=client)
    job = rq_job(client, first)
    client.delete(queue.key)
    queue.finished_job_registry.add(job, 500)
    queue.failed_job_registry.add(job, 500)
    client.hset(job.key, "status", "failed")
    client.expire(job.key, 500)

    push(client, [wake(id=first.id, push_count=2)])

    assert client.ttl(job.key) == -1
    assert rq_job(client, first).get_status() == "queued"
    assert queue.job_ids == [job.id]
    assert queue.finished_job_registry.get_job_ids(cleanup=False) == []
    assert queue.failed_job_registry.get_job_ids(cleanup=False) == []


# -- waiting and head


def test_what_waits_is_told_first_to_be_taken_first(client: redis.Redis) -> None:
    wakes = [wake(), wake(), wake("high")]
    push(client, wakes)

    assert waiting(client, "low") == [str(wakes[0].id), str(wakes[1].id)]
    assert head(client, "low") == wakes[0].id


def test_an_empty_queue_has_no_head(client: redis.Redis) -> None:
    assert waiting(client, "low") == []
    assert head(client, "low") is None


def test_what_a_worker_has_taken_waits_no_more(client: redis.Redis) -> None:
    wakes = [wake(), wake(), wake()]
    push(client, wakes)

    low = Queue("low", connection=client)
    Queue.lmove(client, low.key, timeout=None)  # a worker's first step

    assert waiting(client, "low") == [str(one.id) for one in wakes[1:]]
    assert head(client, "low") == wakes[1].id


@pytest.mark.parametrize("stranger", ["report-2013", b"\xff\xfe", ""])
def test_a_stranger_in_the_list_disturbs_nobody(client: redis.Redis, stranger: Any) -> None:
    ours = wake()
    client.rpush("rq:queue:low", stranger)
    push(client, [ours])

    assert head(client, "low") is None
    assert len(waiting(client, "low")) == 2
    assert waiting(client, "low")[1] == str(ours.id)


# -- reported deaths


def test_what_a_real_worker_says_of_deaths_is_understood(connections: Connections, system: Stack) -> None:
    well, retried = Echo.dispatch(), Fails.dispatch()
    raised, killed = Fails.dispatch(error="KeyError"), Failing.dispatch(how="kill")
    jobs = [well.id, retried.id, raised.id, killed.id, uuid4()]
    system.worker()

    deaths = eventually(
        lambda: found if len(found := reported_deaths(connections.redis, jobs)) == 2 else None, what="two deaths"
    )

    assert set(deaths) == {raised.id, killed.id}
    assert not deaths[raised.id].process_died
    assert deaths[raised.id].report == "KeyError: 'as asked'"
    assert deaths[killed.id].process_died
    assert "signal 9" in deaths[killed.id].report
    assert {one.worker for one in deaths.values()} == {raised.attempts[0].worker}
    assert raised.attempts[0].worker == killed.attempts[0].worker != "none"


def test_nothing_is_reported_of_a_job_that_waits_or_is_not_there(client: redis.Redis) -> None:
    queued = wake()
    push(client, [queued])

    assert reported_deaths(client, [queued.id, uuid4()]) == {}
    assert reported_deaths(client, []) == {}


def report(client: redis.Redis, exc_string: bytes, status: str = "failed") -> UUID:
    """A job that RQ calls failed, with these bytes as its report."""
    job_id = uuid4()
    client.hset(f"rq:job:{job_id}", "status", status)
    client.xadd(f"rq:results:{job_id}", {"exc_string": exc_string, "worker_name": "w"})
    return job_id


def packed(text: bytes) -> bytes:
    return base64.b64encode(zlib.compress(text))


def test_a_job_that_runs_again_after_its_death_is_not_dead(client: redis.Redis) -> None:
    job_id = report(client, packed(b"Work-horse terminated unexpectedly"), status="started")

    assert reported_deaths(client, [job_id]) == {}


def test_of_several_reports_the_newest_counts(client: redis.Redis) -> None:
    job_id = report(client, packed(b"Work-horse terminated unexpectedly; waitpid returned 9"))
    client.xadd(f"rq:results:{job_id}", {"exc_string": packed(b"Traceback\nValueError: no"), "worker_name": "v"})

    death = reported_deaths(client, [job_id])[job_id]

    assert (death.worker, death.process_died, death.report) == ("v", False, "ValueError: no")


@pytest.mark.parametrize(
    "exc_string",
    [b"", b"no base64!", base64.b64encode(b"not packed"), b"\xff\xfe", packed(b"")[:4]],
)
def test_a_report_that_is_no_report_is_a_death_without_words(client: redis.Redis, exc_string: bytes) -> None:
    job_id = report(client, exc_string)

    death = reported_deaths(client, [job_id])[job_id]

    assert (death.worker, death.process_died, death.report) == ("w", False, "")


@pytest.mark.parametrize(("exc_string", "words"), [(packed(b"cut off")[:12], "cut"), (packed(b"caf\xe9"), "caf\ufffd")])
def test_of_a_damaged_report_what_can_be_read_is_told(client: redis.Redis, exc_string: bytes, words: str) -> None:
    job_id = report(client, exc_string)

    assert reported_deaths(client, [job_id])[job_id].report.startswith(words)


def test_a_report_without_fields_is_a_death_without_words(client: redis.Redis) -> None:
    job_id = uuid4()
    client.hset(f"rq:job:{job_id}", "status", "failed")
    client.xadd(f"rq:results:{job_id}", {"other": "field"})

    death = reported_deaths(client, [job_id])[job_id]

    assert (death.worker, death.process_died, death.report) == ("", False, "")


def test_a_report_that_unpacks_to_gigabytes_is_not_unpacked(client: redis.Redis) -> None:
    bomb = zlib.compressobj()
    stream = b"".join(bomb.compress(b"x" * 1_000_000) for _ in range(100)) + bomb.flush()
    job_id = report(client, base64.b64encode(stream))

    tracemalloc.start()
    try:
        death = reported_deaths(client, [job_id])[job_id]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert death.report == "x" * 1000
    assert peak < 5_000_000


class Malice:
    """A pickle of this makes a directory when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_that_redis_holds_is_unpickled(client: redis.Redis, tmp_path: Path) -> None:
    done = tmp_path / "done"
    malice = pickle.dumps(Malice(done))
    victim = wake()
    push(client, [victim])
    for field in ("data", "meta", "exc_info"):
        client.hset(f"rq:job:{victim.id}", field, zlib.compress(malice))
    client.hset(f"rq:job:{victim.id}", "status", "failed")
    fields = {"exc_string": packed(malice), "return_value": base64.b64encode(malice), "worker_name": malice}
    client.xadd(f"rq:results:{victim.id}", fields)

    assert victim.id in reported_deaths(client, [victim.id])
    assert head(client, "low") == victim.id
    assert waiting(client, "low") == [str(victim.id)]
    push(client, [wake(id=victim.id, push_count=2)])

    assert not done.exists()
    pickle.loads(malice)
    assert done.exists()  # it would have worked


# -- what workers say of themselves


def test_a_registered_worker_is_read_and_nothing_is_changed(client: redis.Redis) -> None:
    started = datetime.now(UTC)
    worker = Worker(["default"], name="a:b", connection=client)
    worker.register_birth()
    client.sadd("rq:workers", "rq:worker:gone")  # RQ's own reader removes it

    (record,) = workers(client)

    assert (record.name, record.host, record.pid) == ("a:b", socket.gethostname(), os.getpid())
    assert record.heartbeat_at is not None
    assert abs((record.heartbeat_at - started).total_seconds()) < 60
    assert client.sismember("rq:workers", "rq:worker:gone")

    worker.register_death()
    client.sadd("rq:workers", "rq:worker:a:b")
    assert workers(client) == []


def test_a_record_of_a_worker_that_makes_no_sense_is_no_error(client: redis.Redis) -> None:
    client.sadd("rq:workers", "rq:worker:\ud800".encode("utf-8", "surrogatepass"))
    key = next(iter(client.smembers("rq:workers")))
    client.hset(key, mapping={"hostname": b"\xff", "pid": "many", "last_heartbeat": "yesterday"})

    (record,) = workers(client)

    assert (record.pid, record.heartbeat_at) == (None, None)
