"""Holds what was seen of a run against what must always be true: the invariants I1 to I16.

Pure: history and ledger in, verdict out. `python tests/chaos/checker.py DIRECTORY` judges a run that was kept.
"""

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from goals import GOALS
from jobledger.domain.status import MOVES, TERMINAL
from jobledger.lifecycle.finish import MAX_CRASHES, MAX_LOSSES
from limit_checks import limits_hold, no_slot_is_leaked, rates_hold
from witnesses import Kind, Run, Verdict, Violation, Violations, about, expected_ends
from worker_checks import (
    ledger_and_redis_agree,
    nobody_is_reaped_alive,
    patient_workers_wait,
    the_only_job_was_hit,
    workers_end_within_their_grace,
)

SHORT_RUN_SLACK: Final = 4
LEAST_HEALTHY_SHARE: Final = 0.8
"""Of their speed before, that healthy jobs keep beside poisoned ones."""

NEEDED_IN: Final = {"F6": ("ticks",), "F18": ("throughput", "speed"), "F20": ("ticks",), "F22": ("ticks",)}
"""A run of this class that has none of these events has not looked at what it is about."""

POSTGRES_RESTARTS: Final = ("F15", "F17", "F21")

COUNTED: Final = {
    "lost": Kind.LOST,
    "doubled": Kind.DOUBLED,
    "unexpected": Kind.UNEXPECTED,
    "zombie_writes": Kind.ZOMBIE_WRITE,
}


def run_is_whole(run: Run) -> Violations:
    """A run in which nothing was dispatched, broken or finished cannot find anything, so it is no success."""
    fault = run.begun.get("fault")
    needed = [(name,) for name in ("run_begun", "quiet", "drained", "dispatch_accepted", "started")]
    for names in (*needed, NEEDED_IN.get(fault or "", ("run_begun",))):
        if not any(run.by_event[name] for name in names):
            yield Violation("run", Kind.RUN_NOT_WHOLE, f"the history has no {' or '.join(names)}")
    if not all(event["fired"] for event in run.by_event["ticks"]):
        yield Violation("run", Kind.RUN_NOT_WHOLE, "no tick has fired")
    poisoned = any(all(end.startswith("failed") for end in expected_ends(one)) for one in run.invoked.values())
    if fault and not run.by_event["fault_begun"] and not poisoned:
        yield Violation("run", Kind.RUN_NOT_WHOLE, f"{fault} was to be injected, and never was")
    healed = Counter(event["number"] for event in run.by_event["fault_healed"])
    for event in run.by_event["fault_begun"]:
        if not healed[event["number"]]:
            yield Violation("run", Kind.RUN_NOT_WHOLE, f"{event['fault']} number {event['number']} was not healed")
    asked = {event["id"] for event in run.by_event["canceled"]}
    for job, expected in run.of_load():
        if expected.get("stops") and job.starts and job.id not in asked:
            yield about("run", Kind.RUN_NOT_WHOLE, job, "it was to be canceled while it runs, and nobody did")


def nothing_is_lost(run: Run) -> Violations:
    """I1: every id that was accepted has a row, and every job of the load is terminal, as it was to end."""
    for job_id, event in run.accepted.items():
        job = run.jobs.get(job_id)
        if job is None:
            yield Violation("I1", Kind.LOST, "it was accepted, and the ledger has no such row", event["key"], job_id)
        elif job.key != event["key"]:
            yield about("I1", Kind.LOST, job, f"it was accepted as {event['key']}, but its row is another job's")
    for job in run.jobs.values():
        if job.status not in TERMINAL:
            waits = f"{job.status}, attempt {job.attempt}, held by {job.row.get('held_by') or 'nothing'}"
            yield about("I1", Kind.LOST, job, f"all is quiet, and it is still {waits}")
    for job, expected in run.of_load():
        ends = expected_ends(expected)
        if job.id in run.canceled and job.id not in run.retried:
            ends = ["canceled"]
        elif ends == ["canceled"]:  # whether it exists was unknown, so nobody could cancel it
            ends = ["canceled", "completed"]
        if job.status in TERMINAL and job.end not in ends and job.status not in ends:
            why = job.row.get("reason") or "no reason"
            yield about("I1", Kind.WRONG_END, job, f"it ended {job.status} ({why}), and should be {' or '.join(ends)}")


def nothing_is_unexpected(run: Run) -> Violations:
    """I2: nothing runs or exists that nobody has dispatched; what was refused or dispatched once is not there twice."""
    invoked: set[str] = set()
    for event in run.events:
        if event["event"] == "dispatch_invoked":
            invoked.add(event["key"])
        if event["event"] == "started" and event["key"] not in invoked:
            yield Violation("I2", Kind.UNEXPECTED, "it ran, and nobody had dispatched it", event["key"], event["id"])
    for stranger in run.strangers:
        what = f"it has {stranger.get('event', 'a trace in the database')}, and the ledger has no such row"
        yield Violation(
            "I2", Kind.UNEXPECTED, what, stranger.get("key"), str(stranger.get("id", stranger.get("job_id")))
        )
    times = Counter(event["key"] for event in run.by_event["dispatch_invoked"])
    rows = Counter(job.key for job in run.jobs.values() if job.key is not None)
    refused = Counter(event["key"] for event in run.by_event["dispatch_refused"])
    for key, number in rows.items():
        once = run.invoked[key].get("once", False) if key in run.invoked else False
        if number > (1 if once else times[key]):
            what = f"it was dispatched {times[key]} times{' as the same' if once else ''}, and has {number} rows"
            yield Violation("I2", Kind.UNEXPECTED, what, key)
        elif number > times[key] - refused[key]:
            yield Violation("I11", Kind.FALSE_ANSWER, "it was refused, and has a row all the same", key)


def effects_are_exactly_once(run: Run) -> Violations:
    """I3: as many effects as its completion leaves for a job that completed, and none for any other."""
    for job, expected in run.of_load():
        wanted, found = expected.get("effects", 1), len(job.effects)
        attempts = ", ".join(str(effect["attempt"]) for effect in job.effects)
        if job.status != "completed":
            if found:
                yield about("I3", Kind.STRAY_EFFECT, job, f"it is {job.status}, and attempt {attempts} left an effect")
        elif found > wanted:
            yield about("I3", Kind.DOUBLED, job, f"{found} effects instead of {wanted}, by attempts {attempts}")
        elif found < wanted:
            yield about("I3", Kind.MISSING_EFFECT, job, f"it completed, and left {found} effects instead of {wanted}")


def starts_are_accounted_for(run: Run) -> Violations:
    """I4: a start is an attempt of the ledger, and one more than the first only after an interruption.

    Each attempt that began has an end, and nothing completes that has not run to its end.
    """
    for job in run.jobs.values():
        recorded = {attempt["number"]: attempt for attempt in job.attempts}
        starts = Counter(start["attempt"] for start in job.starts)
        for number, times in starts.items():
            if number not in recorded:
                yield about("I4", Kind.UNRECORDED_START, job, f"attempt {number} ran, and the ledger does not know it")
            if times > 1:
                pids = sorted({start["pid"] for start in job.starts if start["attempt"] == number})
                what = f"attempt {number} began {times} times, in processes {pids}"
                yield about("I4", Kind.STARTED_TWICE, job, what)
        interrupted = sum(attempt["outcome"] not in (None, "completed") for attempt in job.attempts)
        if len(job.starts) > 1 + interrupted:
            what = f"it began {len(job.starts)} times, and only {interrupted} attempts were interrupted"
            yield about("I4", Kind.TOO_MANY_STARTS, job, what)
        for attempt in job.attempts:
            if attempt["outcome"] is None or attempt["finished_at"] is None:
                what = f"attempt {attempt['number']} began on {attempt['worker']}, and nothing says how it ended"
                yield about("I4", Kind.OPEN_ATTEMPT, job, what)
    yield from nobody_completes_unseen(run)


def nobody_completes_unseen(run: Run) -> Violations:
    """I4: the attempt that completed a job of the load said that it began, and that it returned."""
    for job, _ in run.of_load():
        if job.status != "completed":
            continue
        if not any(start["attempt"] == job.attempt for start in job.starts):
            yield about("I4", Kind.NEVER_RAN, job, f"attempt {job.attempt} completed it, and nobody saw that begin")
        elif not any(end["attempt"] == job.attempt and end["how"] == "returned" for end in job.ends):
            yield about("I4", Kind.NEVER_RAN, job, f"attempt {job.attempt} completed it, and nobody saw that return")


def zombies_write_nothing(run: Run) -> Violations:
    """I5: once there is a higher attempt, a lower one writes neither an effect nor an end (nor the result with it)."""
    for job in run.jobs.values():
        for effect in job.effects:
            if effect["attempt"] != job.attempt:
                what = f"attempt {effect['attempt']} left an effect, and the last is attempt {job.attempt}"
                yield about("I5", Kind.ZOMBIE_WRITE, job, what)
        for attempt in job.attempts:
            is_last = attempt["number"] == job.attempt and job.status == "completed"
            if attempt["outcome"] == "completed" and not is_last:
                what = f"attempt {attempt['number']} completed; the job is {job.status} at attempt {job.attempt}"
                yield about("I5", Kind.ZOMBIE_WRITE, job, what)
        for earlier, later in zip(job.attempts, job.attempts[1:], strict=False):
            if earlier["finished_at"] is not None and earlier["finished_at"] > later["started_at"]:
                what = f"the end of attempt {earlier['number']} was written after attempt {later['number']} began"
                yield about("I5", Kind.ZOMBIE_WRITE, job, what)


def statuses_move_as_allowed(run: Run) -> Violations:
    """I6: each move is one of `jobledger.domain.status.MOVES` and follows the one before.

    Terminal stays terminal, except by a person's retry; the fence rises by one with each claim and with nothing else.
    """
    for job in run.jobs.values():
        was: str | None = None
        fence = 0
        for move in job.moves:
            if (move["was"], move["now"]) not in MOVES or move["was"] != was:
                yield about("I6", Kind.ILLEGAL_MOVE, job, f"{move['was']} -> {move['now']}, when it was {was}")
            elif was in TERMINAL and job.id not in run.retried:
                yield about("I6", Kind.ILLEGAL_MOVE, job, f"{was} -> {move['now']}, and no person had asked for it")
            rises = 1 if move["now"] == "started" else 0
            if move["attempt"] != fence + rises:
                what = f"from {fence} to {move['attempt']} at {move['was']} -> {move['now']}"
                yield about("I6", Kind.FENCE_FELL, job, what)
            was, fence = move["now"], move["attempt"]
        if was != job.status:
            yield about("I6", Kind.ILLEGAL_MOVE, job, f"its moves end at {was}, and it is {job.status}")
        if fence != job.attempt:
            yield about("I6", Kind.FENCE_FELL, job, f"its moves end at attempt {fence}, and it is at {job.attempt}")


def attempts_keep_to_budgets(run: Run) -> Violations:
    """I6: attempts are numbered without gaps, each that failed was counted once, and no budget was overdrawn.

    What is lost with Postgres itself is nobody's fault, and need not be counted. The last attempt of a job that is
    canceled while it runs spends nothing, however it ends: no other one can follow.
    """
    forgiven = (
        {"losses"} if any(event["fault"] in POSTGRES_RESTARTS for event in run.by_event["fault_begun"]) else set()
    )
    for job in run.jobs.values():
        numbers = [attempt["number"] for attempt in job.attempts]
        if numbers != list(range(1, job.attempt + 1)):
            yield about("I6", Kind.MISCOUNTED, job, f"it is at attempt {job.attempt}, and has the rows {numbers}")
        spending = job.attempts[:-1] if job.was_called_off else job.attempts
        outcomes = Counter(attempt["outcome"] for attempt in spending)
        spent = {
            "errors": (outcomes["error"] + outcomes["timeout"], job.row["max_attempts"]),
            "crashes": (outcomes["crashed"], MAX_CRASHES),
            "losses": (outcomes["lost"], MAX_LOSSES),
        }
        for name, (happened, limit) in spent.items():
            counted = job.row[name]
            if counted > limit:
                yield about("I6", Kind.OVER_BUDGET, job, f"{counted} {name}, of {limit} at most")
            if counted > happened or (counted < happened and name not in forgiven and job.id not in run.retried):
                yield about("I6", Kind.MISCOUNTED, job, f"{happened} {name} happened, and {counted} were counted")


def nothing_is_left_over(run: Run) -> Violations:
    """I7: at rest Redis holds no wake-up, Postgres no open transaction, and the machine no process without parent."""
    redis = run.ledger["redis"]
    places = [(f"the list {name}", ids) for name, ids in redis["queued"].items()]
    places += [(f"the intermediate list {name}", ids) for name, ids in redis["intermediate"].items()]
    places += [("the executions", redis["executions"])]
    for place, ids in places:
        for found in ids:
            job_id = next((part for part in str(found).split(":") if part in run.jobs), None)
            key = run.jobs[job_id].key if job_id else None
            yield Violation("I7", Kind.LEFTOVER_IN_REDIS, f"all is quiet, and {place} still holds {found}", key, job_id)
    for session in run.ledger["sessions"]:
        if str(session["state"]).startswith("idle in transaction"):
            what = f"session {session['pid']} ({session['application_name']}) is {session['state']}"
            yield Violation("I7", Kind.IDLE_TRANSACTION, what)
    for process in run.ledger["processes"]:
        yield Violation("I7", Kind.ORPHAN, f"process {process['pid']} is still there: {process['cmdline']}")
    for event in run.by_event["orphan"]:
        yield Violation("I7", Kind.ORPHAN, f"work-horse {event['pid']} outlived its worker by more than a second")


def recovery_is_quick(run: Run) -> Violations:
    """I8: what is measured and has a goal keeps it; in a short run, many times the goal at the pace of the machine."""
    pace = max((event["slowness"] for event in run.by_event["pace"]), default=1.0)
    slack = SHORT_RUN_SLACK * pace if run.begun.get("short") else 1
    for name, seen, limit, of in with_goals(run):
        if seen > slack * limit:
            what = f"{name}: {seen:.1f} s ({of}), and {slack * limit:g} s are allowed"
            yield Violation("I8", Kind.TOO_SLOW, what)


def with_goals(run: Run) -> Iterator[tuple[str, float, float, str]]:
    """What was measured and has a goal: its name, the seconds that count, those of the goal, and of what they are."""
    lease = float(run.begun.get("settings", {}).get("lease_seconds", 30))
    for name, (longest, p99, number) in measured(run).items():
        goal = GOALS.get(name)
        limit = goal.seconds(lease, run.begun.get("fault")) if goal else None
        if goal is not None and limit is not None:
            yield name, p99 if goal.of == "p99" else longest, limit, f"{goal.of} of {number}"


def ticks_fire_once(run: Run) -> Violations:
    """I9: no tick is missing, none fires twice."""
    for event in run.by_event["ticks"]:
        if event["missing"]:
            yield Violation("I9", Kind.MISSING_TICK, f"{event['missing']} of {event['fired']} ticks are missing")
        if event["doubled"]:
            yield Violation("I9", Kind.DOUBLED_TICK, f"{event['doubled']} of {event['fired']} ticks fired twice")


def poison_stays_alone(run: Run) -> Violations:
    """I10: healthy jobs keep most of their speed beside poisoned ones. (How a poison ends is in its `ends`: I1.)"""
    for event in run.by_event["throughput"]:
        if event["during"] < LEAST_HEALTHY_SHARE * event["before"]:
            what = f"{event['during']:.1f} healthy jobs/s beside poison, and {event['before']:.1f} without"
            yield Violation("I10", Kind.POISON_SPREAD, what)


def answers_are_true(run: Run) -> Violations:
    """I11: what HTTP has accepted is in the ledger. (That a refused job has no row stands with I2, times with I8.)"""
    for job_id, event in run.accepted.items():
        if event.get("via") == "http" and job_id not in run.jobs:
            yield Violation("I11", Kind.FALSE_ANSWER, "the API said 2xx, and there is no row", event["key"], job_id)


def canceled_never_runs(run: Run) -> Violations:
    """I12: a job whose cancel was answered with yes, or that it will be ended, begins no attempt from then on."""
    for job_id in run.canceled.keys() - run.retried:
        job = run.jobs.get(job_id)
        if job is None:
            continue
        fence = job.fence_when_canceled or 0
        for start in job.starts:
            if start["attempt"] > fence:
                what = f"it was canceled before attempt {fence + 1}, which ran in process {start['pid']}"
                yield about("I12", Kind.RAN_AFTER_CANCEL, job, what)
    for job_id, promise in run.promised.items():
        job = run.jobs.get(job_id)
        for move in job.moves if job is not None and job_id not in run.retried else []:
            if move["now"] == "started" and move["at"] > promise["at"]:
                what = f"it was to be ended, and began attempt {move['attempt']} after that"
                yield about("I12", Kind.RAN_AFTER_CANCEL, job, what)


CHECKS: Final[list[Callable[[Run], Violations]]] = [
    run_is_whole,
    nothing_is_lost,
    nothing_is_unexpected,
    effects_are_exactly_once,
    starts_are_accounted_for,
    zombies_write_nothing,
    statuses_move_as_allowed,
    attempts_keep_to_budgets,
    nothing_is_left_over,
    recovery_is_quick,
    ticks_fire_once,
    poison_stays_alone,
    answers_are_true,
    canceled_never_runs,
    limits_hold,
    rates_hold,
    no_slot_is_leaked,
    nobody_is_reaped_alive,
    patient_workers_wait,
    workers_end_within_their_grace,
    ledger_and_redis_agree,
    the_only_job_was_hit,
]


def measured(run: Run) -> dict[str, tuple[float, float, int]]:
    """By name: the longest, the 99th percentile and the number of what was measured, in seconds."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in run.by_event["measured"]:
        times[event["name"]].append(float(event["seconds"]))
    return {name: (max(all_), _p99(all_), len(all_)) for name, all_ in times.items()}


def counted(run: Run, violations: list[Violation]) -> dict[str, int]:
    """How many of what: the figures of one line of results."""
    kinds = Counter(violation.kind for violation in violations)
    unknown = {event["key"] for event in run.by_event["dispatch_unknown"]}
    outcomes = Counter(attempt["outcome"] for job in run.jobs.values() for attempt in job.attempts)
    return {
        **{name: kinds[kind] for name, kind in COUNTED.items()},
        "jobs": len(run.jobs),
        "invoked": len(run.by_event["dispatch_invoked"]),
        "accepted": len(run.accepted),
        "unknown": len(unknown),
        "recovered": sum(job.key in unknown for job in run.jobs.values()),
        "refused": len(run.by_event["dispatch_refused"]),
        "canceled": len(run.canceled),
        "faults": len(run.by_event["fault_begun"]),
        "starts": len(run.by_event["started"]),
        "duplicate_starts": sum(max(0, len(job.starts) - 1) for job in run.jobs.values()),
        "attempts": sum(outcomes.values()),
        "interrupted": outcomes["crashed"] + outcomes["lost"],
        "leftovers": kinds[Kind.LEFTOVER_IN_REDIS] + kinds[Kind.IDLE_TRANSACTION] + kinds[Kind.ORPHAN],
    }


def judge(run: Run) -> Verdict:
    """All checks of one run."""
    violations = [violation for check_one in CHECKS for violation in check_one(run)]
    missed = [f"{name} {seen:.1f} s (goal {limit:g} s)" for name, seen, limit, _ in with_goals(run) if seen > limit]
    return Verdict(violations, measured(run), counted(run, violations), missed)


def check(directory: Path) -> Verdict:
    """Judge the run that is kept in a directory.

    Raises:
        ValueError: the directory does not hold a whole run.
    """
    return judge(Run.of(directory))


def _p99(times: list[float]) -> float:
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]


if __name__ == "__main__":
    verdict = check(Path(sys.argv[1]))
    print(*verdict.violations, *verdict.missed, verdict.counts, verdict.measured, sep="\n")  # noqa: T201 - what it is called for
    sys.exit(bool(verdict.violations))
