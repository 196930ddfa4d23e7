"""Putting wake-ups into Redis's lists, and reading them there."""

import math
import pickle
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, cast
from uuid import UUID

import redis

from jobledger.domain.records import Wake
from jobledger.queues import keys

RQ_GRACE_SECONDS: Final = 30
"""RQ's own timeout comes after ours, and its worker kills the process 60 s after that (rq 3.0 worker_classes.py:88)."""


def push(client: redis.Redis, wakes: Sequence[Wake]) -> None:
    """Put wake-ups into their queues, in order, in one round trip; those that go to the front are there in order, too.

    Raises:
        redis.RedisError: Redis is away; some of the wake-ups may have been pushed.
    """
    if not wakes:
        return
    with client.pipeline(transaction=False) as pipeline:
        for name, group in groupby(wakes, key=lambda wake: wake.queue):
            pipeline.sadd(keys.QUEUES, keys.list_of(name))
            together = list(group)
            for wake in (one for one in together if not one.at_front):
                _push_one(wake, pipeline)
            for wake in (one for one in reversed(together) if one.at_front):
                _push_one(wake, pipeline)
        pipeline.execute()


def _push_one(wake: Wake, pipeline: "redis.client.Pipeline") -> None:
    job_id, key = str(wake.id), keys.hash_of(wake.id)
    if wake.push_count > 1:
        # An earlier attempt left a hash that expires, with its result, and an entry among RQ's ended jobs; a worker
        # that died left one among those that are about to begin, which RQ would call failed one day.
        pipeline.delete(key)
        pipeline.zrem(keys.finished_of(wake.queue), job_id)
        pipeline.zrem(keys.failed_of(wake.queue), job_id)
        pipeline.lrem(keys.intermediate_of(wake.queue), 0, job_id)
    pipeline.hset(key, mapping=rq_job(wake, datetime.now(UTC)))
    (pipeline.lpush if wake.at_front else pipeline.rpush)(keys.list_of(wake.queue), job_id)


def rq_job(wake: Wake, moment: datetime) -> dict[Any, Any]:
    """The hash of an RQ job, as RQ's own `Job.create(…).to_dict()` makes it (rq 3.0 job.py); a test compares.

    RQ is not asked, so that a process that dispatches need not load it.
    """
    call: tuple[object, ...] = (keys.RUN_JOB, None, (str(wake.id),), {})
    return {
        **_EMPTY,
        "created_at": moment.strftime(keys.MOMENT_FORMAT),
        "enqueued_at": moment.strftime(keys.MOMENT_FORMAT),
        "data": zlib.compress(pickle.dumps(call, protocol=pickle.HIGHEST_PROTOCOL)),
        "origin": wake.queue,
        "description": f"{wake.job_type}: {wake.title}" if wake.title else wake.job_type,
        "timeout": math.ceil(wake.timeout_seconds) + RQ_GRACE_SECONDS,
        "result_ttl": keys.RESULT_TTL_SECONDS,
        "failure_ttl": keys.FAILURE_TTL_SECONDS,
        "status": "queued",
    }


_EMPTY: Final = dict.fromkeys(
    (
        "success_callback_name", "failure_callback_name", "stopped_callback_name", "started_at", "ended_at",
        "last_heartbeat", "worker_name", "group_id",
    ),
    "",
)  # fmt: skip


def waiting(client: redis.Redis, queue: str) -> list[str]:
    """The ids in a queue's Redis list, first to be taken first.

    Not those in RQ's intermediate list: a worker that is alive claims such a job within moments, and one that died
    leaves it there for many minutes.

    Raises:
        redis.RedisError: Redis is away.
    """
    listed = cast(list[bytes], client.lrange(keys.list_of(queue), 0, -1))
    # Anybody may have put anything there: what is no text is no id of ours.
    return [one.decode("utf-8", "replace") for one in listed]


def length(client: redis.Redis, queue: str) -> int:
    """How many ids are in a queue's Redis list.

    Raises:
        redis.RedisError: Redis is away.
    """
    return client.llen(keys.list_of(queue))


def head(client: redis.Redis, queue: str) -> UUID | None:
    """The id that a worker would take next from a queue; None if it is empty, or headed by a stranger.

    Raises:
        redis.RedisError: Redis is away.
    """
    first: bytes | None = client.lindex(keys.list_of(queue), 0)  # type: ignore[assignment]
    try:
        return UUID(first.decode()) if first is not None else None
    except ValueError:
        return None


def names(client: redis.Redis) -> list[str]:
    """The queues that Redis knows, also those that nobody pushes to any more.

    Raises:
        redis.RedisError: Redis is away.
    """
    found = cast(set[bytes], client.smembers(keys.QUEUES))
    return sorted(one.decode("utf-8", "replace").removeprefix(keys.QUEUE_PREFIX) for one in found)
