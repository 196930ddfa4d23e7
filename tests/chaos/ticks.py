"""Whether a schedule that fires every second has fired each of them once."""

import time
from collections import Counter
from datetime import datetime, timedelta
from typing import Any, Final

from world import World

LOOK_SECONDS: Final = 0.5


def check_ticks(world: World, patience: float) -> None:
    """Wait until all fire times up to now are decided and their jobs have ended; end the schedulers; say what is there.

    Args:
        patience: seconds for all of it.
    """
    deadline = time.monotonic() + patience
    until: Any = world.database.value("SELECT date_trunc('second', now())")
    decided = "SELECT decided_until > :until FROM schedules"
    running = (
        "SELECT count(*) FROM job_statuses WHERE job_type = 'TickSeen' AND finished_at IS NULL AND fire_at <= :until"
    )
    _wait(lambda: world.database.value(decided, until=until), deadline)
    _wait(lambda: world.database.value(running, until=until) == 0, deadline)
    world.fleet.retire("scheduler")
    created: Any = world.database.value("SELECT created_at FROM schedules")
    seen = Counter(datetime.fromisoformat(row.moment) for row in world.database.rows("SELECT moment FROM ticks_seen"))
    missing, doubled = compare(created, until, seen)
    world.history.say("ticks", missing=len(missing), doubled=len(doubled), fired=sum(seen.values()))
    _wait(lambda: world.database.value(running, until=until + timedelta(hours=2)) == 0, deadline)


def compare(created: datetime, until: datetime, seen: Counter[datetime]) -> tuple[list[datetime], list[datetime]]:
    """The fire times after `created`, up to `until`, that nobody saw, and those of all that were seen twice. Pure."""
    seconds = int((until - created).total_seconds())
    expected = (created + timedelta(seconds=number) for number in range(1, seconds + 1))
    return [one for one in expected if one not in seen], [one for one, times in seen.items() if times > 1]


def _wait(condition: Any, deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
