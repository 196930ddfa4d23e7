"""What workers and reapers must not do: end where they should wait, outlive their grace, or be taken for dead. Pure."""

from collections import defaultdict
from typing import Final

from jobledger.maintenance.reaper import LEASE_RAN_OUT
from witnesses import Job, Kind, Run, Violation, Violations, about, expected_ends

REDIS_AWAY: Final = ("F9", "F10", "F11", "F12", "F13")
"""Faults that a worker of `python -m jobledger worker` waits out."""

PATIENT: Final = "-patient"
"""The end of the names of such workers."""

FREE: Final = "with a worker free"
"""The end of the name of what is measured there alone, as `WITH_FREE_WORKERS` must have."""

WITH_FREE_WORKERS: Final = ("F1", "F2")

GRACE_IS_OVER: Final = "the grace is over"
"""The detail of a fault that was necessary because a worker had not ended in time begins with this."""


def nobody_is_reaped_alive(run: Run) -> Violations:
    """I14: an attempt is given up for its stale lease only if something has hit its process, or its worker ended."""
    hits: dict[str, list[float]] = defaultdict(list)
    for event in run.by_event["fault_begun"]:
        for victim in event["victims"]:
            hits[victim].append(event["at"])
    ended: dict[str, float] = {}
    for event in run.by_event["exited"]:
        ended.setdefault(str(event["pid"]), event["at"])
    for job, expected in run.of_load():
        if all(end.startswith("failed") for end in expected_ends(expected)):  # poison may hold its own lease up
            continue
        for attempt in job.attempts:
            if attempt["outcome"] != "lost" or attempt.get("error_message") != LEASE_RAN_OUT:
                continue
            over, worker = attempt["finished_at"], _worker_of(job, attempt["number"])
            was_hit = any(attempt["started_at"] <= at < over for at in hits[job.id])
            if worker is None or was_hit or ended.get(worker, over) < over:
                continue
            what = f"attempt {attempt['number']} was given up, and neither its process nor its worker {worker} was hit"
            yield about("I14", Kind.REAPED_ALIVE, job, what)


def _worker_of(job: Job, attempt: int) -> str | None:
    """Pid of the worker whose work-horse began an attempt; None if the attempt never said that it began."""
    return next((str(start["worker"]) for start in job.starts if start["attempt"] == attempt), None)


def patient_workers_wait(run: Run) -> Violations:
    """I15: a worker that is to wait for Redis does not end because Redis is away."""
    if run.begun.get("fault") not in REDIS_AWAY:
        return
    over = next((event["at"] for event in run.by_event["drained"]), float("inf"))
    for event in run.by_event["exited"]:
        if event["name"].endswith(PATIENT) and event["at"] < over:
            what = f"{event['name']} ended with {event['code']}, where it was to wait for Redis"
            yield Violation("I15", Kind.WORKER_ENDED, what)


def workers_end_within_their_grace(run: Run) -> Violations:
    """I16: a worker that is told to end hands its job back in time. A short run's grace is no measure for that."""
    if run.begun.get("fault") != "F4" or run.begun.get("short"):
        return
    for event in run.by_event["fault_begun"]:
        if event["detail"].startswith(GRACE_IS_OVER):
            yield Violation("I16", Kind.NOT_HANDED_BACK, event["detail"], job_id=next(iter(event["victims"]), None))


def ledger_and_redis_agree(run: Run) -> Violations:
    """I7: a minute after all was healed every unfinished job is in exactly one place, by the system's own count.

    On a slow machine later: the count is taken again as long as it falls. How long that took has a goal.
    """
    if run.begun.get("seed") is not None and not run.by_event["drift"]:  # bare RQ has no ledger
        yield Violation("run", Kind.RUN_NOT_WHOLE, "nobody has counted where the jobs are after all was healed")
    for event in run.by_event["drift"]:
        if event["drift"]:
            what = f"{event['seconds']:.0f} s after all was healed: {event['drift']} of {event['places']}"
            yield Violation("I7", Kind.DRIFT, what)


def the_only_job_was_hit(run: Run) -> Violations:
    """Without that, nothing says how soon a job runs again that need not wait for others."""
    measured = any(event["name"].endswith(FREE) for event in run.by_event["measured"])
    if run.begun.get("fault") in WITH_FREE_WORKERS and not measured:
        yield Violation("run", Kind.RUN_NOT_WHOLE, f"nothing was measured {FREE}")
