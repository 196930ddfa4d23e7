"""All that is known of a run, by job: what the checker looks at, and what it says."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from history import Event, read


class Kind(StrEnum):
    """What can be wrong."""

    RUN_NOT_WHOLE = "the run proves nothing"
    LOST = "lost"
    WRONG_END = "wrong end"
    UNEXPECTED = "unexpected"
    DOUBLED = "doubled effect"
    MISSING_EFFECT = "missing effect"
    STRAY_EFFECT = "effect without completion"
    STARTED_TWICE = "one attempt started twice"
    UNRECORDED_START = "start without an attempt"
    TOO_MANY_STARTS = "more starts than interruptions"
    OPEN_ATTEMPT = "attempt without an end"
    NEVER_RAN = "completed without running"
    ZOMBIE_WRITE = "zombie write"
    ILLEGAL_MOVE = "illegal move"
    FENCE_FELL = "fence out of order"
    OVER_BUDGET = "over budget"
    MISCOUNTED = "attempts miscounted"
    LEFTOVER_IN_REDIS = "leftover in Redis"
    IDLE_TRANSACTION = "transaction left open"
    ORPHAN = "orphaned process"
    TOO_SLOW = "too slow"
    MISSING_TICK = "missing tick"
    DOUBLED_TICK = "doubled tick"
    POISON_SPREAD = "poison slowed others"
    FALSE_ANSWER = "untrue answer"
    RAN_AFTER_CANCEL = "ran after cancel"
    OVER_LIMIT = "more at once than the limit"
    OVER_RATE = "more starts than the rate"
    SLOT_LEAKED = "slot of nobody"
    REAPED_ALIVE = "reaped alive"
    WORKER_ENDED = "worker ended by itself"
    NOT_HANDED_BACK = "not handed back"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be.

    Attributes:
        invariant: I1 to I16; "run" if the run itself proves nothing.
        what: what was seen, in words.
    """

    invariant: str
    kind: Kind
    what: str
    key: str | None = None
    job_id: str | None = None

    def __str__(self) -> str:
        job = f" {self.key or ''} {self.job_id or ''}:".replace("  ", " ") if self.key or self.job_id else ":"
        return f"{self.invariant} {self.kind}{job} {self.what}"


Violations = Iterator[Violation]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checker found.

    Attributes:
        violations: empty if all is well.
        measured: seconds by name: the longest, the 99th percentile, and how many there were.
        counts: how many of what, `lost`, `doubled`, `unexpected` and `zombie_writes` among them.
        missed: the goals that were missed, in words.
    """

    violations: list[Violation]
    measured: dict[str, tuple[float, float, int]]
    counts: dict[str, int]
    missed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """A row of the ledger with all that belongs to it."""

    row: dict[str, Any]
    attempts: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)
    starts: list[Event] = field(default_factory=list)
    ends: list[Event] = field(default_factory=list)

    @property
    def id(self) -> str:
        return str(self.row["id"])

    @property
    def key(self) -> str | None:
        """The load's name for it; None if it is no job of the load."""
        key: str | None = self.row["key"]
        return key

    @property
    def status(self) -> str:
        return str(self.row["status"])

    @property
    def attempt(self) -> int:
        return int(self.row["attempt"])

    @property
    def end(self) -> str:
        """Status, and for a failure its reason, as the load's `ends` have it."""
        return f"failed:{self.row['reason']}" if self.status == "failed" else self.status

    @property
    def was_called_off(self) -> bool:
        """Whether it was canceled while it ran."""
        return bool(self.moves) and (self.moves[-1]["was"], self.moves[-1]["now"]) == ("started", "canceled")

    @cached_property
    def fence_when_canceled(self) -> int | None:
        """How many attempts there had been when it was canceled last."""
        fences = [move["attempt"] for move in self.moves if move["now"] == "canceled"]
        return fences[-1] if fences else None


def about(invariant: str, kind: Kind, job: Job, what: str) -> Violation:
    """What is wrong with one job."""
    return Violation(invariant, kind, what, job.key, job.id)


def expected_ends(invoked: Event) -> list[str]:
    """How a job of the load may end."""
    ends = invoked.get("ends", "completed")
    return [ends] if isinstance(ends, str) else list(ends)


class Run:
    """The history and the ledger of one run, in order."""

    def __init__(self, events: list[Event], ledger: dict[str, Any]) -> None:
        self.events = events
        self.ledger = ledger
        self.by_event: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            self.by_event[event["event"]].append(event)
        self.jobs = {str(row["id"]): Job(row) for row in ledger["jobs"]}
        self.strangers: list[Event] = []
        """Starts, ends and effects of ids that the ledger does not have."""
        for name in ("attempts", "moves", "effects"):
            for row in ledger[name]:
                self._put(name, row["job_id"], row)
        for event in events:
            if event["event"] in ("started", "ended"):
                self._put("starts" if event["event"] == "started" else "ends", event["id"], event)
        for job in self.jobs.values():
            job.attempts.sort(key=lambda attempt: attempt["number"])

    @classmethod
    def of(cls, directory: Path) -> "Run":
        """Raises: ValueError: the directory does not hold a whole run."""
        return cls(*read(directory))

    def _put(self, name: str, job_id: str, row: dict[str, Any]) -> None:
        job = self.jobs.get(str(job_id))
        if job is None:
            self.strangers.append(row)
        else:
            getattr(job, name).append(row)

    @cached_property
    def begun(self) -> Event:
        """How the run was set up."""
        return next(iter(self.by_event["run_begun"]), {})

    @cached_property
    def invoked(self) -> dict[str, Event]:
        """The dispatches that were tried, by key."""
        return {event["key"]: event for event in self.by_event["dispatch_invoked"]}

    @cached_property
    def accepted(self) -> dict[str, Event]:
        """The dispatches that were acknowledged, by id."""
        return {str(event["id"]): event for event in self.by_event["dispatch_accepted"]}

    @cached_property
    def canceled(self) -> dict[str, Event]:
        """The cancels that said yes, by id."""
        return {str(event["id"]): event for event in self.by_event["canceled"] if event["done"]}

    @cached_property
    def promised(self) -> dict[str, Event]:
        """The cancels that said that the running job will be ended, by id."""
        return {str(event["id"]): event for event in self.by_event["canceled"] if event.get("requested")}

    @cached_property
    def retried(self) -> set[str]:
        """The jobs that a person retried, by id."""
        return {str(event["id"]) for event in self.by_event["retried"]}

    def of_load(self) -> Iterator[tuple[Job, Event]]:
        """The jobs that the load has dispatched, with what it expects of each."""
        for job in self.jobs.values():
            if job.key in self.invoked:
                yield job, self.invoked[str(job.key)]
