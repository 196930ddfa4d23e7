"""How long recovery took, worked out from a history. Pure."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

from jobledger.domain.status import TERMINAL

Event = dict[str, Any]

RUNS_AGAIN: Final = {
    "F1": "work-horse killed -> running again",
    "F2": "worker tree killed -> running again",
    "F3": "worker parent killed -> running again",
    "F4": "killed at the end of the grace -> running again",
    "F5": "frozen -> running again",
}
"""From the fault to the victim's next attempt, by fault. It may have to wait for a worker that is free."""

QUEUED_AGAIN: Final = {fault: name.replace("running", "queued") for fault, name in RUNS_AGAIN.items()}
"""From the fault to the moment at which any free worker could take the victim; the names are those of `goals.GOALS`."""

GOES_ON: Final = {
    **dict.fromkeys(("F10", "F11", "F12", "F13", "F14"), "Redis healed -> next start"),
    **dict.fromkeys(("F15", "F16"), "Postgres accepts again -> next start"),
    "F17": "both healed -> next start",
}
"""From the healing to the next start of any job, if one waits to be started."""


ASKED_TO_END: Final = "cancel of a running job -> ended"
ASKED_IN_AN_OUTAGE: Final = "cancel of a running job in an outage -> ended"

HITS_ALL: Final = frozenset({"F4", "F15", "F16", "F17", "F19", "F21"})
"""What may keep any running job from its end: Postgres was away, or the workers were replaced. Others hit only their
victims; Redis and schedulers are not needed to end a job that answers."""

AFTERMATH_SECONDS: Final = 15.0
"""After a fault is healed: as long as the goals allow until all goes on."""


def recoveries(events: Iterable[Event]) -> Iterator[tuple[str, float]]:
    """Each measured time: its name, and seconds.

    A victim that is never started again has no time here; whether it should have been is for the checker.
    """
    ordered = list(events)
    starts = sorted(one["at"] for one in ordered if one["event"] == "started")
    starts_of: dict[str, list[float]] = defaultdict(list)
    for one in ordered:
        if one["event"] == "started":
            starts_of[one["id"]].append(one["at"])
    waiting = _Waiting(ordered)
    for one in ordered:
        if one["event"] == "fault_begun" and one["fault"] in RUNS_AGAIN:
            for victim in one["victims"]:
                again = _next(sorted(starts_of[victim]), one["at"])
                if again is not None:
                    yield RUNS_AGAIN[one["fault"]], again - one["at"]
        elif one["event"] == "fault_healed" and one["fault"] in GOES_ON and waiting.at(one["at"]):
            again = _next(starts, one["at"])
            if again is not None:
                yield GOES_ON[one["fault"]], again - one["at"]
    yield from _drain(ordered)


def requeues(events: Iterable[Event], moves: Iterable[Event]) -> Iterator[tuple[str, float]]:
    """From each fault to the moment at which its victims are queued again.

    Args:
        moves: of statuses, as the ledger's trigger has seen them.
    """
    queued_of: dict[str, list[float]] = defaultdict(list)
    for move in moves:
        if move["now"] == "queued":
            queued_of[str(move["job_id"])].append(move["at"])
    for one in events:
        if one["event"] == "fault_begun" and one["fault"] in QUEUED_AGAIN:
            for victim in one["victims"]:
                again = _next(sorted(queued_of[victim]), one["at"])
                if again is not None:
                    yield QUEUED_AGAIN[one["fault"]], again - one["at"]


def stops(events: Iterable[Event], moves: Iterable[Event]) -> Iterator[tuple[str, float]]:
    """From the answer that a running job will be ended to its end; under a name of its own if a fault hit the job.

    Args:
        moves: of statuses, as the ledger's trigger has seen them.
    """
    ordered = list(events)
    ended = {str(move["job_id"]): move["at"] for move in moves if move["now"] in TERMINAL}
    healed = {one["number"]: one["at"] for one in ordered if one["event"] == "fault_healed"}
    faults = [one for one in ordered if one["event"] == "fault_begun"]
    for asked in ordered:
        if asked["event"] != "canceled" or not asked.get("requested") or asked["id"] not in ended:
            continue
        end = ended[asked["id"]]
        hit = any(
            (one["fault"] in HITS_ALL or asked["id"] in one["victims"])
            and one["at"] < end
            and healed.get(one["number"], end) + AFTERMATH_SECONDS > asked["at"]
            for one in faults
        )
        yield ASKED_IN_AN_OUTAGE if hit else ASKED_TO_END, max(0.0, end - asked["at"])


def takeovers(events: Iterable[Event], sweeps: list[float]) -> Iterator[tuple[str, float]]:
    """From each kill of schedulers to the next sweep of anybody.

    Args:
        sweeps: times of all sweeps.
    """
    ordered = sorted(sweeps)
    for one in events:
        if one["event"] == "fault_begun" and one["fault"] in ("F6", "F8"):
            swept = _next(ordered, one["at"])
            if swept is not None:
                yield "scheduler killed -> next sweep", swept - one["at"]


def _drain(events: list[Event]) -> Iterator[tuple[str, float]]:
    quiet = next((one["at"] for one in events if one["event"] == "quiet"), None)
    drained = next((one["at"] for one in events if one["event"] == "drained"), None)
    if quiet is not None and drained is not None:
        yield "all healed -> drained", drained - quiet


def _next(moments: list[float], after: float) -> float | None:
    place = bisect_right(moments, after)
    return moments[place] if place < len(moments) else None


class _Waiting:
    """Whether, at a moment, some accepted job had not been started even once."""

    def __init__(self, events: list[Event]) -> None:
        canceled = {one["id"] for one in events if one["event"] == "canceled"}
        started: set[str] = set()
        self._changes: list[tuple[float, int]] = []
        for one in events:
            if one["event"] == "dispatch_accepted" and one["id"] not in canceled:
                self._changes.append((one["at"], 1))
            elif one["event"] == "started" and one["id"] not in started | canceled:
                started.add(one["id"])
                self._changes.append((one["at"], -1))
        self._changes.sort()

    def at(self, moment: float) -> bool:
        return sum(change for when, change in self._changes if when <= moment) > 5
        # more than what waits for its time only
