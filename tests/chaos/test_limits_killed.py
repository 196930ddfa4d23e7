"""Workers and schedulers are killed at random under jobs with limits: never too many run, and no slot is lost.

The witness is the kernel: each job locks a file of its key, and finds one free if no more run than may. A process that
dies lets go. `scripts/chaos --tests --limited-jobs 2000 -s` has 50 keys and 8 workers.
"""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from harness import SHORT, Process, Stack, backdate_sweeps, execute, one_value
from jobledger import Connections
from limited_jobs import Witnessed
from sample_jobs import EFFECTS

JOBS_PER_KEY = 40
MOST_WORKERS = 8
LONGEST_JOB_SECONDS = 0.1
SECONDS_PER_JOB = 1.0
"""The slowest that it may go, kills and all."""

ENVIRONMENT = {**SHORT, "JOBLEDGER_JOB_MODULES": "limited_jobs"}


@pytest.mark.chaos
def test_never_too_many_run_and_no_slot_is_lost(
    connections: Connections, system: Stack, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    jobs = int(request.config.getoption("limited_jobs"))
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    execute(connections, EFFECTS)
    backdate_sweeps(connections)
    keys = max(jobs // JOBS_PER_KEY, 2)
    fleet = Fleet(system, chance, workers=min(MOST_WORKERS, max(jobs // 60, 3)))
    began = time.monotonic()
    handles = Witnessed.dispatch_many(
        {"group": str(n % keys), "directory": str(tmp_path), "seconds": chance.uniform(0, LONGEST_JOB_SECONDS)}
        for n in range(jobs)
    )

    unfinished = "SELECT count(*) FROM job_statuses WHERE finished_at IS NULL"
    deadline = time.monotonic() + 60 + SECONDS_PER_JOB * jobs
    while (left := one_value(connections, unfinished)) > 0:
        assert time.monotonic() < deadline, f"seed {seed}: {left} of {jobs} jobs have not ended"
        time.sleep(chance.uniform(0.1, 0.8))  # the moment of the kill is what is random here
        if left > jobs // 20:
            fleet.kill_one()
    took = time.monotonic() - began

    over = [one.name for one in tmp_path.glob("over-*")]
    attempts = one_value(connections, "SELECT count(*) FROM job_attempts")
    print(f"seed {seed}: {jobs} jobs, {keys} keys, {fleet.kills} kills, {attempts} attempts, {took:.0f} s")  # noqa: T201 - the figures
    assert not over, f"seed {seed}: over the limit: {over}"
    assert one_value(connections, "SELECT count(DISTINCT job_id) FROM effects") == len(handles)
    assert one_value(connections, "SELECT count(*) FROM effects") == len(handles)
    assert one_value(connections, "SELECT count(*) FROM job_statuses WHERE status <> 'completed'") == 0
    assert one_value(connections, "SELECT count(*) FROM effects WHERE note = '1'") > 0, "two did run at once"
    assert fleet.kills >= jobs // 100
    no_slot_is_left(connections)


def no_slot_is_left(connections: Connections) -> None:
    """Whoever died before it could pass its slot on has left that to a chore, which comes several times a second."""
    taken = "SELECT coalesce(sum(taken), 0) FROM limit_keys"
    deadline = time.monotonic() + 20
    while one_value(connections, taken) > 0:
        assert time.monotonic() < deadline, "slots are taken, and nobody runs"
        time.sleep(0.1)
    assert one_value(connections, "SELECT count(*) FROM job_limits WHERE has_slot") == 0
    with connections.transaction() as connection:
        assert connection.execute(sa.text("SELECT id FROM job_statuses WHERE held_by IS NOT NULL")).all() == []


class Fleet:
    """Stock workers and two schedulers, of which any may be killed at any moment; others take their places."""

    def __init__(self, system: Stack, chance: random.Random, workers: int) -> None:
        self.kills = 0
        self._chance = chance
        self._begin: dict[str, Callable[[], Process]] = {
            "worker": lambda: system.worker(**ENVIRONMENT),
            "scheduler": lambda: system.scheduler(**ENVIRONMENT),
        }
        self._running = [(kind, self._begin[kind]()) for kind in ["worker"] * workers + ["scheduler"] * 2]

    def kill_one(self) -> None:
        """A work-horse, or a process with all that it has started."""
        number = self._chance.randrange(len(self._running))
        kind, process = self._running[number]
        horses = process.horses() if kind == "worker" else []
        if horses and self._chance.random() < 0.6:
            with suppress(psutil.NoSuchProcess):  # it has ended its job
                horses[0].send_signal(signal.SIGKILL)
                self.kills += 1
        else:
            process.kill_tree()
            self._running[number] = (kind, self._begin[kind]())
            self.kills += 1
