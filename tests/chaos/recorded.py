"""A recorded run in which nothing is wrong, for the tests of the checker, which plant violations into it."""

import copy
from collections import Counter
from typing import Any, Final

from history import Event
from witnesses import Run

QUICK, KILLED, RAISED, EXTERNAL, CANCELED, POISON, UNKNOWN, RETRIED = (f"id-{number}" for number in range(8))
LIMITED: Final = ("id-limited-1", "id-limited-2", "id-limited-3")
"""Two of them run at once, and the first attempt of the second is killed."""

PACED: Final = ("id-paced-1", "id-paced-2", "id-paced-3")
STOPPED: Final = "id-stopped"

KEY: Final = "chaos:north"
LIMIT: Final = {"kind": "limit", "key": KEY, "most": 2}
RATE: Final = {"kind": "rate", "key": KEY, "most": 2, "window": 2.0}


class Recorded:
    """A run as it was recorded; plants change it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ledger: dict[str, Any] = {
            **{name: [] for name in ("jobs", "attempts", "moves", "effects", "slots", "sessions", "processes")},
            "limit_keys": [{"kind": kind, "key": KEY, "taken": 0} for kind in ("limit", "rate")],
            "redis": {"queued": {"default": []}, "intermediate": {"default": []}, "workers": [], "executions": []},
        }

    def say(self, event: str, **fields: Any) -> None:
        self.events.append({"at": float(len(self.events)), "event": event, **fields})

    def run(self) -> Run:
        """Of copies, as if read anew."""
        return Run(copy.deepcopy(self.events), copy.deepcopy(self.ledger))

    def row(self, job_id: str) -> dict[str, Any]:
        return next(row for row in self.ledger["jobs"] if row["id"] == job_id)

    def of(self, name: str, job_id: str) -> list[dict[str, Any]]:
        return [row for row in self.ledger[name] if row["job_id"] == job_id]

    def said(self, event: str, **fields: Any) -> Event:
        return next(one for one in self.events if one["event"] == event and fields.items() <= one.items())

    def drop(self, event: str, **fields: Any) -> None:
        self.events.remove(self.said(event, **fields))

    def job(self, job_id: str, key: str | None, end: str, *outcomes: str, effects: int = 1) -> None:
        """A job with its attempts, as it should be."""
        status, _, reason = end.partition(":")
        counts = Counter(outcomes)
        self.ledger["jobs"].append(
            {"id": job_id, "key": key, "job_type": "Quick", "queue": "default", "held_by": None, "result": None}
            | {"status": status, "reason": reason or None, "attempt": len(outcomes), "max_attempts": 5}
            | {"errors": counts["error"], "crashes": counts["crashed"], "losses": counts["lost"]}
        )
        self._move(job_id, None, "queued", 0)
        for number, outcome in enumerate(outcomes, start=1):
            self._attempt(job_id, key, number, outcome)
            self._move(job_id, "queued", "started", number)
            if number < len(outcomes):
                self._move(job_id, "started", "scheduled", number)
                self._move(job_id, "scheduled", "queued", number)
        self._move(job_id, "started" if outcomes else "queued", status, len(outcomes))
        if status == "completed":
            effect = {"job_id": job_id, "key": key, "attempt": len(outcomes), "at": 1.0}
            self.ledger["effects"] += [dict(effect) for _ in range(effects)]

    def ran(self, job_id: str, begin: float, end: float | None, attempt: int = 1) -> None:
        """When an attempt said that it began, and ended; None for one that never said that."""
        self.said("started", id=job_id, attempt=attempt)["at"] = begin
        if end is None:
            self.drop("ended", id=job_id, attempt=attempt)
        else:
            self.said("ended", id=job_id, attempt=attempt)["at"] = end

    def began(self, job_id: str, moment: float, attempt: int = 1) -> None:
        """When an attempt began by the ledger."""
        row = self.of("attempts", job_id)[attempt - 1]
        row.update(started_at=moment, finished_at=moment + 1)

    def _move(self, job_id: str, was: str | None, now: str, attempt: int) -> None:
        self.ledger["moves"].append({"job_id": job_id, "was": was, "now": now, "attempt": attempt, "at": 1.0})

    def _attempt(self, job_id: str, key: str | None, number: int, outcome: str) -> None:
        self.ledger["attempts"].append(
            {"job_id": job_id, "number": number, "worker": "w", "pid": 100 + number, "outcome": outcome}
            | {"started_at": 10.0 * number, "finished_at": 10.0 * number + 5}
        )
        about = {"key": key, "id": job_id, "attempt": number, "pid": 100 + number}
        self.say("started", **about, worker="w")
        if outcome in ("completed", "error", "canceled"):
            self.say("ended", **about, how="returned" if outcome == "completed" else "raised")


def clean() -> Recorded:
    """A run with a job of every sort in which nothing is wrong."""
    run = Recorded()
    run.say("run_begun", fault="F2", seed=1, jobs=7, settings={"lease_seconds": 30})
    for job_id, key, more in (
        (QUICK, "quick-1", {}),
        (KILLED, "brief-2", {}),
        (RAISED, "raising-3", {}),
        (EXTERNAL, "external-4", {"effects": 0}),
        (CANCELED, "canceled-5", {"ends": "canceled"}),
        (POISON, "poison-6", {"ends": ["failed:crashed"]}),
        (RETRIED, "quick-9", {}),
        *((job_id, job_id.removeprefix("id-"), {"limits": [LIMIT]}) for job_id in LIMITED),
        *((job_id, job_id.removeprefix("id-"), {"limits": [LIMIT, RATE]}) for job_id in PACED),
        (STOPPED, "stopped-1", {"ends": ["canceled", "completed"], "stops": True}),
    ):
        run.say("dispatch_invoked", key=key, **more)
        run.say("dispatch_accepted", key=key, id=job_id, via="http" if job_id == QUICK else "python")
    for key in ("quick-7", "quick-8"):
        run.say("dispatch_invoked", key=key)
    run.say("dispatch_unknown", key="quick-7", error="no answer")
    run.say("dispatch_refused", key="quick-8", error="nobody listens")
    run.say("canceled", key="canceled-5", id=CANCELED, done=True)
    run.say("retried", key="quick-9", id=RETRIED)
    run.say("fault_begun", fault="F2", number=1, detail="SIGKILL", victims=[KILLED])
    run.say("fault_healed", fault="F2", number=1)
    run.job(QUICK, "quick-1", "completed", "completed")
    run.job(KILLED, "brief-2", "completed", "lost", "completed")
    run.job(RAISED, "raising-3", "completed", "error", "error", "completed")
    run.job(EXTERNAL, "external-4", "completed", "completed", effects=0)
    run.job(CANCELED, "canceled-5", "canceled")
    run.job(POISON, "poison-6", "failed:crashed", "crashed", "crashed", "crashed")
    run.job(UNKNOWN, "quick-7", "completed", "completed")
    run.job("id-callback", None, "completed", "completed", effects=0)
    run.job(RETRIED, "quick-9", "completed", "lost", "completed")
    _limited_jobs(run)
    run.job(STOPPED, "stopped-1", "canceled", "canceled")
    run.say("canceled", key="stopped-1", id=STOPPED, done=False, requested=True)
    person = run.of("moves", RETRIED)[2:4]
    person[0]["now"] = person[1]["was"] = "failed"
    run.row(RETRIED)["losses"] = 0
    # A callback's start is seen by nobody: it says nothing.
    run.events = [event for event in run.events if event.get("id") != "id-callback"]
    run.say("ticks", missing=0, doubled=0, fired=20)
    run.say("throughput", before=50.0, during=45.0)
    run.say("pace", slowness=1.0)
    run.say("measured", name="worker tree killed -> queued again", seconds=44.0)
    run.say("measured", name="worker tree killed -> running again, with a worker free", seconds=15.0)
    run.say("measured", name="API answer", seconds=3.0)
    run.say("quiet")
    run.say("drift", drift=0, seconds=60.0, places={})
    run.say("drained")
    run.say("run_ended")
    return run


def _limited_jobs(run: Recorded) -> None:
    """Of the first three, the second is killed while the first runs; then it runs beside the third."""
    run.job(LIMITED[0], "limited-1", "completed", "completed")
    run.job(LIMITED[1], "limited-2", "completed", "lost", "completed")
    run.job(LIMITED[2], "limited-3", "completed", "completed")
    run.ran(LIMITED[0], 1000, 1010)
    run.said("started", id=LIMITED[1], attempt=1)["at"] = 1005.0
    run.of("attempts", LIMITED[1])[0].update(started_at=1004, finished_at=1020)
    run.of("attempts", LIMITED[1])[1].update(started_at=1029, finished_at=1041)
    run.ran(LIMITED[2], 1010, 1035)
    run.ran(LIMITED[1], 1030, 1040, attempt=2)
    for number, job_id in enumerate(PACED):
        run.job(job_id, job_id.removeprefix("id-"), "completed", "completed")
        run.ran(job_id, 2000 + number, 2000.5 + number)
        run.began(job_id, 2000 + number)
