"""What the Redis server says of itself."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import redis

EPOCH_KEY: Final = "jobledger:epoch"
PROBE_KEY: Final = "jobledger:probe"
PROBE_MILLISECONDS: Final = 10_000


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
    """The facts about a Redis server that its operator needs.

    Attributes:
        eviction: the policy of `maxmemory-policy`.
        has_aof: whether it keeps an append-only file.
        has_snapshots: whether it writes its data to a file now and then.
        is_replica: whether it copies another one, and takes writes from that one only.
        memory_bytes: that are used.
        limit_bytes: that may be used; 0 is no limit.
        epoch_seconds: its clock.
    """

    version: str
    eviction: str
    has_aof: bool
    has_snapshots: bool
    is_replica: bool
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
        has_snapshots=_has_snapshots(client, info),
        is_replica=info.get("role") == "slave",
        memory_bytes=int(info.get("used_memory", 0)),
        limit_bytes=int(info.get("maxmemory", 0)),
        epoch_seconds=seconds + microseconds / 1e6,
    )


def _has_snapshots(client: redis.Redis, info: Mapping[str, Any]) -> bool:
    try:
        return bool(cast(Mapping[str, str], client.config_get("save")).get("save"))
    except redis.ResponseError:  # as with most who rent Redis out; until the first snapshot this is the server's start
        started_at = client.time()[0] - int(info.get("uptime_in_seconds", 0))
        return int(info.get("rdb_last_save_time", 0)) > started_at + 1


def try_write(client: redis.Redis) -> None:
    """Have it take a write: one that does no harm, and is gone after some seconds.

    Raises:
        redis.ResponseError: it answers, and takes none: a replica, a full memory, a user who may not.
        redis.RedisError: Redis is away.
    """
    client.set(PROBE_KEY, "", px=PROBE_MILLISECONDS)
