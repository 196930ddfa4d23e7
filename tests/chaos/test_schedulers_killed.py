"""Three schedulers are killed at random, again and again: every second fires once.

The witness is a table that the system does not know, without a unique constraint, that the dispatched jobs write to in
real workers. `scripts/chaos --tests --clock-minutes 60` runs it for an hour.
"""

import random
import signal
import sys
import time
from collections import Counter
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from harness import Process, Stack, eventually, one_value
from jobledger import Connections
from sample_jobs import EFFECTS

SCHEDULERS = 3
SHORT_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 25.0
"""Between kills: a short run kills as fast as the schedulers start, a long one leaves them time to take turns."""

MODULES = {"JOBLEDGER_JOB_MODULES": "sample_jobs,clock_schedules"}


@pytest.mark.chaos
def test_every_second_fires_once(connections: Connections, system: Stack, request: pytest.FixtureRequest) -> None:
    minutes = float(request.config.getoption("clock_minutes"))
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    with connections.transaction() as connection:
        connection.execute(sa.text(EFFECTS))
    workers = [system.worker(**MODULES) for _ in range(2)]
    schedulers = [start(system) for _ in range(SCHEDULERS)]
    eventually(lambda: one_value(connections, "SELECT count(*) FROM effects"), what="the first effect")

    kills = killed_for(minutes * 60, system, schedulers, chance)
    stopped_at = one_value(connections, "SELECT now()")
    last = "SELECT max(decided_until) FROM schedules"
    eventually(lambda: one_value(connections, last) > stopped_at, seconds=120, what="the schedule has caught up")
    for process in schedulers:
        process.stop()
    system.scheduler(JOBLEDGER_JOB_MODULES="sample_jobs")  # repairs, for some died before their push
    unfinished = "SELECT count(*) FROM job_statuses WHERE finished_at IS NULL"
    eventually(lambda: one_value(connections, unfinished) == 0, seconds=120, what="every job has ended")

    happened = moments(connections)
    created_at = one_value(connections, "SELECT created_at FROM schedules")
    seconds = int((one_value(connections, last) - created_at).total_seconds())
    expected = [created_at + timedelta(seconds=number) for number in range(1, seconds + 1)]
    missing = [moment for moment in expected if moment not in happened]
    doubled = [moment for moment, times in happened.items() if times > 1]
    print(f"seed {seed}: {len(expected)} fire times, {kills} kills, {len(missing)} missing, {len(doubled)} doubled")  # noqa: T201 - the figures
    assert not missing, f"seed {seed}: {len(missing)} missing, the first at {missing[0]}"
    assert not doubled, f"seed {seed}: {len(doubled)} doubled, the first at {doubled[0]}"
    assert set(happened) == set(expected), f"seed {seed}: fire times that nobody expects"
    assert kills >= minutes * 5
    assert all(worker.popen.poll() is None for worker in workers)


def killed_for(seconds: float, system: Stack, schedulers: list[Process], chance: random.Random) -> int:
    """SIGKILL one, two or all of the schedulers at random moments, and start others in their place."""
    longest_pause = LONGEST_PAUSE_SECONDS if seconds > 600 else SHORT_PAUSE_SECONDS
    kills, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(0.5, longest_pause))  # the moment of the kill is what is random here
        for number in chance.sample(range(SCHEDULERS), chance.choice((1, 1, 1, 2, 3))):
            schedulers[number].signal(signal.SIGKILL)
            schedulers[number].wait()
            schedulers[number] = start(system)
            kills += 1
    return kills


def start(system: Stack) -> Process:
    """A scheduler that may be killed before it has said anything."""
    return system.start(sys.executable, "-m", "jobledger", "scheduler", **MODULES)


def moments(connections: Connections) -> Counter[datetime]:
    with connections.transaction() as connection:
        notes = connection.execute(sa.text("SELECT note FROM effects")).scalars()
        return Counter(datetime.fromisoformat(note) for note in notes)
