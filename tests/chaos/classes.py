"""The classes of faults: what each injects, how often, and what it needs. Plans come from the seed alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from faults import Planned

Arguments = Callable[[random.Random, int, bool], dict[str, Any]]
"""What an injection is told: of chance, its number, and whether the run is a short one."""


LONGEST_CUT: Final = 5
"""The number of the one cut that lasts for ten minutes."""

SHORT_PAUSE: Final = 0.4
"""What short runs keep of pauses."""


def _nothing(_: random.Random, __: int, ___: bool) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class FaultClass:
    """One class.

    Attributes:
        name: F1, F2, …
        what: in words, for the table.
        full: how many injections a full run has.
        smoke: how many a short one.
        jobs: of a full run.
        pause: the least and the most between injections, in seconds.
        arguments: for each injection.
        faults: what is injected; several names mean any of them.
        http_share: of the jobs that can be, dispatched through the API.
        burst: all jobs are dispatched at once, so that there is a queue to lose.
        calm: the workers keep up before each injection.
        alone: one injection in so many hits the only job there is, while workers are free.
        schedulers: how many.
        ticks: the schedulers have a schedule that fires every second.
        newer: how many jobs of a newer deployment.
        poison: how many of each kind of poison.
        small_disk: Postgres' data lies on a small volume.
        shifted_clock: the schedulers run under a clock that can be set.
        in_smoke: a short run of everything has it.
    """

    name: str
    what: str
    full: int
    smoke: int
    jobs: int = 2000
    pause: tuple[float, float] = (1.0, 3.0)
    arguments: Arguments = _nothing
    faults: tuple[str, ...] = ()
    http_share: float = 0.1
    burst: bool = False
    calm: bool = False
    alone: int = 0
    schedulers: int = 2
    ticks: bool = False
    newer: int = 0
    poison: int = 0
    small_disk: bool = False
    shifted_clock: bool = False
    in_smoke: bool = False

    def plan(self, seed: int, jobs: int, short: bool) -> list[Planned]:
        """The injections of a seed."""
        count = self.smoke if short else max(self.smoke, round(self.full * min(1.0, jobs / self.jobs)))
        chance = random.Random(f"plan {self.name} {seed}")
        return [self._planned(chance, number, short) for number in range(count)]

    def soak(self, seed: int, number: int) -> Planned:
        """The n-th injection of a soak, which has no end of its own."""
        return self._planned(random.Random(f"soak {seed} {number}"), number, True)

    def _planned(self, chance: random.Random, number: int, short: bool) -> Planned:
        pause = chance.uniform(*self.pause) * (SHORT_PAUSE if short else 1)
        name = chance.choice(self.faults) if self.faults else self.name
        arguments = CLASSES[name].arguments if self.faults else self.arguments
        more = {"alone": True} if self.alone and number % self.alone == 0 else {}
        return Planned(round(pause, 2), name, chance.randrange(10**9), arguments(chance, number, short) | more)


def _cut(_: random.Random, number: int, short: bool) -> dict[str, Any]:
    return {"seconds": 5 if short else 600 if number == LONGEST_CUT else 5 if number % 3 else 60}


def _unwell(_: random.Random, number: int, short: bool) -> dict[str, Any]:
    mode = ("drop_replies:0.01", "delay:0.5", "freeze")[number % 3]
    return {"mode": mode, "seconds": 5 if short else 60 if mode == "freeze" else 20}


def _postgres_cut(_: random.Random, number: int, short: bool) -> dict[str, Any]:
    if number % 8 != 7:
        return {}
    return {"seconds": 5 if short else 60}


def _ten_seconds(_: random.Random, __: int, short: bool) -> dict[str, Any]:
    return {"seconds": 3 if short else 10}


def _by_turns(_: random.Random, number: int, __: bool) -> dict[str, Any]:
    return {"keep": bool(number % 2)}


def _skew(_: random.Random, __: int, short: bool) -> dict[str, Any]:
    return {"seconds": 3 if short else 60, "modules": "chaos_jobs,chaos_new_jobs"}


_ALL: Final = (
    FaultClass("F1", "a work-horse is killed", 100, 10, 10_000, (1.0, 3.0), calm=True, alone=10, in_smoke=True),
    FaultClass(
        "F2",
        "a worker is killed with all its processes",
        100,
        5,
        10_000,
        (1.0, 3.0),
        calm=True,
        alone=10,
        in_smoke=True,
    ),
    FaultClass("F3", "a worker is killed, its work-horse not", 50, 5, calm=True, in_smoke=True),
    FaultClass("F4", "all workers are replaced, as in a deployment", 20, 2, 10_000, (3.0, 8.0), in_smoke=True),
    FaultClass("F5", "a work-horse and its worker freeze for longer than the lease", 15, 2, calm=True, in_smoke=True),
    FaultClass("F6", "schedulers are killed, one or all at once", 20, 3, pause=(8.0, 12.0), schedulers=3, ticks=True),
    FaultClass("F7", "the API is killed with requests in flight", 25, 3, pause=(2.0, 4.0), http_share=0.6),
    FaultClass("F8", "the scheduler that swept last is killed", 25, 3, pause=(2.0, 6.0)),
    FaultClass("F9", "Redis is emptied", 20, 2, 10_000, (4.0, 8.0), burst=True, in_smoke=True),
    FaultClass(
        "F10",
        "Redis is killed, and comes back empty or with its file",
        20,
        2,
        10_000,
        (4.0, 8.0),
        arguments=_by_turns,
        burst=True,
    ),
    FaultClass("F11", "Redis cannot be reached", 6, 1, pause=(5.0, 10.0), arguments=_cut, in_smoke=True),
    FaultClass("F12", "Redis hangs, is slow, or loses replies", 6, 3, pause=(5.0, 10.0), arguments=_unwell),
    FaultClass("F13", "Redis is demoted, and takes no writes", 6, 2, pause=(5.0, 10.0), arguments=_ten_seconds),
    FaultClass("F14", "Redis is full", 6, 2, pause=(5.0, 10.0), arguments=_ten_seconds),
    FaultClass("F15", "Postgres crashes, and starts again", 15, 2, 10_000, (15.0, 20.0), in_smoke=True),
    FaultClass("F16", "Postgres ends sessions, or cannot be reached", 40, 4, pause=(1.0, 4.0), arguments=_postgres_cut),
    FaultClass("F17", "Redis and Postgres crash at once", 6, 2, pause=(10.0, 15.0)),
    FaultClass(
        "F18", "jobs that kill, freeze or outgrow their process run beside others", 1, 1, 5000, poison=2, in_smoke=True
    ),
    FaultClass("F19", "half of the workers lack a job's module", 2, 1, arguments=_skew, newer=10, in_smoke=True),
    FaultClass(
        "F20",
        "the clock of the schedulers jumps by an hour",
        8,
        2,
        pause=(5.0, 8.0),
        arguments=_ten_seconds,
        ticks=True,
        shifted_clock=True,
    ),
    FaultClass(
        "F21",
        "the disk of Postgres is full",
        4,
        1,
        pause=(5.0, 10.0),
        arguments=_ten_seconds,
        burst=True,
        small_disk=True,
    ),
    FaultClass(
        "F22",
        "any of F1 to F17, again and again",
        100,
        10,
        10_000,
        (2.0, 10.0),
        faults=tuple(f"F{number}" for number in range(1, 18)),
        schedulers=3,
        ticks=True,
    ),
)

CLASSES: Final = {one.name: one for one in _ALL}
