"""What is dispatched in a chaos run: a plan from the seed. Pure."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

QUEUES: Final = ("high", "default", "low")

SHARES: Final = {
    "quick": 0.47, "brief": 0.20, "raising": 0.10, "long": 0.05, "external": 0.05,
    "unique": 0.02, "keyed": 0.02, "expiring": 0.02, "limited": 0.04, "paced": 0.02, "stopped": 0.01,
}  # fmt: skip
"""Of each kind. What the caps of long and stopped ones leave is given to the quick ones."""

TYPES: Final = {
    "quick": "Quick",
    "brief": "Brief",
    "raising": "Raising",
    "long": "Long",
    "external": "External",
    "canceled": "Quick",
    "unique": "UniqueQuick",
    "keyed": "Quick",
    "expiring": "Quick",
    "limited": "Limited",
    "paced": "Paced",
    "stopped": "Stopped",
    "newer": "Newer",
    "poison": "Poison",
}
"""The class of `chaos_jobs` (or `chaos_new_jobs`) for each kind. A key begins with its kind: "brief-17"."""

# A feature that changes what may become of a job gets kinds of its own here: an entry
# in TYPES, how many in `make_load`, and in `expected` what must have become of such a job.

CANCELED_SHARE: Final = 0.02
CHILD_SHARE: Final = 0.05
DELAYED_SHARE: Final = 0.05
EXPIRES_SECONDS: Final = 5.0
"""Short enough that some expire while something is broken."""

LONGEST_DELAY_SECONDS: Final = 4.0
CANCELED_DELAY_SECONDS: Final = 45.0
"""Long enough that a cancel comes in time also when Postgres is away for a while."""

MAX_ATTEMPTS: Final = 5

GROUPS: Final = ("north", "east", "south", "west")
LIMIT_MOST: Final = 2
RATE_MOST: Final = 3
RATE_SECONDS: Final = 2.0
IN_A_ROW: Final = 8
"""Jobs of a group that are dispatched one after another, into one queue, so that they get in each other's way."""

IN_ROWS: Final = ("limited", "paced")

LIMITED_SECONDS: Final = (0.2, 0.6)
"""Longer than it takes to start another one: without a limit, all workers would be at it."""

STOPPED_SECONDS: Final = 150.0
"""Longer than the patience of short runs: one whose cancel does nothing fails them as a job that does not end."""

POISONS: Final = {
    "exit": ["failed:crashed"],
    "exit_zero": ["failed:crashed"],
    "exec": ["failed:crashed"],
    "fork": ["failed:error"],
    "group": ["failed:timeout"],
    "unprintable": ["failed:error"],
    "segv": ["failed:crashed"],
    "oom": ["failed:crashed"],
    "memory": ["failed:error"],
    "c": ["failed:timeout"],
    "swallow": ["failed:timeout"],
    "large": ["failed:error"],
    "unknown": ["failed:undispatchable"],
    "gil": ["failed:timeout"],
}
"""How each may end, by name."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is to do.

    Attributes:
        jobs: in all, without poison.
        long: the most long ones.
        long_seconds: the least and the most that one of them takes.
        stopped: the most that are canceled while they run.
    """

    jobs: int
    long: int = 20
    long_seconds: tuple[float, float] = (5.0, 20.0)
    stopped: int = 20


@dataclass(frozen=True, slots=True)
class Task:
    """One job to be dispatched.

    Attributes:
        key: unique; begins with the kind.
        after: key of the job that must complete first.
        cancel: at once, before it may start.
        over_http: through the API.
    """

    key: str
    kind: str
    payload: dict[str, Any] = field(default_factory=dict)
    queue: str = "default"
    delay: float = 0.0
    after: str | None = None
    cancel: bool = False
    over_http: bool = False

    @property
    def job_type(self) -> str:
        return "NobodyKnows" if self.payload.get("how") == "unknown" else TYPES[self.kind]

    @property
    def once(self) -> bool:
        """Whether it may be dispatched again and again, and there is one job all the same."""
        return self.kind in ("unique", "keyed")

    @property
    def stops(self) -> bool:
        """Whether it is to be canceled once it runs."""
        return self.kind == "stopped"

    @property
    def limits(self) -> list[dict[str, Any]]:
        """The limit and the rate that it is under: `window` is the time of a rate, in seconds."""
        if self.kind not in IN_ROWS:
            return []
        key = f"chaos:{self.payload['group']}"
        limit = {"kind": "limit", "key": key, "most": LIMIT_MOST}
        rate = {"kind": "rate", "key": key, "most": RATE_MOST, "window": RATE_SECONDS}
        return [limit, rate] if self.kind == "paced" else [limit]

    @property
    def effects(self) -> int:
        """How many rows its completion leaves."""
        return 0 if self.kind in ("external", "poison") else 1

    @property
    def ends(self) -> list[str]:
        """What may have become of it: a status, with the reason if it is to fail."""
        if self.kind == "poison":
            return POISONS[self.payload["how"]]
        if self.kind == "expiring":
            return ["completed", "failed:expired"]
        # A cancel may come too late. Whether it said that it did is for the checker.
        return ["canceled", "completed"] if self.cancel or self.stops else ["completed"]


def make_load(seed: int, size: Size, http_share: float = 0.1, newer: int = 0) -> list[Task]:
    """The load of a seed, in the order of dispatch.

    Args:
        seed: the same one gives the same load.
        size: how many, and how long.
        http_share: of the quick and brief ones, through the API.
        newer: how many jobs of the newer deployment are among them.
    """
    chance = random.Random(f"load {seed}")
    tasks: list[Task] = []
    parents: list[str] = []
    for number, (kind, row) in enumerate(_kinds(chance, size, newer)):
        key = f"{kind}-{number}"
        after = chance.choice(parents[-20:]) if parents and chance.random() < CHILD_SHARE else None
        canceled = kind == "canceled"
        delay = round(chance.uniform(0.5, LONGEST_DELAY_SECONDS), 2) if chance.random() < DELAYED_SHARE else 0.0
        tasks.append(
            Task(
                key,
                kind,
                {"key": key, **_payload(chance, kind, size, row)},
                QUEUES[row % len(QUEUES)] if kind in IN_ROWS else chance.choice(QUEUES),
                CANCELED_DELAY_SECONDS if canceled else delay,
                None if canceled else after,
                cancel=canceled,
                over_http=kind in ("quick", "brief", "keyed") and chance.random() < http_share,
            )
        )
        if kind in ("quick", "brief", "external"):
            parents.append(key)
    return tasks


def poisons(seed: int, each: int) -> list[Task]:
    """Every kind of poison, so many times, shuffled."""
    chance = random.Random(f"poison {seed}")
    tasks = []
    for how in POISONS:
        keys = [f"poison-{how}-{number}" for number in range(each)]
        tasks += [Task(key, "poison", {"key": key, "how": how}, chance.choice(QUEUES)) for key in keys]
    chance.shuffle(tasks)
    return tasks


def _kinds(chance: random.Random, size: Size, newer: int) -> Iterator[tuple[str, int]]:
    """The kind of each job, and which row of its kind it is in."""
    canceled = round(size.jobs * CANCELED_SHARE)
    numbers = {"canceled": canceled, "newer": newer}
    left = size.jobs - canceled - newer
    most = {"long": size.long, "stopped": size.stopped}
    for kind in [kind for kind in SHARES if kind != "quick"]:
        wanted = round(left * SHARES[kind])
        numbers[kind] = min(wanted, most.get(kind, wanted))
    numbers["quick"] = size.jobs - sum(numbers.values())
    rows = [row for kind, number in numbers.items() for row in _rows(kind, number)]
    chance.shuffle(rows)
    for row in rows:
        yield from row


def _rows(kind: str, number: int) -> list[list[tuple[str, int]]]:
    """So many jobs of a kind, in rows that stay together; of most kinds each job is one."""
    length = IN_A_ROW if kind in IN_ROWS else 1
    firsts = range(0, number, length)
    return [[(kind, row)] * min(length, number - first) for row, first in enumerate(firsts)]


def _payload(chance: random.Random, kind: str, size: Size, row: int) -> dict[str, Any]:
    """What a job is told in a row of its kind."""
    if kind == "brief":
        return {"seconds": round(chance.uniform(0.05, 0.5), 3)}
    if kind == "long":
        return {"seconds": round(chance.uniform(*size.long_seconds), 2)}
    if kind in IN_ROWS:
        return {"group": GROUPS[row % len(GROUPS)], "seconds": round(chance.uniform(*LIMITED_SECONDS), 3)}
    if kind == "stopped":
        return {"seconds": STOPPED_SECONDS, "checks": row % 2 == 0}
    return {}
