"""Stale entries of RQ's lists and sets: reading a part of them at a time, and removing single entries.

Nothing is unpickled. The caller knows from the ledger which entries are stale.
"""

import random
import zlib
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast
from uuid import UUID

import redis

from jobledger.queues import keys
from jobledger.queues.owner import FIELD

MOST_COMPARISONS: Final = 5_000_000
"""LREM walks through the list; a pass may walk past so many entries, which takes Redis some tenths of a second."""

DATA_LIMIT_BYTES: Final = 1024

STALE_SECONDS: Final = 60.0
"""A wake-up of this age without a row is stale: the row is committed before the push, so it was deleted."""

ENDED_SECONDS: Final = 60.0
"""RQ's bookkeeping about a job that ended longer ago is over."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a list.

    Attributes:
        ids: the entries that have the form of our ids, in the order of the list.
        length: of the whole list.
        is_whole: whether this is the whole list.
    """

    key: str
    ids: Sequence[UUID]
    length: int
    is_whole: bool


def read_slice(client: redis.Redis, key: str, limit: int) -> Slice:
    """A list, or `limit` entries of it from a random place, so that several passes see all of a long list.

    Raises:
        redis.RedisError: Redis is away.
    """
    length = client.llen(key)
    start = random.randint(0, length - limit) if length > limit else 0  # noqa: S311
    listed = cast(list[bytes], client.lrange(key, start, start + limit - 1))
    return Slice(key, [one for one in map(_uuid, listed) if one is not None], length, length <= limit)


def remove(client: redis.Redis, found: Slice, ids: Collection[UUID], with_hash: Collection[UUID]) -> list[UUID]:
    """Remove all entries of ids from a list, and the RQ hashes of some of them.

    Returns:
        The removed ids: not all, if the list is so long that it would keep Redis busy.

    Raises:
        redis.RedisError: Redis is away.
    """
    some = list(ids)[: _affordable(found)]
    with client.pipeline(transaction=False) as pipeline:
        for one in some:
            pipeline.lrem(found.key, 0, str(one))
            if one in with_hash:
                pipeline.delete(keys.hash_of(one))
        pipeline.execute()
    return some


def remove_doubles(client: redis.Redis, found: Slice, times: dict[UUID, int]) -> int:
    """Remove all but the first of several entries of the same id.

    Args:
        times: how often each is in the list.

    Raises:
        redis.RedisError: Redis is away.
    """
    some = list(times.items())[: _affordable(found)]
    with client.pipeline(transaction=False) as pipeline:
        for one, count in some:
            pipeline.lrem(found.key, 1 - count, str(one))  # from the end
        pipeline.execute()
    return len(some)


def _affordable(found: Slice) -> int:
    return max(50, MOST_COMPARISONS // max(found.length, 1))


def ours_of(client: redis.Redis, ids: Sequence[UUID], age_seconds: float, ledger: str | None) -> list[UUID]:
    """Those of these ids that belong to our wake-ups and were pushed longer ago; others may be any program's.

    Args:
        client: of the server.
        ids: of the wake-ups.
        age_seconds: since they were pushed.
        ledger: this one; None if its name is unknown: then a wake-up with a name is not ours.

    Raises:
        redis.RedisError: Redis is away.
    """
    with client.pipeline(transaction=False) as pipeline:
        pipeline.time()
        for one in ids:
            pipeline.hmget(keys.hash_of(one), "data", "enqueued_at", FIELD)
        (seconds, _), *answers = pipeline.execute()
    latest = datetime.fromtimestamp(seconds - age_seconds, UTC)
    return [
        one
        for one, (data, pushed, owner) in zip(ids, answers, strict=True)
        if (owner is None or owner.decode("utf-8", "replace") == ledger)
        and _calls_us(data)
        and (moment := _moment(pushed)) is not None
        and moment < latest
    ]


def _calls_us(data: bytes | None) -> bool:
    """Whether a job's pickle contains the name of our callable as text; it is never loaded."""
    try:
        plain = zlib.decompressobj().decompress(data or b"", DATA_LIMIT_BYTES)
    except zlib.error:
        return False
    return keys.RUN_JOB.encode() in plain


@dataclass(frozen=True, slots=True)
class Begun:
    """An entry of the registry of jobs that RQ's workers have begun."""

    entry: bytes
    job_id: UUID


def read_begun(client: redis.Redis, queue: str, limit: int) -> list[Begun]:
    """The jobs that RQ's workers have begun and not ended, the longest silent first.

    Raises:
        redis.RedisError: Redis is away.
    """
    entries = cast(list[bytes], client.zrange(keys.started_of(queue), 0, limit - 1))
    pairs = ((one, _uuid(one.partition(b":")[0])) for one in entries)
    return [Begun(entry, job_id) for entry, job_id in pairs if job_id is not None]


def remove_begun(client: redis.Redis, queue: str, entries: Sequence[Begun]) -> None:
    """Have RQ forget that it began these, so that it does not call them abandoned; their hashes expire soon.

    Raises:
        redis.RedisError: Redis is away.
    """
    with client.pipeline(transaction=False) as pipeline:
        for one in entries:
            pipeline.zrem(keys.started_of(queue), one.entry)
            pipeline.expire(keys.hash_of(one.job_id), keys.RESULT_TTL_SECONDS)
        pipeline.execute()


def as_id(text: str) -> UUID | None:
    """An id in the form in which we write ids; any other text is not ours."""
    with suppress(ValueError):
        found = UUID(text)
        return found if str(found) == text else None
    return None


def _uuid(value: bytes) -> UUID | None:
    return as_id(value.decode("utf-8", "replace"))


def _moment(value: bytes | None) -> datetime | None:
    with suppress(ValueError):
        return datetime.strptime((value or b"").decode("ascii", "replace"), keys.MOMENT_FORMAT).replace(tzinfo=UTC)
    return None
