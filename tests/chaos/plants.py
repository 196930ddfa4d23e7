"""What the tests of the checker plant into a clean run, and what has to be found then."""

from collections.abc import Callable

from checker import NEEDED_IN, judge
from goals import GOALS
from jobledger.maintenance.reaper import LEASE_RAN_OUT
from recorded import (
    CANCELED,
    EXTERNAL,
    KILLED,
    LIMITED,
    PACED,
    POISON,
    QUICK,
    RAISED,
    RETRIED,
    STOPPED,
    UNKNOWN,
    Recorded,
    clean,
)
from witnesses import Kind
from worker_checks import FREE, GRACE_IS_OVER, PATIENT

Plant = Callable[[Recorded], object]


def add_effect(run: Recorded, job_id: str, attempt: int) -> None:
    run.ledger["effects"].append({"job_id": job_id, "key": run.row(job_id)["key"], "attempt": attempt, "at": 2.0})


def add_row(run: Recorded, job_id: str, key: str) -> None:
    run.job(job_id, key, "completed", "completed")


def set_end(run: Recorded, job_id: str, status: str, reason: str | None = None) -> None:
    run.row(job_id).update(status=status, reason=reason)
    run.of("moves", job_id)[-1]["now"] = status
    run.ledger["effects"] = [effect for effect in run.ledger["effects"] if effect["job_id"] != job_id]


def forget(run: Recorded, job_id: str) -> None:
    """The row of an accepted job is gone, with all that belongs to it."""
    for name in ("attempts", "moves", "effects"):
        run.ledger[name] = [row for row in run.ledger[name] if row["job_id"] != job_id]
    run.ledger["jobs"].remove(run.row(job_id))
    run.events = [e for e in run.events if e["event"] not in ("started", "ended") or e["id"] != job_id]


def start_again(run: Recorded, job_id: str, attempt: int) -> None:
    key = run.row(job_id)["key"]
    run.say("started", key=key, id=job_id, attempt=attempt, pid=999, worker="w")


def measure(run: Recorded, name: str, *seconds: float, fault: str = "F2") -> None:
    run.said("run_begun")["fault"] = fault
    run.drop("measured", name="API answer")
    for each in seconds:
        run.say("measured", name=name, seconds=each)


def make_extra_move(run: Recorded, job_id: str, *moves: tuple[str, str, int]) -> None:
    for was, now, attempt in moves:
        run.ledger["moves"].append({"job_id": job_id, "was": was, "now": now, "attempt": attempt, "at": 2.0})
    run.row(job_id).update(status=moves[-1][1])


def not_looked_at(run: Recorded, fault: str) -> None:
    run.said("run_begun")["fault"] = fault
    run.drop(NEEDED_IN[fault][0])


def break_nothing(run: Recorded) -> None:
    run.drop("fault_begun")
    run.said("dispatch_invoked", key="poison-6").pop("ends")


def end_raised(run: Recorded) -> None:
    run.said("ended", id=QUICK)["how"] = "raised"


def overdraw(run: Recorded) -> None:
    run.row(RAISED)["max_attempts"] = 1


def complete_twice(run: Recorded) -> None:
    run.of("attempts", KILLED)[0]["outcome"] = "completed"
    run.row(KILLED)["losses"] = 0


def cancel_late(run: Recorded) -> None:
    """Canceled while it waited for its second attempt, which ran all the same."""
    run.say("canceled", key="brief-2", id=KILLED, done=True)
    moves = run.of("moves", KILLED)
    moves[3]["now"] = "canceled"
    moves[4]["was"] = "canceled"


def add_a_second_of_a_kind(run: Recorded) -> None:
    """Dispatched twice, as the same."""
    first = run.said("dispatch_invoked", key="quick-1")
    first["once"] = True
    run.say("dispatch_invoked", **{name: value for name, value in first.items() if name not in ("event", "at")})
    add_row(run, "id-99", "quick-1")


def run_three_at_once(run: Recorded) -> None:
    run.ran(LIMITED[0], 1000, 1012)
    run.ran(LIMITED[2], 1011, 1035)


def run_beside_an_open_one(run: Recorded) -> None:
    run.ran(LIMITED[0], 1000, None)
    run.of("attempts", LIMITED[0])[0]["finished_at"] = None


def leave_taken(run: Recorded) -> None:
    run.ledger["limit_keys"][0]["taken"] = 1


def leave_slot(run: Recorded) -> None:
    run.ledger["slots"].append({"job_id": LIMITED[0], "kind": "limit", "key": "chaos:north"})


def run_after_promise(run: Recorded) -> None:
    """It crashed after somebody was told that it will be ended, and ran again."""
    make_extra_move(run, STOPPED, ("canceled", "queued", 1))
    run.ledger["moves"].append({"job_id": STOPPED, "was": "queued", "now": "started", "attempt": 2, "at": 1e6})


def reap(run: Recorded, job_id: str) -> None:
    """Its first attempt was given up because of its lease."""
    run.of("attempts", job_id)[0].update(outcome="lost", error_message=LEASE_RAN_OUT, finished_at=15.0)


def end_worker(run: Recorded, name: str, fault: str) -> None:
    run.said("run_begun")["fault"] = fault
    run.drop("measured", name="API answer")
    run.events.insert(1, {"at": 1.0, "event": "exited", "name": name, "pid": 7, "code": 1})


def outlive_grace(run: Recorded) -> None:
    run.said("run_begun")["fault"] = "F4"
    run.said("fault_begun")["detail"] = f"{GRACE_IS_OVER}: SIGKILL worker-1 [7, 8]"


ALONE = f"worker tree killed -> running again, {FREE}"
REDIS_LISTS = ("queued", "intermediate")

PLANTS: list[tuple[str, Kind, Plant]] = [
    *[
        (f"no {event}", Kind.RUN_NOT_WHOLE, lambda run, event=event: run.drop(event))
        for event in ("run_begun", "quiet", "drained", "fault_healed")
    ],
    *[
        (f"{fault} has not looked", Kind.RUN_NOT_WHOLE, lambda run, fault=fault: not_looked_at(run, fault))
        for fault in NEEDED_IN
    ],
    ("no tick fired", Kind.RUN_NOT_WHOLE, lambda run: run.said("ticks").update(fired=0)),
    ("nothing was broken", Kind.RUN_NOT_WHOLE, break_nothing),
    ("an accepted job is gone", Kind.LOST, lambda run: forget(run, EXTERNAL)),
    ("an accepted job waits", Kind.LOST, lambda run: set_end(run, QUICK, "queued")),
    ("a job of unknown acceptance waits", Kind.LOST, lambda run: set_end(run, UNKNOWN, "started")),
    ("a callback waits", Kind.LOST, lambda run: set_end(run, "id-callback", "scheduled")),
    ("an id is another job's", Kind.LOST, lambda run: run.said("dispatch_accepted", id=QUICK).update(key="quick-0")),
    *[
        (f"an innocent job failed: {why}", Kind.WRONG_END, lambda run, why=why: set_end(run, QUICK, "failed", why))
        for why in ("crashed", "lost", "undispatchable", "expired", "error", "timeout")
    ],
    ("nobody canceled it", Kind.WRONG_END, lambda run: set_end(run, QUICK, "canceled", "by nobody")),
    ("a canceled job completed", Kind.WRONG_END, lambda run: set_end(run, CANCELED, "completed")),
    ("a poison has another end", Kind.WRONG_END, lambda run: set_end(run, POISON, "failed", "lost")),
    ("a poison completed", Kind.WRONG_END, lambda run: set_end(run, POISON, "completed")),
    ("a start of nobody's key", Kind.UNEXPECTED, lambda run: run.said("started", id=QUICK).update(key="quick-99")),
    ("a start before its dispatch", Kind.UNEXPECTED, lambda run: run.events.reverse()),
    ("a start of no row", Kind.UNEXPECTED, lambda run: run.said("started", id=QUICK).update(id="id-99")),
    ("an effect of no row", Kind.UNEXPECTED, lambda run: run.of("effects", QUICK)[0].update(job_id="id-99")),
    ("one dispatch, two rows", Kind.UNEXPECTED, lambda run: add_row(run, "id-99", "quick-1")),
    ("one of a kind, two rows", Kind.UNEXPECTED, add_a_second_of_a_kind),
    ("a row of nobody's key", Kind.UNEXPECTED, lambda run: run.row(UNKNOWN).update(key="quick-99")),
    ("a refused job has a row", Kind.FALSE_ANSWER, lambda run: add_row(run, "id-99", "quick-8")),
    ("2xx without a row", Kind.FALSE_ANSWER, lambda run: forget(run, QUICK)),
    ("an effect twice", Kind.DOUBLED, lambda run: add_effect(run, QUICK, 1)),
    ("an effect too many", Kind.DOUBLED, lambda run: add_effect(run, EXTERNAL, 1)),
    ("no effect", Kind.MISSING_EFFECT, lambda run: run.ledger["effects"].pop(0)),
    ("an effect of a failed job", Kind.STRAY_EFFECT, lambda run: add_effect(run, POISON, 3)),
    ("an effect of a canceled job", Kind.STRAY_EFFECT, lambda run: add_effect(run, CANCELED, 0)),
    ("an attempt began twice", Kind.STARTED_TWICE, lambda run: start_again(run, QUICK, 1)),
    ("an attempt that nobody wrote", Kind.UNRECORDED_START, lambda run: start_again(run, QUICK, 2)),
    ("a start without interruption", Kind.TOO_MANY_STARTS, lambda run: start_again(run, QUICK, 2)),
    ("an attempt has no outcome", Kind.OPEN_ATTEMPT, lambda run: run.of("attempts", KILLED)[0].update(outcome=None)),
    ("an attempt has no end", Kind.OPEN_ATTEMPT, lambda run: run.of("attempts", QUICK)[0].update(finished_at=None)),
    ("completed, never began", Kind.NEVER_RAN, lambda run: run.drop("started", id=QUICK)),
    ("completed, began earlier", Kind.NEVER_RAN, lambda run: run.drop("started", id=KILLED, attempt=2)),
    ("completed, never returned", Kind.NEVER_RAN, lambda run: run.drop("ended", id=QUICK)),
    ("completed, but raised", Kind.NEVER_RAN, end_raised),
    ("an old attempt's effect", Kind.ZOMBIE_WRITE, lambda run: run.of("effects", KILLED)[0].update(attempt=1)),
    ("an old attempt completed", Kind.ZOMBIE_WRITE, complete_twice),
    ("an old attempt ended late", Kind.ZOMBIE_WRITE, lambda run: run.of("attempts", KILLED)[0].update(finished_at=21)),
    ("completed, but failed", Kind.ZOMBIE_WRITE, lambda run: run.of("attempts", POISON)[2].update(outcome="completed")),
    ("no moves at all", Kind.ILLEGAL_MOVE, lambda run: run.ledger["moves"].clear()),
    ("a move is missing", Kind.ILLEGAL_MOVE, lambda run: run.ledger["moves"].pop(1)),
    ("a move that is not allowed", Kind.ILLEGAL_MOVE, lambda run: run.of("moves", KILLED)[2].update(now="queued")),
    ("terminal, and moved", Kind.ILLEGAL_MOVE, lambda run: make_extra_move(run, POISON, ("failed", "queued", 3))),
    ("completed, and moved", Kind.ILLEGAL_MOVE, lambda run: make_extra_move(run, QUICK, ("completed", "failed", 1))),
    ("retried by nobody", Kind.ILLEGAL_MOVE, lambda run: run.drop("retried")),
    ("the last move is another", Kind.ILLEGAL_MOVE, lambda run: run.row(QUICK).update(status="failed")),
    ("a claim did not raise the fence", Kind.FENCE_FELL, lambda run: run.of("moves", KILLED)[4].update(attempt=1)),
    ("the fence rose by itself", Kind.FENCE_FELL, lambda run: run.of("moves", QUICK)[2].update(attempt=2)),
    ("the fence is another", Kind.FENCE_FELL, lambda run: run.row(QUICK).update(attempt=2)),
    ("more errors than allowed", Kind.OVER_BUDGET, overdraw),
    ("more crashes than allowed", Kind.OVER_BUDGET, lambda run: run.row(POISON).update(crashes=4)),
    ("attempts are missing", Kind.MISCOUNTED, lambda run: run.ledger["attempts"].clear()),
    ("a crash was not counted", Kind.MISCOUNTED, lambda run: run.row(POISON).update(crashes=2)),
    ("an error too many", Kind.MISCOUNTED, lambda run: run.row(QUICK).update(errors=1)),
    ("a crash too many", Kind.MISCOUNTED, lambda run: run.row(RETRIED).update(crashes=1)),
    ("a crash of a job that was called off", Kind.MISCOUNTED, lambda run: run.row(STOPPED).update(crashes=1)),
    ("a loss was not counted", Kind.MISCOUNTED, lambda run: run.row(KILLED).update(losses=0)),
    *[
        (f"{name} in Redis", Kind.LEFTOVER_IN_REDIS, lambda run, name=name: run.ledger["redis"][name].update(q=[QUICK]))
        for name in REDIS_LISTS
    ],
    ("an execution", Kind.LEFTOVER_IN_REDIS, lambda run: run.ledger["redis"]["executions"].append(f"rq:{QUICK}:1")),
    (
        "an open transaction",
        Kind.IDLE_TRANSACTION,
        lambda run: run.ledger["sessions"].append(
            {"pid": 7, "state": "idle in transaction (aborted)", "application_name": "jobledger"}
        ),
    ),
    ("a process", Kind.ORPHAN, lambda run: run.ledger["processes"].append({"pid": 7, "cmdline": "rq: work-horse"})),
    ("an orphan for a while", Kind.ORPHAN, lambda run: run.say("orphan", pid=7, state="S")),
    *[
        (f"{name} takes too long", Kind.TOO_SLOW, lambda run, name=name, goal=goal: measure(
            run, name, 0.1, 1.01 * (goal.seconds(30, (*goal.only, "F2")[0]) or 0), fault=(*goal.only, "F2")[0]))
        for name, goal in GOALS.items()
    ],
    ("a tick is missing", Kind.MISSING_TICK, lambda run: run.said("ticks").update(missing=1)),
    ("a tick is double", Kind.DOUBLED_TICK, lambda run: run.said("ticks").update(doubled=1)),
    ("poison slows others", Kind.POISON_SPREAD, lambda run: run.said("throughput").update(during=39.9)),
    ("canceled, and ran", Kind.RAN_AFTER_CANCEL, lambda run: start_again(run, CANCELED, 1)),
    ("canceled between attempts, and ran", Kind.RAN_AFTER_CANCEL, cancel_late),
    ("to be ended, and ran again", Kind.RAN_AFTER_CANCEL, run_after_promise),
    ("nobody canceled what runs", Kind.RUN_NOT_WHOLE, lambda run: run.drop("canceled", id=STOPPED)),
    ("three at once", Kind.OVER_LIMIT, run_three_at_once),
    ("three at once, one of another class", Kind.OVER_LIMIT, lambda run: run.ran(PACED[0], 1006, 1007)),
    ("beside one that was killed later", Kind.OVER_LIMIT, lambda run: run.ran(LIMITED[2], 1009, 1035)),
    ("beside one whose end nobody knows", Kind.OVER_LIMIT, run_beside_an_open_one),
    ("three starts within the time", Kind.OVER_RATE, lambda run: run.began(PACED[2], 2001.98)),
    ("no key was counted", Kind.RUN_NOT_WHOLE, lambda run: run.ledger["limit_keys"].clear()),
    ("a slot is counted", Kind.SLOT_LEAKED, leave_taken),
    ("a job has a slot", Kind.SLOT_LEAKED, leave_slot),
    ("reaped, and nobody had hit it", Kind.REAPED_ALIVE, lambda run: reap(run, RETRIED)),
    ("a patient worker ended", Kind.WORKER_ENDED, lambda run: end_worker(run, f"worker-1{PATIENT}", "F11")),
    ("a worker outlived its grace", Kind.NOT_HANDED_BACK, outlive_grace),
    ("a job is in no place", Kind.DRIFT, lambda run: run.said("drift").update(drift=1)),
    ("the only job was not hit", Kind.RUN_NOT_WHOLE, lambda run: run.drop("measured", name=ALONE)),
    ("nobody has counted", Kind.RUN_NOT_WHOLE, lambda run: run.drop("drift")),
]  # fmt: skip


def kinds_after(plant: Plant) -> set[Kind]:
    """What is found once this is planted."""
    run = clean()
    plant(run)
    return {violation.kind for violation in judge(run.run()).violations}
