"""Putting wake-ups into Redis's lists, and reading them there."""

import math
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, cast
from uuid import UUID

import redis

from jobledger.domain.records import Wake
from jobledger.queues import keys
from jobledger.queues.owner import FIELD

RQ_GRACE_SECONDS: Final = 30
"""RQ's own timeout comes after ours, and its worker kills the process 60 s after that (rq 3.0 worker_classes.py:88)."""


def push(client: redis.Redis, wakes: Sequence[Wake], *, prefix: str = "", ledger: str | None = None) -> None:
    """Put wake-ups into their queues, in order, in one round trip; those that go to the front are there in order, too.

    Args:
        client: of the server.
        wakes: to push.
        prefix: of the queues' names in Redis.
        ledger: whose they are; None if its name is unknown: then they count as those of the ledger that finds them.

    Raises:
        redis.RedisError: Redis is away; some of the wake-ups may have been pushed.
    """
    if not wakes:
        return
    named = [replace(one, queue=f"{prefix}{one.queue}") for one in wakes] if prefix else wakes
    more: dict[Any, Any] = {FIELD: ledger} if ledger is not None else {}
    moment = datetime.now(UTC)
    with client.pipeline(transaction=False) as pipeline:
        for name, group in groupby(named, key=lambda wake: wake.queue):
            _push_together(name, list(group), moment, more, pipeline)
        pipeline.execute()


def _push_together(
    name: str, wakes: Sequence[Wake], moment: datetime, more: dict[Any, Any], pipeline: "redis.client.Pipeline"
) -> None:
    """Wake-ups of one queue: with one command for each of them, because packing commands is most of the work."""
    again = [str(one.id) for one in wakes if one.push_count > 1]
    if again:
        # An earlier attempt left a hash that expires, with its result, and an entry among RQ's ended jobs; a worker
        # that died left one among those that are about to begin, which RQ would call failed one day.
        pipeline.delete(*map(keys.hash_of, again))
        pipeline.zrem(keys.finished_of(name), *again)
        pipeline.zrem(keys.failed_of(name), *again)
        pipeline.eval(_REMOVE_TAKEN, 1, keys.intermediate_of(name), *again)
    for one in wakes:
        pipeline.hset(keys.hash_of(one.id), mapping={**rq_job(one, moment), **more})
    pipeline.sadd(keys.QUEUES, keys.list_of(name))
    behind = [str(one.id) for one in wakes if not one.at_front]
    before = [str(one.id) for one in reversed(wakes) if one.at_front]
    if behind:
        pipeline.rpush(keys.list_of(name), *behind)
    if before:
        pipeline.lpush(keys.list_of(name), *before)


# Of a list that is nearly always empty.
_REMOVE_TAKEN: Final = """
if redis.call('LLEN', KEYS[1]) == 0 then return 0 end
for _, id in ipairs(ARGV) do redis.call('LREM', KEYS[1], 0, id) end
return 1
"""


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
    # Other programs may have put anything there: a value that is no text is no id of ours.
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


def names(client: redis.Redis, prefix: str = "") -> list[str]:
    """The queues that Redis knows, also unused ones; without the prefix, those that have it.

    Raises:
        redis.RedisError: Redis is away.
    """
    found = cast(set[bytes], client.smembers(keys.QUEUES))
    every = (one.decode("utf-8", "replace").removeprefix(keys.QUEUE_PREFIX) for one in found)
    return sorted(one.removeprefix(prefix) for one in every if one.startswith(prefix))
