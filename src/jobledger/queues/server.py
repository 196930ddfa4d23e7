"""What the Redis server says of itself."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import redis

EPOCH_KEY: Final = "jobledger:epoch"


def read_epoch(client: redis.Redis) -> str:
    """Which Redis this is, in which life: a mark that we leave in its data, and the run of its server.

    The mark is gone if its data are, and comes back as another one; the run changes with every start of the server, and
    if another one takes its place. Without the permission to ask for it, the mark is all.

    Raises:
        redis.RedisError: Redis is away, or has no mark and takes none.
    """
    with client.pipeline(transaction=False) as pipeline:
        pipeline.set(EPOCH_KEY, str(uuid.uuid4()), nx=True)
        pipeline.get(EPOCH_KEY)
        pipeline.info("server")
        left, mark, info = pipeline.execute(raise_on_error=False)
    if not isinstance(mark, bytes):
        raise next((one for one in (left, mark) if isinstance(one, Exception)), redis.RedisError("No mark was left."))
    run = "" if isinstance(info, Exception) else str(info.get("run_id", ""))
    return f"{mark.decode('utf-8', 'replace')[:100]} {run[:100]}".strip()


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What matters to whoever operates it.

    Attributes:
        eviction: the policy of `maxmemory-policy`.
        has_aof: whether it keeps an append-only file.
        memory_bytes: that are used.
        limit_bytes: that may be used; 0 is no limit.
        epoch_seconds: its clock.
    """

    version: str
    eviction: str
    has_aof: bool
    memory_bytes: int
    limit_bytes: int
    epoch_seconds: float


def facts(client: redis.Redis) -> RedisFacts:
    """Ask it.

    Raises:
        redis.RedisError: Redis is away, or does not let us ask.
    """
    info = cast(Mapping[str, Any], client.info("all"))
    seconds, microseconds = client.time()
    return RedisFacts(
        version=str(info.get("redis_version", "")),
        eviction=str(info.get("maxmemory_policy", "")),
        has_aof=bool(info.get("aof_enabled", 0)),
        memory_bytes=int(info.get("used_memory", 0)),
        limit_bytes=int(info.get("maxmemory", 0)),
        epoch_seconds=seconds + microseconds / 1e6,
    )
