"""How long things may take: the goals that a run is held to, and that docs/reliability.md shows beside what was seen.

A `measured` event of the history with one of these names has a goal; others are only reported. A full run is held to
its goals. A short one is a test, on a machine that does other things too: it says which goals it missed, and fails if
something takes many times as long, at the pace of the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

OVERLAPPING: Final = ("F22",)
"""Classes in which a fault comes while others are being recovered from: what takes longer for that is reported only."""

REDIS_FAULTS: Final = ("F9", "F10", "F11", "F12", "F13", "F14")


@dataclass(frozen=True, slots=True)
class Goal:
    """The longest that something may take.

    Attributes:
        fixed: seconds that do not depend on the lease.
        leases: how many leases come on top.
        of: whether the longest time counts, or the 99th percentile.
        in_class: other seconds in some classes of faults.
        only: the classes in which this is a goal; all, if empty.
        always: also where faults overlap.
    """

    fixed: float
    leases: int = 0
    of: Literal["max", "p99"] = "max"
    in_class: Mapping[str, float] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    always: bool = False

    def seconds(self, lease_seconds: float, fault: str | None = None) -> float | None:
        """The goal under a lease of so many seconds in a class of faults; None if there is none in that class."""
        if (self.only and fault not in self.only) or (fault in OVERLAPPING and not self.always):
            return None
        return self.in_class.get(fault or "", self.fixed) + self.leases * lease_seconds


GOALS: Final = {
    "work-horse killed -> queued again": Goal(10),
    "work-horse killed -> running again, with a worker free": Goal(10),
    "worker tree killed -> queued again": Goal(15, leases=1),
    "worker tree killed -> running again, with a worker free": Goal(15, leases=1),
    "worker parent killed -> queued again": Goal(15, leases=1),
    "worker parent killed -> work-horse dead": Goal(1, always=True),
    "killed at the end of the grace -> queued again": Goal(15, leases=1),
    "frozen -> queued again": Goal(15, leases=1),
    "FLUSHALL -> all pushed again": Goal(30),
    "Redis back empty -> all pushed again": Goal(30),
    "Redis healed -> next start": Goal(15, in_class={"F10": 30, "F13": 30}),
    "Postgres accepts again -> next start": Goal(15),
    "both healed -> next start": Goal(30),
    "scheduler killed -> next sweep": Goal(15),
    "all healed -> Redis and ledger agree": Goal(60, always=True),
    "all healed -> each job in one place": Goal(75, always=True),
    "cancel of a running job -> ended": Goal(15),
    "API answer": Goal(1, of="p99", only=REDIS_FAULTS),
    "API answer 503": Goal(2, always=True),
}
