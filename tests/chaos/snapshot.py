"""The ledger as it is at the end of a run, with all that should have vanished by then: `ledger.json`."""

import json
import time
from pathlib import Path
from typing import Any, Final

import redis
import sqlalchemy as sa

from history import LEDGER
from load import QUEUES
from observer import processes_with
from pace import wait_down
from world import World

BETWEEN_STATEMENTS: Final = "state LIKE 'idle in transaction%' AND state_change > now() - interval '10 seconds'"
"""Of a session that is at work: schedulers go on sweeping. In a transaction that was left open nothing changes."""

SETTLE_SECONDS: Final = 95.0
"""In which lists get emptier, and sessions and processes fewer, after the last job has ended: RQ forgets after 60 s."""

DYING_SECONDS: Final = 10.0
"""In which fewer processes without a parent are left: what is killed takes a moment."""

WITNESSED_APART: Final = "TickSeen"
"""Jobs of the schedule: nobody invokes them, and their witness is a table of their own."""

_SLOTS_TAKEN: Final = """
SELECT (SELECT count(*) FROM job_limits WHERE has_slot) + (SELECT count(*) FROM limit_keys WHERE taken <> 0)
"""

_OPEN_TRANSACTIONS: Final = f"""
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'
   AND ({BETWEEN_STATEMENTS}) IS NOT TRUE
"""

_QUERIES: Final = {
    "jobs": f"""SELECT id, payload->>'key' AS key, job_type, queue, status, reason, held_by, attempt, errors, crashes,
                       losses, max_attempts, left(result::text, 200) AS result, cancel_requested_at, created_at,
                       pushed_at, push_count, finished_at
                  FROM job_statuses WHERE job_type <> '{WITNESSED_APART}' ORDER BY id""",
    "attempts": f"""SELECT a.job_id, a.number, a.worker, a.pid, a.outcome, a.started_at, a.finished_at, a.error_type,
                           a.error_message
                      FROM job_attempts a JOIN job_statuses j ON j.id = a.job_id
                     WHERE j.job_type <> '{WITNESSED_APART}' ORDER BY a.job_id, a.number""",
    "moves": f"""SELECT m.job_id, m.was, m.now, m.attempt, m.at
                   FROM status_moves m JOIN job_statuses j ON j.id = m.job_id
                  WHERE j.job_type <> '{WITNESSED_APART}' ORDER BY m.number""",
    "effects": "SELECT job_id, key, attempt, at FROM effects ORDER BY at",
    "limit_keys": "SELECT kind, key, taken FROM limit_keys ORDER BY kind, key",
    "slots": "SELECT job_id, kind, key FROM job_limits WHERE has_slot ORDER BY kind, key, job_id",
    "sessions": f"""SELECT pid, state, application_name FROM pg_stat_activity
                     WHERE datname = current_database() AND pid <> pg_backend_pid()
                       AND ({BETWEEN_STATEMENTS}) IS NOT TRUE""",
}


def take(world: World, directory: Path, run: str) -> None:
    """Wait until the system is at rest, as long as it gets on with that, and write `ledger.json`.

    Args:
        run: a text that only processes of this run have in their environment.
    """
    with world.servers.redis_client() as client:
        wait_down(lambda: _unrest(world, client), SETTLE_SECONDS)
        ledger: dict[str, Any] = {name: _rows(world, sql) for name, sql in _QUERIES.items()}
        ledger["redis"] = in_redis(client)
    wait_down(lambda: len(processes_with(run, world.fleet.knows)), DYING_SECONDS)
    ledger["processes"] = processes_with(run, world.fleet.knows)
    (directory / LEDGER).write_text(json.dumps(ledger, default=str))


def in_redis(client: redis.Redis) -> dict[str, Any]:
    """What RQ keeps, as it is: read without its registries, which change what they are asked about."""

    def ids(key: str) -> list[str]:
        return [one.decode("utf-8", "replace") for one in client.lrange(key, 0, -1)]  # type: ignore[union-attr]

    def running(least: float, most: float) -> list[str]:
        found = [client.zrangebyscore(f"rq:wip:{name}", least, most) for name in QUEUES]
        return sorted(one.decode() for some in found for one in some)  # type: ignore[union-attr]

    now = time.time()
    return {
        "queued": {name: ids(f"rq:queue:{name}") for name in QUEUES},
        "intermediate": {name: ids(f"rq:queue:{name}:intermediate") for name in QUEUES},
        "workers": sorted(one.decode() for one in client.smembers("rq:workers")),  # type: ignore[union-attr]
        # RQ gives each a time to live, and cleans up after a worker that died once that is over.
        "executions": running(float("-inf"), now),
        "expiring": running(now, float("inf")),
    }


def _unrest(world: World, client: redis.Redis) -> int:
    """How much there is that should not be at rest."""
    redis_now = in_redis(client)
    held = [*redis_now["queued"].values(), *redis_now["intermediate"].values(), redis_now["executions"]]
    in_postgres = (_SLOTS_TAKEN, _OPEN_TRANSACTIONS)
    rows = sum(int(str(world.database.value(sql))) for sql in in_postgres)
    return sum(map(len, held)) + len(world.fleet.horses()) + rows


def _rows(world: World, sql: str) -> list[dict[str, Any]]:
    with world.database.engine.begin() as connection:
        return [
            {name: value.timestamp() if hasattr(value, "timestamp") else value for name, value in row.items()}
            for row in connection.execute(sa.text(sql)).mappings()
        ]
