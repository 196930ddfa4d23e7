"""The table of chores: what each mends, and how long schedulers pause between two passes of it.

Schedulers run them again and again, the doctor once. Any number of processes may run them at the same time.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from jobledger.connections.default import Connections
from jobledger.lifecycle.children import propagate_due
from jobledger.maintenance.clean import LIMIT, clean
from jobledger.maintenance.clock import look_at_clock
from jobledger.maintenance.expire import expire
from jobledger.maintenance.limits import maintain_limits
from jobledger.maintenance.prune import prune
from jobledger.maintenance.reaper import reap
from jobledger.maintenance.reconcile import reconcile
from jobledger.maintenance.redis_restarts import find_late_workers, notice_redis_restart
from jobledger.maintenance.relay import relay
from jobledger.maintenance.stuck_children import release_stuck_children
from jobledger.observe.conservation import COUNT_SECONDS, count_places
from jobledger.settings import Settings

CLEAN_SECONDS: Final = 30.0
PRUNE_SECONDS: Final = 3600.0

TELL_SECONDS: Final = 5.0
"""The time in which a pass tells children of the ends of their parents; the next pass goes on."""

STAY_SHARE: Final = 0.9
"""The share of the pause between two passes over limits in which a pass waits for slots of rates."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a pass is run.

    Attributes:
        is_sweep: one of many, recorded in `sweeps`.
        entries: of each list in Redis that one look sees.
        stopping: set when the process is to end.
    """

    is_sweep: bool = True
    entries: int = LIMIT
    stopping: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a chore.

    Attributes:
        mends: the things that its result counts, in words; None for a step that mends nothing.
    """

    mends: str | None
    do: Callable[[Connections, Manner], int | Counter[str] | None]


@dataclass(frozen=True, slots=True)
class Chore:
    """Steps that run together, in order.

    Attributes:
        pause_seconds: between two passes of one scheduler.
    """

    name: str
    pause_seconds: Callable[[Settings], float]
    steps: tuple[Step, ...]

    def do(self, connections: Connections, manner: Manner) -> int:
        """Run all steps, and count what was mended.

        Raises:
            LedgerUnavailable: Postgres is away.
            redis.RedisError: Redis is away.
        """
        return sum(total(step.do(connections, manner)) for step in self.steps)


def total(count: int | Counter[str] | None) -> int:
    """The sum of a step's counts."""
    return count.total() if isinstance(count, Counter) else count or 0


def _maintain_limits(connections: Connections, manner: Manner) -> int:
    stay = connections.settings.relay_seconds * STAY_SHARE if manner.is_sweep else 0.0
    return maintain_limits(connections, stay, manner.stopping)


def _relay_seconds(settings: Settings) -> float:
    return settings.relay_seconds


def _sweep_seconds(settings: Settings) -> float:
    return settings.sweep_seconds


CHORES: Final = (
    Chore(
        "clock",
        _sweep_seconds,
        (
            Step(
                "rows that a clock which was set back had left in the future",
                lambda connections, _: look_at_clock(connections),
            ),
        ),
    ),
    Chore(
        "reconcile",
        _sweep_seconds,
        (
            Step(
                "wake-ups that an emptied or other Redis does not have",
                lambda connections, _: notice_redis_restart(connections),
            ),
            Step(
                "wake-ups that were lost",
                lambda connections, manner: reconcile(connections, is_sweep=manner.is_sweep),
            ),
        ),
    ),
    Chore(
        "reap",
        _sweep_seconds,
        (
            Step(
                "attempts without a live process",
                lambda connections, manner: reap(connections, is_sweep=manner.is_sweep),
            ),
        ),
    ),
    Chore(
        "expire",
        _relay_seconds,
        (Step("jobs that were not started in time", lambda connections, _: expire(connections)),),
    ),
    Chore(
        "propagate",
        _relay_seconds,
        (Step("jobs whose parents had ended", lambda connections, _: propagate_due(connections, TELL_SECONDS)),),
    ),
    Chore("limits", _relay_seconds, (Step("free slots given, or counts corrected", _maintain_limits),)),
    Chore(
        "relay",
        _relay_seconds,
        (
            Step(
                "wake-ups that were pushed",
                lambda connections, manner: relay(connections, is_sweep=manner.is_sweep, stopping=manner.stopping),
            ),
        ),
    ),
    Chore(
        "clean",
        lambda _: CLEAN_SECONDS,
        (
            Step("workers that Redis had forgotten", lambda connections, _: find_late_workers(connections)),
            Step("entries of Redis", lambda connections, manner: clean(connections, manner.entries)),
            Step("jobs that waited for ended parents", lambda connections, _: release_stuck_children(connections)),
        ),
    ),
    Chore("count", lambda _: COUNT_SECONDS, (Step(None, lambda connections, _: count_places(connections)),)),
    Chore("prune", lambda _: PRUNE_SECONDS, (Step(None, lambda connections, _: prune(connections)),)),
)
