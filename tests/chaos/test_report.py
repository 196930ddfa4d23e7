"""What docs/reliability.md shows of the results."""

import json
from typing import Any

import pytest

from classes import CLASSES
from report import BEGIN, END, PAGE, latest, tables, together, written_into


def result(name: str, **fields: Any) -> str:
    line = {"class": name, "what": "…", "date": "2026-01-02", "commit": "abc", "seed": 7, "jobs": 10_000, "faults": 101}
    line |= {
        "lost": 0,
        "doubled": 0,
        "recovery": {},
        "ok": True,
        "violations": 0,
        "short": False,
        "machine": "a machine",
    }
    return json.dumps(line | fields)


def row(name: str, *lines: str) -> str:
    """What the page says of a class."""
    return next(one for one in tables(latest(lines)).splitlines() if one.startswith(f"| {name} |"))


def bad(name: str, **fields: Any) -> str:
    return result(name, **({"ok": False, "violations": 3} | fields))


def test_a_class_shows_its_last_full_run() -> None:
    lines = [result("F2", seed=1), result("F2", seed=2), result("F2", seed=3, short=True), result("F1", short=True)]
    chosen = latest(lines)
    assert chosen["F2"]["seed"] == 2
    assert chosen["F1"]["short"]


def test_a_whole_run_stands_however_many_smaller_ones_follow() -> None:
    small = [result("F2", seed=2, jobs=50), result("F2", seed=3, jobs=9_999)]
    assert latest([result("F2", seed=1), *small])["F2"]["seed"] == 1
    assert latest(small)["F2"]["seed"] == 3
    assert latest([result("F2", seed=1, jobs=12_000), result("F2", seed=2)])["F2"]["seed"] == 2, "both are whole"
    refused = result("F2", seed=2, jobs=9_990, ordered=10_000)
    assert latest([result("F2", seed=1), refused])["F2"]["seed"] == 2, "it was to be whole"


def test_a_violated_run_is_hidden_only_by_a_later_good_one_of_its_size() -> None:
    assert "violated: 3 violations with 50 jobs, 2026-01-02, 8" in row("F2", result("F2"), bad("F2", jobs=50, seed=8))
    assert "violat" not in row("F2", result("F2"), bad("F2", jobs=50), result("F2", jobs=50))
    assert "violat" in row("F2", result("F2"), bad("F2", jobs=50), result("F2", jobs=49))
    assert "violat" in row("F2", result("F2"), result("F2", jobs=50), bad("F2", jobs=50))
    assert "violat" not in row("F2", bad("F2", jobs=50), bad("F2"), result("F2"))
    assert "violat" in row("F2", result("F2"), bad("F2", short=True, jobs=300))
    assert "— **3 violations**" in row("F2", result("F2"), bad("F2"))


@pytest.mark.parametrize(
    ("other", "words"), [({"soak_minutes": 30.0}, "(for 30 min)"), ({"outage": 600.0}, "(outages of 600 s)")]
)
def test_a_run_with_other_faults_than_its_class_has_a_row_of_its_own(other: dict[str, float], words: str) -> None:
    lines = [result("F22", seed=1), result("F22", seed=2, jobs=72_000, **other), result("F22", seed=3, **other)]
    assert latest(lines)["F22"]["seed"] == 1
    _, first, second, *_ = (one for one in tables(latest(lines)).splitlines() if one.startswith(("| F21", "| F22")))
    assert words not in first
    assert words in second
    assert second.endswith("2026-01-02, 3 |")
    assert words in row("F22", *lines[1:]), "there is none as planned"
    assert "3 violations" in tables(latest([lines[0], bad("F22", **other)]))


def test_where_the_goals_judge_only_some_recoveries_the_slowest_other_one_is_shown() -> None:
    recovery = {
        "worker parent killed -> work-horse dead": [0.02, 0.02, 2],
        "worker tree killed -> queued again": [92.67, 90.1, 2],
        "frozen -> queued again": [33.2, 33.2, 6],
        "API answer": [100.0, 100.0, 9],
    }
    assert "| 92.7 s (90.1; not judged) |" in row("F22", result("F22", recovery=recovery))
    assert "| 92.7 s (90.1; 45) |" in row("F2", result("F2", recovery=recovery))


def test_a_skipped_class_hides_no_run() -> None:
    skipped = json.dumps({"class": "F2", "what": "…", "commit": "abc", "skipped": "needs root"})
    assert latest([result("F2", seed=1), skipped])["F2"]["seed"] == 1
    assert "needs root" in tables(latest([skipped]))


def test_a_row_has_the_figures_and_the_goal() -> None:
    recovery = {"worker tree killed -> queued again": [31.23, 30.1, 100], "API answer": [0.5, 0.1, 9]}
    text = tables(latest([result("F2", recovery=recovery)]))
    assert "| 10,000 | 101 | 0 | 0 | 31.2 s (30.1; 45) | 2026-01-02, 7 |" in text
    assert "| worker tree killed → queued again | 45 s | 31.23 s | 30.10 s | 100 | F2 |" in text
    assert "API answer" not in text  # F2 makes no promise of it
    assert "10,000 jobs and 101 faults" in text


def test_the_cancel_of_running_jobs_has_its_row_and_is_nobodys_recovery() -> None:
    recovery = {"cancel of a running job -> ended": [6.2, 6.1, 20], "all healed -> Redis and ledger agree": [1, 1, 1]}
    text = tables(latest([result("F7", recovery=recovery), result("F1")]))
    assert "| cancel of a running job → ended | 15 s | 6.20 s | 6.10 s | 20 | F7 |" in text
    assert "| 1.0 s (1.0; 60) | 2026-01-02, 7 |" in text


def test_what_was_violated_stands_there() -> None:
    assert "**3 violations**" in tables(latest([result("F2", lost=3, ok=False, violations=3)]))


def test_a_class_that_never_ran_is_not_left_out() -> None:
    text = tables({})
    assert all(f"| {name} | {one.what} | not run yet" in text for name, one in CLASSES.items())


def test_the_page_has_its_place_for_the_figures() -> None:
    page = PAGE.read_text()
    assert written_into(written_into(page, "figures"), "figures").count("figures\n\n" + END) == 1
    assert page.count(BEGIN) == page.count(END) == 1
    assert all(f"| {name} |" in page for name in CLASSES), "run scripts/chaos-report"


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no <!-- results"):
        written_into("nothing", "figures")


def test_results_are_kept_once_and_in_order() -> None:
    assert together(["a", "b"], ["b", "c"]) == ["a", "b", "c"]
