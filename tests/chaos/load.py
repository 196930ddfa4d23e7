"""What is dispatched in a chaos run: a plan from the seed. Pure."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

QUEUES: Final = ("high", "default", "low")

SHARES: Final = {
    "quick": 0.54, "brief": 0.20, "raising": 0.10, "long": 0.05, "external": 0.05,
    "unique": 0.02, "keyed": 0.02, "expiring": 0.02,
}  # fmt: skip
"""Of each kind. What the cap of long ones leaves is given to the quick ones."""

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
    "newer": "Newer",
    "poison": "Poison",
}
"""The class of `chaos_jobs` (or `chaos_new_jobs`) for each kind. A key begins with its kind: "brief-17"."""

# A feature that changes what may become of a job gets kinds of its own here (limited, …): an entry
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

POISONS: Final = {
    "exit": ["failed:crashed"],
    "segv": ["failed:crashed"],
    "oom": ["failed:crashed"],
    "memory": ["failed:error"],
    "c": ["failed:timeout"],
    "swallow": ["failed:timeout"],
    "large": ["failed:error"],
    "unknown": ["failed:undispatchable"],
    "gil": ["failed:timeout", "failed:crashed", "failed:lost"],
}
"""How each may end, by name."""

SLOW_POISONS: Final = frozenset({"gil"})
"""Only RQ's own last resort ends a process that holds the interpreter's lock, minutes later: not in short runs."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is to do.

    Attributes:
        jobs: in all, without poison.
        long: the most long ones.
        long_seconds: the least and the most that one of them takes.
    """

    jobs: int
    long: int = 20
    long_seconds: tuple[float, float] = (5.0, 20.0)


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
        return ["canceled", "completed"] if self.cancel else ["completed"]


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
    for number, kind in enumerate(_kinds(chance, size, newer)):
        key = f"{kind}-{number}"
        after = chance.choice(parents[-20:]) if parents and chance.random() < CHILD_SHARE else None
        canceled = kind == "canceled"
        delay = round(chance.uniform(0.5, LONGEST_DELAY_SECONDS), 2) if chance.random() < DELAYED_SHARE else 0.0
        tasks.append(
            Task(
                key,
                kind,
                {"key": key, **_payload(chance, kind, size)},
                chance.choice(QUEUES),
                CANCELED_DELAY_SECONDS if canceled else delay,
                None if canceled else after,
                cancel=canceled,
                over_http=kind in ("quick", "brief", "keyed") and chance.random() < http_share,
            )
        )
        if kind in ("quick", "brief", "external"):
            parents.append(key)
    return tasks


def poisons(seed: int, each: int, short: bool) -> list[Task]:
    """Every kind of poison, so many times, shuffled.

    Args:
        each: how many of each kind; of the slow ones a single one.
        short: without the slow ones.
    """
    chance = random.Random(f"poison {seed}")
    tasks = []
    for how in POISONS:
        wanted = each if how not in SLOW_POISONS else 0 if short else 1
        keys = [f"poison-{how}-{number}" for number in range(wanted)]
        tasks += [Task(key, "poison", {"key": key, "how": how}, chance.choice(QUEUES)) for key in keys]
    chance.shuffle(tasks)
    return tasks


def _kinds(chance: random.Random, size: Size, newer: int) -> Iterator[str]:
    canceled = round(size.jobs * CANCELED_SHARE)
    kinds = ["canceled"] * canceled + ["newer"] * newer
    left = size.jobs - len(kinds)
    for kind in [kind for kind in SHARES if kind != "quick"]:
        wanted = round(left * SHARES[kind])
        kinds += [kind] * (min(wanted, size.long) if kind == "long" else wanted)
    kinds += ["quick"] * (size.jobs - len(kinds))
    chance.shuffle(kinds)
    yield from kinds


def _payload(chance: random.Random, kind: str, size: Size) -> dict[str, Any]:
    if kind == "brief":
        return {"seconds": round(chance.uniform(0.05, 0.5), 3)}
    if kind == "long":
        return {"seconds": round(chance.uniform(*size.long_seconds), 2)}
    return {}
