"""Load and faults come from the seed alone, and are what they say."""

from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

import chaos_jobs
import chaos_new_jobs
from classes import CLASSES
from dispatching import find_class
from driver import FULL_SETTINGS, SHORT_SETTINGS, Order, allowed, commit
from faults import FAULTS
from goals import GOALS
from jobledger import BaseJob
from load import GROUPS, IN_A_ROW, POISONS, SHARES, Size, Task, make_load, poisons
from recovery import ASKED_TO_END, GOES_ON, HITS_ALL, QUEUED_AGAIN
from run import (
    SHORT_PATIENCE_SECONDS,
    arguments,
    is_done,
    lane_options,
    options_of,
    ordered,
    orders_of,
    patience,
    write,
)


def test_a_seed_gives_the_same_load_and_another_seed_another_one() -> None:
    assert make_load(7, Size(500)) == make_load(7, Size(500))
    assert make_load(7, Size(500)) != make_load(8, Size(500))


def test_a_load_has_as_many_jobs_of_each_kind_as_it_says() -> None:
    tasks = make_load(1, Size(1000, long=20), newer=5)
    kinds = Counter(task.kind for task in tasks)
    assert len(tasks) == len({task.key for task in tasks}) == 1000
    assert kinds["long"] == 20, "the cap"
    assert kinds["newer"] == 5
    assert kinds["stopped"] == 10
    assert Counter(task.kind for task in make_load(1, Size(10_000)))["stopped"] == 20, "the cap"
    for kind in ("brief", "raising", "external", "limited", "paced"):
        assert kinds[kind] == pytest.approx(1000 * SHARES[kind], rel=0.1)
    assert sum(SHARES.values()) == pytest.approx(1)
    assert kinds["quick"] > 1000 * SHARES["quick"], "what the cap leaves"
    assert {task.queue for task in tasks} == {"high", "default", "low"}
    assert all(task.key.startswith(f"{task.kind}-") and task.payload["key"] == task.key for task in tasks)


def test_children_come_after_their_parents_which_complete() -> None:
    seen: dict[str, str] = {}
    children = 0
    for task in make_load(3, Size(1000)):
        if task.after is not None:
            children += 1
            assert seen[task.after] in ("quick", "brief", "external")
        seen[task.key] = task.kind
    assert children > 20


def test_canceled_jobs_wait_long_enough_to_be_canceled() -> None:
    canceled = [task for task in make_load(3, Size(1000)) if task.cancel]
    assert len(canceled) == 20
    assert all(task.ends == ["canceled", "completed"] and task.delay >= 30 for task in canceled)


def test_long_jobs_take_as_long_as_the_size_says() -> None:
    seconds = [task.payload["seconds"] for task in make_load(3, Size(1000, 10, (5.0, 6.0))) if task.kind == "long"]
    assert len(seconds) == 10
    assert all(5 <= one <= 6 for one in seconds)


def test_jobs_of_a_group_come_one_after_another_into_one_queue() -> None:
    tasks = make_load(3, Size(1000))
    rows = [(kind, list(row)) for (kind, group, _), row in groupby(tasks, _row) if group is not None]
    assert Counter((kind, len(row)) for kind, row in rows) == {
        ("limited", IN_A_ROW): 4,
        ("limited", 39 - 4 * IN_A_ROW): 1,
        ("paced", IN_A_ROW): 2,
        ("paced", 20 - 2 * IN_A_ROW): 1,
    }
    assert {task.payload["group"] for _, row in rows for task in row} == set(GROUPS)


def _row(task: Task) -> tuple[str, object, str]:
    return task.kind, task.payload.get("group"), task.queue


def test_limits_are_what_the_load_says_of_them() -> None:
    tasks = [task for task in make_load(3, Size(1000)) if task.limits]
    assert {task.kind for task in tasks} == {"limited", "paced"}
    for task in tasks:
        job_class = find_class(task.job_type)
        assert job_class is not None
        of_class = [one.of(task.job_type, task.payload) for one in (job_class.limit, job_class.rate) if one]
        assert [(one["kind"], one["key"], one["most"], one.get("window")) for one in task.limits] == [
            (one.kind, one.key, one.most, one.window_seconds) for one in of_class
        ]


def test_jobs_that_are_stopped_fail_any_run_if_their_cancel_does_nothing() -> None:
    stopped = [task for task in make_load(3, Size(1000)) if task.stops]
    goal = GOALS[ASKED_TO_END].seconds(FULL_SETTINGS["lease_seconds"])
    assert goal is not None
    assert {task.payload["checks"] for task in stopped} == {True, False}
    assert all(task.payload["seconds"] > goal for task in stopped), "too slow for a full run"
    assert all(task.payload["seconds"] > SHORT_PATIENCE_SECONDS for task in stopped), "and a short one gives it up"
    assert all(task.ends == ["canceled", "completed"] and not task.over_http for task in stopped)


def test_every_kind_has_a_class_that_takes_its_payload() -> None:
    tasks = make_load(3, Size(1000), newer=3) + poisons(3, 2)
    for task in tasks:
        job_class = find_class(task.job_type)
        if task.payload.get("how") == "unknown":
            assert job_class is None
        else:
            assert job_class is not None, task.kind
            assert job_class.payload_type is not None
            job_class.set(queue=task.queue).request(task.payload)  # refuses what does not fit


def test_every_poison_is_known_to_its_class_and_has_a_named_end() -> None:
    tasks = poisons(1, 3)
    assert {str(task.payload["how"]) for task in tasks} == set(POISONS)
    assert all(task.ends == POISONS[str(task.payload["how"])] and task.effects == 0 for task in tasks)
    for how in set(POISONS) - {"unknown"}:
        assert callable(getattr(chaos_jobs.Poison, f"_{how}"))


def test_the_older_deployment_lacks_the_newer_jobs() -> None:
    newer = {name for name, one in vars(chaos_new_jobs).items() if isinstance(one, type) and issubclass(one, BaseJob)}
    assert newer - set(vars(chaos_jobs)) == {"Newer"}


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_seed_gives_the_same_plan_whose_faults_exist(name: str) -> None:
    one = CLASSES[name]
    for short in (True, False):
        plan = one.plan(11, one.jobs, short)
        assert plan == one.plan(11, one.jobs, short)
        assert len(plan) == (one.smoke if short else one.full)
        assert all(planned.fault in FAULTS and planned.pause >= 0 for planned in plan)
    assert one.plan(11, one.jobs, False) != one.plan(12, one.jobs, False)


def test_a_smaller_run_has_fewer_faults_but_some() -> None:
    assert len(CLASSES["F2"].plan(1, 1000, False)) == 10
    assert len(CLASSES["F2"].plan(1, 10, False)) == CLASSES["F2"].smoke


def test_the_mixed_class_injects_many_kinds_with_what_each_needs() -> None:
    plan = [CLASSES["F22"].soak(5, number) for number in range(300)]
    assert {planned.fault for planned in plan} == {f"F{number}" for number in range(1, 18)}
    assert all("seconds" in planned.arguments for planned in plan if planned.fault in ("F11", "F12", "F13", "F14"))


def test_short_runs_have_short_outages() -> None:
    for name in ("F11", "F12", "F16"):
        plan = CLASSES[name].plan(1, CLASSES[name].jobs, True)
        assert all(planned.arguments.get("seconds", 0) <= 5 for planned in plan)


def test_jobs_are_allowed_in_step_with_the_faults_and_some_are_left_for_the_end() -> None:
    assert [allowed(100, 4, step) for step in range(4)] == [20, 40, 60, 80]
    assert allowed(5, 10, 0) == 1, "there is work at the first fault"


def test_every_tenth_kill_hits_the_only_job_there_is() -> None:
    for name in ("F1", "F2"):
        plan = CLASSES[name].plan(1, 10_000, False)
        assert [number for number, planned in enumerate(plan) if "alone" in planned.arguments] == list(
            range(0, 100, 10)
        )
    mixed = [CLASSES["F22"].soak(5, number) for number in range(300)]
    assert not any("alone" in planned.arguments for planned in mixed), "others are being recovered from there"


def test_one_cut_of_a_full_run_lasts_for_ten_minutes() -> None:
    cuts = [planned.arguments["seconds"] for planned in CLASSES["F11"].plan(1, 2000, False)]
    assert cuts == [60, 5, 5, 60, 5, 600]


def test_poison_is_told_what_it_needs() -> None:
    order = Order("F18", 1, 100, Path("out"), short=True)
    (planned,) = order.plan()
    assert planned.arguments == {"jobs": 100, "seed": 1, "each": 1, "short": True}


def test_times_that_are_measured_have_goals() -> None:
    assert {*GOES_ON.values(), *QUEUED_AGAIN.values(), ASKED_TO_END} <= set(GOALS)
    assert set(FAULTS) >= HITS_ALL


def test_an_outage_lasts_as_long_as_was_asked_for() -> None:
    order = Order("F11", 1, 2000, Path("out"), outage=600)
    assert {planned.arguments["seconds"] for planned in order.plan()} == {600}


def test_poison_is_given_more_time_to_end() -> None:
    assert patience(CLASSES["F18"], short=False) > patience(CLASSES["F2"], short=False)
    assert patience(CLASSES["F18"], short=True) == patience(CLASSES["F2"], short=True)


def test_a_short_lease_is_longer_on_a_slow_machine() -> None:
    short, full = (Order("F2", 1, 300, Path("out"), short=short) for short in (True, False))
    assert short.settings(1.0) == SHORT_SETTINGS
    assert short.settings(2.0)["lease_seconds"] == 2 * SHORT_SETTINGS["lease_seconds"]
    assert full.settings(2.0) == FULL_SETTINGS


def test_what_went_well_with_this_commit_is_left_out_when_a_run_is_resumed(tmp_path: Path) -> None:
    order = Order("F2", 1, 10_000, tmp_path)
    assert not is_done(order)
    good = {"class": "F2", "ok": True, "short": False, "commit": commit(), **ordered(order)}
    others: list[dict[str, object]] = [{"class": "F1"}, {"ok": False}, {"short": True}, {"commit": "other"}]
    others += [{"ordered": 9_999}, {"soak_minutes": 30.0}, {"outage": 600.0}]
    for other in others:
        write(tmp_path, {**good, **other})
        assert not is_done(order), other
    write(tmp_path, {"class": "F2", "what": "…", "commit": commit(), "skipped": "needs root"})
    write(tmp_path, {name: value for name, value in good.items() if name not in ordered(order)})
    assert not is_done(order), "nothing is known of what it was to do"
    write(tmp_path, good)
    assert is_done(order)
    write(tmp_path, {**good, "ok": False})
    assert not is_done(order), "it has been violated since"


def test_a_run_with_longer_outages_is_resumed_as_such(tmp_path: Path) -> None:
    order = Order("F11", 1, 2000, tmp_path, outage=600.0)
    write(tmp_path, {"class": "F11", "ok": True, "short": False, "commit": commit(), **ordered(order)})
    assert is_done(order)
    assert not is_done(Order("F11", 1, 2000, tmp_path))


@pytest.mark.parametrize(
    "words",
    ["--class F11,F12 --jobs 500 --outage 600 --keep", "--smoke", "--full", "--class F11,F12 --short --workers 2"],
)
def test_lanes_run_what_one_process_would_run(tmp_path: Path, words: str) -> None:
    given = arguments([*words.split(), "--seed", "7", "--lanes", "2", "--out", str(tmp_path)])
    orders = orders_of(given)
    names = ",".join(one.name for one in orders)
    assert orders_of(arguments(["--class", names, *lane_options(given)])) == orders


@pytest.mark.parametrize("words", ["--soak 2 --workers 3", "--class F11 --outage 0.5", "--class F1 --short --jobs 50"])
def test_what_is_said_of_a_violated_run_runs_it_again(tmp_path: Path, words: str) -> None:
    common = ["--seed", "7", "--out", str(tmp_path)]
    (order,) = orders_of(arguments([*words.split(), *common]))
    assert orders_of(arguments([*options_of(order), "--out", str(tmp_path)])) == [order]
