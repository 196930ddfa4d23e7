"""Every kind of violation is planted into a clean run, and found; in the clean run nothing is."""

import json
from pathlib import Path

import pytest

import checker
from checker import CHECKS, SHORT_RUN_SLACK, check, judge
from goals import GOALS
from history import HISTORY, LEDGER, History
from plants import (
    PLANTS,
    Plant,
    add_effect,
    end_worker,
    kinds_after,
    measure,
    reap,
    run_three_at_once,
    set_end,
)
from recorded import (
    EXTERNAL,
    KILLED,
    LIMITED,
    PACED,
    QUICK,
    RETRIED,
    STOPPED,
    UNKNOWN,
    Recorded,
    clean,
)
from witnesses import Kind, Verdict
from worker_checks import PATIENT


def test_nothing_is_found_in_a_clean_run() -> None:
    verdict = judge(clean().run())
    assert verdict.violations == []
    wrong = {"lost": 0, "doubled": 0, "unexpected": 0, "zombie_writes": 0, "leftovers": 0}
    dispatched = {"jobs": 16, "invoked": 16, "accepted": 14, "unknown": 1, "recovered": 1, "refused": 1, "canceled": 1}
    happened = {"faults": 1, "starts": 21, "duplicate_starts": 7, "attempts": 22, "interrupted": 6}
    assert verdict.counts == wrong | dispatched | happened
    assert verdict.measured["worker tree killed -> queued again"] == (44.0, 44.0, 1)


@pytest.mark.parametrize(("kind", "plant"), [plant[1:] for plant in PLANTS], ids=[plant[0] for plant in PLANTS])
def test_what_is_planted_is_found(kind: Kind, plant: Plant) -> None:
    assert kind in kinds_after(plant)


def test_every_kind_is_planted() -> None:
    assert {kind for _, kind, _ in PLANTS} == set(Kind)


@pytest.mark.parametrize("removed", CHECKS, ids=lambda one: one.__name__)
def test_without_any_one_of_the_checks_something_is_missed(removed: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "CHECKS", [one for one in CHECKS if one is not removed])
    assert any(kind not in kinds_after(plant) for _, kind, plant in PLANTS)


def test_a_violation_names_the_job_and_what_was_seen() -> None:
    run = clean()
    add_effect(run, QUICK, 1)
    (violation,) = judge(run.run()).violations
    assert str(violation) == "I3 doubled effect quick-1 id-0: 2 effects instead of 1, by attempts 1, 1"


def test_what_is_counted() -> None:
    run = clean()
    set_end(run, QUICK, "queued")
    add_effect(run, UNKNOWN, 1)
    add_effect(run, KILLED, 1)
    run.said("started", id=EXTERNAL)["key"] = "quick-99"
    counts = judge(run.run()).counts
    assert (counts["lost"], counts["doubled"], counts["zombie_writes"]) == (1, 2, 2)
    assert counts["unexpected"] == 1


def test_a_shorter_lease_allows_less() -> None:
    run = clean()
    run.said("run_begun")["settings"]["lease_seconds"] = 3
    assert [violation.kind for violation in judge(run.run()).violations] == [Kind.TOO_SLOW]


def in_a_short_run(run: Recorded, slowness: float, seconds: float) -> None:
    run.said("run_begun")["short"] = True
    run.said("pace")["slowness"] = slowness
    measure(run, "Postgres accepts again -> next start", seconds, fault="F15")


def test_a_short_run_is_given_the_time_that_the_machine_takes() -> None:
    goal = GOALS["Postgres accepts again -> next start"].fixed
    assert kinds_after(lambda run: in_a_short_run(run, 1.0, SHORT_RUN_SLACK * goal)) == set()
    assert kinds_after(lambda run: in_a_short_run(run, 1.0, SHORT_RUN_SLACK * goal + 1)) == {Kind.TOO_SLOW}
    assert kinds_after(lambda run: in_a_short_run(run, 2.0, SHORT_RUN_SLACK * goal + 1)) == set()


def test_the_goals_that_a_short_run_missed_are_said() -> None:
    run = clean()
    in_a_short_run(run, 1.0, 16)
    verdict = judge(run.run())
    assert verdict.violations == []
    assert verdict.missed == ["Postgres accepts again -> next start 16.0 s (goal 15 s)"]
    assert judge(clean().run()).missed == []


def test_some_goals_hold_in_some_classes_alone() -> None:
    name = "Redis healed -> next start"
    assert kinds_after(lambda run: measure(run, name, 29, fault="F10")) == set()
    assert kinds_after(lambda run: measure(run, name, 29, fault="F11")) == {Kind.TOO_SLOW}


def test_where_faults_overlap_a_recovery_may_take_longer() -> None:
    name = "worker tree killed -> queued again"
    assert kinds_after(lambda run: measure(run, name, 90, fault="F22")) == set()
    assert kinds_after(lambda run: measure(run, name, 90, fault="F2")) == {Kind.TOO_SLOW}
    late = "all healed -> Redis and ledger agree"
    assert kinds_after(lambda run: measure(run, late, 90, fault="F22")) == {Kind.TOO_SLOW}


def test_a_loss_is_forgiven_when_postgres_restarted() -> None:
    def plant(run: Recorded) -> None:
        run.row(KILLED).update(losses=0)
        run.said("fault_begun")["fault"] = "F15"

    assert kinds_after(plant) == set()


def test_a_percentile_forgives_what_is_rare() -> None:
    few = [0.1] * 300
    assert kinds_after(lambda run: measure(run, "API answer", *few, fault="F11")) == set()
    assert kinds_after(lambda run: measure(run, "API answer", *few, *[3] * 5, fault="F11")) == {Kind.TOO_SLOW}


def test_poison_counts_as_the_fault_of_a_run_without_others() -> None:
    def plant(run: Recorded) -> None:
        run.drop("fault_begun")
        run.drop("fault_healed")

    assert kinds_after(plant) == set()


def test_a_cancel_that_could_not_be_made_leaves_both_ends_open() -> None:
    def plant(run: Recorded) -> None:
        run.said("dispatch_invoked", key="quick-7")["ends"] = "canceled"

    assert kinds_after(plant) == set()


def run_beside_a_frozen_one(run: Recorded, fault: str) -> None:
    """The second of three goes on after its attempt was given up, as the third already runs beside the first."""
    run.said("fault_begun").update(fault=fault, victims=[LIMITED[1]])
    run.ran(LIMITED[0], 1000, 1028)
    run.ran(LIMITED[2], 1021, 1027)
    about = {"key": "limited-2", "id": LIMITED[1], "attempt": 1, "pid": 101}
    run.say("ended", **about, how="raised")
    run.events[-1]["at"] = 1025.0


def test_a_process_that_lives_on_counts_unless_it_was_frozen() -> None:
    assert kinds_after(lambda run: run_beside_a_frozen_one(run, "F2")) == {Kind.OVER_LIMIT}
    assert kinds_after(lambda run: run_beside_a_frozen_one(run, "F5")) == set()


def test_who_begins_when_another_has_ended_is_not_beside_it() -> None:
    def plant(run: Recorded) -> None:
        run.ran(LIMITED[0], 1000, 1028)
        run.ran(LIMITED[2], 1020, 1027)  # the killed one's attempt was ended at that moment

    assert kinds_after(plant) == set()


def test_jobs_of_other_keys_run_beside_each_other() -> None:
    def plant(run: Recorded) -> None:
        run_three_at_once(run)
        run.said("dispatch_invoked", key="limited-3")["limits"] = [{"kind": "limit", "key": "chaos:east", "most": 2}]

    assert kinds_after(plant) == set()


def test_a_start_is_counted_for_its_time_and_no_longer() -> None:
    assert kinds_after(lambda run: run.began(PACED[2], 2001.995)) == set(), "written a moment before it was counted"
    assert kinds_after(lambda run: run.began(PACED[0], 2000.5)) == {Kind.OVER_RATE}


def test_an_attempt_that_failed_was_a_start_too() -> None:
    def plant(run: Recorded, second_start: float) -> None:
        run.said("dispatch_invoked", key="limited-2")["limits"] = run.said("dispatch_invoked", key="paced-1")["limits"]
        run.began(LIMITED[1], 2010.0, attempt=1)
        run.began(LIMITED[1], second_start, attempt=2)
        run.began(PACED[2], 2013.1)
        run.drop("started", id=LIMITED[1], attempt=1)  # only its two attempts are looked at

    assert kinds_after(lambda run: plant(run, 2011.2)) == set()
    assert kinds_after(lambda run: [plant(run, 2011.2), run.began(PACED[2], 2011.9)]) == {Kind.OVER_RATE}


def test_a_crash_of_a_job_that_is_to_be_canceled_spends_nothing() -> None:
    assert kinds_after(lambda run: run.of("attempts", STOPPED)[0].update(outcome="crashed")) == set()


def test_who_completes_before_the_cancel_comes_to_it_has_completed() -> None:
    def plant(run: Recorded) -> None:
        run.row(STOPPED)["status"] = "completed"
        run.of("moves", STOPPED)[-1]["now"] = "completed"
        run.of("attempts", STOPPED)[0]["outcome"] = "completed"
        run.said("ended", id=STOPPED)["how"] = "returned"
        add_effect(run, STOPPED, 1)

    assert kinds_after(plant) == set()


def reap_killed(run: Recorded, hit_at: float) -> None:
    reap(run, KILLED)
    run.said("fault_begun")["at"] = hit_at


def test_who_was_hit_before_is_not_reaped_alive() -> None:
    assert kinds_after(lambda run: reap_killed(run, 14.0)) == set()
    assert kinds_after(lambda run: reap_killed(run, 16.0)) == {Kind.REAPED_ALIVE}


def reap_beside_an_end(run: Recorded, name: str, pid: str, ended_at: float) -> None:
    reap(run, RETRIED)
    run.events.insert(1, {"at": ended_at, "event": "exited", "name": name, "pid": pid, "code": 0})


def test_whose_worker_has_ended_is_not_reaped_alive() -> None:
    assert kinds_after(lambda run: reap_beside_an_end(run, "worker-0", "w", 14.0)) == set()
    assert kinds_after(lambda run: reap_beside_an_end(run, "worker-0", "w", 16.0)) == {Kind.REAPED_ALIVE}
    assert kinds_after(lambda run: reap_beside_an_end(run, "worker-0", "another", 14.0)) == {Kind.REAPED_ALIVE}


def test_who_may_end_while_redis_is_away() -> None:
    assert kinds_after(lambda run: end_worker(run, "worker-0", "F11")) == set(), "RQ's own"
    assert kinds_after(lambda run: end_worker(run, f"worker-1{PATIENT}", "F4")) == set(), "it was told to"


def test_a_run_is_written_and_read(tmp_path: Path) -> None:
    run = clean()
    with History(tmp_path / "F2-1") as history:
        for event in run.events:
            history.say(**{name: value for name, value in event.items() if name != "at"})
    (tmp_path / "F2-1" / LEDGER).write_text(json.dumps(run.ledger))
    verdict: Verdict = check(tmp_path / "F2-1")
    assert verdict == judge(run.run())


def test_a_damaged_run_is_no_clean_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold a whole run"):
        check(tmp_path)
    (tmp_path / LEDGER).write_text("{}")
    (tmp_path / HISTORY).write_text('{"at": 1.0, "eve')
    with pytest.raises(ValueError, match="Unterminated"):
        check(tmp_path)
