"""RQ's records of its workers: reading them, and mending the set by which workers are found."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast
from uuid import UUID

import redis

from jobledger.queues import keys

MOST_KEYS: Final = 10_000
"""Workers that are looked for, at most."""
SCAN_COUNT: Final = 1000
MOST_SCANS: Final = 1000


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """RQ's record of a worker.

    Attributes:
        host: empty if Redis was emptied since the worker started, as it writes its host at the start only.
        heartbeat_at: its last heartbeat, by its host's clock; an idle worker has one every few minutes. None if the
            value in Redis is no time.
        queues: those that it takes from; empty if unknown, as for the host.
    """

    name: str
    host: str
    pid: int | None
    heartbeat_at: datetime | None
    queues: tuple[str, ...] = ()


# RQ forgets the job of a work-horse that ended with exit code 0 only when it takes the next one (rq 3.0
# worker_classes.py:129), and a stop-job for it would kill the worker's own process group (_horse_pid is 0 by then).
_FORGET: Final = """
if redis.call('HGET', KEYS[1], 'current_job') == ARGV[1] then return redis.call('HDEL', KEYS[1], 'current_job') end
return 0
"""


def forget_current_job(client: redis.Redis, worker: str, job_id: UUID) -> None:
    """Have RQ forget that a worker runs a job whose process is gone.

    Raises:
        redis.RedisError: Redis is away.
    """
    client.eval(_FORGET, 1, f"{keys.WORKER_PREFIX}{worker}", str(job_id))


def workers(client: redis.Redis) -> list[WorkerRecord]:
    """The RQ workers that are registered and have not reported their end.

    Reads the hashes: RQ's own `Worker.all` cleans its registries up, and reading must not change anything.

    Raises:
        redis.RedisError: Redis is away.
    """
    found = sorted(cast(set[bytes], client.smembers(keys.WORKERS)))
    with client.pipeline(transaction=False) as pipeline:
        for key in found:
            pipeline.hmget(key, "hostname", "pid", "last_heartbeat", "death", "queues")
        answers = pipeline.execute()
    return [
        WorkerRecord(
            _text(key).removeprefix(keys.WORKER_PREFIX),
            _text(host),
            _number(pid),
            _moment(heartbeat),
            tuple(filter(None, _text(queues).split(","))),
        )
        for key, (host, pid, heartbeat, death, queues) in zip(found, answers, strict=True)
        if (host is not None or heartbeat is not None) and death is None
    ]


def put_back_workers(client: redis.Redis) -> int:
    """Put living workers back into the set of all workers: RQ does so at their start only.

    A worker lives if its hash, which expires without heartbeats, exists and reports no death. The host, process and
    queues of an idle worker, which it wrote at its start, cannot be restored; a busy worker writes them again.

    Returns:
        The number of workers put back.

    Raises:
        redis.RedisError: Redis is away.
    """
    found: set[bytes] = set()
    cursor = 0
    for _ in range(MOST_SCANS):
        cursor, some = cast(
            tuple[int, list[bytes]],
            client.scan(cursor, match=f"{keys.WORKER_PREFIX}*", count=SCAN_COUNT, _type="hash"),
        )
        found.update(some)
        if cursor == 0 or len(found) >= MOST_KEYS:
            break
    missing = sorted(found - cast(set[bytes], client.smembers(keys.WORKERS)))
    with client.pipeline(transaction=False) as pipeline:
        for key in missing:
            pipeline.hmget(key, "last_heartbeat", "death", "queues")
        answers = pipeline.execute()
    put_back = 0
    with client.pipeline(transaction=False) as pipeline:
        for key, (heartbeat, death, queues) in zip(missing, answers, strict=True):
            if heartbeat is None or death is not None:
                continue
            put_back += 1
            pipeline.sadd(keys.WORKERS, key)
            for queue in filter(None, _text(queues).split(",")):
                pipeline.sadd(f"{keys.WORKERS}:{queue}", key)
        pipeline.execute()
    return put_back


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() else None


def _moment(value: bytes | None) -> datetime | None:
    try:
        return datetime.strptime(_text(value), keys.MOMENT_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None
