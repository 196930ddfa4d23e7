"""Whether a schedule that fires every second has fired each of them once."""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from pace import wait_down
from world import World


def check_ticks(world: World, patience: float) -> None:
    """Wait until all fire times up to now are decided and their jobs have ended; end the schedulers; say what is there.

    Args:
        patience: seconds in which some of it must get on.
    """
    until: Any = world.database.value("SELECT date_trunc('second', now())")
    undecided = "SELECT greatest(0, 1 + floor(extract(epoch FROM :until - decided_until))) FROM schedules"
    running = (
        "SELECT count(*) FROM job_statuses WHERE job_type = 'TickSeen' AND finished_at IS NULL AND fire_at <= :until"
    )
    wait_down(lambda: _number(world, undecided, until), patience)
    wait_down(lambda: _number(world, running, until), patience)
    world.fleet.retire("scheduler")
    created: Any = world.database.value("SELECT created_at FROM schedules")
    seen = Counter(datetime.fromisoformat(row.moment) for row in world.database.rows("SELECT moment FROM ticks_seen"))
    missing, doubled = compare(created, until, seen)
    world.history.say("ticks", missing=len(missing), doubled=len(doubled), fired=sum(seen.values()))
    wait_down(lambda: _number(world, running, until + timedelta(hours=2)), patience)


def compare(created: datetime, until: datetime, seen: Counter[datetime]) -> tuple[list[datetime], list[datetime]]:
    """The fire times after `created`, up to `until`, that nobody saw, and those of all that were seen twice. Pure."""
    seconds = int((until - created).total_seconds())
    expected = (created + timedelta(seconds=number) for number in range(1, seconds + 1))
    return [one for one in expected if one not in seen], [one for one, times in seen.items() if times > 1]


def _number(world: World, sql: str, until: datetime) -> int:
    return int(str(world.database.value(sql, until=until)))
