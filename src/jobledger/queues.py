"""Wake-ups: RQ jobs that carry a ledger id, nothing else. With `worker/`, the only place that imports rq.

What crosses Redis is the fixed callable `jobledger.worker.run_job` and one text, the id of a row. Losing, doubling or
flushing any of it costs latency, never a job. RQ's own retry, schedule, dependency and callback features are not used.
"""

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Final, cast
from uuid import UUID

import redis
from rq import Queue
from rq.job import Job, JobStatus

from jobledger.wake import Wake

RUN_JOB: Final = "jobledger.worker.run_job"
"""The one callable of all wake-ups. Its name never changes: what is in Redis outlives a deployment."""

RQ_GRACE_SECONDS: Final = 30
"""RQ's own timeout comes after ours, and its worker kills the process 60 s after that (rq 3.0 worker_classes.py:88)."""

RESULTS_KEY: Final = "rq:results:{}"  # rq 3.0 results.py:278
WORKERS_KEY: Final = "rq:workers"  # rq 3.0 worker_registration.py:18
WORKER_PREFIX: Final = "rq:worker:"
HEARTBEAT_FORMAT: Final = "%Y-%m-%dT%H:%M:%S.%fZ"  # rq 3.0 utils.py, utcformat
REPORT_LIMIT_BYTES: Final = 64 * 1024
RESULT_TTL_SECONDS: Final = 500
FAILURE_TTL_SECONDS: Final = 86400


def push(client: redis.Redis, wakes: Sequence[Wake]) -> None:
    """Put wake-ups into their queues, in order, in one round trip.

    Raises:
        redis.RedisError: Redis is away; some of the wake-ups may have been pushed.
    """
    if not wakes:
        return
    with client.pipeline(transaction=False) as pipeline:
        for name, group in groupby(wakes, key=lambda wake: wake.queue):
            queue = Queue(name, connection=client)
            pipeline.sadd(Queue.redis_queues_keys, queue.key)
            for wake in group:
                _push_one(queue, wake, pipeline)
        pipeline.execute()


def _push_one(queue: Queue, wake: Wake, pipeline: "redis.client.Pipeline") -> None:
    job = Job.create(
        RUN_JOB,
        args=(str(wake.id),),
        connection=queue.connection,
        id=str(wake.id),
        origin=queue.name,
        status=JobStatus.QUEUED,
        description=f"{wake.job_type}: {wake.title}" if wake.title else wake.job_type,
        timeout=math.ceil(wake.timeout_seconds) + RQ_GRACE_SECONDS,
        result_ttl=RESULT_TTL_SECONDS,
        failure_ttl=FAILURE_TTL_SECONDS,
    )
    job.enqueued_at = datetime.now(UTC)
    if wake.push_count > 1:
        # An earlier attempt left a hash that expires, with its result, and an entry among RQ's ended jobs.
        pipeline.delete(job.key)
        queue.finished_job_registry.remove(job, pipeline=pipeline)
        queue.failed_job_registry.remove(job, pipeline=pipeline)
    job.save(pipeline=pipeline)
    queue.push_job_id(job.id, pipeline=pipeline)


def waiting(client: redis.Redis, queue: str) -> list[str]:
    """The ids in a queue's Redis list, first to be taken first.

    Not those in RQ's intermediate list: a worker that is alive claims such a job within moments, and one that died
    leaves it there for many minutes.

    Raises:
        redis.RedisError: Redis is away.
    """
    listed = cast(list[bytes], client.lrange(Queue(queue, connection=client).key, 0, -1))
    # Anybody may have put anything there: what is no text is no id of ours.
    return [one.decode("utf-8", "replace") for one in listed]


def head(client: redis.Redis, queue: str) -> UUID | None:
    """The id that a worker would take next from a queue; None if it is empty, or headed by a stranger.

    Raises:
        redis.RedisError: Redis is away.
    """
    first: bytes | None = client.lindex(Queue(queue, connection=client).key, 0)  # type: ignore[assignment]
    try:
        return UUID(first.decode()) if first is not None else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What an RQ worker says of itself.

    Attributes:
        heartbeat_at: its last sign of life, by its host's clock; idle, it gives one every few minutes. None if what
            Redis holds is no time.
    """

    name: str
    host: str
    pid: int | None
    heartbeat_at: datetime | None


def workers(client: redis.Redis) -> list[WorkerRecord]:
    """The RQ workers that are registered and have not said that they end.

    Reads the hashes as they are: RQ's own `Worker.all` cleans its registries up, and a look must not change anything.

    Raises:
        redis.RedisError: Redis is away.
    """
    keys = sorted(cast(set[bytes], client.smembers(WORKERS_KEY)))
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hmget(key, "hostname", "pid", "last_heartbeat", "death")
        answers = pipeline.execute()
    return [
        WorkerRecord(_text(key).removeprefix(WORKER_PREFIX), _text(host), _number(pid), _moment(heartbeat))
        for key, (host, pid, heartbeat, death) in zip(keys, answers, strict=True)
        if host is not None and death is None
    ]


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() else None


def _moment(value: bytes | None) -> datetime | None:
    try:
        return datetime.strptime(_text(value), HEARTBEAT_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Death:
    """What RQ says of a job that it calls failed.

    Attributes:
        worker: name of the RQ worker that said so last.
        process_died: its work-horse died, rather than that something was raised in it.
        report: RQ's words, the last line.
    """

    worker: str
    process_died: bool
    report: str


def reported_deaths(client: redis.Redis, job_ids: Iterable[UUID]) -> dict[UUID, Death]:
    """Of these jobs, those that RQ calls failed.

    Reads the hash and the newest entry of the results' stream as they are: nothing is unpickled, and none of RQ's
    registries is asked, because asking them changes them.

    Raises:
        redis.RedisError: Redis is away.
    """
    ids = list(job_ids)
    with client.pipeline(transaction=False) as pipeline:
        for job_id in ids:
            pipeline.hget(Job.key_for(str(job_id)), "status")
            pipeline.xrevrange(RESULTS_KEY.format(job_id), count=1)
        answers = pipeline.execute()
    deaths: dict[UUID, Death] = {}
    for job_id, status, entries in zip(ids, answers[0::2], answers[1::2], strict=True):
        if status == b"failed" and entries:
            deaths[job_id] = _death(entries[0][1])
    return deaths


def _death(entry: Mapping[bytes, bytes]) -> Death:
    # rq 3.0 results.py:308 packs the text so; the length is bounded because Redis is not trusted.
    try:
        packed = base64.b64decode(entry.get(b"exc_string", b""))
        text = zlib.decompressobj().decompress(packed, REPORT_LIMIT_BYTES).decode("utf-8", "replace").strip()
    except (ValueError, zlib.error):
        text = ""
    return Death(
        worker=entry.get(b"worker_name", b"").decode("utf-8", "replace"),
        process_died=text.startswith("Work-horse terminated unexpectedly"),
        report=text.split("\n")[-1][:1000],
    )
