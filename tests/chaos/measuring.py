"""What can only be measured while it happens."""

import time
from typing import Final

import redis

from load import QUEUES
from pace import wait_down
from world import World, soon

LOOK_SECONDS: Final = 0.5
STILL_SECONDS: Final = 60.0
SPEED_SECONDS: Final = 300.0


def listed(client: redis.Redis) -> set[str]:
    """Ids of the wake-ups that wait in Redis."""
    return {one.decode() for name in QUEUES for one in client.lrange(f"rq:queue:{name}", 0, -1)}  # type: ignore[union-attr]


def measure_repush(world: World, client: redis.Redis, before: int, name: str) -> None:
    """Wait until Redis is as it was: all that is queued is there, or as much as was there before."""
    begun = time.time()

    def missing() -> int:
        queued = {
            str(row.id): row.pushed_at is not None
            for row in world.database.rows(
                "SELECT id, pushed_at FROM job_statuses WHERE status = 'queued' AND held_by IS NULL"
            )
        }
        there = listed(client)
        absent = [pushed for job_id, pushed in queued.items() if job_id not in there]
        taken = 2 * len(world.fleet.of("worker"))  # what workers have popped at this moment and not yet claimed
        is_there = len(absent) <= taken or (len(there) >= before and sum(absent) <= taken)
        return 0 if is_there else len(absent)

    late = {"timed_out": True} if wait_down(missing, STILL_SECONDS, LOOK_SECONDS) else {}
    world.history.say("measured", name=name, seconds=time.time() - begun, wakes=before, **late)


def speed(world: World, first: float, last: float) -> float:
    """Healthy jobs a second, while their number goes from the one to the other."""
    soon(lambda: world.observer.returned >= first, SPEED_SECONDS)
    begun, count = time.monotonic(), world.observer.returned
    soon(lambda: world.observer.returned >= last, SPEED_SECONDS)
    return (world.observer.returned - count) / (time.monotonic() - begun)
