"""The running system of a chaos run, as faults and witnesses reach it."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from canceling import Stopper
from dispatching import Dispatcher
from fleet import Fleet, send, send_all
from history import History
from jobledger.lifecycle.finish import MAX_CRASHES
from observer import Observer, children
from servers import Database, Servers

PATIENCE_SECONDS: Final = 5.0
"""For something to hit: a work-horse that lives, a request in flight."""


@dataclass
class World:
    """All that a fault can reach."""

    servers: Servers
    database: Database
    fleet: Fleet
    observer: Observer
    history: History
    dispatcher: Dispatcher
    stopper: Stopper
    lease_seconds: float
    sweep_seconds: float
    grace_seconds: float
    clock_file: Path
    slowness: float = 1.0
    begun: int = 0
    crashes: Counter[str] = field(default_factory=Counter)
    """How often each job's process was killed alone: the third time is the job's end, by design."""


def soon(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def frozen_horse(world: World, chance: random.Random, *, with_job: bool = False) -> tuple[int, int] | None:
    """A work-horse, stopped, and its worker's pid; None if there is none for a while.

    Args:
        with_job: it has said which job it runs, and has not ended it.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS * world.slowness
    while time.monotonic() < deadline:
        horses = world.fleet.horses()
        if with_job:
            horses = [one for one in horses if world.observer.job_of(one[0])]
        if not horses:
            time.sleep(0.005)
            continue
        horse = chance.choice(horses)
        if not send(horse[0], signal.SIGSTOP):
            continue
        time.sleep(0.05)  # what it said before is heard
        job = world.observer.job_of(horse[0])
        if (job or not with_job) and (job is None or world.crashes[job["id"]] < MAX_CRASHES - 1):
            return horse
        send(horse[0], signal.SIGCONT)
    return None


def frozen_tree(pid: int) -> list[int]:
    """A process and its children, all stopped, so that none of them gets on while they are killed one by one."""
    send(pid, signal.SIGSTOP)
    below = children(pid)
    send_all(below, signal.SIGSTOP)
    return [pid, *below]
