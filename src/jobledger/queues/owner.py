"""The owner of the queues in a Redis: a key that the processes of one ledger keep, and a field in each wake-up."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast
from uuid import UUID

import redis

from jobledger.queues import keys

OWNER_KEY: Final = "jobledger:ledger:"
"""Followed by the prefix of the queues."""

OWNER_SECONDS: Final = 30.0
"""The key expires after this, if no process keeps it."""

LEAVING_SECONDS: Final = 4.0
"""The key expires after this when a process that kept it ends, unless another process of the ledger keeps it."""

FIELD: Final = "jobledger"
"""The field of a wake-up's hash with the ledger that pushed it. RQ reads and writes its own fields only."""

RETURNS: Final = "jobledger_returns"
"""The field of that hash that counts how often workers of other ledgers have put the wake-up back."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The value of the key.

    Attributes:
        id: of the ledger.
        words: its database.
        process: the one that has written it last.
        raw: the whole value; it changes with each sign of life.
    """

    id: str
    words: str
    process: str
    raw: bytes


_KEEP: Final = """
local is = redis.call('GET', KEYS[1])
if is and is ~= ARGV[4] and string.sub(is, 1, string.len(ARGV[1])) ~= ARGV[1] then return is end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return false
"""
_LEAVE: Final = """
local is = redis.call('GET', KEYS[1])
if is and string.sub(is, 1, string.len(ARGV[1])) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return false
"""


def keep(
    client: redis.Redis, prefix: str, ledger: str, words: str, process: str, instead_of: Owner | None = None
) -> Owner | None:
    """Make this ledger the owner of the queues with this prefix, unless another ledger is.

    Args:
        client: of the server.
        prefix: of the queues.
        ledger: its id.
        words: its database.
        process: this one.
        instead_of: an owner that has given no sign of life.

    Returns:
        The other owner; None if this ledger is the owner.

    Raises:
        redis.RedisError: Redis is away.
    """
    said = json.dumps({"database": words, "process": process, "at": time.time_ns()})
    raw = cast(
        bytes | None,
        client.eval(
            _KEEP,
            1,
            f"{OWNER_KEY}{prefix}",
            f"{ledger} ",
            f"{ledger} {said}",
            round(1000 * OWNER_SECONDS),
            instead_of.raw if instead_of is not None else "",
        ),
    )
    return _owner(raw)


def leave(client: redis.Redis, prefix: str, ledger: str) -> None:
    """Note that this process keeps the queues no longer.

    Raises:
        redis.RedisError: Redis is away.
    """
    client.eval(_LEAVE, 1, f"{OWNER_KEY}{prefix}", f"{ledger} ", round(1000 * LEAVING_SECONDS))


def owner(client: redis.Redis, prefix: str) -> Owner | None:
    """The owner of the queues with this prefix; None if no process keeps them.

    Raises:
        redis.RedisError: Redis is away.
    """
    return _owner(cast(bytes | None, client.get(f"{OWNER_KEY}{prefix}")))


def _owner(raw: bytes | None) -> Owner | None:
    if not raw:
        return None
    ledger, _, said = raw.decode("utf-8", "replace").partition(" ")
    try:
        facts = json.loads(said)
        return Owner(ledger, str(facts["database"]), str(facts["process"]), raw)
    except (ValueError, LookupError, TypeError):
        return Owner(ledger[:100], "?", "?", raw)


def pushed_by_others(client: redis.Redis, ids: Sequence[UUID], ledger: str | None) -> dict[UUID, str]:
    """Those of these wake-ups that another ledger has pushed, with that ledger.

    Args:
        client: of the server.
        ids: of the wake-ups.
        ledger: this one; None if its name is unknown: then every name counts as another.

    Raises:
        redis.RedisError: Redis is away.
    """
    if not ids:
        return {}
    with client.pipeline(transaction=False) as pipeline:
        for one in ids:
            pipeline.hget(keys.hash_of(one), FIELD)
        names = pipeline.execute()
    said = {one: name.decode("utf-8", "replace") for one, name in zip(ids, names, strict=True) if name is not None}
    return {one: name for one, name in said.items() if name != ledger}


def count_return(client: redis.Redis, job_id: UUID) -> int:
    """Count that a wake-up of another ledger was taken, and return how often, with this time.

    Raises:
        redis.RedisError: Redis is away.
    """
    return int(client.hincrby(keys.hash_of(job_id), RETURNS, 1))


def put_back(client: redis.Redis, job_id: UUID, queue: str) -> None:
    """Put a wake-up of another ledger at the end of the list that it was taken from.

    Args:
        client: of the server.
        job_id: of the wake-up.
        queue: RQ's name of it.

    Raises:
        redis.RedisError: Redis is away.
    """
    client.rpush(keys.list_of(queue), str(job_id))
