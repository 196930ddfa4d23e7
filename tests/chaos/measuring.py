"""What can only be measured while it happens."""

import time
from typing import Final

import redis

from load import QUEUES
from world import World, soon

LOOK_SECONDS: Final = 0.5
REPUSH_SECONDS: Final = 60.0
SPEED_SECONDS: Final = 300.0


def listed(client: redis.Redis) -> set[str]:
    """Ids of the wake-ups that wait in Redis."""
    return {one.decode() for name in QUEUES for one in client.lrange(f"rq:queue:{name}", 0, -1)}  # type: ignore[union-attr]


def measure_repush(world: World, client: redis.Redis, before: int, name: str) -> None:
    """Wait until Redis is as it was: all that is queued is there, or as much as was there before."""
    begun = time.time()
    while (seconds := time.time() - begun) < REPUSH_SECONDS:
        queued = {
            str(row.id): row.pushed_at is not None
            for row in world.database.rows(
                "SELECT id, pushed_at FROM job_statuses WHERE status = 'queued' AND held_by IS NULL"
            )
        }
        there = listed(client)
        absent = [pushed for job_id, pushed in queued.items() if job_id not in there]
        taken = 2 * len(world.fleet.of("worker"))  # what workers have popped at this moment and not yet claimed
        if len(absent) <= taken or (len(there) >= before and sum(absent) <= taken):
            world.history.say("measured", name=name, seconds=seconds, wakes=before)
            return
        time.sleep(LOOK_SECONDS)
    world.history.say("measured", name=name, seconds=REPUSH_SECONDS, wakes=before, timed_out=True)


def speed(world: World, first: float, last: float) -> float:
    """Healthy jobs a second, while their number goes from the one to the other."""
    soon(lambda: world.observer.returned >= first, SPEED_SECONDS)
    begun, count = time.monotonic(), world.observer.returned
    soon(lambda: world.observer.returned >= last, SPEED_SECONDS)
    return (world.observer.returned - count) / (time.monotonic() - begun)
