"""Whether limits and rates held: the invariant I13. Pure."""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from history import Event
from witnesses import Job, Kind, Run, Violation, Violations, about

FREEZES: Final = "F5"

RATE_SLACK_SECONDS: Final = 0.01
"""A start is counted and written down by one statement, but not at the same instant of it."""


def limits_hold(run: Run) -> Violations:
    """I13: by the observer, no more jobs of a key ran at one moment than its limit says."""
    frozen = {
        victim for fault in run.by_event["fault_begun"] if fault["fault"] == FREEZES for victim in fault["victims"]
    }
    running: dict[tuple[str, int], list[tuple[float, float, Job]]] = defaultdict(list)
    for job, limit in _restricted(run, "limit"):
        for start in job.starts:
            end = _end(job, start, was_frozen=job.id in frozen)
            running[limit["key"], limit["most"]].append((start["at"], end, job))
    for (key, most), runs in running.items():
        ends: list[float] = []
        for begin, end, job in sorted(runs, key=lambda one: one[0]):
            while ends and ends[0] <= begin:
                heapq.heappop(ends)
            if end > begin:
                heapq.heappush(ends, end)
            if len(ends) > most:
                what = f"it began when {len(ends) - 1} others of {key} ran, and {most} may at once"
                yield about("I13", Kind.OVER_LIMIT, job, what)


def rates_hold(run: Run) -> Violations:
    """I13: by the ledger, no more attempts of a key started within any such time than its rate says."""
    starts: dict[tuple[str, int, float], list[tuple[float, Job]]] = defaultdict(list)
    for job, rate in _restricted(run, "rate"):
        begun = [(float(attempt["started_at"]), job) for attempt in job.attempts]
        starts[rate["key"], rate["most"], rate["window"]] += begun
    for (key, most, window), moments in starts.items():
        moments.sort(key=lambda one: one[0])
        for (first, _), (last, job) in zip(moments, moments[most:], strict=False):
            if last - first < window - RATE_SLACK_SECONDS:
                what = f"{most + 1} of {key} started within {last - first:.3f} s, and {most} may within {window:g} s"
                yield about("I13", Kind.OVER_RATE, job, what)


def no_slot_is_leaked(run: Run) -> Violations:
    """I13: at rest nobody has a slot, and none is counted as taken."""
    keys = run.ledger.get("limit_keys", [])  # bare RQ has no limits
    if not keys and any(job.starts for job, _ in _restricted(run, "limit")):
        yield Violation("run", Kind.RUN_NOT_WHOLE, "jobs with limits ran, and no key was counted")
    for one in keys:
        if one["taken"]:
            what = f"all is quiet, and {one['taken']} slots of {one['kind']}:{one['key']} are taken"
            yield Violation("I13", Kind.SLOT_LEAKED, what)
    for one in run.ledger.get("slots", []):
        what = f"all is quiet, and it has a slot of {one['kind']}:{one['key']}"
        yield Violation("I13", Kind.SLOT_LEAKED, what, job_id=str(one["job_id"]))


def _restricted(run: Run, kind: str) -> Iterator[tuple[Job, dict[str, Any]]]:
    """The jobs of the load that are under a limit or a rate, with what their dispatch said of it."""
    for job, expected in run.of_load():
        for one in expected.get("limits", []):
            if one["kind"] == kind:
                yield job, one


def _end(job: Job, start: Event, *, was_frozen: bool) -> float:
    """When a run ended: when it said so, or if it was killed before it could, when the ledger ended its attempt.

    A frozen process lives on after its attempt was given up: nobody can tell it from a dead one, so the ledger counts.
    """
    number = start["attempt"]
    written = [one["finished_at"] for one in job.attempts if one["number"] == number and one["finished_at"] is not None]
    said = [end["at"] for end in job.ends if end["attempt"] == number and end["pid"] == start["pid"]]
    if said and not was_frozen:
        return float(said[0])
    return float(min([*said, *written], default=math.inf))
