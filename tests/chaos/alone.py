"""A fault that hits the only job there is, while workers are free: how soon it runs again can only be measured then.

Among others a victim also waits for whatever stands before it.
"""

import random
import signal
import time
from collections.abc import Iterable
from typing import Final, Protocol

from fleet import send_all
from load import QUEUES, Task
from worker_checks import FREE
from world import World, soon

JOB_SECONDS: Final = 3.0
START_SECONDS: Final = 30.0
AGAIN_SECONDS: Final = 120.0
TIMES: Final = 3
"""How often it is tried: a job may have ended at the very moment at which it was to be hit."""


class Begin(Protocol):
    """Says that the fault happens now; its end is when its function returns."""

    def __call__(self, detail: str, victims: Iterable[str] = ()) -> None: ...


def kill_alone(world: World, chance: random.Random, begin: Begin, what: str, *, with_worker: bool) -> None:
    """Dispatch a job, kill its work-horse once it runs, and wait until it runs again.

    Args:
        what: for the name of what is measured.
        with_worker: kill the whole tree.
    """
    for _ in range(TIMES):
        if _kill_once(world, chance, begin, what, with_worker=with_worker):
            return


def _kill_once(world: World, chance: random.Random, begin: Begin, what: str, *, with_worker: bool) -> bool:
    """Whether there is a time now."""
    key = f"brief-alone-{chance.randrange(10**9)}"
    task = Task(key, "brief", {"key": key, "seconds": JOB_SECONDS}, chance.choice(QUEUES))
    world.dispatcher.dispatch_now([task])
    name = f"{what} -> running again, {FREE}"
    if not soon(lambda: world.observer.process_of(key), START_SECONDS * world.slowness):
        world.history.say("measured", name=name, seconds=AGAIN_SECONDS, timed_out=True)  # it does not even run once
        return True
    said = world.observer.process_of(key) or {}
    pids = [int(said["worker"]), int(said["pid"])] if with_worker else [int(said["pid"])]
    send_all(pids, signal.SIGSTOP)
    victims = world.observer.jobs_of(pids)
    if not victims:  # it has ended at that very moment
        send_all(pids, signal.SIGCONT)
        return False
    begin(f"SIGKILL {pids}, while workers are free", victims)
    send_all(pids, signal.SIGKILL)
    killed_at = time.time()
    again = soon(lambda: world.observer.process_of(key), AGAIN_SECONDS * world.slowness)
    late = {} if again else {"timed_out": True}
    world.history.say("measured", name=name, seconds=time.time() - killed_at, **late)
    return True
